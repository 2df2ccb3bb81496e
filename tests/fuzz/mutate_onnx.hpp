// SPDX-License-Identifier: MIT
//
// tests/fuzz/mutate_onnx.hpp: protobuf messages changed inside: a field of a field, with the lengths around it set right again.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuzz/mutate.hpp"

namespace fuzz {

/// One field as it is stored; `content` without tag and length.
struct proto_field {
  std::uint64_t tag = 0;
  std::string content;
};

inline std::string proto_varint(std::uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  return out + static_cast<char>(value);
}
inline bool take_varint(std::string_view text, std::size_t& at, std::uint64_t& value) {
  value = 0;
  for (unsigned shift = 0; shift < 64 && at < text.size(); shift += 7) {
    const auto byte = static_cast<unsigned char>(text[at++]);
    value |= std::uint64_t{byte & 0x7FU} << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

/// The fields of a message; false if it is none.
inline bool take_fields(std::string_view text, std::vector<proto_field>& out) {
  for (std::size_t at = 0; at < text.size();) {
    proto_field f;
    std::uint64_t length = 0;
    if (!take_varint(text, at, f.tag) || f.tag >> 3 == 0) return false;
    const std::size_t begin = at;
    switch (f.tag & 7) {
      case 0:
        if (!take_varint(text, at, length)) return false;
        f.content = std::string(text.substr(begin, at - begin));
        break;
      case 1: length = 8; break;
      case 5: length = 4; break;
      case 2:
        if (!take_varint(text, at, length)) return false;
        break;
      default: return false;
    }
    if ((f.tag & 7) != 0) {
      if (length > text.size() - at) return false;
      f.content = std::string(text.substr(at, static_cast<std::size_t>(length)));
      at += static_cast<std::size_t>(length);
    }
    out.push_back(std::move(f));
  }
  return true;
}

inline std::string put_fields(const std::vector<proto_field>& fields) {
  std::string out;
  for (const proto_field& f : fields) {
    out += proto_varint(f.tag);
    if ((f.tag & 7) == 2) out += proto_varint(f.content.size());
    out += f.content;
  }
  return out;
}

/// Changes one thing somewhere inside a message.
inline void mutate_message(std::string& message, dice& roll, int depth) {
  std::vector<proto_field> fields;
  if (!take_fields(message, fields) || fields.empty()) return mutate_bytes(message, message.size() + 16);
  proto_field& f = fields[roll.below(fields.size())];
  if ((f.tag & 7) == 2 && depth < 8 && !roll.once_in(4)) {
    mutate_message(f.content, roll, depth + 1);
  } else {
    switch (roll.below(5)) {
      case 0: fields.insert(fields.begin() + static_cast<std::ptrdiff_t>(roll.below(fields.size())), proto_field(fields[roll.below(fields.size())])); break;
      case 1: fields.erase(fields.begin() + (&f - fields.data())); break;
      case 2: f = {(roll.below(30) + 1) << 3, proto_varint(odd_number(roll))}; break;
      case 3: std::swap(f, fields[roll.below(fields.size())]); break;
      default:
        if ((f.tag & 7) == 0) f.content = proto_varint(odd_number(roll));
        else mutate_bytes(f.content, f.content.size() + ((f.tag & 7) == 2 ? 16 : 0));
    }
  }
  message = put_fields(fields);
}

inline bool mutate_onnx(std::string& file, dice& roll, std::size_t) {
  for (std::size_t n = 1 + roll.below(3); n-- > 0;) mutate_message(file, roll, 0);
  return true;
}

}  // namespace fuzz
