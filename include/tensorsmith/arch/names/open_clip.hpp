// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/names/open_clip.hpp: names of OpenCLIP text encoders (ViT-H of SD2, bigG of SDXL) ↔ transformers.
//
// Two things are more than a rename: the query, key and value projections are stacked in one matrix, and the text projection lies
// transposed (it is square, so shapes do not show it).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/arch/names/path.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How a parameter changes on its way between OpenCLIP and transformers.
enum class open_clip_action : std::uint8_t {
  copy,       ///< as it is
  transpose,  ///< rows and columns exchanged
  third,      ///< one of three equal stacks of rows: 0 query, 1 key, 2 value
};

/// One parameter of the other side.
struct open_clip_target {
  std::string name;
  open_clip_action action = open_clip_action::copy;
  std::size_t part = 0;  ///< which third
};

/// Parameters outside the layers.
inline constexpr name_pair open_clip_outer_names[] = {
    {"positional_embedding", "text_model.embeddings.position_embedding.weight"},
    {"token_embedding", "text_model.embeddings.token_embedding"},
    {"ln_final", "text_model.final_layer_norm"},
};
/// Modules of a layer that are only renamed.
inline constexpr name_pair open_clip_layer_names[] = {
    {"ln_1", "layer_norm1"},     {"ln_2", "layer_norm2"},
    {"mlp.c_fc", "mlp.fc1"},     {"mlp.c_proj", "mlp.fc2"},
    {"attn.out_proj", "self_attn.out_proj"},
};
/// The stacked projections.
inline constexpr name_pair open_clip_stacked_names[] = {
    {"attn.in_proj_weight", "weight"}, {"attn.in_proj_bias", "bias"},
};
inline constexpr std::string_view open_clip_thirds[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};

/// What becomes of an OpenCLIP parameter (prefix already stripped): one target, three for stacked projections, none if unknown.
inline std::vector<open_clip_target> open_clip_name_to_diffusers(std::string_view ldm) {
  // Playground's files call the projection text_projection.weight.weight; re-saved modules text_projection.weight.
  if (ldm == "text_projection" || ldm == "text_projection.weight" || ldm == "text_projection.weight.weight")
    return {{"text_projection.weight", open_clip_action::transpose, 0}};
  if (auto name = rename_head(ldm, open_clip_outer_names, true)) return {{std::move(*name), open_clip_action::copy, 0}};
  path_reader path(ldm);
  if (!path.take("transformer.resblocks")) return {};
  const auto layer = path.take_index();
  if (!layer) return {};
  const std::string head = detail::dotted("text_model.encoder.layers", *layer, "");
  for (const name_pair& stacked : open_clip_stacked_names)
    if (path.rest() == stacked.ldm) {
      std::vector<open_clip_target> out;
      for (std::size_t part = 0; part < 3; ++part)
        out.push_back({head + std::string(open_clip_thirds[part]) + "." + std::string(stacked.diffusers),
                       open_clip_action::third, part});
      return out;
    }
  if (auto tail = rename_head(path.rest(), open_clip_layer_names, true)) return {{head + *tail, open_clip_action::copy, 0}};
  return {};
}

/// The inverse: where a parameter of transformers lies in an OpenCLIP file. With action `third` it is that stack of the named one.
inline std::optional<open_clip_target> open_clip_name_to_ldm(std::string_view diffusers) {
  if (diffusers == "text_projection.weight") return open_clip_target{"text_projection", open_clip_action::transpose, 0};
  if (auto name = rename_head(diffusers, open_clip_outer_names, false))
    return open_clip_target{std::move(*name), open_clip_action::copy, 0};
  path_reader path(diffusers);
  if (!path.take("text_model.encoder.layers")) return std::nullopt;
  const auto layer = path.take_index();
  if (!layer) return std::nullopt;
  const std::string head = detail::dotted("transformer.resblocks", *layer, "");
  for (std::size_t part = 0; part < 3; ++part)
    if (path_reader third = path; third.take(open_clip_thirds[part]))
      for (const name_pair& stacked : open_clip_stacked_names)
        if (third.rest() == stacked.diffusers)
          return open_clip_target{head + std::string(stacked.ldm), open_clip_action::third, part};
  if (auto tail = rename_head(path.rest(), open_clip_layer_names, false))
    return open_clip_target{head + *tail, open_clip_action::copy, 0};
  return std::nullopt;
}

TENSORSMITH_END_NAMESPACE
