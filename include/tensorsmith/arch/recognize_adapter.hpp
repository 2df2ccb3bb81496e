// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/recognize_adapter.hpp: which family of adapter a file holds, told by the names and shapes of its tensors.
//
// Include this to tell LoRA and its relatives (kohya and LyCORIS names, PEFT, older diffusers, cloneofsimo), Textual Inversion
// embeddings and hypernetworks from models. Names decide the family, the set of a module's parameters its algorithm, shapes the rank
// and the base model. Nothing is read but the catalog.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/tensor/catalog.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Whose names an adapter uses.
enum class adapter_family : std::uint8_t {
  kohya,              ///< `lora_unet_down_blocks_0_….lora_down.weight`: kohya's scripts and LyCORIS
  peft,               ///< `….lora_A.weight`
  diffusers,          ///< `…_lora.down.weight`, `….lora.down.weight`, `….lora_linear_layer.down.weight`; some files mix them with PEFT's
  dotted,             ///< module paths with dots and kohya's parameter names
  cloneofsimo,        ///< `unet:0:up`; in torch files a list of pairs without names: up, down, up, down, …
  textual_inversion,  ///< vectors for new tokens
  hypernetwork,       ///< small networks before the keys and values of cross-attention
};

/// "kohya", "PEFT", "diffusers", "dotted names", "cloneofsimo", "Textual Inversion", "hypernetwork".
constexpr std::string_view name_of(adapter_family family) noexcept {
  constexpr std::string_view names[] = {"kohya", "PEFT", "diffusers", "dotted names", "cloneofsimo", "Textual Inversion", "hypernetwork"};
  return names[static_cast<std::size_t>(family)];
}

/// Vectors of a Textual Inversion embedding.
struct adapter_embedding {
  std::string name;           ///< as in the file: the token, "clip_l", "emb_params", "string_to_param.*"
  std::size_t vectors = 0, width = 0;
};

/// What an adapter is.
struct adapter_description {
  adapter_family family = adapter_family::kohya;
  std::string evidence;                            ///< the name that told the family
  std::map<std::string, std::size_t> algorithms;   ///< "LoRA", "LoCon", "LoHa", "LoKr", "DoRA", … → modules
  std::map<std::string, std::size_t> parts;        ///< "unet", "text_encoder", "text_encoder_2", … → modules
  std::map<std::size_t, std::size_t> ranks;        ///< rank → modules that have one
  std::size_t modules = 0;
  std::size_t alphas = 0;                          ///< modules with a stored alpha
  std::vector<std::string> unknown;                ///< tensors that belong to no algorithm known here
  std::vector<adapter_embedding> embeddings;       ///< of Textual Inversion; of a LoRA that bundles some
  std::string base;                                ///< "sd1", "sd2", "sdxl", "sdxl-refiner", or empty
  std::string base_reason;                         ///< what told the base
};

namespace detail {

/// The parameters that a module of an adapter may have, by bit.
inline constexpr std::string_view adapter_parameters[] = {
    "lora_down", "lora_up", "lora_mid", "alpha", "dora_scale", "scale", "bias_indices", "bias_values", "bias_size", "diff", "diff_b",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2",
    "oft_blocks", "oft_diag", "rescale", "a1", "a2", "b1", "b2", "bm", "on_input", "weight", "w_norm", "b_norm", "set_weight",
    "set_bias", "lora_bias", "lora_embedding_A", "lora_embedding_B"};

constexpr std::uint64_t adapter_bit(std::string_view name) noexcept {
  for (std::size_t i = 0; i < std::size(adapter_parameters); ++i)
    if (adapter_parameters[i] == name) return std::uint64_t{1} << i;
  return 0;
}
static_assert(std::size(adapter_parameters) <= 64);

/// The parameter of a bit, empty for none.
constexpr std::string_view parameter_of_bit(std::uint64_t bit) noexcept {
  for (std::size_t i = 0; i < std::size(adapter_parameters); ++i)
    if (bit == std::uint64_t{1} << i) return adapter_parameters[i];
  return {};
}

/// How the families with dots end a name, and the parameter that it is. PEFT's own endings: see split_peft_name.
inline constexpr std::pair<std::string_view, std::string_view> dotted_endings[] = {
    {"_lora.down.weight", "lora_down"}, {"_lora.up.weight", "lora_up"}, {"_lora.alpha", "alpha"},
    {".lora.down.weight", "lora_down"}, {".lora.up.weight", "lora_up"}, {".lora.alpha", "alpha"},
    {".lora_linear_layer.down.weight", "lora_down"}, {".lora_linear_layer.up.weight", "lora_up"}, {".lora_linear_layer.alpha", "alpha"},
    {".lora_down.weight", "lora_down"}, {".lora_up.weight", "lora_up"}, {".lora_mid.weight", "lora_mid"}};

/// Prefixes of module names whose dots became underscores, and the part of the model that they stand for.
inline constexpr std::pair<std::string_view, std::string_view> underscored_prefixes[] = {
    {"lora_unet_", "unet"}, {"lora_te_", "text_encoder"}, {"lora_te1_", "text_encoder"}, {"lora_te2_", "text_encoder_2"},
    {"lora_te3_", "text_encoder_3"}, {"oft_unet_", "unet"}, {"lycoris_text_encoder_2_", "text_encoder_2"},
    {"lycoris_text_encoder_", "text_encoder"}, {"lycoris_", "unet"}, {"lora_transformer_", "transformer"}, {"lora_vae_", "vae"},
    {"lora_prior_unet_", "prior"}};

inline bool has_text(std::string_view text, std::string_view piece) noexcept { return text.find(piece) != std::string_view::npos; }

inline const std::pair<std::string_view, std::string_view>* underscored_prefix(std::string_view name) noexcept {
  for (const auto& row : underscored_prefixes)
    if (name.starts_with(row.first)) return &row;
  return nullptr;
}

/// A tensor's name as module and parameter; `bit` 0: no parameter known here.
struct adapter_key {
  std::string module;
  std::uint64_t bit = 0;
};

/// Takes `.weight` or `.bias` from the end of a name and says which it was.
inline std::string_view take_kind(std::string_view& name) noexcept {
  for (const std::string_view kind : {".weight", ".bias"})
    if (name.ends_with(kind)) {
      name.remove_suffix(kind.size());
      return kind.substr(1);
    }
  return {};
}

/// `.lora_A.weight`, `.lora_A.default.weight` and the like: in the memory of PEFT the adapter's name stands behind the parameter's.
inline std::optional<adapter_key> split_peft_name(std::string_view name) {
  struct mark {
    std::string_view text, weight, bias;
  };
  constexpr mark marks[] = {{".lora_A", "lora_down", ""}, {".lora_B", "lora_up", "lora_bias"}, {".lora_magnitude_vector", "dora_scale", ""},
                            {".lora_embedding_A", "lora_embedding_A", ""}, {".lora_embedding_B", "lora_embedding_B", ""}};
  for (const mark& m : marks) {
    const std::size_t at = name.rfind(m.text);
    if (at == std::string_view::npos) continue;
    std::string_view rest = name.substr(at + m.text.size());
    const std::string_view kind = take_kind(rest);
    if (!rest.empty() && (rest[0] != '.' || rest.find('.', 1) != std::string_view::npos)) continue;
    return adapter_key{std::string(name.substr(0, at)), adapter_bit(kind == "bias" ? m.bias : m.weight)};
  }
  return std::nullopt;
}

/// Parameters that PEFT saves whole: those of `modules_to_save`, and biases that were trained in place.
inline std::optional<adapter_key> split_saved_name(std::string_view name) {
  constexpr std::string_view wrapper = "base_model.model.", saved = ".modules_to_save", base = ".base_layer";
  const std::size_t at = name.find(saved);
  const bool marked = at != std::string_view::npos && name.substr(at + saved.size()).starts_with(".");
  if (!marked && !name.starts_with(wrapper)) return std::nullopt;
  std::string_view rest = name;
  const std::string_view kind = take_kind(rest);
  if (kind.empty()) return std::nullopt;
  if (!marked) {
    const bool inner = rest.ends_with(base);
    if (inner && kind == "weight") return std::nullopt;  // the base's own weight, of a whole model
    if (inner) rest.remove_suffix(base.size());
    return adapter_key{std::string(rest), adapter_bit(kind == "bias" ? "set_bias" : "set_weight")};
  }
  std::string module(rest.substr(0, at));
  rest.remove_prefix(std::min(rest.size(), at + saved.size()));
  if (!rest.empty()) rest.remove_prefix(1);
  rest.remove_prefix(std::min(rest.find('.'), rest.size()));  // the adapter's name
  return adapter_key{module + std::string(rest), adapter_bit(kind == "bias" ? "set_bias" : "set_weight")};
}

inline adapter_key split_adapter_name(std::string_view name) {
  if (underscored_prefix(name)) {  // the first dot ends the module
    const std::size_t dot = name.find('.');
    if (dot == std::string_view::npos) return {std::string(name), 0};
    std::string_view parameter = name.substr(dot + 1);
    if (parameter.ends_with(".weight")) parameter.remove_suffix(7);
    return {std::string(name.substr(0, dot)), adapter_bit(parameter)};
  }
  if (auto found = split_peft_name(name)) return std::move(*found);
  for (const auto& [ending, parameter] : dotted_endings)
    if (name.ends_with(ending)) return {std::string(name.substr(0, name.size() - ending.size())), adapter_bit(parameter)};
  std::string_view rest = name;
  if (rest.ends_with(".weight")) rest.remove_suffix(7);
  const std::size_t dot = rest.rfind('.');
  if (dot == std::string_view::npos) return {std::string(name), 0};
  // `weight`, `scale`, `a1` and the like mean nothing without the prefixes above.
  constexpr std::string_view telling[] = {"lora_", "alpha", "dora_scale", "hada_", "lokr_", "oft_", "diff_b", "w_norm", "b_norm", "set_weight",
                                         "bias_indices", "bias_values", "bias_size"};
  const std::string_view last = rest.substr(dot + 1);
  for (const std::string_view head : telling)
    if (last.starts_with(head)) return {std::string(rest.substr(0, dot)), adapter_bit(last)};
  if (last == "diff") return {std::string(rest.substr(0, dot)), adapter_bit(last)};
  if (auto found = split_saved_name(name)) return std::move(*found);
  return {std::string(name), 0};
}

/// `unet:12:up`: the part, or nothing.
inline std::string_view cloneofsimo_part(std::string_view name) noexcept {
  const std::size_t first = name.find(':'), last = name.rfind(':');
  if (first == std::string_view::npos || last == first) return {};
  const std::string_view part = name.substr(0, first), number = name.substr(first + 1, last - first - 1), side = name.substr(last + 1);
  const bool digits = !number.empty() && std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
  return digits && (side == "up" || side == "down") && (part == "unet" || part == "text_encoder") ? part : std::string_view();
}

/// The part of the model that a module with dots belongs to.
inline std::string_view dotted_part(std::string_view module) noexcept {
  for (const std::string_view wrapper : {"base_model.model.", "diffusion_model."})
    if (module.starts_with(wrapper)) module.remove_prefix(wrapper.size());
  for (const std::string_view part : {"unet", "text_encoder_2", "text_encoder", "transformer"})
    if (module.size() > part.size() && module.starts_with(part) && module[part.size()] == '.') return part;
  // transformers 5 leaves "text_model." out
  const bool text = has_text(module, "text_model.") || has_text(module, "self_attn.") || module.starts_with("encoder.layers.") ||
                    module.starts_with("embeddings.") || module.starts_with("final_layer_norm");
  return text ? "text_encoder" : "unet";
}

/// A dotted name without wrappers and with the plain names of layers: `unet.unet.….attn1.processor.to_out` → `unet.….attn1.to_out.0`.
inline std::string plain_module(std::string_view module) {
  constexpr std::string_view wrapper = "base_model.model.";
  constexpr std::string_view twice[] = {"unet.unet.", "text_encoder.text_encoder.", "text_encoder_2.text_encoder_2."};
  if (module.starts_with(wrapper)) module.remove_prefix(wrapper.size());
  for (const std::string_view doubled : twice)
    while (module.starts_with(doubled)) module.remove_prefix(doubled.size() / 2);
  std::string out(module);
  for (std::string_view inside : {".base_model.model.", ".processor."}) {
    if (const std::size_t at = out.find(inside); at != std::string::npos) out.erase(at, inside.size() - 1);
  }
  if (out.ends_with(".default")) out.resize(out.size() - 8);
  const auto ends = [&](std::string_view tail) { return out.size() > tail.size() && std::string_view(out).ends_with(tail); };
  const bool text = out.find("self_attn.") != std::string::npos;
  constexpr std::pair<std::string_view, std::string_view> old_names[] = {
      {".to_q", ".q_proj"}, {".to_k", ".k_proj"}, {".to_v", ".v_proj"}, {".to_out", ".out_proj"}};
  for (const auto& [old, name] : old_names)
    if (text && ends(old)) return out.replace(out.size() - old.size(), old.size(), name);
  if (ends(".to_out")) out += ".0";
  return out;
}

/// What the tensors of one module tell.
struct adapter_module {
  std::uint64_t parameters = 0;
  std::string_view part;
  std::size_t rank = 0, oft_rank = 0;      // 0: none
  std::size_t kernel = 1;                  // elements of a convolution's kernel
  std::array<std::size_t, 2> input{1, 1};  // factors of the input's width
  bool wide = false;                       // `input` is known

  bool has(std::string_view name) const noexcept { return (parameters & adapter_bit(name)) != 0; }

  void add(std::uint64_t bit, const shape_type& shape) {
    parameters |= bit;
    const auto is = [&](std::string_view name) { return bit == adapter_bit(name); };
    const auto extent = [&](std::size_t dim) { return shape.size() > dim ? shape[dim] : std::size_t{0}; };
    if (is("lora_down") || is("hada_w1_b")) rank = extent(0), input[0] = extent(1), wide = true;
    if (is("lora_down") && shape.size() == 4) kernel = shape[2] * shape[3];
    if (is("lora_mid") && shape.size() == 4) kernel = shape[2] * shape[3];
    if (is("lora_embedding_A")) rank = extent(0);
    if (is("lokr_w1") || is("lokr_w1_b")) input[0] = extent(1), wide = true;
    if (is("lokr_w2") || is("lokr_w2_b")) input[1] = extent(1);
    if (is("lokr_w2_b") || (is("lokr_w1_b") && rank == 0)) rank = extent(0);
    if (is("a2")) rank = std::min(extent(0), extent(1)), input[0] = std::max(extent(0), extent(1)), wide = true;
    if (is("diff") && shape.size() >= 2) input[0] = extent(1), wide = true;
    if (is("oft_blocks") || is("oft_diag")) oft_rank = shape.size();
  }

  /// The algorithm, empty if the parameters are those of none.
  std::string algorithm() const {
    std::string name;
    if (has("hada_w1_a")) name = "LoHa";
    else if (has("lokr_w1") || has("lokr_w1_a")) name = "LoKr";
    else if (has("oft_blocks")) name = oft_rank == 4 ? "BOFT" : "OFT";
    else if (has("oft_diag")) name = "OFT";
    else if (has("a1") && has("b1")) name = "GLoRA";
    else if (has("on_input")) name = "(IA)3";
    else if (has("lora_down") && has("lora_up")) name = has("lora_mid") ? "LoCon (Tucker)" : kernel > 1 ? "LoCon" : "LoRA";
    else if (has("lora_embedding_A") && has("lora_embedding_B")) name = "LoRA";
    else if (has("diff") || has("diff_b")) name = "full";
    else if (has("w_norm") || has("b_norm")) name = "norm";
    else if (has("set_weight") || has("set_bias")) name = "replacement";
    else if (has("bias_indices") && has("bias_values")) name = "sparse";
    if (!name.empty() && has("dora_scale")) name = "DoRA of " + name;
    return name;
  }
};

/// The base model by the width that cross-attention takes. Values: the text encoders of the published models.
inline std::string_view base_of_width(std::size_t width) noexcept {
  return width == 768 ? "sd1" : width == 1024 ? "sd2" : width == 2048 ? "sdxl" : width == 1280 ? "sdxl-refiner" : "";
}

/// Reads the modules of a LoRA-like adapter.
class adapter_modules {
 public:
  explicit adapter_modules(adapter_description& out) : out_(out) {}

  void read(const catalog& tensors) {
    for (const catalog_entry& entry : tensors.entries()) {
      if (std::string_view(entry.name).starts_with("bundle_emb.")) continue;
      const adapter_key key = split_adapter_name(entry.name);
      if (key.bit == 0) {
        out_.unknown.push_back(entry.name);
        continue;
      }
      const auto at = modules_.try_emplace(key.module).first;
      adapter_module& module = at->second;
      const auto* row = underscored_prefix(at->first);
      module.part = row ? row->second : dotted_part(at->first);
      module.add(key.bit, entry.tensor.shape());
    }
    for (const auto& [name, module] : modules_) count(name, module);
    choose_base();
  }

 private:
  void count(std::string_view name, const adapter_module& module) {
    const std::string algorithm = module.algorithm();
    if (algorithm.empty()) {
      out_.unknown.push_back(std::string(name));
      return;
    }
    ++out_.modules;
    ++out_.algorithms[algorithm];
    ++out_.parts[std::string(module.part)];
    if (module.has("alpha")) ++out_.alphas;
    if (module.rank != 0) ++out_.ranks[module.rank];
    look_for_base(name, module);
  }

  void look_for_base(std::string_view name, const adapter_module& module) {
    const bool key = has_text(name, "attn2_to_k") || has_text(name, "attn2.to_k") || has_text(name, "attn2.processor.to_k");
    if (key && module.part == "unet" && module.wide && width_ == 0) width_ = module.input[0] * module.input[1], width_name_ = name;
    if (module.part == "text_encoder_2" || has_text(name, "transformer_blocks_1_") || has_text(name, "transformer_blocks.1."))
      if (deep_name_.empty()) deep_name_ = name;
    const bool query = has_text(name, "self_attn_q_proj") || has_text(name, "self_attn.q_proj") || has_text(name, "self_attn.to_q");
    if (query && module.part == "text_encoder" && module.wide && text_width_ == 0) text_width_ = module.input[0] * module.input[1], text_name_ = name;
  }

  void choose_base() {
    const auto say = [&](std::string_view base, std::string_view name, std::string why) {
      out_.base = std::string(base);
      out_.base_reason = quoted(name) + ' ' + std::move(why);
    };
    if (const auto base = base_of_width(width_); !base.empty())
      say(base, width_name_, "takes width " + std::to_string(width_));
    else if (!deep_name_.empty())
      say("sdxl", deep_name_, "exists in SDXL alone");
    else if (text_width_ == 768 || text_width_ == 1024)  // SDXL's first encoder is as wide as SD1's, but comes with a second one
      say(text_width_ == 768 ? "sd1" : "sd2", text_name_, "takes width " + std::to_string(text_width_));
  }

  adapter_description& out_;
  std::map<std::string, adapter_module> modules_;
  std::size_t width_ = 0, text_width_ = 0;
  std::string_view width_name_, deep_name_, text_name_;
};

/// The family of a LoRA-like adapter; every name is looked at, so that one model's stray name does not make it an adapter.
inline std::optional<adapter_family> lora_family(const catalog& tensors, std::string& evidence) {
  std::array<std::size_t, 4> seen{};  // kohya, peft, diffusers, dotted
  std::array<std::string_view, 4> first;
  std::size_t simo = 0;
  std::string_view first_simo;
  for (const catalog_entry& entry : tensors.entries()) {
    const std::string_view name = entry.name;
    if (!cloneofsimo_part(name).empty()) {
      if (simo++ == 0) first_simo = name;
      continue;
    }
    if (split_adapter_name(name).bit == 0) continue;
    const bool peft = has_text(name, ".lora_A.") || has_text(name, ".lora_B.") || has_text(name, "lora_magnitude_vector") ||
                      has_text(name, ".lora_embedding_") || has_text(name, ".modules_to_save.") || name.starts_with("base_model.model.");
    const bool old = has_text(name, "_lora.down.") || has_text(name, "_lora.up.") || has_text(name, ".lora.down.") ||
                     has_text(name, ".lora.up.") || has_text(name, "lora_linear_layer");
    const std::size_t kind = underscored_prefix(name) ? 0 : peft ? 1 : old ? 2 : 3;
    if (seen[kind]++ == 0) first[kind] = name;
  }
  if (simo > 0) return evidence = first_simo, adapter_family::cloneofsimo;
  constexpr adapter_family families[] = {adapter_family::kohya, adapter_family::diffusers, adapter_family::peft, adapter_family::dotted};
  constexpr std::size_t order[] = {0, 2, 1, 3};  // files of diffusers 0.26 and later hold its own names beside PEFT's
  for (std::size_t i = 0; i < 4; ++i)
    if (seen[order[i]] > 0) return evidence = first[order[i]], families[i];
  return std::nullopt;
}

/// `unet:0:up`, `unet:0:down`, …: pairs in the order of the network's modules.
inline void read_cloneofsimo(const catalog& tensors, adapter_description& out) {
  for (const catalog_entry& entry : tensors.entries()) {
    const std::string_view part = cloneofsimo_part(entry.name), name = entry.name;
    const shape_type& shape = entry.tensor.shape();
    if (part.empty()) {
      const std::size_t width = shape.empty() ? 0 : shape.back();
      if (width == 768 || width == 1024) out.embeddings.push_back({entry.name, shape.size() == 1 ? std::size_t{1} : shape[0], width});
      else out.unknown.push_back(entry.name);
      continue;
    }
    if (!name.ends_with(":down") || shape.empty()) continue;
    ++out.modules;
    ++out.algorithms["LoRA"];
    ++out.parts[std::string(part)];
    ++out.ranks[shape[0]];
    if (out.base.empty() && part == "unet" && shape.size() == 2 && (shape[1] == 768 || shape[1] == 1024))
      out.base = base_of_width(shape[1]), out.base_reason = quoted(name) + " takes width " + std::to_string(shape[1]);
  }
}

/// A list of pairs [out, rank], [rank, in] under the names 0, 1, 2, …: cloneofsimo's torch files. Which network they are for is not told.
inline std::optional<adapter_description> paired_list_of(const catalog& tensors) {
  adapter_description out;
  out.family = adapter_family::cloneofsimo;
  const auto entries = tensors.entries();
  if (entries.size() % 2 != 0) return std::nullopt;
  for (std::size_t i = 0; i < entries.size(); i += 2) {
    const shape_type &up = entries[i].tensor.shape(), &down = entries[i + 1].tensor.shape();
    const bool counted = entries[i].name == std::to_string(i) && entries[i + 1].name == std::to_string(i + 1);
    if (!counted || up.size() < 2 || down.size() < 2 || up[1] != down[0]) return std::nullopt;
    ++out.modules;
    ++out.ranks[down[0]];
    const std::size_t width = down[1];
    if (out.base.empty() && down.size() == 2 && (width == 768 || width == 1024) && up[0] != width)
      out.base = base_of_width(width), out.base_reason = "a layer takes width " + std::to_string(width);
  }
  out.algorithms["LoRA"] = out.modules;
  out.evidence = entries[0].name;
  return out;
}

/// Widths of token vectors: CLIP-L, ViT-H, bigG.
constexpr bool is_token_width(std::size_t width) noexcept { return width == 768 || width == 1024 || width == 1280; }

inline std::optional<adapter_embedding> token_vectors(std::string_view name, const shape_type& shape) {
  if (shape.empty() || shape.size() > 2 || !is_token_width(shape.back())) return std::nullopt;
  return adapter_embedding{std::string(name), shape.size() == 1 ? std::size_t{1} : shape[0], shape.back()};
}

inline std::optional<adapter_description> textual_inversion_of(const catalog& tensors) {
  adapter_description out;
  out.family = adapter_family::textual_inversion;
  const auto add = [&](const catalog_entry& entry) {
    auto vectors = token_vectors(entry.name, entry.tensor.shape());
    if (vectors) out.embeddings.push_back(std::move(*vectors));
    return vectors.has_value();
  };
  bool left = false, right = false;
  for (const catalog_entry& entry : tensors.entries()) {
    const std::string_view name = entry.name;
    left = left || name == "clip_l";
    right = right || name == "clip_g";
    if ((name.starts_with("string_to_param.") || name == "emb_params" || name == "clip_l" || name == "clip_g") && add(entry) && out.evidence.empty())
      out.evidence = entry.name;
  }
  if (out.embeddings.empty()) {  // tokens as names: at most a handful of vectors and nothing else
    const bool few = tensors.size() <= 64 && std::all_of(tensors.entries().begin(), tensors.entries().end(), [](const catalog_entry& e) {
      const bool token = e.name.find('.') == std::string::npos;
      return token && token_vectors(e.name, e.tensor.shape()) && (e.tensor.shape().size() == 1 || e.tensor.shape()[0] <= 1024);
    });
    const bool named = tensors.size() == 1 || (few && std::all_of(tensors.entries().begin(), tensors.entries().end(),
                                                                  [](const catalog_entry& e) { return e.name.front() == '<'; }));
    if (!few || !named) return std::nullopt;
    for (const catalog_entry& entry : tensors.entries()) (void)add(entry);
    out.evidence = tensors.entries()[0].name;
  }
  const std::size_t width = out.embeddings[0].width;
  const bool pair = left && right;
  out.base = pair ? "sdxl" : width == 768 ? "sd1" : width == 1024 ? "sd2" : "sdxl";
  out.base_reason = pair ? "vectors for two text encoders" : "vectors of width " + std::to_string(width);
  return out;
}

/// A hypernetwork of the web UI: lists of layers below the width they work on, `<768>.0.linear.0.weight`.
inline std::optional<adapter_description> hypernetwork_of(const catalog& tensors) {
  adapter_description out;
  out.family = adapter_family::hypernetwork;
  std::map<std::size_t, std::size_t> widths;
  for (const catalog_entry& entry : tensors.entries()) {
    std::string_view name = entry.name;
    if (name.starts_with("<")) name.remove_prefix(1);
    std::size_t width = 0, digits = 0;
    for (; digits < name.size() && digits < 5 && name[digits] >= '0' && name[digits] <= '9'; ++digits)
      width = width * 10 + static_cast<std::size_t>(name[digits] - '0');
    const bool known = width == 320 || width == 640 || width == 768 || width == 1024 || width == 1280 || width == 2048;
    if (digits == 0 || !known || !has_text(name, "linear")) continue;
    if (out.evidence.empty()) out.evidence = entry.name;
    ++widths[width];
  }
  if (widths.empty()) return std::nullopt;
  out.modules = widths.size();
  for (const std::size_t width : {std::size_t{768}, std::size_t{1024}, std::size_t{2048}})
    if (widths.count(width) && out.base.empty()) out.base = base_of_width(width), out.base_reason = "a network for width " + std::to_string(width);
  return out;
}

}  // namespace detail

/// Tells what adapter these tensors are; nothing if they are none. Time is O(n log n) in the number of tensors.
/// Sources of names and shapes: the savers of kohya-ss/sd-scripts, LyCORIS, PEFT, diffusers, cloneofsimo/lora and the web UI.
inline std::optional<adapter_description> recognize_adapter(const catalog& tensors) {
  if (tensors.empty()) return std::nullopt;
  adapter_description out;
  if (const auto family = detail::lora_family(tensors, out.evidence)) {
    out.family = *family;
    if (*family == adapter_family::cloneofsimo) detail::read_cloneofsimo(tensors, out);
    else detail::adapter_modules(out).read(tensors);
    for (const catalog_entry& entry : tensors.entries())
      if (std::string_view(entry.name).starts_with("bundle_emb."))
        if (auto vectors = detail::token_vectors(entry.name, entry.tensor.shape())) out.embeddings.push_back(std::move(*vectors));
    // A model with a stray name of this kind stays a model.
    if (out.modules != 0 && out.unknown.size() * 2 <= tensors.size()) return out;
  }
  if (auto pairs = detail::paired_list_of(tensors)) return pairs;
  if (auto embedding = detail::textual_inversion_of(tensors)) return embedding;
  return detail::hypernetwork_of(tensors);
}

/// Tells models that are no Stable Diffusion pipeline, by names that only they have: "a ControlNet", "an ESRGAN upscaler". `evidence`
/// receives the name. Empty if none is recognised.
inline std::string_view recognize_network(const catalog& tensors, std::string& evidence) {
  struct network_mark {
    std::string_view text;
    bool prefix;
    std::string_view network;
  };
  constexpr network_mark marks[] = {
      {"lora_controlnet", true, "a Control-LoRA"},
      {"control_model.", true, "a ControlNet (original names)"},
      {"controlnet_cond_embedding.", true, "a ControlNet (diffusers names)"},
      {"input_hint_block.", false, "a ControlNet (original names)"},
      {"motion_modules.", false, "an AnimateDiff motion module"},
      {"image_proj", true, "an IP-Adapter"},
      {"ip_adapter", true, "an IP-Adapter"},
      {"adapter.body.", true, "a T2I-Adapter"},
      {"double_blocks.", false, "a Flux model"},
      {"single_transformer_blocks.", false, "a Flux model (diffusers names)"},
      {"joint_blocks.", false, "a Stable Diffusion 3 model"},
      {"transformer_blocks.0.ff_context.", false, "a Stable Diffusion 3 model (diffusers names)"},
      {"clip_txt_mapper.", false, "a Stable Cascade model"},
      {"noise_augmentor.", true, "a Stable unCLIP model"},
      {"SelfAttention.relative_attention_bias", false, "a T5 text encoder"},
      {"body.0.rdb1.", true, "an ESRGAN upscaler"},
      {"RRDB_trunk.", true, "an ESRGAN upscaler"},
      {"model.1.sub.0.RDB1.", true, "an ESRGAN upscaler"},
      {"residual_group.blocks.", false, "a SwinIR upscaler"},
      {"stylegan_decoder.", true, "a GFPGAN face restorer"},
      {"fuse_convs_dict.", true, "a CodeFormer face restorer"},
      {"concept_embeds", true, "a safety checker"},
      {"vision_model.", true, "a CLIP image encoder"},
      {"model.layers.0.self_attn.", true, "a language model of transformers"},
      {"transformer.h.0.attn.", true, "a GPT-2 model"},
      {"blk.0.attn_", true, "a language model of llama.cpp"},
  };
  const network_mark* found = nullptr;
  for (const catalog_entry& entry : tensors.entries()) {
    for (const network_mark& mark : marks) {
      if (found && &mark >= found) break;  // an earlier row is the stronger sign
      const std::string_view name = entry.name;
      if (mark.prefix ? name.starts_with(mark.text) : detail::has_text(name, mark.text)) {
        found = &mark;
        evidence = entry.name;
        break;
      }
    }
  }
  return found ? found->network : std::string_view();
}

TENSORSMITH_END_NAMESPACE
