// SPDX-License-Identifier: MIT
//
// make-tiny-sd and sd-to-onnx from end to end: every family in every form, every layout, the report, the options.
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/run.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;
using strings = std::vector<std::string>;

strings operator+(strings a, const strings& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Makes a model, unless it is there already, and returns its path.
std::string made(const support::temp_folder& work, const std::string& family, const std::string& form, const strings& more = {}) {
  std::string path = work / (family + (form == "diffusers" ? "" : "." + form));
  for (const std::string& m : more) path += m;
  if (fs::exists(path)) return path;
  const outcome run = programs::run("make-tiny-sd", strings{path, "--family", family, "--form", form} + more);
  INFO(run.err);
  REQUIRE(run.status == 0);
  return path;
}

/// Converts with --json and returns the document.
nlohmann::json converted(const strings& arguments) {
  const outcome run = programs::run("sd-to-onnx", arguments + strings{"--json"});
  INFO(run.err << run.out);
  REQUIRE(run.status == 0);
  return nlohmann::json::parse(run.out);
}

const strings families = {"sd1", "sd1-inpaint", "sd2", "sdxl", "sdxl-refiner"};

strings component_folders(const std::string& family) {
  if (family == "sdxl") return {"text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"};
  if (family == "sdxl-refiner") return {"text_encoder_2", "unet", "vae_decoder", "vae_encoder"};
  return {"text_encoder", "unet", "vae_decoder", "vae_encoder"};
}

}  // namespace

TEST_CASE("the three forms of one model become the same bytes") {
  const std::string family = GENERATE(as<std::string>{}, "sd1", "sd1-inpaint", "sd2", "sdxl", "sdxl-refiner");
  CAPTURE(family);
  const support::temp_folder work;
  const std::string folder = made(work, family, "diffusers");
  const auto document = converted({folder, work / "a"});
  const auto expected = contents(work / "a");

  CHECK(document["status"] == "converted");
  CHECK(document["family"] == (family == "sd1-inpaint" ? "sd1" : family));
  CHECK(document["opset"] == 17);
  strings names;
  std::uint64_t bytes = 0, tensors = 0;
  for (const auto& part : document["components"]) {
    names.push_back(part["name"]);
    bytes += part["bytes"].get<std::uint64_t>();
    tensors += part["tensors"].get<std::uint64_t>();
    CHECK(part["nodes"].get<int>() > 0);
    CHECK(part["parameters"].get<std::uint64_t>() * 4 == part["bytes"].get<std::uint64_t>());
  }
  std::sort(names.begin(), names.end());
  CHECK(names == component_folders(family));
  CHECK(document["bytes"] == bytes);
  CHECK(document["tensors"] == tensors);
  CHECK(document["dtypes"]["f32"] == bytes);
  CHECK(document["seconds"].get<double>() > 0);
  CHECK(document["peak_memory"]["resident"].get<std::uint64_t>() > 1000000);
  CHECK(document["warnings"].is_array());
  for (const auto& file : document["files"]) {
    const fs::path path = file["path"].get<std::string>();
    CAPTURE(path);
    CHECK(fs::file_size(path.is_absolute() ? path : fs::path(work / "a") / path) == file["bytes"].get<std::uint64_t>());
  }
  for (const std::string& part : component_folders(family)) {
    CHECK(expected.contains(part + "/model.onnx"));
    CHECK(fs::exists(fs::path(work / "a") / part / "config.json"));
  }
  CHECK(fs::exists(work / "a/model_index.json"));
  CHECK(fs::exists(work / "a/scheduler/scheduler_config.json"));
  CHECK(fs::exists(work / (family == "sdxl-refiner" ? "a/tokenizer_2/vocab.json" : "a/tokenizer/vocab.json")));

  for (const std::string form : {"safetensors", "ckpt"}) {
    CAPTURE(form);
    const auto single = converted({made(work, family, form), work / form, "--tokenizer", folder, "--image-size", "32"});
    CHECK_FALSE(single["evidence"].empty());
    const auto files = contents(work / form);
    for (const auto& [name, content] : expected) {
      CAPTURE(name);
      REQUIRE(files.contains(name));
      CHECK((files.at(name) == content));
    }
    CHECK(files.size() == expected.size());
  }
}

TEST_CASE("threads and tiles do not change a byte") {
  const support::temp_folder work;
  const std::string source = made(work, "sdxl", "ckpt"), folder = made(work, "sdxl", "diffusers");
  std::map<std::string, std::string> expected;
  for (const std::string threads : {"1", "2", "7"})
    for (const std::string tile : {"64K", "4M"}) {
      CAPTURE(threads, tile);
      converted({source, work / "out", "--tokenizer", folder, "--force", "--dtype", "f16", "--threads", threads, "--tile", tile});
      const auto files = contents(work / "out");
      if (expected.empty()) expected = files;
      CHECK((files == expected));
    }
  CHECK(listing(work.path()) == strings{"out", "sdxl", "sdxl.ckpt"});
}

TEST_CASE("the layouts") {
  const support::temp_folder work;
  const std::string source = made(work, "sd1", "diffusers");
  converted({source, work / "diffusers", "--layout", "diffusers"});
  CHECK(fs::exists(work / "diffusers/unet/weights.pb"));
  CHECK_FALSE(fs::exists(work / "diffusers/unet/model.onnx_data"));
  const auto index = nlohmann::json::parse(read_text(work / "diffusers/model_index.json"));
  CHECK(index["_class_name"] == "OnnxStableDiffusionPipeline");
  converted({source, work / "web", "--layout", "onnx-web"});
  CHECK(fs::exists(work / "web/unet/model.onnx"));
  converted({source, work / "embedded", "--weights", "embed"});
  CHECK_FALSE(fs::exists(work / "embedded/unet/model.onnx_data"));
  CHECK(fs::file_size(work / "embedded/unet/model.onnx") > 100000);
}

TEST_CASE("f16 models and f16 interfaces") {
  const support::temp_folder work;
  const std::string wide = made(work, "sd1", "diffusers"), narrow = made(work, "sd1", "diffusers", {"--dtype", "f16"});
  CHECK(converted({wide, work / "a", "--dtype", "f16"})["compute"] == "f16");
  CHECK(converted({narrow, work / "b"})["compute"] == "f16");
  CHECK((model_files(work / "a") == model_files(work / "b")));
  CHECK(converted({narrow, work / "c", "--io", "f16"})["compute"] == "f16");
  CHECK((model_files(work / "c") != model_files(work / "b")));
  CHECK(converted({narrow, work / "d", "--dtype", "f32"})["dtypes"].size() == 1);
}

TEST_CASE("in-place writes graphs only") {
  const support::temp_folder work;
  const std::string source = made(work, "sd2", "diffusers");
  const auto before = contents(source);
  converted({source, source, "--weights", "in-place"});
  const auto after = contents(source);
  for (const auto& [name, bytes] : before) {
    CAPTURE(name);
    CHECK((after.at(name) == bytes));
  }
  CHECK(after.contains("unet/model.onnx"));
  CHECK_FALSE(after.contains("unet/model.onnx_data"));

  const std::string checkpoint = made(work, "sd2", "ckpt");
  const auto document = converted({checkpoint, work / "out", "--weights", "in-place", "--tokenizer", source});
  CHECK(document["warnings"].dump().find("CRC") != std::string::npos);
  CHECK(fs::exists(work / "out/unet/model.onnx"));
}

TEST_CASE("a part of a model") {
  const support::temp_folder work;
  const auto document = converted({made(work, "sd1", "safetensors"), work / "out", "--components", "unet"});
  CHECK(document["components"].size() == 1);
  CHECK(fs::exists(work / "out/unet/model.onnx"));
  CHECK_FALSE(fs::exists(work / "out/vae_decoder"));
}

TEST_CASE("what is printed where") {
  const support::temp_folder work;
  const std::string source = made(work, "sd1", "diffusers");
  SECTION("a plan writes nothing") {
    const auto document = converted({source, work / "out", "--dry-run"});
    CHECK(document["status"] == "planned");
    CHECK_FALSE(fs::exists(work / "out"));
  }
  SECTION("a summary for people") {
    const outcome run = programs::run("sd-to-onnx", {source, work / "out"});
    REQUIRE(run.status == 0);
    for (const char* piece : {"unet: ", "parameters", "peak memory", "sd1", "Decided from the files"})
      CHECK(run.out.find(piece) != std::string::npos);
    CHECK(run.err.find("unet: ") != std::string::npos);
    CHECK(run.err.find('\033') == std::string::npos);
  }
  SECTION("quiet") {
    const outcome run = programs::run("sd-to-onnx", {source, work / "out", "--quiet"});
    CHECK(run.status == 0);
    CHECK(run.out.empty());
    CHECK(run.err.empty());
  }
  SECTION("nobody can read the summary") {
    const outcome run = programs::run("sd-to-onnx", {source, work / "out", "--json"}, {.stdout_path = "/dev/full"});
    CHECK(run.status == 17);
    CHECK(run.err.find("IO standard output") != std::string::npos);
    CHECK(fs::exists(work / "out/unet/model.onnx"));
  }
  SECTION("help") {
    const outcome run = programs::run("sd-to-onnx", {"--help"});
    CHECK(run.status == 0);
    for (const char* option : {"--layout", "--dtype", "--weights", "--opset", "--io", "--components", "--model", "--config", "--vae",
                               "--tokenizer", "--ema", "--image-size", "--prediction-type", "--threads", "--memory", "--dry-run",
                               "--json", "--force", "--quiet"})
      CHECK(run.out.find(option) != std::string::npos);
  }
}

TEST_CASE("options that contradict each other") {
  const support::temp_folder work;
  const std::string source = made(work, "sd1", "diffusers");
  const auto before = contents(work.path());
  const std::vector<std::pair<strings, std::string>> cases = {
      {{source, work / "out", "--weights", "in-place", "--dtype", "f16"}, "in-place"},
      {{source, work / "out", "--io", "f16"}, "--io f16"},
      {{source, work / "out", "--io", "f16", "--dtype", "f32"}, "--io f16"},
      {{source, source}, "OUTPUT is SOURCE"},
      {{source, source, "--force"}, "OUTPUT is SOURCE"},
      {{source, work.path().string(), "--force"}, "inside OUTPUT"},
      {{source, work / "out", "--opset", "13"}, "--opset 13"},
      {{source, work / "out", "--dtype", "f8"}, "--dtype"},
      {{source, work / "out", "--memory", "lots"}, "--memory"},
      {{source, work / "out", "--image-size", "100001"}, "--image-size"},
      {{source, work / "out", "--frobnicate"}, "--frobnicate"},
      {{source}, "OUTPUT"},
  };
  for (const auto& [arguments, piece] : cases) {
    CAPTURE(arguments);
    const outcome run = programs::run("sd-to-onnx", arguments);
    CHECK(run.status == 2);
    CHECK(run.err.starts_with("sd-to-onnx: USE "));
    CHECK(run.err.find(piece) != std::string::npos);
    CHECK(run.out.empty());
    CHECK((contents(work.path()) == before));
  }
  const outcome run = programs::run("sd-to-onnx", {source, source, "--json"});
  const auto document = nlohmann::json::parse(run.out);
  CHECK(document["status"] == "failed");
  CHECK(document["error"]["code"] == "USE");
  CHECK(document["error"]["exit_status"] == run.status);
}

TEST_CASE("made-up models depend on the seed alone") {
  const support::temp_folder work;
  const std::string family = GENERATE(as<std::string>{}, "sd1", "sd2", "sdxl");
  for (const std::string form : {"diffusers", "safetensors", "ckpt"}) {
    CAPTURE(family, form);
    const auto make = [&](const std::string& name, const strings& more) {
      const std::string path = work / (name + "." + form);
      const outcome run = programs::run("make-tiny-sd", strings{path, "--family", family, "--form", form} + more);
      INFO(run.err);
      REQUIRE(run.status == 0);
      return fs::is_directory(path) ? contents(path) : std::map<std::string, std::string>{{"", read_text(path)}};
    };
    const auto first = make("first", {"--threads", "1"});
    CHECK((make("second", {"--threads", "3"}) == first));
    CHECK((make("other", {"--seed", "2"}) != first));
  }
}
