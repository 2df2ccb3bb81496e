// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/element_code.hpp: the numbers that stand for element types in graph attributes (`to` of Cast).
//
// They are ONNX's TensorProto.DataType, so that attributes are written to ONNX files as they are.
#pragma once

#include <cstdint>
#include <optional>

#include "tensorsmith/core/dtype.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {
struct element_code_row {
  dtype type;
  std::int64_t code;
};
inline constexpr element_code_row element_code_rows[] = {
    {dtype::f32, 1},         {dtype::u8, 2},       {dtype::i8, 3},          {dtype::u16, 4},  {dtype::i16, 5},
    {dtype::i32, 6},         {dtype::i64, 7},      {dtype::boolean, 9},     {dtype::f16, 10}, {dtype::f64, 11},
    {dtype::u32, 12},        {dtype::u64, 13},     {dtype::c64, 14},        {dtype::c128, 15}, {dtype::bf16, 16},
    {dtype::f8_e4m3, 17},    {dtype::f8_e4m3fnuz, 18}, {dtype::f8_e5m2, 19}, {dtype::f8_e5m2fnuz, 20},
    {dtype::u4, 21},         {dtype::i4, 22},      {dtype::f4_e2m1, 23},    {dtype::f8_e8m0, 24}, {dtype::u2, 25},
    {dtype::i2, 26}};
}  // namespace detail

/// The number of a type; nullopt for the 6-bit types, which have none.
constexpr std::optional<std::int64_t> element_code(dtype type) noexcept {
  for (const detail::element_code_row& row : detail::element_code_rows)
    if (row.type == type) return row.code;
  return std::nullopt;
}

/// The type that a number stands for.
constexpr std::optional<dtype> dtype_of_element_code(std::int64_t code) noexcept {
  for (const detail::element_code_row& row : detail::element_code_rows)
    if (row.code == code) return row.type;
  return std::nullopt;
}

TENSORSMITH_END_NAMESPACE
