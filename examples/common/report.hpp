// SPDX-License-Identifier: MIT
//
// common/report.hpp: what runs report, as text for people and as JSON for programs: amounts, files, remarks, failures.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "process.hpp"
#include "progress.hpp"
#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/tensor/package.hpp"

namespace examples {

namespace ts = tensorsmith;

struct file_summary {
  std::string path;
  std::uint64_t bytes = 0;
  bool linked = false;  // shares its bytes with the source
};

/// Tensors of one component, or of all: how many, and their bytes by element type.
struct amounts {
  std::string name;
  std::uint64_t tensors = 0, parameters = 0, bytes = 0;
  std::map<std::string, std::uint64_t> dtypes;  // bytes of each

  void add(const ts::tensor_info& info) {
    ++tensors;
    parameters += info.elements();
    bytes += info.bytes();
    dtypes[std::string(ts::name_of(info.type))] += info.bytes();
  }
  void add(const amounts& part) {
    tensors += part.tensors;
    parameters += part.parameters;
    bytes += part.bytes;
    for (const auto& [type, count] : part.dtypes) dtypes[type] += count;
  }
};

/// What every run that writes something reports.
struct run_report {
  std::string source, output;
  bool dry_run = false;
  std::vector<file_summary> files;
  std::vector<ts::evidence> findings;
  std::vector<ts::note> notes;
  double seconds = 0;
  std::uint64_t planned_memory = 0;  // what the plan expects at most
  memory_peak peak;
};

/// "1 tensor", "12 tensors".
inline std::string counted(std::uint64_t count, const std::string& thing) {
  return std::to_string(count) + ' ' + thing + (count == 1 ? "" : "s");
}

/// "unet: 686 tensors, 859.5 M parameters, 3.44 GB (f32)"
inline std::string amounts_line(const amounts& part) {
  std::string types;
  for (const auto& [name, bytes] : part.dtypes) {
    if (!types.empty()) types += ", ";
    types += part.dtypes.size() == 1 ? name : name + " " + human_bytes(static_cast<double>(bytes));
  }
  return part.name + ": " + counted(part.tensors, "tensor") + ", " + human_count(static_cast<double>(part.parameters)) + " parameters, " +
         human_bytes(static_cast<double>(part.bytes)) + (types.empty() ? "" : " (" + types + ")");
}

inline std::string note_line(const ts::note& n) { return (n.subject.empty() ? "" : n.subject + ": ") + n.text; }

inline std::string findings_text(const std::vector<ts::evidence>& findings) {
  std::string out;
  if (!findings.empty()) out += "Decided from the files:\n";
  for (const ts::evidence& e : findings) out += "  " + e.subject + " = " + e.value + ": " + e.reason + '\n';
  return out;
}

/// The end of a summary: remarks, files, time and memory.
inline std::string ending_text(const run_report& r) {
  std::string out;
  for (const ts::note& n : r.notes)
    if (n.severity == ts::note::level::info) out += "Note: " + note_line(n) + '\n';
  if (!r.files.empty()) {
    std::uint64_t written = 0, linked = 0;
    for (const file_summary& f : r.files) (f.linked ? linked : written) += f.bytes;
    out += (r.dry_run ? "Would write " : "Wrote ") + counted(r.files.size(), "file") + ", " + human_bytes(static_cast<double>(written));
    if (linked != 0) out += "; " + human_bytes(static_cast<double>(linked)) + " more are shared with the source";
    out += '\n';
  }
  if (r.dry_run && r.planned_memory != 0) out += "Would need about " + human_bytes(static_cast<double>(r.planned_memory)) + " of memory\n";
  return out + "Time " + human_time(r.seconds) + ", peak memory " + human_bytes(static_cast<double>(r.peak.resident)) + " (anonymous " +
         human_bytes(static_cast<double>(r.peak.anonymous)) + ")\n";
}

/// An array with one object an item: `fill(object, item)` sets its members.
template <class Items, class Fill>
ts::json_value json_list(const Items& items, Fill fill) {
  ts::json_value::array out;
  for (const auto& item : items) {
    ts::json_value one;
    fill(one, item);
    out.push_back(std::move(one));
  }
  return out;
}

inline ts::json_value json_of(const std::map<std::string, std::uint64_t>& dtypes) {
  ts::json_value out{ts::json_value::object{}};
  for (const auto& [name, bytes] : dtypes) out.set(name, bytes);
  return out;
}

inline ts::json_value json_of(const std::vector<std::string>& list) {
  ts::json_value::array out;
  for (const std::string& s : list) out.emplace_back(s);
  return out;
}

/// Sets tensors, parameters, bytes and dtypes.
inline void set_amounts(ts::json_value& out, const amounts& part) {
  out.set("tensors", part.tensors);
  out.set("parameters", part.parameters);
  out.set("bytes", part.bytes);
  out.set("dtypes", json_of(part.dtypes));
}

inline ts::json_value json_of(const std::vector<ts::evidence>& findings) {
  return json_list(findings, [](ts::json_value& one, const ts::evidence& e) {
    one.set("subject", e.subject);
    one.set("value", e.value);
    one.set("reason", e.reason);
  });
}

/// The remarks of one severity, one string each.
inline ts::json_value remarks(const std::vector<ts::note>& notes, ts::note::level severity) {
  ts::json_value::array out;
  for (const ts::note& n : notes)
    if (n.severity == severity) out.emplace_back(note_line(n));
  return out;
}

/// Sets files, evidence, seconds, peak_memory, warnings and notes.
inline void set_ending(ts::json_value& out, const run_report& r) {
  out.set("files", json_list(r.files, [](ts::json_value& one, const file_summary& f) {
            one.set("path", f.path);
            one.set("bytes", f.bytes);
            one.set("linked", f.linked);
          }));
  out.set("evidence", json_of(r.findings));
  out.set("seconds", r.seconds);
  ts::json_value peak;
  peak.set("resident", r.peak.resident);
  peak.set("anonymous", r.peak.anonymous);
  peak.set("planned", r.planned_memory);
  out.set("peak_memory", std::move(peak));
  out.set("warnings", remarks(r.notes, ts::note::level::warning));
  out.set("notes", remarks(r.notes, ts::note::level::info));
}

/// The exit status of a failure: 128 + n where signal n ended the run, as shells report it.
inline int exit_status(const ts::failure& error) noexcept {
  const int signal = stop_signal.load(std::memory_order_relaxed);
  return error.code == ts::errc::cancelled && signal != 0 ? 128 + signal : ts::exit_code(error);
}

/// The document of a run that failed: the parts of the error, and the warnings up to then.
inline ts::json_value failure_document(const ts::failure& error, const std::vector<ts::note>& notes) {
  ts::json_value parts;
  parts.set("code", ts::code_name(error.code));
  parts.set("exit_status", exit_status(error));
  parts.set("message", error.message());
  for (const auto& [key, text] :
       {std::pair("what", &error.what), std::pair("file", &error.file), std::pair("place", &error.place),
        std::pair("expected", &error.expected), std::pair("found", &error.found), std::pair("advice", &error.advice)})
    parts.set(key, *text);
  ts::json_value out;
  out.set("status", "failed");
  out.set("error", std::move(parts));
  out.set("warnings", remarks(notes, ts::note::level::warning));
  return out;
}

}  // namespace examples
