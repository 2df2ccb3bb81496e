// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/nn.hpp: modules with parameters, as functions on a builder: linear, convolutions, normalizations, embeddings.
//
// Each opens the scope of its module, so that parameters and nodes are named by it: nn::linear(b, "to_q", …) takes "….to_q.weight".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "tensorsmith/graph/ops.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace nn {

/// x [..., in] · weightᵀ [out, in] + bias.
inline value_id linear(graph_builder& b, std::string_view name, value_id x, std::size_t in, std::size_t out, bool bias = true) {
  const graph_builder::scope module(b, name);
  std::vector<value_id> inputs{x, b.parameter("weight", {out, in})};
  if (bias) inputs.push_back(b.parameter("bias", {out}));
  return b.emit("linear", std::move(inputs));
}

/// A square convolution.
struct conv_settings {
  std::size_t in = 0, out = 0;
  std::size_t kernel = 3, stride = 1, padding = 1;
};

/// x [n, in, h, w] → [n, out, h', w'], with bias.
inline value_id conv2d(graph_builder& b, std::string_view name, value_id x, const conv_settings& s) {
  const graph_builder::scope module(b, name);
  const value_id weight = b.parameter("weight", {s.out, s.in, s.kernel, s.kernel}), bias = b.parameter("bias", {s.out});
  const auto k = static_cast<std::int64_t>(s.kernel), stride = static_cast<std::int64_t>(s.stride), pad = static_cast<std::int64_t>(s.padding);
  return b.emit("Conv", {x, weight, bias},
                {{"kernel_shape", std::vector<std::int64_t>{k, k}}, {"strides", std::vector<std::int64_t>{stride, stride}},
                 {"pads", std::vector<std::int64_t>(4, pad)}, {"dilations", std::vector<std::int64_t>{1, 1}}, {"group", std::int64_t{1}}});
}

inline value_id group_norm(graph_builder& b, std::string_view name, value_id x, std::size_t channels, std::size_t groups, float epsilon) {
  const graph_builder::scope module(b, name);
  const value_id weight = b.parameter("weight", {channels}), bias = b.parameter("bias", {channels});
  return b.emit("group_norm", {x, weight, bias}, {{"num_groups", static_cast<std::int64_t>(groups)}, {"epsilon", epsilon}});
}

inline value_id layer_norm(graph_builder& b, std::string_view name, value_id x, std::size_t width, float epsilon) {
  const graph_builder::scope module(b, name);
  const value_id weight = b.parameter("weight", {width}), bias = b.parameter("bias", {width});
  return b.emit("layer_norm", {x, weight, bias}, {{"epsilon", epsilon}});
}

/// Rows of a table [count, width] by ids.
inline value_id embedding(graph_builder& b, std::string_view name, value_id ids, std::size_t count, std::size_t width) {
  const graph_builder::scope module(b, name);
  return ops::gather(b, b.parameter("weight", {count, width}), ids);
}

/// Activations that configurations name.
enum class activation : std::uint8_t { silu, gelu, quick_gelu };

inline value_id activate(graph_builder& b, activation kind, value_id x) {
  constexpr std::string_view names[] = {"silu", "gelu", "quick_gelu"};
  return b.emit(names[static_cast<std::size_t>(kind)], {x});
}

}  // namespace nn

TENSORSMITH_END_NAMESPACE
