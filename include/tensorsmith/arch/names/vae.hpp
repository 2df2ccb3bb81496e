// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/names/vae.hpp: names of autoencoder parameters, LDM ↔ diffusers.
//
// The four projections of an attention are 1 × 1 convolutions [c, c, 1, 1] in LDM files (a few [c, c, 1]) and matrices [c, c] in
// diffusers'; is_vae_projection (format/diffusers/names.hpp) tells which. Everything else is only renamed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tensorsmith/arch/names/path.hpp"
#include "tensorsmith/format/diffusers/names.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What the names of an autoencoder depend on besides the table.
struct vae_name_layout {
  std::size_t levels = 4;  ///< LDM counts the decoder's blocks from the finest up: `decoder.up.{levels − 1 − i}`
};

/// Modules of `encoder` and `decoder` outside the levels.
inline constexpr name_pair vae_outer_names[] = {
    {"conv_in", "conv_in"},
    {"conv_out", "conv_out"},
    {"norm_out", "conv_norm_out"},
};
/// Resnets of the middle.
inline constexpr name_pair vae_middle_names[] = {
    {"mid.block_1", "mid_block.resnets.0"},
    {"mid.block_2", "mid_block.resnets.1"},
};
/// Modules of a resnet.
inline constexpr name_pair vae_resnet_names[] = {
    {"norm1", "norm1"}, {"conv1", "conv1"}, {"norm2", "norm2"}, {"conv2", "conv2"}, {"nin_shortcut", "conv_shortcut"},
};
/// Modules of the middle attention.
inline constexpr name_pair vae_attention_names[] = {
    {"norm", "group_norm"}, {"q", "to_q"}, {"k", "to_k"}, {"v", "to_v"}, {"proj_out", "to_out.0"},
};

namespace detail {

inline std::optional<std::string> vae_half_to_diffusers(path_reader path, std::string half, const vae_name_layout& layout) {
  const bool encoder = half == "encoder.";
  if (path_reader attention = path; attention.take("mid.attn_1")) {
    auto tail = rename_head(attention.rest(), vae_attention_names, true);
    return tail ? std::optional(half + "mid_block.attentions.0." + *tail) : std::nullopt;
  }
  if (path.take(encoder ? "down" : "up")) {
    const auto level = path.take_index();
    if (!level || *level >= layout.levels) return std::nullopt;
    const std::size_t i = encoder ? *level : layout.levels - 1 - *level;
    const std::string_view blocks = encoder ? "down_blocks" : "up_blocks";
    if (path.take(encoder ? "downsample.conv" : "upsample.conv"))
      return half + dotted(blocks, i, encoder ? "downsamplers.0.conv." : "upsamplers.0.conv.") + std::string(path.rest());
    if (!path.take("block")) return std::nullopt;
    const auto j = path.take_index();
    auto tail = j ? rename_head(path.rest(), vae_resnet_names, true) : std::nullopt;
    return tail ? std::optional(half + dotted(blocks, i, "resnets", *j, *tail)) : std::nullopt;
  }
  for (const name_pair& block : vae_middle_names)
    if (path_reader inner = path; inner.take(block.ldm)) {
      auto tail = rename_head(inner.rest(), vae_resnet_names, true);
      return tail ? std::optional(half + std::string(block.diffusers) + "." + *tail) : std::nullopt;
    }
  auto tail = rename_head(path.rest(), vae_outer_names, true);
  return tail ? std::optional(half + *tail) : std::nullopt;
}

inline std::optional<std::string> vae_half_to_ldm(path_reader path, std::string half, const vae_name_layout& layout) {
  const bool encoder = half == "encoder.";
  if (path_reader attention = path; attention.take("mid_block.attentions.0")) {
    auto tail = rename_head(attention.rest(), vae_attention_names, false);
    return tail ? std::optional(half + "mid.attn_1." + *tail) : std::nullopt;
  }
  if (path.take(encoder ? "down_blocks" : "up_blocks")) {
    const auto i = path.take_index();
    if (!i || *i >= layout.levels) return std::nullopt;
    const std::size_t level = encoder ? *i : layout.levels - 1 - *i;
    const std::string_view blocks = encoder ? "down" : "up";
    if (path.take(encoder ? "downsamplers.0.conv" : "upsamplers.0.conv"))
      return half + dotted(blocks, level, encoder ? "downsample.conv." : "upsample.conv.") + std::string(path.rest());
    if (!path.take("resnets")) return std::nullopt;
    const auto j = path.take_index();
    auto tail = j ? rename_head(path.rest(), vae_resnet_names, false) : std::nullopt;
    return tail ? std::optional(half + dotted(blocks, level, "block", *j, *tail)) : std::nullopt;
  }
  for (const name_pair& block : vae_middle_names)
    if (path_reader inner = path; inner.take(block.diffusers)) {
      auto tail = rename_head(inner.rest(), vae_resnet_names, false);
      return tail ? std::optional(half + std::string(block.ldm) + "." + *tail) : std::nullopt;
    }
  auto tail = rename_head(path.rest(), vae_outer_names, false);
  return tail ? std::optional(half + *tail) : std::nullopt;
}

}  // namespace detail

/// "decoder.up.3.block.0.conv1.weight" → "decoder.up_blocks.0.resnets.0.conv1.weight" (prefix `first_stage_model.` already
/// stripped). Nothing if an autoencoder of this layout has no such parameter.
inline std::optional<std::string> vae_name_to_diffusers(std::string_view ldm, const vae_name_layout& layout = {}) {
  path_reader path(ldm);
  if (path.take("encoder")) return detail::vae_half_to_diffusers(path, "encoder.", layout);
  if (path.take("decoder")) return detail::vae_half_to_diffusers(path, "decoder.", layout);
  if (path.take("quant_conv") || path.take("post_quant_conv")) return std::string(ldm);
  return std::nullopt;
}

/// The inverse of vae_name_to_diffusers.
inline std::optional<std::string> vae_name_to_ldm(std::string_view diffusers, const vae_name_layout& layout = {}) {
  path_reader path(diffusers);
  if (path.take("encoder")) return detail::vae_half_to_ldm(path, "encoder.", layout);
  if (path.take("decoder")) return detail::vae_half_to_ldm(path, "decoder.", layout);
  if (path.take("quant_conv") || path.take("post_quant_conv")) return std::string(diffusers);
  return std::nullopt;
}

/// The layout of the autoencoder that has these names, LDM or diffusers.
inline vae_name_layout vae_layout_of(std::span<const std::string_view> names) {
  std::size_t levels = 0;
  for (const std::string_view name : names)
    for (const std::string_view stem : {"encoder.down", "decoder.up", "encoder.down_blocks", "decoder.up_blocks"})
      if (path_reader path(name); path.take(stem))
        if (const auto i = path.take_index()) levels = std::max(levels, *i + 1);
  return {levels ? levels : 4};
}

TENSORSMITH_END_NAMESPACE
