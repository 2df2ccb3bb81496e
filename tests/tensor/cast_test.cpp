// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/cast.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;
using ts::dtype;

namespace {

std::vector<float> ramp(std::size_t count) {
  std::vector<float> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<float>(i % 1000);
  return out;
}

ts::tensor_ref tensor_of(const std::vector<float>& values, ts::shape_type shape, std::string name = "m.safetensors: 'w'") {
  std::vector<std::byte> bytes(4 * values.size());
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return ts::in_memory({std::move(name), dtype::f32, std::move(shape)}, std::move(bytes));
}

std::string verdict(const ts::tensor_ref& tensor) {
  const auto bytes = ts::materialize(tensor, {});
  return bytes ? "done" : bytes.error().message();
}

}  // namespace

TEST_CASE("NUM-08: a cast that overflows fails and says where, how many and how large", "[tensor]") {
  std::vector<float> values = ramp(300 * 1000);
  const auto fine = ts::cast(tensor_of(values, {300, 1000}), dtype::f16);
  REQUIRE(fine);
  CHECK(verdict(*fine) == "done");
  values[123 * 1000 + 7] = 65519.99f;  // still rounds to 65504
  CHECK(verdict(*ts::cast(tensor_of(values, {300, 1000}), dtype::f16)) == "done");
  values[123 * 1000 + 7] = 70000;
  const std::string one =
      "NUM tensor m.safetensors: 'w': a finite value does not fit into f16 (expected at most 65504 in magnitude, found 70000 at [123, 7]); "
      "keep this tensor in its type, cast to a type with a larger range, or accept it with --overflow saturate";
  CHECK(verdict(*ts::cast(tensor_of(values, {300, 1000}), dtype::f16)) == one);
  values[299 * 1000 + 999] = -1e30f;
  values[200 * 1000] = 65520;
  const std::string three =
      "NUM tensor m.safetensors: 'w': 3 finite values do not fit into f16 (expected at most 65504 in magnitude, found 70000 at [123, 7], "
      "the largest is -1.00000002e+30); keep this tensor in its type, cast to a type with a larger range, or accept it with --overflow saturate";
  const auto tensor = *ts::cast(tensor_of(values, {300, 1000}), dtype::f16);
  for (const std::size_t tile : {std::size_t{1024}, std::size_t{100'000}, std::size_t{1} << 22})
    for (const unsigned threads : {1u, 3u}) {
      ts::job run;
      run.tile_bytes = tile;
      run.threads = threads;
      std::vector<std::byte> out(tensor.info().bytes());
      ts::memory_sink sink(out);
      const ts::placement all{tensor.source, {{&sink, 0}}, "w"};
      const auto done = ts::execute(std::span(&all, 1), run);
      REQUIRE_FALSE(done);
      CHECK(done.error().message() == three);
    }
}

TEST_CASE("NUM-08: overflow is also found through views and in other types", "[tensor]") {
  std::vector<float> values = ramp(64 * 48);
  values[5 * 48 + 9] = 65536;
  const auto half = *ts::cast(tensor_of(values, {64, 48}), dtype::f16);
  CHECK(verdict(*ts::transposed(half)).find("found 65536 at [9, 5])") != std::string::npos);
  CHECK(verdict(*ts::sliced_rows(half, 5, 1)).find("found 65536 at [0, 9])") != std::string::npos);
  CHECK(verdict(*ts::sliced_rows(half, 6, 10)) == "done");
  CHECK(verdict(*ts::cast(tensor_of({3.4e38f, 1}, {2}), dtype::bf16)).find("found 3.39999995e+38 at [0])") != std::string::npos);
  CHECK(verdict(*ts::cast(tensor_of({500}, {}), dtype::f8_e4m3)).find("do not fit") == std::string::npos);
  CHECK(verdict(*ts::cast(tensor_of({500}, {}), dtype::f8_e4m3))
            .find("does not fit into f8_e4m3 (expected at most 448 in magnitude, found 500 at [])") != std::string::npos);
  CHECK(verdict(*ts::cast(tensor_of({1e30f}, {1}), dtype::f64)) == "done");
}

TEST_CASE("NUM-08: the other policies keep or saturate, and count", "[tensor]") {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {1, 70000, -70000, inf, -inf, std::nanf(""), -0.0f, 65504};
  for (const auto policy : {ts::cast_overflow::keep, ts::cast_overflow::saturate}) {
    const auto tally = std::make_shared<ts::cast_tally>();
    const auto bytes = ts::materialize(*ts::cast(tensor_of(values, {2, 4}), dtype::f16, policy, tally), {});
    REQUIRE(bytes);
    const auto code = [&](std::size_t i) { return ts::detail::load_as<std::uint16_t>(bytes->data() + 2 * i); };
    CHECK(tally->overflowed == 2);
    CHECK(code(1) == (policy == ts::cast_overflow::keep ? 0x7C00 : 0x7BFF));
    CHECK(code(2) == (policy == ts::cast_overflow::keep ? 0xFC00 : 0xFBFF));
    CHECK(code(3) == 0x7C00);  // infinite before: passes
    CHECK(code(4) == 0xFC00);
    CHECK((code(5) & 0x7E00) == 0x7E00);
    CHECK(code(6) == 0x8000);
    CHECK(code(7) == 0x7BFF);
  }
  const auto f8 = ts::materialize(*ts::cast(tensor_of(values, {8}), dtype::f8_e4m3, ts::cast_overflow::saturate), {});
  REQUIRE(f8);
  CHECK((*f8)[1] == std::byte{0x7E});
  CHECK((*f8)[4] == std::byte{0xFE});  // no infinity in this type
  CHECK((*f8)[5] == std::byte{0x7F});
}

TEST_CASE("infinities and NaN of the source pass the default policy", "[tensor]") {
  const float inf = std::numeric_limits<float>::infinity();
  const auto bytes = ts::materialize(*ts::cast(tensor_of({inf, -inf, std::nanf(""), -std::nanf("")}, {4}), dtype::f16), {});
  REQUIRE(bytes);
  CHECK(ts::detail::load_as<std::uint16_t>(bytes->data()) == 0x7C00);
  CHECK(ts::detail::load_as<std::uint16_t>(bytes->data() + 6) >= 0xFE00);
}

TEST_CASE("a cast hands out what it converts", "[tensor]") {
  const auto wide = tensor_of({1, 2}, {2});
  CHECK(ts::cast(wide, dtype::f16)->source->uncast() == wide.source);
}
