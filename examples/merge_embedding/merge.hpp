// SPDX-License-Identifier: MIT
//
// merge_embedding/merge.hpp: the merge itself: open base and embeddings, add tokens and rows, write in the form of the base.
#pragma once

#include <string>
#include <vector>

#include "../common/base_model.hpp"
#include "../common/merges.hpp"
#include "options.hpp"
#include "summary.hpp"

namespace merge_embedding {

inline ts::result<summary> merge(const options& o, ts::job& run) {
  summary report;
  TENSORSMITH_TRY(const std::vector<std::string> files, examples::files_of(o.embeddings));
  TENSORSMITH_TRY(examples::base_model base, examples::begin(o, files, report, run));
  const examples::merge_rounding rounding{examples::dtype_of(o.cast), examples::overflow_of(o.cast)};
  TENSORSMITH_TRY(report.merged, examples::apply_merges(base.model, {}, o.embeddings, rounding, run));
  TENSORSMITH_TRY(report.tensors, examples::write_base(base, report.merged.changed, o.output, examples::output_of(o), run, report));
  return report;
}

}  // namespace merge_embedding
