// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/write.hpp: the tail of a chain: `… | write<onnx_folder>("out/sd15")`.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/format/onnx/tag.hpp"
#include "tensorsmith/format/onnx/write.hpp"
#include "tensorsmith/stage/misplaced.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How a format is written. Specialise it for a tag: `options`, `input` and
/// `static result<write_report> write(const input&, const std::string& path, const options&, job&)`.
template <class Format>
struct writer;

/// A format that can be written: its writer is complete.
template <class Format>
concept writable_format = requires(const typename writer<Format>::input& in, const std::string& path,
                                   const typename writer<Format>::options& how, job& run) {
  { writer<Format>::write(in, path, how, run) } -> std::same_as<result<write_report>>;
};

/// A pipeline folder of ONNX graphs.
template <>
struct writer<tags::onnx_folder> {
  using input = bundle;
  using options = onnx_write_options;
  static result<write_report> write(const bundle& in, const std::string& path, const options& how, job& run) {
    return write_onnx_folder(in, path, how, run);
  }
};

/// Writes what flows in; complete or not at all.
template <class Format>
struct write_stage {
  using input = typename writer<Format>::input;
  using output = write_report;
  static constexpr std::string_view name = "write";

  std::string path;
  typename writer<Format>::options how;

  result<write_report> run(input in, job& run) const { return writer<Format>::write(in, path, how, run); }
};

namespace detail {

/// The options of a writer, or an empty struct for a format that has none: so that the assertion in `write` gets its say.
template <class Format>
struct options_of { struct type {}; };
template <writable_format Format>
struct options_of<Format> { using type = typename writer<Format>::options; };

}  // namespace detail

/// Stage: writes `path` in the given format. @fails as the format's writer
template <class Format>
auto write(std::string path, typename detail::options_of<Format>::type how = {}) {
  static_assert(writable_format<Format>,
                "tensorsmith: write<Format> has no writer for this format; use tags::onnx_folder, or specialise tensorsmith::writer "
                "for your own tag");
  if constexpr (writable_format<Format>) return write_stage<Format>{std::move(path), std::move(how)};
}

TENSORSMITH_END_NAMESPACE
