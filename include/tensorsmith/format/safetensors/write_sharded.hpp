// SPDX-License-Identifier: MIT
//
// tensorsmith/format/safetensors/write_sharded.hpp: a catalog as several safetensors files and the index that joins them.
//
// Include this for write_safetensors_sharded, or, to put such files into a folder of one's own (a component of a pipeline), for
// plan_sharded_safetensors and write_planned_shards. Names are those of transformers and diffusers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/safetensors/write.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The name of file `k` (from 0) of `count`: "model-00002-of-00003.safetensors"; "model.safetensors" if it is the only one. A variant
/// stands before the number: "model.fp16-00002-of-00003.safetensors", "model.fp16.safetensors".
inline std::string shard_file_name(std::string_view stem, std::string_view variant, std::size_t k, std::size_t count) {
  const auto five_digits = [](std::size_t n) {
    const std::string digits = std::to_string(n);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  std::string out(stem);
  if (!variant.empty()) out.append(".").append(variant);
  if (count > 1) out += "-" + five_digits(k + 1) + "-of-" + five_digits(count);
  return out + ".safetensors";
}

/// The name of the index: "model.safetensors.index.json"; with a variant "model.safetensors.index.fp16.json".
inline std::string shard_index_name(std::string_view stem, std::string_view variant) {
  return std::string(stem) + ".safetensors.index." + (variant.empty() ? std::string() : std::string(variant) + ".") + "json";
}

/// Which tensors (positions in the catalog) go into which file: in the catalog's order, a file is closed when the next tensor would
/// bring its payload above `max_bytes`; a tensor that is larger lies in a file of its own. 0: one file.
inline std::vector<std::vector<std::size_t>> plan_shards(const catalog& tensors, std::uint64_t max_bytes) {
  std::vector<std::vector<std::size_t>> shards;
  std::uint64_t filled = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::uint64_t bytes = tensors.entries()[i].tensor.info().bytes();
    if (shards.empty() || (max_bytes != 0 && (filled > max_bytes || bytes > max_bytes - filled))) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(i);
    filled += bytes;
  }
  return shards;
}

/// The index of planned shards: {"metadata": {"total_size": payload bytes}, "weight_map": {tensor: file}}, sorted by tensor.
inline std::string shard_index_text(const catalog& tensors, const std::vector<std::vector<std::size_t>>& shards, std::string_view stem,
                                    std::string_view variant) {
  std::vector<std::pair<std::string_view, std::size_t>> map;
  map.reserve(tensors.size());
  std::uint64_t total = 0;
  for (std::size_t k = 0; k < shards.size(); ++k)
    for (const std::size_t i : shards[k]) {
      map.emplace_back(tensors.entries()[i].name, k);
      total += tensors.entries()[i].tensor.info().bytes();
    }
  std::sort(map.begin(), map.end());
  std::string out = "{\n  \"metadata\": {\n    \"total_size\": " + std::to_string(total) + "\n  },\n  \"weight_map\": {";
  for (std::size_t i = 0; i < map.size(); ++i) {
    out += i ? ",\n    " : "\n    ";
    append_json_string(out, map[i].first);
    out += ": ";
    append_json_string(out, shard_file_name(stem, variant, map[i].second, shards.size()));
  }
  return out + "\n  }\n}\n";
}

/// The files of one catalog, laid out. An index only if there is more than one file.
struct sharded_safetensors_plan {
  std::vector<safetensors_plan> files;
  std::vector<std::string> names;  ///< of `files`
  std::string index_name, index_text;
  std::uint64_t bytes = 0;         ///< of all files and the index
};

/// How a catalog is cut and named.
struct shard_layout {
  std::string stem = "model";             ///< "model", "diffusion_pytorch_model"
  std::string variant{};                  ///< "fp16"; empty: none
  std::uint64_t max_shard_bytes = 5'000'000'000;  ///< payload of one file; 0: one file
};

/// Lays out all files of a catalog. @fails as plan_safetensors; usage (more files than readers of indexes accept)
inline result<sharded_safetensors_plan> plan_sharded_safetensors(const catalog& tensors, const shard_layout& layout,
                                                                 const safetensors_metadata& metadata = {}, const limits& bounds = {}) {
  if (tensors.empty()) return failure{.code = errc::mismatch, .what = "there are no tensors to write"};
  constexpr std::size_t most = 10'000;  // what format/safetensors/sharded.hpp reads
  const auto shards = plan_shards(tensors, layout.max_shard_bytes);
  if (shards.size() > most)
    return failure{.code = errc::usage, .what = "the shard size would make too many files", .expected = "at most " + std::to_string(most) + " files",
                   .found = std::to_string(shards.size()) + " of at most " + std::to_string(layout.max_shard_bytes) + " bytes",
                   .advice = "choose a larger --shard-size"};
  sharded_safetensors_plan out;
  for (std::size_t k = 0; k < shards.size(); ++k) {
    TENSORSMITH_TRY(auto file, plan_safetensors_part(tensors, shards[k], metadata, bounds));
    out.bytes += file.size;
    out.files.push_back(std::move(file));
    out.names.push_back(shard_file_name(layout.stem, layout.variant, k, shards.size()));
  }
  if (shards.size() > 1) {
    out.index_name = shard_index_name(layout.stem, layout.variant);
    out.index_text = shard_index_text(tensors, shards, layout.stem, layout.variant);
    out.bytes += out.index_text.size();
  }
  return out;
}

/// Writes planned files, and the index if there is one, into `folder` ("unet/"; empty: the top) of a folder that is being published.
/// A folder of many files is written a few files at a time, so that few of them are open.
/// @fails as produce_safetensors; mismatch (a name is taken), no_space, io
inline result<void> write_planned_shards(const catalog& tensors, const sharded_safetensors_plan& plan, std::string_view folder, bool verify,
                                         folder_publication& output, const job& run) {
  constexpr std::size_t together = 16;
  const bool few = plan.files.size() <= together;  // then they are brought to the disk all at once, with what else is published
  for (std::size_t first = 0; first < plan.files.size(); first += together) {
    std::vector<safetensors_output> files;
    for (std::size_t k = first; k < std::min(first + together, plan.files.size()); ++k) {
      TENSORSMITH_TRY(auto file, output.create(std::string(folder) + plan.names[k], plan.files[k].size));
      files.push_back({&plan.files[k], std::move(file)});
    }
    TENSORSMITH_CHECK(produce_safetensors(tensors, files, verify, run));
    if (few) continue;
    for (const safetensors_output& f : files) f.file->start_writeback();
    for (const safetensors_output& f : files) TENSORSMITH_CHECK(output.settle(f.file));
  }
  if (plan.index_name.empty()) return {};
  return output.write_text(std::string(folder) + plan.index_name, plan.index_text);
}

/// What write_safetensors_sharded may be told.
struct sharded_write_options {
  std::string stem = "model";
  std::string variant{};
  std::uint64_t max_shard_bytes = 5'000'000'000;  ///< payload of one file; 0: one file
  safetensors_metadata metadata{};                ///< of every file
  bool force = false;                             ///< replace an existing folder
  bool verify = false;                            ///< compare all files with what was written before they are published
  std::vector<std::string> sources{};             ///< paths that are being read: a folder that holds one of them is not replaced
};

/// What was written into a folder.
struct sharded_written {
  std::string path;                       ///< the folder
  std::vector<safetensors_written> files;  ///< paths in the folder
  std::string index;                      ///< name of the index; empty if one file was enough
  std::uint64_t bytes = 0;                ///< of all files and the index
  std::size_t tensors = 0;
};

/// Writes all tensors of a catalog as `folder`/STEM-0000k-of-0000n.safetensors and an index, or as STEM.safetensors alone if one
/// file is enough. The folder appears when it is complete and on the disk.
/// @fails as plan_sharded_safetensors; path (the folder exists), denied (force would delete a source), no_space, io, cancelled, …
inline result<sharded_written> write_safetensors_sharded(const catalog& tensors, const std::string& folder, const sharded_write_options& options,
                                                         const job& run) {
  TENSORSMITH_TRY(const auto plan, plan_sharded_safetensors(tensors, {options.stem, options.variant, options.max_shard_bytes},
                                                            options.metadata, run.limits));
  TENSORSMITH_TRY(auto output, folder_publication::begin(folder, {.force = options.force, .sources = options.sources}));
  if (const std::uint64_t free = os::free_space(output.staging_path()); free < plan.bytes)  // known before the first byte is written
    return failure{.code = errc::no_space, .what = "the output does not fit on the disk", .file = folder,
                   .expected = std::to_string(plan.bytes) + " bytes", .found = std::to_string(free) + " bytes free"};
  TENSORSMITH_CHECK(write_planned_shards(tensors, plan, {}, options.verify, output, run));
  TENSORSMITH_CHECK(output.commit());
  sharded_written out{folder, {}, plan.index_name, plan.bytes, tensors.size()};
  for (std::size_t k = 0; k < plan.files.size(); ++k) out.files.push_back({plan.names[k], plan.files[k].size, plan.files[k].order.size()});
  return out;
}

TENSORSMITH_END_NAMESPACE
