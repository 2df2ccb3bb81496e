// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/adapter_targets.hpp: which layer of a pipeline a module of an adapter changes: looked up, never parsed.
//
// Include this to resolve the names of adapters. Every layer of the pipeline is entered under all names that trainers give it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/names/unet.hpp"
#include "tensorsmith/arch/recognize_adapter.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A layer: the component it belongs to and its path there ("mid_block.attentions.0.proj_in"), with diffusers' and transformers' names.
struct adapter_target {
  std::size_t component = 0;
  std::string module;
  bool operator==(const adapter_target&) const = default;
};

/// Why a module has no layer.
struct adapter_miss {
  enum class kind : std::uint8_t {
    unknown,      ///< no layer of any known name
    expected,     ///< a layer that this pipeline leaves out, or of a component that is not here: harmless
    unsupported,  ///< a layer of a network that adapters are not merged into here
  };
  kind what = kind::unknown;
  std::string reason;  ///< one clause, for reports
};

/// All layers of a pipeline (components "unet", "text_encoder", "text_encoder_2") by the names that adapters use:
/// - kohya and LyCORIS: prefix and path with underscores, the UNet in diffusers' and in the original names (the two sets never meet);
/// - PEFT and diffusers: component and path with dots, or the path alone.
class adapter_targets {
 public:
  using row = std::pair<std::string, adapter_target>;

  explicit adapter_targets(const package& model) : family_(model.family) {
    const component *const first = model.find("text_encoder"), *const second = model.find("text_encoder_2");
    for (std::size_t i = 0; i < model.components.size(); ++i) {
      const component& part = model.components[i];
      if (part.name == "unet") add_unet(i, part);
      else if (part.name == "text_encoder") add_text_encoder(i, part, {"lora_te1_", "lycoris_text_encoder_", "lycoris_te1_"}, second == nullptr);
      else if (part.name == "text_encoder_2") add_text_encoder(i, part, {"lora_te2_", "lycoris_text_encoder_2_", "lycoris_te2_"}, first == nullptr);
    }
    has_unet_ = model.find("unet") != nullptr, has_first_ = first != nullptr, has_second_ = second != nullptr;
    if (const component* encoder = first ? first : second) layers_ = layers_of(*encoder);
    std::stable_sort(names_.begin(), names_.end(), [](const row& a, const row& b) { return a.first < b.first; });
    names_.erase(std::unique(names_.begin(), names_.end()), names_.end());
  }

  /// The layer of a module, or nothing. Accepts the names of modules as arch/adapter.hpp gives them.
  std::optional<adapter_target> find(std::string_view module) const {
    if (auto found = look_up(module)) return found;
    return look_up(detail::plain_module(module));
  }

  /// Why `module` has no layer. @pre find gives none
  adapter_miss explain(std::string_view module) const {
    using kind = adapter_miss::kind;
    for (const auto& [head, network] : foreign_names)
      if (module.starts_with(head)) return {kind::unsupported, "it belongs to " + std::string(network) + ", which is not supported"};
    const std::string dotted = detail::plain_module(module);
    const bool second = starts(module, dotted, {"lora_te2_", "lycoris_text_encoder_2_", "lycoris_te2_"}, "text_encoder_2.");
    const bool encoder = second || starts(module, dotted, {"lora_te_", "lora_te1_", "lycoris_text_", "lycoris_te1_"}, "text_encoder.") ||
                         dotted.starts_with("text_model.") || dotted.starts_with("encoder.layers.");
    if (!encoder) {
      if (!has_unet_) return {kind::expected, "no UNet is converted"};
      return {kind::unknown, "the model has no such layer"};
    }
    if (!has_first_ && !has_second_) return {kind::expected, "no text encoder is converted"};
    if (second && !has_second_)
      return family_ == "sdxl" ? adapter_miss{kind::expected, "the second text encoder is not converted"}
                               : adapter_miss{kind::unknown, "the model has one text encoder"};
    if (!second && !has_first_ && family_ == "sdxl") return {kind::expected, "the first text encoder is not converted"};
    if (module.ends_with("text_projection")) return {kind::expected, "the pipeline does not use this encoder's projection"};
    // OpenCLIP's ViT-H has 24 layers; Stable Diffusion 2 takes the states before the last one, and its published encoders lack it.
    if (!second && layers_ == 23 && (module.find("_layers_23_") != module.npos || module.find(".layers.23.") != module.npos))
      return {kind::expected, "Stable Diffusion 2 does not have the encoder's last layer"};
    return {kind::unknown, "the text encoder has no such layer"};
  }

  /// All names and their layers, sorted by name.
  std::span<const row> names() const noexcept { return names_; }

 private:
  /// How modules of networks begin that no adapter is merged into here.
  static constexpr std::pair<std::string_view, std::string_view> foreign_names[] = {
      {"lora_te3_", "the third text encoder of Stable Diffusion 3 or Flux"},
      {"text_encoder_3.", "the third text encoder of Stable Diffusion 3 or Flux"},
      {"lora_transformer_", "a diffusion transformer"},
      {"lycoris_transformer_", "a diffusion transformer"},
      {"transformer.", "a diffusion transformer"},
      {"lora_prior_unet_", "the prior of Stable Cascade"},
      {"lora_vae_", "an autoencoder"},
      {"vae.", "an autoencoder"},
      {"lora_controlnet", "a Control-LoRA"},
      {"lllite_", "a ControlNet-LLLite"},
  };

  static bool starts(std::string_view module, std::string_view dotted, std::initializer_list<std::string_view> heads, std::string_view component) {
    return dotted.starts_with(component) || std::any_of(heads.begin(), heads.end(), [&](std::string_view head) { return module.starts_with(head); });
  }
  static std::string underscored(std::string_view path) {
    std::string out(path);
    std::replace(out.begin(), out.end(), '.', '_');
    return out;
  }
  /// The paths of the layers that have a parameter, each once.
  static std::vector<std::string> modules_of(const component& part) {
    std::vector<std::string> out;
    for (const catalog_entry& entry : part.weights.entries()) {
      const std::string_view name = entry.name;
      const std::size_t dot = name.rfind('.');
      if (dot != std::string_view::npos && (name.substr(dot) == ".weight" || name.substr(dot) == ".bias")) out.emplace_back(name.substr(0, dot));
    }
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
  }
  /// Transformer layers of a text encoder.
  static std::size_t layers_of(const component& part) {
    std::size_t count = 0;
    while (part.weights.contains("text_model.encoder.layers." + std::to_string(count) + ".self_attn.q_proj.weight")) ++count;
    return count;
  }

  void add_unet(std::size_t index, const component& part) {
    constexpr std::string_view prefixes[] = {"lora_unet_", "oft_unet_", "lycoris_", "lycoris_unet_"};
    std::vector<std::string_view> names;
    for (const catalog_entry& entry : part.weights.entries()) names.push_back(entry.name);
    const unet_name_layout layout = unet_layout_of_diffusers(names);
    for (const std::string& module : modules_of(part)) {
      const adapter_target target{index, module};
      const std::string path = underscored(module);
      for (const std::string_view prefix : prefixes) names_.emplace_back(std::string(prefix) + path, target);
      for (const std::string_view prefix : {"unet.", "diffusion_model.", ""}) names_.emplace_back(std::string(prefix) + module, target);
      const auto original = unet_name_to_ldm(module + ".weight", layout);
      if (!original) continue;
      const std::string_view dots = std::string_view(*original).substr(0, original->size() - 7);
      const std::string ldm = underscored(dots);
      for (const std::string_view prefix : prefixes) names_.emplace_back(std::string(prefix) + ldm, target);
      for (const char* prefix : {"diffusion_model.", "model.diffusion_model."}) names_.emplace_back(prefix + std::string(dots), target);
      // The upsampler of a block is its sub-module 2 after an attention and 1 without; LyCORIS always writes 2, the web UI's names of SDXL 1.
      if (!ldm.starts_with("output_blocks_") || !ldm.ends_with("_conv")) continue;
      std::string other = ldm;
      other[other.size() - 6] = other[other.size() - 6] == '1' ? '2' : '1';
      for (const std::string_view prefix : prefixes) names_.emplace_back(std::string(prefix) + other, target);
    }
  }

  /// `only`: the pipeline has no other encoder, so that names which do not say which one mean this one.
  void add_text_encoder(std::size_t index, const component& part, std::initializer_list<std::string_view> prefixes, bool only) {
    for (const std::string& module : modules_of(part)) {
      const adapter_target target{index, module};
      constexpr std::string_view wrapper = "text_model.";  // transformers 5 leaves it out
      add_path(module, target, prefixes, part.name, only);
      if (std::string_view(module).starts_with(wrapper)) add_path(module.substr(wrapper.size()), target, prefixes, part.name, only);
    }
  }
  void add_path(const std::string& module, const adapter_target& target, std::initializer_list<std::string_view> prefixes,
                const std::string& component, bool only) {
    const bool first = component == "text_encoder";
    const std::string path = underscored(module);
    for (const std::string_view prefix : prefixes) names_.emplace_back(std::string(prefix) + path, target);
    if (only) names_.emplace_back("lora_te_" + path, target);
    if (only && !first) names_.emplace_back("lora_te1_" + path, target);
    names_.emplace_back(component + "." + module, target);
    if (!first && !only) return;  // a path alone, or LyCORIS around an encoder, is the first one
    names_.emplace_back("lycoris_" + path, target);
    names_.emplace_back(module, target);
  }

  std::optional<adapter_target> look_up(std::string_view name) const {
    const auto at = std::lower_bound(names_.begin(), names_.end(), name, [](const row& r, std::string_view n) { return r.first < n; });
    if (at == names_.end() || at->first != name) return std::nullopt;
    return at->second;
  }

  std::string family_;
  bool has_unet_ = false, has_first_ = false, has_second_ = false;
  std::size_t layers_ = 0;  // of the first text encoder, or the only one
  std::vector<row> names_;
};

TENSORSMITH_END_NAMESPACE
