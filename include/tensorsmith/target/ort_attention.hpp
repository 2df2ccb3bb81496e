// SPDX-License-Identifier: MIT
//
// tensorsmith/target/ort_attention.hpp: attention, token and image reshapes, embeddings of time and positions as standard ONNX
// operators. target/ort.hpp chooses among them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/target/ort_layers.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

inline attribute perm(std::vector<std::int64_t> axes) { return {"perm", std::move(axes)}; }

/// The most negative finite number of a floating type: what transformers fills masks with.
inline double lowest_of(dtype type) noexcept {
  if (type == dtype::f16) return -65504.0;
  return static_cast<double>(std::numeric_limits<float>::lowest());
}

/// [1, 1, s, s] with 0 on and below the diagonal and the lowest number above it. A dynamic s is cut from a constant of the
/// longest sequence, once for all layers.
inline result<value_id> causal_mask(const node& n, ort_context& c, const dim& length, value_id queries, dtype type) {
  graph_emitter& out = c.out;
  const auto fixed = length.constant();
  const std::int64_t longest = fixed ? *fixed : n.integer("max_sequence", 0);
  if (longest <= 0 || longest > 65536)
    return lowering_failure(n, "causal attention over a dynamic length needs max_sequence", "1 to 65536",
                            std::to_string(longest));
  const std::string key = "causal mask " + length.text() + " " + std::to_string(longest) + " " + std::string(name_of(type));
  if (const value_id known = out.recall(key); known != value_id::none) return known;
  const auto side = static_cast<std::size_t>(longest);
  constant full{type, {1, 1, side, side}, {}};
  for (std::size_t r = 0; r < side; ++r)
    for (std::size_t k = 0; k < side; ++k) append_element(full.bytes, type, k > r ? lowest_of(type) : 0.0);
  value_id mask = out.hold(std::move(full));
  if (!fixed) {
    // [s, s] from the shape of q [b, s, h·d]: Gather by two equal indices gives the ends of both axes at once.
    const dims rank_three{dim(3)};
    const value_id shape = out.emit("Shape", {queries}, dtype::i64, rank_three);
    const value_id ends = out.emit("Gather", {shape, out.integers({1, 1})}, dtype::i64, dims{dim(2)}, {int_attribute("axis", 0)});
    mask =
        out.emit("Slice", {mask, out.integers({0, 0}), ends, out.integers({2, 3})}, type, dims{dim(1), dim(1), length, length});
  }
  out.remember(key, mask);
  return mask;
}

/// attention: softmax(scale · q kᵀ + mask) v per head. k is transposed once, straight to [b, h, d, t]; the scale goes on q,
/// the smaller operand, where ONNX Runtime folds it into the product.
inline result<void> lower_attention(const node& n, ort_context& c) {
  graph_emitter& out = c.out;
  const value_id q = n.inputs[0], k = n.inputs[1], v = n.inputs[2];
  const dtype type = c[q].type;
  const dims q_shape = c[q].shape, k_shape = c[k].shape, v_shape = c[v].shape;
  const std::int64_t heads = n.integer("num_heads", 0);
  const auto q_width = q_shape.size() == 3 ? q_shape[2].constant() : std::nullopt;
  const auto v_width = v_shape.size() == 3 ? v_shape[2].constant() : std::nullopt;
  if (!q_width || !v_width || heads <= 0 || *q_width % heads != 0 || *v_width % heads != 0 || k_shape.size() != 3)
    return lowering_failure(n, "attention needs [b, s, h·d] with constant widths divisible by its heads", {},
                            to_string(q_shape) + ", " + to_string(v_shape) + " with " + std::to_string(heads) + " heads");
  const std::int64_t head = *q_width / heads, v_head = *v_width / heads;
  const dim batch = q_shape[0], s = q_shape[1], t = k_shape[1];
  const value_id split = out.integers({0, 0, heads, head});
  const dtype wide = n.integer("upcast", 0) != 0 ? dtype::f32 : type;

  const value_id q_heads = out.emit("Reshape", {q, split}, type, {batch, s, dim(heads), dim(head)});
  const value_id q_turned = out.emit("Transpose", {q_heads}, type, {batch, dim(heads), s, dim(head)}, {perm({0, 2, 1, 3})});
  const value_id k_heads = out.emit("Reshape", {k, split}, type, {batch, t, dim(heads), dim(head)});
  const value_id k_turned = out.emit("Transpose", {k_heads}, type, {batch, dim(heads), dim(head), t}, {perm({0, 2, 3, 1})});
  const value_id v_heads =
      out.emit("Reshape", {v, out.integers({0, 0, heads, v_head})}, type, {batch, t, dim(heads), dim(v_head)});
  const value_id v_turned = out.emit("Transpose", {v_heads}, type, {batch, dim(heads), t, dim(v_head)}, {perm({0, 2, 1, 3})});

  const value_id q_wide = cast_value(out, q_turned, wide), k_wide = cast_value(out, k_turned, wide);
  const value_id factor = out.scalar(wide, static_cast<double>(n.number("scale", 1.0F)));
  const value_id q_scaled = out.emit("Mul", {q_wide, factor}, wide, {batch, dim(heads), s, dim(head)});
  const dims square{batch, dim(heads), s, t};
  value_id scores = out.emit("MatMul", {q_scaled, k_wide}, wide, square);
  if (n.integer("causal", 0) != 0) {
    TENSORSMITH_TRY(const value_id mask, causal_mask(n, c, s, q, wide));
    scores = out.emit("Add", {scores, mask}, wide, square);
  }
  const value_id softmax = out.emit("Softmax", {scores}, wide, square, {int_attribute("axis", -1)});
  const value_id weights = cast_value(out, softmax, type);
  const value_id mixed = out.emit("MatMul", {weights, v_turned}, type, {batch, dim(heads), s, dim(v_head)});
  const value_id turned = out.emit("Transpose", {mixed}, type, {batch, s, dim(heads), dim(v_head)}, {perm({0, 2, 1, 3})});
  out.emit_into(n.outputs, "Reshape", {turned, out.integers({0, 0, *v_width})});
  return {};
}

/// image_to_tokens: [b, c, h, w] → [b, h·w, c]. Transposed first: right behind a convolution, ONNX Runtime's blocked layout is
/// undone and transposed in one pass if it finds exactly this permutation.
inline result<void> lower_image_to_tokens(const node& n, ort_context& c) {
  const value_id x = n.inputs[0];
  const dims shape = c[x].shape;
  const auto channels = shape.size() == 4 ? shape[1].constant() : std::nullopt;
  if (!channels)
    return lowering_failure(n, "image_to_tokens needs [b, c, h, w] with a constant number of channels", {}, to_string(shape));
  const value_id last = c.out.emit("Transpose", {x}, c[x].type, {shape[0], shape[2], shape[3], shape[1]}, {perm({0, 2, 3, 1})});
  c.out.emit_into(n.outputs, "Reshape", {last, c.out.integers({0, -1, *channels})});
  return {};
}

/// tokens_to_image: [b, h·w, c] → [b, c, h, w], through [b, h, w, c] for the same reason. If one side of the image is static, no
/// run-time shape is needed; otherwise it is that of `like`, read once for all images of the same shape.
inline result<void> lower_tokens_to_image(const node& n, ort_context& c) {
  graph_emitter& out = c.out;
  const value_id x = n.inputs[0], like = n.inputs[1];
  const dims tokens = c[x].shape, image = c[like].shape;
  const auto channels = tokens.size() == 3 ? tokens[2].constant() : std::nullopt;
  if (!channels || image.size() != 4 || tokens[2] != image[1])
    return lowering_failure(n, "tokens_to_image needs [b, h·w, c] and an image [b, c, h, w]", to_string(image),
                            to_string(tokens));
  const auto h = image[2].constant(), w = image[3].constant();
  value_id target = value_id::none;
  if (w || h) {
    target = out.integers({0, h ? *h : -1, w ? *w : -1, *channels});
  } else {
    const std::string key = "channels-last shape of " + to_string(image);
    target = out.recall(key);
    if (target == value_id::none) {
      const value_id shape = out.emit("Shape", {like}, dtype::i64, {dim(4)});
      target = out.emit("Gather", {shape, out.integers({0, 2, 3, 1})}, dtype::i64, {dim(4)}, {int_attribute("axis", 0)});
      out.remember(key, target);
    }
  }
  const value_id last = out.emit("Reshape", {x, target}, c[x].type, {image[0], image[2], image[3], image[1]});
  out.emit_into(n.outputs, "Transpose", {last}, {perm({0, 3, 1, 2})});
  return {};
}

/// upsample_nearest: every pixel becomes scale × scale pixels.
inline result<void> lower_upsample(const node& n, ort_context& c) {
  const auto scale = static_cast<double>(n.integer("scale", 2));
  const value_id scales = c.out.numbers(dtype::f32, {4}, {1, 1, scale, scale});
  c.out.emit_into(n.outputs, "Resize", {n.inputs[0], value_id::none, scales},
                  {{"coordinate_transformation_mode", std::string("asymmetric")},
                   {"mode", std::string("nearest")},
                   {"nearest_mode", std::string("floor")}});
  return {};
}

/// pad_bottom_right: zeros below and to the right of an image.
inline result<void> lower_pad(const node& n, ort_context& c) {
  const std::int64_t amount = n.integer("amount", 1);
  c.out.emit_into(n.outputs, "Pad", {n.inputs[0], c.out.integers({0, 0, 0, 0, 0, 0, amount, amount})},
                  {{"mode", std::string("constant")}});
  return {};
}

/// timestep_embedding, in f32: sin and cos of t · exp(-ln(max_period) · i / (half - freq_shift)), i = 0 … half - 1. The exponent
/// is computed in f32 as diffusers.models.embeddings.get_timestep_embedding does, so that both have the same frequencies.
inline result<void> lower_timestep_embedding(const node& n, ort_context& c) {
  graph_emitter& out = c.out;
  const std::int64_t width = n.integer("dim", 0), half = width / 2;
  const float shift = n.number("freq_shift", 0.0F);
  const auto period = static_cast<double>(n.number("max_period", 10000.0F));
  if (half < 1 || static_cast<float>(half) - shift <= 0 || !(period > 0))
    return lowering_failure(n, "timestep_embedding needs dim >= 2, freq_shift < dim / 2 and max_period > 0", {},
                            "dim " + std::to_string(width) + ", freq_shift " + std::to_string(shift));
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < half; ++i) {
    const float scaled = static_cast<float>(-std::log(period)) * static_cast<float>(i);
    const float exponent = scaled / (static_cast<float>(half) - shift);
    frequencies.push_back(static_cast<double>(static_cast<float>(std::exp(static_cast<double>(exponent)))));
  }
  const dims shape = c[n.outputs[0]].shape;
  const dim rows = shape[0];
  const dims part{rows, dim(half)};
  const value_id t = cast_value(out, n.inputs[0], dtype::f32);
  const value_id column = out.emit("Reshape", {t, out.integers({-1, 1})}, dtype::f32, {rows, dim(1)});
  const value_id table = out.numbers(dtype::f32, {1, static_cast<std::size_t>(half)}, frequencies);
  const value_id angles = out.emit("Mul", {column, table}, dtype::f32, part);
  const value_id sine = out.emit("Sin", {angles}, dtype::f32, part);
  const value_id cosine = out.emit("Cos", {angles}, dtype::f32, part);
  std::vector<value_id> parts{sine, cosine};
  if (n.integer("flip_sin_to_cos", 0) != 0) std::swap(parts[0], parts[1]);
  if (width % 2 == 0) {
    out.emit_into(n.outputs, "Concat", parts, {int_attribute("axis", -1)});
    return {};
  }
  const value_id even = out.emit("Concat", parts, dtype::f32, {rows, dim(2 * half)}, {int_attribute("axis", -1)});
  out.emit_into(n.outputs, "Pad", {even, out.integers({0, 0, 0, 1})}, {{"mode", std::string("constant")}});
  return {};
}

/// pool_at_token: the hidden state at the first position whose id is the token: ArgMax of the equality picks the first.
inline result<void> lower_pool(const node& n, ort_context& c) {
  graph_emitter& out = c.out;
  const value_id ids = n.inputs[1];
  const dims shape = c[ids].shape;
  if (shape.size() != 2) return lowering_failure(n, "pool_at_token needs input_ids [b, s]", {}, to_string(shape));
  const value_id token = out.scalar(c[ids].type, static_cast<double>(n.integer("token", 0)));
  const value_id equal = out.emit("Equal", {ids, token}, dtype::boolean, shape);
  const value_id number = cast_value(out, equal, dtype::i32);
  const value_id first =
      out.emit("ArgMax", {number}, dtype::i64, {shape[0], dim(1)}, {int_attribute("axis", 1), int_attribute("keepdims", 1)});
  out.emit_into(n.outputs, "GatherND", {n.inputs[0], first}, {int_attribute("batch_dims", 1)});
  return {};
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
