// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/names/clip.hpp: names of CLIP text encoders that a checkpoint keeps under transformers' names (SD1, SDXL encoder 1).
//
// Inside the prefix (`cond_stage_model.transformer.`, `conditioner.embedders.0.transformer.`) the names are transformers' own; early
// files lack the `text_model.` level.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "tensorsmith/arch/names/path.hpp"
#include "tensorsmith/format/diffusers/names.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Modules of one encoder layer.
inline constexpr std::string_view clip_layer_modules[] = {
    "layer_norm1",        "layer_norm2",      "self_attn.q_proj", "self_attn.k_proj",
    "self_attn.v_proj",   "self_attn.out_proj", "mlp.fc1",          "mlp.fc2"};
/// Modules outside the layers.
inline constexpr std::string_view clip_outer_modules[] = {
    "text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding", "text_model.final_layer_norm",
    "text_projection"};

/// The transformers name of a parameter of a CLIP text encoder (prefix already stripped). Nothing if it has no such parameter.
inline std::optional<std::string> clip_name_to_diffusers(std::string_view ldm) {
  std::string name = classic_clip_name(ldm);
  for (const std::string_view module : clip_outer_modules)
    if (path_reader path(name); path.take(module) && (path.rest() == "weight" || path.rest() == "bias")) return name;
  path_reader path(name);
  if (!path.take("text_model.encoder.layers") || !path.take_index()) return std::nullopt;
  for (const std::string_view module : clip_layer_modules)
    if (path_reader inner = path; inner.take(module) && (inner.rest() == "weight" || inner.rest() == "bias")) return name;
  return std::nullopt;
}

/// The inverse: the name is the same.
inline std::optional<std::string> clip_name_to_ldm(std::string_view diffusers) { return clip_name_to_diffusers(diffusers); }

TENSORSMITH_END_NAMESPACE
