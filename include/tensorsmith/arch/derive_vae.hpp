// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/derive_vae.hpp: the configuration of an autoencoder from the shapes of its weights.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/arch/derive_unet.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The structure of an AutoencoderKL as far as shapes tell it.
struct vae_shape {
  std::size_t in_channels = 3, out_channels = 3, latent_channels = 4;
  std::size_t layers_per_block = 2;          ///< resnets of an encoder block; the decoder's have one more
  std::vector<std::size_t> channels;         ///< finest first
  bool middle_attention = true;
  bool quant_conv = true, post_quant_conv = true;
  bool operator==(const vae_shape&) const = default;

  /// Image pixels of a latent pixel, along one side.
  std::size_t scale() const noexcept { return channels.empty() ? 8 : std::size_t{1} << (channels.size() - 1); }
};

namespace detail {

inline void read_vae_half(shape_reader& read, bool encoder, const vae_shape& out, std::vector<std::size_t>& channels) {
  const std::string half = encoder ? "encoder." : "decoder.", stem = half + (encoder ? "down_blocks." : "up_blocks.");
  const std::size_t levels = read.count(stem, ".resnets.0.conv1.weight");
  if (levels == 0)
    return read.fail({.code = errc::mismatch, .what = "the autoencoder has no " + half.substr(0, 7),
                      .advice = "pass --vae PATH with a complete autoencoder"});
  for (std::size_t i = 0; i < levels; ++i) {
    const std::string at = stem + std::to_string(i);
    read.agree(out.layers_per_block + (encoder ? 0 : 1), "the number of resnets expected of a block",
               read.count(at + ".resnets.", ".conv1.weight"), "that of " + at);
    channels.push_back(read.extent(at + ".resnets.0.conv1.weight", 0));
    read_resampler(read, at + (encoder ? ".downsamplers.0.conv.weight" : ".upsamplers.0.conv.weight"), i + 1 < levels);
  }
  read.agree(out.middle_attention, "the middle attention of the encoder",
             read.has(half + "mid_block.attentions.0.to_q.weight"), "that of the " + half.substr(0, 7));
}

}  // namespace detail

/// Reads the structure of an autoencoder from weights with diffusers names. @fails mismatch
inline result<vae_shape> vae_shape_of(const catalog& weights) {
  detail::shape_reader read(weights);
  vae_shape out;
  out.in_channels = read.extent("encoder.conv_in.weight", 1);
  out.out_channels = read.extent("decoder.conv_out.weight", 0);
  out.latent_channels = read.extent("decoder.conv_in.weight", 1);
  out.layers_per_block = read.count("encoder.down_blocks.0.resnets.", ".conv1.weight");
  out.middle_attention = read.has("encoder.mid_block.attentions.0.to_q.weight");
  out.quant_conv = read.has("quant_conv.weight");
  out.post_quant_conv = read.has("post_quant_conv.weight");
  std::vector<std::size_t> decoder;
  detail::read_vae_half(read, true, out, out.channels);
  detail::read_vae_half(read, false, out, decoder);
  if (std::vector<std::size_t>(decoder.rbegin(), decoder.rend()) != out.channels)
    read.fail({.code = errc::mismatch, .what = "the channels of encoder and decoder differ", .place = "vae",
               .expected = to_string(out.channels), .found = to_string(decoder) + " from the coarsest on"});
  read.agree(2 * out.latent_channels, "twice the latent channels", read.extent("encoder.conv_out.weight", 0),
             "the outputs of encoder.conv_out");
  TENSORSMITH_CHECK(read.outcome());
  return out;
}

/// The config.json of an autoencoder with this structure in this family. @fails mismatch if the normalization groups do not fit.
inline result<derived_config> derive_vae_config(const vae_shape& shape, sd_family family, std::size_t image_size) {
  const family_conventions& convention = conventions_of(family);
  for (const std::size_t channels : shape.channels)
    if (channels % 32 != 0)
      return failure{.code = errc::mismatch, .what = "channels are no multiple of the 32 normalization groups of this family",
                     .place = "vae", .expected = "a multiple of 32", .found = std::to_string(channels),
                     .advice = "pass --config DIR with a configuration that tells norm_num_groups"};
  const std::size_t levels = shape.channels.size();
  json_value config;
  config.set("_class_name", "AutoencoderKL");
  config.set("_diffusers_version", convention.diffusers_version);
  config.set("act_fn", "silu");
  config.set("block_out_channels", detail::integers(shape.channels));
  config.set("down_block_types", json_value::array(levels, json_value("DownEncoderBlock2D")));
  if (convention.vae_upcast) config.set("force_upcast", true);
  config.set("in_channels", detail::integer(shape.in_channels));
  config.set("latent_channels", detail::integer(shape.latent_channels));
  config.set("layers_per_block", detail::integer(shape.layers_per_block));
  config.set("norm_num_groups", 32);
  config.set("out_channels", detail::integer(shape.out_channels));
  config.set("sample_size", detail::integer(image_size));
  config.set("scaling_factor", convention.scaling_factor);
  config.set("up_block_types", json_value::array(levels, json_value("UpDecoderBlock2D")));
  if (!shape.middle_attention) config.set("mid_block_add_attention", false);
  if (!shape.quant_conv) config.set("use_quant_conv", false);
  if (!shape.post_quant_conv) config.set("use_post_quant_conv", false);
  std::vector<evidence> findings;
  const std::string of(convention.name);
  if (shape == vae_shape{.channels = {128, 256, 512, 512}}) {
    findings.push_back({"vae", "AutoencoderKL", "its structure is exactly the published one"});
  } else {
    findings.push_back({"vae.block_out_channels", to_string(shape.channels), "channels of encoder.down_blocks.*.resnets.0.conv1"});
    findings.push_back({"vae.layers_per_block", std::to_string(shape.layers_per_block), "resnets of an encoder block"});
    findings.push_back({"vae.norm_num_groups", "32", "convention of every Stable Diffusion model"});
  }
  findings.push_back({"vae.scaling_factor", is_sdxl(family) ? "0.13025" : "0.18215", "convention of " + of});
  return derived_config{std::move(config), std::move(findings)};
}

TENSORSMITH_END_NAMESPACE
