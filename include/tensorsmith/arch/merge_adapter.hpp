// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/merge_adapter.hpp: merges adapters of the LoRA family into the weights of a pipeline, with every key accounted for.
//
// Include this to merge while a model is converted or before it is written. Nothing is computed yet: the package's tensors become recipes that
// read a tile of the stored weight, apply all adapters in their order in f32 and round once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/adapter_change.hpp"
#include "tensorsmith/arch/adapter_targets.hpp"
#include "tensorsmith/tensor/merged.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One adapter of a merge.
struct adapter_request {
  adapter source;
  double unet = 1, text_encoder = 1;  ///< strengths; 0 leaves the part untouched
  adapter_strength how{};             ///< its `strength` is replaced by those above
  /// A further factor for a layer of the UNet, by its path in diffusers' names; none: 1 everywhere.
  std::function<double(std::string_view)> block_weight{};
};

/// What became of one module.
struct merged_module {
  std::string name;       ///< as the file names it
  std::string component, target;  ///< the layer; empty if it was not found
  std::string algorithm;
  double strength = 0;
  std::string reason;     ///< why it was not applied; empty if it was
};

/// What became of one adapter.
struct merged_adapter {
  std::string file;
  adapter_description what;
  std::vector<merged_module> modules;
  std::vector<std::string> unknown;  ///< tensors that are no parameter of any algorithm
  std::size_t applied = 0, not_found = 0, ignored = 0;  ///< modules
};

/// A weight that was changed. Its norms are known once it has been written.
struct merged_weight {
  std::string component, name;
  std::shared_ptr<const merged_recipe> recipe;
};

/// The account of a merge.
struct merge_account {
  std::vector<merged_adapter> adapters;
  std::vector<merged_weight> weights;
};

/// What a merge may be told.
struct merge_options {
  bool strict = false;                               ///< a module without a layer is an error
  cast_overflow overflow = cast_overflow::error;     ///< of merged values in the stored type
};

namespace detail {

/// One merge into one package.
class adapter_merger {
 public:
  adapter_merger(package& model, const merge_options& options, const job& run) : model_(model), options_(options), run_(run), targets_(model) {}

  result<merge_account> merge(std::span<const adapter_request> requests) {
    for (const adapter_request& request : requests) TENSORSMITH_CHECK(add(request));
    for (auto& [place, changes] : changes_) TENSORSMITH_CHECK(replace(place.first, place.second, std::move(changes)));
    return std::move(account_);
  }

 private:
  result<void> add(const adapter_request& request) {
    merged_adapter& out = account_.adapters.emplace_back();
    out.file = request.source.file;
    out.what = request.source.what;
    out.unknown = request.source.unknown;
    std::map<std::pair<std::size_t, std::string>, std::string> seen;
    for (const adapter_layer& layer : request.source.modules) {
      merged_module& module = out.modules.emplace_back();
      module.name = layer.name;
      const auto target = targets_.find(layer.name);
      if (!target) {
        module.reason = "the model has no such layer";
        ++out.not_found;
        continue;
      }
      const component& part = model_.components[target->component];
      module.component = part.name, module.target = target->module;
      const auto [before, fresh] = seen.emplace(std::pair(target->component, target->module), layer.name);
      if (!fresh)
        return failure{.code = errc::mismatch, .what = "two modules of one adapter change the same layer", .file = request.source.file,
                       .place = "module " + quoted(layer.name), .expected = "one module a layer", .found = "also " + quoted(before->second)};
      TENSORSMITH_CHECK(apply(request, layer, *target, module));
      ++(module.reason.empty() ? out.applied : out.ignored);
    }
    return check(request, out);
  }

  result<void> apply(const adapter_request& request, const adapter_layer& layer, const adapter_target& target, merged_module& module) {
    const component& part = model_.components[target.component];
    adapter_strength how = request.how;
    how.strength = part.name == "unet" ? request.unet : request.text_encoder;
    if (part.name == "unet" && request.block_weight) how.strength *= request.block_weight(target.module);
    module.strength = how.strength;
    const catalog_entry* const weight = part.weights.find(target.module + ".weight");
    if (!weight) {
      module.reason = "the layer has no weight";
      return {};
    }
    TENSORSMITH_TRY(module_changes changes, make_changes(layer, request.source.file, weight->tensor.info(), how, run_));
    module.algorithm = changes.algorithm;
    if (how.strength == 0) {
      module.reason = "strength 0";
      return {};
    }
    for (const std::string& note : changes.notes) module.reason = note;
    if (!changes.notes.empty()) return {};
    if (changes.weight) changes_[{target.component, target.module + ".weight"}].push_back(std::move(changes.weight));
    if (!changes.bias) return {};
    const catalog_entry* const bias = part.weights.find(target.module + ".bias");
    const tensor_ref stored = layer.has("diff_b") ? layer.find("diff_b") : layer.find("b_norm");
    if (!bias || bias->tensor.info().elements() != stored.info().elements())
      return failure{.code = errc::mismatch, .what = "the adapter changes a bias that the layer does not have", .file = request.source.file,
                     .place = "module " + quoted(layer.name), .expected = bias ? "a change of a bias " + to_string(bias->tensor.shape()) : "no bias",
                     .found = to_string(stored.shape())};
    changes_[{target.component, target.module + ".bias"}].push_back(std::move(changes.bias));
    return {};
  }

  /// Nothing applied is an error; some not applied is one with `strict`.
  result<void> check(const adapter_request& request, const merged_adapter& out) const {
    std::vector<std::string> missing;
    for (const merged_module& module : out.modules)
      if (module.component.empty()) missing.push_back(module.name);
    std::string names;
    for (std::size_t i = 0; i < missing.size() && i < 10; ++i) names += (i ? ", " : "") + quoted(missing[i]);
    if (missing.size() > 10) names += ", …";
    if (out.not_found == out.modules.size())
      return failure{.code = errc::mismatch, .what = "no module of the adapter belongs to a layer of the model", .file = request.source.file,
                     .expected = "an adapter for " + (model_.family.empty() ? std::string("this model") : model_.family),
                     .found = (out.what.base.empty() ? "" : "one for " + out.what.base + ": ") + names};
    if (options_.strict && (!missing.empty() || !out.unknown.empty()))
      return failure{.code = errc::mismatch, .what = "parts of the adapter do not belong to the model", .file = request.source.file,
                     .expected = "a layer for each of " + std::to_string(out.modules.size()) + " modules",
                     .found = missing.empty() ? "unknown tensor " + quoted(out.unknown[0]) : names, .advice = "drop --strict to merge the rest"};
    return {};
  }

  result<void> replace(std::size_t component_index, const std::string& name, std::vector<weight_change_ptr> changes) {
    component& part = model_.components[component_index];
    const catalog_entry& entry = *part.weights.find(name);
    const tensor_ref before = entry.tensor;
    if (!convertible(before.type(), dtype::f32) || before.source->outputs().size() != 1)
      return failure{.code = errc::unsupported, .what = "an adapter cannot be merged into a weight of this type", .place = entry.origin,
                     .expected = "a floating-point type", .found = std::string(name_of(before.type())), .advice = "convert the model first"};
    auto merged = std::make_shared<merged_recipe>(before.source, std::move(changes));
    account_.weights.push_back({part.name, name, merged});
    TENSORSMITH_TRY(tensor_ref rounded, cast(tensor_ref{std::move(merged), 0}, before.type(), options_.overflow));
    part.weights.replace(name, std::move(rounded));
    return {};
  }

  package& model_;
  const merge_options& options_;
  const job& run_;
  adapter_targets targets_;
  std::map<std::pair<std::size_t, std::string>, std::vector<weight_change_ptr>> changes_;
  merge_account account_;
};

/// A likelier explanation of shapes that do not fit: an adapter of another family.
inline void diagnose_family(failure& error, const adapter_request& request, const package& model) {
  const std::string& base = request.source.what.base;
  if (error.code != errc::mismatch || base.empty() || model.family.empty() || base == model.family) return;
  error.advice = "the adapter is one for " + base + " (" + request.source.what.base_reason + "), the model is " + model.family;
}

}  // namespace detail

/// Merges adapters into a pipeline whose components have diffusers' and transformers' names. Every module of every adapter ends in the
/// account: applied, without a layer, or ignored for a reason. Adapters are applied in their order; changes that depend on the weight (OFT, (IA)³,
/// GLoRA, DoRA) see what those before them left. Small tensors of the adapters are read now, factors when their layer is written.
/// @fails mismatch (shapes, with the families if they differ; no module applied; two modules for one layer; with strict any without a layer), numeric
/// (alpha), unsupported (weights that are quantized, replacement weights). The package is unspecified after a failure.
inline result<merge_account> merge_adapters(package& model, std::span<const adapter_request> requests, const merge_options& options, const job& run) {
  auto merged = detail::adapter_merger(model, options, run).merge(requests);
  if (!merged)
    for (const adapter_request& request : requests)
      if (request.source.file == merged.error().file) detail::diagnose_family(merged.error(), request, model);
  return merged;
}

TENSORSMITH_END_NAMESPACE
