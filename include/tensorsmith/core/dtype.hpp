// SPDX-License-Identifier: MIT
//
// tensorsmith/core/dtype.hpp: element types. Include this for dtype, bits_of, name_of and byte_count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Element types of stored tensors and graph values. Multi-byte values are little-endian everywhere.
enum class dtype : std::uint8_t {
  f64, f32, f16, bf16,
  f8_e5m2, f8_e4m3, f8_e5m2fnuz, f8_e4m3fnuz, f8_e8m0,
  i64, i32, i16, i8, u64, u32, u16, u8, boolean,
  c64, c128,                          // interleaved real and imaginary parts (f32, f64)
  i4, u4, i2, u2, f4_e2m1, f6_e2m3, f6_e3m2,  // packed, first element in the low bits
};

namespace detail {
struct dtype_row { std::string_view name; std::uint8_t bits; bool floating; };
inline constexpr dtype_row dtype_rows[] = {
    {"f64", 64, true}, {"f32", 32, true}, {"f16", 16, true}, {"bf16", 16, true},
    {"f8_e5m2", 8, true}, {"f8_e4m3", 8, true}, {"f8_e5m2fnuz", 8, true}, {"f8_e4m3fnuz", 8, true}, {"f8_e8m0", 8, true},
    {"i64", 64, false}, {"i32", 32, false}, {"i16", 16, false}, {"i8", 8, false},
    {"u64", 64, false}, {"u32", 32, false}, {"u16", 16, false}, {"u8", 8, false}, {"bool", 8, false},
    {"c64", 64, false}, {"c128", 128, false},
    {"i4", 4, false}, {"u4", 4, false}, {"i2", 2, false}, {"u2", 2, false},
    {"f4_e2m1", 4, true}, {"f6_e2m3", 6, true}, {"f6_e3m2", 6, true}};
}  // namespace detail

/// Bits of one element.
constexpr std::size_t bits_of(dtype type) noexcept { return detail::dtype_rows[static_cast<std::size_t>(type)].bits; }
/// Our spelling, as options and reports use it: "f32", "bf16", "bool", …
constexpr std::string_view name_of(dtype type) noexcept { return detail::dtype_rows[static_cast<std::size_t>(type)].name; }
/// True for real floating-point types (not for complex ones).
constexpr bool is_floating(dtype type) noexcept { return detail::dtype_rows[static_cast<std::size_t>(type)].floating; }
/// Bytes of `count` elements, rounded up to whole bytes. @pre count * 128 does not overflow (callers limit counts to 2^48).
constexpr std::size_t byte_count(dtype type, std::size_t count) noexcept { return (count * bits_of(type) + 7) / 8; }

TENSORSMITH_END_NAMESPACE
