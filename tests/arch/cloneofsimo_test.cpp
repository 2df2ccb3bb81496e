// SPDX-License-Identifier: MIT
//
// Files of cloneofsimo/lora: numbers to layers for the published UNets and text encoders, both containers, tokens, counts that do not fit.
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "arch/published_models.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/core/sha256.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

std::string lines_digest(const std::vector<ts::cloneofsimo_slot>& slots) {
  std::string text;
  for (const ts::cloneofsimo_slot& slot : slots) text += slot.module + '\n';
  ts::sha256 sum;
  sum.update(std::as_bytes(std::span(text)));
  return ts::hex(sum.finish());
}

ts::package model(bool second, std::size_t in_channels = 4) {
  ts::package out;
  out.family = second ? "sd2" : "sd1";
  ts::component& unet = out.components.emplace_back();
  unet.name = "unet";
  support::parameters list = support::unet_parameters(second ? support::sd2_unet() : support::sd1_unet());
  for (auto& [name, shape] : list)
    if (name == "conv_in.weight") shape[1] = in_channels;
  unet.weights = support::shapes(list);
  ts::component& text = out.components.emplace_back();
  text.name = "text_encoder";
  text.weights = support::shapes(support::clip_parameters(second ? 1024 : 768, second ? 23 : 12));
  return out;
}

/// An adapter of this rank with shapes taken from the model, layer by layer.
support::parameters pairs(const ts::package& base, const std::string& part, const std::vector<ts::cloneofsimo_slot>& slots, std::size_t rank = 4) {
  support::parameters out;
  std::size_t i = 0;
  for (const ts::cloneofsimo_slot& slot : slots) {
    const ts::catalog_entry* const weight = base.find(part)->weights.find(slot.module + ".weight");
    INFO(slot.module);
    REQUIRE(weight);
    ts::shape_type up = weight->tensor.shape(), down = up;
    up[1] = rank, down[0] = rank;
    for (std::size_t d = 2; d < up.size(); ++d) up[d] = 1;
    if (!slot.convolution) up.resize(2), down.resize(2);
    out.emplace_back(part + ":" + std::to_string(i) + ":up", up);
    out.emplace_back(part + ":" + std::to_string(i++) + ":down", down);
  }
  return out;
}

ts::package file_of(const support::parameters& list, std::vector<std::pair<std::string, std::string>> metadata = {}) {
  ts::package out;
  out.source = "a.safetensors";
  out.metadata = std::move(metadata);
  out.components.emplace_back().weights = support::shapes(list);
  return out;
}

support::parameters joined(support::parameters a, const support::parameters& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Merges shapes alone; all modules must fit their layers.
std::string outcome(const ts::package& file, ts::package base) {
  ts::job run;
  auto read = ts::read_adapter(file, run);
  if (!read) return read.error().message();
  const ts::adapter_request request{.source = std::move(*read)};
  const auto account = ts::merge_adapters(base, {&request, 1}, {.strict = true}, run);
  if (!account) return account.error().message();
  return "applied " + std::to_string(account->adapters[0].applied) + " of " + std::to_string(account->adapters[0].modules.size());
}

}  // namespace

TEST_CASE("cloneofsimo: the order of the layers is that of the models of diffusers") {
  // Recorded: the names of the layers as diffusers 0.42.1 registers them, one a line.
  CHECK(lines_digest(ts::cloneofsimo_unet_slots({}, false)) == "7ac590467743769727d10dd285d8d92e3e76032e18ed7d679f9e92bf3d4a25f8");
  CHECK(lines_digest(ts::cloneofsimo_unet_slots({true, true, true}, false)) == "226c6db0036ec9810eb36f0b7ed2d8ae0fd4df776b29edbb386f7ea34dc928c6");
  const auto old = ts::cloneofsimo_unet_slots({}, true);
  REQUIRE(old.size() == 144);
  CHECK(old[4].module == "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj");
  CHECK(old[5].module == "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q");
  CHECK(old[54].module == "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q");
  CHECK(old[143].module == "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0");
  const auto text = ts::cloneofsimo_text_slots(12);
  REQUIRE(text.size() == 48);
  CHECK(text[0].module == "text_model.encoder.layers.0.self_attn.k_proj");
  CHECK(text[1].module == "text_model.encoder.layers.0.self_attn.v_proj");
  CHECK(text[2].module == "text_model.encoder.layers.0.self_attn.q_proj");
  CHECK(text[47].module == "text_model.encoder.layers.11.self_attn.out_proj");
}

TEST_CASE("cloneofsimo: every pair fits its layer of SD1 and SD2, in both orders, both sets") {
  for (const bool second : {false, true})
    for (const bool between : {false, true})
      for (const bool extended : {false, true}) {
        CAPTURE(second, between, extended);
        const ts::package base = model(second);
        const auto slots = ts::cloneofsimo_unet_slots({true, true, extended}, between);
        const auto list = joined(pairs(base, "unet", slots), pairs(base, "text_encoder", ts::cloneofsimo_text_slots(second ? 23 : 12)));
        const std::string all = std::to_string((extended ? 224 : 144) + (second ? 92 : 48));
        CHECK(outcome(file_of(list), base) == "applied " + all + " of " + all);
        const std::string classes = extended ? R"(["ResnetBlock2D", "GEGLU", "Attention", "CrossAttention"])" : R"(["GEGLU", "CrossAttention", "Attention"])";
        CHECK(outcome(file_of(list, {{"unet", classes}, {"text_encoder", R"(["CLIPAttention"])"}, {"unet:0:rank", "4"}}), base) == "applied " + all + " of " + all);
      }
}

TEST_CASE("cloneofsimo: layers of a kind that the file has none of are passed over") {
  const ts::package base = model(false);
  auto slots = ts::cloneofsimo_unet_slots({true, true, true}, false);
  std::erase_if(slots, [](const ts::cloneofsimo_slot& slot) { return slot.convolution; });
  CHECK(slots.size() == 166);
  CHECK(outcome(file_of(pairs(base, "unet", slots), {{"unet", R"(["ResnetBlock2D", "GEGLU", "Attention"])"}}), base) == "applied 166 of 166");
  slots = ts::cloneofsimo_unet_slots({true, true, true}, false);
  std::erase_if(slots, [](const ts::cloneofsimo_slot& slot) { return !slot.convolution; });
  CHECK(outcome(file_of(pairs(base, "unet", slots), {{"unet", R"(["ResnetBlock2D", "GEGLU", "Attention"])"}}), base) == "applied 58 of 58");
}

TEST_CASE("cloneofsimo: what does not count the layers of a model is refused with the counts") {
  const ts::package base = model(false);
  const auto all = pairs(base, "unet", ts::cloneofsimo_unet_slots({}, false));
  support::parameters fewer = all;
  fewer.resize(fewer.size() - 2);
  CHECK(outcome(file_of(fewer), base) ==
        "MIS a.safetensors: part 'unet': the numbered pairs of the adapter do not count the layers of a known model (expected 144 or 224 pairs in the order of the model, "
        "found 143 pairs)");
  CHECK(outcome(file_of(fewer, {{"unet", R"(["CrossAttention", "GEGLU"])"}}), base).find("expected 144 pairs in the order of the model, found 143 pairs") != std::string::npos);
  support::parameters half = all;
  half.erase(half.begin() + 7);
  CHECK(outcome(file_of(half), base) ==
        "MIS a.safetensors: pair 'unet:3': a numbered pair of the adapter is not complete (expected up and down for each number, found up alone)");
  support::parameters gap = all;
  gap.erase(gap.begin() + 6, gap.begin() + 8);
  CHECK(outcome(file_of(gap), base) ==
        "MIS a.safetensors: pair 'unet:3': a numbered pair of the adapter is not complete (expected up and down for each number, found neither, of 286 tensors)");
  CHECK(outcome(file_of(all, {{"unet", R"(["CrossAttention", "Transformer2DModel"])"}}), base) ==
        "UNS a.safetensors: metadata 'unet': the adapter numbers the layers of a class that is not known (expected CrossAttention, Attention, GEGLU, ResnetBlock2D, found "
        "'Transformer2DModel')");
  CHECK(outcome(file_of(all, {{"unet", R"({"a": 1})"}}), base).starts_with("FMT a.safetensors: metadata 'unet': the metadata of the adapter do not list classes"));
  auto text = pairs(base, "text_encoder", ts::cloneofsimo_text_slots(11));
  CHECK(outcome(file_of(joined(all, text)), base).find("part 'text_encoder': the numbered pairs of the adapter do not count the layers of a known model (expected 48 pairs (SD1) or 92 "
                                                       "(SD2), found 44 pairs)") != std::string::npos);
  // Counts that fit and layers that do not: for SD2 into SD1.
  const ts::package other = model(true);
  const std::string message = outcome(file_of(pairs(other, "unet", ts::cloneofsimo_unet_slots({}, false))), base);
  CHECK(message.starts_with("MIS a.safetensors: module 'unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k': the adapter's shapes do not fit the layer"));
  CHECK(message.find("sd2") != std::string::npos);
}

TEST_CASE("cloneofsimo: tokens lie beside the pairs") {
  const ts::package base = model(false);
  auto list = joined(pairs(base, "unet", ts::cloneofsimo_unet_slots({}, false)), {{"<s1>", {768}}, {"<s2>", {768}}});
  ts::job run;
  const auto read = ts::read_adapter(file_of(list, {{"<s1>", "<embed>"}, {"<s2>", "<embed>"}, {"unet", R"(["CrossAttention", "Attention", "GEGLU"])"}}), run);
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  CHECK(read->modules.size() == 144);
  CHECK(read->unknown.empty());
  REQUIRE(read->embeddings.size() == 2);
  CHECK(read->embeddings[0].name == "<s1>");
  CHECK(read->embeddings[1].parts[0].rows.shape() == ts::shape_type{1, 768});
  // Without the mark a tensor beside the pairs is no token.
  list.push_back({"stray", {768}});
  const auto unmarked = ts::read_adapter(file_of(list, {{"<s1>", "<embed>"}, {"<s2>", "<embed>"}}), run);
  REQUIRE(unmarked);
  CHECK(unmarked->unknown == std::vector<std::string>{"stray"});
}

TEST_CASE("cloneofsimo: lists of pairs that torch.save wrote, with the text encoder's half and the tokens beside them") {
  ts::job run;
  const auto read = ts::open_adapter(support::data("adapters/cloneofsimo/cat.pt").string(), run);
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  CHECK(read->what.family == ts::adapter_family::cloneofsimo);
  CHECK(read->modules.size() == 192);
  CHECK(read->unknown.empty());
  REQUIRE(read->embeddings.size() == 2);
  CHECK(read->embeddings[0].name == "<cat>");
  CHECK(read->embeddings[1].name == "<hat>");

  // The number of a pair is in its values: (i mod 61 + 1) / 64 in every element of up @ down.
  const std::map<std::string, std::size_t> numbers = {
      {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 0},  {"unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj", 4},
      {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 6},  {"unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_out.0", 53},
      {"unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v", 133},  {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v", 137},
      {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 2},        {"text_encoder.text_model.encoder.layers.11.self_attn.k_proj", 44}};
  for (const auto& row : numbers) {
    const std::string& name = row.first;
    const std::size_t number = row.second;
    CAPTURE(name);
    const auto layer = std::find_if(read->modules.begin(), read->modules.end(), [&](const ts::adapter_layer& l) { return l.name == name; });
    REQUIRE(layer != read->modules.end());
    const auto up = ts::floats_of(layer->find("lora_up"), run), down = ts::floats_of(layer->find("lora_down"), run);
    REQUIRE(up);
    REQUIRE(down);
    CHECK(up->front() * down->back() == static_cast<float>(number % 61 + 1) / 64.0F);
  }
  ts::package base = model(false);
  const ts::adapter_request request{.source = *read};
  const auto account = ts::merge_adapters(base, {&request, 1}, {.strict = true}, run);
  INFO((account ? std::string() : account.error().message()));
  REQUIRE(account);
  CHECK(account->adapters[0].applied == 192);

  // Each half alone says what it is by its shapes.
  const auto text = ts::open_adapter(support::data("adapters/cloneofsimo/cat.text_encoder.pt").string(), run);
  REQUIRE(text);
  CHECK(text->modules.size() == 48);
  CHECK(text->modules[0].name == "text_encoder.text_model.encoder.layers.0.self_attn.k_proj");
  const auto tokens = ts::open_adapter(support::data("adapters/cloneofsimo/cat.ti.pt").string(), run);
  REQUIRE_FALSE(tokens);
  CHECK(tokens.error().message().find("this kind of adapter cannot be merged into weights here") != std::string::npos);
}
