// SPDX-License-Identifier: MIT
//
// common/merges.hpp: what --embedding and --lora do to an opened model: embeddings first, then adapters in their order.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "adapter_options.hpp"
#include "adapter_report.hpp"
#include "embedding_options.hpp"
#include "embedding_report.hpp"

namespace examples {

/// How merged weights are rounded.
struct merge_rounding {
  std::optional<ts::dtype> to{};  // none: as stored
  ts::cast_overflow overflow = ts::cast_overflow::error;
};

/// What was merged into a model.
struct merge_summary {
  adapter_summary adapters;
  ts::embedding_account embeddings;
  std::vector<ts::changed_weight> changed;

  bool empty() const noexcept { return adapters.account.adapters.empty() && embeddings.tokens.empty() && embeddings.ignored.empty(); }
};

/// The embeddings that adapters bring along: added with --bundled-embeddings, else listed, with a warning for each adapter.
inline std::vector<ts::embedding_request> bundled_embeddings(const opened_adapters& adapters, bool wanted,
                                                                 std::vector<ts::ignored_embedding>& left_out, ts::job& run) {
  std::vector<ts::embedding_request> requests;
  for (const ts::adapter_request& adapter : adapters.requests) {
    const auto& found = adapter.source.embeddings;
    for (const ts::textual_inversion& one : found)
      if (wanted) requests.push_back({one, {}, 1});
      else left_out.push_back({adapter.source.file, one.name, "the adapter brings it along, and --bundled-embeddings was not given"});
    if (!wanted && !found.empty())
      run.warn(adapter.source.file, counted(found.size(), "embedding") + (found.size() == 1 ? " is" : " are") +
                                        " left out; --bundled-embeddings adds " + (found.size() == 1 ? "it" : "them"));
  }
  return requests;
}

/// Merges what the command line asks for into a model with diffusers' names. @fails as open_adapters, open_embeddings, merge_embeddings
/// and merge_adapters
inline ts::result<merge_summary> apply_merges(ts::package& model, const adapter_options& a, const embedding_options& e,
                                              const merge_rounding& rounding, ts::job& run) {
  merge_summary out;
  TENSORSMITH_TRY(const opened_adapters adapters, open_adapters(a, model, run));
  TENSORSMITH_TRY(std::vector<ts::embedding_request> embeddings, open_embeddings(e, run));
  std::vector<ts::ignored_embedding> left_out;
  for (ts::embedding_request& bundled : bundled_embeddings(adapters, a.bundled_embeddings, left_out, run)) embeddings.push_back(std::move(bundled));
  if (!embeddings.empty()) {
    TENSORSMITH_TRY(out.embeddings, ts::merge_embeddings(model, embeddings, how_of(e, rounding.to, rounding.overflow), run));
  }
  for (ts::ignored_embedding& one : left_out) out.embeddings.ignored.push_back(std::move(one));
  if (!adapters.requests.empty()) {
    const ts::merge_options how{.strict = a.strict, .to = rounding.to, .kept = {}, .overflow = rounding.overflow};
    TENSORSMITH_TRY(out.adapters, merge_opened(model, adapters, how, run));
  }
  out.changed = out.embeddings.weights;
  for (const ts::merged_weight& weight : out.adapters.account.weights) out.changed.push_back({weight.component, weight.name});
  return out;
}

/// Sets adapters, weights, tokens and what was left out. `written`: the sizes of the changes are known.
inline void set_merges(ts::json_value& out, const merge_summary& s, bool written) {
  set_adapters(out, s.adapters, written);
  set_embeddings(out, s.embeddings);
}

}  // namespace examples
