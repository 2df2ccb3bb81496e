// SPDX-License-Identifier: MIT
//
// inspect/print.hpp: the findings as text for people and as one JSON document for programs.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/command_line.hpp"
#include "../common/report.hpp"
#include "look.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/filter.hpp"

namespace inspect {

/// Untrusted text as it may be printed.
inline std::string shown(std::string_view text) {
  std::string out = ts::quoted(text);
  if (out.size() >= 2 && out.back() == '\'') out = out.substr(1, out.size() - 2);
  return out;
}

/// Amounts of one component, types in safetensors' spelling.
inline examples::amounts amounts_of(const ts::component& part) {
  examples::amounts out;
  out.name = part.name;
  for (const ts::catalog_entry& entry : part.weights.entries()) {
    const ts::tensor_info& info = entry.tensor.info();
    ++out.tensors;
    out.parameters += info.elements();
    out.bytes += info.bytes();
    out.dtypes[dtype_name(info.type)] += info.bytes();
  }
  return out;
}

inline examples::amounts total(const findings& f) {
  examples::amounts sum;
  sum.name = "total";
  for (const ts::component& part : f.model.components) sum.add(amounts_of(part));
  return sum;
}

template <class Key>
std::string counts_text(const std::map<Key, std::size_t>& counts) {
  std::string out;
  for (const auto& [key, count] : counts) {
    if (!out.empty()) out += ", ";
    if constexpr (std::is_same_v<Key, std::string>) out += key;
    else out += std::to_string(key);
    out += " (" + std::to_string(count) + ")";
  }
  return out;
}

inline std::string adapter_text(const ts::adapter_description& a) {
  std::string out;
  if (a.modules != 0) {
    out += "Modules: " + std::to_string(a.modules);
    if (!a.algorithms.empty()) out += ": " + counts_text(a.algorithms);
    if (!a.parts.empty()) out += "; in " + counts_text(a.parts);
    out += "\n";
  }
  if (!a.ranks.empty()) out += "Ranks: " + counts_text(a.ranks) + "; alpha stored in " + examples::counted(a.alphas, "module") + "\n";
  for (const ts::adapter_embedding& e : a.embeddings)
    out += "Embedding: " + shown(e.name) + ", " + examples::counted(e.vectors, "vector") + " of width " + std::to_string(e.width) + "\n";
  if (!a.unknown.empty()) out += "Of no known algorithm: " + examples::counted(a.unknown.size(), "tensor") + ", first " + shown(a.unknown[0]) + "\n";
  return out;
}

inline std::string parts_text(const findings& f) {
  std::string out;
  for (const part_row& part : f.parts)
    out += "  " + part.component + ": " + examples::counted(part.tensors, "tensor") + ", " +
           (part.prefix.empty() ? "no prefix" : "prefix " + shown(part.prefix)) + ", " + part.names + " names\n";
  if (f.moving_averages != 0) out += "  " + examples::counted(f.moving_averages, "moving average") + " (model_ema.)\n";
  if (f.outside != 0) out += "  " + examples::counted(f.outside, "tensor") + " outside every known prefix\n";
  for (const ts::component& part : f.model.components) {
    if (part.name.empty()) continue;
    const std::string name = class_of(part.config);
    out += "  " + amounts_line(amounts_of(part)) + (name.empty() ? "" : ", " + shown(name)) + '\n';
  }
  return out.empty() ? out : "Parts:\n" + out;
}

inline std::string metadata_text(const ts::package& model) {
  std::string out;
  for (const auto& [key, value] : model.metadata) out += "  " + shown(key) + ": " + shown(value) + '\n';
  for (const auto& [key, value] : model.scalars) out += "  " + shown(key) + ": " + shown(ts::write_json(value, 0)) + '\n';
  return out.empty() ? out : "Metadata:\n" + out;
}

inline std::string tensors_text(const findings& f, std::size_t limit) {
  std::string out = "Tensors:\n";
  std::size_t listed = 0, all = 0;
  for (const ts::component& part : f.model.components) {
    all += part.weights.size();
    for (const ts::catalog_entry& entry : part.weights.entries()) {
      if (limit != 0 && listed == limit) break;
      ++listed;
      const std::string type = dtype_name(entry.tensor.type());
      out += "  " + type + std::string(type.size() < 6 ? 6 - type.size() : 0, ' ') + ' ' + shown(ts::qualified_name(part, entry.name)) + ' ' +
             ts::to_string(entry.tensor.shape()) + '\n';
    }
  }
  if (listed < all) out += "  … " + std::to_string(all - listed) + " more (--limit 0 lists all)\n";
  return out;
}

inline std::string to_text(const findings& f, const std::vector<ts::note>& notes, std::size_t limit) {
  std::uint64_t bytes = 0;
  for (const file_row& file : f.files) bytes += file.bytes;
  std::string out = f.source + ": " + shown(f.kind) + (f.family.empty() ? "" : ", " + f.family) + "\n";
  out += "Container: " + f.container + ", " + examples::counted(f.files.size(), "file") + ", " +
         examples::human_bytes(static_cast<double>(bytes)) + "\n";
  if (!f.model.nested.empty()) out += "Tensors lie in: " + shown(f.model.nested) + "\n";
  if (!f.evidence.empty()) out += "Evidence:\n";
  for (const ts::evidence& e : f.evidence) out += "  " + e.subject + " = " + shown(e.value) + ": " + e.reason + '\n';
  if (f.adapter) out += adapter_text(*f.adapter);
  out += parts_text(f) + amounts_line(total(f)) + '\n' + metadata_text(f.model);
  bool first = true;
  for (const ts::component& part : f.model.components)
    for (const std::string& ignored : part.ignored) {
      if (first) out += "No weights, or weights that no network reads:\n";
      first = false;
      out += "  " + (part.name.empty() ? "" : part.name + ": ") + shown(ignored) + '\n';
    }
  for (const file_row& file : f.files)
    if (!file.sha256.empty()) out += file.sha256 + "  " + file.path + '\n';
  for (const ts::note& n : notes)
    if (n.severity == ts::note::level::info) out += "Note: " + examples::note_line(n) + '\n';
  return out + tensors_text(f, limit);
}

template <class Key>
ts::json_value json_of(const std::map<Key, std::size_t>& counts) {
  ts::json_value out{ts::json_value::object{}};
  for (const auto& [key, count] : counts) {
    if constexpr (std::is_same_v<Key, std::string>) out.set(key, std::uint64_t{count});
    else out.set(std::to_string(key), std::uint64_t{count});
  }
  return out;
}

inline ts::json_value json_of(const ts::adapter_description& a) {
  ts::json_value out;
  out.set("family", ts::name_of(a.family));
  out.set("modules", std::uint64_t{a.modules});
  out.set("algorithms", json_of(a.algorithms));
  out.set("parts", json_of(a.parts));
  out.set("ranks", json_of(a.ranks));
  out.set("alphas", std::uint64_t{a.alphas});
  out.set("embeddings", examples::json_list(a.embeddings, [](ts::json_value& one, const ts::adapter_embedding& e) {
            one.set("name", e.name);
            one.set("vectors", std::uint64_t{e.vectors});
            one.set("width", std::uint64_t{e.width});
          }));
  out.set("base", a.base);
  out.set("unknown", examples::json_of(a.unknown));
  return out;
}

inline ts::json_value json_of_files(const findings& f) {
  return examples::json_list(f.files, [](ts::json_value& one, const file_row& file) {
    one.set("path", file.path);
    one.set("bytes", file.bytes);
    if (!file.sha256.empty()) one.set("sha256", file.sha256);
  });
}

inline ts::json_value json_of_components(const findings& f) {
  return examples::json_list(f.model.components, [](ts::json_value& one, const ts::component& part) {
    one.set("name", part.name);
    one.set("class", class_of(part.config));
    examples::set_amounts(one, amounts_of(part));
    one.set("ignored", examples::json_of(part.ignored));
  });
}

inline ts::json_value json_of_parts(const findings& f) {
  return examples::json_list(f.parts, [](ts::json_value& one, const part_row& part) {
    one.set("component", part.component);
    one.set("prefix", part.prefix);
    one.set("names", part.names);
    one.set("tensors", part.tensors);
  });
}

/// Everything but the tensors.
inline ts::json_value head_of(const findings& f, const std::vector<ts::note>& notes) {
  ts::json_value out;
  out.set("status", "inspected");
  for (const auto& [key, text] : {std::pair("source", &f.source), std::pair("container", &f.container), std::pair("kind", &f.kind),
                                  std::pair("family", &f.family), std::pair("nested", &f.model.nested)})
    out.set(key, *text);
  out.set("evidence", examples::json_of(f.evidence));
  out.set("adapter", f.adapter ? json_of(*f.adapter) : ts::json_value());
  out.set("components", json_of_components(f));
  out.set("parts", json_of_parts(f));
  out.set("moving_averages", f.moving_averages);
  out.set("outside_known_prefixes", f.outside);
  const examples::amounts sum = total(f);
  out.set("tensor_count", sum.tensors);
  for (const auto& [key, count] : {std::pair("parameters", sum.parameters), std::pair("bytes", sum.bytes)}) out.set(key, count);
  out.set("dtypes", examples::json_of(sum.dtypes));
  ts::json_value metadata{ts::json_value::object{}}, scalars{ts::json_value::object{}};
  for (const auto& [key, value] : f.model.metadata) metadata.set(key, value);
  for (const auto& [key, value] : f.model.scalars) scalars.set(key, value);
  out.set("metadata", std::move(metadata));
  out.set("scalars", std::move(scalars));
  out.set("files", json_of_files(f));
  out.set("warnings", examples::remarks(notes, ts::note::level::warning));
  out.set("notes", examples::remarks(notes, ts::note::level::info));
  return out;
}

/// Prints the document. The tensors, which may be a million, are written as they go by. @fails io
inline ts::result<void> print_json(const findings& f, const std::vector<ts::note>& notes) {
  std::string out = ts::write_json(head_of(f, notes));
  out.resize(out.size() - 2);  // "\n}"
  out += ",\n  \"tensors\": [";
  bool first = true;
  for (const ts::component& part : f.model.components)
    for (const ts::catalog_entry& entry : part.weights.entries()) {
      const ts::tensor_info& info = entry.tensor.info();
      out += first ? "\n    {" : ",\n    {";
      first = false;
      if (!part.name.empty()) {
        out += "\"component\": ";
        ts::append_json_string(out, part.name);
        out += ", ";
      }
      out += "\"name\": ";
      ts::append_json_string(out, entry.name);
      out += ", \"dtype\": \"" + dtype_name(info.type) + "\", \"shape\": " + ts::to_string(info.shape);
      out += ", \"bytes\": " + std::to_string(info.bytes()) + "}";
      if (out.size() < (1u << 20)) continue;
      TENSORSMITH_CHECK(examples::print(out));
      out.clear();
    }
  return examples::print(out + (first ? "]\n}\n" : "\n  ]\n}\n"));
}

}  // namespace inspect
