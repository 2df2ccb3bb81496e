// SPDX-License-Identifier: MIT
//
// tensorsmith/format/safetensors/write.hpp: writes a catalog as a safetensors file with the layout of the reference writer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/safetensors/dtypes.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/io/publish.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/comparing_sink.hpp"
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

namespace detail {

/// Orders the members for the file. @fails unsupported (an element type that the format lacks), mismatch (a reserved name, no UTF-8)
inline result<std::vector<std::size_t>> safetensors_order(const catalog& tensors, std::span<const std::size_t> members) {
  const auto entries = tensors.entries();
  std::vector<std::pair<std::size_t, std::size_t>> ranked;  // rank of the element type, position
  ranked.reserve(members.size());
  for (const std::size_t i : members) {
    const auto rank = safetensors_rank(entries[i].tensor.type());
    if (!rank)
      return failure{.code = errc::unsupported, .what = "safetensors has no element type " + std::string(name_of(entries[i].tensor.type())),
                     .place = "tensor " + quoted(entries[i].name), .advice = "cast it first"};
    std::size_t bad = 0;
    if (entries[i].name == "__metadata__" || !is_utf8(entries[i].name, bad))
      return failure{.code = errc::mismatch, .what = "a tensor cannot have this name in safetensors", .place = "tensor " + quoted(entries[i].name),
                     .expected = "UTF-8 text other than '__metadata__'"};
    ranked.emplace_back(*rank, i);
  }
  std::sort(ranked.begin(), ranked.end(), [&](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : entries[a.second].name < entries[b.second].name;
  });
  std::vector<std::size_t> order(ranked.size());
  std::transform(ranked.begin(), ranked.end(), order.begin(), [](const auto& r) { return r.second; });
  return order;
}

/// @fails mismatch (a key twice)
inline result<void> append_safetensors_metadata(std::string& json, safetensors_metadata metadata) {
  if (metadata.empty()) return {};
  std::sort(metadata.begin(), metadata.end());
  const auto twice = std::adjacent_find(metadata.begin(), metadata.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice != metadata.end())
    return failure{.code = errc::mismatch, .what = "the key " + quoted(twice->first) + " appears twice in the metadata", .expected = "unique keys"};
  json += "\"__metadata__\":{";
  for (std::size_t i = 0; i < metadata.size(); ++i) {
    if (i) json += ',';
    append_json_string(json, metadata[i].first);
    json += ':';
    append_json_string(json, metadata[i].second);
  }
  json += '}';
  return {};
}

}  // namespace detail

/// Lays out the tensors at the positions `members` of a catalog: element types in descending order of the reference
/// implementation's table (so that every tensor is aligned to its element), then names; the header is padded with spaces to a
/// multiple of 8. Metadata is sorted by key.
/// @fails mismatch (no tensors, a reserved name, a key twice), unsupported (an element type that the format lacks), limit (header too long)
inline result<safetensors_plan> plan_safetensors_part(const catalog& tensors, std::span<const std::size_t> members,
                                                      const safetensors_metadata& metadata = {}, const limits& bounds = {}) {
  if (members.empty()) return failure{.code = errc::mismatch, .what = "there are no tensors to write"};
  const auto entries = tensors.entries();
  safetensors_plan plan;
  TENSORSMITH_TRY(plan.order, detail::safetensors_order(tensors, members));
  plan.offsets.reserve(plan.order.size());
  std::string json = "{";
  TENSORSMITH_CHECK(detail::append_safetensors_metadata(json, metadata));
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
                   .expected = "at most " + std::to_string(bounds.safetensors_header_bytes) + " bytes", .found = std::to_string(json.size()),
                   .advice = "write several files (--shard-size), or raise limits::safetensors_header_bytes (--max-header)"};
  for (int i = 0; i < 8; ++i) plan.header += static_cast<char>(static_cast<unsigned char>(json.size() >> (8 * i)));
  plan.header += json;
  for (std::uint64_t& offset : plan.offsets) offset += plan.header.size();
  plan.size = plan.header.size() + at;
  return plan;
}

/// Lays out all tensors of a catalog. @fails as above
inline result<safetensors_plan> plan_safetensors(const catalog& tensors, const safetensors_metadata& metadata = {}, const limits& bounds = {}) {
  std::vector<std::size_t> all(tensors.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  return plan_safetensors_part(tensors, all, metadata, bounds);
}

/// The work of writing some planned files: one placement a recipe, with all of its outputs that are wanted.
class safetensors_work {
 public:
  explicit safetensors_work(const catalog& tensors) : tensors_(tensors) {}

  /// Adds what `plan` (of the same catalog) puts into `sink`. The header is not part of it.
  void add(const safetensors_plan& plan, byte_sink& sink) {
    for (std::size_t k = 0; k < plan.order.size(); ++k) {
      const catalog_entry& e = tensors_.entries()[plan.order[k]];
      const std::size_t outputs = e.tensor.source->outputs().size();
      std::size_t at = placements_.size();
      if (outputs > 1) {
        const auto known = first_.find(e.tensor.source.get());
        if (known != first_.end() && !placements_[known->second].slots[e.tensor.output].sink) at = known->second;
        else first_[e.tensor.source.get()] = at;  // new, or an output under two names
      }
      if (at == placements_.size()) placements_.push_back({e.tensor.source, std::vector<output_slot>(outputs), e.name});
      placements_[at].slots[e.tensor.output] = {&sink, plan.offsets[k]};
    }
  }
  const std::vector<placement>& placements() const& noexcept { return placements_; }
  std::vector<placement> placements() && noexcept { return std::move(placements_); }

 private:
  const catalog& tensors_;
  std::vector<placement> placements_;
  std::map<const recipe*, std::size_t> first_;  // the placement that was started for a recipe of several outputs
};

/// The work of writing one planned file.
inline std::vector<placement> safetensors_placements(const safetensors_plan& plan, const catalog& tensors, byte_sink& sink) {
  safetensors_work work(tensors);
  work.add(plan, sink);
  return std::move(work).placements();
}

/// One file of a set that is written together: its plan, and where its bytes go.
struct safetensors_output {
  const safetensors_plan* plan = nullptr;
  std::shared_ptr<output_file> file;
};

/// Produces the tensors of planned files, and their headers. With `verify`, everything is produced once more and compared with what
/// the files then hold. The sources are asked whether they changed meanwhile. Nothing is published.
/// @fails integrity (a source changed), internal (the comparison), io, no_space, cancelled, and what the recipes fail with
inline result<void> produce_safetensors(const catalog& tensors, std::span<const safetensors_output> files, bool verify, const job& run) {
  safetensors_work work(tensors);
  for (const safetensors_output& f : files) {
    TENSORSMITH_CHECK(f.file->write_at(0, std::as_bytes(std::span(f.plan->header))));
    work.add(*f.plan, *f.file);
  }
  TENSORSMITH_CHECK(execute(work.placements(), run));
  if (verify) {
    std::deque<comparing_sink> sinks;
    safetensors_work again(tensors);
    for (const safetensors_output& f : files) {
      TENSORSMITH_TRY(auto written, open_file(f.file->path(), f.file->name()));
      if (written->size() != f.plan->size)
        return failure{.code = errc::internal, .what = "the output has another length than planned", .file = f.file->name(),
                       .expected = std::to_string(f.plan->size) + " bytes", .found = std::to_string(written->size())};
      sinks.emplace_back(std::move(written));
      TENSORSMITH_CHECK(sinks.back().write_at(0, std::as_bytes(std::span(f.plan->header))));
      again.add(*f.plan, sinks.back());
    }
    if (auto same = execute(again.placements(), run); !same) {
      // A source that was changed between the two passes is the better explanation.
      TENSORSMITH_CHECK(check_sources_unchanged(work.placements()));
      return same;
    }
  }
  return check_sources_unchanged(work.placements());
}

/// What write_safetensors may be told.
struct safetensors_write_options {
  safetensors_metadata metadata{};  ///< diffusers and transformers write {"format": "pt"}
  bool force = false;               ///< replace an existing file
  bool verify = false;              ///< produce everything twice: written, then compared with the file before it is published
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
  const safetensors_output whole{&plan, file};
  TENSORSMITH_CHECK(produce_safetensors(tensors, {&whole, 1}, options.verify, run));
  TENSORSMITH_CHECK(output.commit());
  return safetensors_written{path, plan.size, tensors.size()};
}

TENSORSMITH_END_NAMESPACE
