// SPDX-License-Identifier: MIT
//
// tensorsmith/format/safetensors/sharded.hpp: models cut into several files by an index: weight_map, tensor name → file name.
//
// Include this to read `*.safetensors.index.json`. read_shard_index and join_shards serve `*.bin.index.json` as well, which has
// the same form.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/safetensors/read.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The contents of an index: which tensor lies in which file of the same folder.
struct shard_index {
  std::string path;                 ///< the index file, as the user gave it
  std::vector<std::string> shards;  ///< file names in the index's folder, sorted
  std::vector<std::pair<std::string, std::uint32_t>> tensors;  ///< name and position in `shards`, sorted by name
  std::optional<std::uint64_t> total_size;                     ///< metadata.total_size: bytes of all tensors
  std::shared_ptr<const steady_folder> folder{};               ///< the folder that the index was read from

  /// The path of shard `k`.
  std::string shard_path(std::size_t k) const {
    return path.find('/') == std::string::npos ? shards[k] : join_path(parent_path(path), shards[k]);
  }
};

namespace detail {

/// Collects weight_map and metadata.total_size.
class shard_index_handler {
 public:
  shard_index_handler(shard_index& index, const limits& bounds) : index_(index), bounds_(bounds) {}

  bool null(json_cursor& c) { return other("null", c); }
  bool boolean(bool, json_cursor& c) { return other("a boolean", c); }
  bool integer(std::int64_t, json_cursor& c) { return other("a negative integer", c); }
  bool number(double value, json_cursor& c) {
    // Some writers divide and store 1.2e10 as a floating number.
    if (at_total_size(c) && value >= 0 && value < 9e18) return index_.total_size = static_cast<std::uint64_t>(value), true;
    return other("a number", c);
  }
  bool natural(std::uint64_t value, json_cursor& c) {
    if (at_total_size(c)) return index_.total_size = value, true;
    return other("an integer", c);
  }
  bool string(std::string& value, json_cursor& c) {
    if (!in_map(c)) return other("a string", c);
    if (const auto fine = check_relative_path(value, index_.path, c.place(), false); !fine)
      return c.fail(errc::path, fine.error().what, fine.error().expected);
    if (index_.tensors.size() >= bounds_.tensors)
      return c.fail(errc::limit, "the index has too many tensors", "at most " + std::to_string(bounds_.tensors), {},
                    "raise limits::tensors (--max-tensors) if you trust it");
    shard_of_.push_back({std::string(c.key(1)), shard_number(value)});
    constexpr std::size_t most_shards = 10'000;  // published models have below 200
    if (names_.size() > most_shards)
      return c.fail(errc::limit, "the index names too many files", "at most " + std::to_string(most_shards));
    return true;
  }
  bool key(std::string& name, json_cursor& c) {
    if (c.depth() == 1) map_ = name == "weight_map", metadata_ = name == "metadata";
    found_ = found_ || (c.depth() == 1 && map_);
    return true;
  }
  bool start_object(json_cursor& c) { return (c.depth() == 2 && map_) || c.depth() == 1 || other("an object", c, 1); }
  bool start_array(json_cursor& c) { return other("an array", c, 1); }
  bool end_object(json_cursor&) { return true; }
  bool end_array(json_cursor&) { return true; }

  /// Sorts the shards and the tensors. @fails malformed
  result<void> finish() {
    if (!found_ || shard_of_.empty())
      return failure{.code = errc::malformed, .what = found_ ? "the index lists no tensor" : "the index has no weight_map",
                     .file = index_.path, .expected = "\"weight_map\": {tensor name: file name}"};
    std::vector<std::uint32_t> position(names_.size());
    for (const auto& [name, number] : names_) {
      position[number] = static_cast<std::uint32_t>(index_.shards.size());
      index_.shards.push_back(name);
    }
    index_.tensors = std::move(shard_of_);
    for (auto& [name, shard] : index_.tensors) shard = position[shard];
    std::sort(index_.tensors.begin(), index_.tensors.end());
    return {};
  }

 private:
  bool in_map(const json_cursor& c) const noexcept { return map_ && c.depth() == 2; }
  bool at_total_size(const json_cursor& c) const noexcept { return metadata_ && c.depth() == 2 && c.key(1) == "total_size"; }

  bool other(std::string_view found, json_cursor& c, std::size_t opened = 0) {
    const std::size_t depth = c.depth() - opened;
    if (depth == 0) return c.fail(errc::malformed, "the index is no JSON object", "an object", std::string(found));
    if (map_)
      return c.fail(errc::malformed, depth == 1 ? "weight_map is no object" : "a value of weight_map is no file name",
                    depth == 1 ? "an object" : "a string", std::string(found));
    return true;  // other fields are free
  }

  /// The number of a shard, in the order of first mention. Sorted, so that no choice of names makes this slow.
  std::uint32_t shard_number(const std::string& name) {
    if (last_ < names_.size() && names_[last_].first == name) return names_[last_].second;
    const auto at = std::lower_bound(names_.begin(), names_.end(), name, [](const auto& a, const std::string& b) { return a.first < b; });
    last_ = static_cast<std::size_t>(at - names_.begin());
    if (at == names_.end() || at->first != name) names_.insert(at, {name, static_cast<std::uint32_t>(names_.size())});
    return names_[last_].second;
  }

  shard_index& index_;
  const limits& bounds_;
  std::vector<std::pair<std::string, std::uint32_t>> shard_of_;
  std::vector<std::pair<std::string, std::uint32_t>> names_;  // sorted; second: order of first mention
  std::size_t last_ = 0;
  bool map_ = false, metadata_ = false, found_ = false;
};

/// "3 of them: 'a', 'b', 'c'" with at most ten names.
inline std::string listed(const std::vector<std::string>& names) {
  std::string out = std::to_string(names.size()) + ": ";
  for (std::size_t i = 0; i < names.size() && i < 10; ++i) out += (i ? ", " : "") + quoted(names[i]);
  return names.size() > 10 ? out + ", …" : out;
}

/// Refuses an index whose files are not all there, naming those that are missing.
inline result<void> check_shards_exist(const shard_index& index) {
  std::vector<std::string> missing;
  for (std::size_t k = 0; k < index.shards.size(); ++k)
    if (!os::is_regular_file(index.shard_path(k))) missing.push_back(index.shards[k]);
  if (missing.empty()) return {};
  return failure{.code = errc::mismatch, .what = "files that the index names are missing", .file = index.path, .place = "/weight_map",
                 .expected = std::to_string(index.shards.size()) + " files", .found = "missing " + listed(missing),
                 .advice = "download the missing files into the same folder"};
}

}  // namespace detail

/// The contents of an index that lies at `path`, from its text. @fails malformed, limit, path (a file name that leaves the folder)
inline result<shard_index> parse_shard_index(std::string_view text, const std::string& path, const limits& bounds = {}) {
  shard_index out;
  out.path = path;
  detail::shard_index_handler handler(out, bounds);
  TENSORSMITH_CHECK(walk_json(text, path, handler, {.depth = bounds.json_depth}));
  TENSORSMITH_CHECK(handler.finish());
  return out;
}

/// Reads an index. Nothing else is opened. @fails malformed, limit, path (a file name that leaves the folder), io
inline result<shard_index> read_shard_index(const std::string& path, const limits& bounds = {}) {
  TENSORSMITH_TRY(auto folder, steady_folder::begin(std::string(parent_path(path))));
  TENSORSMITH_TRY(const auto file, open_file(path));
  TENSORSMITH_TRY(const std::string text, read_text(*file, bounds.index_bytes, "limits::index_bytes (--max-index)"));
  TENSORSMITH_TRY(shard_index out, parse_shard_index(text, path, bounds));
  out.folder = std::make_shared<const steady_folder>(std::move(folder));
  return out;
}

/// Opens every shard with `open(std::shared_ptr<const byte_source>) -> result<catalog>` and joins them: shard by shard, each in its own
/// order. Every tensor of the index must lie in the shard it names, and every tensor of a shard in the index.
/// @fails mismatch, path, and what `open` fails with
template <class OpenShard>
result<catalog> join_shards(const shard_index& index, OpenShard&& open, job& run) {
  TENSORSMITH_CHECK(detail::check_shards_exist(index));
  const std::string folder(index.path.find('/') == std::string::npos ? std::string_view(".") : parent_path(index.path));
  std::vector<catalog_entry> planned;
  std::vector<std::string> absent, unlisted;
  std::vector<bool> found(index.tensors.size(), false);
  std::uint64_t bytes = 0;
  const auto descriptors = std::make_shared<descriptor_pool>();  // a model may have more shards than a process may open files
  for (std::size_t k = 0; k < index.shards.size(); ++k) {
    TENSORSMITH_TRY(auto file, open_file_below(folder, index.shards[k], index.path, false, descriptors));
    TENSORSMITH_TRY(const catalog part, open(std::move(file)));
    bytes += part.bytes();
    for (const catalog_entry& e : part.entries()) {
      const auto at = std::lower_bound(index.tensors.begin(), index.tensors.end(), e.name,
                                       [](const auto& listed, const std::string& name) { return listed.first < name; });
      if (at == index.tensors.end() || at->first != e.name || at->second != k) {
        unlisted.push_back(index.shards[k] + ": " + e.name);
        continue;
      }
      found[static_cast<std::size_t>(at - index.tensors.begin())] = true;
      planned.push_back(e);
    }
  }
  if (index.folder) TENSORSMITH_CHECK(index.folder->check());
  for (std::size_t i = 0; i < found.size(); ++i)
    if (!found[i]) absent.push_back(index.shards[index.tensors[i].second] + ": " + index.tensors[i].first);
  const auto refuse = [&](std::string what, const std::vector<std::string>& names) {
    return failure{.code = errc::mismatch, .what = std::move(what), .file = index.path, .place = "/weight_map",
                   .found = detail::listed(names), .advice = "the index and its files are of different models; download them together"};
  };
  if (!absent.empty()) return refuse("tensors of the index are not in the files it names", absent);
  if (!unlisted.empty()) return refuse("tensors of the files are not listed for them in the index", unlisted);
  if (index.total_size && *index.total_size != bytes)
    run.info(index.path, "metadata.total_size says " + std::to_string(*index.total_size) + " bytes, the tensors have " + std::to_string(bytes));
  catalog out;
  TENSORSMITH_CHECK(out.add_all(std::move(planned)));
  return out;
}

/// Opens a sharded safetensors model by its index file.
inline result<catalog> read_sharded_safetensors(const std::string& index_path, job& run) {
  TENSORSMITH_TRY(const shard_index index, read_shard_index(index_path, run.limits));
  return join_shards(index, [&](std::shared_ptr<const byte_source> file) { return read_safetensors(std::move(file), run); }, run);
}

TENSORSMITH_END_NAMESPACE
