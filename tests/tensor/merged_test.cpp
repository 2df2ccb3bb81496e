// SPDX-License-Identifier: MIT
//
// Merged weights: one rounding to any type, what is counted, what is refused, and the same bits for any threads, tiles and consumers.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/random_values.hpp"
#include "tensorsmith/tensor/cast_catalog.hpp"
#include "tensorsmith/tensor/dependent_change.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/merged.hpp"
#include "tensorsmith/tensor/stacked.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;

namespace {

using floats = std::vector<float>;
constexpr float infinite = std::numeric_limits<float>::infinity(), not_a_number = std::numeric_limits<float>::quiet_NaN();

ts::tensor_ref tensor_of(ts::shape_type shape, const floats& values, ts::dtype type = ts::dtype::f32, std::string name = "t") {
  std::vector<std::byte> bytes(ts::byte_count(type, values.size()));
  ts::convert_elements(ts::dtype::f32, reinterpret_cast<const std::byte*>(values.data()), type, bytes.data(), values.size());
  return ts::in_memory({std::move(name), type, std::move(shape)}, std::move(bytes));
}

floats as_floats(ts::dtype type, const std::vector<std::byte>& bytes) {
  floats out(bytes.size() * 8 / ts::bits_of(type));
  ts::convert_elements(type, bytes.data(), ts::dtype::f32, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}

ts::weight_change_ptr lora(std::size_t rows, std::size_t cols, const floats& up, const floats& down, float scale = 1) {
  const std::size_t r = up.size() / rows;
  return std::make_shared<ts::low_rank_change>(ts::packed_product(tensor_of({rows, r}, up), tensor_of({r, cols}, down)), scale);
}
ts::weight_change_ptr difference(ts::shape_type shape, const floats& values) {
  return std::make_shared<ts::full_change>(tensor_of(std::move(shape), values), 1.0f);
}

ts::job runner(unsigned threads, std::size_t tile) {
  ts::job out;
  out.threads = threads, out.tile_bytes = tile;
  return out;
}

ts::result<std::vector<std::byte>> bytes_of(const ts::tensor_ref& tensor, const ts::job& run) {
  std::vector<std::byte> bytes(tensor.info().bytes());
  ts::memory_sink sink(bytes);
  const ts::placement whole{tensor.source, {{&sink, 0}}, "w"};
  TENSORSMITH_CHECK(ts::execute({&whole, 1}, run));
  return bytes;
}

bool same(const ts::change_norms& a, const ts::change_norms& b) { return a.change == b.change && a.weight == b.weight; }

/// What `make` gives, with one and three threads and tiles of two sizes; all must agree.
struct outcome {
  std::vector<std::byte> bytes;
  ts::change_norms norms;
  ts::merged_counts counts;
  std::string error;
  bool operator==(const outcome& other) const {
    return bytes == other.bytes && error == other.error && same(norms, other.norms) && counts == other.counts;
  }
};
template <class Make>
outcome merged(Make&& make) {
  std::vector<outcome> all;
  for (const unsigned threads : {1u, 3u})
    for (const std::size_t tile : {std::size_t{512}, std::size_t{1} << 20}) {
      const std::shared_ptr<ts::merged_recipe> recipe = make();
      auto bytes = bytes_of({recipe, 0}, runner(threads, tile));
      if (bytes) all.push_back({std::move(*bytes), recipe->norms(), recipe->counts(), {}});
      else all.push_back({{}, {}, {}, bytes.error().message()});
    }
  for (const outcome& other : all) CHECK(other == all[0]);
  return all[0];
}

/// A weight [40, 48] of `type` with a difference that makes the elements `at` what `to` says.
struct patched {
  static constexpr std::size_t rows = 40, cols = 48;
  floats base = random_values<float>(rows * cols, 1), diff = random_values<float>(rows * cols, 2, 0.25f);

  outcome run(ts::dtype stored, ts::dtype to, ts::cast_overflow policy) const {
    return merged([&] {
      return std::make_shared<ts::merged_recipe>(tensor_of({rows, cols}, base, stored).source, std::vector{difference({rows, cols}, diff)}, to, policy, "unet.a.weight");
    });
  }
};

}  // namespace

TEST_CASE("a merged weight is rounded to its type once") {
  const floats base = random_values<float>(24 * 40, 3), up = random_values<float>(24 * 4, 4), down = random_values<float>(4 * 40, 5);
  for (const ts::dtype stored : {ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16, ts::dtype::f64})
    for (const ts::dtype to : {ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16, ts::dtype::f64, ts::dtype::f8_e4m3}) {
      const auto make = [&](ts::dtype type) {
        return merged([&] { return std::make_shared<ts::merged_recipe>(tensor_of({24, 40}, base, stored).source, std::vector{lora(24, 40, up, down)}, type); });
      };
      const outcome plain = make(ts::dtype::f32), rounded = make(to);
      REQUIRE(plain.error.empty());
      std::vector<std::byte> once(rounded.bytes.size());
      ts::convert_elements(ts::dtype::f32, plain.bytes.data(), to, once.data(), 24 * 40);
      CHECK(rounded.bytes == once);
      CHECK(rounded.counts == ts::merged_counts{});
      CHECK(rounded.norms.change == plain.norms.change);
      double change = 0, weight = 0;
      const floats after = as_floats(ts::dtype::f32, plain.bytes);
      std::vector<std::byte> bytes = *ts::materialize(tensor_of({24, 40}, base, stored), {});
      const floats before = as_floats(stored, bytes);
      for (std::size_t i = 0; i < before.size(); ++i) {
        change += std::pow(static_cast<double>(after[i]) - static_cast<double>(before[i]), 2);
        weight += std::pow(static_cast<double>(before[i]), 2);
      }
      CHECK(std::fabs(plain.norms.change - std::sqrt(change)) <= 1e-12 * std::sqrt(change));
      CHECK(std::fabs(plain.norms.weight - std::sqrt(weight)) <= 1e-12 * std::sqrt(weight));
    }
}

TEST_CASE("merges and casts one behind the other round once, together") {
  const floats base = random_values<float>(24 * 40, 3), up = random_values<float>(24 * 4, 4), down = random_values<float>(4 * 40, 5), up2 = random_values<float>(24 * 2, 6),
               down2 = random_values<float>(2 * 40, 7);
  const auto weight = [&] { return tensor_of({24, 40}, base, ts::dtype::f16).source; };
  const outcome together =
      merged([&] { return std::make_shared<ts::merged_recipe>(weight(), std::vector{lora(24, 40, up, down), lora(24, 40, up2, down2)}, ts::dtype::f16); });
  const auto first = std::make_shared<ts::merged_recipe>(weight(), std::vector{lora(24, 40, up, down)}, ts::dtype::f16);
  REQUIRE(first->uncast());
  CHECK(first->uncast() == first->uncast());
  CHECK(first->uncast()->outputs()[0].type == ts::dtype::f32);
  const auto second = std::make_shared<ts::merged_recipe>(first->uncast(), std::vector{lora(24, 40, up2, down2)}, ts::dtype::f16);
  const auto bytes = bytes_of({second, 0}, runner(3, 512));
  REQUIRE(bytes);
  CHECK(*bytes == together.bytes);
  // Both know their own share.
  CHECK(first->norms().change > 0);
  CHECK(second->norms().change > 0);
  const outcome alone = merged([&] { return std::make_shared<ts::merged_recipe>(weight(), std::vector{lora(24, 40, up, down)}, ts::dtype::f16); });
  CHECK(first->norms().change == alone.norms.change);
}

TEST_CASE("LRA-10: finite merged values that do not fit are counted, refused or saturated") {
  patched p;
  p.base[5] = 65000, p.diff[5] = 520;          // 65520: the first value that rounds to infinity
  p.base[6] = 65000, p.diff[6] = 519;          // rounds down to 65504
  p.base[48 * 39 + 47] = -60000, p.diff[48 * 39 + 47] = -60000;
  p.base[48 * 20] = 65504, p.diff[48 * 20] = 1000;
  const outcome refused = p.run(ts::dtype::f32, ts::dtype::f16, ts::cast_overflow::error);
  CHECK(refused.error ==
        "NUM layer 'unet.a.weight': 3 merged values do not fit into f16 (expected at most 65504 in magnitude, found 65520 at [0, 5], the largest is -120000); "
        "lower the strength, write a type with a larger range, or accept it with --overflow saturate");
  const outcome kept = p.run(ts::dtype::f32, ts::dtype::f16, ts::cast_overflow::keep);
  CHECK(kept.error.empty());
  CHECK(kept.counts == ts::merged_counts{3, 0});
  floats values = as_floats(ts::dtype::f16, kept.bytes);
  CHECK((values[5] == infinite && values[6] == 65504 && values[48 * 39 + 47] == -infinite && values[48 * 20] == infinite));
  const outcome saturated = p.run(ts::dtype::f32, ts::dtype::f16, ts::cast_overflow::saturate);
  CHECK(saturated.counts == ts::merged_counts{3, 0});
  values = as_floats(ts::dtype::f16, saturated.bytes);
  CHECK((values[5] == 65504 && values[6] == 65504 && values[48 * 39 + 47] == -65504 && values[48 * 20] == 65504));
  CHECK(p.run(ts::dtype::f32, ts::dtype::bf16, ts::cast_overflow::error).counts == ts::merged_counts{});
  CHECK(kept.norms.change == saturated.norms.change);

  patched one;
  one.base[7] = 65504, one.diff[7] = 65504;
  CHECK(one.run(ts::dtype::f16, ts::dtype::f16, ts::cast_overflow::error).error ==
        "NUM layer 'unet.a.weight': a merged value does not fit into f16 (expected at most 65504 in magnitude, found 131008 at [0, 7]); "
        "lower the strength, write a type with a larger range, or accept it with --overflow saturate");
  CHECK(one.run(ts::dtype::f16, ts::dtype::f8_e4m3, ts::cast_overflow::saturate).counts == ts::merged_counts{1, 0});
  CHECK(as_floats(ts::dtype::f8_e4m3, one.run(ts::dtype::f16, ts::dtype::f8_e4m3, ts::cast_overflow::saturate).bytes)[7] == 448);

  patched wide;  // beyond f32
  wide.base[9] = 3e38f, wide.diff[9] = 3e38f;
  CHECK(wide.run(ts::dtype::f32, ts::dtype::f32, ts::cast_overflow::error).error.find("a merged value does not fit into f32") != std::string::npos);
  CHECK(wide.run(ts::dtype::f32, ts::dtype::f32, ts::cast_overflow::keep).counts == ts::merged_counts{1, 0});
  CHECK(as_floats(ts::dtype::f32, wide.run(ts::dtype::f32, ts::dtype::f32, ts::cast_overflow::saturate).bytes)[9] == 0x1.FFFFFEp127f);
}

TEST_CASE("NaN and infinities of the stored weight are kept and counted") {
  patched p;
  p.base[3] = not_a_number, p.base[60] = infinite, p.base[61] = -infinite;
  for (const ts::dtype to : {ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16})
    for (const ts::cast_overflow policy : {ts::cast_overflow::error, ts::cast_overflow::keep, ts::cast_overflow::saturate}) {
      const outcome out = p.run(ts::dtype::f32, to, policy);
      CHECK(out.error.empty());
      CHECK(out.counts == ts::merged_counts{0, 3});
      CHECK(std::isfinite(out.norms.change));
      CHECK(std::isfinite(out.norms.weight));
      const floats values = as_floats(to, out.bytes);
      CHECK((std::isnan(values[3]) && values[60] == infinite && values[61] == -infinite));
    }
  // DoRA spreads what a row has over the row: its norm is no number.
  floats magnitude(patched::rows, 2.0f);
  const outcome spread = merged([&] {
    ts::weight_change_ptr inner = difference({patched::rows, patched::cols}, p.diff);
    return std::make_shared<ts::merged_recipe>(
        tensor_of({patched::rows, patched::cols}, p.base).source,
        std::vector<ts::weight_change_ptr>{std::make_shared<ts::dora_change>(inner, tensor_of({patched::rows, 1}, magnitude), true, 1, ts::dora_strength::interpolate, 1.0)});
  });
  CHECK(spread.error.empty());
  CHECK(spread.counts.nonfinite >= 48 + 2);
  CHECK(spread.counts.overflowed == 0);
  // Norms of columns need all rows before the first is written.
  const ts::weight_change_ptr difference_of_all = difference({patched::rows, patched::cols}, p.diff);
  const ts::tensor_ref columns = tensor_of({1, patched::cols}, floats(patched::cols, 2.0f));
  const ts::merged_recipe by_columns(tensor_of({patched::rows, patched::cols}, p.base).source,
                                     {std::make_shared<ts::dora_change>(difference_of_all, columns, false, 1, ts::dora_strength::interpolate, 1.0)});
  CHECK(by_columns.readings() == 2);
  CHECK(ts::merged_recipe(tensor_of({patched::rows, patched::cols}, p.base).source, {difference_of_all}).readings() == 1);
}

TEST_CASE("NaN that a merge makes of finite numbers is an error that names the layer") {
  // LoHa: infinity times zero in column 17.
  floats ones(40, 1e30f), first(48, 0.0f), second(48, 1.0f);
  first[17] = 1e30f, second[17] = 0;
  const auto product = [&](const floats& right) { return ts::packed_product(tensor_of({40, 1}, ones), tensor_of({1, 48}, right)); };
  const patched p;
  for (const ts::cast_overflow policy : {ts::cast_overflow::error, ts::cast_overflow::keep, ts::cast_overflow::saturate})
    for (const ts::dtype to : {ts::dtype::f32, ts::dtype::f16}) {
      const outcome out = merged([&] {
        return std::make_shared<ts::merged_recipe>(tensor_of({40, 48}, p.base).source, std::vector<ts::weight_change_ptr>{std::make_shared<ts::hadamard_change>(product(first), product(second), 1.0f)}, to, policy, "unet.a.weight");
      });
      CHECK(out.error ==
            "NUM layer 'unet.a.weight': 40 merged values are not numbers (expected finite values, as those of the weight are, found NaN at [0, 17]); leave "
            "the adapter out or lower its strength: it is damaged, or too strong for this layer");
    }
}

TEST_CASE("factors that are not finite are refused where they are read") {
  floats up = random_values<float>(40 * 2, 1), down = random_values<float>(2 * 48, 2);
  const auto failure_of = [&] {
    const patched p;
    return merged([&] { return std::make_shared<ts::merged_recipe>(tensor_of({40, 48}, p.base).source, std::vector{lora(40, 48, up, down)}); }).error;
  };
  CHECK(failure_of().empty());
  up[3] = not_a_number;
  CHECK(failure_of() == "NUM tensor 't': an adapter holds values that are not finite (expected finite numbers, found NaN at [1, 1]); leave the adapter out: it is damaged");
  up[3] = 0, down[50] = -infinite;
  CHECK(failure_of() == "NUM tensor 't': an adapter holds values that are not finite (expected finite numbers, found infinity at [1, 2]); leave the adapter out: it is damaged");
}

TEST_CASE("consumers may cut a merged weight amid its grain: stacked, sliced and transposed ones keep the bits and the figures") {
  constexpr std::size_t d = 96, cols = 40;
  std::vector<ts::tensor_ref> parts, alone;
  std::vector<std::shared_ptr<ts::merged_recipe>> recipes;
  std::vector<std::byte> expected;
  std::vector<ts::change_norms> norms;
  for (unsigned k = 0; k < 3; ++k) {  // blocks of 32, 48 and 1 rows
    const floats base = random_values<float>(d * cols, 20 + k);
    ts::weight_change_ptr change = lora(d, cols, random_values<float>(d * 3, 30 + k), random_values<float>(3 * cols, 40 + k));
    if (k < 2) {
      const std::size_t b = k == 0 ? 32 : 48;
      change = std::make_shared<ts::rotation_change>(
          ts::rotation_parameters{.blocks = tensor_of({d / b, b, b}, random_values<float>(d * b, 50 + k, 0.1f)), .rescale = {}}, 1.0);
    }
    const auto make = [&] { return std::make_shared<ts::merged_recipe>(tensor_of({d, cols}, base, ts::dtype::f16).source, std::vector{change}, ts::dtype::f16); };
    const outcome single = merged(make);
    REQUIRE(single.error.empty());
    expected.insert(expected.end(), single.bytes.begin(), single.bytes.end());
    norms.push_back(single.norms);
    recipes.push_back(make());
    parts.push_back({recipes.back(), 0});
  }
  const ts::tensor_ref stacked = *ts::stacked_rows(parts);
  for (const unsigned threads : {1u, 3u})
    for (const std::size_t tile : {std::size_t{512}, std::size_t{20} << 10, std::size_t{1} << 20}) {
      const auto bytes = bytes_of(stacked, runner(threads, tile));
      REQUIRE(bytes);
      CHECK(*bytes == expected);
      for (std::size_t k = 0; k < 3; ++k) CHECK(same(norms[k], recipes[k]->norms()));
    }
  for (std::size_t k = 0; k < 3; ++k) {
    const auto slice = ts::sliced_rows(stacked, k * d, d);
    REQUIRE(slice);
    CHECK(slice->source == parts[k].source);  // so that a further merge sees what is there before rounding
    const ts::tensor_ref turned = *ts::transposed(parts[k]);
    const auto bytes = bytes_of(turned, runner(3, 512));
    REQUIRE(bytes);
    for (std::size_t i = 0; i < d; ++i)
      for (std::size_t j = 0; j < cols; ++j) REQUIRE(std::memcmp(&(*bytes)[2 * (j * d + i)], &expected[2 * ((k * d + i) * cols + j)], 2) == 0);
    CHECK(same(norms[k], recipes[k]->norms()));
  }
}

TEST_CASE("one merged weight may stand in several places of a run") {
  const std::size_t rows = 96, cols = 80;
  floats stored(rows * cols), up(rows * 4), down(4 * cols), magnitudes(cols);
  for (floats* values : {&stored, &up, &down, &magnitudes})
    for (std::size_t i = 0; i < values->size(); ++i) (*values)[i] = static_cast<float>(i * 37 % 101) / 101 - 0.4f;
  const auto weight = tensor_of({rows, cols}, stored, ts::dtype::f16);
  const auto by_columns = [&] {
    return std::make_shared<ts::dora_change>(lora(rows, cols, up, down), tensor_of({1, cols}, magnitudes), false, 1, ts::dora_strength::interpolate, 0.5);
  };
  const auto alone = std::make_shared<ts::merged_recipe>(weight.source, std::vector<ts::weight_change_ptr>{by_columns()}, ts::dtype::f16);
  const auto expected = bytes_of({alone, 0}, runner(1, 1 << 20));
  REQUIRE(expected);
  for (int repeat = 0; repeat < 10; ++repeat) {
    const auto merged = std::make_shared<ts::merged_recipe>(weight.source, std::vector<ts::weight_change_ptr>{by_columns()}, ts::dtype::f16);
    std::vector<std::byte> first(rows * cols * 2), second(first.size()), plain(2 * first.size());
    ts::memory_sink a(first), b(second), c(plain);
    const std::vector<ts::placement> all = {{merged, {{&a, 0}}, "a"}, {merged, {{&b, 0}}, "b"}, {merged->uncast(), {{&c, 0}}, "c"}};
    REQUIRE(ts::execute(all, runner(4, 1024)));
    CHECK(first == *expected);
    CHECK(second == *expected);
    std::vector<std::byte> rounded(first.size());
    ts::convert_elements(ts::dtype::f32, plain.data(), ts::dtype::f16, rounded.data(), rows * cols);
    CHECK(rounded == *expected);
    CHECK(same(merged->norms(), alone->norms()));
  }
}

TEST_CASE("cast_floats leaves what has the type, what is kept and what is no float, and keeps ties") {
  ts::catalog weights;
  const ts::tensor_ref tied = tensor_of({4}, {1, 2, 3, 4});
  REQUIRE(weights.add("a.weight", tied, ""));
  REQUIRE(weights.add("b.weight", tied, ""));
  REQUIRE(weights.add("norm.weight", tensor_of({4}, {1, 2, 3, 70000}), ""));
  REQUIRE(weights.add("half", tensor_of({4}, {1, 2, 3, 4}, ts::dtype::f16), ""));
  REQUIRE(weights.add("ids", ts::in_memory({"ids", ts::dtype::i64, {1}}, std::vector<std::byte>(8)), ""));
  const auto merged = std::make_shared<ts::merged_recipe>(tensor_of({4}, {1, 2, 3, 4}).source, std::vector{difference({4}, {1, 1, 1, 1})}, ts::dtype::f16);
  REQUIRE(weights.add("merged", {merged, 0}, ""));
  const ts::tensor_ref half = weights.find("half")->tensor;
  const auto changed = ts::cast_floats(weights, ts::dtype::f16, ts::keep{"*norm*"});
  REQUIRE(changed);
  CHECK(*changed == 2);
  CHECK(weights.find("a.weight")->tensor.source == weights.find("b.weight")->tensor.source);
  CHECK(weights.find("a.weight")->tensor.type() == ts::dtype::f16);
  CHECK(weights.find("norm.weight")->tensor.type() == ts::dtype::f32);
  CHECK(weights.find("half")->tensor.source == half.source);
  CHECK(weights.find("merged")->tensor.source == merged);
  CHECK(weights.find("ids")->tensor.type() == ts::dtype::i64);

  ts::package package;
  package.source = "m";
  package.components.emplace_back().weights = weights;
  const auto typo = ts::cast_floats(package, ts::dtype::f16, ts::keep{"*nrom*"});
  REQUIRE_FALSE(typo);
  CHECK(typo.error().code == ts::errc::usage);
  CHECK(typo.error().what == "the pattern '*nrom*' keeps nothing");
  const auto tally = std::make_shared<ts::cast_tally>();
  const auto all = ts::cast_floats(package, ts::dtype::f16, {}, ts::cast_overflow::keep, tally);
  REQUIRE(all);
  CHECK(*all == 1);
  REQUIRE(ts::materialize(package.components[0].weights.find("norm.weight")->tensor, {}));
  CHECK(tally->overflowed == 1);
}
