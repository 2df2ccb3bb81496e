// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/dora.hpp: DoRA: the merged weight is given the magnitude that was trained, by output row or by input column.
//
// Include this for weight-decomposed adapters. Norms along the output axis need whole rows; along the input axis all rows, that is
// one reading of the tensor more.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "tensorsmith/merge/matrix.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What strength means beside 1, where all agree. V = W + ΔW at strength 1 (peft: W + m·ΔW), g = dora_scale / ‖V‖.
enum class dora_strength {
  interpolate,  ///< W + m · (g·V − W): a straight line from the base to the adapter
  lycoris,      ///< V · (m · (g − 1) + 1) (LyCORIS, modules/locon.py)
  peft,         ///< g·V with strength inside V only: the full magnitude always (PEFT, tuners/lora/dora.py)
};

/// The Euclidean norm of n floats, summed in double, in eight lanes.
inline double row_norm(const float* row, std::size_t n) noexcept {
  double sum[8] = {};
  std::size_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (std::size_t lane = 0; lane < 8; ++lane) sum[lane] += static_cast<double>(row[j + lane]) * static_cast<double>(row[j + lane]);
  for (; j < n; ++j) sum[j % 8] += static_cast<double>(row[j]) * static_cast<double>(row[j]);
  return std::sqrt(((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7])));
}

/// Adds the squares of a tile to `squares`, one double an input channel (columns in groups of `positions`).
inline void add_column_squares(const_matrix v, std::size_t first_col, std::size_t positions, double* squares) noexcept {
  for (std::size_t i = 0; i < v.rows; ++i) {
    const float* const row = v.row(i);
    double* at = squares + first_col / positions;
    if (positions == 1) {
      for (std::size_t j = 0; j < v.cols; ++j) at[j] += static_cast<double>(row[j]) * static_cast<double>(row[j]);
      continue;
    }
    std::size_t left = positions - first_col % positions;  // columns of the channel
    for (std::size_t j = 0; j < v.cols; ++at, left = positions)
      for (const std::size_t end = std::min(v.cols, j + left); j < end; ++j) *at += static_cast<double>(row[j]) * static_cast<double>(row[j]);
  }
}

namespace detail {
/// g of a slice: 0 where the norm is 0; NaN where an element is not finite, so that it shows.
inline double dora_gain(float magnitude, double norm) noexcept {
  if (!std::isfinite(norm)) return std::numeric_limits<double>::quiet_NaN();
  return norm > 0 ? static_cast<double>(magnitude) / norm : 0.0;
}
/// Part of a row: v becomes the merged weight. gain(j) is that of element j; `w` is read by `interpolate` alone.
template <class Gain>
inline void scale_dora(const float* w, float* v, std::size_t n, Gain&& gain, dora_strength rule, double m) noexcept {
  switch (rule) {
    case dora_strength::interpolate:
      for (std::size_t j = 0; j < n; ++j) {
        const double before = static_cast<double>(w[j]);
        v[j] = static_cast<float>(before + m * (gain(j) * static_cast<double>(v[j]) - before));
      }
      return;
    case dora_strength::lycoris:
      for (std::size_t j = 0; j < n; ++j) v[j] = static_cast<float>(static_cast<double>(v[j]) * (m * (gain(j) - 1.0) + 1.0));
      return;
    case dora_strength::peft:
      for (std::size_t j = 0; j < n; ++j) v[j] = static_cast<float>(gain(j) * static_cast<double>(v[j]));
      return;
  }
}
}  // namespace detail

/// Magnitudes by output row: v becomes the merged tile. `w` is the weight before the change (read by `interpolate` alone), `v` the changed one, whole
/// rows; `magnitude` begins at the tile's first row. A row of norm 0 stays 0.
inline void apply_dora_rows(const_matrix w, matrix v, const float* magnitude, dora_strength rule, double m) noexcept {
  for (std::size_t i = 0; i < v.rows; ++i) {
    const double norm = row_norm(v.row(i), v.cols);
    const double g = detail::dora_gain(magnitude[i], norm);
    detail::scale_dora(rule == dora_strength::interpolate ? w.row(i) : nullptr, v.row(i), v.cols, [g](std::size_t) { return g; }, rule, m);
  }
}

/// Magnitudes by input channel, from the squares that add_column_squares summed over all rows.
inline void apply_dora_columns(const_matrix w, matrix v, std::size_t first_col, std::size_t positions, const float* magnitude,
                               const double* squares, dora_strength rule, double m) noexcept {
  constexpr std::size_t most = 256;  // gains at a time
  double gains[most];
  for (std::size_t first = 0; first < v.cols; first += most) {
    const std::size_t n = v.cols - first < most ? v.cols - first : most;
    for (std::size_t j = 0; j < n; ++j) {
      const std::size_t channel = (first_col + first + j) / positions;
      gains[j] = detail::dora_gain(magnitude[channel], std::sqrt(squares[channel]));
    }
    for (std::size_t i = 0; i < v.rows; ++i)
      detail::scale_dora(rule == dora_strength::interpolate ? w.row(i) + first : nullptr, v.row(i) + first, n,
                         [&gains](std::size_t j) { return gains[j]; }, rule, m);
  }
}

TENSORSMITH_END_NAMESPACE
