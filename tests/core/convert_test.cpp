// SPDX-License-Identifier: MIT
#include "tensorsmith/core/convert.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

namespace ts = tensorsmith;
using ts::dtype;

namespace {

constexpr dtype wide_types[] = {dtype::f64, dtype::f32, dtype::f16, dtype::bf16};
constexpr dtype byte_types[] = {dtype::f8_e4m3, dtype::f8_e5m2, dtype::f8_e4m3fnuz, dtype::f8_e5m2fnuz, dtype::f8_e8m0};

/// Bit patterns all over the type, with infinities, NaN of several payloads, zeros and subnormals among the first.
std::vector<std::byte> patterns(dtype type, std::size_t count) {
  const std::size_t size = ts::bits_of(type) / 8;
  std::vector<std::byte> out(count * size);
  std::uint64_t state = 42;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    std::uint64_t bits = state ^ (state >> 29);
    if (size == 2) bits = i;
    if (size == 4 && i < 6) bits = std::uint64_t{0x7F800001FF800000U} >> (8 * i);
    std::memcpy(out.data() + i * size, &bits, size);
  }
  return out;
}

std::vector<std::byte> bytes_of(std::initializer_list<float> values) {
  std::vector<std::byte> out(4 * values.size());
  std::memcpy(out.data(), values.begin(), out.size());
  return out;
}

}  // namespace

TEST_CASE("the conversion table knows every pair of its types and no other", "[core]") {
  for (const dtype a : wide_types) {
    for (const dtype b : wide_types) CHECK(ts::convertible(a, b));
    for (const dtype b : byte_types) {
      CHECK(ts::convertible(b, a));
      CHECK(ts::convertible(a, b) == (b != dtype::f8_e8m0));
    }
    CHECK_FALSE(ts::convertible(dtype::i64, a));
    CHECK_FALSE(ts::convertible(a, dtype::u8));
  }
  CHECK_FALSE(ts::convertible(dtype::f8_e4m3, dtype::f8_e5m2));
  CHECK_FALSE(ts::convertible(dtype::c64, dtype::f32));
}

TEST_CASE("NUM-22, NUM-23: kernels give the bits of the scalar definition at every length and alignment", "[core]") {
  for (const dtype from : wide_types)
    for (const dtype to : wide_types) {
      if (from == to) continue;
      const std::size_t most = 70'001, in_size = ts::bits_of(from) / 8, out_size = ts::bits_of(to) / 8;
      const auto values = patterns(from, most);
      std::vector<std::byte> in(values.size() + 1), out(most * out_size + 3), expected(most * out_size);
      std::memcpy(in.data() + 1, values.data(), values.size());
      ts::detail::scalar_kernel_for(from, to)(values.data(), expected.data(), most);
      for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{9}, std::size_t{15}, std::size_t{16},
                                  std::size_t{17}, std::size_t{31}, most}) {
        std::fill(out.begin(), out.end(), std::byte{0xA5});
        ts::convert_elements(from, in.data() + 1, to, out.data() + 3, n);
        INFO(ts::name_of(from) << " to " << ts::name_of(to) << ", " << n << " elements");
        REQUIRE(std::memcmp(out.data() + 3, expected.data(), n * out_size) == 0);
        REQUIRE((n == most || out[3 + n * out_size] == std::byte{0xA5}));
      }
      CHECK(in_size > 0);
    }
}

TEST_CASE("any_nonfinite finds one infinity or NaN at every place", "[core]") {
  for (const dtype type : {dtype::f64, dtype::f32, dtype::f16, dtype::bf16, dtype::f8_e4m3, dtype::f8_e5m2, dtype::f8_e4m3fnuz, dtype::f8_e5m2fnuz}) {
    const std::size_t size = ts::bits_of(type) / 8, n = 150;
    std::vector<std::byte> largest(size), broken(size), data(n * size);
    const double high = ts::largest_finite(type), nan = std::numeric_limits<double>::quiet_NaN();
    ts::convert_elements(dtype::f64, reinterpret_cast<const std::byte*>(&high), type, largest.data(), 1);
    ts::convert_elements(dtype::f64, reinterpret_cast<const std::byte*>(&nan), type, broken.data(), 1);
    for (std::size_t i = 0; i < n; ++i) std::memcpy(data.data() + i * size, largest.data(), size);
    INFO(ts::name_of(type));
    for (std::size_t length = 0; length <= n; ++length) REQUIRE_FALSE(ts::any_nonfinite(type, data.data(), length));
    for (std::size_t at = 0; at < n; ++at) {
      std::memcpy(data.data() + at * size, broken.data(), size);
      REQUIRE(ts::any_nonfinite(type, data.data(), n));
      REQUIRE_FALSE(ts::any_nonfinite(type, data.data(), at));
      std::memcpy(data.data() + at * size, largest.data(), size);
    }
  }
}

TEST_CASE("NUM-08: 65519.99 rounds down to 65504, 65520 overflows f16", "[core]") {
  const auto in = bytes_of({65504.0f, 65519.99f, 65520.0f, -1e30f, std::numeric_limits<float>::infinity(), std::nanf(""), 1.0f});
  std::vector<std::byte> out(14);
  ts::convert_elements(dtype::f32, in.data(), dtype::f16, out.data(), 7);
  const auto code = [&](std::size_t i) { return ts::detail::load_as<std::uint16_t>(out.data() + 2 * i); };
  CHECK(code(0) == 0x7BFF);
  CHECK(code(1) == 0x7BFF);
  CHECK(code(2) == 0x7C00);
  CHECK(code(3) == 0xFC00);
  CHECK(ts::count_new_nonfinite(dtype::f32, in.data(), dtype::f16, out.data(), 7) == 2);  // not those that were infinite or NaN before
  CHECK(ts::count_new_nonfinite(dtype::f32, in.data(), dtype::f16, out.data(), 2) == 0);
  CHECK(ts::saturate_elements(dtype::f32, in.data(), dtype::f16, out.data(), 7) == 2);
  CHECK(code(2) == 0x7BFF);
  CHECK(code(3) == 0xFBFF);
  CHECK(code(4) == 0x7C00);
  CHECK((code(5) & 0x7E00) == 0x7E00);
}

TEST_CASE("NUM-09: NaN whose payload lies in the low bits stays NaN", "[core]") {
  for (const std::uint32_t bits : {0x7F800001U, 0xFF800001U}) {
    for (const dtype to : {dtype::f16, dtype::bf16, dtype::f64, dtype::f8_e4m3, dtype::f8_e5m2}) {
      std::vector<std::byte> in(4 * 16), out(8 * 16);
      for (std::size_t i = 0; i < 16; ++i) ts::detail::store_as(in.data() + 4 * i, bits);
      ts::convert_elements(dtype::f32, in.data(), to, out.data(), 16);
      for (std::size_t i = 0; i < 16; ++i) {
        double back = 0;
        ts::convert_elements(to, out.data() + i * (ts::bits_of(to) / 8), dtype::f64, reinterpret_cast<std::byte*>(&back), 1);
        INFO(ts::name_of(to));
        REQUIRE(std::isnan(back));
        REQUIRE(std::signbit(back) == (bits >> 31 != 0));
      }
    }
  }
}

TEST_CASE("may_overflow follows the largest values", "[core]") {
  CHECK(ts::may_overflow(dtype::f32, dtype::f16));
  CHECK(ts::may_overflow(dtype::f32, dtype::bf16));
  CHECK(ts::may_overflow(dtype::bf16, dtype::f16));
  CHECK(ts::may_overflow(dtype::f8_e8m0, dtype::f16));
  CHECK_FALSE(ts::may_overflow(dtype::f16, dtype::bf16));
  CHECK_FALSE(ts::may_overflow(dtype::f8_e5m2, dtype::f16));
  CHECK_FALSE(ts::may_overflow(dtype::f8_e8m0, dtype::bf16));
}
