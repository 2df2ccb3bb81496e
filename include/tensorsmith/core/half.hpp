// SPDX-License-Identifier: MIT
//
// tensorsmith/core/half.hpp: the 16-bit floating-point encodings, converted in integer arithmetic. These scalar functions are the
// definition; core/convert.hpp holds kernels that must give the same bits.
#pragma once

#include <bit>
#include <cstdint>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// f32 → IEEE binary16, round to nearest even; overflow gives infinity; NaN keeps sign and the top payload bits, made quiet.
constexpr std::uint16_t f32_to_f16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x3FFU));
  if (magnitude >= 0x47800000U) return static_cast<std::uint16_t>(sign | 0x7C00U);  // 65536 and above
  if (magnitude < 0x33000000U) return sign;                                         // below 2^-25: rounds to zero
  std::uint32_t shift = 13, mantissa = magnitude, base = 0;
  if (magnitude < 0x38800000U) {  // subnormal in f16: below 2^-14
    shift = 126U - (magnitude >> 23);
    mantissa = (magnitude & 0x7FFFFFU) | 0x800000U;
  } else {
    base = 112U << 10;  // difference of the exponent biases, 127 - 15
  }
  const std::uint32_t half = std::uint32_t{1} << (shift - 1);
  const std::uint32_t rest = mantissa & ((std::uint32_t{1} << shift) - 1);
  std::uint32_t rounded = (mantissa >> shift) - base;
  if (rest > half || (rest == half && (rounded & 1U))) ++rounded;  // a carry moves into the exponent, up to infinity
  return static_cast<std::uint16_t>(sign | rounded);
}

/// IEEE binary16 → f32, exact; a signalling NaN becomes quiet.
constexpr float f16_to_f32(std::uint16_t half) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1FU;
  std::uint32_t mantissa = half & 0x3FFU;
  if (exponent == 0x1F)
    return std::bit_cast<float>(sign | 0x7F800000U | (mantissa ? 0x400000U : 0U) | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
  if (mantissa == 0) return std::bit_cast<float>(sign);
  const auto leading = static_cast<std::uint32_t>(std::countl_zero(mantissa)) - 21U;  // of the 10-bit field
  mantissa = (mantissa << leading) & 0x3FFU;
  return std::bit_cast<float>(sign | ((113U - leading) << 23) | (mantissa << 13));
}

/// f32 → bfloat16, round to nearest even; NaN keeps sign and the top payload bits, made quiet.
constexpr std::uint16_t f32_to_bf16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

/// bfloat16 → f32, exact.
constexpr float bf16_to_f32(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// f64 → f16 in one rounding: the f32 between them is rounded to odd, so the second rounding sees every lost bit.
constexpr float f64_to_f32_odd(double value) noexcept {
  const auto nearest = static_cast<float>(value);
  const auto back = static_cast<double>(nearest);
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(nearest);
  if (back == value || back != back || (bits & 0x7F800000U) == 0x7F800000U || (bits & 1U)) return nearest;
  const bool away = (back < 0 ? -back : back) > (value < 0 ? -value : value);
  if (back == 0) return std::bit_cast<float>((value < 0 ? 0x80000000U : 0U) | 1U);
  return std::bit_cast<float>(away ? bits - 1 : bits + 1);
}

TENSORSMITH_END_NAMESPACE
