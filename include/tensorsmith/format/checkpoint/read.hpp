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
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/safetensors/sharded.hpp"
#include "tensorsmith/format/torch/read.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A file of weights and what it says about itself.
struct checkpoint_file {
  catalog tensors;
  std::vector<std::pair<std::string, std::string>> metadata;  ///< of a safetensors header
  std::optional<std::int64_t> global_step;                    ///< steps of training, if a Lightning checkpoint tells
  std::vector<std::string> ignored;                           ///< parts of the file that are no weights
  bool pickle = false;                                        ///< torch's container
};

namespace detail {

/// True if the bytes are those of no container that torch ever wrote.
inline bool is_no_torch_file(const byte_source& file) {
  std::array<std::byte, 264> head{};
  const auto start = std::span(head).first(static_cast<std::size_t>(std::min<std::uint64_t>(head.size(), file.size())));
  return file.read_at(0, start) && torch_container_of(start) == torch_container::none;
}

}  // namespace detail

/// Reads the names, types and shapes of a file's tensors. @fails as the readers of the two containers
inline result<checkpoint_file> read_checkpoint(std::shared_ptr<const byte_source> file, job& run) {
  checkpoint_file out;
  // A damaged safetensors file must not be reported as a damaged torch file: where contents tell nothing, the extension does.
  const bool safetensors = looks_like_safetensors(*file);
  const bool neither = !safetensors && detail::is_no_torch_file(*file);
  if (neither && !ends_with_ignoring_case(file->name(), ".safetensors"))
    return failure{.code = errc::unsupported, .what = "the file is neither a safetensors nor a torch file", .file = file->name(),
                   .place = "byte offset 0", .expected = "a safetensors header or a zip archive of torch.save",
                   .found = std::to_string(file->size()) + " bytes of something else"};
  if (safetensors || neither) {
    TENSORSMITH_TRY(safetensors_header header, read_safetensors_header(*file, run.limits));
    out.metadata = header.metadata;
    for (const std::string& field : header.ignored_fields) out.ignored.push_back(field + ": no field of the format");
    TENSORSMITH_TRY(out.tensors, safetensors_catalog(std::move(file), std::move(header)));
    return out;
  }
  out.pickle = true;
  TENSORSMITH_TRY(torch_checkpoint read, read_torch(std::move(file), run.limits));
  out.tensors = std::move(read.tensors);
  run.notes.insert(run.notes.end(), read.notes.begin(), read.notes.end());
  for (const torch_ignored& part : read.ignored) out.ignored.push_back(part.text());
  for (const auto& [key, value] : read.scalars)
    if (key == "global_step" && value.as_integer()) out.global_step = *value.as_integer();
  return out;
}

/// Opens and reads a file, or the shards of an index. @fails path, io, and as read_checkpoint
inline result<checkpoint_file> read_checkpoint_file(const std::string& path, job& run) {
  if (path.size() > 5 && path.substr(path.size() - 5) == ".json") {
    checkpoint_file out;
    TENSORSMITH_TRY(const shard_index index, read_shard_index(path, run.limits));
    TENSORSMITH_TRY(out.tensors, join_shards(
        index,
        [&](std::shared_ptr<const byte_source> file) -> result<catalog> {
          TENSORSMITH_TRY(checkpoint_file part, read_checkpoint(std::move(file), run));
          out.pickle = part.pickle;
          return std::move(part.tensors);
        },
        run));
    return out;
  }
  TENSORSMITH_TRY(auto file, open_file(path));
  return read_checkpoint(std::move(file), run);
}

TENSORSMITH_END_NAMESPACE
