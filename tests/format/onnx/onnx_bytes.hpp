// SPDX-License-Identifier: MIT
//
// tests/format/onnx/onnx_bytes.hpp: makes ONNX models, right and wrong ones, from their fields.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "format/numpy_bytes.hpp"

namespace support {

inline std::string varint(std::uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  return out + static_cast<char>(value);
}
/// A field of bytes: text, or a message.
inline std::string field(std::uint32_t number, std::string_view content) {
  return varint(std::uint64_t{number} << 3 | 2U) + varint(content.size()) + std::string(content);
}
/// A field with a varint.
inline std::string field(std::uint32_t number, std::uint64_t value) { return varint(std::uint64_t{number} << 3) + varint(value); }

struct onnx_tensor_parts {
  std::string name = "w";
  std::int64_t type = 1;
  std::vector<std::int64_t> dims{};
  std::string data{};                                              ///< raw_data
  bool raw = true;                                                 ///< whether there is raw_data
  std::vector<std::pair<std::string, std::string>> external{};     ///< entries of external_data; sets data_location
  std::string more{};                                              ///< further fields
};
/// A TensorProto.
inline std::string onnx_tensor(const onnx_tensor_parts& p) {
  std::string out;
  for (const std::int64_t d : p.dims) out += field(1, static_cast<std::uint64_t>(d));
  out += field(2, static_cast<std::uint64_t>(p.type));
  if (!p.name.empty()) out += field(8, p.name);
  if (p.raw && p.external.empty()) out += field(9, p.data);
  for (const auto& [key, value] : p.external) out += field(13, field(1, key) + field(2, value));
  if (!p.external.empty()) out += field(14, 1);
  return out + p.more;
}

struct onnx_node_parts {
  std::string operation = "Identity", name{}, domain{};
  std::vector<std::string> inputs{}, outputs{};
  std::vector<std::string> attributes{};  ///< AttributeProtos
};
/// A NodeProto.
inline std::string onnx_node(const onnx_node_parts& p) {
  std::string out;
  for (const std::string& i : p.inputs) out += field(1, i);
  for (const std::string& o : p.outputs) out += field(2, o);
  if (!p.name.empty()) out += field(3, p.name);
  if (!p.operation.empty()) out += field(4, p.operation);
  for (const std::string& a : p.attributes) out += field(5, a);
  if (!p.domain.empty()) out += field(7, p.domain);
  return out;
}
/// An AttributeProto with an integer.
inline std::string onnx_integer(std::string_view name, std::int64_t value) { return field(1, name) + field(3, static_cast<std::uint64_t>(value)) + field(20, 2); }

/// A ValueInfoProto of a tensor.
inline std::string onnx_value(std::string_view name, std::int64_t type = 1) {
  return field(1, name) + field(2, field(1, field(1, static_cast<std::uint64_t>(type))));
}

struct onnx_parts {
  std::vector<std::string> tensors{}, nodes{}, inputs{}, outputs{};
  std::string graph_more{}, more{};      ///< further fields of the graph, of the model
  std::uint64_t ir = 8, opset = 17;
};
/// A GraphProto.
inline std::string onnx_graph(const onnx_parts& p) {
  std::string out;
  for (const std::string& n : p.nodes) out += field(1, n);
  out += field(2, "g");
  for (const std::string& t : p.tensors) out += field(5, t);
  for (const std::string& i : p.inputs) out += field(11, i);
  for (const std::string& o : p.outputs) out += field(12, o);
  return out + p.graph_more;
}
/// A ModelProto.
inline std::string onnx_bytes(const onnx_parts& p) {
  return field(1, p.ir) + field(2, "test") + field(7, onnx_graph(p)) + field(8, field(1, "") + field(2, p.opset)) + p.more;
}

}  // namespace support
