// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/blend.hpp: blends of whole checkpoints: weighted sum, add difference, spherical interpolation.
//
// Include this to merge models of one shape. Kernels work on spans of any length; spherical interpolation needs three sums over the
// whole tensor first.
#pragma once

#include <cmath>
#include <cstddef>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// a = (1 − t) · a + t · b; t = 0 and t = 1 give the bits of a and b.
inline void weighted_sum(float* a, const float* b, std::size_t n, float t) noexcept {
  if (t == 0.0F) return;
  for (std::size_t i = 0; i < n; ++i) a[i] = t == 1.0F ? b[i] : (1.0F - t) * a[i] + t * b[i];
}

/// a += t · (b − c).
inline void add_difference(float* a, const float* b, const float* c, std::size_t n, float t) noexcept {
  if (t == 0.0F) return;
  for (std::size_t i = 0; i < n; ++i) a[i] += t * (b[i] - c[i]);
}

/// What spherical interpolation needs to know of two whole tensors.
struct slerp_sums {
  double dot = 0, a_square = 0, b_square = 0;

  void add(const float* a, const float* b, std::size_t n) noexcept {
    for (std::size_t i = 0; i < n; ++i) {
      const double x = a[i], y = b[i];
      dot += x * y, a_square += x * x, b_square += y * y;
    }
  }
};

/// Factors of a and b: sin((1−t)·Ω)/sin Ω and sin(t·Ω)/sin Ω with Ω the angle between the tensors (Shoemake, "Animating rotation with
/// quaternion curves", 1985), or 1−t and t where they are parallel to 1 in 2000 or one of them is zero.
struct slerp_factors {
  float a = 1, b = 0;

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
inline void slerp(float* a, const float* b, std::size_t n, slerp_factors factors) noexcept {
  for (std::size_t i = 0; i < n; ++i) a[i] = factors.a * a[i] + factors.b * b[i];
}

TENSORSMITH_END_NAMESPACE
