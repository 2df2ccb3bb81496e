// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/low_rank.hpp: W += s · up @ down, the change of LoRA and LoCon, tile by tile.
//
// Include this for the kernel of LoRA merges: factors are packed once a tensor, any tile of W is then changed in one pass, without
// allocation. merge/simd.hpp adds vector kernels.
#pragma once

#include <algorithm>
#include <cstddef>

#include "tensorsmith/merge/matrix.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace arch_tag {
/// Portable C++; the definition of every kernel. merge/simd.hpp defines further tags.
struct scalar {};
}  // namespace arch_tag

/// Columns of a panel of packed factors: two vectors of AVX-512, four of AVX2.
inline constexpr std::size_t panel_cols = 32;

/// Floats that pack_panels needs for a factor [r, n].
constexpr std::size_t packed_floats(std::size_t r, std::size_t n) noexcept {
  return (n + panel_cols - 1) / panel_cols * panel_cols * r;
}

/// Rearranges the right factor `down` [r, n] into panels [r, panel_cols], one after the other, the last one filled with zeros: the kernel
/// then reads memory in order. `packed` holds packed_floats(r, n) floats.
inline void pack_panels(const_matrix down, float* packed) noexcept {
  for (std::size_t first = 0; first < down.cols; first += panel_cols) {
    const std::size_t n = std::min(panel_cols, down.cols - first);
    for (std::size_t k = 0; k < down.rows; ++k, packed += panel_cols)
      std::fill(std::copy(down.row(k) + first, down.row(k) + first + n, packed), packed + panel_cols, 0.0F);
  }
}

/// A packed right factor [r, n].
struct packed_factor {
  const float* data = nullptr;
  std::size_t r = 0, n = 0;
  const float* panel(std::size_t index) const noexcept { return data + index * panel_cols * r; }
};

/// A kernel of W += s · up @ down, as add_low_rank below; merge/simd.hpp chooses one.
using low_rank_kernel = void (*)(matrix w, std::size_t first_col, const_matrix up, packed_factor down, float s) noexcept;

namespace detail {

/// One panel's worth of a row: w[j] += s · Σ_k up[k] · panel[k][j], summed over k in ascending order, then scaled once.
inline void add_low_rank_row(float* w, std::size_t n, const float* up, const float* panel, std::size_t r, float s) noexcept {
  float sum[panel_cols] = {};
  for (std::size_t k = 0; k < r; ++k)
    for (std::size_t j = 0; j < panel_cols; ++j) sum[j] += up[k] * panel[k * panel_cols + j];
  for (std::size_t j = 0; j < n; ++j) w[j] += s * sum[j];
}

}  // namespace detail

/// W[rows, first_col .. first_col + w.cols) += s · up @ down. `up` [w.rows, r] are the rows of the left factor that belong to the tile.
/// Sums are f32 in ascending k, so a tile's result does not depend on how W is cut; an element's error is at most
/// (r + 8) · 2^-24 · (|W| + |s| · Σ|up·down|). @pre first_col is a multiple of panel_cols; first_col + w.cols <= down.n
inline void add_low_rank(arch_tag::scalar, matrix w, std::size_t first_col, const_matrix up, packed_factor down, float s) noexcept {
  for (std::size_t j = 0; j < w.cols; j += panel_cols) {
    const float* const panel = down.panel((first_col + j) / panel_cols);
    const std::size_t n = w.cols - j < panel_cols ? w.cols - j : panel_cols;
    for (std::size_t i = 0; i < w.rows; ++i) detail::add_low_rank_row(w.row(i) + j, n, up.row(i), panel, down.r, s);
  }
}

/// The right factor that stands for a Tucker core: out[p, i·k + y] = Σ_q core[p, q, y] · down[q, i], so that up @ out is the whole change.
/// core [p, q, positions], down [q, in], out [p, in · positions]. (LyCORIS, functional/general.py: rebuild_tucker; kohya names the
/// core lora_mid.)
inline void combine_tucker(const_matrix core, std::size_t positions, const_matrix down, matrix out) noexcept {
  for (std::size_t p = 0; p < out.rows; ++p)
    for (std::size_t i = 0; i < down.cols; ++i)
      for (std::size_t y = 0; y < positions; ++y) {
        float sum = 0;
        for (std::size_t q = 0; q < down.rows; ++q) sum += core.row(p)[q * positions + y] * down.row(q)[i];
        out.row(p)[i * positions + y] = sum;
      }
}

TENSORSMITH_END_NAMESPACE
