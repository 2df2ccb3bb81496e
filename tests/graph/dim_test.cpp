// SPDX-License-Identifier: MIT
#include "tensorsmith/graph/dim.hpp"

#include "support/catch.hpp"

namespace ts = tensorsmith;
using ts::dim;

TEST_CASE("extents are expressions that compare by value", "[graph][dim]") {
  const dim h(ts::symbol{"height", 8}), w(ts::symbol{"width", 8}), b(ts::symbol{"batch", 1});
  CHECK(h + w - h == w);
  CHECK(h * w == w * h);
  CHECK(h - h == dim(0));
  CHECK((h + dim(1)) * dim(2) == h * dim(2) + dim(2));
  CHECK(dim(6).constant() == 6);
  CHECK(dim().constant() == 0);
  CHECK_FALSE(h.constant());
  CHECK(dim(ts::symbol{"height", 4}) != h);
}

TEST_CASE("division rounds down where the promise about a symbol allows it", "[graph][dim]") {
  const dim h(ts::symbol{"height", 8}), any(ts::symbol{"any", 1});
  CHECK(h.floor_div(8) == *h.floor_div(2)->floor_div(4));
  CHECK((h - dim(1)).floor_div(2) == *h.floor_div(2) - dim(1));
  CHECK_FALSE(any.floor_div(2));
  CHECK_FALSE(h.floor_div(16));
  CHECK(*h.floor_div(8) * dim(8) == h);
  CHECK(dim(7).floor_div(2) == dim(3));
  CHECK(dim(-7).floor_div(2) == dim(-4));
}

TEST_CASE("exact division takes common symbols out", "[graph][dim]") {
  const dim h(ts::symbol{"height", 8}), w(ts::symbol{"width", 8}), b(ts::symbol{"batch", 1});
  CHECK((b * h * w * dim(320)).exact_div(b * dim(320)) == h * w);
  CHECK((b * dim(12)).exact_div(dim(4)) == b * dim(3));
  CHECK((h * w * dim(2)).exact_div(h * w * dim(-2)) == dim(-1));
  CHECK_FALSE((b * dim(12)).exact_div(h));
  CHECK_FALSE(dim(12).exact_div(dim(5)));
  CHECK_FALSE(b.exact_div(dim(0)));
  CHECK_FALSE(b.exact_div(b + dim(1)));
}

TEST_CASE("the text of an extent names the axis", "[graph][dim]") {
  const dim h(ts::symbol{"height", 8}), w(ts::symbol{"width", 8});
  CHECK(dim(77).text() == "77");
  CHECK(dim().text() == "0");
  CHECK(h.text() == "height");
  CHECK(h.floor_div(8)->text() == "height / 8");
  CHECK((h * dim(8)).text() == "height * 8");
  CHECK((*h.floor_div(8) * *w.floor_div(8) * dim(3)).text() == "height * width * 3 / 64");
  CHECK((h * dim(2) + dim(1)).text() == "height * 2 + 1");
  CHECK((h - dim(1)).text() == "height - 1");
  CHECK(ts::to_string(ts::dims{dim(1), h}) == "[1, height]");
}

TEST_CASE("symbols can be given values", "[graph][dim]") {
  const dim h(ts::symbol{"height", 8}), w(ts::symbol{"width", 8});
  const dim tokens = *h.floor_div(8) * w + dim(2);
  CHECK(tokens.evaluate({{"height", 64}, {"width", 8}}) == 66);
  CHECK_FALSE(tokens.evaluate({{"height", 64}}));
  CHECK_FALSE(h.floor_div(8)->evaluate({{"height", 63}}));
}
