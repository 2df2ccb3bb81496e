// SPDX-License-Identifier: MIT
//
// convert_weights/summary.hpp: what a run reports: as text for people, as one JSON document for programs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common/report.hpp"
#include "accounts.hpp"

namespace convert_weights {

struct summary : examples::run_report {
  std::string container, to, family;           // family: empty if it did not matter
  std::vector<examples::amounts> components;   // as they are written
  std::uint64_t source_tensors = 0;            // written + dropped + pruned + ignored
  left_out dropped, pruned, ignored;
  std::vector<std::string> ignored_parts;      // what a file holds beside tensors

  std::uint64_t written() const noexcept { return source_tensors - dropped.size() - pruned.size() - ignored.size(); }
};

inline examples::amounts total(const summary& s) {
  examples::amounts sum;
  sum.name = "total";
  for (const examples::amounts& part : s.components) sum.add(part);
  return sum;
}

/// "Pruned: 688 tensors (686 a moving average of training, 2 a buffer of the noise schedule)"; nothing if nothing was left out.
inline std::string left_out_line(std::string_view title, const left_out& tensors) {
  if (tensors.empty()) return {};
  std::map<std::string, std::size_t> reasons;
  for (const ts::ignored_tensor& t : tensors) ++reasons[t.reason];
  std::string out = std::string(title) + ": " + examples::counted(tensors.size(), "tensor") + " (";
  std::size_t shown = 0;
  for (const auto& [reason, count] : reasons) {
    if (shown == 4) {
      out += ", …";
      break;
    }
    out += (shown++ == 0 ? "" : ", ") + (reasons.size() == 1 ? std::string() : std::to_string(count) + " ") + reason;
  }
  return out + ")\n";
}

inline std::string to_text(const summary& s) {
  std::string out = (s.dry_run ? "Plan: " : "Converted ") + s.source + " (" + s.container + (s.family.empty() ? "" : ", " + s.family) +
                    (s.dry_run ? ") would become " : ") to ") + s.output + " (" + s.to + ")\n";
  for (const examples::amounts& part : s.components)
    if (!part.name.empty()) out += "  " + amounts_line(part) + '\n';
  out += "  " + amounts_line(total(s)) + '\n' + examples::findings_text(s.findings);
  out += left_out_line("Dropped", s.dropped) + left_out_line("Pruned", s.pruned) + left_out_line("Ignored", s.ignored);
  if (!s.ignored_parts.empty()) out += "Parts of the source that are no weights:\n";
  constexpr std::size_t most = 8;
  for (std::size_t i = 0; i < std::min(most, s.ignored_parts.size()); ++i) out += "  " + s.ignored_parts[i] + '\n';
  if (s.ignored_parts.size() > most) out += "  … " + std::to_string(s.ignored_parts.size() - most) + " more (listed with --json)\n";
  return out + examples::ending_text(s);
}

inline ts::json_value json_of(const left_out& tensors) {
  return examples::json_list(tensors, [](ts::json_value& one, const ts::ignored_tensor& t) {
    one.set("name", t.name);
    one.set("reason", t.reason);
  });
}

inline ts::json_value to_json(const summary& s) {
  ts::json_value out;
  out.set("status", s.dry_run ? "planned" : "converted");
  for (const auto& [key, text] : {std::pair("source", &s.source), std::pair("container", &s.container), std::pair("output", &s.output),
                                  std::pair("to", &s.to), std::pair("family", &s.family)})
    out.set(key, *text);
  out.set("components", examples::json_list(s.components, [](ts::json_value& one, const examples::amounts& part) {
            one.set("name", part.name);
            examples::set_amounts(one, part);
          }));
  examples::set_amounts(out, total(s));
  ts::json_value counts;
  counts.set("source", s.source_tensors);
  counts.set("written", s.written());
  counts.set("dropped", std::uint64_t{s.dropped.size()});
  counts.set("pruned", std::uint64_t{s.pruned.size()});
  counts.set("ignored", std::uint64_t{s.ignored.size()});
  out.set("counts", std::move(counts));
  out.set("dropped", json_of(s.dropped));
  out.set("pruned", json_of(s.pruned));
  out.set("ignored", json_of(s.ignored));
  out.set("ignored_parts", examples::json_of(s.ignored_parts));
  examples::set_ending(out, s);
  return out;
}

}  // namespace convert_weights
