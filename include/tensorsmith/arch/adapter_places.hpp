// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/adapter_places.hpp: which layer of Stable Diffusion a module of an adapter means, without a model at hand.
//
// Include this to bring the modules of several adapters together: every layer that SD1, SD2, SDXL or the refiner have is entered under all names
// that trainers give it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/adapter.hpp"
#include "tensorsmith/arch/adapter_targets.hpp"
#include "tensorsmith/tensor/memory.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A layer: its component and its path there with dots, in diffusers' and transformers' names. Where no such model has it: the part that the
/// name's beginning tells, and the name itself.
struct adapter_place {
  std::string component, path;
  bool known = false;

  bool operator==(const adapter_place&) const = default;
  bool operator<(const adapter_place& other) const { return component != other.component ? component < other.component : path < other.path; }
  /// True for the layers whose kernels are 3×3, so that factors without a kernel's dimensions can be given theirs.
  bool wide_kernel() const {
    if (component != "unet" || !known) return false;
    for (const std::string_view tail : {".conv1", ".conv2", ".downsamplers.0.conv", ".upsamplers.0.conv"})
      if (std::string_view(path).ends_with(tail)) return true;
    return path == "conv_in" || path == "conv_out";
  }
};

namespace detail {

/// The paths of the layers of any UNet here. `first_up_attention`: the first up block has attention, as SDXL's does.
inline std::vector<std::string> unet_layer_paths(bool first_up_attention) {
  std::vector<std::string> out{"conv_in", "conv_out", "conv_norm_out", "time_embedding.linear_1", "time_embedding.linear_2", "add_embedding.linear_1",
                               "add_embedding.linear_2"};
  const auto add_resnet = [&](const std::string& head) {
    for (const char* name : {"norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"}) out.push_back(head + name);
  };
  const auto add_attention = [&](const std::string& head) {
    constexpr std::size_t deepest = 10;  // SDXL's innermost blocks
    for (const char* name : {"norm", "proj_in", "proj_out"}) out.push_back(head + name);
    for (std::size_t k = 0; k < deepest; ++k)
      for (const char* name : {"norm1", "norm2", "norm3", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k",
                               "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"})
        out.push_back(head + "transformer_blocks." + std::to_string(k) + '.' + name);
  };
  for (std::size_t i = 0; i < 4; ++i)
    for (const bool up : {false, true}) {
      const std::string block = (up ? "up_blocks." : "down_blocks.") + std::to_string(i) + '.';
      for (std::size_t j = 0; j < (up ? 3u : 2u); ++j) {
        add_resnet(block + "resnets." + std::to_string(j) + '.');
        if (!up || i > 0 || first_up_attention) add_attention(block + "attentions." + std::to_string(j) + '.');
      }
      out.push_back(block + (up ? "upsamplers.0.conv" : "downsamplers.0.conv"));
    }
  add_resnet("mid_block.resnets.0."), add_resnet("mid_block.resnets.1."), add_attention("mid_block.attentions.0.");
  return out;
}

inline std::vector<std::string> clip_layer_paths(std::size_t layers) {
  std::vector<std::string> out{"text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding", "text_model.final_layer_norm",
                               "text_projection"};
  for (std::size_t i = 0; i < layers; ++i)
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1",
                             "layer_norm2"})
      out.push_back("text_model.encoder.layers." + std::to_string(i) + '.' + name);
  return out;
}

}  // namespace detail

/// The table of all layers. Construction enters about 10,000 names; look-ups are binary searches.
class adapter_places {
 public:
  adapter_places() : two_encoders_(skeleton(true)), one_encoder_(skeleton(false)), both_(two_encoders_), single_(one_encoder_) {}
  adapter_places(const adapter_places&) = delete;
  adapter_places& operator=(const adapter_places&) = delete;

  /// The layer of a module, by its name as arch/adapter.hpp gives it.
  adapter_place find(std::string_view module) const {
    if (const auto found = both_.find(module)) return {two_encoders_.components[found->component].name, found->module, true};
    if (const auto found = single_.find(module)) return {one_encoder_.components[found->component].name, found->module, true};
    const auto* const prefix = detail::underscored_prefix(module);
    return {std::string(prefix ? prefix->second : detail::dotted_part(module)), std::string(module), false};
  }

  /// kohya's name of a layer; `ldm`: the UNet in the original names, as kohya writes them for SDXL; `two_encoders`: the text encoders are numbered,
  /// and the UNet is one whose first up block has attention. Layers that no model has keep their names.
  static std::string kohya_name(const adapter_place& place, bool ldm, bool two_encoders) {
    if (!place.known) return place.path;
    std::string path = place.path;
    if (ldm && place.component == "unet") {
      unet_name_layout layout;
      layout.up_attention = {two_encoders, true, true, true};
      if (const auto name = unet_name_to_ldm(path + ".weight", layout)) path = name->substr(0, name->size() - std::string_view(".weight").size());
    }
    std::replace(path.begin(), path.end(), '.', '_');
    return (place.component == "unet"             ? "lora_unet_"
            : place.component == "text_encoder_2" ? "lora_te2_"
            : two_encoders                        ? "lora_te1_"
                                                  : "lora_te_") +
           path;
  }

 private:
  /// A pipeline of names alone.
  static package skeleton(bool two_encoders) {
    package out;
    const tensor_ref nothing = in_memory({"", dtype::f32, {1}}, std::vector<std::byte>(4));
    const auto add = [&](std::string name, const std::vector<std::string>& paths) {
      component& part = out.components.emplace_back();
      part.name = std::move(name);
      std::vector<catalog_entry> entries;
      for (const std::string& path : paths) entries.push_back({path + ".weight", nothing, {}});
      (void)part.weights.add_all(std::move(entries));  // cannot fail: the names are unique
    };
    add("unet", detail::unet_layer_paths(two_encoders));
    add("text_encoder", detail::clip_layer_paths(two_encoders ? 12 : 32));
    if (two_encoders) add("text_encoder_2", detail::clip_layer_paths(32));
    return out;
  }

  package two_encoders_, one_encoder_;
  adapter_targets both_, single_;
};

TENSORSMITH_END_NAMESPACE
