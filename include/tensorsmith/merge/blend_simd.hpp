// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/blend_simd.hpp: the sums of spherical interpolation with x86-64's wider vectors, and the choice at run time.
//
// Include this where such blends shall be fast. No compiler flag is needed; the bits are those of merge/blend.hpp.
#pragma once

#include <cstddef>

#include "tensorsmith/merge/blend.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// slerp_lanes::add as a function, as best_slerp_lanes gives it.
using slerp_lanes_kernel = void (*)(slerp_lanes& to, const float* a, const float* b, std::size_t n) noexcept;

namespace detail {

inline void add_slerp_lanes_portable(slerp_lanes& to, const float* a, const float* b, std::size_t n) noexcept { to.add(a, b, n); }

#if defined(__x86_64__)
/// The eight lanes are two vectors of four, so every lane adds the same values in the same order.
#if defined(__clang__)
__attribute__((target("avx2")))
#else
__attribute__((target("avx2"), optimize("O3")))
#endif
inline void add_slerp_lanes_avx2(slerp_lanes& to, const float* a, const float* b, std::size_t n) noexcept { add_slerp_lanes(to, a, b, n); }
#endif

}  // namespace detail

/// The fastest kernel that this processor has. Ask once a tensor.
inline slerp_lanes_kernel best_slerp_lanes() noexcept {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return detail::add_slerp_lanes_avx2;
#endif
  return detail::add_slerp_lanes_portable;
}

TENSORSMITH_END_NAMESPACE
