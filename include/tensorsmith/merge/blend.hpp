// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/blend.hpp: blends of whole checkpoints: weighted sums, add difference, spherical interpolation.
//
// Include this to merge models of one shape. Kernels work on spans of any length, and products are never fused with sums, so the bits do
// not depend on the processor or on where spans begin. Spherical interpolation needs three sums over the whole tensor first.
// merge/blend_simd.hpp computes those sums with wider vectors.
#pragma once

#include <cmath>
#include <cstddef>

#include "tensorsmith/core/config.hpp"

// A compiler may turn a product and a sum into one operation that rounds once, where the processor has it; then bits would depend on the
// processor. GCC asks for the attribute, Clang for the pragma; both also vectorize these loops whatever the optimization level.
#if defined(__clang__)
#define TENSORSMITH_UNFUSED inline
#define TENSORSMITH_UNFUSED_BODY _Pragma("clang fp contract(off)")
#else
#define TENSORSMITH_UNFUSED __attribute__((optimize("O3", "fp-contract=off"))) inline
#define TENSORSMITH_UNFUSED_BODY
#endif

TENSORSMITH_BEGIN_NAMESPACE

/// a = wa · a + wb · b: two products, one sum, each rounded to f32.
TENSORSMITH_UNFUSED void weighted_sum(float* __restrict a, const float* __restrict b, std::size_t n, float wa, float wb) noexcept {
  TENSORSMITH_UNFUSED_BODY
  for (std::size_t i = 0; i < n; ++i) a[i] = wa * a[i] + wb * b[i];
}

/// a += w · b: the further terms of a weighted sum of more than two.
TENSORSMITH_UNFUSED void add_weighted(float* __restrict a, const float* __restrict b, std::size_t n, float w) noexcept {
  TENSORSMITH_UNFUSED_BODY
  for (std::size_t i = 0; i < n; ++i) a[i] += w * b[i];
}

/// a = (1 − t) · a + t · b; t = 0 and t = 1 give the bits of a and b.
inline void weighted_sum(float* a, const float* b, std::size_t n, float t) noexcept {
  if (t == 0.0F) return;
  if (t != 1.0F) return weighted_sum(a, b, n, 1.0F - t, t);
  for (std::size_t i = 0; i < n; ++i) a[i] = b[i];
}

/// a += t · (b − c); t = 0 gives the bits of a.
TENSORSMITH_UNFUSED void add_difference(float* __restrict a, const float* __restrict b, const float* __restrict c, std::size_t n, float t) noexcept {
  TENSORSMITH_UNFUSED_BODY
  if (t == 0.0F) return;
  for (std::size_t i = 0; i < n; ++i) a[i] += t * (b[i] - c[i]);
}

/// What spherical interpolation needs to know of two whole tensors.
struct slerp_sums {
  double dot = 0, a_square = 0, b_square = 0;

  /// Adds a further stretch. The sums depend on how a tensor is cut: cut it in the same way whatever the threads and tiles are.
  void add(const float* a, const float* b, std::size_t n) noexcept;
  void add(const slerp_sums& more) noexcept { dot += more.dot, a_square += more.a_square, b_square += more.b_square; }
};

/// The sums of one stretch that arrives in pieces: element i goes to lane i mod 8, so where it is cut does not matter as long as every piece
/// but the last holds a multiple of 8 elements.
struct slerp_lanes {
  static constexpr std::size_t count = 8;
  double dot[count] = {}, a_square[count] = {}, b_square[count] = {};

  void add(const float* a, const float* b, std::size_t n) noexcept;

  slerp_sums sums() const noexcept {
    slerp_sums out;
    for (std::size_t k = 0; k < count; ++k) out.dot += dot[k], out.a_square += a_square[k], out.b_square += b_square[k];
    return out;
  }
};

namespace detail {

/// Products of f32 values are exact in f64, so that only the sums round.
__attribute__((always_inline)) inline void add_slerp_lanes(slerp_lanes& to, const float* a, const float* b, std::size_t n) noexcept {
  constexpr std::size_t count = slerp_lanes::count;
  double dot[count], a_square[count], b_square[count];
  for (std::size_t k = 0; k < count; ++k) dot[k] = to.dot[k], a_square[k] = to.a_square[k], b_square[k] = to.b_square[k];
  std::size_t i = 0;
  for (; i + count <= n; i += count)
    for (std::size_t k = 0; k < count; ++k) {
      const double x = static_cast<double>(a[i + k]), y = static_cast<double>(b[i + k]);
      dot[k] += x * y, a_square[k] += x * x, b_square[k] += y * y;
    }
  for (std::size_t k = 0; i < n; ++i, ++k) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    dot[k] += x * y, a_square[k] += x * x, b_square[k] += y * y;
  }
  for (std::size_t k = 0; k < count; ++k) to.dot[k] = dot[k], to.a_square[k] = a_square[k], to.b_square[k] = b_square[k];
}

}  // namespace detail

/// Adds a piece. (Fusing could not change a bit here: the products are exact.)
inline void slerp_lanes::add(const float* a, const float* b, std::size_t n) noexcept { detail::add_slerp_lanes(*this, a, b, n); }

inline void slerp_sums::add(const float* a, const float* b, std::size_t n) noexcept {
  slerp_lanes lanes;
  lanes.add(a, b, n);
  add(lanes.sums());
}

/// Factors of a and b: sin((1−t)·Ω)/sin Ω and sin(t·Ω)/sin Ω with Ω the angle between the tensors read as vectors (Shoemake, "Animating
/// rotation with quaternion curves", 1985), or 1−t and t where the cosine is beyond ±0.9995, the usual threshold, or one of them is zero.
struct slerp_factors {
  float a = 1, b = 0;

  slerp_factors() = default;
  slerp_factors(const slerp_sums& sums, double t) noexcept {
    const double lengths = std::sqrt(sums.a_square) * std::sqrt(sums.b_square);
    const double cosine = lengths > 0 ? sums.dot / lengths : 1.0;
    double left = 1.0 - t, right = t;
    if (std::fabs(cosine) < 0.9995) {
      const double angle = std::acos(cosine);
      left = std::sin((1.0 - t) * angle) / std::sin(angle);
      right = std::sin(t * angle) / std::sin(angle);
    }
    a = static_cast<float>(left), b = static_cast<float>(right);
  }
};

/// a = factors.a · a + factors.b · b.
inline void slerp(float* a, const float* b, std::size_t n, slerp_factors factors) noexcept { weighted_sum(a, b, n, factors.a, factors.b); }

TENSORSMITH_END_NAMESPACE

#undef TENSORSMITH_UNFUSED
#undef TENSORSMITH_UNFUSED_BODY
