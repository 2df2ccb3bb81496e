// SPDX-License-Identifier: MIT
#include "tensorsmith/core/float8.hpp"

#include <bit>
#include <cmath>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/core/sha256.hpp"

namespace ts = tensorsmith;
using ts::dtype;

namespace {

constexpr dtype signed_types[] = {dtype::f8_e4m3, dtype::f8_e5m2, dtype::f8_e4m3fnuz, dtype::f8_e5m2fnuz};

/// SHA-256 of what torch 2.15 gave (tests/data/make/float8_digests.py).
struct recorded {
  dtype from, to;
  std::string_view digest;
};
constexpr recorded conversions[] = {
    {dtype::f16, dtype::f8_e4m3, "5fca763e3fe00eb890d13c36d5e9095d0560974190fb3cc477a68d5ce3869624"},
    {dtype::f16, dtype::f8_e5m2, "92a1a336edf246100fcc85e3c61ae285755320768b7bd16a7a573cda0ee19a19"},
    {dtype::f16, dtype::f8_e4m3fnuz, "95e6fb5b04ba11dcfc5fdb80d6a1637e811d503bae7151aadc96ef8c96583567"},
    {dtype::f16, dtype::f8_e5m2fnuz, "0fa2de8eb3705708d9fdfca78253b1a841348ee2289f3d1b329374fa4ce166eb"},
    {dtype::bf16, dtype::f8_e4m3, "556222ae80c3498b4da64795f283e77962f1045e2525faaededd4e0a5b1ae212"},
    {dtype::bf16, dtype::f8_e5m2, "875dd70a7c02e2f8dd7ba693a8764c02ec0242f5849d693f3e8e48f9f21d9ff7"},
    {dtype::bf16, dtype::f8_e4m3fnuz, "b5a02ccdb033ad9271d82bfc03ae5dbfd2d1eb881ac6e35a81be5b08cb0bd97d"},
    {dtype::bf16, dtype::f8_e5m2fnuz, "fbc7c46b2110bf77ea64283fb71a081f5612b13a074321a544c4332c91709f43"},
    {dtype::f32, dtype::f8_e4m3, "8ff8c626b889bbbda684e16e0c7af8a3b1cbb8f5b1d07e61b7e15b73e5cd6415"},
    {dtype::f32, dtype::f8_e5m2, "6545baf39e12aa53e7716469c15df13dce38ae73f7806622906b23fcc84c2849"},
    {dtype::f32, dtype::f8_e4m3fnuz, "e1afd0007e2368cae6a064c39a968f0ac327896a04618c42381358e876878912"},
    {dtype::f32, dtype::f8_e5m2fnuz, "f8226be6b802c72dae2fe6913daf1d6e95e5d945e8020be5d21de8f3fe85b533"}};

std::vector<std::byte> inputs(dtype from) {
  std::vector<std::byte> out;
  if (from == dtype::f32) {
    out.resize(4u << 20);
    for (std::uint32_t i = 0; i < 1u << 20; ++i) ts::detail::store_as(out.data() + 4 * i, i * 0x9E3779B1U);
  } else {
    out.resize(2u << 16);
    for (std::uint32_t i = 0; i < 1u << 16; ++i) ts::detail::store_as(out.data() + 2 * i, static_cast<std::uint16_t>(i));
  }
  return out;
}

float decoded(dtype type, std::uint8_t code) {
  const std::byte byte[4]{std::byte{code}};
  float value = 0;
  ts::convert_elements(type, byte, dtype::f32, reinterpret_cast<std::byte*>(&value), 1);
  return value;
}

std::uint8_t encoded(double value, dtype type) {
  std::byte out[8]{};
  ts::convert_elements(dtype::f64, reinterpret_cast<const std::byte*>(&value), type, out, 1);
  return std::to_integer<std::uint8_t>(out[0]);
}

/// The value of a code by the definition of the formats: sign, exponent, mantissa.
double by_formula(dtype type, unsigned code) {
  const bool e4m3 = type == dtype::f8_e4m3 || type == dtype::f8_e4m3fnuz, fnuz = type == dtype::f8_e4m3fnuz || type == dtype::f8_e5m2fnuz;
  const int mantissa_bits = e4m3 ? 3 : 2, bias = (e4m3 ? 7 : 15) + (fnuz ? 1 : 0);
  const int exponent = static_cast<int>((code & 0x7F) >> mantissa_bits), mantissa = static_cast<int>(code & ((1u << mantissa_bits) - 1));
  if (fnuz && code == 0x80) return NAN;
  if (type == dtype::f8_e4m3 && (code & 0x7F) == 0x7F) return NAN;
  if (type == dtype::f8_e5m2 && exponent == 31) return mantissa == 0 ? (code & 0x80 ? -INFINITY : INFINITY) : NAN;
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return code & 0x80 ? -magnitude : magnitude;
}

}  // namespace

TEST_CASE("NUM-12: all 256 codes of the five 8-bit types have the value of their definition", "[core]") {
  for (const dtype type : signed_types)
    for (unsigned code = 0; code < 256; ++code) {
      const double expected = by_formula(type, code);
      const float got = decoded(type, static_cast<std::uint8_t>(code));
      const bool same = std::isnan(expected) ? std::isnan(got) : static_cast<double>(got) == expected && std::signbit(got) == std::signbit(expected);
      if (!same) FAIL(ts::name_of(type) << " code " << code << ": " << got << " for " << expected);
    }
  for (unsigned code = 0; code < 255; ++code)
    if (static_cast<double>(decoded(dtype::f8_e8m0, static_cast<std::uint8_t>(code))) != std::ldexp(1.0, static_cast<int>(code) - 127))
      FAIL("e8m0 code " << code);
  CHECK(std::isnan(decoded(dtype::f8_e8m0, 255)));
  // Signs and payloads of NaN are those of torch: 7 << 20 and 3 << 21.
  CHECK(std::bit_cast<std::uint32_t>(decoded(dtype::f8_e4m3, 0xFF)) == 0xFFF00000U);
  CHECK(std::bit_cast<std::uint32_t>(decoded(dtype::f8_e5m2, 0x7D)) == 0x7FE00000U);
}

TEST_CASE("every 8-bit code survives the way through every wider type", "[core]") {
  std::size_t survived = 0;
  for (const dtype type : signed_types)
    for (const dtype wide : {dtype::f64, dtype::f32, dtype::f16, dtype::bf16})
      for (unsigned code = 0; code < 256; ++code) {
        std::byte in[8]{std::byte{static_cast<unsigned char>(code)}}, out[8]{}, between[8];
        ts::convert_elements(type, in, wide, between, 1);
        ts::convert_elements(wide, between, type, out, 1);
        const bool nan = std::isnan(by_formula(type, code));
        const unsigned expected = nan && type == dtype::f8_e5m2 ? code | 3 : code;  // one NaN is as good as another
        if (std::to_integer<unsigned>(out[0]) != expected) FAIL(ts::name_of(type) << " code " << code << " through " << ts::name_of(wide));
        ++survived;
      }
  CHECK(survived == 4 * 4 * 256);
}

TEST_CASE("NUM-12: encoding gives the bits of torch for every f16 and bf16 and a million f32", "[core]") {
  for (const recorded& r : conversions) {
    const auto in = inputs(r.from);
    const std::size_t n = in.size() / (ts::bits_of(r.from) / 8);
    std::vector<std::byte> out(n);
    ts::convert_elements(r.from, in.data(), r.to, out.data(), n);
    if (r.to == dtype::f8_e4m3) CHECK(ts::saturate_elements(r.from, in.data(), r.to, out.data(), n) > 0);  // as this torch does
    ts::sha256 hash;
    hash.update(out);
    INFO(ts::name_of(r.from) << " to " << ts::name_of(r.to));
    CHECK(ts::hex(hash.finish()) == r.digest);
  }
}

TEST_CASE("8-bit types round to nearest even, once, also from f64", "[core]") {
  for (const dtype type : signed_types) {
    const double largest = ts::largest_finite(type);
    CHECK(static_cast<double>(decoded(type, encoded(largest, type))) == largest);
    for (unsigned code = 0; code < 0x7F; ++code) {
      const double low = by_formula(type, code), high = by_formula(type, code + 1);
      if (!(high <= largest)) break;
      const double middle = (low + high) / 2;
      INFO(ts::name_of(type) << " between " << low << " and " << high);
      REQUIRE(encoded(middle, type) == (code % 2 == 0 ? code : code + 1));
      REQUIRE(encoded(std::nextafter(middle, 0.0), type) == code);  // through f32 both would be the middle
      REQUIRE(encoded(std::nextafter(middle, 1e9), type) == code + 1);
    }
    CHECK(encoded(1e-300, type) == 0);
    CHECK(encoded(-1e-300, type) == (type == dtype::f8_e4m3 || type == dtype::f8_e5m2 ? 0x80 : 0));
  }
  CHECK(encoded(464, dtype::f8_e4m3) == 0x7E);  // the last tie goes to the even code
  CHECK(encoded(464.1, dtype::f8_e4m3) == 0x7F);
  CHECK(encoded(-1e9, dtype::f8_e4m3) == 0xFF);
  CHECK(encoded(61439, dtype::f8_e5m2) == 0x7B);
  CHECK(encoded(61440, dtype::f8_e5m2) == 0x7C);
  CHECK(encoded(247, dtype::f8_e4m3fnuz) == 0x7F);
  CHECK(encoded(248, dtype::f8_e4m3fnuz) == 0x80);
  CHECK(encoded(-INFINITY, dtype::f8_e5m2fnuz) == 0x80);
}
