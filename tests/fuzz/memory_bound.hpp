// SPDX-License-Identifier: MIT
//
// tests/fuzz/memory_bound.hpp: how much memory reading one input may take, checked at every allocation.
#pragma once

#include <cstddef>

namespace fuzz {

/// While it lives, an allocation that is larger than 64 MiB + 8 × `input_bytes`, or that lets the living ones add up to more,
/// ends the process. Counts what operator new gives out (tests/fuzz/memory_bound.cpp replaces it).
class memory_bound {
 public:
  explicit memory_bound(std::size_t input_bytes) noexcept;
  ~memory_bound();
  memory_bound(const memory_bound&) = delete;
  memory_bound& operator=(const memory_bound&) = delete;
};

}  // namespace fuzz
