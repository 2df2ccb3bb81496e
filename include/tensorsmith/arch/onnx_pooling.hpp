// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/onnx_pooling.hpp: the pooled output of an exported CLIP text encoder, made safe for added tokens.
//
// Include this when tokens are added to a finished graph. Exports of models whose eos_token_id is 2 take the pooled state at the largest id,
// which is the end marker only as long as no id is larger. Added tokens are.
#pragma once

#include <cstddef>
#include <cstdint>
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
  }
  /// The element type of `name` if it holds the ids of `input_ids`, in whatever type and shape; 0: it is something else. @fails malformed, io
  result<std::int64_t> type_of_ids(std::string_view name) {
    std::int64_t type = 0;
    for (std::size_t steps = 0; steps <= model_.nodes.size(); ++steps) {
      for (const onnx_value_info& input : model_.inputs)
        if (input.name == name && name == "input_ids") return type != 0 ? type : input.element_type;
      const auto at = made_by_.find(name);
      if (at == made_by_.end()) return std::int64_t{0};
      const onnx_node& node = model_.nodes[at->second];
      const bool cast = model_.is(node, "Cast");
      if (node.inputs == 0 || !(cast || model_.is(node, "Reshape") || model_.is(node, "Identity") || model_.is(node, "Squeeze") || model_.is(node, "Unsqueeze")))
        return std::int64_t{0};
      if (cast && type == 0) {
        TENSORSMITH_TRY(const auto attributes, onnx_attributes(node, wire_));
        if (const onnx_attribute* const to = find_attribute(attributes, "to")) type = to->integer;
      }
      name = model_.input_of(node, 0);
    }
    return std::int64_t{0};
  }
  bool taken(std::string_view name) const { return made_by_.count(name) > 0; }

 private:
  const onnx_model& model_;
  wire_reader wire_;
  std::map<std::string_view, std::size_t> made_by_;
};

}  // namespace detail

/// Lets every ArgMax over the ids look for the first one equal to `eos` instead of the largest: ArgMax(ids) becomes
/// ArgMax(Cast(Equal(ids, eos))). Returns how many there were; 0: the graph does not pool, or pools so already. @fails malformed, io
inline result<std::size_t> repair_pooling(const onnx_model& model, std::int64_t eos, onnx_update& update) {
  constexpr std::int64_t i32 = 6, i64 = 7;
  detail::value_origin origin(model);
  std::size_t count = 0;
  for (std::size_t n = 0; n < model.nodes.size(); ++n) {
    const onnx_node& node = model.nodes[n];
    if (!model.is(node, "ArgMax") || node.inputs != 1) continue;
    TENSORSMITH_TRY(const std::int64_t type, origin.type_of_ids(model.input_of(node, 0)));
    if (type != i32 && type != i64) continue;
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
  return count;
}

TENSORSMITH_END_NAMESPACE
