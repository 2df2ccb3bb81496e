// SPDX-License-Identifier: MIT
//
// merge_checkpoints/blend.hpp: the blend itself: open all models, plan every tensor, write in the form of the base.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "../common/base_model.hpp"
#include "options.hpp"
#include "summary.hpp"
#include "tensorsmith/arch/blend_checkpoints.hpp"

namespace merge_checkpoints {

/// A model that is only read: any form, and any container that is known. @fails as open_base
inline ts::result<ts::package> open_other(const std::string& path, const ts::open_options& opening, ts::job& run) {
  const std::size_t said = run.notes.size();
  ts::package out;
  if (ts::os::is_folder(path)) {
    TENSORSMITH_TRY(examples::base_model folder, examples::open_base(path, opening, run));
    out = std::move(folder.model);
  } else {
    TENSORSMITH_TRY(ts::package file, ts::open_weights(path, {}, run));
    TENSORSMITH_TRY(out, ts::recognize_stable_diffusion(std::move(file), opening, run));
  }
  out.source = path;
  // Only its weights are used: what is said about its other files is of no use.
  const auto useless = [](const ts::note& n) {
    return n.severity == ts::note::level::info || n.subject.starts_with("tokenizer") || n.subject == "scheduler";
  };
  run.notes.erase(std::remove_if(run.notes.begin() + static_cast<std::ptrdiff_t>(said), run.notes.end(), useless), run.notes.end());
  return out;
}

inline ts::result<summary> blend(const options& o, ts::job& run) {
  summary report;
  report.ratio = o.ratio;
  TENSORSMITH_TRY(ts::blend_options how, blend_options_of(o));
  TENSORSMITH_TRY(examples::base_model base, examples::begin(o, o.models, report, run));
  base.model.source = o.base;
  if (base.form == examples::base_form::onnx_folder) {
    how.allow_extra = true;  // graphs hold what they read
    if (how.vae == ts::blend_vae::other)
      return usage_error("--vae other is not for an ONNX folder, whose autoencoder is kept",
                         "copy the folders vae_encoder and vae_decoder of the other export");
    if (how.vae == ts::blend_vae::blend) run.warn(o.base, "the graphs of its autoencoder are kept as they are (--vae base)");
    how.vae = ts::blend_vae::base;
  }

  std::vector<ts::blend_source> sources;
  for (const std::string& path : o.models) {
    TENSORSMITH_TRY(ts::package other, open_other(path, examples::opening_of(o), run));
    sources.push_back({std::move(other)});
  }
  TENSORSMITH_TRY(report.account, ts::blend_packages(base.model, sources, how, run));
  examples::warn_of_averages(base, run);
  TENSORSMITH_TRY(report.tensors, examples::write_base(base, report.account.changed, o.output, examples::output_of(o), run, report));
  if (o.cast.overflow != "error") examples::warn_of_overflow(o.cast, report.account.overflowed->overflowed, run);
  if (const auto count = report.account.nonfinite->nonfinite.load(); count != 0)
    run.warn("blend", examples::counted(count, "value") + (count == 1 ? " is" : " are") + " infinite or NaN (--nonfinite keep)");
  return report;
}

}  // namespace merge_checkpoints
