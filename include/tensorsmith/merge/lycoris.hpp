// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/lycoris.hpp: the changes of LoHa, LoKr, full differences, (IA)³ and GLoRA, tile by tile.
//
// Include this for the kernels of the LyCORIS family (formulas: LyCORIS, lycoris/modules and lycoris/functional; α/r is applied once,
// as its forward pass does). Spans in, spans out, no allocation; merge/low_rank.hpp holds LoRA's.
#pragma once

#include <cstddef>

#include "tensorsmith/merge/low_rank.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// w += s · x, element by element: full differences (`diff`), norms (`w_norm`, `b_norm`), biases (`diff_b`). Same shapes.
inline void add_scaled(matrix w, const_matrix x, float s) noexcept {
  for (std::size_t i = 0; i < w.rows; ++i) {
    float* const out = w.row(i);
    const float* const in = x.row(i);
    for (std::size_t j = 0; j < w.cols; ++j) out[j] += s * in[j];
  }
}

/// LoHa: w += s · first ⊙ second, where both are the low-rank products of the tile (add_low_rank onto zeros). Same shapes.
inline void add_hadamard(matrix w, const_matrix first, const_matrix second, float s) noexcept {
  for (std::size_t i = 0; i < w.rows; ++i) {
    float* const out = w.row(i);
    const float *const a = first.row(i), *const b = second.row(i);
    for (std::size_t j = 0; j < w.cols; ++j) out[j] += s * (a[j] * b[j]);
  }
}

/// LoKr: rows [first_row, first_row + w.rows) of W += s · (w1 ⊗ w2), all columns. w1 [o1, i1]; w2 [o2, i2 · positions] as stored, so that
/// row a·o2 + b of the product is w1[a, c] · w2[b, :] for c = 0, 1, … @pre w.cols == w1.cols · w2.cols
inline void add_kronecker(matrix w, std::size_t first_row, const_matrix w1, const_matrix w2, float s) noexcept {
  for (std::size_t i = 0; i < w.rows; ++i) {
    const std::size_t row = first_row + i;
    const float *const left = w1.row(row / w2.rows), *const right = w2.row(row % w2.rows);
    float* out = w.row(i);
    for (std::size_t c = 0; c < w1.cols; ++c) {
      const float factor = s * left[c];
      for (std::size_t j = 0; j < w2.cols; ++j) out[j] += factor * right[j];
      out += w2.cols;
    }
  }
}

/// (IA)³ on the input: w[o, i, …] *= 1 + m · scale[i], columns in groups of `positions` an input channel. `first_col` is the tile's first
/// column in W.
inline void scale_columns(matrix w, std::size_t first_col, std::size_t positions, const float* scale, float m) noexcept {
  constexpr std::size_t most = 256;  // factors at a time
  float factors[most];
  for (std::size_t first = 0; first < w.cols; first += most) {
    const std::size_t n = w.cols - first < most ? w.cols - first : most;
    for (std::size_t j = 0; j < n; ++j) factors[j] = scale[(first_col + first + j) / positions];
    for (std::size_t i = 0; i < w.rows; ++i) {
      float* const out = w.row(i) + first;
      for (std::size_t j = 0; j < n; ++j) out[j] += m * (out[j] * factors[j]);
    }
  }
}

/// (IA)³ on the output: w[o, …] *= 1 + m · scale[o]. `scale` begins at the tile's first row.
inline void scale_rows(matrix w, const float* scale, float m) noexcept {
  for (std::size_t i = 0; i < w.rows; ++i) {
    float* const out = w.row(i);
    const float change = m * scale[i];
    for (std::size_t j = 0; j < w.cols; ++j) out[j] += change * out[j];
  }
}

/// GLoRA's dependent part: w += s · (w @ right) @ left, the input channels contracted at each of `positions` kernel positions; whole
/// rows. right [in, r], left [r, in]; `work` holds r floats. The other part, b1 @ b2 (newer files; b2 @ b1 in older ones), is add_low_rank's and
/// goes in afterwards: w @ right is that of the weight before the change.
inline void add_glora(matrix w, std::size_t positions, const_matrix right, const_matrix left, float s, float* work) noexcept {
  const std::size_t r = right.cols;
  for (std::size_t i = 0; i < w.rows; ++i)
    for (std::size_t y = 0; y < positions; ++y) {
      float* const row = w.row(i) + y;
      for (std::size_t k = 0; k < r; ++k) work[k] = 0;
      for (std::size_t c = 0; c < right.rows; ++c)
        for (std::size_t k = 0; k < r; ++k) work[k] += row[c * positions] * right.row(c)[k];
      for (std::size_t c = 0; c < left.cols; ++c) {
        float sum = 0;
        for (std::size_t k = 0; k < r; ++k) sum += work[k] * left.row(k)[c];
        row[c * positions] += s * sum;
      }
    }
}

TENSORSMITH_END_NAMESPACE
