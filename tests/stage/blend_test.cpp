// SPDX-License-Identifier: MIT
//
// The stage blend: on files, on folders, on graphs; on files of no known model; what it says and refuses.
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/core/dtype_tags.hpp"
#include "tensorsmith/stage/blend.hpp"
#include "tensorsmith/stage/build.hpp"
#include "tensorsmith/stage/open.hpp"
#include "tensorsmith/stage/readers.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
using namespace ts::tags;

namespace {

std::string why(const auto& chain) { return chain ? std::string() : chain.error().message(); }

using contents = std::map<std::string, std::vector<std::byte>>;
contents contents_of(const ts::catalog& weights) {
  contents out;
  for (const ts::catalog_entry& entry : weights.entries()) {
    auto bytes = ts::materialize(entry.tensor, {});
    INFO((bytes ? std::string() : bytes.error().message()));
    REQUIRE(bytes);
    out[entry.name] = std::move(*bytes);
  }
  return out;
}

/// A package of one file with these f32 tensors of two elements.
ts::chain<ts::package> file_of(const std::string& path, const std::map<std::string, float>& tensors) {
  ts::package out;
  out.source = path;
  ts::component whole;
  for (const auto& [name, value] : tensors) {
    std::vector<std::byte> bytes(8);
    for (std::size_t i = 0; i < 2; ++i) std::memcpy(bytes.data() + 4 * i, &value, 4);
    REQUIRE(whole.weights.add(name, ts::in_memory({name, ts::dtype::f32, {2}}, std::move(bytes)), path + ": '" + name + "'"));
  }
  out.components.push_back(std::move(whole));
  return {std::move(out), std::make_shared<ts::job>()};
}

float first(const ts::package& in, const std::string& name) {
  float out = 0;
  std::memcpy(&out, contents_of(in.components.at(0).weights).at(name).data(), sizeof out);
  return out;
}

const std::string folder = support::data("sd1/diffusers").string(), checkpoint = support::data("sd1/sd1.ckpt").string();

}  // namespace

TEST_CASE("a file stays a file, a folder a folder, and graphs get the same weights", "[stage]") {
  // A file of no model is refused beside a pipeline.
  const auto turned = [] { return ts::open<diffusers_folder>(folder) | ts::blend(file_of("x", {{"none", 1.0F}}), {.allow_missing = true, .allow_extra = true}); };
  const auto nothing = turned();
  REQUIRE_FALSE(nothing);
  CHECK(nothing.error().code != ts::errc::internal);

  const auto account = std::make_shared<ts::blend_account>();
  const auto file = ts::open<torch_file>(checkpoint) | ts::blend(ts::open<diffusers_folder>(folder), {.ratio = 0.25}, account);
  INFO(why(file));
  REQUIRE(file);
  REQUIRE(file->components.size() == 1);
  CHECK(file->components[0].name.empty());
  CHECK(account->blended == account->tensors.size());
  // Both are the same model: a weighted sum with exact products is it again.
  const auto before = ts::open<torch_file>(checkpoint);
  REQUIRE(before);
  CHECK(contents_of(file->components[0].weights) == contents_of(before->components[0].weights));

  const auto graphs = ts::open<diffusers_folder>(folder) | ts::build<sd15>() | ts::blend(ts::open<torch_file>(checkpoint), {.mode = ts::blend_mode::slerp, .ratio = 1}, account);
  INFO(why(graphs));
  REQUIRE(graphs);
  CHECK(account->taken > 300);
  CHECK(account->kept == 0);
  const auto built = ts::open<diffusers_folder>(folder) | ts::build<sd15>();
  REQUIRE(built);
  for (std::size_t k = 0; k < built->components.size(); ++k) {
    const ts::graph &one = built->components[k].model, &other = graphs->components[k].model;
    REQUIRE(one.initializers.size() == other.initializers.size());
    std::size_t replaced = 0, weights = 0;
    for (std::size_t i = 0; i < one.initializers.size(); ++i) {
      const ts::tensor_ref* const was = std::get_if<ts::tensor_ref>(&one.initializers[i].data);
      const ts::tensor_ref* const is = std::get_if<ts::tensor_ref>(&other.initializers[i].data);
      REQUIRE((was == nullptr) == (is == nullptr));
      if (!was) continue;
      ++weights;
      replaced += was->source != is->source;
      CHECK(*ts::materialize(*was, {}) == *ts::materialize(*is, {}));
    }
    CHECK(replaced == weights);
  }
}

TEST_CASE("files of no known model are blended by their own names", "[stage]") {
  const auto sum = file_of("a.pt", {{"w", 1}, {"v", 2}}) | ts::blend(file_of("b.pt", {{"w", 3}, {"v", 4}}), {.ratio = 0.5});
  INFO(why(sum));
  REQUIRE(sum);
  CHECK(first(sum.value(), "w") == 2);
  CHECK(first(sum.value(), "v") == 3);
  CHECK(sum.notes().at(0).text == "no Stable Diffusion model: its tensors are matched by their own names");

  const auto difference = file_of("a.pt", {{"w", 1}}) | ts::blend(file_of("b.pt", {{"w", 3}}), file_of("c.pt", {{"w", 2}}), {.mode = ts::blend_mode::add_difference, .ratio = 2});
  REQUIRE(difference);
  CHECK(first(difference.value(), "w") == 3);

  std::vector<ts::chain<ts::package>> others;
  for (const float x : {2.0F, 4.0F, 8.0F}) others.push_back(file_of("x.pt", {{"w", x}}));
  const auto several = file_of("a.pt", {{"w", 1}}) | ts::blend(std::move(others), {.weights = {0.25, 0.25, 0.25, 0.25}});
  REQUIRE(several);
  CHECK(first(several.value(), "w") == 3.75F);

  const auto blocks = ts::block_weights::from(std::vector<double>(26, 1.0));
  REQUIRE(blocks);
  const auto refused = file_of("a.pt", {{"w", 1}}) | ts::blend(file_of("b.pt", {{"w", 3}}), {.blocks = *blocks});
  CHECK_FALSE(refused);
  const auto missing = file_of("a.pt", {{"w", 1}}) | ts::blend(file_of("b.pt", {{"v", 3}}));
  REQUIRE_FALSE(missing);
  CHECK(missing.error().message() == "MIS b.pt: the model lacks 1 tensor of the base (found without all 1 of ''); pass --allow-missing to keep the base's");
}

TEST_CASE("a model that cannot be opened ends the chain; types are for weights", "[stage]") {
  const auto gone = ts::open<diffusers_folder>(folder) | ts::blend(ts::open<safetensors_file>("nowhere.safetensors"), {.ratio = 0.5});
  REQUIRE_FALSE(gone);
  CHECK(gone.error().code == ts::errc::io);
  ts::package opened = file_of("b.pt", {{"w", 3}}).value();
  const auto direct = file_of("a.pt", {{"w", 1}}) | ts::blend(std::move(opened), {.ratio = 0.5});
  REQUIRE(direct);
  CHECK(first(direct.value(), "w") == 2);
  const auto typed = ts::open<diffusers_folder>(folder) | ts::build<sd15>() | ts::blend(ts::open<torch_file>(checkpoint), {.to = ts::dtype::f32});
  REQUIRE_FALSE(typed);
  CHECK(typed.error().code == ts::errc::usage);
}
