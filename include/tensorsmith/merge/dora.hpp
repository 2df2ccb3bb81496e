// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/dora.hpp: DoRA: the merged weight is given the magnitude that was trained, by output row or by input column.
//
// Include this for weight-decomposed adapters. Norms along the output axis need whole rows; along the input axis all rows, that is
// one reading of the tensor more.
#pragma once

#include <cmath>
#include <cstddef>

#include "tensorsmith/merge/matrix.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What strength means beside 1, where all agree. V = W + ΔW at strength 1 (peft: W + m·ΔW), g = dora_scale / ‖V‖.
enum class dora_strength {
  interpolate,  ///< W + m · (g·V − W): a straight line from the base to the adapter
  lycoris,      ///< V · (m · (g − 1) + 1) (LyCORIS, modules/locon.py)
  peft,         ///< g·V with strength inside V only: the full magnitude always (PEFT, tuners/lora/dora.py)
};

/// The Euclidean norm of n floats, summed in double.
inline double row_norm(const float* row, std::size_t n) noexcept {
  double sum = 0;
  for (std::size_t j = 0; j < n; ++j) sum += static_cast<double>(row[j]) * static_cast<double>(row[j]);
  return std::sqrt(sum);
}

/// Adds the squares of a tile to `squares`, one double an input channel (columns in groups of `positions`).
inline void add_column_squares(const_matrix v, std::size_t first_col, std::size_t positions, double* squares) noexcept {
  for (std::size_t i = 0; i < v.rows; ++i)
    for (std::size_t j = 0; j < v.cols; ++j)
      squares[(first_col + j) / positions] += static_cast<double>(v.row(i)[j]) * static_cast<double>(v.row(i)[j]);
}

namespace detail {
inline float dora_value(float w, float v, double g, dora_strength rule, double m) noexcept {
  const double scaled = g * static_cast<double>(v);
  switch (rule) {
    case dora_strength::interpolate: return static_cast<float>(static_cast<double>(w) + m * (scaled - static_cast<double>(w)));
    case dora_strength::lycoris: return static_cast<float>(static_cast<double>(v) * (m * (g - 1.0) + 1.0));
    case dora_strength::peft: break;
  }
  return static_cast<float>(scaled);
}
}  // namespace detail

/// Magnitudes by output row: v becomes the merged tile. `w` is the weight before the change (read by `interpolate` alone), `v` the changed one, whole
/// rows; `magnitude` begins at the tile's first row. A row of norm 0 stays 0.
inline void apply_dora_rows(const_matrix w, matrix v, const float* magnitude, dora_strength rule, double m) noexcept {
  for (std::size_t i = 0; i < v.rows; ++i) {
    const double norm = row_norm(v.row(i), v.cols);
    const double g = norm > 0 ? static_cast<double>(magnitude[i]) / norm : 0.0;
    for (std::size_t j = 0; j < v.cols; ++j)
      v.row(i)[j] = detail::dora_value(rule == dora_strength::interpolate ? w.row(i)[j] : 0.0F, v.row(i)[j], g, rule, m);
  }
}

/// Magnitudes by input channel, from the squares that add_column_squares summed over all rows.
inline void apply_dora_columns(const_matrix w, matrix v, std::size_t first_col, std::size_t positions, const float* magnitude,
                               const double* squares, dora_strength rule, double m) noexcept {
  for (std::size_t i = 0; i < v.rows; ++i)
    for (std::size_t j = 0; j < v.cols; ++j) {
      const std::size_t channel = (first_col + j) / positions;
      const double norm = std::sqrt(squares[channel]);
      const double g = norm > 0 ? static_cast<double>(magnitude[channel]) / norm : 0.0;
      v.row(i)[j] = detail::dora_value(rule == dora_strength::interpolate ? w.row(i)[j] : 0.0F, v.row(i)[j], g, rule, m);
    }
}

TENSORSMITH_END_NAMESPACE
