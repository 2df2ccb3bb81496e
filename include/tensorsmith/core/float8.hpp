// SPDX-License-Identifier: MIT
//
// tensorsmith/core/float8.hpp: the 8-bit floating-point encodings, converted in integer arithmetic. These scalar functions are the
// definition; core/convert.hpp holds the bulk conversions.
//
// Formats: E4M3 and E5M2 of the OCP 8-bit floating point specification (rev. 1.0), their FNUZ variants (no infinity, no negative
// zero, bias one higher; arXiv 2206.02915), and E8M0 of the OCP microscaling specification (a power of two, only decoded).
// Encoding rounds to nearest even. What does not fit becomes infinity in E5M2 and NaN in the others, which have no infinity: so an
// overflow shows, and a cast's policy decides about it (tensor/cast.hpp). torch's `.to()` gives the same bits, but for E4M3, which
// torch 2.15 saturates, infinities too: saturate_elements of core/convert.hpp gives these bits.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "tensorsmith/core/config.hpp"
#include "tensorsmith/core/dtype.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// What tells the 8-bit formats with a sign apart.
struct float8_format {
  std::uint32_t mantissa;  ///< explicit bits
  std::uint32_t bias;      ///< of the exponent
  std::uint32_t largest;   ///< code of the largest finite magnitude
  std::uint32_t overflow;  ///< code that larger magnitudes and infinity get, without sign
  std::uint32_t nan;       ///< code of NaN, without sign
  bool fnuz;               ///< 0x80 is NaN and zero has no sign
};

constexpr float8_format float8_format_of(dtype type) noexcept {
  switch (type) {
    case dtype::f8_e4m3: return {3, 7, 0x7E, 0x7F, 0x7F, false};
    case dtype::f8_e5m2: return {2, 15, 0x7B, 0x7C, 0x7F, false};
    case dtype::f8_e4m3fnuz: return {3, 8, 0x7F, 0x80, 0x80, true};
    default: return {2, 16, 0x7F, 0x80, 0x80, true};  // f8_e5m2fnuz
  }
}

}  // namespace detail

/// f32 → an 8-bit format with a sign, round to nearest even. NaN keeps its sign but in the FNUZ variants.
template <dtype Type>
constexpr std::uint8_t f32_to_f8(float value) noexcept {
  static_assert(Type == dtype::f8_e4m3 || Type == dtype::f8_e5m2 || Type == dtype::f8_e4m3fnuz || Type == dtype::f8_e5m2fnuz);
  constexpr detail::float8_format format = detail::float8_format_of(Type);
  constexpr std::uint32_t smallest_normal = 128 - format.bias;  // as an exponent of f32
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 24) & 0x80U, magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<std::uint8_t>(sign | format.nan);
  std::uint32_t shift = 23 - format.mantissa, mantissa = magnitude, base = (127 - format.bias) << format.mantissa;
  if (magnitude < (smallest_normal << 23)) {
    const std::uint32_t exponent = magnitude >> 23;
    shift += smallest_normal - exponent;
    if (shift > 25) shift = 25;  // far below the smallest code: the mantissa of 24 bits rounds to zero
    mantissa = (magnitude & 0x7FFFFFU) | (exponent != 0 ? 0x800000U : 0U);
    base = 0;
  }
  const std::uint32_t half = std::uint32_t{1} << (shift - 1), rest = mantissa & ((half << 1) - 1);
  std::uint32_t code = (mantissa >> shift) - base;
  if (rest > half || (rest == half && (code & 1U))) ++code;  // a carry moves into the exponent
  if (code > format.largest) code = format.overflow;
  if (format.fnuz && code == 0) return 0;
  return static_cast<std::uint8_t>(sign | code);
}

/// An 8-bit format → f32, exact. A NaN becomes quiet and keeps sign and payload, but for FNUZ and E8M0, whose only NaN has neither.
template <dtype Type>
constexpr float f8_to_f32(std::uint8_t code) noexcept {
  constexpr std::uint32_t quiet = 0x7FC00000U;
  if constexpr (Type == dtype::f8_e8m0) {  // 2^(code - 127)
    if (code == 0xFF) return std::bit_cast<float>(quiet);
    return std::bit_cast<float>(code == 0 ? 0x00400000U : static_cast<std::uint32_t>(code) << 23);
  } else {
    static_assert(Type == dtype::f8_e4m3 || Type == dtype::f8_e5m2 || Type == dtype::f8_e4m3fnuz || Type == dtype::f8_e5m2fnuz);
    constexpr detail::float8_format format = detail::float8_format_of(Type);
    const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80U) << 24, magnitude = code & 0x7FU;
    if (format.fnuz && code == 0x80) return std::bit_cast<float>(quiet);
    std::uint32_t mantissa = magnitude & ((1U << format.mantissa) - 1);
    const std::uint32_t exponent = magnitude >> format.mantissa;
    if (!format.fnuz && magnitude > format.largest) {
      if (format.overflow != format.nan && magnitude == format.overflow) return std::bit_cast<float>(sign | 0x7F800000U);
      return std::bit_cast<float>(sign | quiet | (mantissa << (23 - format.mantissa)));
    }
    if (exponent == 0) {
      if (mantissa == 0) return std::bit_cast<float>(sign);
      const auto leading = static_cast<std::uint32_t>(std::countl_zero(mantissa)) - (31 - format.mantissa);  // of the field
      mantissa = (mantissa << leading) & ((1U << format.mantissa) - 1);
      return std::bit_cast<float>(sign | ((128 - format.bias - leading) << 23) | (mantissa << (23 - format.mantissa)));
    }
    return std::bit_cast<float>(sign | ((exponent + 127 - format.bias) << 23) | (mantissa << (23 - format.mantissa)));
  }
}

namespace detail {

template <dtype Type>
constexpr std::array<float, 256> make_f8_table() noexcept {
  std::array<float, 256> table{};
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = f8_to_f32<Type>(static_cast<std::uint8_t>(i));
  return table;
}

/// The values of all codes.
template <dtype Type>
inline constexpr std::array<float, 256> f8_table = make_f8_table<Type>();

}  // namespace detail

TENSORSMITH_END_NAMESPACE
