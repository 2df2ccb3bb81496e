// SPDX-License-Identifier: MIT
//
// Fuzzing parse_shard_index: an accepted index names files of its folder only; written as JSON it is read again as the same.
#include <algorithm>

#include "fuzz/property.hpp"
#include "tensorsmith/format/safetensors/sharded.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace tensorsmith;
  const fuzz::memory_bound bound(size);
  const auto index = parse_shard_index(fuzz::as_text({data, size}), "models/m.safetensors.index.json", fuzz::limits_for(size));
  if (!index) return fuzz::check_refusal(index.error()), 0;
  for (const std::string& shard : index->shards)
    if (shard.empty() || shard == "." || shard == ".." || shard.find_first_of(std::string_view("/\\\0", 3)) != shard.npos)
      fuzz::violated("a shard is a file of the folder", quoted(shard));
  if (!std::is_sorted(index->shards.begin(), index->shards.end()) || !std::is_sorted(index->tensors.begin(), index->tensors.end()))
    fuzz::violated("shards and tensors are sorted", "");
  json_value map, metadata;
  json_value::object names;
  for (const auto& [name, shard] : index->tensors) {
    if (shard >= index->shards.size()) fuzz::violated("a tensor's shard exists", quoted(name));
    names.emplace_back(name, json_value(index->shards[shard]));
  }
  json_value document;
  if (index->total_size && *index->total_size <= static_cast<std::uint64_t>(INT64_MAX)) {
    metadata.set("total_size", *index->total_size);
    document.set("metadata", metadata);
  }
  document.set("weight_map", json_value(std::move(names)));
  const auto again = parse_shard_index(write_json(document), index->path);
  if (!again) fuzz::violated("a written index can be read", again.error().message());
  if (again->shards != index->shards || again->tensors != index->tensors) fuzz::violated("an index stays", std::to_string(index->tensors.size()));
  if (document.find("metadata") && again->total_size != index->total_size) fuzz::violated("total_size stays", std::to_string(*index->total_size));
  return 0;
}
