// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/orthogonal.hpp: OFT and BOFT: rotations of groups of output rows.
//
// Include this for the kernels of orthogonal fine-tuning (kohya, networks/oft.py; LyCORIS, modules/diag_oft.py and boft.py). Rotations are
// solved for once a tensor, in double; tiles of whole groups of rows are then rotated in f32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "tensorsmith/merge/low_rank.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How the `alpha` of a file limits the rotation; c = alpha · output channels, ‖Q‖ the Frobenius norm over all blocks of the module.
enum class oft_constraint {
  kohya,    ///< always: Q *= (min(‖Q‖, c) + 1e-8) / (‖Q‖ + 1e-8); alpha 0 leaves next to nothing
  lycoris,  ///< only if c > 0 and ‖Q‖ + 1e-8 > c: Q *= c / (‖Q‖ + 1e-8); alpha 0 means no limit
};

/// The factor on Q = B − Bᵀ that the constraint asks for. blocks: [count · b, b], all blocks of the module one below the other.
inline double oft_scale(const_matrix blocks, oft_constraint rule, double c) noexcept {
  double square = 0;
  const std::size_t b = blocks.cols;
  for (std::size_t i = 0; i < blocks.rows; ++i) {
    const float* const block = blocks.row(i / b * b);
    for (std::size_t j = 0; j < b; ++j) {
      const double q = static_cast<double>(blocks.row(i)[j]) - static_cast<double>(block[j * blocks.stride + i % b]);
      square += q * q;
    }
  }
  const double norm = std::sqrt(square);
  if (rule == oft_constraint::kohya) return ((norm < c ? norm : c) + 1e-8) / (norm + 1e-8);
  return c > 0 && norm + 1e-8 > c ? c / (norm + 1e-8) : 1.0;
}

/// The rotation at strength m: m · R + (1 − m) · I with R = (I + Q)(I − Q)⁻¹ (Cayley), Q = scale · (B − Bᵀ). block [b, b], out [b, b];
/// `work` holds b · (b + 1) doubles. I − Q is never singular (the eigenvalues of Q are imaginary).
inline void oft_rotation(const_matrix block, double scale, double m, matrix out, double* work) noexcept {
  const std::size_t b = block.rows;
  double *const a = work, *const exchanged = work + b * b;  // Rᵀ = (I + Q)⁻¹ (I − Q) = 2 (I + Q)⁻¹ − I
  for (std::size_t i = 0; i < b; ++i)
    for (std::size_t j = 0; j < b; ++j)
      a[i * b + j] = (i == j ? 1.0 : 0.0) + scale * (static_cast<double>(block.row(i)[j]) - static_cast<double>(block.row(j)[i]));
  for (std::size_t p = 0; p < b; ++p) {  // the inverse in place: Gauss-Jordan with row exchange
    std::size_t best = p;
    for (std::size_t i = p + 1; i < b; ++i)
      if (std::fabs(a[i * b + p]) > std::fabs(a[best * b + p])) best = i;
    exchanged[p] = static_cast<double>(best);
    for (std::size_t j = 0; j < b && best != p; ++j) std::swap(a[p * b + j], a[best * b + j]);
    const double pivot = 1.0 / a[p * b + p];
    a[p * b + p] = 1.0;
    for (std::size_t j = 0; j < b; ++j) a[p * b + j] *= pivot;
    for (std::size_t i = 0; i < b; ++i) {
      const double factor = a[i * b + p];
      if (i == p || factor == 0) continue;
      a[i * b + p] = 0;
      for (std::size_t j = 0; j < b; ++j) a[i * b + j] -= factor * a[p * b + j];
    }
  }
  for (std::size_t p = b; p-- > 0;)  // rows exchanged before are columns exchanged after
    if (const auto other = static_cast<std::size_t>(exchanged[p]); other != p)
      for (std::size_t i = 0; i < b; ++i) std::swap(a[i * b + p], a[i * b + other]);
  for (std::size_t i = 0; i < b; ++i)
    for (std::size_t j = 0; j < b; ++j)
      out.row(i)[j] = static_cast<float>(2.0 * m * a[j * b + i] + (i == j ? 1.0 - 2.0 * m : 0.0));
}

/// Rotates whole groups of rows: group k of b rows becomes factors_k times itself. factors: [groups · b, b], one below the other, beginning with
/// the tile's first group: R_kᵀ for OFT. `kernel` multiplies; `work` holds b · panel_cols floats. @pre w.rows is a multiple of b
inline void rotate_rows(matrix w, const_matrix factors, low_rank_kernel kernel, float* work) noexcept {
  const std::size_t b = factors.cols;
  for (std::size_t first = 0; first < w.rows; first += b)
    for (std::size_t col = 0; col < w.cols; col += panel_cols) {
      const std::size_t n = std::min(panel_cols, w.cols - col);
      for (std::size_t k = 0; k < b; ++k) {
        float *const row = w.row(first + k) + col, *const kept = work + k * panel_cols;
        std::fill(std::copy(row, row + n, kept), kept + panel_cols, 0.0F);
        std::fill(row, row + n, 0.0F);
      }
      kernel({w.row(first) + col, b, n, w.stride}, 0, {factors.row(first), b, b, factors.stride}, {work, b, n}, 1.0F);
    }
}

/// BOFT: all levels of the butterfly on all rows of some columns. levels [level · rows, b]: for each level its rotations, one below the
/// other, at strength m already. Level l regroups the rows: with k = 2^l · b/2, row c·2k + g·k + q moves to c·2k + 2q + g, the groups of b
/// consecutive rows are rotated, and the rows move back. `kernel` multiplies; `work` holds 2 · rows · panel_cols floats.
/// @pre rows is a multiple of 2k for every level
inline void rotate_butterfly(matrix w, const_matrix levels, low_rank_kernel kernel, float* work) noexcept {
  const std::size_t b = levels.cols, rows = w.rows, count = levels.rows / rows;
  float *const moved = work, *const rotated = work + rows * panel_cols;
  for (std::size_t col = 0; col < w.cols; col += panel_cols) {
    const std::size_t n = std::min(panel_cols, w.cols - col);
    for (std::size_t level = 0; level < count; ++level) {
      const std::size_t k = (std::size_t{1} << level) * (b / 2);
      const auto place = [&](std::size_t row) {
        const std::size_t c = row / (2 * k), g = row % (2 * k) / k, q = row % k;
        return (c * 2 * k + 2 * q + g) * panel_cols;
      };
      for (std::size_t row = 0; row < rows; ++row) {
        float* const to = moved + place(row);
        std::fill(std::copy(w.row(row) + col, w.row(row) + col + n, to), to + panel_cols, 0.0F);
      }
      std::fill(rotated, rotated + rows * panel_cols, 0.0F);
      for (std::size_t first = 0; first < rows; first += b)
        kernel({rotated + first * panel_cols, b, panel_cols}, 0, {levels.row(level * rows + first), b, b, levels.stride},
               {moved + first * panel_cols, b, panel_cols}, 1.0F);
      for (std::size_t row = 0; row < rows; ++row) std::copy(rotated + place(row), rotated + place(row) + n, w.row(row) + col);
    }
  }
}

TENSORSMITH_END_NAMESPACE
