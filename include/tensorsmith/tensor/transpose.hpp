// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/transpose.hpp: transposing a plane of elements in cache-sized blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensorsmith/tensor/region.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

template <class T>
void transpose_elements(view in, tile out, std::size_t rows, std::size_t cols) noexcept {
  // 16 × 16 elements of up to 8 bytes: 16 cache lines on either side at a time, which stay in L1 at any pitch.
  constexpr std::size_t block = 16;
  for (std::size_t c0 = 0; c0 < cols; c0 += block) {
    const std::size_t c1 = std::min(cols, c0 + block);
    for (std::size_t r0 = 0; r0 < rows; r0 += block) {
      const std::size_t r1 = std::min(rows, r0 + block);
      for (std::size_t c = c0; c < c1; ++c) {
        std::byte* to = out.data + c * out.pitch;
        for (std::size_t r = r0; r < r1; ++r)
          std::memcpy(to + r * sizeof(T), in.data + r * in.pitch + c * sizeof(T), sizeof(T));
      }
    }
  }
}

}  // namespace detail

/// Writes the transpose of `in` ([rows, cols]) to `out` ([cols, rows]); elements of `element` bytes, any alignment.
inline void transpose_plane(view in, tile out, std::size_t rows, std::size_t cols, std::size_t element) noexcept {
  switch (element) {
    case 1: return detail::transpose_elements<std::uint8_t>(in, out, rows, cols);
    case 2: return detail::transpose_elements<std::uint16_t>(in, out, rows, cols);
    case 4: return detail::transpose_elements<std::uint32_t>(in, out, rows, cols);
    case 8: return detail::transpose_elements<std::uint64_t>(in, out, rows, cols);
    default:
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t c = 0; c < cols; ++c)
          std::memcpy(out.data + c * out.pitch + r * element, in.data + r * in.pitch + c * element, element);
  }
}

TENSORSMITH_END_NAMESPACE
