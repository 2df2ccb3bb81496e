// SPDX-License-Identifier: MIT
//
// tensorsmith/format/diffusers/names.hpp: parameter names that changed between releases of diffusers and transformers, made one.
//
// Include this to read component files of any age: the names that come out are those of diffusers 0.17 and later, and those of
// transformers before 5.6, which the rest of the library uses.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A text encoder's parameter with its `text_model.` level, which transformers leaves out from release 5.6 on and the first SD1
/// checkpoints did, too.
inline std::string classic_clip_name(std::string_view name) {
  for (const std::string_view head : {"embeddings.", "encoder.", "final_layer_norm."})
    if (name.substr(0, head.size()) == head) return "text_model." + std::string(name);
  return std::string(name);
}

/// An autoencoder's parameter with the attention names of diffusers 0.17 and later: `query`, `key`, `value` and `proj_attn` become
/// `to_q`, `to_k`, `to_v` and `to_out.0`.
inline std::string modern_vae_name(std::string_view name) {
  constexpr std::string_view level = ".mid_block.attentions.0.";
  constexpr std::pair<std::string_view, std::string_view> renamed[] = {
      {"query.", "to_q."}, {"key.", "to_k."}, {"value.", "to_v."}, {"proj_attn.", "to_out.0."}};
  const auto at = name.find(level);
  if (at != std::string_view::npos) {
    const std::string_view rest = name.substr(at + level.size());
    for (const auto& [old_name, new_name] : renamed)
      if (rest.substr(0, old_name.size()) == old_name)
        return std::string(name.substr(0, at + level.size())) + std::string(new_name) + std::string(rest.substr(old_name.size()));
  }
  return std::string(name);
}

/// True for the projection weights of an autoencoder's attention: matrices [c, c] here, [c, c, 1, 1] in some files.
inline bool is_vae_projection(std::string_view name) noexcept {
  constexpr std::string_view level = ".mid_block.attentions.0.";
  const auto at = name.find(level);
  if (at == std::string_view::npos) return false;
  const std::string_view rest = name.substr(at + level.size());
  return rest == "to_q.weight" || rest == "to_k.weight" || rest == "to_v.weight" || rest == "to_out.0.weight";
}

TENSORSMITH_END_NAMESPACE
