// SPDX-License-Identifier: MIT
//
// sd_to_onnx/summary.hpp: what a run reports: as text for people, as one JSON document for programs.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../common/merges.hpp"
#include "../common/report.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/graph/ir.hpp"

namespace sd_to_onnx {

namespace ts = tensorsmith;

/// One graph: its weights by element type. `tensors` counts initializers that come from the model.
struct component_summary : examples::amounts {
  std::uint64_t nodes = 0;
  std::vector<std::string> ignored;
};

struct summary : examples::run_report {
  std::string layout, family, weights, compute;
  int opset = 0;
  std::vector<component_summary> components;
  examples::merge_summary merged;
};

inline component_summary summarize(const ts::bundle_component& part) {
  component_summary out;
  out.name = part.name;
  out.nodes = part.model.nodes.size();
  out.ignored = part.ignored;
  for (const ts::initializer& held : part.model.initializers)
    if (const auto* tensor = std::get_if<ts::tensor_ref>(&held.data)) out.add(tensor->info());
  return out;
}

/// "unet: 686 tensors, 859.5 M parameters, 3.44 GB (f32), 2071 nodes"
inline std::string component_line(const component_summary& part) {
  return amounts_line(part) + ", " + std::to_string(part.nodes) + " nodes";
}

inline component_summary total(const summary& s) {
  component_summary sum;
  sum.name = "total";
  for (const component_summary& part : s.components) {
    sum.add(part);
    sum.nodes += part.nodes;
  }
  return sum;
}

inline std::string to_text(const summary& s) {
  std::string out = (s.dry_run ? "Plan: " : "Converted ") + s.source + (s.dry_run ? " would become " : " to ") + s.output + " (" +
                    s.family + ", " + s.layout + " layout, opset " + std::to_string(s.opset) + ", weights " + s.weights +
                    ", computes in " + s.compute + ")\n";
  for (const component_summary& part : s.components) out += "  " + component_line(part) + '\n';
  out += "  " + component_line(total(s)) + '\n' + examples::findings_text(s.findings);
  if (!s.merged.empty()) out += "Merged on the way:\n" + adapters_text(s.merged.adapters) + examples::embeddings_text(s.merged.embeddings);
  if (!s.dry_run) out += changes_text(s.merged.adapters);
  std::size_t ignored = 0;
  for (const component_summary& part : s.components) ignored += part.ignored.size();
  if (ignored != 0) out += "Left out on purpose: " + examples::counted(ignored, "tensor") + " (listed with --json)\n";
  return out + examples::ending_text(s);
}

inline ts::json_value to_json(const summary& s) {
  ts::json_value out;
  out.set("status", s.dry_run ? "planned" : "converted");
  for (const auto& [key, text] : {std::pair("source", &s.source), std::pair("output", &s.output), std::pair("family", &s.family),
                                  std::pair("layout", &s.layout), std::pair("weights", &s.weights),
                                  std::pair("compute", &s.compute)})
    out.set(key, *text);
  out.set("opset", s.opset);
  out.set("components", examples::json_list(s.components, [](ts::json_value& one, const component_summary& part) {
            one.set("name", part.name);
            one.set("nodes", part.nodes);
            examples::set_amounts(one, part);
            one.set("ignored", examples::json_of(part.ignored));
          }));
  examples::set_amounts(out, total(s));
  ts::json_value merged;
  examples::set_merges(merged, s.merged, !s.dry_run);
  if (!s.merged.empty()) out.set("merged", std::move(merged));
  examples::set_ending(out, s);
  return out;
}

}  // namespace sd_to_onnx
