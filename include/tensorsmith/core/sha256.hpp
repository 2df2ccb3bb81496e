// SPDX-License-Identifier: MIT
//
// tensorsmith/core/sha256.hpp: SHA-256 (FIPS 180-4) of bytes that arrive in pieces. Include this to name contents by their digest.
//
// Two kernels with the same results: plain C++, and the SHA instructions of x86-64 processors, chosen when the program runs.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "tensorsmith/core/config.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

using sha256_state = std::array<std::uint32_t, 8>;
/// Mixes `blocks` blocks of 64 bytes into the state.
using sha256_kernel = void (*)(sha256_state&, const std::byte*, std::size_t blocks) noexcept;

/// FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
alignas(16) inline constexpr std::uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

inline void sha256_blocks_portable(sha256_state& state, const std::byte* data, std::size_t blocks) noexcept {
  for (; blocks > 0; --blocks, data += 64) {
    std::uint32_t w[64];
    for (std::size_t t = 0; t < 16; ++t) {
      std::uint32_t word = 0;
      for (std::size_t i = 0; i < 4; ++i) word = (word << 8) | std::to_integer<std::uint32_t>(data[4 * t + i]);
      w[t] = word;
    }
    for (std::size_t t = 16; t < 64; ++t) {
      const std::uint32_t s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ (w[t - 15] >> 3);
      const std::uint32_t s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ (w[t - 2] >> 10);
      w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (std::size_t t = 0; t < 64; ++t) {
      const std::uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const std::uint32_t first = h + s1 + ((e & f) ^ (~e & g)) + sha256_constants[t] + w[t];
      const std::uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      const std::uint32_t second = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const std::uint32_t worked[8] = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state[i] += worked[i];
  }
}

#if defined(__x86_64__)
/// The four words of the message schedule that follow the sixteen in a, b, c, d.
__attribute__((target("sha,sse4.1"))) inline __m128i sha256_schedule(__m128i a, __m128i b, __m128i c, __m128i d) noexcept {
  return _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8(d, c, 4)), d);
}

__attribute__((target("sha,sse4.1"))) inline void sha256_blocks_sha_ni(sha256_state& state, const std::byte* data,
                                                                       std::size_t blocks) noexcept {
  // The instructions keep the state as (f, e, b, a) and (h, g, d, c), lowest lane first.
  const __m128i low = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state.data())), 0xB1);
  const __m128i high = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state.data() + 4)), 0x1B);
  __m128i abef = _mm_alignr_epi8(low, high, 8), cdgh = _mm_blend_epi16(high, low, 0xF0);
  const __m128i big_endian = _mm_set_epi64x(0x0C0D0E0F08090A0B, 0x0405060700010203);
  for (; blocks > 0; --blocks, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    const auto* words = reinterpret_cast<const __m128i*>(data);
    __m128i m[4];
    for (int i = 0; i < 4; ++i) m[i] = _mm_shuffle_epi8(_mm_loadu_si128(words + i), big_endian);
    for (int quarter = 0; quarter < 4; ++quarter) {
      if (quarter > 0) {
        m[0] = sha256_schedule(m[0], m[1], m[2], m[3]);
        m[1] = sha256_schedule(m[1], m[2], m[3], m[0]);
        m[2] = sha256_schedule(m[2], m[3], m[0], m[1]);
        m[3] = sha256_schedule(m[3], m[0], m[1], m[2]);
      }
      for (int i = 0; i < 4; ++i) {
        const auto* constants = reinterpret_cast<const __m128i*>(sha256_constants + 16 * quarter + 4 * i);
        const __m128i round = _mm_add_epi32(m[i], _mm_load_si128(constants));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, round);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(round, 0x0E));
      }
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state.data()), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state.data() + 4), _mm_alignr_epi8(dchg, feba, 8));
}

inline bool has_sha_ni() noexcept {
  static const bool available = [] {  // __builtin_cpu_supports cannot be asked for it on the oldest compilers that we take
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1U << 29)) != 0;
  }();
  return available;
}
#endif

inline sha256_kernel sha256_best_kernel() noexcept {
#if defined(__x86_64__)
  if (has_sha_ni()) return sha256_blocks_sha_ni;
#endif
  return sha256_blocks_portable;
}

}  // namespace detail

/// The digest of a SHA-256: 32 bytes.
using sha256_digest = std::array<std::byte, 32>;

/// SHA-256 of bytes that arrive in pieces of any length.
class sha256 {
 public:
  sha256() noexcept : sha256(detail::sha256_best_kernel()) {}
  /// With a chosen kernel, for tests.
  explicit sha256(detail::sha256_kernel kernel) noexcept : kernel_(kernel) {}

  void update(std::span<const std::byte> bytes) noexcept {
    total_ += bytes.size();
    if (held_ > 0) {
      const std::size_t taken = std::min(bytes.size(), block_.size() - held_);
      if (taken > 0) std::memcpy(block_.data() + held_, bytes.data(), taken);
      held_ += taken;
      bytes = bytes.subspan(taken);
      if (held_ < block_.size()) return;
      kernel_(state_, block_.data(), 1);
      held_ = 0;
    }
    if (const std::size_t whole = bytes.size() / block_.size(); whole > 0) {
      kernel_(state_, bytes.data(), whole);
      bytes = bytes.subspan(whole * block_.size());
    }
    if (!bytes.empty()) std::memcpy(block_.data(), bytes.data(), bytes.size());
    held_ = bytes.size();
  }

  /// The digest of all that came; the object starts anew.
  sha256_digest finish() noexcept {
    const std::uint64_t bits = total_ * 8;
    std::array<std::byte, 128> tail{};
    if (held_ > 0) std::memcpy(tail.data(), block_.data(), held_);
    tail[held_] = std::byte{0x80};
    const std::size_t blocks = held_ < 56 ? 1 : 2;
    for (std::size_t i = 0; i < 8; ++i) tail[64 * blocks - 1 - i] = static_cast<std::byte>(bits >> (8 * i));
    kernel_(state_, tail.data(), blocks);
    sha256_digest out;
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(state_[i / 4] >> (24 - 8 * (i % 4)));
    *this = sha256(kernel_);
    return out;
  }

 private:
  detail::sha256_kernel kernel_;
  /// FIPS 180-4, 5.3.3: from the square roots of the first eight primes.
  detail::sha256_state state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> block_{};
  std::size_t held_ = 0;
  std::uint64_t total_ = 0;
};

/// Bytes as lowercase hexadecimal digits.
inline std::string hex(std::span<const std::byte> bytes) {
  std::string out;
  out.reserve(2 * bytes.size());
  for (const std::byte b : bytes) {
    out += "0123456789abcdef"[std::to_integer<unsigned>(b >> 4)];
    out += "0123456789abcdef"[std::to_integer<unsigned>(b & std::byte{15})];
  }
  return out;
}

TENSORSMITH_END_NAMESPACE
