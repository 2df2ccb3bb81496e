// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/merge_lora.hpp: `… | merge_lora(open<safetensors_file>("style.safetensors"), {.strength = 0.8}) | …`: an adapter of the LoRA
// family merged into the weights that flow, or into those of the graphs that were built of them.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/arch/update_checkpoint.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/stage/changed_model.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How merge_lora applies an adapter.
struct lora_options {
  double strength = 1;                                        ///< of the UNet's layers; 0 leaves them bit for bit
  std::optional<double> text_encoder{};                       ///< of the text encoders' layers; none: the same
  std::function<double(std::string_view)> block_weight{};     ///< a further factor for a layer of the UNet (arch/block_weights.hpp)
  dora_strength dora = dora_strength::interpolate;            ///< what a strength other than 1 means for DoRA
  std::optional<dtype> to{};                                  ///< type of merged weights, rounded to once; none: as stored
  keep kept{};                                                ///< weights that keep their type in spite of `to`
  cast_overflow overflow = cast_overflow::error;              ///< of finite merged values that do not fit
  bool strict = false;                                        ///< a module without a layer is an error
  open_options opening{};                                     ///< what a single file does not say of itself
  std::shared_ptr<merge_account> account{};                   ///< receives what became of every module; norms are known once the weights are written
};

namespace detail {

/// Modules with the same fate, as one remark: how many, why, and the first of them.
inline void note_modules(const merged_adapter& adapter, job& run) {
  struct group {
    std::size_t count = 0;
    std::string first;
  };
  std::map<std::pair<module_outcome, std::string>, group> groups;
  for (const merged_module& module : adapter.modules) {
    if (module.outcome == module_outcome::applied) continue;
    group& same = groups[{module.outcome, module.reason}];
    if (same.count++ == 0) same.first = module.name;
  }
  for (const auto& [key, same] : groups) {
    std::string text = std::to_string(same.count) + (same.count == 1 ? " module was " : " modules were ") +
                       (key.first == module_outcome::not_found ? "not applied: " : "without effect: ") + key.second + ": " + quoted(same.first) +
                       (same.count > 1 ? ", …" : "");
    if (key.first == module_outcome::not_found) run.warn(adapter.file, std::move(text));
    else run.info(adapter.file, std::move(text));
  }
}

/// What a merge did, as remarks.
inline void note_merge(const merge_account& account, const adapter_request& request, job& run) {
  for (const merged_adapter& adapter : account.adapters) {
    run.info(adapter.file, std::to_string(adapter.applied) + " of " + std::to_string(adapter.modules.size()) + " modules merged, weights changed: " +
                               std::to_string(account.weights.size()));
    note_modules(adapter, run);
    if (!adapter.unknown.empty())
      run.warn(adapter.file, std::to_string(adapter.unknown.size()) + " tensors are parameters of no known algorithm: " + quoted(adapter.unknown[0]) +
                                 (adapter.unknown.size() > 1 ? ", …" : ""));
  }
  const auto twice = std::count_if(account.weights.begin(), account.weights.end(), [](const merged_weight& w) { return w.readings() > 1; });
  if (twice > 0) run.info(request.source.file, "weights read twice, for DoRA's norms of input columns: " + std::to_string(twice));
  if (!request.source.embeddings.empty())
    run.warn(request.source.file,
             "embeddings in the adapter that merge_lora does not merge, but merge_embedding: " + std::to_string(request.source.embeddings.size()));
}

}  // namespace detail

/// Merges an adapter into what flows: the weights of a pipeline (a single file keeps its names, also those of stacked projections), or graphs
/// that were not lowered yet.
class lora_merge {
 public:
  static constexpr std::string_view name = "merge_lora";

  /// `adapter`: as open<…> gives it. `notes`: remarks from opening it.
  lora_merge(result<package> adapter, std::vector<note> notes, lora_options options)
      : adapter_(std::move(adapter)), notes_(std::move(notes)), options_(std::move(options)) {}

  result<package> run(package in, job& run) const {
    TENSORSMITH_TRY(const adapter_request request, prepare(run));
    if (!in.is_single_model()) {
      TENSORSMITH_CHECK(merge(in, request, run));
      return in;
    }
    package file = in;
    TENSORSMITH_TRY(package model, recognize_stable_diffusion(std::move(in), options_.opening, run));
    TENSORSMITH_TRY(const std::vector<changed_weight> changed, merge(model, request, run));
    return detail::in_form_of_file(std::move(file), std::move(model), changed, run);
  }

  result<bundle> run(bundle in, job& run) const {
    if (in.opset != 0)
      return failure{.code = errc::usage, .what = "merge_lora came after lower_to: the weights are laid out for the target already",
                     .file = in.source, .expected = "build | merge_lora | lower_to"};
    if (options_.to)
      return failure{.code = errc::usage, .what = "merged weights of graphs have the type that their graph computes in", .file = in.source,
                     .expected = "no type for merge_lora", .found = std::string(name_of(*options_.to)),
                     .advice = "put merge_lora or a cast before build"};
    TENSORSMITH_TRY(const adapter_request request, prepare(run));
    TENSORSMITH_TRY(package weights, detail::package_of_graphs(in));
    TENSORSMITH_TRY(const std::vector<changed_weight> changed, merge(weights, request, run));
    for (bundle_component& graphs : in.components) detail::update_initializers(graphs.model, *weights.find(graphs.name), changed);
    return in;
  }

 private:
  result<adapter_request> prepare(job& run) const {
    if (!adapter_) return failure(adapter_.error());
    run.notes.insert(run.notes.end(), notes_.begin(), notes_.end());
    TENSORSMITH_TRY(adapter source, read_adapter(*adapter_, run));
    adapter_request out{.source = std::move(source)};
    out.unet = options_.strength;
    out.text_encoder = options_.text_encoder.value_or(options_.strength);
    out.how.dora = options_.dora;
    out.block_weight = options_.block_weight;
    return out;
  }

  result<std::vector<changed_weight>> merge(package& model, const adapter_request& request, job& run) const {
    const merge_options how{.strict = options_.strict, .to = options_.to, .kept = options_.kept, .overflow = options_.overflow};
    TENSORSMITH_TRY(merge_account account, merge_adapters(model, {&request, 1}, how, run));
    detail::note_merge(account, request, run);
    std::vector<changed_weight> changed;
    for (const merged_weight& weight : account.weights) changed.push_back({weight.component, weight.name});
    if (options_.account) *options_.account = std::move(account);
    return changed;
  }

  result<package> adapter_;
  std::vector<note> notes_;
  lora_options options_;
};

/// Stage: merges the adapter that `open<…>` gives. Several of them in a chain are applied in their order and rounded once, together.
/// @fails as open, read_adapter and merge_adapters; usage (after lower_to). NaN and values that do not fit fail (numeric) when they are written
inline lora_merge merge_lora(chain<package> adapter, lora_options options = {}) {
  std::vector<note> notes = adapter.run() ? adapter.notes() : std::vector<note>();
  return {std::move(adapter).take(), std::move(notes), std::move(options)};
}
/// The same for an adapter that was opened otherwise.
inline lora_merge merge_lora(result<package> adapter, lora_options options = {}) { return {std::move(adapter), {}, std::move(options)}; }

/// Merges into weights before build, or into graphs between build and lower_to.
template <class From>
chain<From> operator|(chain<From> left, lora_merge stage) {
  constexpr bool fits = std::same_as<From, package> || std::same_as<From, bundle>;
  static_assert(fits, "tensorsmith: merge_lora works on weights or graphs; put it between open<…> and build<…>, or between build<…> and lower_to<…>");
  if constexpr (fits) return detail::run_on_model(std::move(left), stage);
  else return {failure{}, nullptr};
}

TENSORSMITH_END_NAMESPACE
