// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/ops.hpp: the operators that architectures are written in, as functions on a builder.
//
// ONNX operators keep their names and meaning (opset 13 and later). Composites stand for what runtimes have different forms of;
// target/ expands them:
//
//   op                 inputs                                         attributes                       output
//   linear             x [..., in], weight [out, in], bias [out]?                                      [..., out]
//   group_norm         x [n, c, ...], weight [c], bias [c]            num_groups int, epsilon float    as x
//   layer_norm         x [..., c], weight [c], bias [c]               epsilon float                    as x
//   attention          q [b, s, h·d], k [b, t, h·d], v [b, t, h·e]    num_heads int, scale float,      [b, s, h·e]
//                                                                     causal int, upcast int, max_sequence int (if causal)
//                      softmax(scale · q · kᵀ) · v for each head; upcast: scores and softmax in f32
//   gelu               x                                              exact: x · (1 + erf(x/√2)) / 2   as x
//   quick_gelu         x                                              x · sigmoid(1.702 x)             as x
//   silu               x                                              x · sigmoid(x)                   as x
//   geglu              x [..., 2c]                                    first half · gelu(second half)   [..., c]
//   upsample_nearest   x [n, c, h, w]                                 scale int                        [n, c, h·scale, w·scale]
//   timestep_embedding t: rank 0 or [n], any type                     dim int, flip_sin_to_cos int,    f32 [1 or n, dim]
//                                                                     freq_shift float, max_period float
//                      sin and cos of t · max_period^(-i / (dim/2 - freq_shift)), i < dim/2; flip puts cos first
//   image_to_tokens    x [b, c, h, w]                                                                  [b, h·w, c]
//   tokens_to_image    tokens [b, h·w, c], like [b, c, h, w]          `like` gives the shape           [b, c, h, w]
//   pool_at_token      hidden [b, s, c], input_ids [b, s]             token int: the row of the first  [b, c]
//                                                                     id equal to it (row 0 if none)
//   pad_bottom_right   x [n, c, h, w]                                 amount int: rows, columns of 0   [n, c, h+amount, w+amount]
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/graph/builder.hpp"
#include "tensorsmith/graph/element_code.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Operators on a builder. Each adds one node and returns its output.
namespace ops {

inline value_id add(graph_builder& b, value_id x, value_id y) { return b.emit("Add", {x, y}); }
inline value_id sub(graph_builder& b, value_id x, value_id y) { return b.emit("Sub", {x, y}); }
inline value_id mul(graph_builder& b, value_id x, value_id y) { return b.emit("Mul", {x, y}); }
inline value_id div(graph_builder& b, value_id x, value_id y) { return b.emit("Div", {x, y}); }

/// x in another element type; x itself if it has it. @pre the type has a number in graph/element_code.hpp
inline value_id cast(graph_builder& b, value_id x, dtype to) {
  if (x == value_id::none || b.type(x) == to) return x;
  return b.emit("Cast", {x}, {{"to", *element_code(to)}});
}
/// The parts joined along an axis.
inline value_id concat(graph_builder& b, std::vector<value_id> parts, std::int64_t axis) {
  return b.emit("Concat", std::move(parts), {{"axis", axis}});
}
/// Rows of `x` along an axis.
inline value_id gather(graph_builder& b, value_id x, value_id indices, std::int64_t axis = 0) {
  return b.emit("Gather", {x, indices}, {{"axis", axis}});
}
/// x under another shape: 0 copies an extent, -1 takes the rest.
inline value_id reshape(graph_builder& b, value_id x, const std::vector<std::int64_t>& shape) {
  return b.emit("Reshape", {x, b.integers(shape)});
}
/// x with extents of 1 inserted at these axes of the result.
inline value_id unsqueeze(graph_builder& b, value_id x, const std::vector<std::int64_t>& axes) {
  return b.emit("Unsqueeze", {x, b.integers(axes)});
}
/// Elements [first, last) along an axis; `last` may be counted from the end.
inline value_id slice(graph_builder& b, value_id x, std::int64_t axis, std::int64_t first, std::int64_t last) {
  return b.emit("Slice", {x, b.integers({first}), b.integers({last}), b.integers({axis})});
}
/// One extent of x when the graph runs, as an i64 list of length 1.
inline value_id extent(graph_builder& b, value_id x, std::int64_t axis) {
  const value_id shape = b.emit("Shape", {x});  // first, so that names do not depend on how a compiler orders arguments
  return gather(b, shape, b.integers({axis}));
}
/// x repeated to the shape that an i64 list tells.
inline value_id expand(graph_builder& b, value_id x, value_id shape) { return b.emit("Expand", {x, shape}); }

inline value_id silu(graph_builder& b, value_id x) { return b.emit("silu", {x}); }
inline value_id geglu(graph_builder& b, value_id x) { return b.emit("geglu", {x}); }

/// What `attention` is told beside its inputs.
struct attention_settings {
  std::int64_t heads = 1;
  bool causal = false;
  bool upcast = false;              ///< scores and softmax in f32
  std::int64_t max_sequence = 0;    ///< longest sequence of a causal attention
};

/// Attention with scale 1/√(width of a head).
inline value_id attention(graph_builder& b, value_id q, value_id k, value_id v, const attention_settings& s) {
  if (b.failed()) return value_id::none;
  const std::int64_t width = b.shape(q).empty() ? 0 : b.shape(q).back().constant().value_or(0);
  const float scale = width > 0 && s.heads > 0 ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(width) / static_cast<double>(s.heads))) : 1.0F;
  std::vector<attribute> attributes{{"num_heads", s.heads}, {"scale", scale}, {"causal", std::int64_t{s.causal}}, {"upcast", std::int64_t{s.upcast}}};
  if (s.causal) attributes.push_back({"max_sequence", s.max_sequence});
  return b.emit("attention", {q, k, v}, std::move(attributes));
}

inline value_id upsample_nearest(graph_builder& b, value_id x, std::int64_t scale) {
  return b.emit("upsample_nearest", {x}, {{"scale", scale}});
}
inline value_id image_to_tokens(graph_builder& b, value_id x) { return b.emit("image_to_tokens", {x}); }
inline value_id tokens_to_image(graph_builder& b, value_id tokens, value_id like) { return b.emit("tokens_to_image", {tokens, like}); }
inline value_id pad_bottom_right(graph_builder& b, value_id x, std::int64_t amount) {
  return b.emit("pad_bottom_right", {x}, {{"amount", amount}});
}
inline value_id pool_at_token(graph_builder& b, value_id hidden, value_id input_ids, std::int64_t token) {
  return b.emit("pool_at_token", {hidden, input_ids}, {{"token", token}});
}

/// How timesteps become sines and cosines.
struct timestep_settings {
  std::int64_t width = 320;
  bool flip_sin_to_cos = true;
  float freq_shift = 0;
  float max_period = 10000;
};
/// The embedding in f32.
inline value_id timestep_embedding(graph_builder& b, value_id t, const timestep_settings& s) {
  return b.emit("timestep_embedding", {t},
                {{"dim", s.width}, {"flip_sin_to_cos", std::int64_t{s.flip_sin_to_cos}}, {"freq_shift", s.freq_shift}, {"max_period", s.max_period}});
}

}  // namespace ops

TENSORSMITH_END_NAMESPACE
