// SPDX-License-Identifier: MIT
//
// common/adapter_report.hpp: the account of a merge as text and as JSON: every key of every adapter, and the size of every change.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adapter_options.hpp"
#include "report.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/io/publish.hpp"

namespace examples {

/// Tensors of an adapter by what became of them. All of them together are the file.
struct key_account {
  std::size_t all = 0, applied = 0, not_found = 0, ignored = 0, unknown = 0, embeddings = 0;
};

/// What is reported about the adapters of a run.
struct adapter_summary {
  ts::merge_account account;
  std::vector<std::pair<double, double>> strengths;  // of each adapter: UNet, text encoders
  std::vector<key_account> keys;                     // of each adapter
};

/// Counts the tensors of `source` by what the account says about their modules.
inline key_account keys_of(const ts::adapter& source, const ts::merged_adapter& account) {
  key_account out{.all = source.tensors->size(), .unknown = account.unknown.size()};
  std::map<std::string_view, std::size_t> sizes;
  for (const ts::adapter_layer& module : source.modules) sizes[module.name] = module.parameters.size();
  for (const ts::merged_module& module : account.modules) {
    std::size_t& count = module.outcome == ts::module_outcome::applied     ? out.applied
                         : module.outcome == ts::module_outcome::not_found ? out.not_found
                                                                           : out.ignored;
    count += sizes[module.name];
  }
  for (const ts::textual_inversion& one : source.embeddings) out.embeddings += one.tensors.size();
  return out;
}

/// Merges opened adapters into a model with diffusers' names. @fails as merge_adapters
inline ts::result<adapter_summary> merge_opened(ts::package& model, const opened_adapters& adapters, const ts::merge_options& how, ts::job& run) {
  adapter_summary out;
  out.strengths = adapters.strengths;
  TENSORSMITH_TRY(out.account, ts::merge_adapters(model, adapters.requests, how, run));
  for (std::size_t i = 0; i < adapters.requests.size(); ++i) out.keys.push_back(keys_of(adapters.requests[i].source, out.account.adapters[i]));
  return out;
}

inline std::string number_text(double value) { return format("%.6g", value); }

/// The largest changes by their ratio to the weight, first.
inline std::vector<const ts::merged_weight*> largest_changes(const ts::merge_account& account, std::size_t most) {
  const auto ratio = [](const ts::merged_weight& w) {
    const ts::change_norms n = w.norms();
    return n.weight > 0 ? n.change / n.weight : n.change > 0 ? 1e300 : 0.0;
  };
  std::vector<std::pair<double, const ts::merged_weight*>> all;
  for (const ts::merged_weight& w : account.weights) all.emplace_back(ratio(w), &w);
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<const ts::merged_weight*> out;
  for (std::size_t i = 0; i < std::min(most, all.size()); ++i) out.push_back(all[i].second);
  return out;
}

namespace detail {

inline std::string adapter_text(const ts::merged_adapter& a, std::pair<double, double> strength) {
  std::string algorithms;
  for (const auto& [name, count] : a.what.algorithms) algorithms += (algorithms.empty() ? "" : ", ") + std::to_string(count) + " " + name;
  std::string out = "  " + a.file + " at " + number_text(strength.first) +
                    (strength.first == strength.second ? "" : " (text encoders " + number_text(strength.second) + ")") + ": " +
                    std::string(ts::name_of(a.what.family)) + ", " + algorithms + '\n';
  out += "    " + counted(a.applied, "module") + " applied";
  if (a.not_found != 0) out += ", " + std::to_string(a.not_found) + " without a layer in the model";
  if (a.ignored != 0) out += ", " + std::to_string(a.ignored) + " without effect";
  out += '\n';
  constexpr std::size_t most = 5;
  std::size_t reasons = 0, remarks = 0;
  for (const ts::merged_module& m : a.modules) {
    if (!m.reason.empty() && ++reasons <= most) out += "    " + m.name + ": " + m.reason + '\n';
    for (const std::string& remark : m.remarks)
      if (++remarks <= most) out += "    " + m.name + ": " + remark + '\n';
  }
  if (reasons > most || remarks > most) out += "    … (all with --json)\n";
  if (!a.unknown.empty()) out += "    " + counted(a.unknown.size(), "tensor") + " of no known algorithm, first " + ts::quoted(a.unknown[0]) + '\n';
  return out;
}

inline ts::json_value json_of(const key_account& keys) {
  ts::json_value out;
  for (const auto& [name, count] : {std::pair("all", keys.all), std::pair("applied", keys.applied), std::pair("not_found", keys.not_found),
                                    std::pair("ignored", keys.ignored), std::pair("unknown", keys.unknown), std::pair("embeddings", keys.embeddings)})
    out.set(name, std::uint64_t{count});
  return out;
}

inline void set_adapter(ts::json_value& out, const ts::merged_adapter& a, std::pair<double, double> strength, const key_account& keys) {
  out.set("file", a.file);
  out.set("family", std::string(ts::name_of(a.what.family)));
  out.set("base", a.what.base);
  out.set("strength", strength.first);
  out.set("text_encoder_strength", strength.second);
  out.set("applied", std::uint64_t{a.applied});
  out.set("not_found", std::uint64_t{a.not_found});
  out.set("ignored", std::uint64_t{a.ignored});
  out.set("keys", json_of(keys));
  out.set("modules", json_list(a.modules, [](ts::json_value& one, const ts::merged_module& m) {
            one.set("name", m.name);
            one.set("status", std::string(ts::name_of(m.outcome)));
            if (!m.component.empty()) {
              one.set("target", m.component + "." + m.target);
              one.set("algorithm", m.algorithm);
              one.set("strength", m.strength);
            }
            if (!m.reason.empty()) one.set("reason", m.reason);
            if (!m.remarks.empty()) one.set("remarks", examples::json_of(m.remarks));
          }));
  out.set("unknown", examples::json_of(a.unknown));
}

}  // namespace detail

/// The adapters of a run, one paragraph each.
inline std::string adapters_text(const adapter_summary& s) {
  std::string out;
  for (std::size_t i = 0; i < s.account.adapters.size(); ++i) out += detail::adapter_text(s.account.adapters[i], s.strengths[i]);
  return out;
}

/// The three largest changes, once they are written, and what is out of the ordinary in them.
inline std::string changes_text(const adapter_summary& s) {
  std::string out;
  std::size_t overflowed = 0, nonfinite = 0;  // weights
  for (const ts::merged_weight& w : s.account.weights) overflowed += w.counts().overflowed != 0, nonfinite += w.counts().nonfinite != 0;
  if (overflowed != 0) out += "  " + counted(overflowed, "weight") + " with values too large for their type (listed with --json)\n";
  if (nonfinite != 0) out += "  " + counted(nonfinite, "weight") + " with infinities or NaN that the model had (listed with --json)\n";
  for (const ts::merged_weight* w : largest_changes(s.account, 3)) {
    const ts::change_norms n = w->norms();
    out += "  " + w->component + "." + w->name + ": change " + number_text(n.change) + " of " + number_text(n.weight) + " (Frobenius norms)\n";
  }
  return out;
}

/// Merged values that did not fit their types.
inline std::uint64_t overflowed(const adapter_summary& s) {
  std::uint64_t out = 0;
  for (const ts::merged_weight& w : s.account.weights) out += w.counts().overflowed;
  return out;
}

/// Sets adapters, weights. `written`: the sizes of the changes are known.
inline void set_adapters(ts::json_value& out, const adapter_summary& s, bool written) {
  ts::json_value::array adapters;
  for (std::size_t i = 0; i < s.account.adapters.size(); ++i) {
    ts::json_value one;
    detail::set_adapter(one, s.account.adapters[i], s.strengths[i], s.keys[i]);
    adapters.push_back(std::move(one));
  }
  out.set("adapters", std::move(adapters));
  out.set("weights", json_list(s.account.weights, [&](ts::json_value& one, const ts::merged_weight& w) {
            one.set("name", w.component + "." + w.name);
            one.set("dtype", std::string(ts::name_of(w.type)));
            if (!written) return;
            const ts::change_norms n = w.norms();
            one.set("change", n.change);
            one.set("weight", n.weight);
            if (n.weight > 0) one.set("ratio", n.change / n.weight);
            one.set("overflowed", w.counts().overflowed);
            one.set("nonfinite", w.counts().nonfinite);
          }));
}

/// The report as a file of its own, for --report; nothing if `path` is empty. @fails io, path
inline ts::result<void> write_report_file(const std::string& path, const ts::json_value& report) {
  if (path.empty()) return {};
  const std::string text = ts::write_json(report) + '\n';
  TENSORSMITH_TRY(auto publication, ts::file_publication::begin(path, {.force = true}));
  TENSORSMITH_TRY(const auto file, publication.create(text.size()));
  TENSORSMITH_CHECK(file->write_at(0, std::as_bytes(std::span(text))));
  return publication.commit();
}

}  // namespace examples
