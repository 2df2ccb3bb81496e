// SPDX-License-Identifier: MIT
//
// Fuzzing adapters: any bytes, read by what they are, as an adapter of the LoRA family and as embeddings of Textual Inversion, merged into a small
// model. Whatever is accepted is accounted for to the last tensor, is computed without a complaint of the sanitizers, and changes nothing but
// what the account says.
#include "fuzz/mutate.hpp"
#include "fuzz/property.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/arch/merge_embedding.hpp"
#include "tensorsmith/format/checkpoint/read.hpp"

namespace {

using namespace tensorsmith;

struct layer {
  std::string_view component, module;
  std::vector<std::size_t> weight;
  bool bias;
};

/// A layer of each kind; 8 channels, so that a few hundred bytes make an adapter of any algorithm.
const std::vector<layer>& layers() {
  static const std::vector<layer> all = {
      {"unet", "conv_in", {8, 9, 3, 3}, true},  // of an inpainting model: changes for 4 channels fit, too
      {"unet", "down_blocks.0.resnets.0.norm1", {8}, true},
      {"unet", "down_blocks.0.resnets.0.conv1", {8, 8, 3, 3}, true},
      {"unet", "down_blocks.0.attentions.0.proj_in", {8, 8, 1, 1}, true},
      {"unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", {8, 8}, false},
      {"unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", {8, 12}, false},
      {"unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0", {8, 8}, true},
      {"text_encoder", "text_model.encoder.layers.0.self_attn.k_proj", {12, 12}, true},
      {"text_encoder", "text_model.encoder.layers.0.mlp.fc1", {24, 12}, true},
      {"text_encoder", "text_model.embeddings.token_embedding", {16, 12}, false},
  };
  return all;
}

tensor_ref numbers(const std::vector<std::size_t>& shape, std::string name) {
  std::size_t n = 1;
  for (const std::size_t extent : shape) n *= extent;
  std::vector<std::byte> bytes(n * sizeof(float));
  for (std::size_t i = 0; i < n; ++i) {
    const float value = 0.01F * static_cast<float>(i % 199) - 1.0F;
    std::memcpy(bytes.data() + i * sizeof(float), &value, sizeof value);
  }
  shape_type extents(shape.begin(), shape.end());
  return {stored_tensor(std::make_shared<memory_source>("model", std::move(bytes)), 0, dtype::f32, std::move(extents), std::move(name)), 0};
}

package model() {
  package out;
  out.family = "sd1";
  for (const std::string_view part : {"unet", "text_encoder"}) {
    component& c = out.components.emplace_back();
    c.name = part;
    for (const layer& l : layers()) {
      if (l.component != part) continue;
      const std::string name(l.module);
      if (!c.weights.add(name + ".weight", numbers(l.weight, name), name)) fuzz::violated("names are unique", name);
      if (l.bias && !c.weights.add(name + ".bias", numbers({l.weight[0]}, name), name)) fuzz::violated("names are unique", name);
    }
  }
  return out;
}

/// Every tensor of the model can be computed or is refused for its values; those that the account does not name are the ones from before.
void check_weights(const package& changed, const package& before, const std::vector<std::string>& named) {
  for (std::size_t c = 0; c < changed.components.size(); ++c)
    for (const catalog_entry& entry : changed.components[c].weights.entries()) {
      const std::string name = changed.components[c].name + "." + entry.name;
      const bool told = std::find(named.begin(), named.end(), name) != named.end();
      const catalog_entry* const old = before.components[c].weights.find(entry.name);
      if (!told && (old == nullptr || !(old->tensor.source == entry.tensor.source))) fuzz::violated("what is not in the account is not touched", name);
      if (!told) continue;
      if (old != nullptr && entry.tensor.info().bytes() > 64 * old->tensor.info().bytes() + 65536) fuzz::violated("a merge keeps sizes", name);
      const auto bytes = materialize(entry.tensor, fuzz::one_thread());
      if (!bytes) fuzz::check_refusal(bytes.error());
    }
}

void merge_as_adapter(const package& file, job& run) {
  auto source = read_adapter(file, run);
  if (!source) return fuzz::check_refusal(source.error());
  std::size_t tensors = source->unknown.size();
  for (const adapter_layer& module : source->modules) tensors += module.parameters.size();
  for (const textual_inversion& embedding : source->embeddings) tensors += embedding.tensors.size();
  if (tensors != source->tensors->size())
    fuzz::violated("every tensor is a parameter, an embedding or unknown", std::to_string(tensors) + " of " + std::to_string(source->tensors->size()));
  const package before = model();
  package changed = before;
  const std::size_t modules = source->modules.size();
  std::vector<adapter_request> requests;
  requests.push_back({.source = std::move(*source), .unet = 0.75, .text_encoder = modules % 3 == 0 ? 0.0 : -1.5});
  const auto account = merge_adapters(changed, requests, {.strict = modules % 4 == 1}, run);
  if (!account) return fuzz::check_refusal(account.error());
  const merged_adapter& told = account->adapters.at(0);
  if (told.modules.size() != modules || told.applied + told.not_found + told.ignored != modules)
    fuzz::violated("every module is in the account", std::to_string(told.modules.size()) + " of " + std::to_string(modules));
  std::vector<std::string> named;
  for (const merged_weight& weight : account->weights) named.push_back(weight.component + "." + weight.name);
  check_weights(changed, before, named);
}

void merge_as_embeddings(const package& file, job& run) {
  auto found = read_textual_inversions(file);
  if (!found) return fuzz::check_refusal(found.error());
  const package before = model();
  for (const token_rule rule : {token_rule::diffusers, token_rule::onnx_web, token_rule::kohya}) {
    package changed = before;
    std::vector<embedding_request> requests;
    for (const textual_inversion& embedding : *found) requests.push_back({.source = embedding, .token = {}, .strength = 0.5});
    embedding_options options;
    options.rule = rule;
    const auto account = merge_embeddings(changed, requests, options, run);
    if (!account) {
      fuzz::check_refusal(account.error());
      continue;
    }
    std::vector<std::string> named;
    for (const changed_weight& weight : account->weights) named.push_back(weight.component + "." + weight.name);
    check_weights(changed, before, named);
  }
}

// --- new inputs -------------------------------------------------------------------------------------------------------------

struct made_tensor {
  std::string name;
  std::vector<std::size_t> shape;
  std::vector<std::size_t> integers{};  // set: the elements, as i64
};

std::string written(const std::vector<made_tensor>& tensors, fuzz::dice& roll) {
  const bool half = roll.once_in(3);
  std::string header, data;
  for (const made_tensor& t : tensors) {
    const std::size_t n = t.integers.empty() ? fuzz::product(t.shape) : 0, begin = data.size();
    for (const std::size_t number : t.integers) data += fuzz::little_endian(number, 8);
    for (std::size_t i = 0; i < n; ++i) data += half ? fuzz::little_endian(roll.once_in(64) ? roll.next() : 0x3000 + roll.below(0x800), 2)
                                                     : fuzz::little_endian(roll.once_in(64) ? roll.next() : 0x3E000000 + roll.below(0x1000000), 4);
    header += (header.empty() ? "{\"" : ",\"") + t.name + "\":{\"dtype\":\"" + (!t.integers.empty() ? "I64" : half ? "F16" : "F32") + "\",\"shape\":[" + fuzz::listed(t.shape, ",") +
              "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
  }
  if (header.empty()) header = "{";
  header += "}";
  return fuzz::little_endian(header.size(), 8) + header + data;
}

/// The tensors of a module of one algorithm for this layer, most of the time of the right shapes.
void add_module(std::vector<made_tensor>& out, const layer& l, fuzz::dice& roll) {
  std::string name(l.module);
  std::replace(name.begin(), name.end(), '.', '_');
  name = (l.component == "unet" ? "lora_unet_" : "lora_te_") + name;
  const bool conv = l.weight.size() == 4, spatial = conv && l.weight[2] == 3;
  const std::size_t rows = l.weight[0], channels = l.weight.size() > 1 ? l.weight[1] : 1, r = 1 + roll.below(3), k = spatial ? 3 : 1;
  const auto add = [&](std::string_view parameter, std::vector<std::size_t> shape) {
    if (roll.once_in(24)) return;
    if (roll.once_in(24)) shape = fuzz::small_shape(roll);
    if (roll.once_in(16) && !shape.empty()) shape[roll.below(shape.size())] = roll.below(10);  // all but one extent fit
    if (roll.once_in(32) && shape.size() > 1) std::swap(shape[0], shape[1]);
    out.push_back({name + "." + std::string(parameter), std::move(shape)});
  };
  const auto flat = [&](std::size_t a, std::size_t b) { return conv ? std::vector<std::size_t>{a, b, 1, 1} : std::vector<std::size_t>{a, b}; };
  const auto kernel = [&](std::size_t a, std::size_t b) { return conv ? std::vector<std::size_t>{a, b, k, k} : std::vector<std::size_t>{a, b}; };
  switch (roll.below(18)) {
    case 0: add("lora_up.weight", flat(rows, r)), add("lora_down.weight", kernel(r, channels)); break;
    case 1: add("lora_up.weight", flat(rows, r)), add("lora_down.weight", flat(r, channels)), add("lora_mid.weight", {r, r, k, k}); break;
    case 2:
      for (const char* w : {"hada_w1", "hada_w2"}) add(std::string(w) + "_a", {rows, r}), add(std::string(w) + "_b", {r, channels * k * k});
      break;
    case 3:
      for (const char* w : {"1", "2"}) {
        add(std::string("hada_w") + w + "_a", {r, rows}), add(std::string("hada_w") + w + "_b", {r, channels});
        add(std::string("hada_t") + w, {r, r, k, k});
      }
      break;
    case 4: add("lokr_w1", {2, 2}), add("lokr_w2", kernel(rows / 2, channels / 2)); break;
    case 5: add("lokr_w1_a", {2, r}), add("lokr_w1_b", {r, 2}), add("lokr_w2_a", {rows / 2, r}), add("lokr_w2_b", {r, channels / 2 * k * k}); break;
    case 6: add("diff", l.weight), add("diff_b", {rows}); break;
    case 7: add("w_norm", {rows}), add("b_norm", {rows}); break;
    case 8: add("weight", {roll.once_in(2) ? rows : channels}), add("on_input", {}); break;
    case 9: add("a1.weight", {channels, r}), add("a2.weight", {r, channels}), add("b1.weight", {rows, r}), add("b2.weight", {r, channels * k * k}); break;
    case 10: add("oft_blocks", {rows / 4, 4, 4}), roll.once_in(2) ? add("rescale", {rows, 1}) : void(); break;
    case 11: add("oft_diag", {rows / 4, 4, 4}), roll.once_in(2) ? add("rescale", {rows, 1}) : void(); break;
    case 12: add("oft_blocks", {1 + roll.below(3), rows / 4, 4, 4}); break;
    case 13: add("lokr_w1_a", {2, r}), add("lokr_w1_b", {r, 2}), add("lokr_w2_a", {r, rows / 2}), add("lokr_w2_b", {r, channels / 2}), add("lokr_t2", {r, r, k, k}); break;
    case 14: add("a1.weight", {r, channels}), add("a2.weight", {channels, r}), add("b1.weight", {r, channels * k * k}), add("b2.weight", {rows, r}); break;
    case 15:
      add("a1.weight", {channels, r}), add("a2.weight", {r, channels}), add("b1.weight", {rows, r}), add("b2.weight", flat(r, channels));
      add("bm.weight", {r, r, k, k});
      break;
    case 16: add("set_weight", l.weight), roll.once_in(2) ? add("set_bias", {rows}) : void(); break;
    default: add("lora_up.weight", flat(rows, r)), add("lora_down.weight", kernel(r, roll.once_in(2) ? 4 : channels)); break;
  }
  if (roll.once_in(2)) add("alpha", roll.once_in(2) ? std::vector<std::size_t>{} : std::vector<std::size_t>{1});
  if (roll.once_in(4)) add("dora_scale", roll.once_in(2) ? flat(rows, 1) : flat(1, channels));
  if (!roll.once_in(16)) return;
  add("bias_values", {r});
  std::vector<std::size_t> places(l.weight.size() * r);
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = roll.below(l.weight[i / r] + (roll.once_in(32) ? 1 : 0));
  out.push_back({name + ".bias_indices", {l.weight.size(), r}, std::move(places)});
  out.push_back({name + ".bias_size", {l.weight.size()}, l.weight});
}

void add_dotted(std::vector<made_tensor>& out, const layer& l, fuzz::dice& roll) {
  const std::size_t r = 1 + roll.below(3), channels = l.weight.size() > 1 ? l.weight[1] : 1;
  constexpr std::string_view downs[] = {".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".lora_linear_layer.down.weight"};
  constexpr std::string_view ups[] = {".lora_B.weight", ".lora.up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight"};
  const std::size_t style = roll.below(4);
  const std::string name = std::string(l.component) + "." + std::string(l.module);
  out.push_back({name + std::string(downs[style]), {r, channels}});
  out.push_back({name + std::string(ups[style]), {l.weight[0], r}});
  if (roll.once_in(3)) out.push_back({name + ".lora_magnitude_vector", {l.weight[0]}});
  if (roll.once_in(6)) out.push_back({"base_model.model." + name + ".modules_to_save.weight", l.weight});
}

bool mutate_adapter(std::string& file, fuzz::dice& roll, std::size_t most) {
  if (!roll.once_in(3)) return fuzz::mutate_safetensors(file, roll, most);
  std::vector<made_tensor> tensors;
  const std::size_t kind = roll.below(8);
  for (std::size_t i = roll.below(3) + 1; i-- > 0;) {
    const layer& l = roll.one_of(layers());
    if (kind < 5) add_module(tensors, l, roll);
    else if (kind == 5) add_dotted(tensors, l, roll);
    else if (kind == 6) {
      const std::string name = "unet:" + std::to_string(i);
      tensors.push_back({name + ":up", {8, 1}}), tensors.push_back({name + ":down", {1, 8}});
    } else {
      constexpr std::string_view names[] = {"emb_params", "<cat>", "clip_l", "clip_g", "bundle_emb.x.string_to_param.*", "string_to_param"};
      tensors.push_back({std::string(roll.one_of(names)), roll.once_in(3) ? std::vector<std::size_t>{12} : std::vector<std::size_t>{1 + roll.below(3), 12}});
    }
  }
  std::string out = written(tensors, roll);
  if (out.size() > most) return false;
  file = std::move(out);
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_bound bound(size);
  job run = fuzz::one_thread();
  run.limits = fuzz::limits_for(size);
  auto read = read_checkpoint(fuzz::as_file({data, size}, size % 3 ? "m.pt" : "m.safetensors"), run);
  if (!read) return fuzz::check_refusal(read.error()), 0;
  package file;
  file.source = "m";
  file.metadata = read->metadata;
  file.components.push_back({"", std::move(read->tensors), {}, {}});
  merge_as_adapter(file, run);
  merge_as_embeddings(file, run);
  fuzz::check_notes(run.notes);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  return fuzz::mutate(data, size, most, seed, mutate_adapter);
}
