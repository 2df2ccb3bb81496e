// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/shapes.hpp: element types and shapes of a node's outputs from its inputs.
//
// Include this to type new nodes or to check typed ones. Covers the composites of graph/ops.hpp and the ONNX operators that lowerings
// expand them into. Small integer tensors (shapes, axes) are followed through Shape, Gather, Concat and arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensorsmith/graph/infer_composites.hpp"
#include "tensorsmith/graph/infer_layers.hpp"
#include "tensorsmith/graph/infer_views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// An operator: how many inputs and outputs it takes, and the rule that types its outputs.
struct op_signature {
  std::string_view name;
  std::uint8_t least_inputs, most_inputs;
  std::uint8_t least_outputs, most_outputs;
  detail::inferred (*infer)(const detail::infer_context&);
};

namespace detail {

inline constexpr std::uint8_t many = 255;
inline constexpr op_signature op_signatures[] = {
    // composites
    {"attention", 3, 3, 1, 1, infer_attention},
    {"geglu", 1, 1, 1, 1, infer_geglu},
    {"gelu", 1, 1, 1, 1, infer_float},
    {"group_norm", 3, 3, 1, 1, infer_group_norm},
    {"image_to_tokens", 1, 1, 1, 1, infer_image_to_tokens},
    {"layer_norm", 3, 3, 1, 1, infer_layer_norm},
    {"linear", 2, 3, 1, 1, infer_linear},
    {"pad_bottom_right", 1, 1, 1, 1, infer_pad_bottom_right},
    {"pool_at_token", 2, 2, 1, 1, infer_pool_at_token},
    {"quick_gelu", 1, 1, 1, 1, infer_float},
    {"silu", 1, 1, 1, 1, infer_float},
    {"timestep_embedding", 1, 1, 1, 1, infer_timestep_embedding},
    {"tokens_to_image", 2, 2, 1, 1, infer_tokens_to_image},
    {"upsample_nearest", 1, 1, 1, 1, infer_upsample_nearest},
    // ONNX
    {"Abs", 1, 1, 1, 1, infer_same},
    {"Add", 2, 2, 1, 1, infer_arithmetic},
    {"And", 2, 2, 1, 1, infer_compare},
    {"ArgMax", 1, 1, 1, 1, infer_argmax},
    {"Cast", 1, 1, 1, 1, infer_cast},
    {"Clip", 1, 3, 1, 1, infer_same},
    {"Concat", 1, many, 1, 1, infer_concat},
    {"ConstantOfShape", 1, 1, 1, 1, infer_constant_of_shape},
    {"Conv", 2, 3, 1, 1, infer_conv},
    {"Cos", 1, 1, 1, 1, infer_float},
    {"Div", 2, 2, 1, 1, infer_arithmetic},
    {"Equal", 2, 2, 1, 1, infer_compare},
    {"Erf", 1, 1, 1, 1, infer_float},
    {"Exp", 1, 1, 1, 1, infer_float},
    {"Expand", 2, 2, 1, 1, infer_expand},
    {"Gather", 2, 2, 1, 1, infer_gather},
    {"GatherND", 2, 2, 1, 1, infer_gather_nd},
    {"Gelu", 1, 1, 1, 1, infer_float},
    {"Gemm", 2, 3, 1, 1, infer_gemm},
    {"Greater", 2, 2, 1, 1, infer_compare},
    {"GreaterOrEqual", 2, 2, 1, 1, infer_compare},
    {"GroupNormalization", 3, 3, 1, 1, infer_group_norm},
    {"Identity", 1, 1, 1, 1, infer_same},
    {"InstanceNormalization", 3, 3, 1, 1, infer_instance_norm},
    {"LayerNormalization", 2, 3, 1, 1, infer_layer_norm},
    {"Less", 2, 2, 1, 1, infer_compare},
    {"LessOrEqual", 2, 2, 1, 1, infer_compare},
    {"Log", 1, 1, 1, 1, infer_float},
    {"MatMul", 2, 2, 1, 1, infer_matmul},
    {"Max", 1, many, 1, 1, infer_arithmetic},
    {"Min", 1, many, 1, 1, infer_arithmetic},
    {"Mul", 2, 2, 1, 1, infer_arithmetic},
    {"Neg", 1, 1, 1, 1, infer_same},
    {"Not", 1, 1, 1, 1, infer_same},
    {"Or", 2, 2, 1, 1, infer_compare},
    {"Pad", 2, 3, 1, 1, infer_pad},
    {"Pow", 2, 2, 1, 1, infer_pow},
    {"Range", 3, 3, 1, 1, infer_range},
    {"Reciprocal", 1, 1, 1, 1, infer_float},
    {"ReduceMax", 1, 2, 1, 1, infer_reduce},
    {"ReduceMean", 1, 2, 1, 1, infer_reduce},
    {"ReduceMin", 1, 2, 1, 1, infer_reduce},
    {"ReduceSum", 1, 2, 1, 1, infer_reduce},
    {"Relu", 1, 1, 1, 1, infer_same},
    {"Reshape", 2, 2, 1, 1, infer_reshape},
    {"Resize", 1, 4, 1, 1, infer_resize},
    {"Shape", 1, 1, 1, 1, infer_shape},
    {"Sigmoid", 1, 1, 1, 1, infer_float},
    {"Sin", 1, 1, 1, 1, infer_float},
    {"Slice", 3, 5, 1, 1, infer_slice},
    {"Softmax", 1, 1, 1, 1, infer_softmax},
    {"Split", 1, 2, 1, many, infer_split},
    {"Sqrt", 1, 1, 1, 1, infer_float},
    {"Squeeze", 2, 2, 1, 1, infer_squeeze},
    {"Sub", 2, 2, 1, 1, infer_arithmetic},
    {"Tanh", 1, 1, 1, 1, infer_float},
    {"Transpose", 1, 1, 1, 1, infer_transpose},
    {"Trilu", 1, 2, 1, 1, infer_trilu},
    {"Unsqueeze", 2, 2, 1, 1, infer_unsqueeze},
    {"Where", 3, 3, 1, 1, infer_where},
};

}  // namespace detail

/// The operator called `name` of the standard vocabulary, or nullptr.
inline const op_signature* find_op(std::string_view name) noexcept {
  for (const op_signature& s : detail::op_signatures)
    if (s.name == name) return &s;
  return nullptr;
}

/// Types nodes one after the other, in topological order, and remembers small integer tensors on the way. Refers to a graph that
/// may grow meanwhile.
class type_inference {
 public:
  explicit type_inference(const graph& model) : model_(model) { learn_constants(); }

  /// Types and shapes of the outputs. Every input must be typed already. @fails mismatch (shapes or types do not fit, wrong
  /// arity), unsupported (unknown operator); both name the node.
  result<std::vector<value_type>> infer(const node& n) {
    learn_constants();
    const op_signature* op = n.domain.empty() ? find_op(n.op) : nullptr;
    if (op == nullptr)
      return failure{.code = errc::unsupported, .what = "no rule types the outputs of this operator", .place = "node " + quoted(n.name),
                     .found = quoted((n.domain.empty() ? "" : n.domain + ".") + n.op)};
    const detail::infer_context context(model_, n, known_, constants_);
    if (n.inputs.size() < op->least_inputs || n.inputs.size() > op->most_inputs)
      return context.refuse("wrong number of inputs", std::to_string(op->least_inputs) + " to " + std::to_string(op->most_inputs),
                            std::to_string(n.inputs.size()));
    if (n.outputs.size() > op->most_outputs || (n.op != "Split" && n.outputs.size() > 1))
      return context.refuse("wrong number of outputs", std::to_string(op->most_outputs), std::to_string(n.outputs.size()));
    for (std::size_t k = 0; k < op->least_inputs; ++k)
      if (!context.has(k)) return context.refuse("input " + std::to_string(k) + " is required");
    return op->infer(context);
  }

  /// Remembers the elements that a node gives `output`, if they can be told. Call it once the output exists.
  void learn(const node& n, value_id output) {
    const detail::infer_context context(model_, n, known_, constants_);
    if (auto elements = elements_of(context)) known_[output] = std::move(*elements);
  }

 private:
  static constexpr std::size_t most_elements = 64;

  void learn_constants() {
    for (; seen_ < model_.initializers.size(); ++seen_) {
      const initializer& i = model_.initializers[seen_];
      const auto* c = std::get_if<constant>(&i.data);
      if (c == nullptr) continue;
      constants_[i.value] = seen_;
      if (auto elements = detail::integer_elements(*c, most_elements)) known_[i.value] = std::move(*elements);
    }
  }

  static std::optional<dims> elements_of(const detail::infer_context& c) {
    const std::string_view op = c.op().op;
    if (op == "Shape") {
      const auto rank = static_cast<std::int64_t>(c.rank(0));
      const auto at = [&](std::int64_t i) { return std::clamp<std::int64_t>(i < 0 ? i + rank : i, 0, rank); };
      const auto first = at(c.op().integer("start", 0)), last = std::max(first, at(c.op().integer("end", rank)));
      return dims(c.shape(0).begin() + first, c.shape(0).begin() + last);
    }
    const dims* x = c.inputs() > 0 ? c.elements(0) : nullptr;
    if (x == nullptr) return std::nullopt;
    if (op == "Identity" || op == "Unsqueeze" || op == "Squeeze") return *x;
    if (op == "Cast") {
      const auto to = dtype_of_element_code(c.op().integer("to", 0));
      return to == dtype::i64 || to == dtype::i32 ? std::optional(*x) : std::nullopt;
    }
    if (op == "Gather") return gathered(c, *x);
    if (op == "Slice") return sliced(c, *x);
    if (op == "Concat") return joined(c);
    if (op == "Add" || op == "Sub" || op == "Mul" || op == "Div") return combined(c, *x);
    return std::nullopt;
  }

  static std::optional<dims> gathered(const detail::infer_context& c, const dims& x) {
    const auto picks = c.numbers(1);
    if (!picks || c.rank(0) != 1) return std::nullopt;
    dims out;
    for (const std::int64_t p : *picks) {
      const std::int64_t at = p < 0 ? p + static_cast<std::int64_t>(x.size()) : p;
      if (at < 0 || at >= static_cast<std::int64_t>(x.size())) return std::nullopt;
      out.push_back(x[static_cast<std::size_t>(at)]);
    }
    return out;
  }

  static std::optional<dims> sliced(const detail::infer_context& c, const dims& x) {
    const auto starts = c.numbers(1), ends = c.numbers(2);
    const auto size = static_cast<std::int64_t>(x.size());
    if (!starts || !ends || starts->size() != 1 || ends->size() != 1 || c.has(4)) return std::nullopt;
    const auto at = [size](std::int64_t i) { return std::clamp<std::int64_t>(i < 0 ? i + size : i, 0, size); };
    const std::int64_t first = at((*starts)[0]), last = std::max(first, at((*ends)[0]));
    return dims(x.begin() + first, x.begin() + last);
  }

  static std::optional<dims> joined(const detail::infer_context& c) {
    dims out;
    for (std::size_t k = 0; k < c.inputs(); ++k) {
      const dims* part = c.elements(k);
      if (part == nullptr || out.size() + part->size() > most_elements) return std::nullopt;
      out.insert(out.end(), part->begin(), part->end());
    }
    return out;
  }

  static std::optional<dims> combined(const detail::infer_context& c, const dims& x) {
    const dims* y = c.elements(1);
    if (y == nullptr || (x.size() != y->size() && x.size() != 1 && y->size() != 1)) return std::nullopt;
    dims out;
    for (std::size_t i = 0; i < std::max(x.size(), y->size()); ++i) {
      const dim &a = x[x.size() == 1 ? 0 : i], &b = (*y)[y->size() == 1 ? 0 : i];
      const std::string_view op = c.op().op;
      if (op == "Div") {
        const auto by = b.constant();
        const auto quotient = by && *by > 0 ? a.floor_div(*by) : std::nullopt;
        if (!quotient) return std::nullopt;
        out.push_back(*quotient);
      } else {
        out.push_back(op == "Add" ? a + b : op == "Sub" ? a - b : a * b);
      }
    }
    return out;
  }

  const graph& model_;
  std::size_t seen_ = 0;  ///< initializers looked at so far
  detail::known_elements known_;
  std::unordered_map<value_id, std::size_t> constants_;
};

TENSORSMITH_END_NAMESPACE
