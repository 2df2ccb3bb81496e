// SPDX-License-Identifier: MIT
//
// The kernels of blends against their formulas in f64: bounds, exact ends, and sums that do not depend on how spans are cut.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random_values.hpp"
#include "tensorsmith/merge/blend.hpp"
#include "tensorsmith/merge/blend_simd.hpp"

namespace ts = tensorsmith;
using values = std::vector<float>;

namespace {

constexpr double unit = 0x1p-24;
double wide(float x) { return static_cast<double>(x); }
bool same_bits(const values& a, const values& b) { return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0); }

}  // namespace

TEST_CASE("a weighted sum of two to five is within its bound of the formula") {
  for (const std::size_t n : std::initializer_list<std::size_t>{0, 1, 7, 64, 4099})
    for (const double t : {0.1, 0.5, 0.9, 1.0 / 3}) {
      CAPTURE(n, t);
      const values a = random_values<float>(n, 1), b = random_values<float>(n, 2);
      values x = a;
      ts::weighted_sum(x.data(), b.data(), n, static_cast<float>(1 - t), static_cast<float>(t));
      for (std::size_t i = 0; i < n; ++i) {
        const double exact = (1 - t) * wide(a[i]) + t * wide(b[i]), size = std::fabs((1 - t) * wide(a[i])) + std::fabs(t * wide(b[i]));
        CHECK(std::fabs(wide(x[i]) - exact) <= 4 * unit * size);
      }
    }
  const double weights[] = {0.1, 0.2, 0.3, 0.15, 0.25};
  const std::size_t n = 1000;
  values sum = random_values<float>(n, 0);
  std::vector<double> exact(n, 0.0), size(n, 0.0);
  for (unsigned k = 0; k < 5; ++k) {
    const values x = random_values<float>(n, k);
    if (k == 1) ts::weighted_sum(sum.data(), x.data(), n, static_cast<float>(weights[0]), static_cast<float>(weights[1]));
    if (k > 1) ts::add_weighted(sum.data(), x.data(), n, static_cast<float>(weights[k]));
    for (std::size_t i = 0; i < n; ++i) exact[i] += weights[k] * wide(x[i]), size[i] += std::fabs(weights[k] * wide(x[i]));
  }
  for (std::size_t i = 0; i < n; ++i) CHECK(std::fabs(wide(sum[i]) - exact[i]) <= 7 * unit * size[i]);
}

TEST_CASE("add difference is within its bound of the formula") {
  const std::size_t n = 4099;
  const values a = random_values<float>(n, 1), b = random_values<float>(n, 2), c = random_values<float>(n, 3);
  for (const double t : {-1.5, 0.3, 1.0, 2.0}) {
    values x = a;
    ts::add_difference(x.data(), b.data(), c.data(), n, static_cast<float>(t));
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double exact = wide(a[i]) + t * (wide(b[i]) - wide(c[i]));
      wrong += !(std::fabs(wide(x[i]) - exact) <= 4 * unit * (std::fabs(wide(a[i])) + std::fabs(t) * (std::fabs(wide(b[i])) + std::fabs(wide(c[i])))));
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("products and sums are rounded apart, whatever the processor can fuse") {
  // 1 + 2⁻¹² squared is 1 + 2⁻¹¹ + 2⁻²⁴: the last bit is lost when the product rounds.
  const float near_one = 1.0F + 0x1p-12F;
  values x(100, near_one);
  const values y(100, 1.0F);
  ts::weighted_sum(x.data(), y.data(), x.size(), near_one, -1.0F);
  CHECK(x == values(100, 0x1p-11F));
  values z(100, -1.0F);
  ts::add_weighted(z.data(), values(100, near_one).data(), z.size(), near_one);
  CHECK(z == values(100, 0x1p-11F));
  values d(100, -1.0F);
  ts::add_difference(d.data(), values(100, near_one).data(), values(100, 0.0F).data(), d.size(), near_one);
  CHECK(d == values(100, 0x1p-11F));
}

TEST_CASE("ratios 0 and 1 give the bits of a and b, signed zeros, infinities and NaN payloads too") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  float payload = nan;
  const unsigned bits = 0x7FC12345;
  std::memcpy(&payload, &bits, sizeof payload);
  const values a{-0.0F, 1.5F, payload, std::numeric_limits<float>::infinity()}, b{2.0F, -0.0F, -nan, payload};
  values x = a;
  ts::weighted_sum(x.data(), b.data(), 4, 0.0F);
  CHECK(same_bits(x, a));
  ts::weighted_sum(x.data(), b.data(), 4, 1.0F);
  CHECK(same_bits(x, b));
  x = a;
  ts::add_difference(x.data(), b.data(), b.data(), 4, 0.0F);
  CHECK(same_bits(x, a));
}

TEST_CASE("the sums of slerp do not depend on how a stretch is cut, nor on the processor") {
  const std::size_t n = 10'003;
  const values a = random_values<float>(n, 5), b = random_values<float>(n, 6);
  ts::slerp_lanes whole, cut, fast;
  whole.add(a.data(), b.data(), n);
  for (std::size_t at = 0, step = 8; at < n; at += step, step = step * 2 > 1000 ? 8 : step * 2) cut.add(a.data() + at, b.data() + at, std::min(step, n - at));
  ts::best_slerp_lanes()(fast, a.data(), b.data(), n);
  double dot = 0, squares = 0;
  for (std::size_t i = 0; i < n; ++i) dot += wide(a[i]) * wide(b[i]), squares += wide(a[i]) * wide(a[i]);
  for (const ts::slerp_lanes* other : {&cut, &fast}) {
    CHECK(std::memcmp(&whole, other, sizeof whole) == 0);
    CHECK(std::fabs(other->sums().dot - dot) <= 1e-12 * squares);
    CHECK(std::fabs(other->sums().a_square - squares) <= 1e-12 * squares);
  }
}

TEST_CASE("slerp keeps the angle, and is a line where the tensors are nearly parallel or zero") {
  const std::size_t n = 5000;
  const values a = random_values<float>(n, 7), b = random_values<float>(n, 8, 3);
  ts::slerp_sums sums;
  sums.add(a.data(), b.data(), n);
  for (const double t : {0.25, 0.5, 0.8}) {
    const double angle = std::acos(sums.dot / std::sqrt(sums.a_square * sums.b_square));
    const double wa = std::sin((1 - t) * angle) / std::sin(angle), wb = std::sin(t * angle) / std::sin(angle);
    values x = a;
    ts::slerp(x.data(), b.data(), n, {sums, t});
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i)
      wrong += !(std::fabs(wide(x[i]) - (wa * wide(a[i]) + wb * wide(b[i]))) <= 4 * unit * (std::fabs(wa * wide(a[i])) + std::fabs(wb * wide(b[i]))));
    CHECK(wrong == 0);
  }
  const auto factors = [](const values& p, const values& q, double t) {
    ts::slerp_sums s;
    s.add(p.data(), q.data(), p.size());
    return ts::slerp_factors(s, t);
  };
  const auto line = [](ts::slerp_factors f, double t) { return f.a == static_cast<float>(1 - t) && f.b == static_cast<float>(t); };
  CHECK(line(factors({1, 2}, {2, 4}, 0.3), 0.3));        // parallel
  CHECK(line(factors({1, 2}, {-1, -2}, 0.3), 0.3));      // opposite: no arc is shorter than another
  CHECK(line(factors({1, 0}, {1, 0.0316F}, 0.3), 0.3));  // a cosine of 0.9995
  CHECK_FALSE(line(factors({1, 0}, {1, 0.0318F}, 0.3), 0.3));
  CHECK(line(factors({0, 0}, {1, 2}, 0.3), 0.3));
  CHECK(line(factors({0, 0}, {0, 0}, 0.3), 0.3));
  CHECK(line(factors({}, {}, 0.3), 0.3));
}
