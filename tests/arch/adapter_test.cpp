// SPDX-License-Identifier: MIT
//
// Adapters taken apart: every tensor is a parameter, part of an embedding, or listed as unknown; files that are something else are refused by what they are.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/adapter.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

using rows = std::vector<std::pair<std::string, ts::shape_type>>;

ts::catalog tensors(const rows& list) {
  ts::catalog out;
  for (const auto& [name, shape] : list)
    REQUIRE(out.add(name, ts::in_memory({name, ts::dtype::f16, shape}, std::vector<std::byte>(2 * ts::element_count(shape))), name));
  return out;
}

const rows lora = {{"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", {2, 8}},
                   {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", {8, 2}},
                   {"lora_unet_mid_block_attentions_0_proj_in.alpha", {}}};

rows operator+(rows a, const rows& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Every tensor once: parameters, tensors of embeddings, unknown ones.
void check_account(const ts::adapter& a) {
  std::vector<std::string> names = a.unknown, all;
  for (const ts::adapter_layer& layer : a.modules)
    for (const auto& [parameter, entry] : layer.parameters) names.push_back(entry->name);
  for (const ts::textual_inversion& one : a.embeddings) names.insert(names.end(), one.tensors.begin(), one.tensors.end());
  for (const ts::catalog_entry& entry : a.tensors->entries()) all.push_back(entry.name);
  std::sort(names.begin(), names.end());
  std::sort(all.begin(), all.end());
  CHECK(names == all);
}

std::string refusal(const rows& list) {
  const auto read = ts::read_adapter(tensors(list), "a.safetensors");
  return read ? "accepted" : read.error().message();
}

std::string opened(const std::string& path) {
  ts::job run;
  const auto read = ts::open_adapter(path, run);
  if (!read) return read.error().message();
  check_account(*read);
  return std::to_string(read->modules.size()) + " modules, " + std::to_string(read->unknown.size()) + " unknown";
}

}  // namespace

TEST_CASE("every tensor of an adapter is accounted for") {
  const auto read = ts::read_adapter(tensors(lora + rows{{"bundle_emb.cat.string_to_param.*", {2, 768}}, {"bundle_emb.dog.clip_l", {1, 768}}, {"bundle_emb.dog.clip_g", {1, 1280}},
                                                         {"lora_unet_mid_block_attentions_0_proj_in.oft_r", {3, 3}}}),
                                     "a.safetensors");
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  check_account(*read);
  CHECK(read->modules.size() == 1);
  CHECK(read->unknown == std::vector<std::string>{"lora_unet_mid_block_attentions_0_proj_in.oft_r"});
  REQUIRE(read->embeddings.size() == 2);
  CHECK(read->embeddings[0].name == "cat");
  CHECK(read->embeddings[0].parts[0].count == 2);
  CHECK(read->embeddings[1].name == "dog");
  CHECK(read->embeddings[1].parts.size() == 2);
  CHECK(read->embeddings[1].parts[1].encoder == "text_encoder_2");
  CHECK(refusal(lora + rows{{"bundle_emb.cat.hidden", {2, 768}}}).starts_with("UNS a.safetensors: tensor 'bundle_emb.cat.hidden': an embedding inside the adapter has a form that is not known"));
}

TEST_CASE("adapters in torch files, plain and inside a state_dict") {
  const support::temp_folder at;
  ts::job run;
  REQUIRE(ts::write_torch(tensors(lora), at / "plain.pt", run));
  REQUIRE(ts::write_torch(tensors(lora), at / "wrapped.ckpt", run, {.nested = "state_dict", .scalars = {{"epoch", 3}}}));
  REQUIRE(ts::write_safetensors(tensors(lora), at / "same.bin", {}, run));  // contents decide, not extensions
  CHECK(opened(at / "plain.pt") == "1 modules, 0 unknown");
  CHECK(opened(at / "wrapped.ckpt") == "1 modules, 0 unknown");
  CHECK(opened(at / "same.bin") == "1 modules, 0 unknown");
}

TEST_CASE("folders: one adapter, or why there is none") {
  const support::temp_folder at;
  ts::job run;
  const std::string folder = at.path().string();
  CHECK(opened(folder) == "MIS " + folder +
                              ": the folder holds no adapter (expected adapter_model.safetensors (with adapter_config.json), pytorch_lora_weights.safetensors, or one of them as .bin, "
                              "found neither); pass the file itself");
  REQUIRE(ts::write_safetensors(tensors(lora), at / "pytorch_lora_weights.safetensors", {}, run));
  CHECK(opened(folder) == "1 modules, 0 unknown");
  std::ofstream(at / "adapter_config.json") << "{";
  CHECK(opened(folder) == "1 modules, 0 unknown");  // not this file's configuration
  REQUIRE(ts::write_safetensors(tensors(lora), at / "adapter_model.safetensors", {}, run));
  CHECK(opened(folder).starts_with("FMT "));
  CHECK(opened(at / "adapter_model.safetensors").starts_with("FMT "));
}

TEST_CASE("a companion of cloneofsimo's list that is none") {
  const support::temp_folder at;
  std::filesystem::copy_file(support::data("adapters/cloneofsimo/cat.pt"), at / "cat.pt");
  ts::job run;
  REQUIRE(ts::write_torch(tensors(lora), at / "cat.text_encoder.pt", run));
  CHECK(opened(at / "cat.pt") ==
        "MIS " + (at / "cat.text_encoder.pt") + ": the file beside the adapter is no list of pairs (expected the text encoder's half of 'cat.pt', found 3 other tensors)");
}

TEST_CASE("what is no adapter of the LoRA family is refused by what it is") {
  const std::string no = "UNS a.safetensors: ", expected = "(expected a LoRA, LoHa, LoKr, (IA)3, GLoRA, OFT or DoRA adapter, found ";
  CHECK(refusal({{"model.diffusion_model.input_blocks.0.0.weight", {8, 4, 3, 3}}}) ==
        no + "tensor 'model.diffusion_model.input_blocks.0.0.weight': the file is no adapter " + expected + "a whole checkpoint); look at it with inspect");
  CHECK(refusal({{"down_blocks.0.resnets.0.conv1.weight", {8, 8, 3, 3}}}) ==
        no + "tensor 'down_blocks.0.resnets.0.conv1.weight': the file is no adapter " + expected + "the weights of a UNet); look at it with inspect");
  CHECK(refusal({{"lora_controlnet", {1}}, {"input_blocks.1.0.in_layers.2.up", {8, 4}}, {"input_blocks.1.0.in_layers.2.down", {4, 8}}}) ==
        no + "tensor 'lora_controlnet': the file is no adapter " + expected + "a Control-LoRA); look at it with inspect");
  CHECK(refusal({{"a", {2}}, {"b", {2}}}) == no + "the file is no adapter " + expected + "2 other tensors); look at it with inspect");
  CHECK(refusal({{"emb_params", {2, 768}}}) ==
        no + "this kind of adapter cannot be merged into weights here (expected an adapter with the names of its modules, found Textual Inversion); pass it as an embedding");
  CHECK(refusal({{"<768>.0.linear.0.weight", {768, 768}}}) ==
        no + "this kind of adapter cannot be merged into weights here (expected an adapter with the names of its modules, found hypernetwork)");
  ts::job run;
  const auto pipeline = ts::open_weights(support::data("sd1/diffusers").string(), {}, run);
  REQUIRE(pipeline);
  const auto read = ts::read_adapter(*pipeline, run);
  REQUIRE_FALSE(read);
  CHECK(read.error().message().find("the file is no adapter") != std::string::npos);
}

TEST_CASE("scales of the header are for the component that they name") {
  ts::package file;
  file.source = "a.safetensors";
  file.components.emplace_back().weights = tensors({{"unet.mid_block.attentions.0.proj_in.lora_A.weight", {2, 8}}, {"unet.mid_block.attentions.0.proj_in.lora_B.weight", {8, 2}},
                                                    {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", {2, 8}}, {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight", {8, 2}}});
  const auto scales = [&](const std::string& text) {
    file.metadata = {{"lora_adapter_metadata", text}};
    ts::job run;
    const auto read = ts::read_adapter(file, run);
    if (!read) return read.error().message();
    std::string out;
    for (const ts::adapter_layer& layer : read->modules) out += layer.name.substr(0, 4) + " " + (layer.alpha ? std::to_string(static_cast<int>(*layer.alpha)) : "none") + (layer.rank_stabilised ? "√ " : " ");
    return out;
  };
  CHECK(scales(R"({"unet.r": 2, "unet.lora_alpha": 3})") == "text none unet 3 ");
  CHECK(scales(R"({"unet.r": 2, "unet.lora_alpha": 3, "text_encoder.lora_alpha": 5, "text_encoder.use_rslora": true})") == "text 5√ unet 3 ");
  CHECK(scales(R"({"r": 2, "lora_alpha": 7})") == "text 7 unet 7 ");  // a file of one model
  CHECK(scales(R"({"unet.lora_alpha": 3, "unet.alpha_pattern": {"proj_in": 9, "mlp.fc1": 1}})") == "text none unet 9 ");
  CHECK(scales("[1]") == "FMT a.safetensors: metadata 'lora_adapter_metadata': the metadata of the adapter is no object (expected an object, found an array)");
  CHECK(scales("{").starts_with("FMT a.safetensors"));
  CHECK(scales(R"({"unet.lora_alpha": []})") ==
        "FMT a.safetensors: key 'unet.lora_alpha': a value of the adapter's configuration has the wrong type (expected a number, found an array)");
  CHECK(scales(R"({"text_encoder.fan_in_fan_out": true})").starts_with("UNS a.safetensors: key 'text_encoder.fan_in_fan_out': an adapter for weights that are stored transposed"));
}

TEST_CASE("comparisons that grow with the square of a file's size have a limit") {
  rows many;
  for (int i = 0; i < 3000; ++i) {
    const std::string module = "unet.m" + std::to_string(i);
    many.push_back({module + ".lora_A.weight", {1, 1}}), many.push_back({module + ".lora_B.weight", {1, 1}});
  }
  ts::package file;
  file.source = "a.safetensors";
  file.components.emplace_back().weights = tensors(many);
  std::string patterns;
  for (int i = 0; i < 4000; ++i) patterns += (i ? ", \"p" : "\"p") + std::to_string(i) + "\": 1";
  file.metadata = {{"lora_adapter_metadata", "{\"unet.alpha_pattern\": {" + patterns + "}}"}};
  ts::job run;
  const auto patterned = ts::read_adapter(file, run);
  REQUIRE_FALSE(patterned);
  CHECK(patterned.error().message() ==
        "LIM a.safetensors: the adapter has too many patterns for its modules (expected 10000000 comparisons at most, found 4000 patterns for 3000 modules); no program writes such files");
  rows embeddings = lora;
  for (int i = 0; i < 4097; ++i) embeddings.push_back({"bundle_emb.e" + std::to_string(i) + ".clip_l", {1, 1}});
  CHECK(refusal(embeddings) == "LIM a.safetensors: the adapter bundles too many embeddings (expected 4096 at most, found more); no program writes such files");
}
