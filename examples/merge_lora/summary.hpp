// SPDX-License-Identifier: MIT
//
// merge_lora/summary.hpp: what a merge reports: every module of every adapter, and the size of every change.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../common/report.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"

namespace merge_lora {

namespace ts = tensorsmith;

struct summary : examples::run_report {
  std::string family, form;  // form: "safetensors", "torch", "diffusers folder"
  ts::merge_account account;
  std::vector<std::pair<double, double>> strengths;  // of each adapter: UNet, text encoders
  std::uint64_t tensors = 0;                          // written
};

inline std::string number_text(double value) { return examples::format("%.6g", value); }

/// The largest changes by their ratio to the weight, first.
inline std::vector<const ts::merged_weight*> largest_changes(const summary& s, std::size_t most) {
  const auto ratio = [](const ts::merged_weight* w) {
    const ts::change_norms n = w->recipe->norms();
    return n.weight > 0 ? n.change / n.weight : n.change > 0 ? 1e300 : 0.0;
  };
  std::vector<std::pair<double, const ts::merged_weight*>> all;
  for (const ts::merged_weight& w : s.account.weights) all.emplace_back(ratio(&w), &w);
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<const ts::merged_weight*> out;
  for (std::size_t i = 0; i < std::min(most, all.size()); ++i) out.push_back(all[i].second);
  return out;
}

inline std::string adapter_text(const ts::merged_adapter& a, std::pair<double, double> strength) {
  std::string algorithms;
  for (const auto& [name, count] : a.what.algorithms) algorithms += (algorithms.empty() ? "" : ", ") + std::to_string(count) + " " + name;
  std::string out = "  " + a.file + " at " + number_text(strength.first) +
                    (strength.first == strength.second ? "" : " (text encoders " + number_text(strength.second) + ")") + ": " + std::string(ts::name_of(a.what.family)) +
                    ", " + algorithms + '\n';
  out += "    " + examples::counted(a.applied, "module") + " applied";
  if (a.not_found != 0) out += ", " + std::to_string(a.not_found) + " without a layer in the model";
  if (a.ignored != 0) out += ", " + std::to_string(a.ignored) + " without effect";
  out += '\n';
  std::size_t shown = 0;
  for (const ts::merged_module& m : a.modules) {
    if (m.reason.empty()) continue;
    if (shown++ == 5) {
      out += "    … (all with --json or --report)\n";
      break;
    }
    out += "    " + m.name + ": " + m.reason + '\n';
  }
  if (!a.unknown.empty()) out += "    " + examples::counted(a.unknown.size(), "tensor") + " of no known algorithm, first " + ts::quoted(a.unknown[0]) + '\n';
  return out;
}

inline std::string to_text(const summary& s) {
  std::string out = (s.dry_run ? "Plan: " : "Merged ") + std::to_string(s.account.adapters.size()) + (s.account.adapters.size() == 1 ? " adapter into " : " adapters into ") +
                    s.source + (s.family.empty() ? "" : " (" + s.family + ")") + ", " + s.output + " (" + s.form + ")\n";
  for (std::size_t i = 0; i < s.account.adapters.size(); ++i) out += adapter_text(s.account.adapters[i], s.strengths[i]);
  out += "  " + examples::counted(s.account.weights.size(), "weight") + " changed of " + examples::counted(s.tensors, "tensor") + '\n';
  if (!s.dry_run)
    for (const ts::merged_weight* w : largest_changes(s, 3)) {
      const ts::change_norms n = w->recipe->norms();
      out += "  " + w->component + "." + w->name + ": change " + number_text(n.change) + " of " + number_text(n.weight) + " (Frobenius norms)\n";
    }
  return out + examples::ending_text(s);
}

namespace detail {

inline ts::json_value json_of(const ts::merged_adapter& a, std::pair<double, double> strength) {
  ts::json_value out;
  out.set("file", a.file);
  out.set("family", std::string(ts::name_of(a.what.family)));
  out.set("base", a.what.base);
  out.set("strength", strength.first);
  out.set("text_encoder_strength", strength.second);
  out.set("applied", std::uint64_t{a.applied});
  out.set("not_found", std::uint64_t{a.not_found});
  out.set("ignored", std::uint64_t{a.ignored});
  ts::json_value::array modules;
  for (const ts::merged_module& m : a.modules) {
    ts::json_value one;
    one.set("name", m.name);
    one.set("status", m.reason.empty() ? "applied" : m.component.empty() ? "not found" : "ignored");
    if (!m.component.empty()) one.set("target", m.component + "." + m.target), one.set("algorithm", m.algorithm), one.set("strength", m.strength);
    if (!m.reason.empty()) one.set("reason", m.reason);
    modules.push_back(std::move(one));
  }
  out.set("modules", std::move(modules));
  out.set("unknown", examples::json_of(a.unknown));
  return out;
}

}  // namespace detail

inline ts::json_value to_json(const summary& s) {
  ts::json_value out;
  out.set("status", s.dry_run ? "planned" : "merged");
  for (const auto& [key, text] : {std::pair("source", &s.source), std::pair("output", &s.output), std::pair("form", &s.form), std::pair("family", &s.family)})
    out.set(key, *text);
  ts::json_value::array adapters, weights;
  for (std::size_t i = 0; i < s.account.adapters.size(); ++i) adapters.push_back(detail::json_of(s.account.adapters[i], s.strengths[i]));
  for (const ts::merged_weight& w : s.account.weights) {
    const ts::change_norms n = w.recipe->norms();
    ts::json_value one;
    one.set("name", w.component + "." + w.name);
    if (!s.dry_run) {
      one.set("change", n.change);
      one.set("weight", n.weight);
      if (n.weight > 0) one.set("ratio", n.change / n.weight);
    }
    weights.push_back(std::move(one));
  }
  out.set("adapters", std::move(adapters));
  out.set("weights", std::move(weights));
  out.set("tensors", s.tensors);
  examples::set_ending(out, s);
  return out;
}

}  // namespace merge_lora
