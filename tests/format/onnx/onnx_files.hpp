// SPDX-License-Identifier: MIT
//
// tests/format/onnx/onnx_files.hpp: the bytes of a planned file.
#pragma once

#include <string>
#include <variant>

#include "tensorsmith/format/onnx/update.hpp"

namespace support {

/// What the file will hold; empty if a piece cannot be produced.
inline std::string bytes_of(const tensorsmith::planned_file& file) {
  namespace ts = tensorsmith;
  std::string out(static_cast<std::size_t>(file.size), '\0');
  const auto raw = std::as_writable_bytes(std::span(out));
  if (file.unchanged) return file.unchanged->read_at(0, raw) ? out : std::string();
  for (const ts::planned_piece& piece : file.pieces) {
    if (const auto* text = std::get_if<std::string>(&piece.what)) {
      out.replace(static_cast<std::size_t>(piece.at), text->size(), *text);
      continue;
    }
    const auto bytes = ts::materialize(std::get<ts::tensor_ref>(piece.what), {});
    if (!bytes || bytes->size() != piece.length) return {};
    std::copy(bytes->begin(), bytes->end(), raw.begin() + static_cast<std::ptrdiff_t>(piece.at));
  }
  return out;
}

}  // namespace support
