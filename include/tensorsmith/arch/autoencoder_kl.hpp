// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/autoencoder_kl.hpp: the variational autoencoder of latent diffusion models: encoder and decoder graphs from one
// configuration and one set of weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/config_reader.hpp"
#include "tensorsmith/arch/interface.hpp"
#include "tensorsmith/arch/resnet.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// config.json of an AutoencoderKL, checked.
struct autoencoder_kl_config {
  std::size_t in_channels = 3, out_channels = 3, latent_channels = 4;
  std::vector<std::size_t> channels{128, 256, 512, 512};  ///< block_out_channels
  std::size_t layers_per_block = 2, groups = 32;
  nn::activation activation = nn::activation::silu;
  bool quant_conv = true, post_quant_conv = true, middle_attention = true;
};

/// @fails malformed, unsupported; both name file and JSON pointer
inline result<autoencoder_kl_config> read_autoencoder_kl_config(const json_value& config, const std::string& file) {
  config_reader read(config, file);
  autoencoder_kl_config out;
  constexpr std::string_view classes[] = {"AutoencoderKL"};
  read.choice("_class_name", "AutoencoderKL", classes);
  out.in_channels = read.integer("in_channels", 3, config_bounds::channels);
  out.out_channels = read.integer("out_channels", 3, config_bounds::channels);
  out.latent_channels = read.integer("latent_channels", 4, config_bounds::channels / 2);
  out.channels = read.integers("block_out_channels", 0, config_bounds::channels, config_bounds::levels);
  constexpr std::string_view down[] = {"DownEncoderBlock2D"}, up[] = {"UpDecoderBlock2D"};
  if (!read.failed()) {
    read.choices("down_block_types", out.channels.size(), down);
    read.choices("up_block_types", out.channels.size(), up);
  }
  out.layers_per_block = read.integer("layers_per_block", 1, config_bounds::layers);
  out.groups = read.integer("norm_num_groups", 32, config_bounds::channels);
  constexpr std::string_view activations[] = {"silu", "swish", "gelu"};
  out.activation = read.choice("act_fn", "silu", activations) == 2 ? nn::activation::gelu : nn::activation::silu;
  out.quant_conv = read.flag("use_quant_conv", true);
  out.post_quant_conv = read.flag("use_post_quant_conv", true);
  out.middle_attention = read.flag("mid_block_add_attention", true);
  for (std::size_t i = 0; i < out.channels.size() && !read.failed(); ++i)
    if (out.channels[i] % out.groups != 0)
      read.refuse(errc::malformed, config_reader::place("block_out_channels", i), "the channels do not divide into the groups",
                  "a multiple of norm_num_groups " + std::to_string(out.groups), std::to_string(out.channels[i]));
  TENSORSMITH_CHECK(read.outcome());
  return out;
}

namespace detail {

inline constexpr float vae_epsilon = 1e-6F;  // fixed in diffusers' Encoder and Decoder, not configured

inline resnet_settings vae_resnet(const autoencoder_kl_config& c) {
  return {.groups = c.groups, .epsilon = vae_epsilon, .activation = c.activation};
}

/// Attention with one head over all pixels; scores in f32, because 512 channels overflow f16.
inline value_id vae_attention(graph_builder& b, std::string_view name, value_id x, std::size_t channels, std::size_t groups) {
  const graph_builder::scope module(b, name);
  const value_id tokens = ops::image_to_tokens(b, nn::group_norm(b, "group_norm", x, channels, groups, vae_epsilon));
  const value_id q = nn::linear(b, "to_q", tokens, channels, channels), k = nn::linear(b, "to_k", tokens, channels, channels),
                 v = nn::linear(b, "to_v", tokens, channels, channels);
  const value_id h = nn::linear(b, "to_out.0", ops::attention(b, q, k, v, {.heads = 1, .upcast = true}), channels, channels);
  return ops::add(b, ops::tokens_to_image(b, h, x), x);
}

inline value_id vae_middle(graph_builder& b, value_id x, const autoencoder_kl_config& c) {
  const graph_builder::scope module(b, "mid_block");
  const std::size_t channels = c.channels.back();
  x = resnet_block(b, "resnets.0", x, value_id::none, channels, channels, vae_resnet(c));
  if (c.middle_attention) x = vae_attention(b, "attentions.0", x, channels, c.groups);
  return resnet_block(b, "resnets.1", x, value_id::none, channels, channels, vae_resnet(c));
}

inline value_id vae_norm_out(graph_builder& b, value_id x, std::size_t channels, std::size_t groups) {
  return ops::silu(b, nn::group_norm(b, "conv_norm_out", x, channels, groups, vae_epsilon));
}

inline value_id vae_encoder_body(graph_builder& b, value_id x, const autoencoder_kl_config& c) {
  const graph_builder::scope module(b, "encoder");
  x = nn::conv2d(b, "conv_in", x, {.in = c.in_channels, .out = c.channels[0]});
  std::size_t in = c.channels[0];
  for (std::size_t i = 0; i < c.channels.size() && !b.failed(); ++i) {
    const graph_builder::scope block(b, "down_blocks." + std::to_string(i));
    const std::size_t out = c.channels[i];
    for (std::size_t j = 0; j < c.layers_per_block; ++j) {
      x = resnet_block(b, "resnets." + std::to_string(j), x, value_id::none, in, out, vae_resnet(c));
      in = out;
    }
    if (i + 1 < c.channels.size()) x = downsample(b, "downsamplers.0", x, out, 0);
  }
  x = vae_norm_out(b, vae_middle(b, x, c), in, c.groups);
  return nn::conv2d(b, "conv_out", x, {.in = in, .out = 2 * c.latent_channels});
}

inline value_id vae_decoder_body(graph_builder& b, value_id x, const autoencoder_kl_config& c) {
  const graph_builder::scope module(b, "decoder");
  std::size_t in = c.channels.back();
  x = nn::conv2d(b, "conv_in", x, {.in = c.latent_channels, .out = in});
  x = vae_middle(b, x, c);
  for (std::size_t i = 0; i < c.channels.size() && !b.failed(); ++i) {
    const graph_builder::scope block(b, "up_blocks." + std::to_string(i));
    const std::size_t out = c.channels[c.channels.size() - 1 - i];
    for (std::size_t j = 0; j < c.layers_per_block + 1; ++j) {
      x = resnet_block(b, "resnets." + std::to_string(j), x, value_id::none, in, out, vae_resnet(c));
      in = out;
    }
    if (i + 1 < c.channels.size()) x = upsample(b, "upsamplers.0", x, out);
  }
  x = vae_norm_out(b, x, in, c.groups);
  return nn::conv2d(b, "conv_out", x, {.in = in, .out = c.out_channels});
}

}  // namespace detail

/// The graph of a VAE's encoder. Input `sample` [batch, 3, height, width], height and width multiples of 2^(levels - 1); output
/// `latent_parameters` [batch, 2·latent, h, w], mean ‖ log-variance (not clamped), or `latent_sample`, the mean, as the interface says.
/// Not scaled by scaling_factor. @fails malformed, unsupported (configuration), mismatch (weights)
inline result<graph> build_vae_encoder(const json_value& config, parameter_source& parameters, const io_interface& io, const arch_options& options) {
  const std::string component = options.component.empty() ? "vae" : options.component;
  TENSORSMITH_TRY(const autoencoder_kl_config c, read_autoencoder_kl_config(config, component + "/config.json"));
  graph_builder b("vae_encoder", parameters, options.compute, options.overflow, options.tally);
  const dtype outside = io.vae_encoder_in_f32 ? dtype::f32 : io.io_float;
  const std::int64_t multiple = std::int64_t{1} << (c.channels.size() - 1);
  const dim batch = b.dynamic(io.batch), height = b.dynamic(io.image_height, multiple), width = b.dynamic(io.image_width, multiple);
  const value_id sample = b.input("sample", outside, {batch, dim(c.in_channels), height, width});
  value_id x = detail::vae_encoder_body(b, ops::cast(b, sample, options.compute), c);
  if (c.quant_conv) x = nn::conv2d(b, "quant_conv", x, {.in = 2 * c.latent_channels, .out = 2 * c.latent_channels, .kernel = 1, .padding = 0});
  if (!io.latent_parameters) x = ops::slice(b, x, 1, 0, static_cast<std::int64_t>(c.latent_channels));
  b.output(ops::cast(b, x, outside), io.latent_parameters ? "latent_parameters" : "latent_sample");
  return b.finish();
}

/// The graph of a VAE's decoder. Input `latent_sample` [batch, latent, h, w], divided by scaling_factor already; output `sample`
/// [batch, 3, h·2^(levels - 1), w·2^(levels - 1)]. @fails malformed, unsupported (configuration), mismatch (weights)
inline result<graph> build_vae_decoder(const json_value& config, parameter_source& parameters, const io_interface& io, const arch_options& options) {
  const std::string component = options.component.empty() ? "vae" : options.component;
  TENSORSMITH_TRY(const autoencoder_kl_config c, read_autoencoder_kl_config(config, component + "/config.json"));
  graph_builder b("vae_decoder", parameters, options.compute, options.overflow, options.tally);
  const dim batch = b.dynamic(io.batch), height = b.dynamic(io.latent_height), width = b.dynamic(io.latent_width);
  const value_id latent = b.input("latent_sample", io.io_float, {batch, dim(c.latent_channels), height, width});
  value_id x = ops::cast(b, latent, options.compute);
  if (c.post_quant_conv) x = nn::conv2d(b, "post_quant_conv", x, {.in = c.latent_channels, .out = c.latent_channels, .kernel = 1, .padding = 0});
  b.output(ops::cast(b, detail::vae_decoder_body(b, x, c), io.io_float), "sample");
  return b.finish();
}

TENSORSMITH_END_NAMESPACE
