// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/unet_shape.hpp: the structure of a UNet, read from the names and shapes of its weights.
//
// Include this to find out what a UNet is when no configuration comes with it. Head counts, activation and normalization groups
// leave no trace in shapes; derive_unet.hpp adds them by the conventions of the family.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/tensor/catalog.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What the middle of a UNet consists of.
enum class unet_middle : std::uint8_t {
  none,       ///< nothing (small and tiny distillations)
  resnet,     ///< one resnet (SSD-1B, Vega)
  attention,  ///< resnet, transformer, resnet
};

/// One level of one half. `depth[j]` is the number of transformer blocks of attention j; empty: the level has no attention.
struct unet_level {
  std::size_t channels = 0;
  std::vector<std::size_t> depth;
  bool operator==(const unet_level&) const = default;
};

/// The structure of a UNet2DConditionModel as far as shapes tell it.
struct unet_shape {
  std::size_t in_channels = 0, out_channels = 0;
  std::size_t layers_per_block = 0;
  std::vector<unet_level> down;                ///< finest first
  std::vector<unet_level> up;                  ///< coarsest first, as diffusers counts
  unet_middle middle = unet_middle::none;
  std::size_t middle_depth = 0;
  std::size_t cross_attention = 0;             ///< width of the text states; 0: no attention at all
  bool linear_projection = false;              ///< proj_in and proj_out are matrices, not 1 × 1 convolutions
  std::size_t time_embedding = 0;              ///< width of the time embedding
  std::optional<std::size_t> time_cond;        ///< width of the guidance embedding (latent consistency models)
  std::optional<std::size_t> added_embedding;  ///< input width of add_embedding (SDXL)
  std::optional<std::size_t> class_embedding;  ///< input width of class_embedding (unCLIP)
  std::optional<std::size_t> classes;          ///< rows of class_embedding.weight (x4 upscaler)
  bool operator==(const unet_shape&) const = default;

  /// Channels of the levels, finest first.
  std::vector<std::size_t> channels() const {
    std::vector<std::size_t> out;
    for (const unet_level& level : down) out.push_back(level.channels);
    return out;
  }
};

namespace detail {

/// Looks shapes up in a component's weights and remembers the first thing that does not fit.
class shape_reader {
 public:
  explicit shape_reader(const catalog& weights) noexcept : weights_(weights) {}

  bool has(const std::string& name) const noexcept { return weights_.contains(name); }

  /// Extent `dim` of a tensor that must be there with at least `dim + 1` dimensions; 0 after a failure.
  std::size_t extent(const std::string& name, std::size_t dim) {
    const catalog_entry* entry = weights_.find(name);
    if (!entry) {
      fail({.code = errc::mismatch, .what = "the tensor " + quoted(name) + " is missing",
            .advice = "the file is incomplete or not of a known architecture; --config tells its configuration"});
      return 0;
    }
    const shape_type& shape = entry->tensor.shape();
    if (shape.size() <= dim || shape[dim] == 0) {
      fail({.code = errc::mismatch, .what = "a tensor has a shape that this layer cannot have", .place = entry->origin,
            .expected = "at least " + std::to_string(dim + 1) + " dimensions, none of them 0", .found = to_string(shape)});
      return 0;
    }
    return shape[dim];
  }
  std::size_t rank(const std::string& name) const noexcept {
    const catalog_entry* entry = weights_.find(name);
    return entry ? entry->tensor.shape().size() : 0;
  }
  /// How many of head0tail, head1tail, … there are.
  std::size_t count(const std::string& head, const std::string& tail) const {
    std::size_t n = 0;
    while (weights_.contains(head + std::to_string(n) + tail)) ++n;
    return n;
  }
  /// Two findings that must be the same number.
  void agree(std::size_t a, const std::string& of_a, std::size_t b, const std::string& of_b) {
    if (a == b) return;
    fail({.code = errc::mismatch, .what = "shapes contradict each other: " + of_a + " and " + of_b + " differ",
          .expected = std::to_string(a), .found = std::to_string(b),
          .advice = "the file is damaged or of an unknown architecture; --config DIR tells its configuration"});
  }
  void fail(failure error) {
    if (!failed_) error_ = std::move(error), failed_ = true;
  }
  result<void> outcome() {
    if (failed_) return std::move(error_);
    return {};
  }

 private:
  const catalog& weights_;
  failure error_;
  bool failed_ = false;
};

/// Reads what all transformers of a UNet must share.
inline void read_attention(shape_reader& read, const std::string& at, std::size_t channels, unet_shape& out, bool& first) {
  const bool linear = read.rank(at + ".proj_in.weight") == 2;
  const std::string key = at + ".transformer_blocks.0.attn2.to_k.weight";
  const std::size_t width = read.extent(key, 1);
  read.agree(channels, "the channels of the resnet before " + at, read.extent(at + ".proj_in.weight", 1), "those of its proj_in");
  read.agree(channels, "the channels of " + at, read.extent(at + ".transformer_blocks.0.attn1.to_k.weight", 1),
             "the input of its self-attention");
  if (first) out.linear_projection = linear, out.cross_attention = width;
  first = false;
  read.agree(out.cross_attention, "the width of the first cross-attention", width, "that of " + key);
  read.agree(out.linear_projection ? 2 : 4, "the rank of the first proj_in", linear ? 2 : 4, "that of " + at);
}

inline unet_level read_level(shape_reader& read, const std::string& at, std::size_t layers, unet_shape& out, bool& first) {
  unet_level level;
  level.channels = read.extent(at + ".resnets.0.conv1.weight", 0);
  for (std::size_t j = 1; j < layers; ++j)
    read.agree(level.channels, "the channels of " + at,
               read.extent(at + ".resnets." + std::to_string(j) + ".conv1.weight", 0), "its resnet " + std::to_string(j));
  const std::size_t attentions = read.count(at + ".attentions.", ".proj_in.weight");
  if (attentions == 0) return level;
  if (attentions != layers)
    read.fail({.code = errc::unsupported, .what = "a block has attention after some of its resnets only", .place = at,
               .expected = "none or " + std::to_string(layers), .found = std::to_string(attentions)});
  for (std::size_t j = 0; j < attentions; ++j) {
    const std::string attention = at + ".attentions." + std::to_string(j);
    read_attention(read, attention, level.channels, out, first);
    level.depth.push_back(read.count(attention + ".transformer_blocks.", ".attn1.to_q.weight"));
  }
  return level;
}

/// Every level but the last ends in a resampler.
inline void read_resampler(shape_reader& read, const std::string& name, bool wanted) {
  if (read.has(name) == wanted) return;
  read.fail({.code = errc::mismatch,
             .what = wanted ? "the tensor " + quoted(name) + " is missing" : "the last block has a resampler: " + quoted(name),
             .advice = "the file is incomplete or not of a known architecture; --config tells its configuration"});
}

inline void read_levels(shape_reader& read, unet_shape& out) {
  bool first = true;
  const std::size_t levels = read.count("down_blocks.", ".resnets.0.conv1.weight");
  out.layers_per_block = read.count("down_blocks.0.resnets.", ".conv1.weight");
  if (levels == 0)
    return read.fail({.code = errc::mismatch, .what = "the UNet has no down blocks",
                      .advice = "the file is incomplete or not of a known architecture"});
  for (std::size_t i = 0; i < levels; ++i) {
    const std::string at = "down_blocks." + std::to_string(i);
    read.agree(out.layers_per_block, "the number of resnets of down_blocks.0", read.count(at + ".resnets.", ".conv1.weight"),
               "that of " + at);
    out.down.push_back(read_level(read, at, out.layers_per_block, out, first));
    read_resampler(read, at + ".downsamplers.0.conv.weight", i + 1 < levels);
  }
  read.agree(levels, "the number of down blocks", read.count("up_blocks.", ".resnets.0.conv1.weight"), "that of up blocks");
  for (std::size_t i = 0; i < levels; ++i) {
    const std::string at = "up_blocks." + std::to_string(i);
    read.agree(out.layers_per_block + 1, "one more than the resnets of a down block",
               read.count(at + ".resnets.", ".conv1.weight"), "those of " + at);
    out.up.push_back(read_level(read, at, out.layers_per_block + 1, out, first));
    read.agree(out.down[levels - 1 - i].channels, "the channels of down_blocks." + std::to_string(levels - 1 - i),
               out.up.back().channels, "those of " + at);
    read_resampler(read, at + ".upsamplers.0.conv.weight", i + 1 < levels);
  }
  if (read.has("mid_block.attentions.0.proj_in.weight")) {
    out.middle = unet_middle::attention;
    out.middle_depth = read.count("mid_block.attentions.0.transformer_blocks.", ".attn1.to_q.weight");
    read_attention(read, "mid_block.attentions.0", out.down.back().channels, out, first);
    read.agree(2, "the resnets around the middle attention", read.count("mid_block.resnets.", ".conv1.weight"), "those in the file");
  } else if (const std::size_t resnets = read.count("mid_block.resnets.", ".conv1.weight")) {
    out.middle = unet_middle::resnet;
    read.agree(1, "the resnets of a middle without attention", resnets, "those in the file");
  }
}

}  // namespace detail

/// Reads the structure of a UNet from weights with diffusers names.
/// @fails mismatch (shapes that contradict each other, missing tensors), unsupported (a structure no configuration can say).
inline result<unet_shape> unet_shape_of(const catalog& weights) {
  detail::shape_reader read(weights);
  unet_shape out;
  out.in_channels = read.extent("conv_in.weight", 1);
  out.out_channels = read.extent("conv_out.weight", 0);
  detail::read_levels(read, out);
  if (!out.down.empty())
    read.agree(out.down[0].channels, "the channels of the finest level", read.extent("conv_in.weight", 0), "those of conv_in");
  if (read.rank("conv_in.weight") == 4 && read.extent("conv_in.weight", 2) != 3)
    read.fail({.code = errc::unsupported, .what = "conv_in has an unusual kernel", .expected = "3",
               .found = std::to_string(read.extent("conv_in.weight", 2)), .advice = "--config DIR tells the configuration"});
  out.time_embedding = read.extent("time_embedding.linear_1.weight", 0);
  if (read.has("time_embedding.cond_proj.weight")) out.time_cond = read.extent("time_embedding.cond_proj.weight", 1);
  if (read.has("add_embedding.linear_1.weight")) out.added_embedding = read.extent("add_embedding.linear_1.weight", 1);
  if (read.has("class_embedding.linear_1.weight")) out.class_embedding = read.extent("class_embedding.linear_1.weight", 1);
  if (read.has("class_embedding.weight")) out.classes = read.extent("class_embedding.weight", 0);
  TENSORSMITH_CHECK(read.outcome());
  return out;
}

/// The structure of a published UNet; input channels are those of the text-to-image model. Resnets: 2 a block.
inline unet_shape make_unet_shape(const std::vector<std::size_t>& channels, const std::vector<std::size_t>& depth,
                                  std::size_t middle_depth, std::size_t cross, bool linear, std::optional<std::size_t> added) {
  unet_shape out;
  out.in_channels = out.out_channels = 4;
  out.layers_per_block = 2;
  for (std::size_t i = 0; i < channels.size(); ++i) {
    out.down.push_back({channels[i], std::vector<std::size_t>(depth[i] ? 2 : 0, depth[i])});
    out.up.insert(out.up.begin(), {channels[i], std::vector<std::size_t>(depth[i] ? 3 : 0, depth[i])});
  }
  out.middle = unet_middle::attention;
  out.middle_depth = middle_depth;
  out.cross_attention = cross;
  out.linear_projection = linear;
  out.time_embedding = 4 * channels[0];
  out.added_embedding = added;
  return out;
}

TENSORSMITH_END_NAMESPACE
