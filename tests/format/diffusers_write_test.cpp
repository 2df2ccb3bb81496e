// SPDX-License-Identifier: MIT
#include "tensorsmith/format/diffusers/write.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;

namespace {

std::string read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
ts::json_value parsed(const std::string& text) {
  auto value = ts::parse_json(text, "test");
  REQUIRE(value);
  return std::move(*value);
}

ts::catalog tensors(const std::vector<std::string>& names, std::size_t elements = 4) {
  ts::catalog out;
  float value = 1;
  for (const std::string& name : names) {
    std::vector<std::byte> bytes(4 * elements);
    for (std::size_t i = 0; i < elements; ++i, value += 1) std::memcpy(bytes.data() + 4 * i, &value, 4);
    const auto added = out.add(name, ts::in_memory({name, ts::dtype::f32, {elements}}, std::move(bytes)), "test");
    REQUIRE(added);
  }
  return out;
}

ts::side_file side(const std::string& path, const std::string& text) {
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {path, std::make_shared<ts::memory_source>(path, std::vector<std::byte>(data, data + text.size()))};
}

ts::component part(const std::string& name, const std::string& config, ts::catalog weights) {
  ts::component out;
  out.name = name;
  if (!config.empty()) out.config = parsed(config);
  out.weights = std::move(weights);
  return out;
}

ts::package pipeline() {
  ts::package out;
  out.source = "source";
  out.index = parsed(R"({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
      "text_encoder": ["transformers", "CLIPTextModel"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
      "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "scheduler": ["diffusers", "PNDMScheduler"],
      "tokenizer": ["transformers", "CLIPTokenizer"], "feature_extractor": [null, null], "requires_safety_checker": true})");
  out.components.push_back(part("text_encoder", R"({"architectures": ["CLIPTextModel"], "torch_dtype": "float32"})", tensors({"a", "b"})));
  out.components.push_back(part("unet", R"({"_class_name": "UNet2DConditionModel"})", tensors({"a", "b", "c"})));
  out.components.push_back(part("safety_checker", R"({"model_type": "clip"})", tensors({"concept_embeds"})));
  out.side_files = {side("scheduler/scheduler_config.json", "{ }"), side("tokenizer/vocab.json", "{\"x\": 0}")};
  return out;
}

std::vector<std::string> files_of(const fs::path& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) out.push_back(fs::relative(entry.path(), folder).string());
  std::sort(out.begin(), out.end());
  return out;
}

std::string notes(const ts::job& run) {
  std::string out;
  for (const ts::note& n : run.notes) out += (n.severity == ts::note::level::warning ? "! " : "  ") + n.subject + ": " + n.text + "\n";
  return out;
}

std::string refusal(const ts::package& in, const std::string& path, const ts::diffusers_write_options& options = {}) {
  ts::job run;
  const auto done = ts::write_diffusers_folder(in, path, options, run);
  return done ? "written" : done.error().message();
}

ts::write_report written(const ts::package& in, const std::string& path, const ts::diffusers_write_options& options, ts::job& run) {
  auto done = ts::write_diffusers_folder(in, path, options, run);
  if (!done) FAIL(done.error().message());
  return std::move(*done);
}

}  // namespace

TEST_CASE("a pipeline's folder has the names that diffusers and transformers look for") {
  const support::temp_folder folder;
  ts::job run;
  const auto report = written(pipeline(), folder / "out", {}, run);
  CHECK(files_of(folder / "out") ==
        std::vector<std::string>{"model_index.json", "safety_checker/config.json", "safety_checker/model.safetensors", "scheduler/scheduler_config.json",
                                 "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.json", "unet/config.json",
                                 "unet/diffusion_pytorch_model.safetensors"});
  CHECK(read(folder / "out/scheduler/scheduler_config.json") == "{ }");
  CHECK(read(folder / "out/unet/diffusion_pytorch_model.safetensors").find(R"({"__metadata__":{"format":"pt"})") == 8);
  const auto index = parsed(read(folder / "out/model_index.json"));
  CHECK(ts::write_json(*index.find("vae"), 0) == "[null, null]");  // left out of the package
  CHECK(ts::write_json(*index.find("unet"), 0) == R"(["diffusers", "UNet2DConditionModel"])");
  CHECK(*index.find("requires_safety_checker")->as_bool());
  CHECK(notes(run) == "  vae: the written model_index.json says that there is none\n");
  std::uint64_t bytes = 0;
  for (const std::string& file : files_of(folder / "out")) bytes += fs::file_size(folder.path() / "out" / file);
  CHECK(report.total_bytes == bytes);
  REQUIRE(report.components.size() == 3);
  CHECK(report.components[1].tensors == 3);
  CHECK(report.components[1].parameters == 12);
  CHECK(report.components[1].dtypes == std::vector<std::pair<std::string, std::uint64_t>>{{"f32", 3}});
  // It opens again with the same contents.
  const auto again = ts::open_weights(folder / "out", {}, run);
  REQUIRE(again);
  REQUIRE(again->components.size() == 3);
  for (const ts::component& before : pipeline().components)
    for (const ts::catalog_entry& entry : before.weights.entries()) {
      const ts::catalog_entry* after = again->find(before.name)->weights.find(entry.name);
      REQUIRE(after);
      CHECK(ts::materialize(after->tensor, run).value() == ts::materialize(entry.tensor, run).value());
    }
}

TEST_CASE("variants and shards take the names of current releases") {
  const support::temp_folder folder;
  ts::job run;
  ts::diffusers_write_options options;
  options.variant = "fp16";
  options.max_shard_bytes = 32;
  options.verify = true;
  written(pipeline(), folder / "out", options, run);
  const auto files = files_of(folder / "out");
  for (const char* name : {"unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
                           "unet/diffusion_pytorch_model.safetensors.index.fp16.json", "text_encoder/model.fp16.safetensors"})
    CHECK(std::find(files.begin(), files.end(), name) != files.end());
  const auto again = ts::open_weights(folder / "out", {.variant = "fp16", .select = {}, .prefer = {}}, run);
  REQUIRE(again);
  CHECK(again->find("unet")->weights.size() == 3);
  CHECK(refusal(pipeline(), folder / "x", {.force = false, .verify = false, .max_shard_bytes = 0, .variant = "../x", .dry_run = false}) ==
        "USE a variant cannot be called '../x' (expected letters, digits, '_' and '-')");
  CHECK(refusal(pipeline(), folder / "x", {.force = false, .verify = false, .max_shard_bytes = 0, .variant = "a-of-b", .dry_run = false}).substr(0, 4) == "USE ");
  CHECK_FALSE(fs::exists(folder / "x"));
}

TEST_CASE("the folder of one component has its files at the top") {
  const support::temp_folder folder;
  ts::job run;
  ts::package one;
  one.components.push_back(part("", R"({"model_type": "bert"})", tensors({"a", "b"})));
  written(one, folder / "out", {}, run);
  CHECK(files_of(folder / "out") == std::vector<std::string>{"config.json", "model.safetensors"});
  const auto again = ts::open_weights(folder / "out", {}, run);
  REQUIRE(again);
  CHECK(again->components[0].weights.size() == 2);
  CHECK(again->components[0].config.find("model_type"));
}

TEST_CASE("configurations record the type of the weights that are written") {
  const support::temp_folder folder;
  ts::package in = pipeline();
  ts::catalog half;
  for (const ts::catalog_entry& entry : in.components[0].weights.entries()) {
    const auto added = half.add(entry.name, ts::cast(entry.tensor, ts::dtype::f16).value(), "test");
    REQUIRE(added);
  }
  in.components[0].weights = half;
  ts::job run;
  written(in, folder / "out", {}, run);
  CHECK(*parsed(read(folder / "out/text_encoder/config.json")).find("torch_dtype")->as_string() == "float16");
  CHECK(notes(run).find("  text_encoder: torch_dtype in config.json becomes 'float16', was 'float32'\n") != std::string::npos);
  CHECK(parsed(read(folder / "out/unet/config.json")).find("torch_dtype") == nullptr);
}

TEST_CASE("a missing tokenizer stays in the index, with a warning; unlisted components are said") {
  const support::temp_folder folder;
  ts::package in = pipeline();
  in.side_files.pop_back();
  in.components.push_back(part("controlnet", "{}", tensors({"a"})));
  ts::job run;
  written(in, folder / "out", {}, run);
  CHECK(ts::write_json(*parsed(read(folder / "out/model_index.json")).find("tokenizer"), 0) == R"(["transformers", "CLIPTokenizer"])");
  CHECK(notes(run) ==
        "  vae: the written model_index.json says that there is none\n"
        "! tokenizer: the index lists it, but there are no files of it; put its folder beside the others before loading the pipeline\n"
        "! controlnet: model_index.json does not list this component; it is written, and pipelines do not load it\n");
}

TEST_CASE("nothing is written where a part is missing or something is in the way") {
  const support::temp_folder folder;
  const std::string out = folder / "out";
  ts::package in = pipeline();
  in.index = {};
  CHECK(refusal(in, out) == "MIS source: a pipeline's folder needs an index (expected a model_index.json)");
  in = pipeline();
  in.components.resize(1);
  in.components[0].name.clear();
  in.components[0].config = {};
  CHECK(refusal(in, out) ==
        "MIS source: a folder needs the configuration of its model (expected a config.json, found weights without one); open the file as a Stable Diffusion "
        "model, which derives configurations");
  in = pipeline();
  in.components[1].weights = {};
  CHECK(refusal(in, out) == "MIS unet: there are no tensors to write");
  in = pipeline();
  in.components.clear();
  CHECK(refusal(in, out) == "MIS source: there are no components to write");
  in = pipeline();
  in.components[0].name = "../unet";
  CHECK(refusal(in, out).substr(0, 4) == "PTH ");
  in = pipeline();
  in.components[1].weights = {};
  REQUIRE(in.components[1].weights.add("z", ts::in_memory({"z", ts::dtype::c128, {1}}, std::vector<std::byte>(16)), "test"));
  CHECK(refusal(in, out).find("UNS unet: tensor 'z': safetensors has no element type c128") == 0);
  const std::atomic<bool> stop{true};
  ts::job run;
  run.cancel = &stop;
  const auto cancelled = ts::write_diffusers_folder(pipeline(), out, {}, run);
  REQUIRE_FALSE(cancelled);
  CHECK(cancelled.error().code == ts::errc::cancelled);
  CHECK(fs::is_empty(folder.path()));
  CHECK(refusal(pipeline(), out) == "written");
  CHECK(refusal(pipeline(), out) == "PTH " + out + ": the output folder already exists; pass --force to replace it, or choose another path");
  ts::job quiet;
  const auto source = ts::open_weights(out, {}, quiet);
  REQUIRE(source);
  const auto onto_itself = ts::write_diffusers_folder(*source, out, {.force = true, .verify = false, .max_shard_bytes = 0, .variant = {}, .dry_run = false}, quiet);
  REQUIRE_FALSE(onto_itself);
  CHECK(onto_itself.error().code == ts::errc::denied);
  CHECK(files_of(out).size() == 9);
}

TEST_CASE("a dry run says what would be written and writes nothing") {
  const support::temp_folder folder;
  ts::job run;
  ts::diffusers_write_options options;
  options.dry_run = true;
  options.max_shard_bytes = 32;
  const auto planned = written(pipeline(), folder / "out", options, run);
  CHECK(fs::is_empty(folder.path()));
  options.dry_run = false;
  const auto done = written(pipeline(), folder / "out", options, run);
  CHECK(planned.total_bytes == done.total_bytes);
  CHECK(planned.components[1].files.size() == 4);
}
