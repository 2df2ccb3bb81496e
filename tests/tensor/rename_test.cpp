// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/rename.hpp"

#include "support/catch.hpp"
#include "support/names.hpp"
#include "tensorsmith/core/glob.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
using support::names;

namespace {

ts::package file_of(const std::vector<std::string>& tensors) {
  ts::package out;
  out.source = "m.bin";
  ts::component part;
  for (const std::string& t : tensors) REQUIRE(part.weights.add(t, ts::in_memory({t, ts::dtype::u8, {1}}, std::vector<std::byte>(1)), "m.bin: " + t));
  out.components.push_back(std::move(part));
  return out;
}

std::vector<std::string> captures(std::string_view pattern, std::string_view text) {
  const auto found = ts::match_captures(pattern, text);
  if (!found) return {"no match"};
  return {found->begin(), found->end()};
}

}  // namespace

TEST_CASE("wildcards say what they stand for", "[tensor]") {
  CHECK(captures("a.b", "a.b").empty());
  CHECK(captures("a.b", "a.c") == std::vector<std::string>{"no match"});
  CHECK(captures("*.weight", "x.y.weight") == std::vector<std::string>{"x.y"});
  CHECK(captures("*.weight", "weight.weight.weight") == std::vector<std::string>{"weight.weight"});
  CHECK(captures("*.?.*", "a.0.b.1.c") == std::vector<std::string>{"a", "0", "b.1.c"});
  CHECK(captures("*?*", "abc") == std::vector<std::string>{"", "a", "bc"});
  CHECK(captures("blocks.*.attn.*", "blocks.12.attn.to_q") == std::vector<std::string>{"12", "to_q"});
  CHECK(captures("**", "ab") == std::vector<std::string>{"", "ab"});
  CHECK(captures("*", "") == std::vector<std::string>{""});
  CHECK(captures("?", "") == std::vector<std::string>{"no match"});
  CHECK(captures("*a*b", "aab_ab") == std::vector<std::string>{"", "ab_a"});
  // Of the same verdict as glob_match, on all short texts.
  const std::string letters = "ab*?";
  const auto text_of = [&](unsigned n, unsigned base) {
    std::string out;
    for (; n > 0; n /= base + 1)
      if (n % (base + 1) != 0) out += letters[n % (base + 1) - 1];
    return out;
  };
  for (unsigned p = 0; p < 625 * 5; ++p)
    for (unsigned t = 0; t < 243; ++t) {
      const std::string pattern = text_of(p, 4), text = text_of(t, 2);
      const auto found = ts::match_captures(pattern, text);
      if (found.has_value() != ts::glob_match(pattern, text)) FAIL(pattern << " on " << text);
      if (found && *ts::fill_wildcards(pattern, *found) != text) FAIL(pattern << " on " << text);
    }
}

TEST_CASE("the first rule that fits renames a tensor, once", "[tensor]") {
  ts::package in = file_of({"model.a.gamma", "model.a.beta", "model.head", "other.gamma", "step"});
  const auto changed = ts::rename_tensors(in, {ts::rename_exact("model.head", "lm_head"), ts::rename_pattern("model.*.gamma", "$1.weight"),
                                               ts::rename_prefix("model.", ""), ts::rename_pattern("*.gamma", "$1.gamma")});
  REQUIRE(changed);
  CHECK(*changed == 3);
  CHECK(names(in) == std::vector<std::string>{"a.weight", "a.beta", "lm_head", "other.gamma", "step"});
  REQUIRE(in.components[0].weights.find("a.weight"));
  CHECK(in.components[0].weights.find("a.weight")->origin == "m.bin: model.a.gamma");
  CHECK(in.components[0].weights.find("model.head") == nullptr);
  ts::package swapped = file_of({"a.b", "c.d"});
  REQUIRE(ts::rename_tensors(swapped, {ts::rename_pattern("*.?", "$2.$1$$$x")}));
  CHECK(names(swapped) == std::vector<std::string>{"b.a$$x", "d.c$$x"});
}

TEST_CASE("rules that do nothing or too much are refused, and nothing is renamed", "[tensor]") {
  const std::vector<std::string> before = {"a.weight", "b.weight"};
  const auto refusal = [&](const std::vector<ts::rename_rule>& rules) {
    ts::package in = file_of(before);
    const auto done = ts::rename_tensors(in, rules);
    REQUIRE_FALSE(done);
    CHECK(names(in) == before);
    return done.error().message();
  };
  CHECK(refusal({ts::rename_prefix("modle.", "")}) ==
        "USE m.bin: the rule for 'modle.' renames nothing (expected a rule that fits a tensor); list the names with inspect and correct it");
  CHECK(refusal({ts::rename_pattern("*", "$1"), ts::rename_exact("a.weight", "x")}).find("the rule for 'a.weight' renames nothing") != std::string::npos);
  CHECK(refusal({ts::rename_pattern("*.weight", "weight")}) ==
        "MIS m.bin: b.weight: two tensors get the name 'weight' (expected unique names, found also from m.bin: a.weight)");
  CHECK(refusal({ts::rename_exact("a.weight", "b.weight")}).find("two tensors get the name 'b.weight'") != std::string::npos);
  CHECK(refusal({ts::rename_pattern("*.weight", "$2")}) == "USE the new name '$2' asks for a wildcard that '*.weight' lacks (expected $1 to $1)");
  CHECK(refusal({ts::rename_prefix("a.weight", "")}) == "USE m.bin: a rule gives the tensor 'a.weight' an empty name (found 'a.weight' to '')");
}
