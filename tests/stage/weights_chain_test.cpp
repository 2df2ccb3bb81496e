// SPDX-License-Identifier: MIT
//
// Chains from weights to weights: what a program without onnx has.
#include <fstream>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/tensor.hpp"

#ifdef ONNX_ML
#error "the chains of weights must not need onnx"
#endif

namespace ts = tensorsmith;
using namespace ts::tags;

namespace {

std::string why(const auto& chain) { return chain ? std::string() : chain.error().message(); }

/// A checkpoint with training state and tied weights: one storage under two names.
std::string checkpoint(const support::temp_folder& folder) {
  ts::catalog tensors;
  const auto add = [&](const std::string& name, const ts::tensor_ref& t) { REQUIRE(tensors.add(name, t, "test")); };
  const auto values = [](ts::dtype type, ts::shape_type shape) {
    ts::tensor_info info{"v", type, std::move(shape)};
    std::vector<std::byte> bytes(info.bytes());
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i % 60);
    return ts::in_memory(std::move(info), std::move(bytes));
  };
  const ts::tensor_ref embedding = values(ts::dtype::f32, {20, 8});
  add("embed.weight", embedding);
  add("attn.q.weight", values(ts::dtype::f32, {8, 8}));
  add("attn.k.weight", values(ts::dtype::f32, {8, 8}));
  add("attn.norm.gamma", values(ts::dtype::f32, {8}));
  add("model_ema.attnqweight", values(ts::dtype::f32, {8, 8}));
  add("betas", values(ts::dtype::f64, {5}));
  add("position", values(ts::dtype::i64, {5}));
  add("lm_head.weight", embedding);
  const std::string path = folder / "m.ckpt";
  REQUIRE(ts::write_torch(tensors, path, {}, {.nested = "state_dict", .scalars = {{"global_step", ts::json_value(std::int64_t{7})}}}));
  return path;
}

std::vector<std::string> names_of(const ts::package& in) {
  std::vector<std::string> out;
  for (const auto& e : in.components.at(0).weights.entries()) out.push_back(e.name);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

TEST_CASE("a training checkpoint becomes a safetensors file in one chain", "[stage]") {
  const support::temp_folder folder;
  const std::string source = checkpoint(folder);
  const auto written = ts::open<torch_file>(source)
                     | ts::prune(ema | schedule)
                     | ts::rename({ts::rename_pattern("*.gamma", "$1.weight")})
                     | ts::drop({"position"})
                     | ts::dedupe()
                     | ts::fuse_rows({"*.q.weight", "*.k.weight"}, "$1.qk.weight")
                     | ts::cast<bf16>(ts::keep{"*norm*"})
                     | ts::write<safetensors_file>(folder / "m.safetensors", {.verify = true});
  INFO(why(written));
  REQUIRE(written);
  REQUIRE(written->components.size() == 1);
  CHECK(written->components[0].tensors == 3);
  CHECK(written->components[0].dtypes == std::vector<std::pair<std::string, std::uint64_t>>{{"bf16", 2}, {"f32", 1}});
  CHECK(written->total_bytes == std::filesystem::file_size(folder / "m.safetensors"));
  std::vector<std::string> said;
  for (const ts::note& n : written.notes())
    if (n.subject != source) said.push_back(n.subject + ": " + n.text);
  CHECK(said == std::vector<std::string>{"prune: 2 tensors of training are left out", "rename: 1 tensors get other names",
                                         "select: 5 tensors stay, 1 are left out",
                                         "dedupe: 1 tensors are others under a second name and are stored once",
                                         "fuse_rows: 1 tensors are made of 2", "cast: 2 tensors become bf16"});

  const auto back = ts::open<weights_file>(folder / "m.safetensors");
  REQUIRE(back);
  CHECK(names_of(back.value()) == std::vector<std::string>{"attn.norm.weight", "attn.qk.weight", "embed.weight"});
  CHECK(back->metadata == ts::safetensors_metadata{{"format", "pt"}, {"lm_head.weight", "embed.weight"}});
  CHECK(back->components[0].weights.find("attn.qk.weight")->tensor.shape() == ts::shape_type{16, 8});
}

TEST_CASE("a Lightning checkpoint stays one, and tied weights stay shared through a cast", "[stage]") {
  const support::temp_folder folder;
  const auto written = ts::open<torch_file>(checkpoint(folder)) | ts::cast<bf16>() | ts::write<torch_file>(folder / "half.ckpt");
  INFO(why(written));
  REQUIRE(written);
  const auto back = ts::open<torch_file>(folder / "half.ckpt");
  INFO(why(back));
  REQUIRE(back);
  CHECK(back->global_step == 7);
  CHECK(names_of(back.value()).size() == 8);
  const ts::catalog& tensors = back->components[0].weights;
  CHECK(ts::find_tied(tensors).size() == 1);
  CHECK(tensors.find("betas")->tensor.type() == ts::dtype::bf16);
  CHECK(tensors.find("position")->tensor.type() == ts::dtype::i64);
}

TEST_CASE("shards, archives of arrays and folders end a chain, and are opened by content", "[stage]") {
  const support::temp_folder folder;
  const std::string source = checkpoint(folder);
  const auto sharded = ts::open<weights_file>(source) | ts::write<safetensors_file>(folder / "sharded", {.max_shard_bytes = 600, .verify = true});
  INFO(why(sharded));
  REQUIRE(sharded);
  CHECK(sharded->components[0].files.size() == 5);
  CHECK(sharded->components[0].files.back().path == "model.safetensors.index.json");
  std::uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "sharded")) bytes += entry.file_size();
  CHECK(sharded->total_bytes == bytes);

  const auto arrays = ts::open<safetensors_file>(folder / "sharded/model.safetensors.index.json") | ts::select({"attn.*"}) | ts::write<npz_file>(folder / "a.npz");
  INFO(why(arrays));
  REQUIRE(arrays);
  CHECK(arrays->components[0].tensors == 3);
  const auto split = ts::open<npz_file>(folder / "a.npz") | ts::split_rows("attn.q.weight", {"top", "bottom"}, {2, 6});
  INFO(why(split));
  REQUIRE(split);
  CHECK(names_of(split.value()) == std::vector<std::string>{"attn.k.weight", "attn.norm.gamma", "bottom", "top"});
  const auto any = ts::open<weights_file>(folder / "a.npz");
  REQUIRE(any);
  CHECK(any->components[0].weights.size() == 3);
  const auto other = ts::open<gguf_file>(folder / "a.npz");
  REQUIRE_FALSE(other);
  CHECK(other.error().advice == "use open<npz_file>, or open<weights_file> for any of them");

  const auto folders = ts::open<diffusers_folder>(support::data("sd1/diffusers").string()) | ts::cast<f32>() | ts::write<diffusers_folder>(folder / "sd1");
  INFO(why(folders));
  REQUIRE(folders);
  const auto single = ts::open<diffusers_folder>(folder / "sd1") | ts::write<safetensors_file>(folder / "sd1.safetensors");
  INFO(why(single));
  REQUIRE(single);
  const auto joined = ts::open<safetensors_file>(folder / "sd1.safetensors");
  REQUIRE(joined);
  CHECK(joined->components[0].weights.contains("unet.conv_in.weight"));
}

TEST_CASE("a value that does not fit ends a chain, unless it is let pass", "[stage]") {
  const support::temp_folder folder;
  std::vector<std::byte> bytes(8);
  const float values[] = {1.0F, 70000.0F};
  std::memcpy(bytes.data(), values, 8);
  ts::catalog tensors;
  REQUIRE(tensors.add("w", ts::in_memory({"w", ts::dtype::f32, {2}}, bytes), "test"));
  REQUIRE(ts::write_safetensors(tensors, folder / "a.safetensors", {}, {}));
  const auto refused = ts::open<safetensors_file>(folder / "a.safetensors") | ts::cast<f16>() | ts::write<safetensors_file>(folder / "b.safetensors");
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ts::errc::numeric);
  CHECK_FALSE(std::filesystem::exists(folder / "b.safetensors"));
  const auto written = ts::open<safetensors_file>(folder / "a.safetensors")
                     | ts::cast<f16>({}, ts::cast_overflow::saturate)
                     | ts::write<safetensors_file>(folder / "b.safetensors");
  INFO(why(written));
  REQUIRE(written);
}

TEST_CASE("stages refuse what does nothing", "[stage]") {
  const support::temp_folder folder;
  const std::string source = checkpoint(folder);
  const auto refusal = [&](const auto& stage) {
    const auto done = ts::open<torch_file>(source) | stage;
    REQUIRE_FALSE(done);
    return done.error().message();
  };
  CHECK(refusal(ts::select({"unet.*"})) == "USE " + source + ": the pattern 'unet.*' selects nothing (expected a pattern that matches a tensor); list the names with inspect and correct it");
  CHECK(refusal(ts::drop({"*"})).find("the patterns leave no tensor") != std::string::npos);
  CHECK(refusal(ts::rename({ts::rename_prefix("net.", "")})).find("the rule for 'net.' renames nothing") != std::string::npos);
  CHECK(refusal(ts::fuse_rows({"*.a", "*.b"}, "$1")).find("the pattern '*.a' fuses nothing") != std::string::npos);
  CHECK(refusal(ts::split_rows("*.a", {"x", "y"})).find("the pattern '*.a' splits nothing") != std::string::npos);
}
