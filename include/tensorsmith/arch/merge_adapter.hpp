// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/merge_adapter.hpp: merges adapters of the LoRA family into the weights of a pipeline, with every key accounted for.
//
// Include this to merge while a model is converted or before it is written. Nothing is computed yet: the package's tensors become recipes that
// read a tile of the stored weight, apply all adapters in their order in f32 and round once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/adapter_change.hpp"
#include "tensorsmith/arch/adapter_targets.hpp"
#include "tensorsmith/tensor/cast_catalog.hpp"
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

/// What became of a module.
enum class module_outcome : std::uint8_t {
  applied,
  not_found,  ///< the model has no such layer
  ignored,    ///< without effect: strength 0, alpha 0, or a layer that is not here and need not be
};

/// "applied", "not found", "ignored".
constexpr std::string_view name_of(module_outcome outcome) noexcept {
  constexpr std::string_view names[] = {"applied", "not found", "ignored"};
  return names[static_cast<std::size_t>(outcome)];
}

/// What became of one module, and why.
struct merged_module {
  std::string name;       ///< as the file names it
  std::string component, target;  ///< the layer; empty if there is none
  std::string algorithm;
  double strength = 0;
  std::string reason;     ///< why it was not applied; empty if it was
  module_outcome outcome = module_outcome::applied;
  std::vector<std::string> remarks{};  ///< what is worth knowing of a change that was made
};

/// What became of one adapter.
struct merged_adapter {
  std::string file;
  adapter_description what;
  std::vector<merged_module> modules;
  std::vector<std::string> unknown;  ///< tensors that are no parameter of any algorithm
  std::size_t applied = 0, not_found = 0, ignored = 0;  ///< modules
};

/// A weight that was changed. Its figures are known once it has been written, but for `readings`.
struct merged_weight {
  std::string component, name;
  dtype type = dtype::f32;  ///< what it is rounded to
  std::shared_ptr<const merged_recipe> recipe;

  /// Frobenius norms of the change and of the weight before it.
  change_norms norms() const noexcept { return recipe->norms(); }
  /// Values that do not fit into `type`, and NaN and infinities that the weight had.
  merged_counts counts() const noexcept { return recipe->counts(); }
  /// How often its bytes are read: more than once for DoRA by input column.
  std::size_t readings() const noexcept { return recipe->readings(); }
};

/// The account of a merge.
struct merge_account {
  std::vector<merged_adapter> adapters;
  std::vector<merged_weight> weights;
};

/// What a merge may be told.
struct merge_options {
  bool strict = false;                               ///< a module without a layer is an error
  std::optional<dtype> to{};                         ///< type of merged weights, rounded to once; none: as stored
  keep kept{};                                       ///< weights that keep their stored type in spite of `to`
  cast_overflow overflow = cast_overflow::error;     ///< of finite merged values that do not fit the type they get
};

namespace detail {

/// One merge into one package.
class adapter_merger {
 public:
  adapter_merger(package& model, const merge_options& options, const job& run) : model_(model), options_(options), run_(run), targets_(model) {}

  result<merge_account> merge(std::span<const adapter_request> requests) {
    if (options_.to && (!is_floating(*options_.to) || !convertible(dtype::f32, *options_.to)))
      return failure{.code = errc::usage, .what = "merged weights cannot be of this type", .expected = "a floating-point type that f32 converts to",
                     .found = std::string(name_of(*options_.to))};
    for (const adapter_request& request : requests) TENSORSMITH_CHECK(add(request));
    for (auto& [place, changes] : changes_) TENSORSMITH_CHECK(replace(place.first, place.second, std::move(changes)));
    if (options_.to) TENSORSMITH_CHECK(cast_siblings());
    return std::move(account_);
  }

 private:
  result<void> add(const adapter_request& request) {
    merged_adapter& out = account_.adapters.emplace_back();
    out.file = request.source.file;
    out.what = request.source.what;
    out.unknown = request.source.unknown;
    for (const double strength : {request.unet, request.text_encoder})
      if (!std::isfinite(strength))
        return failure{.code = errc::usage, .what = "a strength is no finite number", .file = request.source.file,
                       .expected = "a number such as 0.8"};
    std::map<std::pair<std::size_t, std::string>, std::string> seen;
    std::optional<failure> misfit;
    misfits_ = 0;
    for (const adapter_layer& layer : request.source.modules) {
      merged_module& module = out.modules.emplace_back();
      module.name = layer.name;
      const auto target = targets_.find(layer.name);
      if (!target) {
        adapter_miss miss = targets_.explain(layer.name);
        module.reason = std::move(miss.reason);
        module.outcome = miss.what == adapter_miss::kind::expected ? module_outcome::ignored : module_outcome::not_found;
        ++(miss.what == adapter_miss::kind::expected ? out.ignored : out.not_found);
        continue;
      }
      const component& part = model_.components[target->component];
      if (!part.weights.contains(target->module + ".weight")) {  // a layer of which only the bias is known: a graph's weight without a name
        module.reason = "the model has no weight " + quoted(part.name + '.' + target->module + ".weight");
        module.outcome = module_outcome::not_found;
        ++out.not_found;
        continue;
      }
      module.component = part.name, module.target = target->module;
      const auto [before, fresh] = seen.emplace(std::pair(target->component, target->module), layer.name);
      if (!fresh)
        return failure{.code = errc::mismatch, .what = "two modules of one adapter change the same layer", .file = request.source.file,
                       .place = "module " + quoted(layer.name), .expected = "one module a layer", .found = "also " + quoted(before->second)};
      if (auto done = apply(request, layer, *target, module); !done) {
        if (done.error().code != errc::mismatch) return done;
        note_misfit(misfit, std::move(done).error());
        continue;
      }
      module.outcome = module.reason.empty() ? module_outcome::applied : module_outcome::ignored;
      ++(module.reason.empty() ? out.applied : out.ignored);
    }
    if (misfit) {
      if (misfits_ > 4) misfit->found += "; and " + std::to_string(misfits_ - 4) + " more modules";
      return std::move(*misfit);
    }
    return check(request, out);
  }

  /// The first module that does not fit, and behind what it found the next three, each with what was expected of it.
  void note_misfit(std::optional<failure>& first, failure next) {
    if (++misfits_ == 1) first = std::move(next);
    else if (misfits_ <= 4) first->found += "; " + next.place + ": " + next.what + ": expected " + next.expected + ", found " + next.found;
  }

  result<void> apply(const adapter_request& request, const adapter_layer& layer, const adapter_target& target, merged_module& module) {
    const component& part = model_.components[target.component];
    adapter_strength how = request.how;
    how.strength = part.name == "unet" ? request.unet : request.text_encoder;
    if (part.name == "unet" && request.block_weight) how.strength *= request.block_weight(target.module);
    module.strength = how.strength;
    const tensor_info& weight = part.weights.find(target.module + ".weight")->tensor.info();
    TENSORSMITH_TRY(module_changes changes, make_changes(layer, request.source.file, weight, how, run_));
    module.algorithm = changes.algorithm;
    module.remarks = std::move(changes.remarks);
    if (how.strength == 0) {
      module.reason = "strength 0";
      return {};
    }
    // Without alpha's share a weight stays as it is, but DoRA still sets its magnitude, and a bias has no alpha.
    if (!changes.notes.empty() && !layer.has("dora_scale") && !changes.bias) {
      module.reason = changes.notes.back();
      return {};
    }
    if (changes.weight) changes_[{target.component, target.module + ".weight"}].push_back(std::move(changes.weight));
    if (!changes.bias) return {};
    const catalog_entry* const bias = part.weights.find(target.module + ".bias");
    const tensor_ref& stored = changes.stored_bias;
    if (!bias || bias->tensor.info().elements() != stored.info().elements())
      return failure{.code = errc::mismatch, .what = "the adapter changes a bias that the layer does not have", .file = request.source.file,
                     .place = "module " + quoted(layer.name), .expected = bias ? "a change of a bias " + to_string(bias->tensor.shape()) : "no bias",
                     .found = to_string(stored.shape())};
    changes_[{target.component, target.module + ".bias"}].push_back(std::move(changes.bias));
    return {};
  }

  /// The first names of modules with this outcome and without a layer.
  static std::string listed(const merged_adapter& out, module_outcome outcome) {
    std::string names;
    std::size_t count = 0;
    for (const merged_module& module : out.modules) {
      if (!module.component.empty() || module.outcome != outcome) continue;
      if (++count > 10) return names + ", …";
      names += (count > 1 ? ", " : "") + quoted(module.name);
    }
    return names;
  }

  /// No layer at all is an error; some modules without one are an error with `strict`.
  result<void> check(const adapter_request& request, const merged_adapter& out) const {
    const auto has_layer = [](const merged_module& module) { return !module.component.empty(); };
    if (std::none_of(out.modules.begin(), out.modules.end(), has_layer)) {
      const bool missed = out.not_found > 0;
      const std::string names = listed(out, missed ? module_outcome::not_found : module_outcome::ignored);
      std::string why;
      for (const merged_module& module : out.modules)
        if (why.empty() && module.outcome == (missed ? module_outcome::not_found : module_outcome::ignored)) why = module.reason;
      return failure{.code = errc::mismatch, .what = "no module of the adapter belongs to a layer of the model", .file = request.source.file,
                     .expected = "an adapter for " + (model_.family.empty() ? std::string("this model") : model_.family),
                     .found = (out.what.base.empty() ? "" : "one for " + out.what.base + ": ") + names,
                     .advice = why.empty() ? "" : "the reason for the first one: " + why};
    }
    if (!options_.strict || (out.not_found == 0 && out.unknown.empty())) return {};
    return failure{.code = errc::mismatch, .what = "parts of the adapter do not belong to the model", .file = request.source.file,
                   .expected = "a layer for each of " + std::to_string(out.modules.size()) + " modules",
                   .found = out.not_found == 0 ? "unknown tensor " + quoted(out.unknown[0]) : listed(out, module_outcome::not_found),
                   .advice = "drop --strict to merge the rest"};
  }

  result<void> replace(std::size_t component_index, const std::string& name, std::vector<weight_change_ptr> changes) {
    component& part = model_.components[component_index];
    const catalog_entry& entry = *part.weights.find(name);
    const tensor_ref before = entry.tensor;
    const dtype to = type_of(name, before.type());
    const bool computable = is_floating(before.type()) && convertible(before.type(), dtype::f32) && convertible(dtype::f32, to);
    if (!computable || before.source->outputs().size() != 1)
      return failure{.code = errc::unsupported, .what = "an adapter cannot be merged into a weight of this type", .place = entry.origin,
                     .expected = "a floating-point type", .found = std::string(name_of(before.type())), .advice = "convert the model first"};
    recipe_ptr stored = before.source;  // what a cast or a merge before this one would round is rounded once, here
    if (recipe_ptr inner = stored->uncast(); inner && convertible(inner->outputs()[0].type, dtype::f32)) stored = std::move(inner);
    auto merged = std::make_shared<merged_recipe>(std::move(stored), std::move(changes), to, options_.overflow, part.name + "." + name);
    account_.weights.push_back({part.name, name, to, merged});
    part.weights.replace(name, {std::move(merged), 0});
    return {};
  }

  /// Slices of one stored tensor (query, key and value of OpenCLIP's encoders) stay of one type, or they could not be put together again.
  result<void> cast_siblings() {
    for (component& part : model_.components) {
      std::map<std::string_view, dtype> types;  // of stored tensors, by where they came from
      for (const merged_weight& weight : account_.weights)
        if (weight.component == part.name) types.emplace(part.weights.find(weight.name)->origin, weight.type);
      if (types.empty()) continue;
      for (std::size_t i = 0; i < part.weights.size(); ++i) {
        const catalog_entry& entry = part.weights.entries()[i];
        const auto at = entry.origin.empty() ? types.end() : types.find(entry.origin);
        if (at == types.end() || entry.tensor.type() == at->second) continue;
        TENSORSMITH_TRY(tensor_ref other, cast(entry.tensor, at->second, options_.overflow));
        part.weights.replace(entry.name, std::move(other));
      }
    }
    return {};
  }

  /// What a merged weight is written as.
  dtype type_of(std::string_view name, dtype stored) const { return options_.to && !options_.kept.matches(name) ? *options_.to : stored; }

  package& model_;
  const merge_options& options_;
  const job& run_;
  adapter_targets targets_;
  std::map<std::pair<std::size_t, std::string>, std::vector<weight_change_ptr>> changes_;
  merge_account account_;
  std::size_t misfits_ = 0;  // modules of the adapter at hand
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
/// (alpha), unsupported (weights that are quantized). The package is unspecified after a failure.
inline result<merge_account> merge_adapters(package& model, std::span<const adapter_request> requests, const merge_options& options, const job& run) {
  auto merged = detail::adapter_merger(model, options, run).merge(requests);
  if (!merged)
    for (const adapter_request& request : requests)
      if (request.source.file == merged.error().file) detail::diagnose_family(merged.error(), request, model);
  return merged;
}

TENSORSMITH_END_NAMESPACE
