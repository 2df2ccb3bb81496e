// SPDX-License-Identifier: MIT
//
// Sums of squares: vectors and scalars agree bit for bit, and a row may be cut at multiples of eight.
#include <cstring>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/merge/change_size.hpp"

namespace ts = tensorsmith;

TEST_CASE("the squares of a change are the same for vectors, scalars and any cut") {
  std::vector<float> before(1000), after(1000);
  unsigned state = 1;
  for (std::size_t i = 0; i < before.size(); ++i) {
    for (float* x : {&before[i], &after[i]}) {
      state = state * 1664525u + 1013904223u;
      *x = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    }
  }
  for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{9}, std::size_t{63}, std::size_t{1000}}) {
    ts::change_squares whole, scalar, cut;
    ts::add_change_squares(before.data(), after.data(), n, whole);
    ts::detail::add_change_squares_scalar(before.data(), after.data(), n, scalar);
    for (std::size_t at = 0; at < n; at += 24) ts::add_change_squares(before.data() + at, after.data() + at, n - at < 24 ? n - at : 24, cut);
    CHECK(std::memcmp(&whole, &scalar, sizeof whole) == 0);
    CHECK(std::memcmp(&whole, &cut, sizeof whole) == 0);
  }
  ts::change_squares out;
  const float one[] = {1, 2, 3}, two[] = {2, 2, 5};
  ts::add_change_squares(one, two, 3, out);
  CHECK(ts::change_squares::total(out.change) == 5);
  CHECK(ts::change_squares::total(out.before) == 14);
}
