// SPDX-License-Identifier: MIT
//
// inspect: what it says of files and folders of every kind, as text and as JSON, without loading a weight.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
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
using faults::write_parts;
using strings = std::vector<std::string>;

nlohmann::json inspected(strings arguments) {
  CAPTURE(arguments);
  arguments.push_back("--json");
  const outcome run = programs::run("inspect", arguments);
  INFO(run.err);
  REQUIRE(run.status == 0);
  auto document = nlohmann::json::parse(run.out, nullptr, false);
  REQUIRE(document.is_object());
  return document;
}

std::string text_of(strings arguments) {
  const outcome run = programs::run("inspect", arguments);
  INFO(run.err);
  REQUIRE(run.status == 0);
  return run.out;
}

/// A file of tensors without bytes worth looking at.
std::string file_of(const support::temp_folder& work, const std::vector<std::pair<std::string, std::vector<std::size_t>>>& tensors,
                    const nlohmann::json& metadata = nullptr) {
  safetensors_parts file;
  if (!metadata.is_null()) file.header["__metadata__"] = metadata;
  for (const auto& [name, shape] : tensors) {
    std::size_t bytes = 2;
    for (const std::size_t extent : shape) bytes *= extent;
    add_tensor(file, name, "F16", shape, std::string(bytes, '\0'));
  }
  write_parts(work / "file.safetensors", file);
  return work / "file.safetensors";
}

}  // namespace

TEST_CASE("checkpoints and folders of every family are recognised, with the evidence") {
  const support::temp_folder work;
  const std::string family = GENERATE(as<std::string>{}, "sd1", "sd2", "sdxl", "sdxl-refiner");
  for (const std::string form : {"safetensors", "ckpt", "diffusers"}) {
    CAPTURE(family, form);
    const auto d = inspected({made_model(work.path(), family, form)});
    CHECK(d["family"] == family);
    CHECK_FALSE(d["evidence"].empty());
    CHECK(d["container"] == (form == "ckpt" ? "torch" : form == "diffusers" ? "diffusers folder" : "safetensors"));
    CHECK(d["kind"].get<std::string>().starts_with(form == "diffusers" ? "diffusers pipeline StableDiffusion" : "Stable Diffusion checkpoint"));
    CHECK(d["tensor_count"] == d["tensors"].size());
    std::uint64_t bytes = 0;
    for (const auto& tensor : d["tensors"]) {
      REQUIRE(tensor["name"].is_string());
      REQUIRE(tensor["shape"].is_array());
      CHECK((tensor["dtype"] == "F32" || tensor["dtype"] == "I64"));
      CHECK(tensor.contains("component") == (form == "diffusers"));
      bytes += tensor["bytes"].get<std::uint64_t>();
    }
    CHECK(d["bytes"] == bytes);
  }
}

TEST_CASE("a component, a part of a checkpoint, an inpainting model") {
  const support::temp_folder work;
  const std::string folder = made_model(work.path(), "sdxl", "diffusers");
  const auto unet = inspected({folder + "/unet"});
  CHECK(unet["kind"] == "diffusers component UNet2DConditionModel");
  CHECK(unet["family"] == "sdxl");
  CHECK(unet["files"].size() == 2);
  CHECK(inspected({folder + "/text_encoder"})["kind"] == "transformers model clip_text_model");
  CHECK(inspected({folder + "/vae/diffusion_pytorch_model.safetensors"})["kind"] == "autoencoder (VAE) of Stable Diffusion");
  CHECK(inspected({made_model(work.path(), "sd1-inpaint", "ckpt")})["evidence"].dump().find("an inpainting model") != std::string::npos);
}

TEST_CASE("adapters are told by family, algorithm, rank and base") {
  const support::temp_folder work;
  const std::string d = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
  const std::string lora = file_of(work, {{d + ".lora_down.weight", {8, 768}}, {d + ".lora_up.weight", {640, 8}}, {d + ".alpha", {}}},
                                   {{"ss_base_model_version", "sd_v1"}, {"ss_network_dim", "8"}});
  const auto a = inspected({lora});
  CHECK(a["kind"] == "LoRA adapter (kohya names)");
  CHECK(a["family"] == "sd1");
  CHECK(a["adapter"]["family"] == "kohya");
  CHECK(a["adapter"]["algorithms"] == nlohmann::json{{"LoRA", 1}});
  CHECK(a["adapter"]["ranks"] == nlohmann::json{{"8", 1}});
  CHECK(a["adapter"]["alphas"] == 1);
  CHECK(a["metadata"]["ss_network_dim"] == "8");
  CHECK(text_of({lora}).find("Ranks: 8 (1); alpha stored in 1 module") != std::string::npos);
  const auto pair = inspected({file_of(work, {{"clip_l", {2, 768}}, {"clip_g", {2, 1280}}})});
  CHECK(pair["kind"] == "Textual Inversion embedding");
  CHECK(pair["family"] == "sdxl");
  CHECK(pair["adapter"]["embeddings"].size() == 2);
  CHECK(inspected({file_of(work, {{"controlnet_cond_embedding.conv_in.weight", {1}}})})["kind"] == "a ControlNet (diffusers names)");
  CHECK(inspected({file_of(work, {{"nothing.known", {1}}})})["kind"] == "weights of an unknown model");
  CHECK(inspected({lora})["adapter"].is_null());  // replaced by the last file
}

TEST_CASE("what a torch file holds beside tensors is listed, with class names") {
  const auto d = inspected({TENSORSMITH_TEST_DATA "/torch/lightning.ckpt"});
  CHECK(d["container"] == "torch");
  CHECK(d["nested"] == "state_dict");
  CHECK(d["scalars"].contains("global_step"));
  std::string ignored;
  for (const auto& part : d["components"]) ignored += part["ignored"].dump();
  CHECK(ignored.find("optimizer_states") != std::string::npos);
}

TEST_CASE("shards count as one model, and every file is hashed on request") {
  const support::temp_folder work;
  const std::string source = made_model(work.path(), "sd1", "safetensors");
  faults::converted({source, work / "s", "--to", "safetensors", "--shard-size", "3MB"});
  const auto d = inspected({work / "s/model.safetensors.index.json", "--sha256"});
  CHECK(d["files"].size() == listing(work / "s").size());
  CHECK(d["tensors"].size() == inspected({source})["tensors"].size());
  for (const auto& file : d["files"]) CHECK(file["sha256"].get<std::string>().size() == 64);
  const std::string one = file_of(work, {{"w", {1}}});
  const auto sum = inspected({one, "--sha256"})["files"][0]["sha256"].get<std::string>();
  const int tool = std::system(("echo '" + sum + "  " + one + "' | sha256sum --check --status").c_str());
  CHECK(tool == 0);
  CHECK(text_of({one, "--sha256"}).find(sum + "  " + one) != std::string::npos);
}

TEST_CASE("text for people: limits the list, and nothing of a file reaches the terminal raw") {
  const support::temp_folder work;
  const std::string file = file_of(work, {{"a\x1b[31m", {1}}, {"b", {2, 3}}, {"c", {1}}}, {{"k\n", "\xE2\x80\xAE" "evil"}});
  const std::string text = text_of({file, "--limit", "2"});
  CHECK(text.find('\x1b') == std::string::npos);
  CHECK(text.find("\xE2\x80\xAE") == std::string::npos);
  CHECK(text.find("F16    a\\x1b[31m [1]\n  F16    b [2, 3]\n  … 1 more (--limit 0 lists all)\n") != std::string::npos);
  CHECK(text_of({file, "--limit", "0"}).find("F16    c [1]") != std::string::npos);
  CHECK(inspected({file})["tensors"][0]["name"] == "a\x1b[31m");
}

TEST_CASE("a large file is a matter of its header") {
  const support::temp_folder work;
  nlohmann::ordered_json header;
  for (int i = 0; i < 4; ++i) {
    const std::uint64_t size = std::uint64_t{1} << 30;
    header["w" + std::to_string(i)] = {{"dtype", "F32"}, {"shape", {1 << 18, 1 << 10}}, {"data_offsets", {i * size, (i + 1) * size}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  write_text(work / "big.safetensors", std::string(reinterpret_cast<const char*>(&length), 8) + text);
  fs::resize_file(work / "big.safetensors", 8 + length + (std::uint64_t{4} << 30));
  const auto begin = std::chrono::steady_clock::now();
  CHECK(inspected({work / "big.safetensors"})["bytes"] == std::uint64_t{4} << 30);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(2));  // milliseconds, on a machine that is not busy
}

TEST_CASE("what is no weights is refused, as a document too") {
  const support::temp_folder work;
  write_text(work / "text.safetensors", "hello");
  const outcome run = programs::run("inspect", {work / "text.safetensors", "--json"});
  CHECK(run.status == 10);
  CHECK(run.err.starts_with("inspect: FMT "));
  CHECK(nlohmann::json::parse(run.out)["error"]["code"] == "FMT");
  CHECK(programs::run("inspect", {work / "none"}).status == 17);
  CHECK(programs::run("inspect", {}).status == 2);
  CHECK(programs::run("inspect", {work / "text.safetensors", "--frobnicate"}).status == 2);
  const outcome help = programs::run("inspect", {"--help"});
  for (const char* option : {"--json", "--sha256", "--limit", "--variant", "--key", "--quiet", "--max-header"})
    CHECK(help.out.find(option) != std::string::npos);
}
