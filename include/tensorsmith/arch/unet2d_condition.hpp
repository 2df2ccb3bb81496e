// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/unet2d_condition.hpp: UNet2DConditionModel, the denoiser of Stable Diffusion, from its configuration.
//
// SD 1.x, 2.x, SDXL, its refiner, inpainting variants, the x4 upscaler and distilled models are all this model. Parameters have the
// names of diffusers ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/interface.hpp"
#include "tensorsmith/arch/resnet.hpp"
#include "tensorsmith/arch/transformer2d.hpp"
#include "tensorsmith/arch/unet2d_condition_config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Inputs of a UNet graph; none where the model has no such input.
struct unet_inputs {
  value_id sample = value_id::none, timestep = value_id::none, text = value_id::none;
  value_id class_labels = value_id::none, timestep_cond = value_id::none;
  value_id text_embeds = value_id::none, time_ids = value_id::none;
};

/// How many time ids go beside text_embeds into add_embedding. The UNet's configuration tells only the sum of their widths: without
/// the width of text_embeds, 1280 of the published models decides, then 6 ids (base), then 5 (refiner).
inline result<std::size_t> unet_time_ids(const unet2d_condition_config& c, const arch_options& options, const std::string& file) {
  const auto ids_beside = [&](std::size_t pooled) {
    return pooled < c.added_width && (c.added_width - pooled) % c.added_time_width == 0 ? (c.added_width - pooled) / c.added_time_width : 0;
  };
  if (options.text_embeds_width) {
    if (const std::size_t n = ids_beside(*options.text_embeds_width)) return n;
    return failure{.code = errc::mismatch, .what = "the text encoder's projection and the UNet's time ids do not make up the input of add_embedding",
                   .file = file, .place = "/projection_class_embeddings_input_dim",
                   .expected = std::to_string(*options.text_embeds_width) + " and a multiple of " + std::to_string(c.added_time_width),
                   .found = std::to_string(c.added_width)};
  }
  if (const std::size_t n = ids_beside(1280); n == 5 || n == 6) return n;
  for (const std::size_t n : {std::size_t{6}, std::size_t{5}})
    if (c.added_width > n * c.added_time_width) return n;
  return failure{.code = errc::malformed, .what = "there is no room for time ids", .file = file, .place = "/projection_class_embeddings_input_dim",
                 .expected = "more than " + std::to_string(5 * c.added_time_width), .found = std::to_string(c.added_width)};
}

inline unet_inputs declare_unet_inputs(graph_builder& b, const unet2d_condition_config& c, const io_interface& io, std::size_t time_ids) {
  const std::int64_t multiple = std::int64_t{1} << (c.down.size() - 1);
  const dim batch = b.dynamic(io.batch), height = b.dynamic(io.height, multiple), width = b.dynamic(io.width, multiple);
  unet_inputs in;
  in.sample = b.input("sample", io.io_float, {batch, dim(c.in_channels), height, width});
  in.timestep = b.input("timestep", io.io_float, io.timestep_rank == 0 ? dims{} : dims{batch});
  in.text = b.input("encoder_hidden_states", io.io_float, {batch, b.dynamic(io.sequence), dim(c.cross_width)});
  if (c.classes == class_embedding::table) in.class_labels = b.input("class_labels", dtype::i64, {batch});
  else if (c.classes == class_embedding::timestep) in.class_labels = b.input("class_labels", io.io_float, {batch});
  else if (c.classes != class_embedding::none) in.class_labels = b.input("class_labels", io.io_float, {batch, dim(c.class_width)});
  if (c.time_condition) in.timestep_cond = b.input("timestep_cond", io.io_float, {batch, dim(*c.time_condition)});
  if (c.added_width != 0) {
    in.text_embeds = b.input("text_embeds", io.io_float, {batch, dim(c.added_width - time_ids * c.added_time_width)});
    in.time_ids = b.input("time_ids", io.io_float, {batch, dim(time_ids)});
  }
  return in;
}

inline value_id sinusoidal(graph_builder& b, const unet2d_condition_config& c, value_id t, std::size_t width) {
  return ops::cast(b, ops::timestep_embedding(b, t, {static_cast<std::int64_t>(width), c.flip_sin_to_cos, c.freq_shift}), b.compute());
}

/// diffusers' TimestepEmbedding: two linear layers with an activation between them.
inline value_id time_mlp(graph_builder& b, std::string_view name, value_id x, std::size_t in, std::size_t out, nn::activation activation) {
  const graph_builder::scope module(b, name);
  return nn::linear(b, "linear_2", nn::activate(b, activation, nn::linear(b, "linear_1", x, in, out)), out, out);
}

inline value_id unet_class_embedding(graph_builder& b, const unet2d_condition_config& c, value_id labels) {
  switch (c.classes) {
    case class_embedding::table: return nn::embedding(b, "class_embedding", labels, c.class_count, c.time_width);
    case class_embedding::timestep:
      return time_mlp(b, "class_embedding", sinusoidal(b, c, labels, c.down[0].channels), c.down[0].channels, c.time_width, c.activation);
    case class_embedding::projection:
      return time_mlp(b, "class_embedding", ops::cast(b, labels, b.compute()), c.class_width, c.time_width, nn::activation::silu);
    case class_embedding::simple_projection:
      return nn::linear(b, "class_embedding", ops::cast(b, labels, b.compute()), c.class_width, c.time_width);
    default: return ops::cast(b, labels, b.compute());
  }
}

/// SDXL: text_embeds and the sines of all time ids of a sample, side by side, through two linear layers.
inline value_id unet_added_embedding(graph_builder& b, const unet2d_condition_config& c, const unet_inputs& in, std::size_t time_ids) {
  const value_id flat = ops::reshape(b, in.time_ids, {-1});
  const value_id sines = ops::reshape(b, sinusoidal(b, c, flat, c.added_time_width), {-1, static_cast<std::int64_t>(time_ids * c.added_time_width)});
  const value_id text = ops::cast(b, in.text_embeds, b.compute());
  return time_mlp(b, "add_embedding", ops::concat(b, {text, sines}, -1), c.added_width, c.time_width, nn::activation::silu);
}

/// Everything that conditions the residual blocks, as one vector [1 or batch, block_time_width], after the activation that every
/// residual block applies to it first.
inline value_id unet_time_embedding(graph_builder& b, const unet2d_condition_config& c, const unet_inputs& in, std::size_t time_ids) {
  const std::size_t base = c.down[0].channels;
  value_id t = in.timestep;
  // One timestep may serve all samples: repeat it before anything has its shape.
  if (!b.shape(t).empty()) t = ops::expand(b, t, ops::extent(b, in.sample, 0));
  value_id x = sinusoidal(b, c, t, base);
  {
    const graph_builder::scope module(b, "time_embedding");
    if (in.timestep_cond != value_id::none)
      x = ops::add(b, x, nn::linear(b, "cond_proj", ops::cast(b, in.timestep_cond, b.compute()), *c.time_condition, base, false));
    x = nn::activate(b, c.activation, nn::linear(b, "linear_1", x, base, c.time_width));
    x = nn::linear(b, "linear_2", x, c.time_width, c.time_width);
    if (c.time_post_activation) x = nn::activate(b, *c.time_post_activation, x);
  }
  if (c.classes != class_embedding::none) {
    const value_id classes = unet_class_embedding(b, c, in.class_labels);
    if (c.class_concat) {
      // A scalar timestep has one row for all samples; concatenation needs one each.
      if (b.shape(in.timestep).empty() && !b.failed()) {
        const value_id rows = b.emit("Concat", {ops::extent(b, in.sample, 0), b.integers({1})}, {{"axis", std::int64_t{0}}});
        x = ops::expand(b, x, rows);
      }
      x = ops::concat(b, {x, classes}, -1);
    } else {
      x = ops::add(b, x, classes);
    }
  }
  if (c.added_width != 0) x = ops::add(b, x, unet_added_embedding(b, c, in, time_ids));
  if (c.time_activation) x = nn::activate(b, *c.time_activation, x);
  return nn::activate(b, c.activation, x);
}

/// What the blocks of a UNet share.
struct unet_blocks {
  graph_builder& b;
  const unet2d_condition_config& c;
  value_id time, text;

  resnet_settings resnet(float scale = 1) const {
    return {.groups = c.groups, .epsilon = c.epsilon, .activation = c.activation, .time_width = c.block_time_width(),
            .scale_shift = c.scale_shift, .output_scale = scale};
  }
  value_id attend(std::string_view name, value_id x, const unet2d_level& level, std::size_t depth, bool only_cross) const {
    return transformer2d(b, name, x, text,
                         {.channels = level.channels, .heads = level.heads, .layers = depth, .cross_width = level.cross_width,
                          .groups = c.groups, .linear_projection = c.linear_projection, .only_cross_attention = only_cross,
                          .upcast_attention = c.upcast_attention});
  }

  /// A value that a later up block reads, and its channels.
  struct skip {
    value_id value;
    std::size_t channels;
  };

  value_id down(value_id x, std::vector<skip>& skips) const {
    std::size_t in = c.down[0].channels;
    for (std::size_t i = 0; i < c.down.size() && !b.failed(); ++i) {
      const graph_builder::scope block(b, "down_blocks." + std::to_string(i));
      const unet2d_level& level = c.down[i];
      for (std::size_t j = 0; j < level.layers && !b.failed(); ++j) {
        x = resnet_block(b, "resnets." + std::to_string(j), x, time, in, level.channels, resnet());
        in = level.channels;
        if (level.attends) x = attend("attentions." + std::to_string(j), x, level, level.depth[j], level.only_cross_attention);
        skips.push_back({x, in});
      }
      if (i + 1 == c.down.size()) break;
      x = downsample(b, "downsamplers.0", x, in, c.downsample_padding);
      skips.push_back({x, in});
    }
    return x;
  }

  value_id middle(value_id x) const {
    if (c.middle == unet2d_middle::none) return x;
    const graph_builder::scope block(b, "mid_block");
    const unet2d_level& level = c.down.back();
    x = resnet_block(b, "resnets.0", x, time, level.channels, level.channels, resnet(c.middle_scale));
    if (c.middle == unet2d_middle::resnet) return x;
    x = attend("attentions.0", x, level, c.middle_depth, false);
    return resnet_block(b, "resnets.1", x, time, level.channels, level.channels, resnet(c.middle_scale));
  }

  value_id up(value_id x, std::vector<skip>& skips) const {
    std::size_t in = c.up[0].channels;
    for (std::size_t i = 0; i < c.up.size() && !b.failed(); ++i) {
      const graph_builder::scope block(b, "up_blocks." + std::to_string(i));
      const unet2d_level& level = c.up[i];
      for (std::size_t j = 0; j < level.layers && !b.failed(); ++j) {
        const skip s = skips.back();  // a level pushes as many as its mirror image takes
        skips.pop_back();
        x = ops::concat(b, {x, s.value}, 1);
        x = resnet_block(b, "resnets." + std::to_string(j), x, time, in + s.channels, level.channels, resnet());
        in = level.channels;
        if (level.attends) x = attend("attentions." + std::to_string(j), x, level, level.depth[j], level.only_cross_attention);
      }
      if (i + 1 < c.up.size()) x = upsample(b, "upsamplers.0", x, in);
    }
    return x;
  }
};

}  // namespace detail

/// The graph of a UNet. Inputs `sample` [batch, in_channels, height, width] (multiples of 2^(levels - 1)), `timestep` (rank by the
/// interface), `encoder_hidden_states` [batch, sequence, cross_attention_dim]; where the configuration has them `class_labels`,
/// `timestep_cond`, `text_embeds`, `time_ids`. Output `out_sample` [batch, out_channels, height, width].
/// @fails malformed, unsupported (configuration), mismatch (weights)
inline result<graph> build_unet2d_condition(const json_value& config, parameter_source& parameters, const io_interface& io,
                                            const arch_options& options) {
  const std::string component = options.component.empty() ? "unet" : options.component, file = component + "/config.json";
  TENSORSMITH_TRY(const unet2d_condition_config c, read_unet2d_condition_config(config, file));
  std::size_t time_ids = 0;
  if (c.added_width != 0) {
    TENSORSMITH_TRY(time_ids, detail::unet_time_ids(c, options, file));
  }
  graph_builder b(component, parameters, options.compute, options.overflow, options.tally);
  const detail::unet_inputs in = detail::declare_unet_inputs(b, c, io, time_ids);
  const value_id text = ops::cast(b, in.text, options.compute);
  value_id x = ops::cast(b, in.sample, options.compute);
  if (c.center_input) {
    const value_id doubled = ops::mul(b, x, b.number(2));
    x = ops::sub(b, doubled, b.number(1));
  }
  const detail::unet_blocks blocks{b, c, detail::unet_time_embedding(b, c, in, time_ids), text};
  x = nn::conv2d(b, "conv_in", x, {.in = c.in_channels, .out = c.down[0].channels, .kernel = c.conv_in_kernel, .padding = c.conv_in_kernel / 2});
  std::vector<detail::unet_blocks::skip> skips{{x, c.down[0].channels}};
  x = blocks.up(blocks.middle(blocks.down(x, skips)), skips);
  x = nn::activate(b, c.activation, nn::group_norm(b, "conv_norm_out", x, c.down[0].channels, c.groups, c.epsilon));
  x = nn::conv2d(b, "conv_out", x, {.in = c.down[0].channels, .out = c.out_channels, .kernel = c.conv_out_kernel, .padding = c.conv_out_kernel / 2});
  b.output(ops::cast(b, x, io.io_float), "out_sample");
  return b.finish();
}

TENSORSMITH_END_NAMESPACE
