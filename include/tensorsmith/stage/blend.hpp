// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/blend.hpp: `… | blend(open<safetensors_file>("b.safetensors"), {.ratio = 0.3}) | …`: other models blended into the weights
// that flow, or into those of the graphs that were built of them.
#pragma once

#include <concepts>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/arch/blend_checkpoints.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/stage/changed_model.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Blends models into what flows: the weights of a pipeline (a single file keeps its names), of any other file with the same names, or of
/// graphs that were not lowered yet.
class blend_stage {
 public:
  static constexpr std::string_view name = "blend";

  /// `models`: as open<…> gives them. `notes`: remarks from opening them.
  blend_stage(std::vector<result<package>> models, std::vector<note> notes, blend_options options, std::shared_ptr<blend_account> account,
              open_options opening)
      : models_(std::move(models)), notes_(std::move(notes)), options_(std::move(options)), account_(std::move(account)),
        opening_(std::move(opening)) {}

  result<package> run(package in, job& run) const {
    TENSORSMITH_CHECK(begin(run));
    if (!in.is_single_model()) {
      TENSORSMITH_CHECK(blend(in, options_, true, run));
      return in;
    }
    package file = in;
    const std::size_t said = run.notes.size();
    auto model = recognize_stable_diffusion(std::move(in), opening_, run);
    if (!model && by_own_names(model.error())) {
      run.notes.resize(said);
      run.info(file.source, "no Stable Diffusion model: its tensors are matched by their own names");
      TENSORSMITH_CHECK(blend(file, options_, false, run));
      return file;
    }
    if (!model) return std::move(model).error();
    TENSORSMITH_TRY(const std::vector<changed_weight> changed, blend(*model, options_, true, run));
    return detail::in_form_of_file(std::move(file), std::move(*model), changed, run);
  }

  result<bundle> run(bundle in, job& run) const {
    if (in.opset != 0)
      return failure{.code = errc::usage, .what = "blend came after lower_to: the weights are laid out for the target already", .file = in.source,
                     .expected = "build | blend | lower_to"};
    if (options_.to)
      return failure{.code = errc::usage, .what = "blended weights of graphs have the type that their graph computes in", .file = in.source,
                     .expected = "no type for blend", .found = std::string(name_of(*options_.to)), .advice = "put blend or a cast before build"};
    TENSORSMITH_CHECK(begin(run));
    TENSORSMITH_TRY(package weights, detail::package_of_graphs(in));
    blend_options how = options_;
    how.allow_extra = true;  // graphs hold what they read
    TENSORSMITH_TRY(const std::vector<changed_weight> changed, blend(weights, how, true, run));
    for (bundle_component& graphs : in.components) detail::update_initializers(graphs.model, *weights.find(graphs.name), changed);
    return in;
  }

 private:
  result<void> begin(job& run) const {
    for (const result<package>& model : models_)
      if (!model) return failure(model.error());
    run.notes.insert(run.notes.end(), notes_.begin(), notes_.end());
    return {};
  }

  /// Whether files that are not recognised can be blended all the same: nothing is asked for that needs to know their parts.
  bool by_own_names(const failure& error) const {
    bool files = error.code == errc::mismatch || error.code == errc::unsupported;
    for (const result<package>& model : models_) files = files && model->is_single_model();
    return files && !options_.blocks && !options_.text_encoder && options_.vae == blend_vae::blend;
  }

  result<std::vector<changed_weight>> blend(package& base, const blend_options& how, bool recognized, job& run) const {
    std::vector<blend_source> sources;
    for (const result<package>& model : models_) {
      package other = *model;
      if (recognized && other.is_single_model()) {
        const std::size_t said = run.notes.size();
        TENSORSMITH_TRY(other, recognize_stable_diffusion(std::move(other), opening_, run));
        // Only its weights are used: what is said about tokenizers and schedulers is of no use.
        run.notes.resize(said);
      }
      sources.push_back({std::move(other)});
    }
    TENSORSMITH_TRY(blend_account account, blend_packages(base, sources, how, run));
    run.info("blend", std::string(tensorsmith::name_of(account.mode)) + ": " + std::to_string(account.blended) + " tensors are blended, " +
                          std::to_string(account.taken) + " taken, " + std::to_string(account.kept) + " kept");
    for (const blended_tensor& one : account.tensors)
      if (one.status == blended_tensor::fate::kept && one.reason.ends_with("has no such tensor"))
        run.warn(one.component + "." + one.name, "kept: " + one.reason);
    if (!account.left_out.empty())
      run.info("blend", std::to_string(account.left_out.size()) + " tensors of other models are left out, first " + account.left_out[0]);
    std::vector<changed_weight> changed = account.changed;
    if (account_) *account_ = std::move(account);
    return changed;
  }

  std::vector<result<package>> models_;
  std::vector<note> notes_;
  blend_options options_;
  std::shared_ptr<blend_account> account_;
  open_options opening_;
};

/// Stage: blends the models that `open<…>` gives into what flows. `account` receives what became of every tensor; `opening` says what single
/// files do not. @fails as open, recognize_stable_diffusion and blend_packages; usage (after lower_to). NaN, infinities and values that do not
/// fit fail (numeric) when they are written
inline blend_stage blend(std::vector<chain<package>> models, blend_options options, std::shared_ptr<blend_account> account = {},
                         open_options opening = {}) {
  std::vector<result<package>> opened;
  std::vector<note> notes;
  for (chain<package>& model : models) {
    if (model.run()) notes.insert(notes.end(), model.notes().begin(), model.notes().end());
    opened.push_back(std::move(model).take());
  }
  return {std::move(opened), std::move(notes), std::move(options), std::move(account), std::move(opening)};
}
/// One other model: weighted sums and slerp.
inline blend_stage blend(chain<package> model, blend_options options = {}, std::shared_ptr<blend_account> account = {},
                         open_options opening = {}) {
  std::vector<chain<package>> models;
  models.push_back(std::move(model));
  return blend(std::move(models), std::move(options), std::move(account), std::move(opening));
}
/// The same for a model that was opened otherwise.
inline blend_stage blend(result<package> model, blend_options options = {}, std::shared_ptr<blend_account> account = {}, open_options opening = {}) {
  return blend(chain<package>(std::move(model), nullptr), std::move(options), std::move(account), std::move(opening));
}
/// Two: B and C of add difference, or a weighted sum of three.
inline blend_stage blend(chain<package> b, chain<package> c, blend_options options, std::shared_ptr<blend_account> account = {},
                         open_options opening = {}) {
  std::vector<chain<package>> models;
  models.push_back(std::move(b));
  models.push_back(std::move(c));
  return blend(std::move(models), std::move(options), std::move(account), std::move(opening));
}

/// Blends into weights before build, or into graphs between build and lower_to.
template <class From>
chain<From> operator|(chain<From> left, const blend_stage& stage) {
  constexpr bool fits = std::same_as<From, package> || std::same_as<From, bundle>;
  static_assert(fits, "tensorsmith: blend works on weights or graphs; put it between open<…> and build<…>, or between build<…> and lower_to<…>");
  if constexpr (fits) return detail::run_on_model(std::move(left), stage);
  else return {failure{}, nullptr};
}

TENSORSMITH_END_NAMESPACE
