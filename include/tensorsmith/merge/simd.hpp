// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/simd.hpp: the merge kernels of x86-64's vector instructions, and the choice among them at run time.
//
// Include this where merges shall be fast. No compiler flag is needed: the kernels carry their own target attributes.
#pragma once

#include <cstddef>

#include "tensorsmith/merge/low_rank.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

TENSORSMITH_BEGIN_NAMESPACE

/// A low-rank kernel, as best_low_rank gives it.
using low_rank_kernel = void (*)(matrix w, std::size_t first_col, const_matrix up, packed_factor down, float s) noexcept;

#if defined(__x86_64__)
namespace arch_tag {
struct avx2 {};    ///< AVX2 and FMA
struct avx512 {};  ///< AVX-512F
}  // namespace arch_tag

namespace detail {

#define TENSORSMITH_AVX2_FMA __attribute__((target("avx2,fma"))) inline
#define TENSORSMITH_AVX512F __attribute__((target("avx512f"))) inline

/// Three rows by 32 columns: twelve accumulators of AVX2's sixteen registers.
template <std::size_t Rows>
TENSORSMITH_AVX2_FMA void low_rank_block_avx2(const matrix& w, std::size_t row, std::size_t col, const const_matrix& up, const float* panel,
                                              std::size_t r, float s) noexcept {
  __m256 sum[Rows][4];
  for (std::size_t i = 0; i < Rows; ++i)
    for (std::size_t v = 0; v < 4; ++v) sum[i][v] = _mm256_setzero_ps();
  for (std::size_t k = 0; k < r; ++k) {
    __m256 x[4];
    for (std::size_t v = 0; v < 4; ++v) x[v] = _mm256_loadu_ps(panel + k * panel_cols + 8 * v);
    for (std::size_t i = 0; i < Rows; ++i) {
      const __m256 factor = _mm256_broadcast_ss(up.row(row + i) + k);
      for (std::size_t v = 0; v < 4; ++v) sum[i][v] = _mm256_fmadd_ps(factor, x[v], sum[i][v]);
    }
  }
  const __m256 scale = _mm256_set1_ps(s);
  for (std::size_t i = 0; i < Rows; ++i)
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

template <std::size_t Rows>
TENSORSMITH_AVX512F void low_rank_block_avx512(const matrix& w, std::size_t row, std::size_t col, const const_matrix& up, const float* panel,
                                               std::size_t r, float s) noexcept {
  __m512 sum[Rows][2];
  for (std::size_t i = 0; i < Rows; ++i)
    for (std::size_t v = 0; v < 2; ++v) sum[i][v] = _mm512_setzero_ps();
  for (std::size_t k = 0; k < r; ++k) {
    const __m512 x0 = _mm512_loadu_ps(panel + k * panel_cols), x1 = _mm512_loadu_ps(panel + k * panel_cols + 16);
    for (std::size_t i = 0; i < Rows; ++i) {
      const __m512 factor = _mm512_set1_ps(up.row(row + i)[k]);
      sum[i][0] = _mm512_fmadd_ps(factor, x0, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(factor, x1, sum[i][1]);
    }
  }
  const __m512 scale = _mm512_set1_ps(s);
  for (std::size_t i = 0; i < Rows; ++i)
    for (std::size_t v = 0; v < 2; ++v) {
      float* const at = w.row(row + i) + col + 16 * v;
      _mm512_storeu_ps(at, _mm512_fmadd_ps(scale, sum[i][v], _mm512_loadu_ps(at)));
    }
}

/// Panel by panel: `block(column, panel)` for full ones, which stay in the first-level cache for all rows of the tile.
template <class Block>
inline void low_rank_walk(const matrix& w, std::size_t first_col, const const_matrix& up, const packed_factor& down, float s, Block&& block) {
  for (std::size_t j = 0; j < w.cols; j += panel_cols) {
    const float* const panel = down.panel((first_col + j) / panel_cols);
    if (w.cols - j < panel_cols) {
      for (std::size_t i = 0; i < w.rows; ++i) low_rank_edge_fma(w.row(i) + j, w.cols - j, up.row(i), panel, down.r, s);
      continue;
    }
    block(j, panel);
  }
}

}  // namespace detail

/// As the scalar one, with fused multiply-adds: 3 rows by 32 columns at a time.
inline void add_low_rank(arch_tag::avx2, matrix w, std::size_t first_col, const_matrix up, packed_factor down, float s) noexcept {
  detail::low_rank_walk(w, first_col, up, down, s, [&](std::size_t col, const float* panel) {
    std::size_t i = 0;
    for (; i + 3 <= w.rows; i += 3) detail::low_rank_block_avx2<3>(w, i, col, up, panel, down.r, s);
    for (; i < w.rows; ++i) detail::low_rank_block_avx2<1>(w, i, col, up, panel, down.r, s);
  });
}

/// As avx2's, bit for bit: 12 rows by 32 columns at a time.
inline void add_low_rank(arch_tag::avx512, matrix w, std::size_t first_col, const_matrix up, packed_factor down, float s) noexcept {
  detail::low_rank_walk(w, first_col, up, down, s, [&](std::size_t col, const float* panel) {
    std::size_t i = 0;
    for (; i + 12 <= w.rows; i += 12) detail::low_rank_block_avx512<12>(w, i, col, up, panel, down.r, s);
    for (; i + 4 <= w.rows; i += 4) detail::low_rank_block_avx512<4>(w, i, col, up, panel, down.r, s);
    for (; i < w.rows; ++i) detail::low_rank_block_avx512<1>(w, i, col, up, panel, down.r, s);
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
