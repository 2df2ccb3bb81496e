// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/wire.hpp: the few pieces of protobuf's wire format that frame weights which never pass through
// protobuf.
#pragma once

#include <cstdint>
#include <string>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Appends a base-128 varint.
inline void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}

/// Bytes of a varint.
constexpr std::uint64_t varint_size(std::uint64_t value) noexcept {
  std::uint64_t bytes = 1;
  for (; value >= 0x80; value >>= 7) ++bytes;
  return bytes;
}

/// Appends the head of a length-delimited field; its `length` bytes follow. @pre field < 16 (one byte of tag)
inline void append_field_head(std::string& out, std::uint32_t field, std::uint64_t length) {
  out += static_cast<char>(field << 3 | 2U);
  append_varint(out, length);
}

/// Bytes of such a field, head included.
constexpr std::uint64_t field_size(std::uint64_t length) noexcept { return 1 + varint_size(length) + length; }

}  // namespace detail

TENSORSMITH_END_NAMESPACE
