// SPDX-License-Identifier: MIT
//
// sd_to_onnx/summary.hpp: what a run reports: as text for people, as one JSON document for programs.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../common/process.hpp"
#include "../common/progress.hpp"
#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/graph/ir.hpp"

namespace sd_to_onnx {

namespace ts = tensorsmith;
using examples::human_bytes;
using examples::human_count;
using examples::human_time;

struct file_summary {
  std::string path;
  std::uint64_t bytes = 0;
  bool linked = false;  // shares its bytes with the source
};

/// One graph: its weights by element type. `tensors` counts initializers that come from the model.
struct component_summary {
  std::string name;
  std::uint64_t nodes = 0, tensors = 0, parameters = 0, bytes = 0;
  std::map<std::string, std::uint64_t> dtypes;  // bytes of each
  std::vector<std::string> ignored;
};

struct summary {
  std::string source, output, layout, family, weights, compute;
  int opset = 0;
  bool dry_run = false;
  std::vector<component_summary> components;
  std::vector<file_summary> files;
  std::vector<ts::evidence> findings;
  std::vector<ts::note> notes;
  double seconds = 0;
  std::uint64_t planned_memory = 0;  // what the plan expects at most
  examples::memory_peak peak;
};

inline component_summary summarize(const ts::bundle_component& part) {
  component_summary out;
  out.name = part.name;
  out.nodes = part.model.nodes.size();
  out.ignored = part.ignored;
  for (const ts::initializer& held : part.model.initializers) {
    const auto* tensor = std::get_if<ts::tensor_ref>(&held.data);
    if (tensor == nullptr) continue;
    ++out.tensors;
    out.parameters += tensor->info().elements();
    out.bytes += tensor->info().bytes();
    out.dtypes[std::string(ts::name_of(tensor->type()))] += tensor->info().bytes();
  }
  return out;
}

/// "unet: 686 tensors, 859.5 M parameters, 3.44 GB (f32), 2071 nodes"
inline std::string component_line(const component_summary& part) {
  std::string types;
  for (const auto& [name, bytes] : part.dtypes) {
    if (!types.empty()) types += ", ";
    types += part.dtypes.size() == 1 ? name : name + " " + human_bytes(static_cast<double>(bytes));
  }
  return part.name + ": " + std::to_string(part.tensors) + " tensors, " + human_count(static_cast<double>(part.parameters)) +
         " parameters, " + human_bytes(static_cast<double>(part.bytes)) + " (" + types + "), " + std::to_string(part.nodes) +
         " nodes";
}

inline component_summary total(const summary& s) {
  component_summary sum;
  sum.name = "total";
  for (const component_summary& part : s.components) {
    sum.nodes += part.nodes;
    sum.tensors += part.tensors;
    sum.parameters += part.parameters;
    sum.bytes += part.bytes;
    for (const auto& [name, bytes] : part.dtypes) sum.dtypes[name] += bytes;
  }
  return sum;
}

inline std::string note_line(const ts::note& n) { return (n.subject.empty() ? "" : n.subject + ": ") + n.text; }

inline std::string to_text(const summary& s) {
  std::string out = (s.dry_run ? "Plan: " : "Converted ") + s.source + (s.dry_run ? " would become " : " to ") + s.output + " (" +
                    s.family + ", " + s.layout + " layout, opset " + std::to_string(s.opset) + ", weights " + s.weights +
                    ", computes in " + s.compute + ")\n";
  for (const component_summary& part : s.components) out += "  " + component_line(part) + '\n';
  out += "  " + component_line(total(s)) + '\n';
  if (!s.findings.empty()) out += "Decided from the files:\n";
  for (const ts::evidence& e : s.findings) out += "  " + e.subject + " = " + e.value + ": " + e.reason + '\n';
  std::size_t ignored = 0;
  for (const component_summary& part : s.components) ignored += part.ignored.size();
  if (ignored != 0) out += "Left out on purpose: " + std::to_string(ignored) + (ignored == 1 ? " tensor" : " tensors") + " (listed with --json)\n";
  for (const ts::note& n : s.notes)
    if (n.severity == ts::note::level::info) out += "Note: " + note_line(n) + '\n';
  if (!s.files.empty()) {
    std::uint64_t written = 0, linked = 0;
    for (const file_summary& f : s.files) (f.linked ? linked : written) += f.bytes;
    out += (s.dry_run ? "Would write " : "Wrote ") + std::to_string(s.files.size()) + " files, " + human_bytes(static_cast<double>(written));
    if (linked != 0) out += "; " + human_bytes(static_cast<double>(linked)) + " more are shared with the source";
    out += '\n';
  }
  if (s.dry_run) out += "Would need about " + human_bytes(static_cast<double>(s.planned_memory)) + " of memory\n";
  out += "Time " + human_time(s.seconds) + ", peak memory " + human_bytes(static_cast<double>(s.peak.resident)) + " (anonymous " +
         human_bytes(static_cast<double>(s.peak.anonymous)) + ")\n";
  return out;
}

namespace detail {

inline ts::json_value names_and_bytes(const std::map<std::string, std::uint64_t>& dtypes) {
  ts::json_value out{ts::json_value::object{}};
  for (const auto& [name, bytes] : dtypes) out.set(name, bytes);
  return out;
}

inline ts::json_value strings(const std::vector<std::string>& list) {
  ts::json_value::array out;
  for (const std::string& s : list) out.emplace_back(s);
  return out;
}

inline ts::json_value amounts(const component_summary& part) {
  ts::json_value out;
  out.set("name", part.name);
  out.set("nodes", part.nodes);
  out.set("tensors", part.tensors);
  out.set("parameters", part.parameters);
  out.set("bytes", part.bytes);
  out.set("dtypes", names_and_bytes(part.dtypes));
  return out;
}

/// The remarks of one severity, one string each.
inline ts::json_value remarks(const std::vector<ts::note>& notes, ts::note::level severity) {
  ts::json_value::array out;
  for (const ts::note& n : notes)
    if (n.severity == severity) out.emplace_back(note_line(n));
  return out;
}

}  // namespace detail

inline ts::json_value to_json(const summary& s) {
  ts::json_value out;
  out.set("status", s.dry_run ? "planned" : "converted");
  for (const auto& [key, text] : {std::pair("source", &s.source), std::pair("output", &s.output), std::pair("family", &s.family),
                                  std::pair("layout", &s.layout), std::pair("weights", &s.weights),
                                  std::pair("compute", &s.compute)})
    out.set(key, *text);
  out.set("opset", s.opset);
  ts::json_value::array components, files, findings;
  for (const component_summary& part : s.components) {
    ts::json_value one = detail::amounts(part);
    one.set("ignored", detail::strings(part.ignored));
    components.push_back(std::move(one));
  }
  for (const file_summary& f : s.files) {
    ts::json_value one;
    one.set("path", f.path);
    one.set("bytes", f.bytes);
    one.set("linked", f.linked);
    files.push_back(std::move(one));
  }
  for (const ts::evidence& e : s.findings) {
    ts::json_value one;
    one.set("subject", e.subject);
    one.set("value", e.value);
    one.set("reason", e.reason);
    findings.push_back(std::move(one));
  }
  out.set("components", std::move(components));
  const component_summary sum = total(s);
  out.set("tensors", sum.tensors);
  out.set("parameters", sum.parameters);
  out.set("bytes", sum.bytes);
  out.set("dtypes", detail::names_and_bytes(sum.dtypes));
  out.set("files", std::move(files));
  out.set("evidence", std::move(findings));
  out.set("seconds", s.seconds);
  ts::json_value peak;
  peak.set("resident", s.peak.resident);
  peak.set("anonymous", s.peak.anonymous);
  peak.set("planned", s.planned_memory);
  out.set("peak_memory", std::move(peak));
  out.set("warnings", detail::remarks(s.notes, ts::note::level::warning));
  out.set("notes", detail::remarks(s.notes, ts::note::level::info));
  return out;
}

/// The document of a run that failed: the parts of the error, and the warnings up to then.
inline ts::json_value to_json(const ts::failure& error, const std::vector<ts::note>& notes) {
  ts::json_value parts;
  parts.set("code", ts::code_name(error.code));
  parts.set("exit_status", ts::exit_code(error));
  parts.set("message", error.message());
  for (const auto& [key, text] :
       {std::pair("what", &error.what), std::pair("file", &error.file), std::pair("place", &error.place),
        std::pair("expected", &error.expected), std::pair("found", &error.found), std::pair("advice", &error.advice)})
    parts.set(key, *text);
  ts::json_value out;
  out.set("status", "failed");
  out.set("error", std::move(parts));
  out.set("warnings", detail::remarks(notes, ts::note::level::warning));
  return out;
}

}  // namespace sd_to_onnx
