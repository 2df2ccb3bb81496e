// SPDX-License-Identifier: MIT
//
// tensorsmith/target/ort.hpp: lowers graphs to the standard ONNX operators, in the forms that ONNX Runtime runs fastest.
//
// Include this to turn what an architecture built into something an ONNX writer can write.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/pass/expose_stored_weights.hpp"
#include "tensorsmith/pass/remove_unused.hpp"
#include "tensorsmith/target/ort_attention.hpp"
#include "tensorsmith/target/ort_layers.hpp"
#include "tensorsmith/target/target.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// True for operators of our own vocabulary: they are spelled in lower case.
inline bool is_composite(const node& n) noexcept { return n.domain.empty() && !n.op.empty() && n.op[0] >= 'a' && n.op[0] <= 'z'; }

inline result<void> lower_node(const node& n, ort_context& c) {
  struct row {
    std::string_view op;
    std::size_t inputs;
    result<void> (*expand)(const node&, ort_context&);
  };
  static constexpr row rows[] = {
      {"linear", 2, lower_linear},
      {"group_norm", 3, lower_group_norm},
      {"layer_norm", 3, lower_layer_norm},
      {"attention", 3, lower_attention},
      {"gelu", 1,
       [](const node& m, ort_context& k) -> result<void> { return emit_gelu(k, m.inputs[0], m.outputs[0]), result<void>(); }},
      {"silu", 1, [](const node& m, ort_context& k) -> result<void> { return lower_sigmoid_gate(m, k, 1.0), result<void>(); }},
      {"quick_gelu", 1,
       [](const node& m, ort_context& k) -> result<void> { return lower_sigmoid_gate(m, k, 1.702), result<void>(); }},
      {"geglu", 1, lower_geglu},
      {"upsample_nearest", 1, lower_upsample},
      {"timestep_embedding", 1, lower_timestep_embedding},
      {"image_to_tokens", 1, lower_image_to_tokens},
      {"tokens_to_image", 2, lower_tokens_to_image},
      {"pool_at_token", 2, lower_pool},
      {"pad_bottom_right", 1, lower_pad}};
  for (const row& r : rows) {
    if (r.op != n.op) continue;
    if (n.inputs.size() < r.inputs || n.outputs.size() != 1)
      return lowering_failure(n, n.op + " has the wrong number of inputs or outputs",
                              std::to_string(r.inputs) + " inputs, 1 output",
                              std::to_string(n.inputs.size()) + ", " + std::to_string(n.outputs.size()));
    c.out.begin(n);
    return r.expand(n, c);
  }
  return failure{.code = errc::unsupported, .what = "ONNX Runtime's lowering has no operator " + quoted(n.op),
                 .place = "node " + quoted(n.name)};
}

}  // namespace detail

/// Replaces the composites of one graph by standard ONNX operators of `options.opset`. Weights are not touched: a transposed
/// linear weight is a recipe. @fails usage (opset not 14 to 21), unsupported (an unknown composite), internal (a composite that
/// is not as graph/ops.hpp says).
inline result<void> lower_to_ort(graph& model, const ort_options& options) {
  if (options.opset < 14 || options.opset > 21)
    return failure{.code = errc::usage, .what = "the ONNX operator set is not supported", .expected = "14 to 21",
                   .found = std::to_string(options.opset), .advice = "pass --opset with a number in that range"};
  if (options.keep_stored_weights) expose_stored_weights(model);
  graph_emitter out(model);
  detail::ort_context c{out, model, options, {}, {}, {}};
  for (std::size_t i = 0; i < model.initializers.size(); ++i) c.weights.emplace(model.initializers[i].value, i);
  for (const node& n : model.nodes)
    for (std::size_t k = 0; k < n.inputs.size(); ++k)
      if (n.op != "linear" || k != 1) ++c.other_uses[n.inputs[k]];
  for (const value_id id : model.outputs) ++c.other_uses[id];
  for (const node& n : model.nodes) {
    if (detail::is_composite(n)) {
      TENSORSMITH_CHECK(detail::lower_node(n, c));
    } else {
      out.keep(n);
    }
  }
  out.finish();
  remove_unused(model);
  return {};
}

/// Lowers every graph of a bundle; the result's `opset` is `options.opset`. Errors as above, naming the component.
inline result<bundle> lower_to_ort(bundle models, const ort_options& options, job& run) {
  for (bundle_component& c : models.components) {
    if (run.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled while lowering", .place = c.name};
    if (auto done = lower_to_ort(c.model, options); !done) {
      failure error = std::move(done).error();
      if (error.code != errc::usage) error.place = c.name + (error.place.empty() ? "" : ": " + error.place);
      return error;
    }
  }
  models.opset = options.opset;
  return models;
}

/// Lowers for a target that runs in ONNX Runtime: all of them get the standard operators today.
inline result<bundle> lower(tags::ort, bundle models, const ort_options& options, job& run) {
  return lower_to_ort(std::move(models), options, run);
}

TENSORSMITH_END_NAMESPACE
