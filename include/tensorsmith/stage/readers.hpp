// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/readers.hpp: the readers that come with the library, as formats of `open<…>`.
#pragma once

#include <string>
#include <utility>

#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/format/checkpoint/tag.hpp"
#include "tensorsmith/format/diffusers/read.hpp"
#include "tensorsmith/format/diffusers/tag.hpp"
#include "tensorsmith/format/gguf/tag.hpp"
#include "tensorsmith/format/numpy/tag.hpp"
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/format/torch/tag.hpp"
#include "tensorsmith/stage/open.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// A file of weights as a package of one component without a name. @fails unsupported if its container is another one
inline result<package> open_weights_file(const std::string& path, weights_container wanted, job& run) {
  TENSORSMITH_TRY(checkpoint_file file, read_checkpoint_file(path, run));
  if (file.container != wanted)
    return failure{.code = errc::unsupported, .what = "the file is of another format than the chain opens", .file = path,
                   .expected = "a " + std::string(name_of(wanted)) + " file", .found = "a " + std::string(name_of(file.container)) + " file",
                   .advice = "use open<" + std::string(name_of(file.container)) + "_file>, or open<weights_file> for any of them"};
  return package_of(std::move(file), path);
}

}  // namespace detail

/// A .safetensors file, or the `*.safetensors.index.json` of a sharded one.
template <>
struct reader<tags::safetensors_file> {
  static result<package> open(const std::string& path, job& run) { return detail::open_weights_file(path, weights_container::safetensors, run); }
};

/// A torch file (.ckpt, .pt, .pth, .bin): read as data, never executed.
template <>
struct reader<tags::torch_file> {
  static result<package> open(const std::string& path, job& run) { return detail::open_weights_file(path, weights_container::torch, run); }
};

/// A .npz archive of NumPy arrays.
template <>
struct reader<tags::npz_file> {
  static result<package> open(const std::string& path, job& run) { return detail::open_weights_file(path, weights_container::npz, run); }
};

/// One NumPy array, as a tensor with the file's name.
template <>
struct reader<tags::npy_file> {
  static result<package> open(const std::string& path, job& run) { return detail::open_weights_file(path, weights_container::npy, run); }
};

/// A GGUF file; its Q8_0 and Q4_0 tensors become f32.
template <>
struct reader<tags::gguf_file> {
  static result<package> open(const std::string& path, job& run) { return detail::open_weights_file(path, weights_container::gguf, run); }
};

/// Weights in whatever form: see open_weights.
template <>
struct reader<tags::weights_file> {
  static result<package> open(const std::string& path, job& run) { return open_weights(path, {}, run); }
};

/// A diffusers pipeline folder.
template <>
struct reader<tags::diffusers_folder> {
  static result<package> open(const std::string& path, job& run) { return read_diffusers_folder(path, {}, run); }
};

TENSORSMITH_END_NAMESPACE
