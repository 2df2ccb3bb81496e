// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/simd.hpp: the merge kernels of x86-64's vector instructions, and the choice among them at run time.
//
// Include this where merges shall be fast. No compiler flag is needed: the kernels carry their own target attributes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "tensorsmith/merge/low_rank.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

TENSORSMITH_BEGIN_NAMESPACE

#if defined(__x86_64__)
namespace arch_tag {
struct avx2 {};    ///< AVX2 and FMA
struct avx512 {};  ///< AVX-512F
}  // namespace arch_tag

namespace detail {

#define TENSORSMITH_AVX2_FMA __attribute__((target("avx2,fma"))) inline
#define TENSORSMITH_AVX512F __attribute__((target("avx512f"))) inline

// GCC takes arrays into registers only where their loops are unrolled before its scalar passes.
#if defined(__clang__)
#define TENSORSMITH_UNROLLED _Pragma("clang loop unroll(full)")
#else
#define TENSORSMITH_UNROLLED _Pragma("GCC unroll 16")
#endif

/// Rows (three at most) by 32 columns: twelve accumulators, three factors and a vector of the panel fill AVX2's sixteen registers.
template <std::size_t Rows>
TENSORSMITH_AVX2_FMA void low_rank_block_avx2(const matrix& w, std::size_t row, std::size_t col, const const_matrix& up, const float* panel,
                                              std::size_t r, float s) noexcept {
  const float* left[Rows];
  __m256 sum[Rows][4];
  TENSORSMITH_UNROLLED
  for (std::size_t i = 0; i < Rows; ++i) {
    left[i] = up.row(row + i);
    TENSORSMITH_UNROLLED
    for (std::size_t v = 0; v < 4; ++v) {
      sum[i][v] = _mm256_setzero_ps();
      if (v % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(w.row(row + i) + col + 8 * v), _MM_HINT_T0);
    }
  }
  for (std::size_t k = 0; k < r; ++k, panel += panel_cols) {
    __m256 factor[Rows];
    TENSORSMITH_UNROLLED
    for (std::size_t i = 0; i < Rows; ++i) factor[i] = _mm256_broadcast_ss(left[i] + k);
    TENSORSMITH_UNROLLED
    for (std::size_t v = 0; v < 4; ++v) {
      const __m256 x = _mm256_loadu_ps(panel + 8 * v);
      TENSORSMITH_UNROLLED
      for (std::size_t i = 0; i < Rows; ++i) sum[i][v] = _mm256_fmadd_ps(factor[i], x, sum[i][v]);
    }
  }
  const __m256 scale = _mm256_set1_ps(s);
  TENSORSMITH_UNROLLED
  for (std::size_t i = 0; i < Rows; ++i)
    TENSORSMITH_UNROLLED
    for (std::size_t v = 0; v < 4; ++v) {
      float* const at = w.row(row + i) + col + 8 * v;
      _mm256_storeu_ps(at, _mm256_fmadd_ps(scale, sum[i][v], _mm256_loadu_ps(at)));
    }
}

/// The last, narrower panel of a row, with the arithmetic of the full ones.
TENSORSMITH_AVX2_FMA void low_rank_edge_fma(float* w, std::size_t n, const float* up, const float* panel, std::size_t r, float s) noexcept {
  for (std::size_t j = 0; j < n; ++j) {
    float sum = 0;
    for (std::size_t k = 0; k < r; ++k) sum = __builtin_fmaf(up[k], panel[k * panel_cols + j], sum);
    w[j] = __builtin_fmaf(s, sum, w[j]);
  }
}

/// Rows (twelve at most) by 32 columns: 24 accumulators of AVX-512's 32 registers.
template <std::size_t Rows>
TENSORSMITH_AVX512F void low_rank_block_avx512(const matrix& w, std::size_t row, std::size_t col, const const_matrix& up, const float* panel,
                                               std::size_t r, float s) noexcept {
  __m512 sum[Rows][2];
  TENSORSMITH_UNROLLED
  for (std::size_t i = 0; i < Rows; ++i)
    TENSORSMITH_UNROLLED
    for (std::size_t v = 0; v < 2; ++v) {
      sum[i][v] = _mm512_setzero_ps();
      _mm_prefetch(reinterpret_cast<const char*>(w.row(row + i) + col + 16 * v), _MM_HINT_T0);
    }
  const float* const left = up.row(row);
  for (std::size_t k = 0; k < r; ++k, panel += panel_cols) {
    const __m512 x0 = _mm512_loadu_ps(panel), x1 = _mm512_loadu_ps(panel + 16);
    TENSORSMITH_UNROLLED
    for (std::size_t i = 0; i < Rows; ++i) {
      const __m512 factor = _mm512_set1_ps(left[i * up.stride + k]);
      sum[i][0] = _mm512_fmadd_ps(factor, x0, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(factor, x1, sum[i][1]);
    }
  }
  const __m512 scale = _mm512_set1_ps(s);
  TENSORSMITH_UNROLLED
  for (std::size_t i = 0; i < Rows; ++i)
    TENSORSMITH_UNROLLED
    for (std::size_t v = 0; v < 2; ++v) {
      float* const at = w.row(row + i) + col + 16 * v;
      _mm512_storeu_ps(at, _mm512_fmadd_ps(scale, sum[i][v], _mm512_loadu_ps(at)));
    }
}

/// Calls `block` with the constant `rows`, 0 < rows <= Most.
template <std::size_t Most, class Block>
inline void low_rank_rest(std::size_t rows, const Block& block) {
  if (rows == Most) return block(std::integral_constant<std::size_t, Most>());
  if constexpr (Most > 1) low_rank_rest<Most - 1>(rows, block);
}

/// Groups of panels that stay in the second-level cache; within a group, rows go `Rows` at a time through all its panels, so that W is read in long
/// runs. The rows that remain are a block of their own. `block.template operator()<n>(row, column, panel)` does n rows by 32 columns.
template <std::size_t Rows, class Block>
inline void low_rank_walk(const matrix& w, std::size_t first_col, const const_matrix& up, const packed_factor& down, float s, const Block& block) {
  constexpr std::size_t cache_bytes = std::size_t{192} << 10;
  const std::size_t group = std::max<std::size_t>(1, cache_bytes / (panel_cols * sizeof(float) * std::max<std::size_t>(1, down.r))) * panel_cols;
  const std::size_t full = w.cols / panel_cols * panel_cols;
  for (std::size_t first = 0; first < full; first += group) {
    const std::size_t end = std::min(full, first + group);
    const auto across = [&](auto rows, std::size_t i) {
      for (std::size_t j = first; j < end; j += panel_cols)
        block.template operator()<decltype(rows)::value>(i, j, down.panel((first_col + j) / panel_cols));
    };
    std::size_t i = 0;
    for (; i + Rows <= w.rows; i += Rows) across(std::integral_constant<std::size_t, Rows>(), i);
    low_rank_rest<Rows - 1>(w.rows - i, [&](auto rows) { across(rows, i); });
  }
  if (full == w.cols) return;
  const float* const panel = down.panel((first_col + full) / panel_cols);
  for (std::size_t i = 0; i < w.rows; ++i) low_rank_edge_fma(w.row(i) + full, w.cols - full, up.row(i), panel, down.r, s);
}

}  // namespace detail

/// As the scalar one, but with fused multiply-adds, so within the same bound and not the same bits: 3 rows by 32 columns at a time.
inline void add_low_rank(arch_tag::avx2, matrix w, std::size_t first_col, const_matrix up, packed_factor down, float s) noexcept {
  detail::low_rank_walk<3>(w, first_col, up, down, s, [&]<std::size_t Rows>(std::size_t row, std::size_t col, const float* panel) {
    detail::low_rank_block_avx2<Rows>(w, row, col, up, panel, down.r, s);
  });
}

/// As avx2's, bit for bit: 12 rows by 32 columns at a time.
inline void add_low_rank(arch_tag::avx512, matrix w, std::size_t first_col, const_matrix up, packed_factor down, float s) noexcept {
  detail::low_rank_walk<12>(w, first_col, up, down, s, [&]<std::size_t Rows>(std::size_t row, std::size_t col, const float* panel) {
    detail::low_rank_block_avx512<Rows>(w, row, col, up, panel, down.r, s);
  });
}
#endif

/// The fastest kernel that this processor has. Ask once a tensor.
inline low_rank_kernel best_low_rank() noexcept {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f"))
    return [](matrix w, std::size_t first, const_matrix up, packed_factor down, float s) noexcept {
      add_low_rank(arch_tag::avx512{}, w, first, up, down, s);
    };
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return [](matrix w, std::size_t first, const_matrix up, packed_factor down, float s) noexcept {
      add_low_rank(arch_tag::avx2{}, w, first, up, down, s);
    };
#endif
  return [](matrix w, std::size_t first, const_matrix up, packed_factor down, float s) noexcept {
    add_low_rank(arch_tag::scalar{}, w, first, up, down, s);
  };
}

TENSORSMITH_END_NAMESPACE
