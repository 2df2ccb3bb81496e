// SPDX-License-Identifier: MIT
#include "tensorsmith/core/glob.hpp"

#include <string>

#include "support/catch.hpp"

using tensorsmith::glob_match;

TEST_CASE("patterns match whole names", "[core]") {
  CHECK(glob_match("*norm*", "mid_block.attentions.0.norm.weight"));
  CHECK(glob_match("*.weight", "conv_in.weight"));
  CHECK_FALSE(glob_match("*.weight", "conv_in.weight_g"));
  CHECK(glob_match("a?c", "abc"));
  CHECK_FALSE(glob_match("a?c", "ac"));
  CHECK(glob_match("**", ""));
  CHECK_FALSE(glob_match("", "a"));
  CHECK(glob_match("*a*b*c", "xxaxxbxxbxc"));
  CHECK_FALSE(glob_match(std::string(30, '*') + "b", std::string(2000, 'a')));
}
