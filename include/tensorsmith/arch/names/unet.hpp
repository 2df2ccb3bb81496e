// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/names/unet.hpp: names of UNet parameters, LDM ↔ diffusers.
//
// Include this to read a checkpoint's `model.diffusion_model.` part, to write one, or to map adapter keys. No tensor is reshaped
// or transposed by this map.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/arch/names/path.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What the names of a UNet depend on besides the table.
struct unet_name_layout {
  std::size_t layers_per_block = 2;  ///< resnets of a down block; LDM numbers down and up blocks in steps of one more
  std::vector<bool> up_attention;    ///< diffusers → LDM: up block i has attention, so its upsampler is sub-module 2, not 1
  bool class_embedding = false;      ///< LDM → diffusers: `label_emb` is `class_embedding` (unCLIP), not `add_embedding`
};

/// Modules outside the blocks.
inline constexpr name_pair unet_outer_names[] = {
    {"input_blocks.0.0", "conv_in"},
    {"time_embed.0", "time_embedding.linear_1"},
    {"time_embed.2", "time_embedding.linear_2"},
    {"time_embed.cond_proj", "time_embedding.cond_proj"},
    {"label_emb.0.0", "add_embedding.linear_1"},
    {"label_emb.0.2", "add_embedding.linear_2"},
    {"label_emb.weight", "class_embedding.weight"},
    {"out.0", "conv_norm_out"},
    {"out.2", "conv_out"},
};
/// `label_emb` of unCLIP models.
inline constexpr name_pair unet_class_names[] = {
    {"label_emb.0.0", "class_embedding.linear_1"},
    {"label_emb.0.2", "class_embedding.linear_2"},
};
/// Modules of a resnet.
inline constexpr name_pair unet_resnet_names[] = {
    {"in_layers.0", "norm1"},  {"in_layers.2", "conv1"},  {"emb_layers.1", "time_emb_proj"},
    {"out_layers.0", "norm2"}, {"out_layers.3", "conv2"}, {"skip_connection", "conv_shortcut"},
};
/// Modules of a transformer; they have the same names in both.
inline constexpr std::string_view unet_attention_modules[] = {"norm", "proj_in", "transformer_blocks", "proj_out"};

namespace detail {

inline bool is_unet_attention(std::string_view rest) noexcept {
  for (const std::string_view module : unet_attention_modules)
    if (path_reader path(rest); path.take(module) && !path.empty()) return true;
  return false;
}

inline std::optional<std::string> with_head(std::string head, std::optional<std::string> tail) {
  if (!tail) return std::nullopt;
  return head + *tail;
}

inline std::optional<std::string> unet_input_to_diffusers(path_reader path, std::size_t layers) {
  const auto n = path.take_index(), sub = path.take_index();
  if (!n || !sub || *n == 0 || path.empty()) return std::nullopt;
  const std::size_t i = (*n - 1) / (layers + 1), j = (*n - 1) % (layers + 1);
  if (j == layers) {
    if (*sub != 0 || !path.take("op")) return std::nullopt;
    return dotted("down_blocks", i, "downsamplers.0.conv." + std::string(path.rest()));
  }
  if (*sub == 0)
    return with_head(dotted("down_blocks", i, "resnets", j, ""), rename_head(path.rest(), unet_resnet_names, true));
  if (*sub != 1 || !is_unet_attention(path.rest())) return std::nullopt;
  return dotted("down_blocks", i, "attentions", j, path.rest());
}

inline std::optional<std::string> unet_output_to_diffusers(path_reader path, std::size_t layers) {
  const auto n = path.take_index(), sub = path.take_index();
  if (!n || !sub || path.empty()) return std::nullopt;
  const std::size_t i = *n / (layers + 1), j = *n % (layers + 1);
  if (*sub == 0)
    return with_head(dotted("up_blocks", i, "resnets", j, ""), rename_head(path.rest(), unet_resnet_names, true));
  // Sub-module 1 is the attention, but the upsampler where the block has none: only the latter holds `conv`.
  if (path_reader up = path; *sub <= 2 && up.take("conv"))
    return j == layers ? std::optional(dotted("up_blocks", i, "upsamplers.0.conv." + std::string(up.rest()))) : std::nullopt;
  if (*sub != 1 || !is_unet_attention(path.rest())) return std::nullopt;
  return dotted("up_blocks", i, "attentions", j, path.rest());
}

inline std::optional<std::string> unet_middle_to_diffusers(path_reader path) {
  const auto sub = path.take_index();
  if (!sub || path.empty()) return std::nullopt;
  if (*sub == 1) return is_unet_attention(path.rest()) ? std::optional("mid_block.attentions.0." + std::string(path.rest())) : std::nullopt;
  if (*sub > 2) return std::nullopt;
  return with_head(dotted("mid_block.resnets", *sub / 2, ""), rename_head(path.rest(), unet_resnet_names, true));
}

inline std::optional<std::string> unet_block_to_ldm(path_reader path, bool up, const unet_name_layout& layout) {
  const auto i = path.take_index();
  const std::size_t step = layout.layers_per_block + 1;
  if (!i) return std::nullopt;
  const std::string_view stem = up ? "output_blocks" : "input_blocks";
  const std::size_t first = step * *i + (up ? 0 : 1);
  if (path.take(up ? "upsamplers.0.conv" : "downsamplers.0.conv")) {
    if (path.empty()) return std::nullopt;
    if (!up) return dotted(stem, first + layout.layers_per_block, "0.op." + std::string(path.rest()));
    const bool attention = *i < layout.up_attention.size() && layout.up_attention[*i];
    return dotted(stem, first + layout.layers_per_block, attention ? "2.conv." : "1.conv.") + std::string(path.rest());
  }
  const bool resnet = path.take("resnets");
  if (!resnet && !path.take("attentions")) return std::nullopt;
  const auto j = path.take_index();
  if (!j || *j >= layout.layers_per_block + (up ? 1 : 0) || path.empty()) return std::nullopt;
  if (resnet) return with_head(dotted(stem, first + *j, "0."), rename_head(path.rest(), unet_resnet_names, false));
  if (!is_unet_attention(path.rest())) return std::nullopt;
  return dotted(stem, first + *j, "1." + std::string(path.rest()));
}

inline std::optional<std::string> unet_middle_to_ldm(path_reader path) {
  if (path.take("attentions.0"))
    return is_unet_attention(path.rest()) ? std::optional("middle_block.1." + std::string(path.rest())) : std::nullopt;
  if (!path.take("resnets")) return std::nullopt;
  const auto j = path.take_index();
  if (!j || *j > 1 || path.empty()) return std::nullopt;
  return with_head(dotted("middle_block", *j * 2, ""), rename_head(path.rest(), unet_resnet_names, false));
}

}  // namespace detail

/// "input_blocks.4.1.proj_in.weight" → "down_blocks.1.attentions.0.proj_in.weight" (prefix `model.diffusion_model.` already
/// stripped). Nothing if a UNet of this layout has no such parameter.
inline std::optional<std::string> unet_name_to_diffusers(std::string_view ldm, const unet_name_layout& layout = {}) {
  path_reader path(ldm);
  if (layout.class_embedding)
    if (auto name = rename_head(ldm, unet_class_names, true)) return name;
  if (auto name = rename_head(ldm, unet_outer_names, true)) return name;
  if (path.take("input_blocks")) return detail::unet_input_to_diffusers(path, layout.layers_per_block);
  if (path.take("middle_block")) return detail::unet_middle_to_diffusers(path);
  if (path.take("output_blocks")) return detail::unet_output_to_diffusers(path, layout.layers_per_block);
  return std::nullopt;
}

/// The inverse of unet_name_to_diffusers; `layout.up_attention` must be filled in (see unet_layout_of_diffusers).
inline std::optional<std::string> unet_name_to_ldm(std::string_view diffusers, const unet_name_layout& layout) {
  path_reader path(diffusers);
  if (auto name = rename_head(diffusers, unet_class_names, false)) return name;
  if (auto name = rename_head(diffusers, unet_outer_names, false)) return name;
  if (path.take("down_blocks")) return detail::unet_block_to_ldm(path, false, layout);
  if (path.take("up_blocks")) return detail::unet_block_to_ldm(path, true, layout);
  if (path.take("mid_block")) return detail::unet_middle_to_ldm(path);
  return std::nullopt;
}

/// The flat name under which a checkpoint keeps the moving average of an LDM UNet parameter ("input_blocks.0.0.weight" →
/// "model_ema.diffusion_modelinput_blocks00weight"). It cannot be parsed back, only computed.
inline std::string unet_ema_name(std::string_view ldm) {
  std::string out = "model_ema.diffusion_model";
  std::copy_if(ldm.begin(), ldm.end(), std::back_inserter(out), [](char c) { return c != '.'; });
  return out;
}

/// The layout of the UNet that has these LDM names. The first downsampler, or else the last input block, tells the layers of a block.
inline unet_name_layout unet_layout_of_ldm(std::span<const std::string_view> names) {
  unet_name_layout out;
  std::size_t last = 0, first_down = 0;
  for (const std::string_view name : names) {
    path_reader path(name);
    if (!path.take("input_blocks")) continue;
    const auto n = path.take_index();
    if (!n) continue;
    last = std::max(last, *n);
    if (path.take("0.op") && (first_down == 0 || *n < first_down)) first_down = *n;
  }
  const std::size_t layers = first_down ? first_down - 1 : last;
  if (layers) out.layers_per_block = layers;
  return out;
}

/// The layout of the UNet that has these diffusers names.
inline unet_name_layout unet_layout_of_diffusers(std::span<const std::string_view> names) {
  unet_name_layout out;
  std::size_t layers = 0;
  for (const std::string_view name : names) {
    path_reader path(name);
    const bool up = path.take("up_blocks");
    if (!up && !path.take("down_blocks")) continue;
    const auto i = path.take_index();
    if (i && up && path.take("attentions")) {
      out.up_attention.resize(std::max(out.up_attention.size(), *i + 1));
      out.up_attention[*i] = true;
    } else if (i && !up && path.take("resnets")) {
      if (const auto j = path.take_index()) layers = std::max(layers, *j + 1);
    }
  }
  if (layers) out.layers_per_block = layers;
  return out;
}

TENSORSMITH_END_NAMESPACE
