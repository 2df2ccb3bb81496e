// SPDX-License-Identifier: MIT
//
// tests/support/random_values.hpp: numbers that look random and are the same everywhere.
#pragma once

#include <cstddef>
#include <vector>

/// n numbers between -spread and spread, from a linear congruential generator.
template <class T>
std::vector<T> random_values(std::size_t n, unsigned seed, T spread = 1) {
  std::vector<T> out(n);
  unsigned state = seed * 2654435761u + 1;
  for (T& x : out) {
    state = state * 1664525u + 1013904223u;
    x = (static_cast<T>(state >> 8) / T(8388608) - 1) * spread;
  }
  return out;
}
