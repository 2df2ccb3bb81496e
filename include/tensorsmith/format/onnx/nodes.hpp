// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/nodes.hpp: attributes of a node that was read, and the bytes of a new node.
//
// Include this to look closer at a node of an onnx_model, or to insert one (format/onnx/update.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/onnx/model.hpp"
#include "tensorsmith/format/onnx/wire.hpp"
#include "tensorsmith/format/onnx/wire_reader.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A small attribute: numbers and lists of integers; of the other kinds only the name.
struct onnx_attribute {
  std::string name;
  std::int64_t integer = 0;
  float number = 0;
  std::vector<std::int64_t> integers;
};

/// The attributes of a node. Lists of more than 64 integers are cut. `wire` reads the model's file; keep it from call to call.
/// @fails malformed, io
inline result<std::vector<onnx_attribute>> onnx_attributes(const onnx_node& node, detail::wire_reader& wire) {
  using detail::wire_type;
  std::vector<onnx_attribute> out;
  const auto add = [](onnx_attribute& to, std::uint64_t value) {
    if (to.integers.size() < 64) to.integers.push_back(static_cast<std::int64_t>(value));
  };
  for (std::uint64_t at = node.body; at < node.end;) {
    TENSORSMITH_TRY(const detail::wire_field f, wire.next(at, node.end));
    if (f.number != 5 || f.type != wire_type::bytes) continue;
    onnx_attribute& attribute = out.emplace_back();
    for (std::uint64_t in = f.value; in < f.end;) {
      TENSORSMITH_TRY(const detail::wire_field part, wire.next(in, f.end));
      if (part.number == 1 && part.type == wire_type::bytes) {
        TENSORSMITH_TRY(attribute.name, wire.text(part, 64 * 1024, "the name of an attribute"));
      } else if (part.number == 2 && part.type == wire_type::fixed32) {
        const auto bits = static_cast<std::uint32_t>(part.integer);
        std::memcpy(&attribute.number, &bits, sizeof bits);
      } else if (part.number == 3 && part.type == wire_type::varint) {
        attribute.integer = static_cast<std::int64_t>(part.integer);
      } else if (part.number == 8 && part.type == wire_type::varint) {
        add(attribute, part.integer);
      } else if (part.number == 8 && part.type == wire_type::bytes) {
        for (std::uint64_t place = part.value; place < part.end && attribute.integers.size() < 64;) {
          TENSORSMITH_TRY(const std::uint64_t value, wire.varint(place, part.end));
          add(attribute, value);
        }
      }
    }
  }
  return out;
}

/// The attribute called `name`, or nullptr.
inline const onnx_attribute* find_attribute(const std::vector<onnx_attribute>& all, std::string_view name) noexcept {
  for (const onnx_attribute& a : all)
    if (a.name == name) return &a;
  return nullptr;
}

/// A node to be inserted. Attributes: integers, and one tensor with a single integer.
struct onnx_new_node {
  std::string operation, name;
  std::vector<std::string> inputs, outputs;
  std::vector<std::pair<std::string, std::int64_t>> integers;
  /// A Constant's value: a tensor [1] of i32 (6) or i64 (7).
  struct scalar {
    std::int64_t element_type = 7, value = 0;
  };
  const scalar* constant = nullptr;
};

/// The bytes of its NodeProto.
inline std::string onnx_node_bytes(const onnx_new_node& node) {
  const auto bytes = [](std::uint32_t field, std::string_view content) {
    std::string out;
    detail::append_varint(out, std::uint64_t{field} << 3 | 2U);
    detail::append_varint(out, content.size());
    return out.append(content);
  };
  const auto number = [](std::uint32_t field, std::uint64_t value) {
    std::string out;
    detail::append_varint(out, std::uint64_t{field} << 3);
    detail::append_varint(out, value);
    return out;
  };
  std::string out;
  for (const std::string& input : node.inputs) out += bytes(1, input);
  for (const std::string& output : node.outputs) out += bytes(2, output);
  out += bytes(3, node.name) + bytes(4, node.operation);
  for (const auto& [name, value] : node.integers)
    out += bytes(5, bytes(1, name) + number(3, static_cast<std::uint64_t>(value)) + number(20, 2));
  if (node.constant) {
    const std::size_t width = node.constant->element_type == 6 ? 4 : 8;
    std::string raw;
    for (std::size_t i = 0; i < width; ++i) raw += static_cast<char>(static_cast<std::uint64_t>(node.constant->value) >> (8 * i));
    const std::string tensor = number(1, 1) + number(2, static_cast<std::uint64_t>(node.constant->element_type)) + bytes(9, raw);
    out += bytes(5, bytes(1, "value") + bytes(5, tensor) + number(20, 4));
  }
  return out;
}

TENSORSMITH_END_NAMESPACE
