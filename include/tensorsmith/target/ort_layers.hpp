// SPDX-License-Identifier: MIT
//
// tensorsmith/target/ort_layers.hpp: linear layers, normalizations and activations as standard ONNX operators, in the forms that
// ONNX Runtime's graph optimizer recognises. target/ort.hpp chooses among them.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensorsmith/graph/element_code.hpp"
#include "tensorsmith/target/emitter.hpp"
#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How graphs are lowered for ONNX Runtime.
struct ort_options {
  int opset = 17;  ///< ONNX operator set, 14 to 21
  /// Leave weights as they are stored and add Transpose and Cast nodes: for external data that stays in place.
  bool keep_stored_weights = false;
};

namespace detail {

/// What an expansion works with: the emitter, the options, and which initializers may change their orientation.
struct ort_context {
  graph_emitter& out;
  graph& model;
  const ort_options& options;
  std::unordered_map<value_id, std::size_t> weights;  ///< value → index into model.initializers
  std::unordered_map<value_id, std::size_t> other_uses;  ///< how often a value is used otherwise than as a linear weight
  std::unordered_map<value_id, value_id> transposed;     ///< linear weight → its [in, out] form

  const value& operator[](value_id id) const { return model[id]; }
};

inline failure lowering_failure(const node& n, std::string what, std::string expected = {}, std::string found = {}) {
  return failure{.code = errc::internal, .what = std::move(what), .place = "node " + quoted(n.name),
                 .expected = std::move(expected), .found = std::move(found)};
}

inline attribute int_attribute(std::string name, std::int64_t value) { return {std::move(name), value}; }

/// The value cast to `to`, or itself if it has that type.
inline value_id cast_value(graph_emitter& out, value_id x, dtype to, value_id into = value_id::none) {
  if (out[x].type == to && into == value_id::none) return x;
  return out.emit_or_into(into, "Cast", {x}, to, out[x].shape, {int_attribute("to", *element_code(to))});
}

/// The [in, out] form of a linear weight that is stored as [out, in]: a transposing recipe on the same initializer, a view that
/// is stored so already, or a Transpose node.
inline result<value_id> matmul_weight(ort_context& c, value_id weight) {
  if (const auto at = c.transposed.find(weight); at != c.transposed.end()) return at->second;
  const dims stored = c[weight].shape;
  const dims turned{stored[1], stored[0]};
  const auto at = c.weights.find(weight);
  tensor_ref* data = at == c.weights.end() ? nullptr : std::get_if<tensor_ref>(&c.model.initializers[at->second].data);
  value_id done = value_id::none;
  if (data != nullptr) {
    TENSORSMITH_TRY(tensor_ref view, ::tensorsmith::v0::transposed(*data));
    const bool as_stored = c.options.keep_stored_weights && data->source->stored() && !view.source->stored();
    if (!as_stored && c.other_uses[weight] == 0) {
      *data = std::move(view);
      c.model[weight].shape = turned;
      done = weight;
    } else if (!as_stored) {
      done = c.out.hold_weights(c[weight].name + ".transposed", std::move(view));
    }
  }
  if (done == value_id::none)
    done = c.out.emit("Transpose", {weight}, c[weight].type, turned, {{"perm", std::vector<std::int64_t>{1, 0}}});
  c.transposed.emplace(weight, done);
  return done;
}

/// linear: x [..., in] · weightᵀ + bias. MatMul and Add, which ONNX Runtime fuses where it helps; Gemm for matrices.
inline result<void> lower_linear(const node& n, ort_context& c) {
  const value_id x = n.inputs[0], bias = n.inputs.size() > 2 ? n.inputs[2] : value_id::none;
  const dtype type = c[n.outputs[0]].type;
  const dims shape = c[n.outputs[0]].shape;
  TENSORSMITH_TRY(const value_id weight, matmul_weight(c, n.inputs[1]));
  if (c[x].shape.size() == 2 && bias != value_id::none) {
    c.out.emit_into(n.outputs, "Gemm", {x, weight, bias});
    return {};
  }
  if (bias == value_id::none) {
    c.out.emit_into(n.outputs, "MatMul", {x, weight});
    return {};
  }
  const value_id product = c.out.emit("MatMul", {x, weight}, type, shape);
  c.out.emit_into(n.outputs, "Add", {bias, product});
  return {};
}

/// layer_norm over the last axis: LayerNormalization from opset 17 on; before it the same in f32 by its parts, which ONNX Runtime
/// fuses.
inline result<void> lower_layer_norm(const node& n, ort_context& c) {
  graph_emitter& out = c.out;
  const value_id x = n.inputs[0];
  const dtype type = c[x].type;
  const dims shape = c[x].shape;
  const float epsilon = n.number("epsilon", 1e-5F);
  if (c.options.opset >= 17) {
    out.emit_into(n.outputs, "LayerNormalization", n.inputs, {int_attribute("axis", -1), {"epsilon", epsilon}});
    return {};
  }
  dims reduced = shape;
  reduced.back() = dim(1);
  const std::vector<attribute> last{{"axes", std::vector<std::int64_t>{-1}}, int_attribute("keepdims", 1)};
  const value_id wide = cast_value(out, x, dtype::f32);
  const value_id mean = out.emit("ReduceMean", {wide}, dtype::f32, reduced, last);
  const value_id centred = out.emit("Sub", {wide, mean}, dtype::f32, shape);
  const value_id square = out.emit("Pow", {centred, out.scalar(dtype::f32, 2)}, dtype::f32, shape);
  const value_id variance = out.emit("ReduceMean", {square}, dtype::f32, reduced, last);
  const value_id shifted = out.emit("Add", {variance, out.scalar(dtype::f32, static_cast<double>(epsilon))}, dtype::f32, reduced);
  const value_id deviation = out.emit("Sqrt", {shifted}, dtype::f32, reduced);
  const value_id normal = cast_value(out, out.emit("Div", {centred, deviation}, dtype::f32, shape), type);
  const value_id scaled = out.emit("Mul", {normal, n.inputs[1]}, type, shape);
  out.emit_into(n.outputs, "Add", {scaled, n.inputs[2]});
  return {};
}

/// group_norm: an instance normalization of the groups. Both reshapes need no run-time shape: channels and rows of a group share
/// an axis, every other axis is copied ([n, c, h, w] → [n, g, c/g · h, w] → back), so dynamic sizes cost no Shape nodes.
inline result<void> lower_group_norm(const node& n, ort_context& c) {
  graph_emitter& out = c.out;
  const value_id x = n.inputs[0];
  const dtype type = c[x].type;
  const dims shape = c[x].shape;
  const std::int64_t groups = n.integer("num_groups", 0);
  const auto channels = shape.size() >= 2 ? shape[1].constant() : std::nullopt;
  if (!channels || groups <= 0 || *channels % groups != 0 || shape.size() < 3)
    return lowering_failure(n, "group_norm needs [n, c, …] with a constant number of channels divisible by its groups", {},
                            to_string(shape) + " in " + std::to_string(groups) + " groups");
  const std::size_t rank = shape.size();
  std::vector<std::int64_t> split(rank, 0), joined(rank, 0);
  split[1] = groups, split[2] = -1;
  joined[1] = *channels, joined[2] = -1;
  dims grouped = shape;
  grouped[1] = dim(groups), grouped[2] = shape[2] * dim(*channels / groups);
  const auto count = static_cast<std::size_t>(groups);
  const value_id ones = out.numbers(type, {count}, std::vector<double>(count, 1.0));
  const value_id zeros = out.numbers(type, {count}, std::vector<double>(count, 0.0));
  const value_id as_groups = out.emit("Reshape", {x, out.integers(split)}, type, grouped);
  const value_id normal = out.emit("InstanceNormalization", {as_groups, ones, zeros}, type, grouped,
                                   {{"epsilon", n.number("epsilon", 1e-5F)}});
  const value_id back = out.emit("Reshape", {normal, out.integers(joined)}, type, shape);
  std::vector<std::int64_t> axes;
  for (std::size_t k = 1; k + 1 < rank; ++k) axes.push_back(static_cast<std::int64_t>(k));
  const value_id list = out.integers(axes);
  dims column{shape[1]};
  column.resize(rank - 1, dim(1));
  const value_id weight = out.emit("Unsqueeze", {n.inputs[1], list}, type, column);
  const value_id scaled = out.emit("Mul", {back, weight}, type, shape);
  const value_id bias = out.emit("Unsqueeze", {n.inputs[2], list}, type, column);
  out.emit_into(n.outputs, "Add", {scaled, bias});
  return {};
}

/// x · (1 + erf(x / √2)) · ½ in the order ONNX Runtime's Gelu fusion looks for; the Gelu operator from opset 20 on.
inline value_id emit_gelu(ort_context& c, value_id x, value_id into = value_id::none) {
  graph_emitter& out = c.out;
  const dtype type = c[x].type;
  const dims shape = c[x].shape;
  if (c.options.opset >= 20) return out.emit_or_into(into, "Gelu", {x}, type, shape);
  const value_id scaled = out.emit("Div", {x, out.scalar(type, std::sqrt(2.0))}, type, shape);
  const value_id error = out.emit("Erf", {scaled}, type, shape);
  const value_id shifted = out.emit("Add", {error, out.scalar(type, 1)}, type, shape);
  const value_id product = out.emit("Mul", {x, shifted}, type, shape);
  return out.emit_or_into(into, "Mul", {product, out.scalar(type, 0.5)}, type, shape);
}

/// x · sigmoid(slope · x): silu (slope 1) and quick_gelu (slope 1.702).
inline void lower_sigmoid_gate(const node& n, ort_context& c, double slope) {
  graph_emitter& out = c.out;
  const value_id x = n.inputs[0];
  const dtype type = c[x].type;
  const dims shape = c[x].shape;
  const value_id inner = slope == 1.0 ? x : out.emit("Mul", {x, out.scalar(type, slope)}, type, shape);
  const value_id gate = out.emit("Sigmoid", {inner}, type, shape);
  out.emit_into(n.outputs, "Mul", {x, gate});
}

/// geglu: the first half of the last axis times gelu of the second.
inline result<void> lower_geglu(const node& n, ort_context& c) {
  graph_emitter& out = c.out;
  const value_id x = n.inputs[0];
  const dims half = c[n.outputs[0]].shape;
  const auto width = half.empty() ? std::nullopt : half.back().constant();
  if (!width) return lowering_failure(n, "geglu needs a constant last axis", {}, to_string(half));
  const auto halves =
      out.emit_many("Split", {x, out.integers({*width, *width})}, c[x].type, {half, half}, {int_attribute("axis", -1)});
  const value_id gate = emit_gelu(c, halves[1]);
  out.emit_into(n.outputs, "Mul", {halves[0], gate});
  return {};
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
