// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/resnet.hpp: residual blocks and changes of resolution that UNets and autoencoders of diffusion models share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tensorsmith/graph/nn.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What all residual blocks of a model have in common.
struct resnet_settings {
  std::size_t groups = 32;
  float epsilon = 1e-5F;
  nn::activation activation = nn::activation::silu;
  std::size_t time_width = 0;      ///< width of the time embedding; 0: none
  bool scale_shift = false;        ///< the time embedding scales and shifts after the second norm instead of being added before it
  float output_scale = 1;          ///< the sum is divided by this
};

namespace detail {

/// A linear layer of the activated time embedding, as [n, width, 1, 1].
inline value_id time_projection(graph_builder& b, value_id time, std::size_t in, std::size_t width) {
  return ops::unsqueeze(b, nn::linear(b, "time_emb_proj", time, in, width), {2, 3});
}

/// h · (1 + scale) + shift, with scale ‖ shift along the channels of `time`.
inline value_id scaled_and_shifted(graph_builder& b, value_id h, value_id time, std::size_t channels) {
  const auto c = static_cast<std::int64_t>(channels);
  const value_id scale = ops::slice(b, time, 1, 0, c), shift = ops::slice(b, time, 1, c, 2 * c);
  const value_id one = b.number(1);
  return ops::add(b, ops::mul(b, h, ops::add(b, scale, one)), shift);
}

}  // namespace detail

/// norm, activation, convolution, time embedding, norm, activation, convolution, plus the input (through a 1×1 convolution where the
/// channels change). `time` is the time embedding after its activation [n or 1, time_width], or none.
inline value_id resnet_block(graph_builder& b, std::string_view name, value_id x, value_id time, std::size_t in, std::size_t out,
                             const resnet_settings& s) {
  const graph_builder::scope module(b, name);
  value_id h = nn::activate(b, s.activation, nn::group_norm(b, "norm1", x, in, s.groups, s.epsilon));
  h = nn::conv2d(b, "conv1", h, {.in = in, .out = out});
  value_id shift = value_id::none;
  if (s.time_width != 0) shift = detail::time_projection(b, time, s.time_width, s.scale_shift ? 2 * out : out);
  if (s.time_width != 0 && !s.scale_shift) h = ops::add(b, h, shift);
  h = nn::group_norm(b, "norm2", h, out, s.groups, s.epsilon);
  if (s.time_width != 0 && s.scale_shift) h = detail::scaled_and_shifted(b, h, shift, out);
  h = nn::conv2d(b, "conv2", nn::activate(b, s.activation, h), {.in = out, .out = out});
  if (in != out) x = nn::conv2d(b, "conv_shortcut", x, {.in = in, .out = out, .kernel = 1, .padding = 0});
  h = ops::add(b, x, h);
  return s.output_scale == 1.0F ? h : ops::div(b, h, b.number(s.output_scale));
}

/// Half the resolution: convolution of stride 2. With padding 0 a row and a column of zeros are added below and to the right first.
inline value_id downsample(graph_builder& b, std::string_view name, value_id x, std::size_t channels, std::size_t padding) {
  const graph_builder::scope module(b, name);
  if (padding == 0) x = ops::pad_bottom_right(b, x, 1);
  return nn::conv2d(b, "conv", x, {.in = channels, .out = channels, .stride = 2, .padding = padding});
}

/// Twice the resolution: nearest neighbour, then a convolution.
inline value_id upsample(graph_builder& b, std::string_view name, value_id x, std::size_t channels) {
  const graph_builder::scope module(b, name);
  return nn::conv2d(b, "conv", ops::upsample_nearest(b, x, 2), {.in = channels, .out = channels});
}

TENSORSMITH_END_NAMESPACE
