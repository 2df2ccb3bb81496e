// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/orthogonal.hpp: OFT and BOFT: rotations of groups of output rows.
//
// Include this for the kernels of orthogonal fine-tuning (kohya, networks/oft.py; LyCORIS, modules/diag_oft.py and boft.py). Rotations are
// solved for once a tensor, in double; tiles of whole groups of rows are then rotated in f32.
#pragma once

#include <cmath>
#include <cstddef>

#include "tensorsmith/merge/matrix.hpp"

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
/// `work` holds 2 · b · b doubles. I − Q is never singular (the eigenvalues of Q are imaginary).
inline void oft_rotation(const_matrix block, double scale, double m, matrix out, double* work) noexcept {
  const std::size_t b = block.rows;
  double *const a = work, *const x = work + b * b;  // a · xᵀ-rows: solve (I − Q)ᵀ Rᵀ = (I + Q)ᵀ; as Qᵀ = −Q: (I + Q) Rᵀ = (I − Q)
  for (std::size_t i = 0; i < b; ++i)
    for (std::size_t j = 0; j < b; ++j) {
      const double q = scale * (static_cast<double>(block.row(i)[j]) - static_cast<double>(block.row(j)[i]));
      a[i * b + j] = (i == j ? 1.0 : 0.0) + q;
      x[i * b + j] = (i == j ? 1.0 : 0.0) - q;
    }
  for (std::size_t p = 0; p < b; ++p) {  // Gauss-Jordan with row exchange
    std::size_t best = p;
    for (std::size_t i = p + 1; i < b; ++i)
      if (std::fabs(a[i * b + p]) > std::fabs(a[best * b + p])) best = i;
    for (std::size_t j = 0; j < b && best != p; ++j) {
      const double u = a[p * b + j], v = x[p * b + j];
      a[p * b + j] = a[best * b + j], a[best * b + j] = u;
      x[p * b + j] = x[best * b + j], x[best * b + j] = v;
    }
    const double pivot = 1.0 / a[p * b + p];
    for (std::size_t j = 0; j < b; ++j) a[p * b + j] *= pivot, x[p * b + j] *= pivot;
    for (std::size_t i = 0; i < b; ++i) {
      const double factor = a[i * b + p];
      if (i == p || factor == 0) continue;
      for (std::size_t j = 0; j < b; ++j) a[i * b + j] -= factor * a[p * b + j], x[i * b + j] -= factor * x[p * b + j];
    }
  }
  for (std::size_t i = 0; i < b; ++i)  // x = Rᵀ
    for (std::size_t j = 0; j < b; ++j) out.row(i)[j] = static_cast<float>(m * x[j * b + i] + (i == j ? 1.0 - m : 0.0));
}

/// Rotates whole groups of rows: group k of b rows becomes R_kᵀ times itself (`transposed`: OFT) or R_k times itself (BOFT's levels).
/// rotations: [groups · b, b], beginning with the tile's first group; `work` holds b floats. @pre w.rows is a multiple of b
inline void rotate_rows(matrix w, const_matrix rotations, bool transposed, float* work) noexcept {
  const std::size_t b = rotations.cols;
  for (std::size_t first = 0; first < w.rows; first += b)
    for (std::size_t j = 0; j < w.cols; ++j) {
      for (std::size_t i = 0; i < b; ++i) {
        float sum = 0;
        for (std::size_t k = 0; k < b; ++k)
          sum += (transposed ? rotations.row(first + k)[i] : rotations.row(first + i)[k]) * w.row(first + k)[j];
        work[i] = sum;
      }
      for (std::size_t i = 0; i < b; ++i) w.row(first + i)[j] = work[i];
    }
}

/// BOFT: all levels of the butterfly on all rows of some columns. levels [level · rows, b]: for each level its rotations, one below the
/// other, at strength m already. Level l regroups the rows: with k = 2^l · b/2, row c·2k + g·k + q moves to c·2k + 2q + g, the groups of b
/// consecutive rows are rotated, and the rows move back. `work` holds rows floats. @pre rows is a multiple of 2k for every level
inline void rotate_butterfly(matrix w, const_matrix levels, float* work) noexcept {
  const std::size_t b = levels.cols, rows = w.rows, count = levels.rows / rows;
  for (std::size_t level = 0; level < count; ++level) {
    const std::size_t k = (std::size_t{1} << level) * (b / 2);
    const auto moved = [&](std::size_t row) {
      const std::size_t c = row / (2 * k), g = row % (2 * k) / k, q = row % k;
      return c * 2 * k + 2 * q + g;
    };
    for (std::size_t j = 0; j < w.cols; ++j) {
      for (std::size_t row = 0; row < rows; ++row) work[moved(row)] = w.row(row)[j];
      for (std::size_t row = 0; row < rows; ++row) {
        const std::size_t at = moved(row), first = at / b * b;
        const float* const rotation = levels.row(level * rows + at);
        float sum = 0;
        for (std::size_t i = 0; i < b; ++i) sum += rotation[i] * work[first + i];
        w.row(row)[j] = sum;
      }
    }
  }
}

TENSORSMITH_END_NAMESPACE
