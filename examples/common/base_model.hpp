// SPDX-License-Identifier: MIT
//
// common/base_model.hpp: a Stable Diffusion model that is changed and written again in the form it had: one file, or a folder.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cast_options.hpp"
#include "command_line.hpp"
#include "paths.hpp"
#include "tensorsmith/arch/added_tokens.hpp"
#include "tensorsmith/arch/onnx_pipeline.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/arch/update_checkpoint.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/tensor/cast_catalog.hpp"
#include "weights_output.hpp"

namespace examples {

enum class base_form { safetensors, torch, diffusers_folder, onnx_folder };

inline std::string_view name_of(base_form form) {
  constexpr std::string_view names[] = {"safetensors", "torch", "diffusers folder", "ONNX folder"};
  return names[static_cast<std::size_t>(form)];
}

/// A model, and what is needed to write it again as it was.
struct base_model {
  ts::package source;  ///< a single file's tensors under their own names; folders: nothing
  ts::package model;   ///< components with diffusers' names: what adapters and embeddings change
  base_form form = base_form::safetensors;
  bool component_folder = false;  ///< the folder of one component, without a pipeline around it
  std::optional<ts::onnx_pipeline> onnx{};
};

/// How a changed model is written.
struct base_output : output_options {
  cast_options cast;
};

namespace detail {

/// @fails unsupported (a container that is read here, and not written)
inline ts::result<base_form> form_of_file(const ts::package& source) {
  if (source.container.starts_with("torch")) return base_form::torch;
  if (source.container == "safetensors") return base_form::safetensors;
  return ts::failure{.code = ts::errc::unsupported, .what = "a model in this container cannot be written again", .file = source.source,
                     .expected = "a safetensors or torch file, a diffusers folder or an ONNX folder", .found = source.container,
                     .advice = "make a safetensors file of it with convert-weights first"};
}

/// A file has no tokenizer: what tokens its new rows stand for goes into its metadata, where opening it finds them.
inline void carry_added_tokens(base_model& base, ts::job& run) {
  for (const auto& [key, value] : base.model.metadata) {
    if (key != ts::added_tokens_key) continue;
    const auto is_key = [](const auto& pair) { return pair.first == ts::added_tokens_key; };
    std::erase_if(base.source.metadata, is_key);
    std::erase_if(base.source.scalars, is_key);
    if (base.form == base_form::safetensors) base.source.metadata.emplace_back(key, value);
    else if (!torch_nesting(base.source).empty()) base.source.scalars.emplace_back(key, value);
    else run.warn("tokens", "a plain state dict has no place for them: the report is the only list of the new tokens");
    return;
  }
}

}  // namespace detail

/// Opens a model of any form. Nothing is loaded. @fails as open_weights, recognize_stable_diffusion and open_onnx_pipeline
inline ts::result<base_model> open_base(const std::string& path, const ts::open_options& opening, ts::job& run) {
  base_model out;
  if (ts::os::is_folder(path) && ts::is_onnx_pipeline(path)) {
    out.form = base_form::onnx_folder;
    TENSORSMITH_TRY(out.onnx, ts::open_onnx_pipeline(path, run));
    out.model = out.onnx->model;
    return out;
  }
  if (ts::os::is_folder(path)) {
    TENSORSMITH_TRY(ts::package folder, ts::open_weights(path, {.variant = opening.variant, .select = {}, .prefer = {}}, run));
    const bool nameless = folder.is_single_model();
    if (!nameless || !folder.components[0].config.is_null()) {
      out.form = base_form::diffusers_folder;
      out.component_folder = nameless;
      if (nameless) {
        TENSORSMITH_TRY(out.model, ts::open_stable_diffusion(path, opening, run));
      } else {
        TENSORSMITH_TRY(out.model, ts::recognize_stable_diffusion(std::move(folder), opening, run));
      }
      return out;
    }
    out.source = std::move(folder);
  } else {
    TENSORSMITH_TRY(out.source, ts::open_weights(path, {}, run));
  }
  TENSORSMITH_TRY(out.form, detail::form_of_file(out.source));
  const std::size_t said = run.notes.size();
  TENSORSMITH_TRY(out.model, ts::recognize_stable_diffusion(out.source, opening, run));
  // A file has no place for the files of a pipeline: what is said about them is of no use.
  const auto first = run.notes.begin() + static_cast<std::ptrdiff_t>(said);
  const auto useless = [](const ts::note& n) { return n.subject.starts_with("tokenizer") || n.subject == "scheduler"; };
  run.notes.erase(std::remove_if(first, run.notes.end(), useless), run.notes.end());
  return out;
}

/// What can be refused before a file is read: OUTPUT or the report's file taken, or a place of what is read. `others`: files that are read beside
/// BASE. @fails path, usage
inline ts::result<void> check_base_output(const std::string& base, const std::string& output, bool force, const std::string& report = {},
                                          const std::vector<std::string>& others = {}) {
  if (force && same_place(base, output) && ts::os::is_folder(base)) return usage_error("OUTPUT is BASE", "choose another OUTPUT");
  if (ts::os::is_folder(output) && lies_within(base, output))
    return usage_error("BASE lies inside OUTPUT, which would be replaced", "choose another OUTPUT");
  for (const std::string& other : others)
    if (same_place(other, output) || (ts::os::is_folder(output) && lies_within(other, output)))
      return usage_error("OUTPUT would replace " + ts::quoted(other) + ", which is read", "choose another OUTPUT");
  if (!report.empty()) {
    if (const std::string folder(ts::parent_path(report)); ts::os::is_folder(report) || (!folder.empty() && !ts::os::is_folder(folder)))
      return ts::failure{.code = ts::errc::path, .what = "the report cannot be written here", .file = report,
                               .expected = "a file in a folder that exists"};
    if (same_place(report, base) || report == output || same_place(report, output) || lies_within(report, output) ||
        std::any_of(others.begin(), others.end(), [&](const std::string& other) { return same_place(report, other); }))
      return usage_error("--report names a file that is read or written otherwise", "choose another file");
  }
  return check_absent(output, force);
}

/// @fails usage (a type for an ONNX folder, whose graphs say in which types they compute)
inline ts::result<void> check_base_cast(const base_model& base, const cast_options& cast) {
  if (base.form != base_form::onnx_folder || cast.dtype == "keep") return {};
  return usage_error("--dtype " + cast.dtype + " is not for an ONNX folder: its graphs fix the types they compute in",
                     "drop --dtype, or merge into the original model and convert with sd-to-onnx --dtype " + cast.dtype);
}

/// Loaders that prefer the moving averages of a checkpoint would see nothing of a change of its weights.
inline void warn_of_averages(const base_model& base, ts::job& run) {
  for (const ts::component& part : base.source.components)
    for (const ts::catalog_entry& entry : part.weights.entries())
      if (entry.name.starts_with("model_ema.") && entry.name != "model_ema.num_updates" && entry.name != "model_ema.decay")
        return run.warn(base.source.source,
                        "it keeps moving averages beside its weights: they stay as they were; convert-weights --prune ema leaves them out");
}

/// Writes `base.model`, of which `changed` are the weights that are not what they were, to `output` in the form of the base; everything else
/// keeps its bits, or becomes --dtype. Adds the files to `report`, returns the number of tensors. @fails as the writers
inline ts::result<std::size_t> write_base(base_model& base, const std::vector<ts::changed_weight>& changed, const std::string& output,
                                          const base_output& how, ts::job& run, run_report& report) {
  TENSORSMITH_CHECK(check_base_cast(base, how.cast));
  std::size_t count = 0;
  for (const ts::component& part : base.model.components) count += part.weights.size();
  if (base.form == base_form::onnx_folder) {
    if (how.dry_run) TENSORSMITH_CHECK(check_absent(output, how.force));
    TENSORSMITH_TRY(const ts::write_report written,
                    ts::write_onnx_pipeline(*base.onnx, base.model, changed, output,
                                            {.force = how.force, .verify = how.verify, .dry_run = how.dry_run}, run));
    add_files(written, output, report);
    return count;
  }
  const auto tally = std::make_shared<ts::cast_tally>();
  const auto type = dtype_of(how.cast);
  const auto cast_all = [&](ts::catalog& tensors) -> ts::result<void> {
    if (type) TENSORSMITH_CHECK(ts::cast_floats(tensors, *type, {}, overflow_of(how.cast), tally));
    return {};
  };
  for (ts::component& part : base.model.components) TENSORSMITH_CHECK(cast_all(part.weights));  // slices of one stored tensor need one type
  if (base.form == base_form::diffusers_folder) {
    ts::package& model = base.model;
    if (base.component_folder) model.components[0].name.clear();
    TENSORSMITH_CHECK(write_folder_output(model, output, {}, how, run, report));
  } else {
    TENSORSMITH_TRY(ts::catalog tensors, ts::update_checkpoint(base.source.components[0].weights, base.model, changed, run));
    TENSORSMITH_CHECK(cast_all(tensors));
    count = tensors.size();
    detail::carry_added_tokens(base, run);
    if (base.form == base_form::torch) {
      TENSORSMITH_CHECK(write_torch_output(tensors, output, torch_nesting(base.source), base.source.scalars, how, run, report));
    } else {
      TENSORSMITH_CHECK(write_safetensors_output(tensors, output, base.source.metadata, how, run, report));
    }
  }
  warn_of_overflow(how.cast, tally->overflowed, run);
  return count;
}

}  // namespace examples
