// SPDX-License-Identifier: MIT
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/diffusers/read.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;

namespace {

void write(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

/// A safetensors file of f32 tensors; every element of tensor i is `first + i`.
void write_tensors(const std::string& path, const std::vector<std::pair<std::string, std::string>>& tensors, float first = 1) {
  std::string header = "{", data;
  for (const auto& [name, shape] : tensors) {
    std::size_t count = 1, extent = 0;
    for (const char c : shape + ",")
      if (c == ',') count *= extent, extent = 0;
      else extent = 10 * extent + static_cast<std::size_t>(c - '0');
    const std::size_t begin = data.size();
    for (std::size_t i = 0; i < count; ++i) data.append(reinterpret_cast<const char*>(&first), 4);
    first += 1;
    header += (header.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"F32\",\"shape\":[" + shape + "],\"data_offsets\":[" +
              std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
  }
  header += "}";
  std::string length(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<char>((header.size() >> (8 * i)) & 0xFF);
  write(path, length + header + data);
}

float first_value(const ts::component& part, const std::string& name) {
  ts::job run;
  REQUIRE(part.weights.find(name));
  const auto bytes = ts::materialize(part.weights.find(name)->tensor, run);
  REQUIRE(bytes);
  float value = 0;
  std::memcpy(&value, bytes->data(), 4);
  return value;
}

/// A pipeline of a text encoder, an autoencoder and side files.
void make_pipeline(const support::temp_folder& folder) {
  write(folder / "model_index.json",
        R"({"_class_name": "P", "text_encoder": ["transformers", "CLIPTextModel"], "vae": ["mine", "AutoencoderKL"],
            "safety_checker": ["stable_diffusion", "X"], "feature_extractor": [null, null], "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDIMScheduler"], "requires_safety_checker": true})");
  write(folder / "text_encoder/config.json", R"({"hidden_size": 2})");
  write_tensors(folder / "text_encoder/model.safetensors",
                {{"embeddings.token_embedding.weight", "3,2"}, {"embeddings.position_ids", "1,2"}, {"text_projection.weight", "2,2"}});
  write(folder / "vae/config.json", R"({"latent_channels": 4})");
  write_tensors(folder / "vae/diffusion_pytorch_model.safetensors",
                {{"decoder.mid_block.attentions.0.query.weight", "2,2,1,1"}, {"decoder.mid_block.attentions.0.proj_attn.bias", "2"}});
  write(folder / "scheduler/scheduler_config.json", "{}");
  write(folder / "tokenizer/vocab.json", "{}");
  write(folder / "tokenizer/merges.txt", "a b\n");
  write(folder / "safety_checker/config.json", "{}");
}

struct outcome {
  ts::job run;
  ts::result<ts::package> model = ts::failure{};
};

outcome read(const support::temp_folder& folder, const ts::diffusers_options& options = {}) {
  outcome out;
  out.model = ts::read_diffusers_folder(folder.path().string(), options, out.run);
  return out;
}
std::string message(const support::temp_folder& folder) {
  const auto out = read(folder);
  return out.model ? "accepted" : out.model.error().message();
}
std::string notes(const ts::job& run) {
  std::string out;
  for (const ts::note& n : run.notes) out += (n.severity == ts::note::level::warning ? "! " : "  ") + n.subject + ": " + n.text + "\n";
  return out;
}

}  // namespace

TEST_CASE("a pipeline's folder opens: models, side files, notes on what is left out") {
  const support::temp_folder folder;
  make_pipeline(folder);
  const auto [run, model] = read(folder);
  REQUIRE(model);
  REQUIRE(model->components.size() == 2);
  const ts::component &text = model->components[0], &vae = model->components[1];
  CHECK(text.name == "text_encoder");
  CHECK(text.weights.contains("text_model.embeddings.token_embedding.weight"));
  CHECK(text.weights.contains("text_projection.weight"));
  CHECK(text.ignored == std::vector<std::string>{"embeddings.position_ids: positions are counted, not read"});
  CHECK(*text.config.find("hidden_size")->as_integer() == 2);
  REQUIRE(vae.weights.contains("decoder.mid_block.attentions.0.to_q.weight"));
  CHECK(vae.weights.find("decoder.mid_block.attentions.0.to_q.weight")->tensor.shape() == ts::shape_type{2, 2});
  CHECK(vae.weights.contains("decoder.mid_block.attentions.0.to_out.0.bias"));
  std::vector<std::string> files;
  for (const auto& file : model->side_files) files.push_back(file.path);
  CHECK(files == std::vector<std::string>{"scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json"});
  CHECK(notes(run) ==
        "  safety_checker: left out on purpose: no part of the conversion\n"
        "  text_encoder: weights are read from 'model.safetensors'\n"
        "  vae: weights are read from 'diffusion_pytorch_model.safetensors'\n");
}

TEST_CASE("names of weight files are understood") {
  const auto read_name = [](const std::string& name) {
    ts::weight_file file;
    if (!ts::read_weight_file_name(name, file)) return std::string("no");
    return file.variant + (file.pickle ? "|bin" : "|safe") + (file.sharded ? "|index" : "");
  };
  CHECK(read_name("diffusion_pytorch_model.safetensors") == "|safe");
  CHECK(read_name("diffusion_pytorch_model.fp16.safetensors") == "fp16|safe");
  CHECK(read_name("diffusion_pytorch_model.non_ema.bin") == "non_ema|bin");
  CHECK(read_name("pytorch_model.bin") == "|bin");
  CHECK(read_name("model.fp16.safetensors") == "fp16|safe");
  CHECK(read_name("model.safetensors.index.json") == "|safe|index");
  CHECK(read_name("diffusion_pytorch_model.safetensors.index.fp16.json") == "fp16|safe|index");
  CHECK(read_name("diffusion_pytorch_model.fp16.bin.index.json") == "fp16|bin|index");
  for (const char* name : {"diffusion_pytorch_model-00001-of-00003.safetensors", "diffusion_pytorch_model.fp16-00001-of-00003.safetensors",
                           "flax_model.msgpack", "model.onnx", "openvino_model.bin", "config.json", "tf_model.h5", "diffusion_flax_model.msgpack"})
    CHECK(read_name(name) == "no");
}

TEST_CASE("of several weight files the documented one is read, and it is said") {
  const support::temp_folder folder;
  make_pipeline(folder);
  const std::string at = folder / "vae/";
  const auto value = [&](const ts::diffusers_options& options = {}) {
    auto [run, model] = read(folder, options);
    REQUIRE(model);
    return std::pair(first_value(*model->find("vae"), "x"), notes(run));
  };
  write_tensors(at + "diffusion_pytorch_model.fp16.safetensors", {{"x", "1"}}, 16);
  write_tensors(at + "diffusion_pytorch_model.safetensors", {{"x", "1"}}, 32);
  write_tensors(at + "diffusion_pytorch_model.ema.safetensors", {{"x", "1"}}, 64);
  CHECK(value().first == 32);
  CHECK(value().second.find("weights are read from 'diffusion_pytorch_model.safetensors', not from "
                            "'diffusion_pytorch_model.fp16.safetensors', 'diffusion_pytorch_model.ema.safetensors'") != std::string::npos);
  CHECK(value({.variant = "fp16", .prefer_pickle = false, .components = {}}).first == 16);
  CHECK(value({.variant = "ema", .prefer_pickle = false, .components = {}}).first == 64);
  CHECK(value({.variant = "fp16", .prefer_pickle = false, .components = {}}).second.find("! text_encoder: there is no variant 'fp16'") != std::string::npos);
  std::filesystem::remove(at + "diffusion_pytorch_model.safetensors");
  CHECK(value().first == 16);
}

TEST_CASE("sharded weights are read by their index") {
  const support::temp_folder folder;
  make_pipeline(folder);
  const std::string at = folder / "vae/";
  std::filesystem::remove(at + "diffusion_pytorch_model.safetensors");
  write_tensors(at + "diffusion_pytorch_model-00001-of-00002.safetensors", {{"a", "2"}}, 5);
  CHECK(message(folder) == "MIS " + (folder / "vae") +
                               ": the component 'vae' has no weights (expected diffusion_pytorch_model.safetensors, diffusion_pytorch_model.bin or an "
                               "index of shards, found shards without their index)");
  write(at + "diffusion_pytorch_model.safetensors.index.json",
        R"({"metadata": {"total_size": 12}, "weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors",
            "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}})");
  CHECK(message(folder).substr(0, 3) == "MIS");
  write_tensors(at + "diffusion_pytorch_model-00002-of-00002.safetensors", {{"b", "1"}}, 7);
  const auto [run, model] = read(folder);
  REQUIRE(model);
  CHECK(first_value(*model->find("vae"), "a") == 5);
  CHECK(first_value(*model->find("vae"), "b") == 7);
  write(at + "diffusion_pytorch_model.safetensors.index.json", R"({"weight_map": {"a": "../../secret.safetensors"}})");
  CHECK(message(folder).substr(0, 3) == "PTH");
}

TEST_CASE("missing parts are named with their paths") {
  const support::temp_folder folder;
  CHECK(message(folder) == "MIS " + folder.path().string() + ": the folder is no saved pipeline (expected model_index.json, found a folder without it)");
  make_pipeline(folder);
  std::filesystem::remove(folder / "vae/config.json");
  CHECK(message(folder) == "MIS " + (folder / "vae/config.json") + ": the component 'vae' has no configuration (expected a file, found none)");
  std::filesystem::remove_all(folder / "vae");
  CHECK(message(folder) == "MIS " + (folder / "vae") +
                               ": the component 'vae' is missing (expected a folder with config.json and weights, found no folder); download it, or "
                               "leave it out with --components");
  const auto [run, model] = read(folder, {.variant = {}, .prefer_pickle = false, .components = {"text_encoder"}});
  REQUIRE(model);
  CHECK(notes(run).find("  vae: left out: not among the components asked for") != std::string::npos);
  std::filesystem::remove_all(folder / "tokenizer");
  const auto again = read(folder, {.variant = {}, .prefer_pickle = false, .components = {"text_encoder"}});
  CHECK(notes(again.run).find("! tokenizer: the index lists it, but the folder") != std::string::npos);
}

TEST_CASE("an index that is wrong or leads elsewhere is refused") {
  const support::temp_folder folder;
  const std::string index = folder / "model_index.json";
  write(index, "[]");
  CHECK(message(folder) == "FMT " + index + ": /: the configuration is no JSON object (expected an object, found an array)");
  write(index, R"({"../../x": ["diffusers", "Y"]})");
  CHECK(message(folder).substr(0, 3) == "PTH");
  write(index, R"({"vae": ["diffusers"]})");
  CHECK(message(folder) == "FMT " + index + ": /vae: an entry of the index is no pair of names (expected [library, class], found an array of 1)");
  write(index, R"({"vae": [null, null], "unet": [3, 4]})");
  CHECK(message(folder).substr(0, 3) == "FMT");
  write(index, R"({"vae": [null, null], "auto_map": "os.system"})");
  CHECK(message(folder) == "accepted");
}

TEST_CASE("files that lead out of the folder by a link are refused; those of a hub's cache are not") {
  const support::temp_folder folder;
  make_pipeline(folder);
  const std::string weights = folder / "vae/diffusion_pytorch_model.safetensors";
  std::filesystem::rename(weights, folder / "outside");
  std::filesystem::create_symlink(folder / "outside", weights);
  CHECK(message(folder).substr(0, 3) == "PTH");
  const support::temp_folder cache;
  std::filesystem::create_directories(cache / "models--a/blobs");
  std::filesystem::create_directories(cache / "models--a/snapshots/1/vae");
  std::filesystem::rename(folder / "outside", cache / "models--a/blobs/0123");
  std::filesystem::create_symlink("../../../blobs/0123", cache / "models--a/snapshots/1/vae/diffusion_pytorch_model.safetensors");
  write(cache / "models--a/snapshots/1/vae/config.json", "{}");
  ts::job run;
  const auto vae = ts::read_diffusers_component(cache / "models--a/snapshots/1/vae", "vae", {}, run);
  REQUIRE(vae);
  CHECK(vae->weights.size() == 2);
}
