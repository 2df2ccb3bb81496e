// SPDX-License-Identifier: MIT
//
// tensorsmith/core/convert.hpp: bulk conversion between floating-point element types.
//
// Include this for convert_elements. Kernels are compiled under target attributes in an ordinary translation unit and chosen
// at run time, so no -march flag is needed; their bits equal core/half.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensorsmith/core/dtype.hpp"
#include "tensorsmith/core/half.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

// Unaligned element access: safetensors files may place tensors at any byte offset.
template <class T>
T load_as(const std::byte* at) noexcept {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
template <class T>
void store_as(std::byte* at, T value) noexcept {
  std::memcpy(at, &value, sizeof value);
}

using convert_kernel = void (*)(const std::byte*, std::byte*, std::size_t) noexcept;

inline void f32_to_f16_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 2 * i, f32_to_f16(load_as<float>(in + 4 * i)));
}
inline void f16_to_f32_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 4 * i, f16_to_f32(load_as<std::uint16_t>(in + 2 * i)));
}
inline void f32_to_bf16_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 2 * i, f32_to_bf16(load_as<float>(in + 4 * i)));
}
inline void bf16_to_f32_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 4 * i, bf16_to_f32(load_as<std::uint16_t>(in + 2 * i)));
}
inline void bf16_to_f16_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 2 * i, f32_to_f16(bf16_to_f32(load_as<std::uint16_t>(in + 2 * i))));
}
inline void f16_to_bf16_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 2 * i, f32_to_bf16(f16_to_f32(load_as<std::uint16_t>(in + 2 * i))));
}
inline void f64_to_f32_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 4 * i, static_cast<float>(load_as<double>(in + 8 * i)));
}
inline void f64_to_f16_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 2 * i, f32_to_f16(f64_to_f32_odd(load_as<double>(in + 8 * i))));
}
inline void f64_to_bf16_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 2 * i, f32_to_bf16(f64_to_f32_odd(load_as<double>(in + 8 * i))));
}
inline void f32_to_f64_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 8 * i, static_cast<double>(load_as<float>(in + 4 * i)));
}
inline void f16_to_f64_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 8 * i, static_cast<double>(f16_to_f32(load_as<std::uint16_t>(in + 2 * i))));
}
inline void bf16_to_f64_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 8 * i, static_cast<double>(bf16_to_f32(load_as<std::uint16_t>(in + 2 * i))));
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) inline void f32_to_f16_f16c(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_loadu_ps(reinterpret_cast<const float*>(in + 4 * i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  f32_to_f16_scalar(in + 4 * i, out + 2 * i, n - i);
}
__attribute__((target("avx,f16c"))) inline void f16_to_f32_f16c(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    _mm256_storeu_ps(reinterpret_cast<float*>(out + 4 * i), _mm256_cvtph_ps(x));
  }
  f16_to_f32_scalar(in + 2 * i, out + 4 * i, n - i);
}
inline bool has_f16c() noexcept {
  static const bool available = __builtin_cpu_supports("avx2");  // every processor with AVX2 has F16C; Clang 14 cannot ask for it
  return available;
}
#else
inline constexpr bool has_f16c() noexcept { return false; }
#endif

/// The kernel for a pair of different floating-point types, or nullptr if we do not convert between them.
inline convert_kernel kernel_for(dtype from, dtype to) noexcept {
#if defined(__x86_64__)
  if (from == dtype::f32 && to == dtype::f16 && has_f16c()) return f32_to_f16_f16c;
  if (from == dtype::f16 && to == dtype::f32 && has_f16c()) return f16_to_f32_f16c;
#endif
  struct row { dtype from, to; convert_kernel run; };
  constexpr row rows[] = {
      {dtype::f32, dtype::f16, f32_to_f16_scalar}, {dtype::f16, dtype::f32, f16_to_f32_scalar},
      {dtype::f32, dtype::bf16, f32_to_bf16_scalar}, {dtype::bf16, dtype::f32, bf16_to_f32_scalar},
      {dtype::bf16, dtype::f16, bf16_to_f16_scalar}, {dtype::f16, dtype::bf16, f16_to_bf16_scalar},
      {dtype::f64, dtype::f32, f64_to_f32_scalar}, {dtype::f64, dtype::f16, f64_to_f16_scalar},
      {dtype::f64, dtype::bf16, f64_to_bf16_scalar}, {dtype::f32, dtype::f64, f32_to_f64_scalar},
      {dtype::f16, dtype::f64, f16_to_f64_scalar}, {dtype::bf16, dtype::f64, bf16_to_f64_scalar}};
  for (const row& r : rows)
    if (r.from == from && r.to == to) return r.run;
  return nullptr;
}

}  // namespace detail

/// True if convert_elements knows the pair.
inline bool convertible(dtype from, dtype to) noexcept { return from == to || detail::kernel_for(from, to) != nullptr; }

/// Converts `count` elements, rounding to nearest even once. @pre convertible(from, to); the ranges do not overlap.
inline void convert_elements(dtype from, const std::byte* in, dtype to, std::byte* out, std::size_t count) noexcept {
  if (from == to) {
    if (count != 0) std::memcpy(out, in, byte_count(from, count));
  } else {
    detail::kernel_for(from, to)(in, out, count);
  }
}

TENSORSMITH_END_NAMESPACE
