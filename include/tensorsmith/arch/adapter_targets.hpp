// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/adapter_targets.hpp: which layer of a pipeline a module of an adapter changes: looked up, never parsed.
//
// Include this to resolve the names of adapters. Every layer of the pipeline is entered under all names that trainers give it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/names/unet.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A layer: the component it belongs to and its path there ("mid_block.attentions.0.proj_in"), with diffusers' and transformers' names.
struct adapter_target {
  std::size_t component = 0;
  std::string module;
  bool operator==(const adapter_target&) const = default;
};

/// All layers of a pipeline (components "unet", "text_encoder", "text_encoder_2") by the names that adapters use:
/// - kohya and LyCORIS: prefix and path with underscores, the UNet in diffusers' and in the original names (the two sets never meet);
/// - PEFT and diffusers: component and path with dots, or the path alone.
class adapter_targets {
 public:
  explicit adapter_targets(const package& model) {
    const bool two_encoders = model.find("text_encoder") != nullptr && model.find("text_encoder_2") != nullptr;
    for (std::size_t i = 0; i < model.components.size(); ++i) {
      const component& part = model.components[i];
      if (part.name == "unet") add_unet(i, part);
      else if (part.name == "text_encoder") add_text_encoder(i, part, two_encoders ? std::initializer_list<std::string_view>{"lora_te1_", "lycoris_text_encoder_"}
                                                                                    : std::initializer_list<std::string_view>{"lora_te_", "lora_te1_", "lycoris_text_encoder_"});
      else if (part.name == "text_encoder_2") add_text_encoder(i, part, {"lora_te2_", "lycoris_text_encoder_2_"});
    }
    std::sort(names_.begin(), names_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  }

  /// The layer of a module, or nothing. Accepts the names of modules as arch/adapter.hpp gives them.
  std::optional<adapter_target> find(std::string_view module) const {
    if (auto found = look_up(module)) return found;
    return look_up(plain(module));
  }

 private:
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

  void add_unet(std::size_t index, const component& part) {
    std::vector<std::string_view> names;
    for (const catalog_entry& entry : part.weights.entries()) names.push_back(entry.name);
    const unet_name_layout layout = unet_layout_of_diffusers(names);
    for (const std::string& module : modules_of(part)) {
      const adapter_target target{index, module};
      const std::string path = underscored(module);
      for (const std::string_view prefix : {"lora_unet_", "oft_unet_", "lycoris_", "lycoris_unet_"}) names_.emplace_back(std::string(prefix) + path, target);
      names_.emplace_back("unet." + module, target);
      names_.emplace_back(module, target);
      const auto original = unet_name_to_ldm(module + ".weight", layout);
      if (!original) continue;
      const std::string ldm = underscored(std::string_view(*original).substr(0, original->size() - 7));
      for (const std::string_view prefix : {"lora_unet_", "oft_unet_"}) names_.emplace_back(std::string(prefix) + ldm, target);
      // LyCORIS numbers the upsampler of the first block 2 also where it is 1.
      if (ldm.ends_with("_1_conv")) names_.emplace_back("lora_unet_" + ldm.substr(0, ldm.size() - 7) + "_2_conv", target);
    }
  }

  void add_text_encoder(std::size_t index, const component& part, std::initializer_list<std::string_view> prefixes) {
    for (const std::string& module : modules_of(part)) {
      const adapter_target target{index, module};
      for (const std::string_view prefix : prefixes) names_.emplace_back(std::string(prefix) + underscored(module), target);
      names_.emplace_back(part.name + "." + module, target);
      if (part.name == "text_encoder") names_.emplace_back(module, target);
    }
  }

  std::optional<adapter_target> look_up(std::string_view name) const {
    const auto at = std::lower_bound(names_.begin(), names_.end(), name, [](const auto& row, std::string_view n) { return row.first < n; });
    if (at == names_.end() || at->first != name) return std::nullopt;
    return at->second;
  }

  /// A dotted name without wrappers and with the plain names of layers: `unet.unet.….attn1.processor.to_out` → `unet.….attn1.to_out.0`.
  static std::string plain(std::string_view module) {
    if (module.starts_with("base_model.model.")) module.remove_prefix(17);
    while (module.starts_with("unet.unet.")) module.remove_prefix(5);
    std::string out(module);
    if (const std::size_t at = out.find(".processor."); at != std::string::npos) out.erase(at, 10);
    const auto ends = [&](std::string_view tail) { return out.size() > tail.size() && std::string_view(out).ends_with(tail); };
    const bool text = out.find("self_attn.") != std::string::npos;
    constexpr std::pair<std::string_view, std::string_view> old_names[] = {
        {".to_q", ".q_proj"}, {".to_k", ".k_proj"}, {".to_v", ".v_proj"}, {".to_out", ".out_proj"}};
    for (const auto& [old, name] : old_names)
      if (text && ends(old)) return out.replace(out.size() - old.size(), old.size(), name);
    if (ends(".to_out")) out += ".0";
    return out;
  }

  std::vector<std::pair<std::string, adapter_target>> names_;
};

TENSORSMITH_END_NAMESPACE
