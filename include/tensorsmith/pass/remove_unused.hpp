// SPDX-License-Identifier: MIT
//
// tensorsmith/pass/remove_unused.hpp: drops nodes, initializers and values that no output depends on.
#pragma once

#include <cstddef>
#include <iterator>
#include <utility>
#include <vector>

#include "tensorsmith/graph/ir.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Removes what no graph output needs: nodes, then initializers, then values (ids are renumbered in order). Graph inputs stay:
/// they are the interface. @pre nodes are in topological order
inline void remove_unused(graph& model) {
  std::vector<char> used(model.values.size(), 0);
  const auto mark = [&used](value_id id) { if (id != value_id::none) used[static_cast<std::size_t>(id)] = 1; };
  const auto needed = [&used](value_id id) { return id != value_id::none && used[static_cast<std::size_t>(id)] != 0; };
  for (const value_id id : model.outputs) mark(id);

  std::vector<node> kept;
  for (std::size_t i = model.nodes.size(); i-- > 0;) {
    node& n = model.nodes[i];
    bool any = false;
    for (const value_id id : n.outputs) any = any || needed(id);
    if (!any) continue;
    for (const value_id id : n.inputs) mark(id);
    kept.push_back(std::move(n));
  }
  model.nodes.assign(std::make_move_iterator(kept.rbegin()), std::make_move_iterator(kept.rend()));
  std::erase_if(model.initializers, [&](const initializer& i) { return !needed(i.value); });
  for (const value_id id : model.inputs) mark(id);
  for (const node& n : model.nodes)
    for (const value_id id : n.outputs) mark(id);  // an unused second output still has a name

  std::vector<value_id> moved(model.values.size(), value_id::none);
  std::vector<value> values;
  for (std::size_t i = 0; i < model.values.size(); ++i) {
    if (!used[i]) continue;
    moved[i] = static_cast<value_id>(values.size());
    values.push_back(std::move(model.values[i]));
  }
  model.values = std::move(values);
  const auto renumber = [&moved](value_id& id) { if (id != value_id::none) id = moved[static_cast<std::size_t>(id)]; };
  for (node& n : model.nodes) {
    for (value_id& id : n.inputs) renumber(id);
    for (value_id& id : n.outputs) renumber(id);
  }
  for (initializer& i : model.initializers) renumber(i.value);
  for (value_id& id : model.inputs) renumber(id);
  for (value_id& id : model.outputs) renumber(id);
}

TENSORSMITH_END_NAMESPACE
