// SPDX-License-Identifier: MIT
//
// merge_lora/merge.hpp: the merge itself: open base and adapters, plan every change, write in the form of the base.
#pragma once

#include "../common/base_model.hpp"
#include "../common/merges.hpp"
#include "options.hpp"
#include "summary.hpp"

namespace merge_lora {

inline ts::result<summary> merge(const options& o, ts::job& run) {
  summary report;
  TENSORSMITH_CHECK(examples::check_adapter_options(o.adapters));
  TENSORSMITH_TRY(examples::base_model base, examples::begin(o, examples::files_of(o.adapters), report, run));
  const examples::merge_rounding rounding{examples::dtype_of(o.cast), examples::overflow_of(o.cast)};
  TENSORSMITH_TRY(report.merged, examples::apply_merges(base.model, o.adapters, {}, rounding, run));
  examples::warn_of_averages(base, run);
  TENSORSMITH_TRY(report.tensors, examples::write_base(base, report.merged.changed, o.output, examples::output_of(o), run, report));
  examples::warn_of_overflow(o.cast, overflowed(report.merged.adapters), run, "merge");
  return report;
}

}  // namespace merge_lora
