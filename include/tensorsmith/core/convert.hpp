// SPDX-License-Identifier: MIT
//
// tensorsmith/core/convert.hpp: bulk conversion between floating-point element types, and what overflowed in it.
//
// Include this for convert_elements. Kernels are compiled under target attributes in an ordinary translation unit and chosen
// at run time, so no -march flag is needed; their bits equal core/half.hpp and core/float8.hpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensorsmith/core/dtype.hpp"
#include "tensorsmith/core/float8.hpp"
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

/// Types of one byte with a sign, which convert both ways.
constexpr bool is_signed_f8(dtype type) noexcept {
  return type == dtype::f8_e4m3 || type == dtype::f8_e5m2 || type == dtype::f8_e4m3fnuz || type == dtype::f8_e5m2fnuz;
}

/// An element as f32. f64 is rounded to odd, so that a second rounding to a narrower type sees every lost bit.
template <dtype From>
float load_float(const std::byte* at) noexcept {
  if constexpr (From == dtype::f64) return f64_to_f32_odd(load_as<double>(at));
  else if constexpr (From == dtype::f32) return load_as<float>(at);
  else if constexpr (From == dtype::f16) return f16_to_f32(load_as<std::uint16_t>(at));
  else if constexpr (From == dtype::bf16) return bf16_to_f32(load_as<std::uint16_t>(at));
  else return f8_table<From>[std::to_integer<std::size_t>(*at)];
}

template <dtype To>
void store_float(std::byte* at, float value) noexcept {
  if constexpr (To == dtype::f64) store_as(at, static_cast<double>(value));
  else if constexpr (To == dtype::f32) store_as(at, value);
  else if constexpr (To == dtype::f16) store_as(at, f32_to_f16(value));
  else if constexpr (To == dtype::bf16) store_as(at, f32_to_bf16(value));
  else store_as(at, f32_to_f8<To>(value));
}

/// The definition of every conversion.
template <dtype From, dtype To>
void convert_scalar(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  constexpr std::size_t from = bits_of(From) / 8, to = bits_of(To) / 8;
  for (std::size_t i = 0; i < n; ++i) {
    if constexpr (From == dtype::f64 && To == dtype::f32) store_as(out + to * i, static_cast<float>(load_as<double>(in + from * i)));
    else store_float<To>(out + to * i, load_float<From>(in + from * i));
  }
}

template <dtype From, dtype To>
constexpr std::array<std::uint16_t, 256> make_f8_codes() noexcept {
  std::array<std::uint16_t, 256> codes{};
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = To == dtype::f16 ? f32_to_f16(f8_table<From>[i]) : f32_to_bf16(f8_table<From>[i]);
  return codes;
}

/// All codes of an 8-bit type as those of a 16-bit one.
template <dtype From, dtype To>
inline constexpr std::array<std::uint16_t, 256> f8_codes = make_f8_codes<From, To>();

template <dtype From, dtype To>
void convert_by_table(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) store_as(out + 2 * i, f8_codes<From, To>[std::to_integer<std::size_t>(in[i])]);
}

#if defined(__x86_64__)
#define TENSORSMITH_AVX2 __attribute__((target("avx2,f16c"))) inline

TENSORSMITH_AVX2 __m256 load_f16x8(const std::byte* in) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
}
TENSORSMITH_AVX2 __m256 load_bf16x8(const std::byte* in) noexcept {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16));
}
TENSORSMITH_AVX2 __m128i f16x8_of(__m256 x) noexcept { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
/// Eight bfloat16 codes in the low halves of the lanes, as f32_to_bf16 makes them.
TENSORSMITH_AVX2 __m256i bf16_lanes(__m256 x) noexcept {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}

TENSORSMITH_AVX2 void f32_to_f16_avx2(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m128i low = f16x8_of(_mm256_loadu_ps(reinterpret_cast<const float*>(in + 4 * i)));
    const __m128i high = f16x8_of(_mm256_loadu_ps(reinterpret_cast<const float*>(in + 4 * i + 32)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), low);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i + 16), high);
  }
  convert_scalar<dtype::f32, dtype::f16>(in + 4 * i, out + 2 * i, n - i);
}
TENSORSMITH_AVX2 void f16_to_f32_avx2(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256 low = load_f16x8(in + 2 * i), high = load_f16x8(in + 2 * i + 16);
    _mm256_storeu_ps(reinterpret_cast<float*>(out + 4 * i), low);
    _mm256_storeu_ps(reinterpret_cast<float*>(out + 4 * i + 32), high);
  }
  convert_scalar<dtype::f16, dtype::f32>(in + 2 * i, out + 4 * i, n - i);
}
TENSORSMITH_AVX2 void f32_to_bf16_avx2(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i low = bf16_lanes(_mm256_loadu_ps(reinterpret_cast<const float*>(in + 4 * i)));
    const __m256i high = bf16_lanes(_mm256_loadu_ps(reinterpret_cast<const float*>(in + 4 * i + 32)));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);  // packing goes by 128-bit halves
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), packed);
  }
  convert_scalar<dtype::f32, dtype::bf16>(in + 4 * i, out + 2 * i, n - i);
}
TENSORSMITH_AVX2 void bf16_to_f32_avx2(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256 low = load_bf16x8(in + 2 * i), high = load_bf16x8(in + 2 * i + 16);
    _mm256_storeu_ps(reinterpret_cast<float*>(out + 4 * i), low);
    _mm256_storeu_ps(reinterpret_cast<float*>(out + 4 * i + 32), high);
  }
  convert_scalar<dtype::bf16, dtype::f32>(in + 2 * i, out + 4 * i, n - i);
}
TENSORSMITH_AVX2 void bf16_to_f16_avx2(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), f16x8_of(load_bf16x8(in + 2 * i)));
  convert_scalar<dtype::bf16, dtype::f16>(in + 2 * i, out + 2 * i, n - i);
}
TENSORSMITH_AVX2 void f16_to_bf16_avx2(const std::byte* in, std::byte* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i low = bf16_lanes(load_f16x8(in + 2 * i)), high = bf16_lanes(load_f16x8(in + 2 * i + 16));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), packed);
  }
  convert_scalar<dtype::f16, dtype::bf16>(in + 2 * i, out + 2 * i, n - i);
}
/// ORs ((x & mask) + add) over whole vectors of 32 bytes; returns how many bytes that were.
TENSORSMITH_AVX2 std::size_t carries_avx2(const std::byte* data, std::size_t bytes, std::uint64_t mask, std::uint64_t add,
                                          std::uint64_t& seen) noexcept {
  const __m256i masks = _mm256_set1_epi64x(static_cast<long long>(mask)), adds = _mm256_set1_epi64x(static_cast<long long>(add));
  __m256i all = _mm256_setzero_si256(), more = _mm256_setzero_si256();
  std::size_t i = 0;
  for (; i + 64 <= bytes; i += 64) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i + 32));
    all = _mm256_or_si256(all, _mm256_add_epi64(_mm256_and_si256(x, masks), adds));
    more = _mm256_or_si256(more, _mm256_add_epi64(_mm256_and_si256(y, masks), adds));
  }
  std::uint64_t lanes[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_or_si256(all, more));
  seen |= lanes[0] | lanes[1] | lanes[2] | lanes[3];
  return i;
}
#undef TENSORSMITH_AVX2

inline bool has_avx2() noexcept {
  static const bool available = __builtin_cpu_supports("avx2");  // implies F16C on every processor; Clang 14 cannot ask for that
  return available;
}

inline convert_kernel vector_kernel_for(dtype from, dtype to) noexcept {
  struct row { dtype from, to; convert_kernel run; };
  constexpr row rows[] = {{dtype::f32, dtype::f16, f32_to_f16_avx2},   {dtype::f16, dtype::f32, f16_to_f32_avx2},
                          {dtype::f32, dtype::bf16, f32_to_bf16_avx2}, {dtype::bf16, dtype::f32, bf16_to_f32_avx2},
                          {dtype::bf16, dtype::f16, bf16_to_f16_avx2}, {dtype::f16, dtype::bf16, f16_to_bf16_avx2}};
  if (!has_avx2()) return nullptr;
  for (const row& r : rows)
    if (r.from == from && r.to == to) return r.run;
  return nullptr;
}
#else
inline convert_kernel vector_kernel_for(dtype, dtype) noexcept { return nullptr; }
#endif

template <dtype From>
convert_kernel scalar_kernel_from(dtype to) noexcept {
  constexpr bool byte = bits_of(From) == 8;
  switch (to) {
    case dtype::f64: return convert_scalar<From, dtype::f64>;
    case dtype::f32: return convert_scalar<From, dtype::f32>;
    case dtype::f16:
      if constexpr (byte) return convert_by_table<From, dtype::f16>;
      else return convert_scalar<From, dtype::f16>;
    case dtype::bf16:
      if constexpr (byte) return convert_by_table<From, dtype::bf16>;
      else return convert_scalar<From, dtype::bf16>;
    default: break;
  }
  if constexpr (!byte) {
    switch (to) {
      case dtype::f8_e4m3: return convert_scalar<From, dtype::f8_e4m3>;
      case dtype::f8_e5m2: return convert_scalar<From, dtype::f8_e5m2>;
      case dtype::f8_e4m3fnuz: return convert_scalar<From, dtype::f8_e4m3fnuz>;
      case dtype::f8_e5m2fnuz: return convert_scalar<From, dtype::f8_e5m2fnuz>;
      default: break;
    }
  }
  return nullptr;
}

/// The scalar kernel for a pair of different floating-point types, or nullptr if we do not convert between them.
inline convert_kernel scalar_kernel_for(dtype from, dtype to) noexcept {
  switch (from) {
    case dtype::f64: return to == from ? nullptr : scalar_kernel_from<dtype::f64>(to);
    case dtype::f32: return to == from ? nullptr : scalar_kernel_from<dtype::f32>(to);
    case dtype::f16: return to == from ? nullptr : scalar_kernel_from<dtype::f16>(to);
    case dtype::bf16: return to == from ? nullptr : scalar_kernel_from<dtype::bf16>(to);
    case dtype::f8_e4m3: return scalar_kernel_from<dtype::f8_e4m3>(to);
    case dtype::f8_e5m2: return scalar_kernel_from<dtype::f8_e5m2>(to);
    case dtype::f8_e4m3fnuz: return scalar_kernel_from<dtype::f8_e4m3fnuz>(to);
    case dtype::f8_e5m2fnuz: return scalar_kernel_from<dtype::f8_e5m2fnuz>(to);
    case dtype::f8_e8m0: return scalar_kernel_from<dtype::f8_e8m0>(to);
    default: return nullptr;
  }
}

/// The fastest kernel for a pair on this processor, or nullptr if we do not convert between them.
inline convert_kernel kernel_for(dtype from, dtype to) noexcept {
  const convert_kernel fast = vector_kernel_for(from, to);
  return fast ? fast : scalar_kernel_for(from, to);
}

/// How to see infinities and NaN in packed elements: ((x & mask) + add) has the top bit of an element set exactly there.
struct nonfinite_pattern {
  std::uint64_t mask = 0, add = 0, top = 0;
};
constexpr nonfinite_pattern nonfinite_pattern_of(dtype type) noexcept {
  switch (type) {
    case dtype::f64: return {0x7FF0000000000000, 0x0010000000000000, 0x8000000000000000};
    case dtype::f32: return {0x7F8000007F800000, 0x0080000000800000, 0x8000000080000000};
    case dtype::f16: return {0x7C007C007C007C00, 0x0400040004000400, 0x8000800080008000};
    case dtype::bf16: return {0x7F807F807F807F80, 0x0080008000800080, 0x8000800080008000};
    case dtype::f8_e4m3: return {0x7F7F7F7F7F7F7F7F, 0x0101010101010101, 0x8080808080808080};
    case dtype::f8_e5m2: return {0x7C7C7C7C7C7C7C7C, 0x0404040404040404, 0x8080808080808080};
    default: return {};  // one code only: see is_finite
  }
}

/// Whether the element at `at` is finite. @pre a floating-point type of whole bytes
inline bool is_finite(dtype type, const std::byte* at) noexcept {
  if (type == dtype::f8_e8m0) return *at != std::byte{0xFF};
  if (type == dtype::f8_e4m3fnuz || type == dtype::f8_e5m2fnuz) return *at != std::byte{0x80};
  const nonfinite_pattern p = nonfinite_pattern_of(type);
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < bits_of(type) / 8; ++i) bits |= std::to_integer<std::uint64_t>(at[i]) << (8 * i);
  const std::uint64_t sign = std::uint64_t{1} << (bits_of(type) - 1);
  return (((bits & p.mask) + (p.add & (2 * sign - 1))) & sign) == 0;
}

}  // namespace detail

/// True if convert_elements knows the pair: among f64, f32, f16 and bf16, and between these and the 8-bit types (f8_e8m0 only
/// as the source).
inline bool convertible(dtype from, dtype to) noexcept { return from == to || detail::scalar_kernel_for(from, to) != nullptr; }

/// Converts `count` elements, rounding to nearest even once. @pre convertible(from, to); the ranges do not overlap.
inline void convert_elements(dtype from, const std::byte* in, dtype to, std::byte* out, std::size_t count) noexcept {
  if (from == to) {
    if (count != 0) std::memcpy(out, in, byte_count(from, count));
  } else {
    detail::kernel_for(from, to)(in, out, count);
  }
}

/// True if one of `count` elements is infinite or NaN. @pre a floating-point type of whole bytes
inline bool any_nonfinite(dtype type, const std::byte* data, std::size_t count) noexcept {
  const detail::nonfinite_pattern p = detail::nonfinite_pattern_of(type);
  const std::size_t bytes = byte_count(type, count), element = bits_of(type) / 8;
  std::size_t i = 0;
  if (p.mask != 0) {
    std::uint64_t seen = 0;
#if defined(__x86_64__)
    if (detail::has_avx2()) i = detail::carries_avx2(data, bytes, p.mask, p.add, seen);
#endif
    for (; i + 8 <= bytes; i += 8) seen |= (detail::load_as<std::uint64_t>(data + i) & p.mask) + p.add;
    if ((seen & p.top) != 0) return true;
  }
  if (type == dtype::f8_e4m3fnuz || type == dtype::f8_e5m2fnuz) return bytes != 0 && std::memchr(data, 0x80, bytes) != nullptr;
  for (; i < bytes; i += element)
    if (!detail::is_finite(type, data + i)) return true;
  return false;
}

/// How many of `count` elements were finite before a conversion and are infinite or NaN after it.
/// @pre floating-point types of whole bytes
inline std::size_t count_new_nonfinite(dtype from, const std::byte* before, dtype to, const std::byte* after, std::size_t count) noexcept {
  if (!any_nonfinite(to, after, count)) return 0;
  std::size_t found = 0;
  for (std::size_t i = 0; i < count; ++i)
    found += !detail::is_finite(to, after + i * (bits_of(to) / 8)) && detail::is_finite(from, before + i * (bits_of(from) / 8));
  return found;
}

/// The largest finite value of a floating-point type of whole bytes (f8_e8m0: 2^127).
constexpr double largest_finite(dtype type) noexcept {
  switch (type) {
    case dtype::f64: return 0x1.FFFFFFFFFFFFFp1023;
    case dtype::f32: return 0x1.FFFFFEp127;
    case dtype::f16: return 65504;
    case dtype::bf16: return 0x1.FEp127;
    case dtype::f8_e5m2: case dtype::f8_e5m2fnuz: return 57344;
    case dtype::f8_e4m3: return 448;
    case dtype::f8_e4m3fnuz: return 240;
    default: return 0x1p127;
  }
}

/// True if a finite value of `from` may become infinite or NaN as `to`. @pre convertible(from, to)
constexpr bool may_overflow(dtype from, dtype to) noexcept { return largest_finite(from) > largest_finite(to); }

/// After a conversion: gives every finite value that became infinite or NaN the largest finite value of `to` with its sign, and
/// infinities too where `to` has none (as torch does for f8_e4m3). Returns how many elements changed.
/// @pre convertible(from, to)
inline std::size_t saturate_elements(dtype from, const std::byte* before, dtype to, std::byte* after, std::size_t count) noexcept {
  if (!any_nonfinite(to, after, count)) return 0;
  const std::size_t old_size = bits_of(from) / 8, new_size = bits_of(to) / 8;
  const bool has_infinity = new_size > 1 || to == dtype::f8_e5m2;
  std::byte largest[8];
  const double value = largest_finite(to);
  convert_elements(dtype::f64, reinterpret_cast<const std::byte*>(&value), to, largest, 1);
  std::size_t changed = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::byte* old = before + i * old_size;
    std::byte* now = after + i * new_size;
    if (detail::is_finite(to, now)) continue;
    double was = 0;
    convert_elements(from, old, dtype::f64, reinterpret_cast<std::byte*>(&was), 1);
    if (was != was || (has_infinity && !detail::is_finite(from, old))) continue;
    std::memcpy(now, largest, new_size);
    if (was < 0) now[new_size - 1] |= std::byte{0x80};
    ++changed;
  }
  return changed;
}

TENSORSMITH_END_NAMESPACE
