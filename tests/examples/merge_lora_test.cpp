// SPDX-License-Identifier: MIT
//
// merge-lora from end to end: into a folder, a safetensors file and a torch file; the account of every module; refusals.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/run.hpp"
#include "faults/convert.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;
using faults::add_tensor;
using faults::safetensors_parts;
using faults::tensors_of;
using strings = std::vector<std::string>;

const std::string folder_base = TENSORSMITH_TEST_DATA "/sd1/diffusers";

std::string floats(std::size_t n, unsigned seed) {
  std::string out;
  unsigned state = seed * 2654435761u + 1;
  for (std::size_t i = 0; i < n; ++i) {
    state = state * 1664525u + 1013904223u;
    const float x = (static_cast<float>(state >> 8) / 8388608.0F - 1.0F) * 0.1F;
    out.append(reinterpret_cast<const char*>(&x), sizeof x);
  }
  return out;
}

void add_pair(safetensors_parts& file, const std::string& module, std::size_t out, std::size_t in, unsigned seed) {
  add_tensor(file, module + ".lora_up.weight", "F32", {out, 4}, floats(out * 4, seed));
  add_tensor(file, module + ".lora_down.weight", "F32", {4, in}, floats(4 * in, seed + 1));
}

/// The shape of a weight of the base.
std::vector<std::size_t> shape_of(const std::string& part, const std::string& name) {
  const auto header = faults::read_parts(folder_base + "/" + part).header;
  return header[name]["shape"].get<std::vector<std::size_t>>();
}

constexpr const char* query = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
constexpr const char* fc1 = "text_model.encoder.layers.0.mlp.fc1";

std::string underscored(std::string name) {
  for (char& c : name)
    if (c == '.') c = '_';
  return name;
}

/// An adapter for one layer of the UNet and one of the text encoder, and one layer that no model has.
std::string adapter(const support::temp_folder& work, bool stray = false) {
  safetensors_parts file;
  const auto q = shape_of("unet/diffusion_pytorch_model.safetensors", std::string(query) + ".weight");
  const auto f = shape_of("text_encoder/model.safetensors", std::string(fc1) + ".weight");
  add_pair(file, "lora_unet_" + underscored(query), q[0], q[1], 1);
  add_pair(file, "lora_te_" + underscored(fc1), f[0], f[1], 3);
  if (stray) add_pair(file, "lora_unet_mid_block_attentions_7_proj_in", 4, 4, 5);
  faults::write_parts(work / "lora.safetensors", file);
  return work / "lora.safetensors";
}

nlohmann::json merged(strings arguments) {
  CAPTURE(arguments);
  arguments.push_back("--json");
  const outcome run = programs::run("merge-lora", arguments);
  INFO(run.err);
  REQUIRE(run.status == 0);
  return nlohmann::json::parse(run.out);
}

}  // namespace

TEST_CASE("a folder, a checkpoint and a torch file get the same weights, everything else stays") {
  const support::temp_folder work;
  const std::string lora = adapter(work);
  faults::converted({folder_base, work / "base.safetensors", "--to", "checkpoint"});
  faults::converted({work / "base.safetensors", work / "base.pt", "--to", "torch"});
  const auto report = merged({folder_base, work / "folder", "--lora", lora + ":0.8:0.5", "--report", work / "report.json", "--verify-output"});
  CHECK(report["adapters"][0]["applied"] == 2);
  CHECK(report["adapters"][0]["strength"] == 0.8);
  CHECK(report["adapters"][0]["text_encoder_strength"] == 0.5);
  REQUIRE(report["weights"].size() == 2);
  for (const auto& weight : report["weights"]) {
    CHECK(weight["change"].get<double>() > 0.01);
    CHECK(std::fabs(weight["ratio"].get<double>() - weight["change"].get<double>() / weight["weight"].get<double>()) < 1e-12);
  }
  CHECK(nlohmann::json::parse(read_text(work / "report.json"))["weights"] == report["weights"]);

  const auto before = tensors_of(folder_base + "/unet/diffusion_pytorch_model.safetensors");
  auto after = tensors_of(work / "folder/unet/diffusion_pytorch_model.safetensors");
  CHECK(after[std::string(query) + ".weight"] != before.at(std::string(query) + ".weight"));
  after[std::string(query) + ".weight"] = before.at(std::string(query) + ".weight");
  CHECK(after == before);

  CHECK(merged({work / "base.safetensors", work / "one.safetensors", "--lora", lora + ":0.8:0.5"})["form"] == "safetensors");
  CHECK(merged({work / "base.pt", work / "one.pt", "--lora", lora + ":0.8:0.5"})["form"] == "torch");
  faults::converted({work / "folder", work / "folder.safetensors", "--to", "checkpoint"});
  faults::converted({work / "one.pt", work / "torch.safetensors", "--to", "safetensors"});
  const auto one = tensors_of(work / "one.safetensors");
  CHECK(one == tensors_of(work / "folder.safetensors"));
  CHECK(one == tensors_of(work / "torch.safetensors"));
}

TEST_CASE("foreign tensors of a checkpoint stay; unmerged again at minus the strength is close to the base") {
  const support::temp_folder work;
  const std::string lora = adapter(work);
  merged({TENSORSMITH_TEST_DATA "/sd1/sd1.ckpt", work / "out.ckpt", "--lora", lora + ":1"});
  faults::converted({TENSORSMITH_TEST_DATA "/sd1/sd1.ckpt", work / "before.safetensors", "--to", "safetensors"});
  faults::converted({work / "out.ckpt", work / "after.safetensors", "--to", "safetensors"});
  const auto before = tensors_of(work / "before.safetensors"), after = tensors_of(work / "after.safetensors");
  REQUIRE(before.size() == after.size());
  std::size_t changed = 0;
  for (const auto& [name, bytes] : before) {
    REQUIRE(after.count(name));
    changed += after.at(name) != bytes;
  }
  CHECK(changed == 2);
}

TEST_CASE("strength 0 gives the bits of the base; a stray module is listed, or refused with --strict") {
  const support::temp_folder work;
  const std::string lora = adapter(work, true);
  const auto report = merged({folder_base, work / "zero", "--lora", lora + ":0"});
  CHECK(report["adapters"][0]["ignored"] == 2);
  CHECK(report["adapters"][0]["not_found"] == 1);
  CHECK(tensors_of(work / "zero/unet/diffusion_pytorch_model.safetensors") == tensors_of(folder_base + "/unet/diffusion_pytorch_model.safetensors"));
  const outcome strict = programs::run("merge-lora", {folder_base, work / "strict", "--lora", lora + ":1", "--strict"});
  CHECK(strict.status == faults::status_of("MIS"));
  CHECK(strict.err.find("'lora_unet_mid_block_attentions_7_proj_in'") != std::string::npos);
  CHECK_FALSE(fs::exists(work / "strict"));
}

TEST_CASE("what is refused: another family, no adapter, bad options") {
  const support::temp_folder work;
  safetensors_parts sdxl;
  add_pair(sdxl, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 640, 2048, 1);
  faults::write_parts(work / "sdxl.safetensors", sdxl);
  const outcome other = programs::run("merge-lora", {folder_base, work / "out", "--lora", (work / "sdxl.safetensors") + ":1"});
  CHECK(other.status == faults::status_of("MIS"));
  CHECK(other.err.find("the adapter is one for sdxl") != std::string::npos);
  const outcome model = programs::run("merge-lora", {folder_base, work / "out", "--lora", folder_base + "/vae/diffusion_pytorch_model.safetensors:1"});
  CHECK(model.status == faults::status_of("UNS"));
  CHECK(model.err.find("the file is no adapter") != std::string::npos);
  const std::string lora = adapter(work);
  CHECK(programs::run("merge-lora", {folder_base, work / "out", "--lora", lora + ":1", "--block-weights", "1,2,3"}).status == faults::status_of("USE"));
  CHECK(programs::run("merge-lora", {folder_base, work / "out", "--lora", lora + ":1e9"}).status == faults::status_of("USE"));
  CHECK_FALSE(fs::exists(work / "out"));
}

TEST_CASE("block weights act on their blocks alone") {
  const support::temp_folder work;
  const std::string lora = adapter(work);
  std::string list = "0";  // BASE, then IN01 … : the layer lies in the second input block
  for (int i = 1; i < 17; ++i) list += i == 1 ? ",1" : ",0";
  const auto report = merged({folder_base, work / "blocks", "--lora", lora + ":1", "--block-weights", list});
  CHECK(report["adapters"][0]["applied"] == 1);
  CHECK(report["adapters"][0]["ignored"] == 1);
  REQUIRE(report["weights"].size() == 1);
  CHECK(report["weights"][0]["name"] == std::string("unet.") + query + ".weight");
}
