// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/write.hpp: the tail of a chain: `… | write<onnx_folder>("out/sd15")`.
//
// Include stage/write_onnx.hpp or stage/write_weights.hpp for the formats that come with the library.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How a format is written. Specialise it for a tag: `options`, `input` and
/// `static result<R> write(const input&, const std::string& path, const options&, job&)`, where R says what was written.
template <class Format>
struct writer;

/// A format that can be written: its writer is complete.
template <class Format>
concept writable_format = requires(const typename writer<Format>::input& in, const std::string& path,
                                   const typename writer<Format>::options& how, job& run) {
  typename decltype(writer<Format>::write(in, path, how, run))::value_type;
};

/// Writes what flows in; complete or not at all.
template <class Format>
struct write_stage {
  using input = typename writer<Format>::input;
  using output = typename decltype(writer<Format>::write(std::declval<const input&>(), std::declval<const std::string&>(),
                                                         std::declval<const typename writer<Format>::options&>(), std::declval<job&>()))::value_type;
  static constexpr std::string_view name = "write";

  std::string path;
  typename writer<Format>::options how;

  result<output> run(input in, job& run) const { return writer<Format>::write(in, path, how, run); }
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
                "tensorsmith: write<Format> has no writer for this format; include tensorsmith/stage/write_weights.hpp or write_onnx.hpp, or "
                "specialise tensorsmith::writer for your own tag");
  if constexpr (writable_format<Format>) return write_stage<Format>{std::move(path), std::move(how)};
}

TENSORSMITH_END_NAMESPACE
