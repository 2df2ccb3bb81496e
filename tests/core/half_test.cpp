// SPDX-License-Identifier: MIT
#include "tensorsmith/core/half.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

namespace ts = tensorsmith;

namespace {
/// The f16 nearest to a value, found by searching all finite ones: the definition of round to nearest even.
std::uint16_t nearest_by_search(float value) {
  if (std::fabs(value) >= 65520.0f) return static_cast<std::uint16_t>(std::signbit(value) ? 0xFC00 : 0x7C00);
  std::uint16_t low = 0, high = 0x7BFF;
  const float target = std::fabs(value);
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (ts::f16_to_f32(middle) <= target ? low : high) = middle;
  }
  const double below = static_cast<double>(target) - static_cast<double>(ts::f16_to_f32(low));
  const double above = static_cast<double>(ts::f16_to_f32(high)) - static_cast<double>(target);
  const std::uint16_t best = below < above ? low : above < below ? high : (low % 2 == 0 ? low : high);
  return static_cast<std::uint16_t>(best | (std::signbit(value) ? 0x8000 : 0));
}

std::vector<float> awkward_floats() {
  std::vector<float> out = {0.0f, -0.0f, 1.0f, 65504.0f, 65519.99f, 65520.0f, 1e30f, -1e30f, 5.96e-8f, 2.98e-8f, 2.9802322e-8f,
                            2.9802326e-8f, 6.1035156e-5f, 6.097555e-5f, std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max()};
  std::uint64_t state = 42;
  for (int i = 0; i < 200000; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(state >> 32));
    if (!std::isnan(value)) out.push_back(value);
    out.push_back(std::bit_cast<float>(0x33000000U + static_cast<std::uint32_t>((state >> 20) % 0x15000000U)));  // f16's range
  }
  for (std::uint32_t h = 0; h < 0x7C00; ++h) {  // exact values, midpoints and their neighbours
    const float a = ts::f16_to_f32(static_cast<std::uint16_t>(h));
    const float middle = 0.5f * (a + (h + 1 < 0x7C00 ? ts::f16_to_f32(static_cast<std::uint16_t>(h + 1)) : 65536.0f));
    for (const float v : {a, middle, std::nextafterf(middle, 0.0f), std::nextafterf(middle, 1e30f)}) out.push_back(v);
  }
  return out;
}
}  // namespace

TEST_CASE("f16 to f32 and back is the identity for all 65536 encodings but signalling NaN", "[core]") {
  for (std::uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<std::uint16_t>(h);
    const bool nan = (half & 0x7C00) == 0x7C00 && (half & 0x3FF) != 0;
    const auto expected = static_cast<std::uint16_t>(nan ? half | 0x200 : half);
    if (ts::f32_to_f16(ts::f16_to_f32(half)) != expected) FAIL("encoding " << h);
  }
  CHECK(ts::f16_to_f32(0x3C00) == 1.0f);
  CHECK(ts::f16_to_f32(0x0001) == std::ldexp(1.0f, -24));
  CHECK(ts::f16_to_f32(0xFBFF) == -65504.0f);
}

TEST_CASE("f32 to f16 rounds to nearest even", "[core]") {
  CHECK(awkward_floats().size() > 100);
  for (const float value : awkward_floats())
    if (ts::f32_to_f16(value) != nearest_by_search(value)) FAIL("value " << value);
}

TEST_CASE("bf16 rounds to nearest even and keeps NaN", "[core]") {
  CHECK(ts::f32_to_bf16(1.0f) == 0x3F80);
  CHECK(ts::f32_to_bf16(std::bit_cast<float>(0x3F808000U)) == 0x3F80);
  CHECK(ts::f32_to_bf16(std::bit_cast<float>(0x3F818000U)) == 0x3F82);
  CHECK(ts::f32_to_bf16(std::bit_cast<float>(0x3F808001U)) == 0x3F81);
  CHECK(ts::f32_to_bf16(std::numeric_limits<float>::max()) == 0x7F80);
  CHECK(ts::f32_to_bf16(std::bit_cast<float>(0x7F800001U)) == 0x7FC0);
  CHECK(ts::bf16_to_f32(0xC040) == -3.0f);
}

TEST_CASE("f64 rounds once, not twice", "[core]") {
  // 1 + 2^-11 + 2^-40 lies just above a midpoint of f16; through f32 it would become the midpoint and round down to even.
  const double value = 1.0 + std::ldexp(1.0, -11) + std::ldexp(1.0, -40);
  CHECK(ts::f32_to_f16(static_cast<float>(value)) == 0x3C00);
  CHECK(ts::f32_to_f16(ts::f64_to_f32_odd(value)) == 0x3C01);
  CHECK(ts::f32_to_f16(ts::f64_to_f32_odd(-value)) == 0xBC01);
  CHECK(ts::f32_to_f16(ts::f64_to_f32_odd(0.5)) == 0x3800);
}
