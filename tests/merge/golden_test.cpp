// SPDX-License-Identifier: MIT
//
// Every merge kernel on cases that were worked out by hand.
#include <cmath>
#include <cstring>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/merge/blend.hpp"
#include "tensorsmith/merge/dora.hpp"
#include "tensorsmith/merge/low_rank.hpp"
#include "tensorsmith/merge/lycoris.hpp"
#include "tensorsmith/merge/orthogonal.hpp"
#include "tensorsmith/merge/simd.hpp"

namespace ts = tensorsmith;
using values = std::vector<float>;

namespace {

/// up @ down onto zeros.
values product(const values& up, const values& down, std::size_t r) {
  const std::size_t rows = up.size() / r, cols = down.size() / r;
  values packed(ts::packed_floats(r, cols)), out(rows * cols, 0.0F);
  ts::pack_panels({down.data(), r, cols}, packed.data());
  ts::add_low_rank(ts::arch_tag::scalar{}, {out.data(), rows, cols}, 0, {up.data(), rows, r}, {packed.data(), r, cols}, 1.0F);
  return out;
}

void near(const values& found, const values& expected, double bound = 1e-6) {
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    CAPTURE(i, found[i], expected[i]);
    CHECK(std::fabs(static_cast<double>(found[i]) - static_cast<double>(expected[i])) <= bound * std::max(1.0, std::fabs(static_cast<double>(expected[i]))));
  }
}

/// R of one 2×2 block B at strength m.
values rotation(const values& block, double m) {
  values out(4);
  std::vector<double> work(8);
  ts::oft_rotation({block.data(), 2, 2}, 1.0, m, {out.data(), 2, 2}, work.data());
  return out;
}

values dora(ts::dora_strength rule, float m, float strength_inside) {
  const values w{3, 0, 0, 4}, change{0, 4, 3, 0}, magnitude{10, 5};
  values v = w;
  ts::add_scaled({v.data(), 2, 2}, {change.data(), 2, 2}, strength_inside);
  ts::apply_dora_rows({w.data(), 2, 2}, {v.data(), 2, 2}, magnitude.data(), rule, static_cast<double>(m));
  return v;
}

}  // namespace

TEST_CASE("LoRA: linear, convolution, Tucker") {
  CHECK(product({1, 2}, {3, 4, 5}, 1) == values{3, 4, 5, 6, 8, 10});
  CHECK(product({10, 100}, {1, 2, 3, 4}, 2) == values{310, 420});
  const values core{1, 2, 3, 4, 5, 6, 7, 8}, down{1, 100};
  values combined(4);
  ts::combine_tucker({core.data(), 2, 4}, 2, {down.data(), 2, 1}, {combined.data(), 2, 2});
  CHECK(product({1, 10}, combined, 2) == values{7351, 8462});
}

TEST_CASE("LoHa and LoKr") {
  values out(4, 0.0F);
  const values first = product({1, 2}, {3, 4}, 1), second = product({5, 6}, {7, 8}, 1);
  ts::add_hadamard({out.data(), 2, 2}, {first.data(), 2, 2}, {second.data(), 2, 2}, 1.0F);
  CHECK(out == values{105, 160, 252, 384});

  values kronecker(8, 0.0F);
  const values w1{1, 2}, w2 = product({1, 2}, {3, 4}, 1);
  ts::add_kronecker({kronecker.data(), 2, 4}, 0, {w1.data(), 1, 2}, {w2.data(), 2, 2}, 1.0F);
  CHECK(kronecker == values{3, 4, 6, 8, 6, 8, 12, 16});
}

TEST_CASE("(IA)³ on inputs, also of a convolution, and on outputs") {
  values w{1, 2, 3, 4, 5, 6, 7, 8};
  const values scale{1, -0.5F};
  ts::scale_columns({w.data(), 2, 4}, 0, 2, scale.data(), 0.5F);
  CHECK(w == values{1.5F, 3, 2.25F, 3, 7.5F, 9, 5.25F, 6});
  ts::scale_rows({w.data(), 2, 4}, scale.data(), 1.0F);
  CHECK(w == values{3, 6, 4.5F, 6, 3.75F, 4.5F, 2.625F, 3});
}

TEST_CASE("GLoRA reads the weight before its change") {
  values w{1, 2, 3, 4}, work(1);
  const values a1{1, 2}, a2{3, 4}, b = product({1, 1}, {5, 6}, 1);
  ts::add_glora({w.data(), 2, 2}, 1, {a1.data(), 2, 1}, {a2.data(), 1, 2}, 1.0F, work.data());
  ts::add_scaled({w.data(), 2, 2}, {b.data(), 2, 2}, 1.0F);
  CHECK(w == values{1 + 20, 2 + 26, 3 + 38, 4 + 50});

  values conv{1, 0, 2, 0, 0, 3, 0, 4};  // [2, 2, 1, 2]: the second position of row 0 and the first of row 1 are zero
  ts::add_glora({conv.data(), 2, 4}, 2, {a1.data(), 2, 1}, {a2.data(), 1, 2}, 1.0F, work.data());
  CHECK(conv == values{1 + 15, 0, 2 + 20, 0, 0, 3 + 33, 0, 4 + 44});
}

TEST_CASE("Diag-OFT at full and half strength") {
  const values block{0, 0.5F, 0, 0};
  for (const auto& [m, expected] : {std::pair(1.0, values{-1.8F, -2.0F, 2.6F, 4.0F}), std::pair(0.5, values{-0.4F, 0.0F, 2.8F, 4.0F})}) {
    const values r = rotation(block, m);
    values w{1, 2, 3, 4}, work(2 * ts::panel_cols);
    const values transposed{r[0], r[2], r[1], r[3]};
    ts::rotate_rows({w.data(), 2, 2}, {transposed.data(), 2, 2}, ts::best_low_rank(), work.data());
    near(w, expected);
  }
}

TEST_CASE("the constraint of OFT: what alpha 0 means differs") {
  const values block{0, 0.5F, 0, 0};  // ‖Q‖ = √0.5
  CHECK(ts::oft_scale({block.data(), 2, 2}, ts::oft_constraint::lycoris, 0.0) == 1.0);
  CHECK(ts::oft_scale({block.data(), 2, 2}, ts::oft_constraint::kohya, 0.0) < 2e-8);
  CHECK(std::fabs(ts::oft_scale({block.data(), 2, 2}, ts::oft_constraint::lycoris, 0.35) - 0.35 / std::sqrt(0.5)) < 1e-7);
  CHECK(std::fabs(ts::oft_scale({block.data(), 2, 2}, ts::oft_constraint::kohya, 9.0) - 1.0) < 1e-12);
}

TEST_CASE("BOFT: two levels") {
  const values one_each{.6F, .8F, -.8F, .6F, 1, 0, 0, 1, 1, 0, 0, 1, .6F, .8F, -.8F, .6F};
  values w{1, 2, 3, 4}, work(8 * ts::panel_cols);
  ts::rotate_butterfly({w.data(), 4, 1}, {one_each.data(), 8, 2}, ts::best_low_rank(), work.data());
  near(w, {2.2F, 3.44F, 3.0F, 2.08F});

  const values three{.6F, .8F, -.8F, .6F, .6F, .8F, -.8F, .6F, 1, 0, 0, 1, .6F, .8F, -.8F, .6F};
  w = {1, 2, 3, 4};
  ts::rotate_butterfly({w.data(), 4, 1}, {three.data(), 8, 2}, ts::best_low_rank(), work.data());
  near(w, {2.2F, 0.24F, 5.0F, -0.32F});
}

TEST_CASE("DoRA: three meanings of strength that agree at 1") {
  for (const auto rule : {ts::dora_strength::interpolate, ts::dora_strength::lycoris, ts::dora_strength::peft})
    near(dora(rule, 1.0F, 1.0F), {6, 8, 3, 4});
  near(dora(ts::dora_strength::interpolate, 0.5F, 1.0F), {4.5F, 4, 1.5F, 4});
  near(dora(ts::dora_strength::lycoris, 0.5F, 1.0F), {4.5F, 6, 3, 4});
  near(dora(ts::dora_strength::peft, 0.5F, 0.5F), {8.3205F, 5.5470F, 1.7556F, 4.6816F}, 1e-5);
}

TEST_CASE("DoRA by input columns") {
  const values w{3, 0, 4, 0}, magnitude{10, 7};
  values v = w;
  std::vector<double> squares(2, 0.0);
  ts::add_column_squares({v.data(), 2, 2}, 0, 1, squares.data());
  CHECK(squares == std::vector<double>{25, 0});
  ts::apply_dora_columns({w.data(), 2, 2}, {v.data(), 2, 2}, 0, 1, magnitude.data(), squares.data(), ts::dora_strength::interpolate, 1.0);
  near(v, {6, 0, 8, 0});
}

TEST_CASE("blends") {
  const values a{1, 2}, b{3, -2}, c{1, 1};
  values x = a;
  ts::weighted_sum(x.data(), b.data(), 2, 0.25F);
  CHECK(x == values{1.5F, 1.0F});
  x = a;
  ts::weighted_sum(x.data(), b.data(), 2, 1.0F);
  CHECK(x == b);
  x = a;
  ts::add_difference(x.data(), b.data(), c.data(), 2, 0.5F);
  CHECK(x == values{2.0F, 0.5F});

  values p{1, 0};
  const values q{0, 2};
  ts::slerp_sums sums;
  sums.add(p.data(), q.data(), 2);
  ts::slerp(p.data(), q.data(), 2, {sums, 0.5});
  near(p, {0.70710678F, 1.41421356F});
}
