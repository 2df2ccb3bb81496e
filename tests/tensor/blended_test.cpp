// SPDX-License-Identifier: MIT
//
// Blended tensors: every mode and type against the formula in f64, the same bytes for any tiles and threads, copies bit for bit, refusals.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/random_values.hpp"
#include "tensorsmith/tensor/blended.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
using doubles = std::vector<double>;

namespace {

doubles random_values(std::size_t n, unsigned seed, double spread = 0.5) { return ::random_values<double>(n, seed, spread); }

/// A tensor of these values in a type; the values become what is stored.
ts::tensor_ref stored(const std::string& name, doubles& v, ts::dtype type, ts::shape_type shape) {
  std::vector<std::byte> wide(8 * v.size()), bytes(ts::byte_count(type, v.size()));
  std::memcpy(wide.data(), v.data(), wide.size());
  ts::convert_elements(ts::dtype::f64, wide.data(), type, bytes.data(), v.size());
  ts::convert_elements(type, bytes.data(), ts::dtype::f64, reinterpret_cast<std::byte*>(v.data()), v.size());
  return ts::in_memory({name, type, std::move(shape)}, std::move(bytes));
}

std::vector<std::byte> bytes_of(const ts::tensor_ref& tensor, unsigned threads = 1, std::size_t tile = 256 << 10) {
  std::vector<std::byte> out(tensor.info().bytes());
  ts::memory_sink sink(out);
  const ts::placement whole{tensor.source, {{&sink, 0}}, "t"};
  ts::job run;
  run.threads = threads;
  run.tile_bytes = tile;
  const auto done = ts::execute({&whole, 1}, run);
  INFO((done ? std::string() : done.error().message()));
  REQUIRE(done);
  return out;
}

doubles values_of(const ts::tensor_ref& tensor) {
  doubles out(tensor.info().elements());
  const auto bytes = bytes_of(tensor);
  ts::convert_elements(tensor.type(), bytes.data(), ts::dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}

ts::tensor_ref blend(std::vector<ts::blend_term> terms, ts::blend_mode mode, doubles weights, ts::dtype to = ts::dtype::f32) {
  auto out = ts::blended(std::move(terms), mode, std::move(weights), {.to = to});
  INFO((out ? std::string() : out.error().message()));
  REQUIRE(out);
  return *out;
}

double ulp(double x, int fraction, int least) { return std::ldexp(1.0, (x == 0 ? least : std::max(least, std::ilogb(x))) - fraction); }

/// f32: within the documented bound; f16 and bf16: half a unit in the last place more, never above one where the bound is below half.
void compare(const doubles& found, const doubles& exact, const doubles& bound, ts::dtype type) {
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double one = type == ts::dtype::f16 ? ulp(exact[i], 10, -14) : type == ts::dtype::bf16 ? ulp(exact[i], 7, -126) : 0;
    wrong += !(std::fabs(found[i] - exact[i]) <= one / 2 + bound[i] + (one > 0 ? one * 1e-6 : 0));
  }
  CHECK(wrong == 0);
}

const ts::dtype types[] = {ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16};
constexpr double unit = 0x1p-24;

}  // namespace

TEST_CASE("weighted sums of two to four tensors, of all types, in all types") {
  const ts::shape_type shape{33, 7, 3, 3};
  const std::size_t n = ts::element_count(shape);
  for (const ts::dtype from : types)
    for (const ts::dtype other : types)
      for (const ts::dtype to : types)
        for (std::size_t count = 2; count <= 4; ++count) {
          const doubles weights = count == 2 ? doubles{0.7, 0.3} : count == 3 ? doubles{0.2, 0.5, 0.3} : doubles{0.1, 0.2, 0.3, 0.4};
          std::vector<ts::blend_term> terms;
          doubles exact(n, 0.0), bound(n, 0.0);
          for (std::size_t k = 0; k < count; ++k) {
            doubles x = random_values(n, static_cast<unsigned>(k + 1));
            terms.push_back({stored("x", x, k % 2 ? other : from, shape), "x"});
            for (std::size_t i = 0; i < n; ++i) exact[i] += weights[k] * x[i], bound[i] += std::fabs(weights[k] * x[i]);
          }
          for (double& b : bound) b *= static_cast<double>(count + 2) * unit;
          compare(values_of(blend(std::move(terms), ts::blend_mode::weighted_sum, weights, to)), exact, bound, to);
        }
}

TEST_CASE("add difference and slerp") {
  const ts::shape_type shape{65, 129};
  const std::size_t n = ts::element_count(shape);
  for (const ts::dtype from : types)
    for (const ts::dtype to : types) {
      doubles a = random_values(n, 1), b = random_values(n, 2), c = random_values(n, 3), exact(n), bound(n);
      const ts::tensor_ref ta = stored("a", a, from, shape), tb = stored("b", b, from, shape), tc = stored("c", c, ts::dtype::f16, shape);
      for (std::size_t i = 0; i < n; ++i)
        exact[i] = a[i] + 0.6 * (b[i] - c[i]), bound[i] = 4 * unit * (std::fabs(a[i]) + 0.6 * (std::fabs(b[i]) + std::fabs(c[i])));
      compare(values_of(blend({{ta, "a"}, {tb, "b"}, {tc, "c"}}, ts::blend_mode::add_difference, {0.6}, to)), exact, bound, to);

      double dot = 0, aa = 0, bb = 0;
      for (std::size_t i = 0; i < n; ++i) dot += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
      const double angle = std::acos(dot / std::sqrt(aa) / std::sqrt(bb)), wa = std::sin(0.6 * angle) / std::sin(angle), wb = std::sin(0.4 * angle) / std::sin(angle);
      for (std::size_t i = 0; i < n; ++i) exact[i] = wa * a[i] + wb * b[i], bound[i] = 4 * unit * (std::fabs(wa * a[i]) + std::fabs(wb * b[i]));
      compare(values_of(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::slerp, {0.4}, to)), exact, bound, to);
    }
}

TEST_CASE("the bytes are the same for any tiles and threads, for vectors, long rows and transposed sources too") {
  for (const ts::shape_type& shape : {ts::shape_type{200'001}, ts::shape_type{3, 90'000}, ts::shape_type{700, 301}}) {
    const std::size_t n = ts::element_count(shape);
    doubles a = random_values(n, 1), b = random_values(n, 2), c = random_values(n, 3);
    const ts::tensor_ref ta = stored("a", a, ts::dtype::f16, shape), tc = stored("c", c, ts::dtype::bf16, shape);
    ts::tensor_ref tb = stored("b", b, ts::dtype::f32, shape);
    if (shape.size() == 2) {
      doubles turned(n);
      for (std::size_t i = 0; i < shape[0]; ++i)
        for (std::size_t j = 0; j < shape[1]; ++j) turned[j * shape[0] + i] = b[i * shape[1] + j];
      auto view = ts::transposed(stored("b", turned, ts::dtype::f32, {shape[1], shape[0]}));
      REQUIRE(view);
      const auto straight = bytes_of(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::slerp, {0.3}, ts::dtype::f16));
      tb = *view;
      CHECK(bytes_of(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::slerp, {0.3}, ts::dtype::f16)) == straight);
    }
    for (const ts::blend_mode mode : {ts::blend_mode::weighted_sum, ts::blend_mode::add_difference, ts::blend_mode::slerp}) {
      std::vector<ts::blend_term> terms{{ta, "a"}, {tb, "b"}};
      if (mode == ts::blend_mode::add_difference) terms.push_back({tc, "c"});
      const ts::tensor_ref tensor = blend(terms, mode, mode == ts::blend_mode::weighted_sum ? doubles{0.7, 0.3} : doubles{0.3}, ts::dtype::f16);
      const auto once = bytes_of(tensor);
      for (const unsigned threads : {1u, 3u})
        for (const std::size_t tile : {std::size_t{1}, std::size_t{1000}, std::size_t{1} << 16, std::size_t{1} << 30}) CHECK(bytes_of(tensor, threads, tile) == once);
      if (shape.size() == 2 && mode != ts::blend_mode::slerp) {  // turned and turned back: the sources are, not the result
        auto turned = ts::transposed(tensor);
        REQUIRE(turned);
        CHECK(dynamic_cast<const ts::cast_recipe*>(turned->source.get()) != nullptr);
        auto back = ts::transposed(*turned);
        REQUIRE(back);
        CHECK(bytes_of(*back) == once);
      }
    }
  }
}

TEST_CASE("shares of 0 and 1 give the stored bytes, and other types a cast of them") {
  doubles a = random_values(40, 1), b = random_values(40, 2), c = random_values(40, 3);
  a[3] = b[3] = -0.0, b[4] = std::numeric_limits<double>::quiet_NaN();
  const ts::tensor_ref ta = stored("a", a, ts::dtype::f16, {4, 10}), tb = stored("b", b, ts::dtype::f16, {4, 10}), tc = stored("c", c, ts::dtype::f32, {4, 10});
  const auto same = [&](const ts::tensor_ref& found, const ts::tensor_ref& expected) { return found.source == expected.source; };
  CHECK(same(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::weighted_sum, {1, 0}, ts::dtype::f16), ta));
  CHECK(same(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::weighted_sum, {0, 1}, ts::dtype::f16), tb));
  CHECK(same(blend({{ta, "a"}, {tb, "b"}, {tc, "c"}}, ts::blend_mode::weighted_sum, {0, 1, 0}, ts::dtype::f16), tb));
  CHECK(same(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::slerp, {0}, ts::dtype::f16), ta));
  CHECK(same(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::slerp, {1}, ts::dtype::f16), tb));
  CHECK(same(blend({{ta, "a"}, {tb, "b"}, {tc, "c"}}, ts::blend_mode::add_difference, {0}, ts::dtype::f16), ta));
  const auto cast = ts::cast(tc, ts::dtype::f16);
  REQUIRE(cast);
  CHECK(bytes_of(blend({{ta, "a"}, {tc, "c"}}, ts::blend_mode::weighted_sum, {0, 1}, ts::dtype::f16)) == bytes_of(*cast));
  // A tensor of weight 0 is not read, NaN and all.
  CHECK(bytes_of(blend({{ta, "a"}, {tb, "b"}, {tc, "c"}}, ts::blend_mode::weighted_sum, {0.5, 0, 0.5}, ts::dtype::f16)) ==
        bytes_of(blend({{ta, "a"}, {tc, "c"}}, ts::blend_mode::weighted_sum, {0.5, 0.5}, ts::dtype::f16)));
  CHECK(bytes_of(blend({{tb, "b"}, {ta, "a"}, {tc, "c"}}, ts::blend_mode::weighted_sum, {0, 0.5, 0.5}, ts::dtype::f16)) ==
        bytes_of(blend({{ta, "a"}, {tc, "c"}}, ts::blend_mode::weighted_sum, {0.5, 0.5}, ts::dtype::f16)));
}

TEST_CASE("an inpainting base: the channels that both have are blended, the rest stays") {
  doubles a = random_values(8 * 9 * 9, 1), b = random_values(8 * 4 * 9, 2), c = random_values(8 * 4 * 9, 3);
  const ts::tensor_ref ta = stored("a", a, ts::dtype::f16, {8, 9, 3, 3}), tb = stored("b", b, ts::dtype::f16, {8, 4, 3, 3}), tc = stored("c", c, ts::dtype::f16, {8, 4, 3, 3});
  double dot = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < 8; ++i)
    for (std::size_t j = 0; j < 36; ++j) dot += a[i * 81 + j] * b[i * 36 + j], aa += a[i * 81 + j] * a[i * 81 + j], bb += b[i * 36 + j] * b[i * 36 + j];
  const double angle = std::acos(dot / std::sqrt(aa * bb)), wa = std::sin(0.75 * angle) / std::sin(angle), wb = std::sin(0.25 * angle) / std::sin(angle);
  const auto check = [&](const ts::tensor_ref& tensor, auto&& formula) {
    const doubles found = values_of(tensor);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < 8; ++i)
      for (std::size_t j = 0; j < 81; ++j) {
        const double exact = j < 36 ? formula(a[i * 81 + j], b[i * 36 + j], c[i * 36 + j]) : a[i * 81 + j];
        wrong += !(std::fabs(found[i * 81 + j] - exact) <= (j < 36 ? ulp(exact, 10, -14) : 0.0));
      }
    CHECK(wrong == 0);
  };
  check(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::weighted_sum, {0.75, 0.25}, ts::dtype::f16), [](double x, double y, double) { return 0.75 * x + 0.25 * y; });
  check(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::weighted_sum, {0, 1}, ts::dtype::f16), [](double, double y, double) { return y; });
  check(blend({{ta, "a"}, {tb, "b"}, {tc, "c"}}, ts::blend_mode::add_difference, {0.5}, ts::dtype::f16), [](double x, double y, double z) { return x + 0.5 * (y - z); });
  check(blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::slerp, {0.25}, ts::dtype::f16), [&](double x, double y, double) { return wa * x + wb * y; });

  const auto refused = [](std::vector<ts::blend_term> terms, ts::blend_mode mode, doubles weights) {
    const auto out = ts::blended(std::move(terms), mode, std::move(weights), {.to = ts::dtype::f16});
    REQUIRE_FALSE(out);
    return out.error().message();
  };
  CHECK(refused({{tb, "b.safetensors: 'conv_in'"}, {ta, "a.safetensors: 'conv_in'"}}, ts::blend_mode::weighted_sum, {0.5, 0.5}) ==
        "MIS a.safetensors: 'conv_in': tensors of different shapes cannot be blended (expected [8, 4, 3, 3], found [8, 9, 3, 3]); make the model with more input channels (inpainting) the base");
  CHECK(refused({{ta, "a"}, {tb, "b"}, {ta, "again"}}, ts::blend_mode::add_difference, {0.5}) ==
        "MIS again: the models that are blended into the base have different shapes (expected [8, 4, 3, 3], found [8, 9, 3, 3])");
}

TEST_CASE("a matrix and a convolution of one position agree; other shapes and types do not") {
  doubles a = random_values(60, 1), b = random_values(60, 2);
  const ts::tensor_ref ta = stored("a", a, ts::dtype::f32, {6, 10}), tb = stored("b", b, ts::dtype::f32, {6, 10, 1, 1}), tc = stored("c", b, ts::dtype::f32, {10, 6});
  const ts::tensor_ref mixed = blend({{ta, "a"}, {tb, "b"}}, ts::blend_mode::weighted_sum, {0.5, 0.5});
  CHECK(mixed.shape() == ts::shape_type{6, 10});
  CHECK(values_of(mixed)[7] == (a[7] + b[7]) / 2);
  CHECK(blend({{tb, "b"}, {ta, "a"}}, ts::blend_mode::slerp, {0.5}).shape() == ts::shape_type{6, 10, 1, 1});
  const auto shapes = ts::blended({{ta, "a"}, {tc, "c.pt: 'w'"}}, ts::blend_mode::weighted_sum, {0.5, 0.5}, {});
  REQUIRE_FALSE(shapes);
  CHECK(shapes.error().message() == "MIS c.pt: 'w': tensors of different shapes cannot be blended (expected [6, 10], found [10, 6])");
  const ts::tensor_ref integers = ts::in_memory({"i", ts::dtype::i64, {6, 10}}, std::vector<std::byte>(480));
  const auto type = ts::blended({{ta, "a"}, {integers, "i.pt: 'w'"}}, ts::blend_mode::weighted_sum, {0.5, 0.5}, {});
  REQUIRE_FALSE(type);
  CHECK(type.error().code == ts::errc::unsupported);
  CHECK_FALSE(ts::blended({{ta, "a"}}, ts::blend_mode::weighted_sum, {1}, {}));
  CHECK_FALSE(ts::blended({{ta, "a"}, {ta, "a"}}, ts::blend_mode::add_difference, {0.5}, {}));
  CHECK_FALSE(ts::blended({{ta, "a"}, {ta, "a"}}, ts::blend_mode::weighted_sum, {0.5}, {}));
  const ts::tensor_ref empty = ts::in_memory({"e", ts::dtype::f32, {0, 10}}, {});
  CHECK(bytes_of(blend({{empty, "e"}, {empty, "e"}}, ts::blend_mode::slerp, {0.5})).empty());
}

TEST_CASE("NaN and infinities are refused with their place, or kept and counted") {
  doubles a = random_values(20'000, 1), b = random_values(20'000, 2);
  b[15'003] = std::numeric_limits<double>::quiet_NaN(), b[17'000] = std::numeric_limits<double>::infinity();
  const ts::tensor_ref ta = stored("a", a, ts::dtype::f16, {200, 100}), tb = stored("b", b, ts::dtype::f16, {200, 100});
  for (const ts::blend_mode mode : {ts::blend_mode::weighted_sum, ts::blend_mode::slerp}) {
    const ts::tensor_ref refused = blend({{ta, "a.pt: 'w'"}, {tb, "b.pt: 'w'"}}, mode, mode == ts::blend_mode::slerp ? doubles{0.5} : doubles{0.5, 0.5}, ts::dtype::f16);
    const auto bytes = ts::materialize(refused, {});
    REQUIRE_FALSE(bytes);
    CHECK(bytes.error().message() == "NUM b.pt: 'w': 2 weights are not finite (expected finite numbers, found NaN at [150, 3]); repair the model, or blend them as they are with --nonfinite keep");
  }
  const auto tally = std::make_shared<ts::blend_tally>();
  const auto kept = ts::blended({{ta, "a"}, {tb, "b"}}, ts::blend_mode::weighted_sum, {0.5, 0.5},
                                {.to = ts::dtype::f16, .overflow = ts::cast_overflow::error, .overflowed = {}, .keep_nonfinite = true, .nonfinite = tally});
  REQUIRE(kept);
  const doubles found = values_of(*kept);
  CHECK(std::isnan(found[15'003]));
  CHECK(std::isinf(found[17'000]));
  CHECK(tally->nonfinite == 2);

  doubles huge{3e38, 1}, more{-3e38, 1};
  const auto too_large = blend({{stored("h", huge, ts::dtype::f32, {2}), "h.pt: 'w'"}, {stored("m", more, ts::dtype::f32, {2}), "m"}, {stored("h", huge, ts::dtype::f32, {2}), "h"}},
                               ts::blend_mode::add_difference, {-1});
  const auto bytes = ts::materialize(too_large, {});
  REQUIRE_FALSE(bytes);
  CHECK(bytes.error().message() == "NUM h.pt: 'w': a blend of finite weights is too large for f32; lower the ratio, or accept it with --nonfinite keep");
}

TEST_CASE("a blend that does not fit its type is refused, counted or saturated") {
  doubles a{60000, 1}, b{-60000, 1}, c{60000, 1};
  const std::vector<ts::blend_term> terms{{stored("a", a, ts::dtype::f16, {2}), "a"}, {stored("b", b, ts::dtype::f16, {2}), "b"}, {stored("c", c, ts::dtype::f16, {2}), "c"}};
  CHECK(ts::materialize(blend(terms, ts::blend_mode::add_difference, {-1}, ts::dtype::f16), {}).error().code == ts::errc::numeric);
  const auto tally = std::make_shared<ts::cast_tally>();
  const auto saturated = ts::blended(terms, ts::blend_mode::add_difference, {-1}, {.to = ts::dtype::f16, .overflow = ts::cast_overflow::saturate, .overflowed = tally});
  REQUIRE(saturated);
  CHECK(values_of(*saturated) == doubles{65504, 1});
  CHECK(tally->overflowed == 1);
}
