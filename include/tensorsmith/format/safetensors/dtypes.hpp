// SPDX-License-Identifier: MIT
//
// tensorsmith/format/safetensors/dtypes.hpp: the element types of safetensors and their spelling.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "tensorsmith/core/dtype.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {
struct safetensors_dtype {
  std::string_view name;
  dtype type;
};
/// In the order of the reference implementation, which lays out tensors by descending position in it, then by name.
inline constexpr safetensors_dtype safetensors_dtypes[] = {
    {"BOOL", dtype::boolean},       {"F4", dtype::f4_e2m1},          {"F6_E2M3", dtype::f6_e2m3}, {"F6_E3M2", dtype::f6_e3m2},
    {"U8", dtype::u8},              {"I8", dtype::i8},               {"F8_E5M2", dtype::f8_e5m2}, {"F8_E4M3", dtype::f8_e4m3},
    {"F8_E8M0", dtype::f8_e8m0},    {"F8_E4M3FNUZ", dtype::f8_e4m3fnuz}, {"F8_E5M2FNUZ", dtype::f8_e5m2fnuz},
    {"I16", dtype::i16},            {"U16", dtype::u16},             {"F16", dtype::f16},         {"BF16", dtype::bf16},
    {"I32", dtype::i32},            {"U32", dtype::u32},             {"F32", dtype::f32},         {"C64", dtype::c64},
    {"F64", dtype::f64},            {"I64", dtype::i64},             {"U64", dtype::u64}};

/// Position of a type in the table, if the format has it.
constexpr std::optional<std::size_t> safetensors_rank(dtype type) noexcept {
  std::size_t at = 0;
  for (const safetensors_dtype& row : safetensors_dtypes) {
    if (row.type == type) return at;
    ++at;
  }
  return std::nullopt;
}
}  // namespace detail

/// The type that safetensors spells so ("F32", "BF16"), if there is one. Case matters.
constexpr std::optional<dtype> safetensors_dtype_named(std::string_view name) noexcept {
  for (const detail::safetensors_dtype& row : detail::safetensors_dtypes)
    if (row.name == name) return row.type;
  return std::nullopt;
}

/// How safetensors spells a type; empty if the format lacks it (packed integers, c128).
constexpr std::string_view safetensors_name(dtype type) noexcept {
  const auto rank = detail::safetensors_rank(type);
  return rank ? detail::safetensors_dtypes[*rank].name : std::string_view();
}

TENSORSMITH_END_NAMESPACE
