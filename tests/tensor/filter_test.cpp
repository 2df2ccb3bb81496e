// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/filter.hpp"

#include "support/catch.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

ts::component part(const std::string& name, const std::vector<std::string>& tensors) {
  ts::component out;
  out.name = name;
  for (const std::string& t : tensors) REQUIRE(out.weights.add(t, ts::in_memory({t, ts::dtype::u8, {1}}, std::vector<std::byte>(1)), "file: " + t));
  return out;
}

ts::package pipeline() {
  ts::package out;
  out.source = "model";
  out.components.push_back(part("unet", {"conv_in.weight", "conv_in.bias", "norm.weight"}));
  out.components.push_back(part("vae", {"conv_in.weight", "quant.weight"}));
  return out;
}

std::vector<std::string> names(const ts::package& in) {
  std::vector<std::string> out;
  for (const ts::component& c : in.components)
    for (const auto& e : c.weights.entries()) out.push_back(ts::qualified_name(c, e.name));
  return out;
}

}  // namespace

TEST_CASE("tensors are selected and dropped by their own names and by those in the package", "[tensor]") {
  ts::package selected = pipeline();
  const auto counts = ts::filter_tensors(selected, {"unet.*", "quant.*"}, {"*.bias"});
  REQUIRE(counts);
  CHECK(counts->kept == 3);
  CHECK(counts->dropped == 2);
  CHECK(names(selected) == std::vector<std::string>{"unet.conv_in.weight", "unet.norm.weight", "vae.quant.weight"});
  CHECK(selected.components[0].ignored == std::vector<std::string>{"conv_in.bias: dropped by the pattern '*.bias'"});
  CHECK(selected.components[1].ignored == std::vector<std::string>{"conv_in.weight: not selected"});

  ts::package dropped = pipeline();
  REQUIRE(ts::filter_tensors(dropped, {}, {"conv_in.*"}));
  CHECK(names(dropped) == std::vector<std::string>{"unet.norm.weight", "vae.quant.weight"});

  ts::package same = pipeline();
  REQUIRE(ts::filter_tensors(same, {}, {}));
  CHECK(names(same) == names(pipeline()));
  CHECK(same.components[0].ignored.empty());
}

TEST_CASE("a pattern that matches nothing is an error that changes nothing", "[tensor]") {
  ts::package in = pipeline();
  const auto typo = ts::filter_tensors(in, {"*"}, {"*.bais"});
  REQUIRE_FALSE(typo);
  CHECK(typo.error().message() == "USE model: the pattern '*.bais' drops nothing (expected a pattern that matches a tensor); list the names with inspect and correct it");
  CHECK(ts::filter_tensors(in, {"none"}, {}).error().what == "the pattern 'none' selects nothing");
  // One that drops what is not selected is no mistake.
  REQUIRE(ts::filter_tensors(in, {"unet.*"}, {"quant.*"}));
  CHECK(in.components[1].ignored == std::vector<std::string>{"conv_in.weight: not selected", "quant.weight: dropped by the pattern 'quant.*'"});
  ts::package all = pipeline();
  CHECK(ts::filter_tensors(all, {"*weight"}, {"*"}).error().message() == "USE model: the patterns leave no tensor (expected a tensor that is selected and not dropped)");
  CHECK(names(all) == names(pipeline()));
}
