// SPDX-License-Identifier: MIT
//
// merge_embedding/summary.hpp: what a run reports: tokens, their ids and vectors, and what was left out.
#pragma once

#include <string>

#include "../common/base_program.hpp"
#include "../common/merges.hpp"

namespace merge_embedding {

namespace ts = tensorsmith;

struct summary : examples::base_report {
  examples::merge_summary merged;
};

inline std::string to_text(const summary& s) {
  const std::string out = (s.dry_run ? "Plan: " : "Added ") + examples::counted(s.merged.embeddings.tokens.size(), "row") +
                          " to the token embeddings of " + examples::source_text(s) + ", " + examples::output_text(s) + '\n';
  return out + examples::embeddings_text(s.merged.embeddings) + examples::ending_text(s);
}

inline ts::json_value to_json(const summary& s) {
  ts::json_value out;
  examples::set_base(out, s, "merged");
  examples::set_embeddings(out, s.merged.embeddings);
  out.set("tensors", s.tensors);
  examples::set_ending(out, s);
  return out;
}

}  // namespace merge_embedding
