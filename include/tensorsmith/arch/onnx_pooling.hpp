// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/onnx_pooling.hpp: the pooled output of an exported CLIP text encoder, made safe for added tokens.
//
// Include this when tokens are added to a finished graph. Exports of models whose eos_token_id is 2 take the pooled state at the largest id,
// which is the end marker only as long as no id is larger. Added tokens are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/format/onnx/nodes.hpp"
#include "tensorsmith/format/onnx/update.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Follows values back to what they are made of.
class value_origin {
 public:
  explicit value_origin(const onnx_model& model) : model_(model), wire_(model.file) {
    for (std::size_t n = 0; n < model.nodes.size(); ++n)
      for (std::size_t i = 0; i < model.nodes[n].outputs; ++i) made_by_.emplace(model.output_of(model.nodes[n], i), n);
    ids_ = input_of_ids();
  }
  /// The element type of `name` if it holds the ids of the tokens, in whatever type and shape; 0: it is something else. @fails malformed, io
  result<std::int64_t> type_of_ids(std::string_view name) {
    std::int64_t type = 0;
    for (std::size_t steps = 0; steps <= model_.nodes.size(); ++steps) {
      for (const onnx_value_info& input : model_.inputs)
        if (input.name == name && name == ids_) return type != 0 ? type : input.element_type;
      const auto at = made_by_.find(name);
      if (at == made_by_.end()) return std::int64_t{0};
      const onnx_node& node = model_.nodes[at->second];
      const bool cast = model_.is(node, "Cast");
      if (node.inputs == 0 || !passes(node)) return std::int64_t{0};
      if (cast && type == 0) {
        TENSORSMITH_TRY(const auto attributes, onnx_attributes(node, wire_));
        if (const onnx_attribute* const to = find_attribute(attributes, "to")) type = to->integer;
      }
      name = model_.input_of(node, 0);
    }
    return std::int64_t{0};
  }
  /// True if `name` is the outcome of a comparison, in whatever type and shape.
  bool compares(std::string_view name) const {
    for (std::size_t steps = 0; steps <= model_.nodes.size(); ++steps) {
      const auto at = made_by_.find(name);
      if (at == made_by_.end()) return false;
      const onnx_node& node = model_.nodes[at->second];
      if (model_.is(node, "Equal")) return true;
      if (node.inputs == 0 || !passes(node)) return false;
      name = model_.input_of(node, 0);
    }
    return false;
  }
  bool taken(std::string_view name) const { return made_by_.count(name) > 0; }

 private:
  /// Nodes that hand the elements of their first input on.
  bool passes(const onnx_node& node) const {
    constexpr std::string_view operators[] = {"Cast", "Reshape", "Identity", "Squeeze", "Unsqueeze"};
    return std::any_of(std::begin(operators), std::end(operators), [&](std::string_view name) { return model_.is(node, name); });
  }
  /// "input_ids"; in a graph with other names, its only input of integers.
  std::string_view input_of_ids() const {
    std::string_view only;
    std::size_t count = 0;
    for (const onnx_value_info& input : model_.inputs) {
      if (input.name == "input_ids") return input.name;
      const bool stored = std::any_of(model_.initializers.begin(), model_.initializers.end(), [&](const onnx_initializer& t) { return t.name == input.name; });
      if (!stored && (input.element_type == 6 || input.element_type == 7)) only = input.name, ++count;
    }
    return count == 1 ? only : std::string_view();
  }

  const onnx_model& model_;
  wire_reader wire_;
  std::map<std::string_view, std::size_t> made_by_;
  std::string_view ids_;
};

}  // namespace detail

/// What became of the places where a text encoder pools.
struct pooling_repairs {
  std::size_t repaired = 0;             ///< 0: the graph does not pool, or pools at the end marker already
  std::vector<std::string> not_understood;  ///< ArgMax nodes over something that is neither known to be the ids nor a comparison
};

/// Lets every ArgMax over the ids look for the first one equal to `eos` instead of the largest: ArgMax(ids) becomes
/// ArgMax(Cast(Equal(ids, eos))). @fails malformed, io
inline result<pooling_repairs> repair_pooling(const onnx_model& model, std::int64_t eos, onnx_update& update) {
  constexpr std::int64_t i32 = 6, i64 = 7;
  detail::value_origin origin(model);
  pooling_repairs out;
  std::size_t& count = out.repaired;
  for (std::size_t n = 0; n < model.nodes.size(); ++n) {
    const onnx_node& node = model.nodes[n];
    if (!model.is(node, "ArgMax") || node.inputs != 1) continue;
    TENSORSMITH_TRY(const std::int64_t type, origin.type_of_ids(model.input_of(node, 0)));
    if (type != i32 && type != i64) {
      if (!origin.compares(model.input_of(node, 0))) out.not_understood.emplace_back(model.name_of(node));
      continue;
    }
    std::string base = "/pooled_at_eos_" + std::to_string(count);
    while (origin.taken(base + "/token") || origin.taken(base + "/Equal_output_0") || origin.taken(base + "/Cast_output_0")) base += "_";
    const onnx_new_node::scalar token{type, eos};
    const std::string ids(model.input_of(node, 0));
    update.nodes.push_back({n, onnx_node_bytes({.operation = "Constant", .name = base + "/Constant", .inputs = {}, .outputs = {base + "/token"}, .integers = {}, .constant = &token})});
    update.nodes.push_back({n, onnx_node_bytes({.operation = "Equal", .name = base + "/Equal", .inputs = {ids, base + "/token"}, .outputs = {base + "/Equal_output_0"}, .integers = {}})});
    update.nodes.push_back({n, onnx_node_bytes({.operation = "Cast", .name = base + "/Cast", .inputs = {base + "/Equal_output_0"}, .outputs = {base + "/Cast_output_0"},
                                                .integers = {{"to", type}}})});
    update.inputs.push_back({n, 0, base + "/Cast_output_0"});
    ++count;
  }
  return out;
}

TENSORSMITH_END_NAMESPACE
