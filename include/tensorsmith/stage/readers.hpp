// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/readers.hpp: the readers that come with the library, as formats of `open<…>`.
#pragma once

#include <string>
#include <utility>

#include "tensorsmith/format/checkpoint/read.hpp"
#include "tensorsmith/format/diffusers/read.hpp"
#include "tensorsmith/format/diffusers/tag.hpp"
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/format/torch/tag.hpp"
#include "tensorsmith/stage/open.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// A file of weights as a package of one component without a name. @fails unsupported if its container is another one than `pickle` says.
inline result<package> open_weights_file(const std::string& path, bool pickle, job& run) {
  TENSORSMITH_TRY(checkpoint_file file, read_checkpoint_file(path, run));
  if (file.pickle != pickle)
    return failure{.code = errc::unsupported, .what = "the file is of another format than the chain opens", .file = path,
                   .expected = pickle ? "a torch file" : "a safetensors file", .found = pickle ? "a safetensors file" : "a torch file",
                   .advice = pickle ? "use open<safetensors_file>" : "use open<torch_file>"};
  package out;
  out.source = path;
  out.metadata = std::move(file.metadata);
  out.global_step = file.global_step;
  component whole;
  whole.weights = std::move(file.tensors);
  whole.ignored = std::move(file.ignored);
  out.components.push_back(std::move(whole));
  return out;
}

}  // namespace detail

/// A .safetensors file, or the `*.safetensors.index.json` of a sharded one.
template <>
struct reader<tags::safetensors_file> {
  static result<package> open(const std::string& path, job& run) { return detail::open_weights_file(path, false, run); }
};

/// A torch file (.ckpt, .pt, .pth, .bin): read as data, never executed.
template <>
struct reader<tags::torch_file> {
  static result<package> open(const std::string& path, job& run) { return detail::open_weights_file(path, true, run); }
};

/// A diffusers pipeline folder.
template <>
struct reader<tags::diffusers_folder> {
  static result<package> open(const std::string& path, job& run) { return read_diffusers_folder(path, {}, run); }
};

TENSORSMITH_END_NAMESPACE
