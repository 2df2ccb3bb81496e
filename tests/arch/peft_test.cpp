// SPDX-License-Identifier: MIT
//
// Adapters that PEFT and diffusers wrote, merged into the tiny pipeline: the same weights as PEFT's own merge. Configurations that are refused.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;

namespace {

std::string adapter_folder(const std::string& name) { return support::data("adapters/" + name).string(); }

ts::package open_pipeline(ts::job& run) {
  auto source = ts::open_weights(support::data("sd1/diffusers").string(), {}, run);
  REQUIRE(source);
  auto model = ts::recognize_stable_diffusion(*source, {}, run);
  INFO((model ? std::string() : model.error().message()));
  REQUIRE(model);
  return std::move(*model);
}

std::vector<float> floats(const ts::tensor_ref& tensor) {
  const auto bytes = ts::materialize(tensor, ts::job{});
  INFO((bytes ? std::string() : bytes.error().message()));
  REQUIRE(bytes);
  std::vector<float> out(tensor.info().elements());
  ts::convert_elements(tensor.type(), bytes->data(), ts::dtype::f32, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}

ts::adapter open(const std::string& path, ts::job& run) {
  auto read = ts::open_adapter(path, run);
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  return std::move(*read);
}

/// Merges an adapter of tests/data/adapters and compares what PEFT made of the same weights.
void check(const std::string& folder, const std::string& file, std::size_t modules) {
  CAPTURE(folder, file);
  ts::job run;
  ts::package model = open_pipeline(run);
  const ts::adapter_request request{.source = open(adapter_folder(folder) + file, run)};
  CHECK(request.source.unknown.empty());
  ts::merge_options options;
  options.strict = true, options.to = ts::dtype::f32;
  const auto account = ts::merge_adapters(model, {&request, 1}, options, run);
  INFO((account ? std::string() : account.error().message()));
  REQUIRE(account);
  CHECK(account->adapters[0].applied == modules);
  CHECK(account->adapters[0].modules.size() == modules);

  const auto expected = ts::open_weights(adapter_folder(folder) + "/expected.safetensors", {}, run);
  REQUIRE(expected);
  CHECK(account->weights.size() == expected->components[0].weights.size());
  for (const ts::catalog_entry& entry : expected->components[0].weights.entries()) {
    CAPTURE(entry.name);
    const std::string component = entry.name.substr(0, entry.name.find('.')), name = entry.name.substr(component.size() + 1);
    const ts::catalog& weights = model.find(component)->weights;
    const ts::catalog_entry* found = weights.find(name);
    if (!found) found = weights.find("text_model." + name);
    REQUIRE(found);
    const std::vector<float> wanted = floats(entry.tensor), merged = floats(found->tensor);
    REQUIRE(merged.size() >= wanted.size());
    double worst = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) worst = std::max(worst, std::fabs(static_cast<double>(wanted[i]) - static_cast<double>(merged[i])));
    CHECK(worst <= 2e-6);  // weights below 4: a few units in the last place, PEFT's and ours
  }
}

/// A small adapter of PEFT with a configuration of the test's own: what opening it says.
std::string opened_with(const std::string& config) {
  support::temp_folder at;
  fs::copy_file(adapter_folder("peft_lora_bias") + "/adapter_model.safetensors", at / "adapter_model.safetensors");
  std::ofstream(at / "adapter_config.json") << config;
  ts::job run;
  const auto read = ts::open_adapter(at.path().string(), run);
  if (!read) {
    std::string message = read.error().message();
    if (const std::size_t i = message.find(at.path().string()); i != std::string::npos) message.erase(i, at.path().string().size());
    return message;
  }
  std::string out = "alpha";
  for (const ts::adapter_layer& layer : read->modules) out += " " + (layer.alpha ? std::to_string(static_cast<int>(*layer.alpha)) : "none") + (layer.rank_stabilised ? " by root" : "");
  for (const ts::note& note : run.notes) out += "; " + note.text;
  return out;
}

}  // namespace

TEST_CASE("PEFT folders: patterns, rank stabilisation, modules saved whole, DoRA, biases, embeddings") {
  check("peft_patterns", "", 4);
  check("peft_dora", "", 2);
  check("peft_lora_bias", "", 1);
  check("peft_bias", "", 1);
  check("peft_embedding", "", 2);
}

TEST_CASE("the configuration beside a PEFT file is found when the file is named") {
  check("peft_patterns", "/adapter_model.safetensors", 4);
  check("peft_dora", "/adapter_model.bin", 2);
}

TEST_CASE("diffusers' file with the scale in its header, in the folder and by name") {
  check("diffusers", "", 10);
  check("diffusers", "/pytorch_lora_weights.safetensors", 10);
}

TEST_CASE("a folder with one PEFT adapter for each component") {
  support::temp_folder at;
  fs::copy(adapter_folder("peft_patterns"), at / "unet");
  fs::copy(adapter_folder("peft_embedding"), at / "text_encoder");
  ts::job run;
  ts::package model = open_pipeline(run);
  const ts::adapter_request request{.source = open(at.path().string(), run)};
  CHECK(request.source.modules.size() == 6);
  CHECK(request.source.what.parts == std::map<std::string, std::size_t>{{"text_encoder", 2}, {"unet", 4}});
  const auto account = ts::merge_adapters(model, {&request, 1}, {.strict = true}, run);
  INFO((account ? std::string() : account.error().message()));
  REQUIRE(account);
  CHECK(account->adapters[0].applied == 6);
  std::vector<std::string> scales;
  for (const ts::adapter_layer& layer : request.source.modules) scales.push_back(layer.name.substr(0, 22) + (layer.alpha ? std::to_string(static_cast<int>(*layer.alpha)) : ""));
  CHECK(std::count_if(scales.begin(), scales.end(), [](const std::string& s) { return s.ends_with("4"); }) == 3);  // to_q by its pattern; the text encoder's two
}

TEST_CASE("modules saved whole: half the strength goes half the way, strength 1 gives the saved bits") {
  for (const double strength : {1.0, 0.5}) {
    ts::job run;
    ts::package model = open_pipeline(run);
    const std::vector<float> before = floats(model.find("unet")->weights.find("conv_out.weight")->tensor);
    const ts::adapter_request request{.source = open(adapter_folder("peft_patterns"), run), .unet = strength};
    const auto account = ts::merge_adapters(model, {&request, 1}, {.to = ts::dtype::f32}, run);
    REQUIRE(account);
    const std::vector<float> saved = floats(request.source.tensors->find("base_model.model.conv_out.weight")->tensor);
    const std::vector<float> after = floats(model.find("unet")->weights.find("conv_out.weight")->tensor);
    REQUIRE(after.size() == saved.size());
    for (std::size_t i = 0; i < after.size(); ++i) {
      if (strength == 1.0) CHECK(after[i] == saved[i]);
      else CHECK(std::fabs(static_cast<double>(after[i]) - (static_cast<double>(before[i]) + static_cast<double>(saved[i])) / 2) <= 1e-7);
    }
  }
}

TEST_CASE("patterns are matched with the plain path of a module, however old its name is") {
  ts::package file;
  file.source = "a.safetensors", file.container = "safetensors";
  ts::catalog& tensors = file.components.emplace_back().weights;
  const auto pair = [&](const std::string& down, const std::string& up) {
    for (const std::string& name : {down, up})
      REQUIRE(tensors.add(name, ts::in_memory({name, ts::dtype::f32, {2, 2}}, std::vector<std::byte>(16)), "a"));
  };
  const std::string block = "down_blocks.0.attentions.0.transformer_blocks.0.";
  pair("unet." + block + "attn2.processor.to_k_lora.down.weight", "unet." + block + "attn2.processor.to_k_lora.up.weight");
  pair("unet.unet." + block + "attn1.processor.to_out_lora.down.weight", "unet.unet." + block + "attn1.processor.to_out_lora.up.weight");
  pair("unet.base_model.model." + block + "attn1.to_v.lora_A.weight", "unet.base_model.model." + block + "attn1.to_v.lora_B.weight");
  pair("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight", "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight");
  file.metadata = {{"lora_adapter_metadata", R"({"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"^down_blocks.0.*attn2.to_k": 3, "attn1.to_out.0": 4,
    "^down_blocks.0.*attn1.to_v": 5}, "text_encoder.r": 2, "text_encoder.lora_alpha": 8, "text_encoder.alpha_pattern": {"self_attn.q_proj": 6}})"}};
  ts::job run;
  const auto read = ts::read_adapter(file, run);
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  std::map<std::string, double> alphas;
  for (const ts::adapter_layer& layer : read->modules) alphas[layer.name.substr(layer.name.rfind("attn"))] = layer.alpha.value_or(0);
  CHECK(alphas == std::map<std::string, double>{{"attn2.processor.to_k", 3}, {"attn1.processor.to_out", 4}, {"attn1.to_v", 5}, {"attn.to_q", 6}});
}

TEST_CASE("configurations: what is understood, what is refused by name") {
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4})") == "alpha 4");
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": true})") == "alpha 4 by root");
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"k_proj": 7, "layers.0.*": 9}})") == "alpha 7");
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"_proj": 7, "layers.0.*": 9}})") == "alpha 9");
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"^layers.0.self_attn.k_proj": 7}})") == "alpha 4");
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"^encoder\\.layers.0.*k_proj$": 7}})") == "alpha 7");
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 8, "lora_alpha": 4})") ==
        "alpha 4; the configuration gives 'base_model.model.encoder.layers.0.self_attn.k_proj' another rank than its tensors, which count");
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 8, "lora_alpha": 4, "rank_pattern": {"k_proj": 2}})") == "alpha 4");

  CHECK(opened_with(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"layers.[0-9].*": 9}})") ==
        "UNS : pattern 'layers.[0-9].*': a pattern for modules uses regular expressions that are not understood (expected paths of modules, '.', '.*', '^' and '$', "
        "found '['); write out the modules that it stands for");
  CHECK(opened_with(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"layers.(0|1).*": 2}})") == "alpha 4");  // ranks come from shapes
  CHECK(opened_with(R"({"peft_type": "LOHA", "r": 2})") == "UNS : key 'peft_type': this kind of PEFT adapter is not supported (expected 'LORA', found 'LOHA')");
  CHECK(opened_with(R"({"peft_type": "LORA", "fan_in_fan_out": true})") ==
        "UNS : key 'fan_in_fan_out': an adapter for weights that are stored transposed is not supported (expected false, as for every layer of Stable Diffusion, found true)");
  CHECK(opened_with(R"({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"})").starts_with(
      "UNS : key 'init_lora_weights': the adapter was trained on weights that its initialisation had changed (expected an adapter for the plain weights, found 'pissa_niter_4'"));
  CHECK(opened_with(R"({"peft_type": "LORA", "trainable_token_indices": [1, 2]})") ==
        "UNS : key 'trainable_token_indices': the adapter uses an extension of LoRA that is not supported (expected none, found 'trainable_token_indices')");
  CHECK(opened_with(R"({"peft_type": "LORA", "lora_alpha": "four"})") ==
        "FMT : key 'lora_alpha': a value of the adapter's configuration has the wrong type (expected a number, found a string)");
  CHECK(opened_with(R"({"peft_type": "LORA", "use_rslora": 1})") ==
        "FMT : key 'use_rslora': a value of the adapter's configuration has the wrong type (expected true or false, found an integer)");
  CHECK(opened_with(R"({"peft_type": "LORA", "use_rslora": true})") ==
        "MIS : key 'use_rslora': the configuration asks for rank stabilisation and names no alpha (expected lora_alpha, found none)");
  CHECK(opened_with(R"({"peft_type": "LORA", "use_dora": true, "lora_alpha": 4})") ==
        "MIS : the configuration says DoRA and the file has no magnitudes (expected lora_magnitude_vector beside the factors, found 1 modules without)");
}

TEST_CASE("patterns for modules match the whole path or its end behind a dot") {
  const auto matches = [](const char* pattern, const char* path) {
    const auto parsed = ts::module_pattern::parse(pattern, "f");
    REQUIRE(parsed);
    return parsed->matches(path);
  };
  CHECK(matches("to_q", "a.attn1.to_q"));
  CHECK(matches("to_q", "to_q"));
  CHECK_FALSE(matches("to_q", "a.add_to_q"));
  CHECK_FALSE(matches("to", "a.to_q"));
  CHECK(matches("attn1.to_q", "a.attn1.to_q"));
  CHECK(matches("attn..to_q", "a.attn1.to_q"));
  CHECK(matches(".*", "anything"));
  CHECK(matches("a.*q", "b.a.x.y.q"));
  CHECK_FALSE(matches("a.*q", "b.a.x.y.q2"));
  CHECK(matches("^a.b", "a.b"));
  CHECK_FALSE(matches("^a.b", "c.a.b"));
  CHECK(matches("a\\.b", "c.a.b"));
  CHECK_FALSE(matches("a\\.b", "c.aXb"));
  CHECK_FALSE(ts::module_pattern::parse("a|b", "f"));
  CHECK_FALSE(ts::module_pattern::parse("a\\d", "f"));
  const std::string slow = std::string(40, 'a');  // no pattern takes more than pattern × path steps for each dot
  std::string stars;
  for (int i = 0; i < 40; ++i) stars += "a.*";
  const auto parsed = ts::module_pattern::parse(stars + "b", "f");
  REQUIRE(parsed);
  CHECK_FALSE(parsed->matches(slow + slow + slow + slow));
}
