// SPDX-License-Identifier: MIT
//
// tensorsmith/format/checkpoint/read.hpp: the tensors of a weights file, whatever container its bytes are.
//
// Include this where a user may name any file of weights. Contents decide, not extensions: a safetensors file called .ckpt is read
// as what it is. A `*.index.json` stands for the shards it lists.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/checkpoint/foreign.hpp"
#include "tensorsmith/format/gguf/read.hpp"
#include "tensorsmith/format/numpy/npy.hpp"
#include "tensorsmith/format/numpy/npz.hpp"
#include "tensorsmith/format/safetensors/sharded.hpp"
#include "tensorsmith/format/torch/read.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What holds the tensors of a file.
enum class weights_container : std::uint8_t { safetensors, torch, npy, npz, gguf };

/// "safetensors", "torch", "npy", "npz", "gguf".
constexpr std::string_view name_of(weights_container container) noexcept {
  constexpr std::string_view names[] = {"safetensors", "torch", "npy", "npz", "gguf"};
  return names[static_cast<std::size_t>(container)];
}

/// A file of weights and what it says about itself.
struct checkpoint_file {
  catalog tensors;
  std::vector<std::pair<std::string, std::string>> metadata;  ///< of a safetensors or GGUF header
  std::optional<std::int64_t> global_step;                    ///< steps of training, if a Lightning checkpoint tells
  std::vector<std::string> ignored;                           ///< parts of the file that are no weights
  weights_container container = weights_container::safetensors;
  std::string nested;                                         ///< the dict of a torch file that holds them: "state_dict"
  std::vector<std::pair<std::string, json_value>> scalars;    ///< beside that dict: "global_step" → 470000
};

namespace detail {

/// A file whose first bytes have been read: looking at what they show cannot meet an error of the disk, which would pass for a "no".
class head_source final : public byte_source {
 public:
  head_source(const byte_source& file, std::string_view head) : file_(file), head_(head) {}
  std::uint64_t size() const noexcept override { return file_.size(); }
  const std::string& name() const noexcept override { return file_.name(); }
  result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset > head_.size() || out.size() > head_.size() - offset) return file_.read_at(offset, out);  // a very long name in an archive
    std::memcpy(out.data(), head_.data() + offset, out.size());
    return {};
  }

 private:
  const byte_source& file_;
  std::string_view head_;
};

/// The container that a file's first bytes show, or nothing. Archives of arrays come before torch's: both are zip files.
inline std::optional<weights_container> container_of(const byte_source& file, std::string_view head) {
  if (looks_like_safetensors(file)) return weights_container::safetensors;
  if (looks_like_gguf(file)) return weights_container::gguf;
  if (looks_like_npy(file)) return weights_container::npy;
  if (looks_like_npz(file)) return weights_container::npz;
  if (torch_container_of(std::as_bytes(std::span(head))) != torch_container::none) return weights_container::torch;
  return std::nullopt;
}

inline result<checkpoint_file> read_safetensors_file(std::shared_ptr<const byte_source> file, job& run) {
  checkpoint_file out;
  TENSORSMITH_TRY(safetensors_header header, read_safetensors_header(*file, run.limits));
  out.metadata = header.metadata;
  for (const std::string& field : header.ignored_fields) out.ignored.push_back(field + ": no field of the format");
  TENSORSMITH_TRY(out.tensors, safetensors_catalog(std::move(file), std::move(header)));
  return out;
}

inline result<checkpoint_file> read_torch_file(std::shared_ptr<const byte_source> file, job& run, const std::string& select) {
  checkpoint_file out;
  out.container = weights_container::torch;
  TENSORSMITH_TRY(torch_checkpoint read, read_torch(std::move(file), run.limits, select));
  out.tensors = std::move(read.tensors);
  out.nested = std::move(read.selected);
  run.notes.insert(run.notes.end(), read.notes.begin(), read.notes.end());
  for (const torch_ignored& part : read.ignored) out.ignored.push_back(part.text());
  for (const auto& [key, value] : read.scalars)
    if (key == "global_step" && value.as_integer()) out.global_step = *value.as_integer();
  out.scalars = std::move(read.scalars);
  return out;
}

inline result<checkpoint_file> read_gguf_file(std::shared_ptr<const byte_source> file, job& run) {
  checkpoint_file out;
  out.container = weights_container::gguf;
  const std::string name = file->name();
  TENSORSMITH_TRY(gguf_contents read, read_gguf(std::move(file), run.limits));
  out.tensors = std::move(read.tensors);
  out.metadata = std::move(read.metadata);
  std::map<std::string, std::size_t> quantized;
  for (const auto& [tensor, type] : read.stored_types)
    if (type.substr(0, 1) == "Q") ++quantized[type];
  for (const auto& [type, count] : quantized)
    run.info(name, std::to_string(count) + " tensors of the type " + type + " are read as f32");
  return out;
}

inline result<checkpoint_file> read_npz_file(std::shared_ptr<const byte_source> file, job& run) {
  checkpoint_file out;
  out.container = weights_container::npz;
  TENSORSMITH_TRY(npz_contents read, read_npz(std::move(file), run.limits));
  out.tensors = std::move(read.tensors);
  out.ignored = std::move(read.ignored);
  run.notes.insert(run.notes.end(), read.notes.begin(), read.notes.end());
  return out;
}

inline result<checkpoint_file> read_npy_file(std::shared_ptr<const byte_source> file, job& run) {
  checkpoint_file out;
  out.container = weights_container::npy;
  TENSORSMITH_TRY(out.tensors, read_npy(std::move(file), run.limits));
  return out;
}

}  // namespace detail

/// Reads the names, types and shapes of a file's tensors. `select`: the dict of a torch file to read, keys joined with '/'; empty to find
/// it. @fails as the reader of the container; unsupported (no weights: what it is instead), usage (`select` for another container)
inline result<checkpoint_file> read_checkpoint(std::shared_ptr<const byte_source> file, job& run, const std::string& select = {}) {
  std::array<char, 512> bytes{};
  const std::string_view head(bytes.data(), static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), file->size())));
  TENSORSMITH_CHECK(file->read_at(0, std::as_writable_bytes(std::span(bytes).first(head.size()))));
  auto container = detail::container_of(detail::head_source(*file, head), head);
  // A damaged safetensors file must not be reported as something unknown: where contents tell nothing, the extension does.
  if (!container && ends_with_ignoring_case(file->name(), ".safetensors") && !foreign_file_of(head, file->name()))
    container = weights_container::safetensors;
  if (!container) return not_weights(*file, head);
  if (!select.empty() && *container != weights_container::torch)
    return failure{.code = errc::usage, .what = "only a torch file has parts to choose from", .file = file->name(),
                   .expected = "a torch file", .found = "a " + std::string(name_of(*container)) + " file"};
  switch (*container) {
    case weights_container::torch: return detail::read_torch_file(std::move(file), run, select);
    case weights_container::npy: return detail::read_npy_file(std::move(file), run);
    case weights_container::npz: return detail::read_npz_file(std::move(file), run);
    case weights_container::gguf: return detail::read_gguf_file(std::move(file), run);
    case weights_container::safetensors: break;
  }
  return detail::read_safetensors_file(std::move(file), run);
}

/// Reads an index of shards as one file. The first shard's metadata stand for all. @fails as join_shards and read_checkpoint
inline result<checkpoint_file> read_checkpoint_shards(const std::string& index_path, job& run) {
  checkpoint_file out;
  TENSORSMITH_TRY(const shard_index index, read_shard_index(index_path, run.limits));
  bool first = true;
  TENSORSMITH_TRY(out.tensors, join_shards(
      index,
      [&](std::shared_ptr<const byte_source> file) -> result<catalog> {
        const std::string name = file->name();
        TENSORSMITH_TRY(checkpoint_file part, read_checkpoint(std::move(file), run));
        for (const std::string& text : part.ignored) out.ignored.push_back(std::string(file_name(name)) + ": " + text);
        if (first) out.container = part.container, out.metadata = std::move(part.metadata);
        first = false;
        return std::move(part.tensors);
      },
      run));
  return out;
}

/// Opens and reads a file, or the shards of an index. @fails path, io, and as read_checkpoint
inline result<checkpoint_file> read_checkpoint_file(const std::string& path, job& run, const std::string& select = {}) {
  if (ends_with_ignoring_case(path, ".json")) {
    if (const std::string_view name = file_name(path); name == "model_index.json" || name == "config.json")
      return failure{.code = errc::usage, .what = "the file describes a model and holds no weights", .file = path,
                     .expected = "a file of weights, an index of shards, or a folder",
                     .advice = "pass the folder " + quoted(parent_path(path))};
    return read_checkpoint_shards(path, run);
  }
  TENSORSMITH_TRY(auto file, open_file(path));
  return read_checkpoint(std::move(file), run, select);
}

TENSORSMITH_END_NAMESPACE
