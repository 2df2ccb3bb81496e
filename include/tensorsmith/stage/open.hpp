// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/open.hpp: the head of a chain: `open<safetensors_file>("model.safetensors") | …`.
//
// Include stage/readers.hpp for the formats that come with the library.
#pragma once

#include <concepts>
#include <memory>
#include <string>
#include <utility>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How a format is opened. Specialise it for a tag to add a format: `static result<package> open(const std::string& path, job&)`.
/// A folder of components gives them under their names; a single file gives one component without a name.
template <class Format>
struct reader;

/// A format that can be opened: its reader is complete.
template <class Format>
concept readable_format = requires(const std::string& path, job& run) {
  { reader<Format>::open(path, run) } -> std::same_as<result<package>>;
};

/// Opens `path`; no weight is read. The job (limits, threads, memory, progress) serves all stages of the chain.
/// @fails as the format's reader
template <class Format>
chain<package> open(const std::string& path, std::shared_ptr<job> run = std::make_shared<job>()) {
  static_assert(readable_format<Format>,
                "tensorsmith: open<Format> has no reader for this format; include tensorsmith/stage/readers.hpp, or specialise "
                "tensorsmith::reader for your own tag");
  if constexpr (readable_format<Format>) {
    auto opened = reader<Format>::open(path, *run);
    return {std::move(opened), std::move(run)};
  } else {
    return {failure{}, nullptr};
  }
}

TENSORSMITH_END_NAMESPACE
