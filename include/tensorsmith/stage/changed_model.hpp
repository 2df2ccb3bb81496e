// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/changed_model.hpp: what the stages that change weights share: merge_lora, merge_embedding and blend.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/arch/update_checkpoint.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/graph/ir.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// The single file that `model` was recognised from, with the changed weights of `model` in it. A file whose names no writer of checkpoints knows
/// goes on as the components of `model`, with a warning.
inline result<package> in_form_of_file(package file, package model, const std::vector<changed_weight>& changed, job& run) {
  auto updated = update_checkpoint(file.components[0].weights, model, changed, run);
  if (!updated && updated.error().code == errc::unsupported) {
    run.warn(file.source, "its tensors get diffusers' names: " + updated.error().what);
    return model;
  }
  if (!updated) return std::move(updated).error();
  file.components[0].weights = std::move(*updated);
  return file;
}

/// The weights of a bundle's graphs as a package, a component a graph: initializers are named as the parameters they came from.
inline result<package> package_of_graphs(const bundle& in) {
  package out;
  out.source = in.source, out.family = in.family, out.findings = in.findings;
  for (const bundle_component& graphs : in.components) {
    component part;
    part.name = graphs.name;
    std::vector<catalog_entry> entries;
    for (const initializer& init : graphs.model.initializers)
      if (const tensor_ref* tensor = std::get_if<tensor_ref>(&init.data)) {
        const std::string& value = graphs.model[init.value].name;
        entries.push_back({value, *tensor, graphs.name + ": " + value});
      }
    TENSORSMITH_CHECK(part.weights.add_all(std::move(entries)));
    out.components.push_back(std::move(part));
  }
  return out;
}

/// Gives a graph the changed weights of its component.
inline void update_initializers(graph& model, const component& part, const std::vector<changed_weight>& changed) {
  std::map<std::string_view, const tensor_ref*> fresh;
  for (const changed_weight& weight : changed)
    if (weight.component == part.name) fresh.emplace(weight.name, &part.weights.find(weight.name)->tensor);
  for (initializer& init : model.initializers)
    if (const auto at = fresh.find(model[init.value].name); at != fresh.end() && std::holds_alternative<tensor_ref>(init.data)) init.data = *at->second;
}

/// Runs a stage that works on weights and on graphs alike.
template <class From, class Stage>
chain<From> run_on_model(chain<From> left, const Stage& stage) {
  if (!left) return {std::move(left.state()).error(), left.run()};
  auto run = left.run();
  return {stage.run(std::move(left.state()).value(), *run), std::move(run)};
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
