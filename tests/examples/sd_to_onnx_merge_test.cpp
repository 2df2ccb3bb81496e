// SPDX-License-Identifier: MIT
//
// sd-to-onnx --lora and --embedding: what is merged on the way is what merging first and converting then gives, byte for byte.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/adapters.hpp"
#include "examples/run.hpp"
#include "faults/convert.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;

void same_folders(const std::string& a, const std::string& b) {
  const auto left = contents(a), right = contents(b);
  CHECK(left.size() == right.size());
  for (const auto& [name, bytes] : left) {
    CAPTURE(name);
    REQUIRE(right.count(name));
    CHECK((right.at(name) == bytes));
  }
}

/// A base whose weights are the f16 roundings of another one's.
std::string half_of(const support::temp_folder& work, const std::string& base) {
  faults::converted({base, work / "half", "--to", "diffusers", "--dtype", "f16"});
  return work / "half";
}

}  // namespace

TEST_CASE("an adapter on the way is merge-lora before, byte for byte, from f32 in both types") {
  const std::string family = GENERATE(as<std::string>{}, "sd1", "sd2", "sdxl", "sdxl-refiner");
  const std::string type = GENERATE(as<std::string>{}, "keep", "f16");
  CAPTURE(family, type);
  const support::temp_folder work;
  const std::string base = made_model(work.path(), family, "diffusers");
  const std::string lora = kohya_adapter(work / "lora.safetensors", base, family) + ":0.7:0.4";
  const auto report = report_of("sd-to-onnx", {base, work / "fused", "--lora", lora, "--dtype", type});
  CHECK(keys_applied(report["merged"]) == report["merged"]["adapters"][0]["keys"]["all"].get<std::size_t>());
  CHECK(report["merged"]["weights"][0]["change"].get<double>() > 0);
  report_of("merge-lora", {base, work / "merged", "--lora", lora});
  report_of("sd-to-onnx", {work / "merged", work / "then", "--dtype", type});
  same_folders(work / "fused", work / "then");
}

TEST_CASE("f16 bases: kept types are the same as merging first; --dtype f32 keeps what merging into f16 rounds away") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers"), half = half_of(work, base);
  const std::string lora = kohya_adapter(work / "lora.safetensors", base, "sd1") + ":0.7";
  report_of("merge-lora", {half, work / "merged", "--lora", lora});
  report_of("sd-to-onnx", {half, work / "keep", "--lora", lora});
  report_of("sd-to-onnx", {work / "merged", work / "keep-then"});
  same_folders(work / "keep", work / "keep-then");

  report_of("sd-to-onnx", {half, work / "wide", "--lora", lora, "--dtype", "f32"});
  report_of("sd-to-onnx", {work / "merged", work / "wide-then", "--dtype", "f32"});
  CHECK((read_text(work / "wide/unet/model.onnx_data") != read_text(work / "wide-then/unet/model.onnx_data")));
  report_of("merge-lora", {half, work / "merged-wide", "--lora", lora, "--dtype", "f32"});
  report_of("sd-to-onnx", {work / "merged-wide", work / "wide-once"});
  CHECK((model_files(work / "wide") == model_files(work / "wide-once")));
}

TEST_CASE("embeddings come before adapters, and both are merging one after the other") {
  const std::string rule = GENERATE(as<std::string>{}, "diffusers", "onnx-web", "kohya");
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers");
  const std::string lora = kohya_adapter(work / "lora.safetensors", base, "sd1") + ":0.7";
  const std::size_t width = shapes_of(base, "text_encoder")["text_model.embeddings.token_embedding.weight"][1];
  const std::string cat = learned_embeds(work / "cat.safetensors", "<cat>", 2, width) + ":tom:0.9";
  const auto report = report_of("sd-to-onnx", {base, work / "fused", "--lora", lora, "--embedding", cat, "--rule", rule});
  std::size_t named = 0;
  for (const auto& token : report["merged"]["tokens"]) named += token["token"] == "tom";
  CHECK(named == 1);
  report_of("merge-embedding", {base, work / "a", "--embedding", cat, "--rule", rule});
  report_of("merge-lora", {work / "a", work / "b", "--lora", lora});
  report_of("sd-to-onnx", {work / "b", work / "then"});
  same_folders(work / "fused", work / "then");
}

TEST_CASE("block weights and several adapters act as in merge-lora; embedded weights are the same numbers") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers");
  const std::string first = kohya_adapter(work / "a.safetensors", base, "sd1", 1) + ":0.7", second = kohya_adapter(work / "b.safetensors", base, "sd1", 500) + ":-0.2:0";
  std::string list = "0.5";
  for (int i = 1; i < 17; ++i) list += i % 2 ? ",1" : ",0.25";
  const strings how = {"--lora", first, "--lora", second, "--block-weights", list};
  report_of("sd-to-onnx", strings{base, work / "fused", "--weights", "embed"} + how);
  report_of("merge-lora", strings{base, work / "merged"} + how);
  report_of("sd-to-onnx", {work / "merged", work / "then", "--weights", "embed"});
  same_folders(work / "fused", work / "then");
}

TEST_CASE("what is refused: weights in place, adapters of another family, f16 overflow without leave") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers");
  const std::string lora = kohya_adapter(work / "lora.safetensors", base, "sd1");
  faults::refused("sd-to-onnx", work.path(), {base, work / "out", "--lora", lora + ":1", "--weights", "in-place"}, "USE",
                  "--weights in-place refers to the bytes of SOURCE, which --lora and --embedding change; drop --weights in-place, or make a merged model with "
                  "merge-lora and convert that one in place");
  safetensors_parts sdxl;
  add_pair(sdxl, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", {640, 2048}, 1);
  faults::write_parts(work / "sdxl.safetensors", sdxl);
  const outcome other = programs::run("sd-to-onnx", {base, work / "out", "--lora", (work / "sdxl.safetensors") + ":1"});
  CHECK(other.status == faults::status_of("MIS"));
  CHECK(other.err.find("the adapter is one for sdxl") != std::string::npos);

  safetensors_parts large;
  const std::string module = "down_blocks.0.resnets.0.conv1";
  const auto shape = shapes_of(base, "unet")[module + ".weight"];
  add_pair(large, "lora_unet_" + underscored(module), shape, 1, 1e9F);
  faults::write_parts(work / "large.safetensors", large);
  const strings many = {"--dtype", "f16", "--lora", (work / "large.safetensors") + ":1"};
  const outcome overflow = programs::run("sd-to-onnx", strings{base, work / "out"} + many);
  CHECK(overflow.status == faults::status_of("NUM"));
  CHECK(overflow.err.find("do not fit into f16") != std::string::npos);
  CHECK(overflow.err.find("--overflow saturate") != std::string::npos);
  CHECK_FALSE(fs::exists(work / "out"));
  const auto report = report_of("sd-to-onnx", strings{base, work / "saturated", "--overflow", "saturate"} + many);
  CHECK(report["merged"]["weights"].size() == 1);
}
