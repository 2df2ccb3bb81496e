// SPDX-License-Identifier: MIT
//
// tensorsmith/format/safetensors/write.hpp: writes a catalog as a safetensors file with the layout of the reference writer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/safetensors/dtypes.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/io/publish.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/executor.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// String pairs of the header's "__metadata__".
using safetensors_metadata = std::vector<std::pair<std::string, std::string>>;

/// A file that is fully laid out before its first byte is written.
struct safetensors_plan {
  std::string header;                  ///< length, JSON and padding: the bytes before the data
  std::vector<std::size_t> order;      ///< positions in the catalog's entries, in the order of the file
  std::vector<std::uint64_t> offsets;  ///< where each of them begins in the file
  std::uint64_t size = 0;              ///< bytes of the whole file
};

/// Lays out a catalog: element types in descending order of the reference implementation's table (so that every tensor is
/// aligned to its element), then names; the header is padded with spaces to a multiple of 8. Metadata is sorted by key.
/// @fails mismatch (no tensors, a reserved name), unsupported (an element type that the format lacks), limit (header too long)
inline result<safetensors_plan> plan_safetensors(const catalog& tensors, safetensors_metadata metadata = {}, const limits& bounds = {}) {
  const auto entries = tensors.entries();
  if (entries.empty()) return failure{.code = errc::mismatch, .what = "there are no tensors to write"};
  safetensors_plan plan;
  std::vector<std::size_t> rank(entries.size());
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto position = detail::safetensors_rank(entries[i].tensor.type());
    if (!position)
      return failure{.code = errc::unsupported, .what = "safetensors has no element type " + std::string(name_of(entries[i].tensor.type())),
                     .place = "tensor " + quoted(entries[i].name), .advice = "cast it first"};
    std::size_t bad = 0;
    if (entries[i].name == "__metadata__" || !is_utf8(entries[i].name, bad))
      return failure{.code = errc::mismatch, .what = "a tensor cannot have this name in safetensors", .place = "tensor " + quoted(entries[i].name),
                     .expected = "UTF-8 text other than '__metadata__'"};
    rank[i] = *position;
    plan.order.push_back(i);
  }
  std::sort(plan.order.begin(), plan.order.end(), [&](std::size_t a, std::size_t b) {
    return rank[a] != rank[b] ? rank[a] > rank[b] : entries[a].name < entries[b].name;
  });

  std::string json = "{";
  if (!metadata.empty()) {
    std::sort(metadata.begin(), metadata.end());
    json += "\"__metadata__\":{";
    for (std::size_t i = 0; i < metadata.size(); ++i) {
      if (i) json += ',';
      append_json_string(json, metadata[i].first);
      json += ':';
      append_json_string(json, metadata[i].second);
    }
    json += '}';
  }
  std::uint64_t at = 0;
  for (const std::size_t i : plan.order) {
    const tensor_info& info = entries[i].tensor.info();
    if (json.size() > 1) json += ',';
    append_json_string(json, entries[i].name);
    json += ":{\"dtype\":\"";
    json += safetensors_name(info.type);
    json += "\",\"shape\":[";
    for (std::size_t k = 0; k < info.shape.size(); ++k) json += (k ? "," : "") + std::to_string(info.shape[k]);
    json += "],\"data_offsets\":[" + std::to_string(at) + ',' + std::to_string(at + info.bytes()) + "]}";
    plan.offsets.push_back(at);
    at += info.bytes();
  }
  json += '}';
  json.append((8 - json.size() % 8) % 8, ' ');
  if (json.size() > bounds.safetensors_header_bytes)
    return failure{.code = errc::limit, .what = "the header of the output would be too long for other readers",
                   .expected = "at most " + std::to_string(bounds.safetensors_header_bytes) + " bytes", .found = std::to_string(json.size())};
  for (int i = 0; i < 8; ++i) plan.header += static_cast<char>(static_cast<unsigned char>(json.size() >> (8 * i)));
  plan.header += json;
  for (std::uint64_t& offset : plan.offsets) offset += plan.header.size();
  plan.size = plan.header.size() + at;
  return plan;
}

/// The work of writing the planned tensors into `sink`: one placement a recipe, with all of its outputs that are wanted.
inline std::vector<placement> safetensors_placements(const safetensors_plan& plan, const catalog& tensors, byte_sink& sink) {
  std::vector<placement> work;
  std::map<const recipe*, std::size_t> first;  // the placement that was started for a recipe
  for (std::size_t k = 0; k < plan.order.size(); ++k) {
    const catalog_entry& e = tensors.entries()[plan.order[k]];
    auto known = first.find(e.tensor.source.get());
    if (known == first.end() || work[known->second].slots[e.tensor.output].sink) {  // new, or an output under two names
      first[e.tensor.source.get()] = work.size();
      work.push_back({e.tensor.source, std::vector<output_slot>(e.tensor.source->outputs().size()), e.name});
      known = first.find(e.tensor.source.get());
    }
    work[known->second].slots[e.tensor.output] = {&sink, plan.offsets[k]};
  }
  return work;
}

/// What write_safetensors may be told.
struct safetensors_write_options {
  safetensors_metadata metadata{};  ///< diffusers and transformers write {"format": "pt"}
  bool force = false;               ///< replace an existing file
};

/// What was written.
struct safetensors_written {
  std::string path;
  std::uint64_t bytes = 0;
  std::size_t tensors = 0;
};

/// Writes all tensors of a catalog; the file appears when it is complete and on the disk. Same tensors, same bytes, for any
/// number of threads. @fails as plan_safetensors; path (the file exists), no_space, io, cancelled, and what the recipes fail with
inline result<safetensors_written> write_safetensors(const catalog& tensors, const std::string& path,
                                                     const safetensors_write_options& options, const job& run) {
  TENSORSMITH_TRY(const safetensors_plan plan, plan_safetensors(tensors, options.metadata, run.limits));
  TENSORSMITH_TRY(auto output, file_publication::begin(path, {.force = options.force}));
  TENSORSMITH_TRY(const auto file, output.create(plan.size));
  TENSORSMITH_CHECK(file->write_at(0, std::as_bytes(std::span(plan.header))));
  const auto work = safetensors_placements(plan, tensors, *file);
  TENSORSMITH_CHECK(execute(work, run));
  TENSORSMITH_CHECK(check_sources_unchanged(work));
  TENSORSMITH_CHECK(output.commit());
  return safetensors_written{path, plan.size, tensors.size()};
}

TENSORSMITH_END_NAMESPACE
