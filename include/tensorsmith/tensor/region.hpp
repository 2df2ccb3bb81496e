// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/region.hpp: the row-major plane of a tensor, rectangles of it, and pointers with a pitch.
#pragma once

#include <cstddef>

#include "tensorsmith/core/config.hpp"
#include "tensorsmith/tensor/info.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Row-major reading of a tensor as a matrix, in elements: [dim0, rest]; rank 0 and 1 read as [1, n].
struct plane {
  std::size_t rows = 0, cols = 0;
  bool operator==(const plane&) const = default;
};

/// A rectangle of a plane, in elements: rows [row, row + rows), columns [col, col + cols).
struct region {
  std::size_t row = 0, rows = 0, col = 0, cols = 0;
  bool operator==(const region&) const = default;
  std::size_t elements() const noexcept { return rows * cols; }
};

/// Bytes to read: row r of a region starts at data + r * pitch.
struct view {
  const std::byte* data = nullptr;
  std::size_t pitch = 0;
};

/// Bytes to write: row r of a region starts at data + r * pitch.
struct tile {
  std::byte* data = nullptr;
  std::size_t pitch = 0;
};

/// The plane of a shape.
inline plane plane_of(const shape_type& shape) noexcept {
  const std::size_t all = element_count(shape);
  if (shape.size() < 2) return {1, all};
  return {shape[0], shape[0] == 0 ? 0 : all / shape[0]};
}

TENSORSMITH_END_NAMESPACE
