// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/transformer2d.hpp: the spatial transformer of UNets: an image's pixels attend to each other and to a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "tensorsmith/graph/nn.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One spatial transformer.
struct transformer2d_settings {
  std::size_t channels = 320;
  std::size_t heads = 8;              ///< the width of a head is channels / heads, rounded down
  std::size_t layers = 1;
  std::size_t cross_width = 768;      ///< width of the text states
  std::size_t groups = 32;
  bool linear_projection = false;     ///< proj_in and proj_out are linear layers on tokens instead of 1×1 convolutions
  bool only_cross_attention = false;  ///< the first attention reads the text, too
  bool upcast_attention = false;      ///< attention scores in f32

  std::size_t inner() const noexcept { return heads * (channels / heads); }
};

namespace detail {

/// Attention of `x` over `context` [b, t, context_width]; queries, keys and values have no bias.
inline value_id transformer_attention(graph_builder& b, std::string_view name, value_id x, value_id context, std::size_t context_width,
                                      const transformer2d_settings& s) {
  const graph_builder::scope module(b, name);
  const std::size_t width = s.inner();
  const value_id q = nn::linear(b, "to_q", x, width, width, false), k = nn::linear(b, "to_k", context, context_width, width, false),
                 v = nn::linear(b, "to_v", context, context_width, width, false);
  const value_id h = ops::attention(b, q, k, v, {.heads = static_cast<std::int64_t>(s.heads), .upcast = s.upcast_attention});
  return nn::linear(b, "to_out.0", h, width, width);
}

/// Self-attention, cross-attention, gated feed-forward; each after a layer norm and added to its input.
inline value_id transformer_block(graph_builder& b, std::size_t index, value_id x, value_id text, const transformer2d_settings& s) {
  const graph_builder::scope module(b, "transformer_blocks." + std::to_string(index));
  constexpr float epsilon = 1e-5F;  // fixed in diffusers' Transformer2DModel, not configured
  const std::size_t width = s.inner();
  value_id h = nn::layer_norm(b, "norm1", x, width, epsilon);
  h = s.only_cross_attention ? transformer_attention(b, "attn1", h, text, s.cross_width, s) : transformer_attention(b, "attn1", h, h, width, s);
  x = ops::add(b, h, x);
  h = nn::layer_norm(b, "norm2", x, width, epsilon);
  x = ops::add(b, transformer_attention(b, "attn2", h, text, s.cross_width, s), x);
  h = nn::layer_norm(b, "norm3", x, width, epsilon);
  {
    const graph_builder::scope feed_forward(b, "ff");
    {
      const graph_builder::scope gate(b, "net.0");
      h = ops::geglu(b, nn::linear(b, "proj", h, width, 8 * width));
    }
    h = nn::linear(b, "net.2", h, 4 * width, width);
  }
  return ops::add(b, h, x);
}

}  // namespace detail

/// norm, projection, transformer blocks on the pixels as tokens, projection, plus the input. `text` [b, t, cross_width].
inline value_id transformer2d(graph_builder& b, std::string_view name, value_id x, value_id text, const transformer2d_settings& s) {
  const graph_builder::scope module(b, name);
  const std::size_t inner = s.inner();
  value_id h = nn::group_norm(b, "norm", x, s.channels, s.groups, 1e-6F);
  if (s.linear_projection) {
    h = nn::linear(b, "proj_in", ops::image_to_tokens(b, h), s.channels, inner);
    for (std::size_t i = 0; i < s.layers; ++i) h = detail::transformer_block(b, i, h, text, s);
    h = ops::tokens_to_image(b, nn::linear(b, "proj_out", h, inner, s.channels), x);
  } else {
    const value_id image = nn::conv2d(b, "proj_in", h, {.in = s.channels, .out = inner, .kernel = 1, .padding = 0});
    h = ops::image_to_tokens(b, image);
    for (std::size_t i = 0; i < s.layers; ++i) h = detail::transformer_block(b, i, h, text, s);
    h = nn::conv2d(b, "proj_out", ops::tokens_to_image(b, h, image), {.in = inner, .out = s.channels, .kernel = 1, .padding = 0});
  }
  return ops::add(b, h, x);
}

TENSORSMITH_END_NAMESPACE
