// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/write_weights.hpp: the containers of weights as ends of a chain: `… | cast<f16>() | write<safetensors_file>("m.safetensors")`.
//
// Needs no onnx. A package of several components becomes one file with names "component.tensor"; write<diffusers_folder> keeps them apart.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/format/diffusers/tag.hpp"
#include "tensorsmith/format/diffusers/write.hpp"
#include "tensorsmith/format/numpy/tag.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/format/safetensors/write_sharded.hpp"
#include "tensorsmith/format/torch/tag.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/stage/write.hpp"
#include "tensorsmith/tensor/joined.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// What one catalog in some files amounts to.
inline write_report weights_report(const catalog& tensors, std::vector<written_file> files) {
  write_report out;
  component_report part;
  part.weights = "copied";
  for (const catalog_entry& entry : tensors.entries()) {
    const tensor_info& info = entry.tensor.info();
    ++part.tensors;
    part.parameters += info.elements();
    part.weight_bytes += info.bytes();
    const std::string_view type = name_of(info.type);
    const auto known = std::find_if(part.dtypes.begin(), part.dtypes.end(), [&](const auto& d) { return d.first == type; });
    if (known == part.dtypes.end()) part.dtypes.emplace_back(type, 1);
    else ++known->second;
  }
  for (const written_file& file : files) out.total_bytes += file.bytes;
  part.files = std::move(files);
  out.components.push_back(std::move(part));
  return out;
}

/// The metadata of a package with those of the caller in front, and what transformers refuses a file without.
inline safetensors_metadata written_metadata(const package& in, safetensors_metadata own) {
  const auto add = [&](const std::string& key, const std::string& value) {
    if (std::none_of(own.begin(), own.end(), [&](const auto& pair) { return pair.first == key; })) own.emplace_back(key, value);
  };
  if (own.empty()) {
    own = in.metadata;
  } else {
    for (const auto& [key, value] : in.metadata) add(key, value);
  }
  add("format", "pt");
  return own;
}

}  // namespace detail

/// What write<safetensors_file> may be told. The package's metadata are written, and {"format": "pt"}.
struct safetensors_file_options {
  safetensors_metadata metadata{};  ///< beside the package's; of the same keys, these count
  /// Payload of one file. 0: `path` is one file. Else `path` is a folder of model-00001-of-0000n.safetensors with their index.
  std::uint64_t max_shard_bytes = 0;
  bool force = false;   ///< replace what exists
  bool verify = false;  ///< compare with what was written before it is published
};

/// One safetensors file, or a folder of shards.
template <>
struct writer<tags::safetensors_file> {
  using input = package;
  using options = safetensors_file_options;
  static result<write_report> write(const package& in, const std::string& path, const options& how, job& run) {
    TENSORSMITH_TRY(const catalog tensors, joined_catalog(in));
    safetensors_metadata metadata = detail::written_metadata(in, how.metadata);
    if (how.max_shard_bytes == 0) {
      TENSORSMITH_TRY(const safetensors_written file,
                      write_safetensors(tensors, path, {.metadata = std::move(metadata), .force = how.force, .verify = how.verify}, run));
      return detail::weights_report(tensors, {{path, file.bytes, false}});
    }
    TENSORSMITH_TRY(const sharded_written done, write_safetensors_sharded(tensors, path,
                                                                          {.max_shard_bytes = how.max_shard_bytes,
                                                                           .metadata = std::move(metadata),
                                                                           .force = how.force,
                                                                           .verify = how.verify,
                                                                           .sources = {in.source}},
                                                                          run));
    std::vector<written_file> files;
    std::uint64_t rest = done.bytes;
    for (const safetensors_written& file : done.files) {
      files.push_back({file.path, file.bytes, false});
      rest -= file.bytes;
    }
    if (!done.index.empty()) files.push_back({done.index, rest, false});
    return detail::weights_report(tensors, std::move(files));
  }
};

/// A torch checkpoint. One that came from a Lightning checkpoint keeps its `state_dict` and the numbers beside it, unless the options say otherwise.
template <>
struct writer<tags::torch_file> {
  using input = package;
  using options = torch_write_options;
  static result<write_report> write(const package& in, const std::string& path, options how, job& run) {
    TENSORSMITH_TRY(const catalog tensors, joined_catalog(in));
    if (how.nested.empty() && how.scalars.empty() && in.nested == "state_dict" && !in.scalars.empty()) {
      how.nested = in.nested;
      how.scalars = in.scalars;
    }
    TENSORSMITH_TRY(const std::uint64_t bytes, write_torch(tensors, path, run, how));
    return detail::weights_report(tensors, {{path, bytes, false}});
  }
};

/// A .npz archive. @fails unsupported for element types that NumPy lacks (bf16, 8-bit floats)
template <>
struct writer<tags::npz_file> {
  using input = package;
  using options = npz_write_options;
  static result<write_report> write(const package& in, const std::string& path, const options& how, job& run) {
    TENSORSMITH_TRY(const catalog tensors, joined_catalog(in));
    TENSORSMITH_TRY(const std::uint64_t bytes, write_npz(tensors, path, run, how));
    return detail::weights_report(tensors, {{path, bytes, false}});
  }
};

/// A pipeline's folder, as diffusers loads it. The package needs configurations: it comes from such a folder, or a single file was
/// recognised (recognize_stable_diffusion in arch/stable_diffusion_open.hpp).
template <>
struct writer<tags::diffusers_folder> {
  using input = package;
  using options = diffusers_write_options;
  static result<write_report> write(const package& in, const std::string& path, const options& how, job& run) {
    return write_diffusers_folder(in, path, how, run);
  }
};

TENSORSMITH_END_NAMESPACE
