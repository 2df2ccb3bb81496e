// SPDX-License-Identifier: MIT
//
// tensorsmith/format/checkpoint/foreign.hpp: what a file is that was taken for weights and is none, and what to do about it.
//
// Included by format/checkpoint/read.hpp. The first bytes decide; only formats without a mark of their own go by the extension.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/io/path.hpp"
#include "tensorsmith/tensor/byte_io.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A kind of file that holds no weights this library reads.
struct foreign_file {
  std::string_view mark;    ///< its bytes at `offset`
  std::size_t offset = 0;
  std::string_view what;    ///< "a web page"
  std::string_view advice;
};

namespace detail {

inline constexpr std::string_view unpack_it = "unpack it and pass the file of weights inside";
inline constexpr std::string_view fetch_again = "download the file itself (the address of the file, not of the page about it)";

inline constexpr foreign_file foreign_files[] = {
    {"version https://git-lfs.github.com/", 0, "a pointer of Git LFS, not the file it stands for",
     "run 'git lfs pull' in the repository, or download the file from the site"},
    {std::string_view("7z\xBC\xAF\x27\x1C", 6), 0, "a 7z archive", unpack_it},
    {std::string_view("\x1F\x8B", 2), 0, "a gzip file", unpack_it},
    {std::string_view("Rar!\x1A\x07", 6), 0, "a RAR archive", unpack_it},
    {"BZh", 0, "a bzip2 file", unpack_it},
    {std::string_view("\xFD" "7zXZ\0", 6), 0, "an xz file", unpack_it},
    {std::string_view("\x28\xB5\x2F\xFD", 4), 0, "a Zstandard file", unpack_it},
    {std::string_view("\x89HDF\r\n\x1A\n", 8), 0, "an HDF5 file (Keras)", "pass the model's safetensors or torch file"},
    {"TFL3", 4, "a TensorFlow Lite model", "pass the model's safetensors or torch file"},
    {"PAR1", 0, "a Parquet table", "pass a file of weights"},
    {std::string_view("\x89PNG\r\n\x1A\n", 8), 0, "a PNG image", "pass a file of weights"},
    {std::string_view("\xFF\xD8\xFF", 3), 0, "a JPEG image", "pass a file of weights"},
    {"lmgg", 0, "a GGML file, the predecessor of GGUF", "convert it to GGUF with llama.cpp first"},
    {"fmgg", 0, "a GGML file, the predecessor of GGUF", "convert it to GGUF with llama.cpp first"},
    {"tjgg", 0, "a GGML file, the predecessor of GGUF", "convert it to GGUF with llama.cpp first"},
};

/// The start of a text file, white space and a byte order mark left out.
inline std::string_view trimmed_start(std::string_view head) noexcept {
  if (head.substr(0, 3) == "\xEF\xBB\xBF") head.remove_prefix(3);
  while (!head.empty() && (head[0] == ' ' || head[0] == '\n' || head[0] == '\r' || head[0] == '\t')) head.remove_prefix(1);
  return head;
}

inline bool starts_ignoring_case(std::string_view text, std::string_view start) noexcept {
  return text.size() >= start.size() && ends_with_ignoring_case(text.substr(0, start.size()), start);
}

/// ModelProto starts with ir_version (field 1, a small number) and a field of text or the graph.
inline bool looks_like_onnx(std::string_view head, std::string_view name) noexcept {
  const bool begins = head.size() > 3 && head[0] == '\x08' && head[1] > 0 && head[1] < 32 && (head[2] == '\x12' || head[2] == '\x3A');
  return begins && (ends_with_ignoring_case(name, ".onnx") || head[2] == '\x12');
}

}  // namespace detail

/// What a file is that no reader of weights knows, by its first bytes and its name; nothing if that is not known either.
inline std::optional<foreign_file> foreign_file_of(std::string_view head, std::string_view name) noexcept {
  for (const foreign_file& kind : detail::foreign_files)
    if (head.size() >= kind.offset && head.substr(kind.offset, kind.mark.size()) == kind.mark) return kind;
  const std::string_view text = detail::trimmed_start(head);
  for (const std::string_view page : {"<!doctype html", "<html", "<head", "<body", "<!--"})
    if (detail::starts_ignoring_case(text, page)) return foreign_file{page, 0, "a web page", detail::fetch_again};
  if (detail::starts_ignoring_case(text, "<?xml"))
    return foreign_file{"<?xml", 0, "an XML document, as servers answer with errors", detail::fetch_again};
  if (detail::looks_like_onnx(head, name))
    return foreign_file{"", 0, "an ONNX model", "pass the weights it was made from; an ONNX model is no source of weights"};
  if (ends_with_ignoring_case(name, ".msgpack"))
    return foreign_file{"", 0, "a Flax checkpoint", "pass the model's safetensors or torch file"};
  if (!text.empty() && (text[0] == '{' || text[0] == '['))
    return foreign_file{"", 0, "a JSON document", "pass the file of weights, the folder it lies in, or the *.index.json of shards"};
  if (head.size() >= 64 && std::all_of(head.begin(), head.end(), [](char c) { return c == '\0'; }))
    return foreign_file{"", 0, "a file that starts with zeros only, as unfinished downloads do", "download it again"};
  return std::nullopt;
}

/// The refusal of a file that is no container of weights. @pre its first bytes were read into `head`
inline failure not_weights(const byte_source& file, std::string_view head) {
  if (file.size() == 0)
    return failure{.code = errc::malformed, .what = "the file is empty", .file = file.name(), .expected = "a file of weights",
                   .found = "0 bytes", .advice = "download it again"};
  std::string bytes;
  for (const char c : head.substr(0, 8)) {
    bytes += bytes.empty() ? "" : " ";
    detail::append_hex(bytes, static_cast<unsigned char>(c), 2);
  }
  const auto kind = foreign_file_of(head, file.name());
  return failure{.code = errc::unsupported,
                 .what = kind ? "the file holds no weights: it is " + std::string(kind->what) : "the file is of no format that holds weights",
                 .file = file.name(), .place = "byte offset 0", .expected = "a safetensors, torch, npy, npz or GGUF file",
                 .found = std::to_string(file.size()) + " bytes that start with " + bytes,
                 .advice = kind ? std::string(kind->advice) : std::string()};
}

TENSORSMITH_END_NAMESPACE
