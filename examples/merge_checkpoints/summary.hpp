// SPDX-License-Identifier: MIT
//
// merge_checkpoints/summary.hpp: what a blend reports: every tensor of the base, and what was left out of the other models.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../common/adapter_report.hpp"
#include "../common/base_program.hpp"
#include "tensorsmith/arch/blend_checkpoints.hpp"

namespace merge_checkpoints {

namespace ts = tensorsmith;

struct summary : examples::base_report {
  std::string ratio;
  ts::blend_account account;
};

inline std::string name_of(ts::blended_tensor::fate status) {
  return status == ts::blended_tensor::fate::blended ? "blended" : status == ts::blended_tensor::fate::kept ? "kept" : "taken";
}

/// "  kept: 2 tensors: c.pt has no such tensor (first unet.conv_in.weight)", a line for each reason.
inline std::string reasons_text(const ts::blend_account& account) {
  struct group {
    std::string label, first;
    std::size_t count = 0;
  };
  std::vector<group> groups;
  for (const ts::blended_tensor& one : account.tensors) {
    if (one.reason.empty()) continue;
    const std::string label = name_of(one.status) + ": " + one.reason;
    std::size_t at = 0;
    while (at < groups.size() && groups[at].label != label) ++at;
    if (at == groups.size()) groups.push_back({label, one.component + "." + one.name, 0});
    ++groups[at].count;
  }
  std::string out;
  for (const group& g : groups) out += "    " + examples::counted(g.count, "tensor") + " " + g.label + " (first " + g.first + ")\n";
  return out;
}

inline std::string to_text(const summary& s) {
  const ts::blend_account& a = s.account;
  std::string out = (s.dry_run ? "Plan: " : "Blended ") + examples::source_text(s);
  for (std::size_t i = 1; i < a.models.size(); ++i) out += " + " + a.models[i];
  out += " by " + std::string(ts::name_of(a.mode)) + ", ratio " + s.ratio + ", " + examples::output_text(s) + '\n';
  out += "  " + examples::counted(a.blended, "tensor") + " blended, " + std::to_string(a.taken) + " taken, " + std::to_string(a.kept) +
         " kept of " +
         std::to_string(a.tensors.size()) + " of the model; " + examples::counted(s.tensors, "tensor") + " written\n" + reasons_text(a);
  if (!a.left_out.empty()) out += "    " + examples::counted(a.left_out.size(), "tensor") + " of other models left out, first " + a.left_out[0] + '\n';
  return out + examples::ending_text(s);
}

inline ts::json_value to_json(const summary& s) {
  const ts::blend_account& a = s.account;
  ts::json_value out;
  examples::set_base(out, s, "blended");
  out.set("ratio", s.ratio);
  out.set("mode", std::string(ts::name_of(a.mode)));
  out.set("models", examples::json_of(a.models));
  out.set("blended", std::uint64_t{a.blended});
  out.set("kept", std::uint64_t{a.kept});
  out.set("taken", std::uint64_t{a.taken});
  out.set("tensors", examples::json_list(a.tensors, [](ts::json_value& one, const ts::blended_tensor& tensor) {
            one.set("name", tensor.component + "." + tensor.name);
            one.set("status", name_of(tensor.status));
            one.set("ratio", tensor.ratio);
            if (!tensor.reason.empty()) one.set("reason", tensor.reason);
          }));
  out.set("left_out", examples::json_of(a.left_out));
  out.set("overflowed", a.overflowed->overflowed.load());
  out.set("nonfinite", a.nonfinite->nonfinite.load());
  out.set("written", s.tensors);
  examples::set_ending(out, s);
  return out;
}

}  // namespace merge_checkpoints
