// SPDX-License-Identifier: MIT
//
// Configurations of models that are broken, absurd, or contradict the weights.
#include <unistd.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"

namespace fs = std::filesystem;
using faults::refused;

namespace {

/// A small pipeline, and what sd-to-onnx says about it once a configuration is another one.
struct pipeline {
  support::temp_folder work;
  std::string folder = work / "model", unet = folder + "/unet/config.json", index = folder + "/model_index.json", out = work / "out";

  pipeline() {
    const auto run = programs::run("make-tiny-sd", {folder, "--family", "sd1", "--form", "diffusers"});
    INFO(run.err);
    REQUIRE(run.status == 0);
  }
  void refuses(const std::string& code, const std::string& message) const { refused("sd-to-onnx", work.path(), {folder, out}, code, message); }
  void refuses_with(const std::string& path, const std::string& key, const nlohmann::json& value, const std::string& code, const std::string& message) const {
    const std::string good = programs::read_text(path);
    auto config = nlohmann::json::parse(good);
    config[key] = value;
    CAPTURE(key, value.dump());
    programs::write_text(path, config.dump());
    refuses(code, message);
    programs::write_text(path, good);
  }
  programs::outcome convert() const { return programs::run("sd-to-onnx", {folder, out, "--force", "--quiet"}); }
};

}  // namespace

TEST_CASE("CFG-01: text that is no JSON, or too much of it") {
  const pipeline p;
  const std::string good = programs::read_text(p.unet), at = p.unet + ": ";
  const auto refuses = [&](const std::string& text, const std::string& code, const std::string& message) {
    programs::write_text(p.unet, text);
    p.refuses(code, at + message);
    refused("convert-weights", p.work.path(), {p.folder, p.out, "--to", "diffusers"}, code, at + message);
  };
  refuses("", "FMT", "byte offset 0: invalid JSON: unexpected end of input (found the end of the text)");
  refuses("null", "FMT", "/: the configuration is no JSON object (expected an object, found null)");
  refuses("[]", "FMT", "/: the configuration is no JSON object (expected an object, found an array)");
  refuses("\xEF\xBB\xBF" + good, "FMT",
          "byte offset 0: a byte order mark before JSON text (expected '{' or another value); save the file as UTF-8 without it");
  refuses("{/* */}", "FMT", "byte offset 1: invalid JSON: invalid literal (found '/')");
  refuses(R"({"a":1,})", "FMT", "byte offset 7 at '/a': invalid JSON: unexpected '}' (found '}')");
  refuses(R"({"a":NaN})", "FMT", "byte offset 5 at '/a': invalid JSON: invalid literal (found 'N')");
  refuses(R"({"a":1e999})", "FMT", "byte offset 11 at '/a': the number is out of range (expected a number that a double holds)");
  refuses(R"({"a":18446744073709551616})", "FMT",
          "byte offset 26 at '/a': the integer is out of range (expected an integer of 64 bits, found '18446744073709551616')");
  refuses(R"({"a":1,"a":2})", "FMT",
          "byte offset 10 at '/a': the key 'a' appears twice in one object (expected unique keys, found it at byte offsets 4 and 10)");
  std::string place = "'/a";
  for (int i = 0; i < 63; ++i) place += "/0";
  refuses("{\"a\":" + std::string(1'000'000, '['), "LIM",
          "byte offset 69 at " + place + "': JSON is nested too deeply (expected at most 64 levels); raise limits::json_depth (--max-json-depth) if you trust it");
  programs::write_text(p.unet, "{}");
  fs::resize_file(p.unet, 1 << 30);
  p.refuses("LIM", at + "the file is too long (expected at most 16777216 bytes, found 1073741824); raise limits::config_bytes (--max-config) if you trust it");
}

TEST_CASE("CFG-02: sizes that make no sense are refused by their place in the file") {
  const pipeline p;
  const auto refuses = [&](const std::string& key, const nlohmann::json& value, const std::string& message) {
    p.refuses_with(p.unet, key, value, "FMT", "unet/config.json: /" + key + message);
  };
  refuses("cross_attention_dim", 0, ": the value is out of range (expected 1 to 65536, found 0)");
  refuses("cross_attention_dim", -1, ": the value is out of range (expected 1 to 65536, found -1)");
  refuses("cross_attention_dim", 2147483648, ": the value is out of range (expected 1 to 65536, found 2147483648)");
  refuses("cross_attention_dim", "768", ": wrong type (expected an integer, found a string)");
  refuses("cross_attention_dim", 768.5, ": wrong type (expected an integer, found a number)");
  refuses("layers_per_block", 1'000'000'000, ": the value is out of range (expected 1 to 256, found 1000000000)");
  refuses("block_out_channels", nlohmann::json::array(), ": wrong number of entries (expected 1 to 12, found 0)");
  refuses("norm_num_groups", 0, ": the value is out of range (expected 1 to 65536, found 0)");
}

TEST_CASE("CFG-03: a configuration that contradicts the weights") {
  const pipeline p;
  p.refuses_with(p.unet, "block_out_channels", {64, 64, 128}, "MIS",
                 p.folder + ": tensor '" + p.folder + "/unet/diffusion_pytorch_model.safetensors: 'time_embedding.linear_1.weight'': the tensor does not "
                            "have the shape that the configuration of unet gives it (expected [256, 64], found [128, 32]); check that config.json belongs to these weights");
}

TEST_CASE("CFG-04: names of code are text") {
  const pipeline p;
  p.refuses_with(p.unet, "_class_name", "os.system", "UNS",
                 p.folder + ": /_class_name: the architecture of unet is not supported (expected UNet2DConditionModel, found 'os.system')");
  const std::string mark = p.work / "was-run";
  auto config = nlohmann::json::parse(programs::read_text(p.unet));
  config["auto_map"] = {{"AutoModel", "evil.Model"}};
  config["custom_pipeline"] = "evil";
  programs::write_text(p.unet, config.dump());
  programs::write_text(p.folder + "/unet/evil.py", "open('" + mark + "', 'w')\n");
  auto tokenizer = nlohmann::json::parse(programs::read_text(p.folder + "/tokenizer/tokenizer_config.json"));
  tokenizer["chat_template"] = "{{ ''.__class__.__mro__[1].__subclasses__() }}";
  programs::write_text(p.folder + "/tokenizer/tokenizer_config.json", tokenizer.dump());
  const auto run = p.convert();
  INFO(run.err);
  CHECK(run.status == 0);
  CHECK_FALSE(fs::exists(mark));
  CHECK_FALSE(fs::exists(p.out + "/unet/evil.py"));
  CHECK(programs::read_text(p.out + "/tokenizer/tokenizer_config.json") == tokenizer.dump());
}

TEST_CASE("CFG-05: components with odd names and values") {
  const pipeline p;
  p.refuses_with(p.index, "../../x", {"diffusers", "Y"}, "PTH",
                 p.index + ": /../../x: the path '../../x' is refused: it leaves its folder (expected the name of a file in the same folder)");
  p.refuses_with(p.index, "vae", {"diffusers"}, "FMT",
                 p.index + ": /vae: an entry of the index is no pair of names (expected [library, class], found an array of 1)");
  p.refuses_with(p.index, "vae", {3, 4}, "FMT",
                 p.index + ": /vae: an entry of the index is no pair of names (expected [library, class], found an array of 2)");
  p.refuses_with(p.index, "unet", "../../x", "FMT",
                 p.index + ": /unet: an entry of the index is no pair of names (expected [library, class], found a string)");
  auto index = nlohmann::json::parse(programs::read_text(p.index));
  index["safety_checker"] = {nullptr, nullptr};
  programs::write_text(p.index, index.dump());
  CHECK(p.convert().status == 0);
}

TEST_CASE("CFG-07: a configuration that says quantized") {
  const pipeline p;
  p.refuses_with(p.unet, "quantization_config", {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}}, "UNS",
                 p.folder + ": /quantization_config: the configuration of unet says that its weights are quantized (expected no such entry, found an "
                            "object); save the model without quantization");
}

TEST_CASE("CFG-08: very many files, loops of links, names that differ by case") {
  const pipeline p;
  SECTION("loops and case") {
    fs::create_directory_symlink(p.folder, p.folder + "/unet/loop");
    fs::create_symlink("itself", p.folder + "/unet/itself");
    programs::write_text(p.folder + "/unet/CONFIG.JSON", "no JSON");
    programs::write_text(p.folder + "/unet/Diffusion_Pytorch_Model.safetensors", "no weights");
    const auto run = p.convert();
    INFO(run.err);
    CHECK(run.status == 0);
  }
  SECTION("more files than a component has") {
    for (int i = 0; i < 10'000; ++i) REQUIRE(::symlink("config.json", (p.folder + "/unet/" + std::to_string(i)).c_str()) == 0);
    const auto count = std::distance(fs::directory_iterator(p.folder + "/unet"), fs::directory_iterator{});
    p.refuses("LIM", p.folder + "/unet: the folder holds too many files for a component (expected at most 10000, found " + std::to_string(count) + ")");
  }
}
