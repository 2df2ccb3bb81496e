// SPDX-License-Identifier: MIT
//
// tensorsmith/pass/expose_stored_weights.hpp: weights that are cast on the way become the stored bytes and a Cast node.
//
// Include this before weights are referred to where they lie: a file that keeps f16 serves a graph that computes in f32.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/graph/element_code.hpp"
#include "tensorsmith/graph/ir.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Replaces each initializer that is a cast of a contiguously stored tensor by that tensor, under the parameter's name, and a
/// Cast node before all others. Runtimes fold the node when they load. Other initializers stay, also those that become narrower:
/// a runtime's Cast overflows in silence, ours does not.
inline void expose_stored_weights(graph& model) {
  std::vector<node> casts;
  for (initializer& i : model.initializers) {
    auto* tensor = std::get_if<tensor_ref>(&i.data);
    if (!tensor || tensor->source->stored()) continue;
    recipe_ptr inner = tensor->source->uncast();
    if (!inner || !inner->stored() || may_overflow(inner->outputs()[0].type, tensor->type())) continue;
    const value before = model[i.value];
    const std::string name = before.name;
    const value_id as_stored = model.add({name, inner->outputs()[0].type, before.shape});
    model[i.value].name = name + "_cast";
    casts.push_back({.op = "Cast", .name = "/" + name + "/Cast", .module = name.substr(0, name.rfind('.')), .domain = {},
                     .inputs = {as_stored}, .outputs = {i.value}, .attributes = {{"to", *element_code(before.type)}}});
    i.value = as_stored;
    *tensor = {std::move(inner), 0};
  }
  model.nodes.insert(model.nodes.begin(), std::make_move_iterator(casts.begin()), std::make_move_iterator(casts.end()));
}

TENSORSMITH_END_NAMESPACE
