// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/derive_unet.hpp: the configuration of a UNet from its structure and the conventions of its family.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/family.hpp"
#include "tensorsmith/arch/unet_shape.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A configuration and what each part of it was concluded from.
struct derived_config {
  json_value config;
  std::vector<evidence> findings;
};

/// What shapes do not tell; unset members follow the conventions of the family.
struct unet_choices {
  std::optional<std::size_t> heads;      ///< at every level
  std::optional<std::size_t> head_size;  ///< channels of a head
  std::size_t sample_size = 64;          ///< latent pixels of the training images
  std::optional<bool> upcast_attention;  ///< SD 2.1: softmax in f32
};

/// The UNet of the published model of a family (checkpoints with 4 input channels).
inline unet_shape published_unet_shape(sd_family family) {
  switch (family) {
    case sd_family::sd1: return make_unet_shape({320, 640, 1280, 1280}, {1, 1, 1, 0}, 1, 768, false, {});
    case sd_family::sd2: return make_unet_shape({320, 640, 1280, 1280}, {1, 1, 1, 0}, 1, 1024, true, {});
    case sd_family::sdxl: return make_unet_shape({320, 640, 1280}, {0, 2, 10}, 10, 2048, true, 2816);
    case sd_family::sdxl_refiner: return make_unet_shape({384, 768, 1536, 1536}, {0, 4, 4, 0}, 4, 1280, true, 2560);
  }
  return {};
}

/// True if the structure is exactly the published one, apart from the input channels of inpainting and editing variants.
inline bool is_published_unet(const unet_shape& shape, sd_family family) {
  unet_shape published = published_unet_shape(family);
  published.in_channels = shape.in_channels;
  published.time_cond = shape.time_cond;
  return shape == published;
}

namespace detail {

inline json_value integers(const std::vector<std::size_t>& values) {
  json_value::array out;
  for (const std::size_t value : values) out.emplace_back(static_cast<std::int64_t>(value));
  return out;
}
inline json_value integer(std::size_t value) { return static_cast<std::int64_t>(value); }

inline bool all_equal(const std::vector<std::size_t>& values) {
  return std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) == values.end();
}

/// Attention heads of every level, finest first. Levels without attention get what the convention says, at least 1.
inline result<std::vector<std::size_t>> heads_of(const unet_shape& shape, sd_family family, const unet_choices& choices) {
  const family_conventions& convention = conventions_of(family);
  const std::size_t levels = shape.down.size();
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < levels; ++i) {
    const std::size_t channels = shape.down[i].channels;
    const bool used = !shape.down[i].depth.empty() || !shape.up[levels - 1 - i].depth.empty() ||
                      (i + 1 == levels && shape.middle == unet_middle::attention);
    const bool by_size = choices.head_size || (!choices.heads && convention.heads == 0);
    const std::size_t unit = by_size ? choices.head_size.value_or(convention.head_size) : choices.heads.value_or(convention.heads);
    if (unit == 0 || (used && channels % unit != 0))
      return failure{.code = errc::mismatch,
                     .what = "the number of attention heads of level " + std::to_string(i) + " is open: " +
                             std::to_string(channels) + " channels are no multiple of " + std::to_string(unit) +
                             (by_size ? " channels a head" : " heads") + ", the convention of " + std::string(convention.name),
                     .place = "unet", .advice = "pass --config DIR with a configuration that tells attention_head_dim"};
    out.push_back(by_size ? std::max<std::size_t>(1, channels / unit) : unit);
  }
  return out;
}

/// `transformer_layers_per_block` and its counterpart of the up blocks, which is null where it mirrors the former.
struct transformer_depths {
  json_value down, up;
  bool all_ones = false;
};

inline json_value level_depth(const std::vector<std::size_t>& depth) {
  return all_equal(depth) ? integer(depth[0]) : integers(depth);
}

inline result<transformer_depths> depths_of(const unet_shape& shape) {
  const std::size_t levels = shape.down.size();
  json_value::array down, up;
  json_value common;        // the depth that all levels share which have any
  bool same = true, symmetric = true;
  for (std::size_t i = 0; i < levels; ++i) {
    const std::vector<std::size_t>&d = shape.down[i].depth, &u = shape.up[levels - 1 - i].depth;
    // The middle block takes its depth from the last level's entry.
    const bool for_middle = i + 1 == levels && shape.middle == unet_middle::attention;
    const json_value below = !d.empty() ? level_depth(d) : for_middle ? integer(shape.middle_depth) : !u.empty() && all_equal(u) ? integer(u[0]) : integer(1);
    const json_value above = !u.empty() ? level_depth(u) : below;
    symmetric = symmetric && below.as_integer() && above == below;
    if (!d.empty() || !u.empty() || for_middle) {
      if (common.is_null()) common = below;
      same = same && common == below;
    }
    down.push_back(below);
    up.insert(up.begin(), above);
  }
  const std::vector<std::size_t>& last = shape.down.back().depth;
  if (shape.middle == unet_middle::attention && !last.empty() && last[0] != shape.middle_depth)
    return failure{.code = errc::unsupported,
                   .what = "the middle block is deeper or flatter than the last down block, which no configuration can say",
                   .place = "unet", .expected = std::to_string(last[0]) + " transformer blocks",
                   .found = std::to_string(shape.middle_depth)};
  if (common.is_null()) common = json_value(1);
  transformer_depths out;
  out.all_ones = same && symmetric && common == json_value(1);
  out.down = same && symmetric ? common : json_value(std::move(down));
  if (!symmetric) out.up = json_value(std::move(up));
  return out;
}

inline json_value block_types(const std::vector<unet_level>& levels, const char* with, const char* without) {
  json_value::array out;
  for (const unet_level& level : levels) out.emplace_back(level.depth.empty() ? without : with);
  return out;
}

/// Keys that the published SDXL configurations spell out although they hold the default.
inline void add_sdxl_defaults(json_value& config) {
  config.set("class_embed_type", nullptr);
  config.set("class_embeddings_concat", false);
  config.set("conv_in_kernel", 3);
  config.set("conv_out_kernel", 3);
  config.set("cross_attention_norm", nullptr);
  config.set("encoder_hid_dim", nullptr);
  config.set("encoder_hid_dim_type", nullptr);
  config.set("mid_block_only_cross_attention", nullptr);
  config.set("num_attention_heads", nullptr);
  config.set("resnet_out_scale_factor", 1.0);
  config.set("resnet_skip_time_act", false);
  config.set("resnet_time_scale_shift", "default");
  config.set("time_embedding_act_fn", nullptr);
  config.set("time_embedding_dim", nullptr);
  config.set("time_embedding_type", "positional");
  config.set("timestep_post_act", nullptr);
}

/// The keys that differ between structures; the others are the same in every Stable Diffusion UNet.
inline void set_structure(json_value& config, const unet_shape& shape, sd_family family, const transformer_depths& depths) {
  if (!depths.all_ones || is_sdxl(family)) config.set("transformer_layers_per_block", depths.down);
  if (!depths.up.is_null()) config.set("reverse_transformer_layers_per_block", depths.up);
  if (shape.middle == unet_middle::none) config.set("mid_block_type", nullptr);
  else if (shape.middle == unet_middle::resnet) config.set("mid_block_type", "UNetMidBlock2D");
  else if (is_sdxl(family)) config.set("mid_block_type", "UNetMidBlock2DCrossAttn");
  if (shape.time_cond) config.set("time_cond_proj_dim", integer(*shape.time_cond));
  else if (is_sdxl(family)) config.set("time_cond_proj_dim", nullptr);
  if (shape.time_embedding != 4 * shape.down[0].channels) config.set("time_embedding_dim", integer(shape.time_embedding));
  if (shape.linear_projection || family != sd_family::sd1) config.set("use_linear_projection", shape.linear_projection);
  if (shape.added_embedding) {
    config.set("addition_embed_type", "text_time");
    config.set("addition_embed_type_num_heads", 64);
    config.set("addition_time_embed_dim", 256);
    config.set("projection_class_embeddings_input_dim", integer(*shape.added_embedding));
  }
}

inline std::vector<evidence> unet_findings(const unet_shape& shape, sd_family family, const json_value& config,
                                           const unet_choices& choices) {
  const std::string of(name_of(family));
  if (is_published_unet(shape, family) && !choices.heads && !choices.head_size)
    return {{"unet", of, "its structure is exactly the published " + of + " UNet's"}};
  const std::size_t levels = shape.down.size();
  std::vector<evidence> out = {
      {"unet.block_out_channels", to_string(shape.channels()), "channels of down_blocks.*.resnets.0.conv1"},
      {"unet.layers_per_block", std::to_string(shape.layers_per_block), "resnets of a down block"},
      {"unet.cross_attention_dim", std::to_string(shape.cross_attention), "input width of attn2.to_k"},
      {"unet.mid_block_type", shape.middle == unet_middle::none ? "none" : shape.middle == unet_middle::resnet ? "one resnet" : "with attention",
       "tensors of the middle block"},
  };
  std::vector<std::size_t> depths;
  for (std::size_t i = 0; i < levels; ++i) depths.push_back(shape.down[i].depth.empty() ? 0 : shape.down[i].depth[0]);
  out.push_back({"unet.transformer_layers_per_block", to_string(depths), "transformer blocks of the down blocks, 0 without attention"});
  std::string heads;
  if (const auto* each = config.find("attention_head_dim")->as_array())
    for (const json_value& h : *each) heads += (heads.empty() ? "[" : ", ") + std::to_string(*h.as_integer());
  heads = heads.empty() ? std::to_string(*config.find("attention_head_dim")->as_integer()) : heads + "]";
  out.push_back({"unet.attention_head_dim", heads,
                 choices.heads || choices.head_size ? "given configuration"
                 : conventions_of(family).heads     ? "convention of " + of + ": 8 heads at every level"
                                                    : "convention of " + of + ": heads of 64 channels"});
  out.push_back({"unet.norm_num_groups", "32", "convention of every Stable Diffusion model"});
  return out;
}

}  // namespace detail

/// The config.json of a UNet with this structure in this family; exactly the published one for a published structure.
/// @fails mismatch if the conventions leave the number of heads open, unsupported for structures no configuration can say.
inline result<derived_config> derive_unet_config(const unet_shape& shape, sd_family family, const unet_choices& choices = {}) {
  TENSORSMITH_TRY(const auto heads, detail::heads_of(shape, family, choices));
  TENSORSMITH_TRY(const auto depths, detail::depths_of(shape));
  for (const unet_level& level : shape.down)
    if (level.channels % 32 != 0)
      return failure{.code = errc::mismatch, .what = "channels are no multiple of the 32 normalization groups of this family",
                     .place = "unet", .expected = "a multiple of 32", .found = std::to_string(level.channels),
                     .advice = "pass --config DIR with a configuration that tells norm_num_groups"};
  json_value config;
  config.set("_class_name", "UNet2DConditionModel");
  config.set("_diffusers_version", conventions_of(family).diffusers_version);
  config.set("act_fn", "silu");
  const bool one_number = family == sd_family::sd1 && detail::all_equal(heads);
  config.set("attention_head_dim", one_number ? detail::integer(heads[0]) : detail::integers(heads));
  config.set("block_out_channels", detail::integers(shape.channels()));
  config.set("center_input_sample", false);
  config.set("cross_attention_dim", detail::integer(shape.cross_attention));
  config.set("down_block_types", detail::block_types(shape.down, "CrossAttnDownBlock2D", "DownBlock2D"));
  config.set("downsample_padding", 1);
  if (family != sd_family::sd1) {
    config.set("dual_cross_attention", false);
    config.set("num_class_embeds", nullptr);
    config.set("only_cross_attention", false);
  }
  config.set("flip_sin_to_cos", true);
  config.set("freq_shift", 0);
  config.set("in_channels", detail::integer(shape.in_channels));
  config.set("layers_per_block", detail::integer(shape.layers_per_block));
  config.set("mid_block_scale_factor", 1);
  config.set("norm_eps", 1e-5);
  config.set("norm_num_groups", 32);
  config.set("out_channels", detail::integer(shape.out_channels));
  config.set("sample_size", detail::integer(choices.sample_size));
  config.set("up_block_types", detail::block_types(shape.up, "CrossAttnUpBlock2D", "UpBlock2D"));
  if (is_sdxl(family)) detail::add_sdxl_defaults(config);
  if (is_sdxl(family)) config.set("upcast_attention", nullptr);
  else if (choices.upcast_attention) config.set("upcast_attention", *choices.upcast_attention);
  detail::set_structure(config, shape, family, depths);
  auto findings = detail::unet_findings(shape, family, config, choices);
  return derived_config{std::move(config), std::move(findings)};
}

TENSORSMITH_END_NAMESPACE
