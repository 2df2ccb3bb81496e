// SPDX-License-Identifier: MIT
//
// merge_lora/summary.hpp: what a merge reports: every key of every adapter, and the size of every change.
#pragma once

#include <string>

#include "../common/base_program.hpp"
#include "../common/merges.hpp"

namespace merge_lora {

namespace ts = tensorsmith;

struct summary : examples::base_report {
  examples::merge_summary merged;
};

inline std::string to_text(const summary& s) {
  const auto& account = s.merged.adapters.account;
  std::string out = (s.dry_run ? "Plan: " : "Merged ") + examples::counted(account.adapters.size(), "adapter") + " into " + examples::source_text(s) + ", " +
                    examples::output_text(s) + '\n';
  out += adapters_text(s.merged.adapters) + examples::embeddings_text(s.merged.embeddings);
  out += "  " + examples::counted(s.merged.changed.size(), "weight") + " changed of " + examples::counted(s.tensors, "tensor") + '\n';
  if (!s.dry_run) out += changes_text(s.merged.adapters);
  return out + examples::ending_text(s);
}

inline ts::json_value to_json(const summary& s) {
  ts::json_value out;
  examples::set_base(out, s, "merged");
  examples::set_merges(out, s.merged, !s.dry_run);
  out.set("tensors", s.tensors);
  examples::set_ending(out, s);
  return out;
}

}  // namespace merge_lora
