// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/change_size.hpp: how large a change is: sums of squares of a row before and after it.
//
// Include this to report the size of merges. Sums run in eight lanes, so that vectors and scalars, and any cut of the row at multiples of
// eight, give the same bits.
#pragma once

#include <cstddef>
#include <cstring>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Squares of a row so far, in lanes: element j goes to lane j % 8.
struct change_squares {
  double change[8] = {};  ///< of after − before
  double before[8] = {};
  /// One number of eight.
  static double total(const double (&lanes)[8]) noexcept {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }
};

namespace detail {

using four_doubles = double __attribute__((vector_size(32)));
using four_floats = float __attribute__((vector_size(16)));

inline void add_change_squares_scalar(const float* before, const float* after, std::size_t n, change_squares& out) noexcept {
  for (std::size_t j = 0; j < n; ++j) {
    const double old = static_cast<double>(before[j]), difference = static_cast<double>(after[j]) - old;
    out.change[j % 8] += difference * difference, out.before[j % 8] += old * old;
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline void add_change_squares_avx2(const float* before, const float* after, std::size_t n,
                                                                     change_squares& out) noexcept {
  four_doubles change[2], weight[2];
  std::memcpy(change, out.change, sizeof change);
  std::memcpy(weight, out.before, sizeof weight);
  std::size_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (std::size_t half = 0; half < 2; ++half) {
      four_floats a, b;
      std::memcpy(&a, before + j + 4 * half, sizeof a);
      std::memcpy(&b, after + j + 4 * half, sizeof b);
      const four_doubles old = __builtin_convertvector(a, four_doubles), difference = __builtin_convertvector(b, four_doubles) - old;
      change[half] += difference * difference;
      weight[half] += old * old;
    }
  std::memcpy(out.change, change, sizeof change);
  std::memcpy(out.before, weight, sizeof weight);
  add_change_squares_scalar(before + j, after + j, n - j, out);
}
#endif

}  // namespace detail

/// Adds the squares of n elements; the first one belongs to lane 0.
inline void add_change_squares(const float* before, const float* after, std::size_t n, change_squares& out) noexcept {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("avx2");
  if (fast) return detail::add_change_squares_avx2(before, after, n, out);
#endif
  detail::add_change_squares_scalar(before, after, n, out);
}

TENSORSMITH_END_NAMESPACE
