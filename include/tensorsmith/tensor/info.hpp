// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/info.hpp: name, element type and shape of a tensor; no bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tensorsmith/core/dtype.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Extents of a tensor, outermost first. Rank 0 is a scalar.
using shape_type = std::vector<std::size_t>;

/// Product of the extents. @pre it was proven to be below 2^48 when the file was read.
constexpr std::size_t element_count(const shape_type& shape) noexcept {
  std::size_t count = 1;
  for (const std::size_t extent : shape) count *= extent;
  return count;
}

/// "[320, 4, 3, 3]", as messages show it.
inline std::string to_string(const shape_type& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

/// What is known of a tensor at plan time.
struct tensor_info {
  std::string name;
  dtype type = dtype::f32;
  shape_type shape;

  std::size_t elements() const noexcept { return element_count(shape); }
  std::size_t bytes() const noexcept { return byte_count(type, elements()); }
  bool operator==(const tensor_info&) const = default;
};

TENSORSMITH_END_NAMESPACE
