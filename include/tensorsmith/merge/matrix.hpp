// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/matrix.hpp: rows of floats that somebody else owns: what the merge kernels take and give.
//
// Include this to call the kernels of merge/. A weight [out, in, kh, kw] is the matrix [out, in·kh·kw] of its stored bytes.
#pragma once

#include <cstddef>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Row-major floats: element (i, j) lies at data[i * stride + j]. Nothing is owned.
struct const_matrix {
  const float* data = nullptr;
  std::size_t rows = 0, cols = 0;
  std::size_t stride = 0;  ///< elements from one row to the next

  const_matrix() = default;
  const_matrix(const float* first, std::size_t row_count, std::size_t col_count) noexcept
      : data(first), rows(row_count), cols(col_count), stride(col_count) {}
  const_matrix(const float* first, std::size_t row_count, std::size_t col_count, std::size_t pitch) noexcept
      : data(first), rows(row_count), cols(col_count), stride(pitch) {}
  const float* row(std::size_t i) const noexcept { return data + i * stride; }
};

/// As const_matrix, for results.
struct matrix {
  float* data = nullptr;
  std::size_t rows = 0, cols = 0;
  std::size_t stride = 0;

  matrix() = default;
  matrix(float* first, std::size_t row_count, std::size_t col_count) noexcept
      : data(first), rows(row_count), cols(col_count), stride(col_count) {}
  matrix(float* first, std::size_t row_count, std::size_t col_count, std::size_t pitch) noexcept
      : data(first), rows(row_count), cols(col_count), stride(pitch) {}
  float* row(std::size_t i) const noexcept { return data + i * stride; }
  operator const_matrix() const noexcept { return {data, rows, cols, stride}; }
};

TENSORSMITH_END_NAMESPACE
