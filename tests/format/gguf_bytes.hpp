// SPDX-License-Identifier: MIT
//
// tests/format/gguf_bytes.hpp: makes GGUF files, right and wrong ones, from their parts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "format/numpy_bytes.hpp"

namespace support {

inline std::string gguf_string(std::string_view text) { return little(text.size(), 8) + std::string(text); }

/// A key-value pair: `value` is the bytes behind the type.
inline std::string gguf_pair(std::string_view key, std::uint32_t type, std::string_view value) {
  return gguf_string(key) + little(type, 4) + std::string(value);
}
inline std::string gguf_array(std::uint32_t type, std::uint64_t count, std::string_view values) {
  return little(type, 4) + little(count, 8) + std::string(values);
}

/// A tensor's description: dimensions innermost first, as they are stored.
inline std::string gguf_tensor_bytes(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type, std::uint64_t offset) {
  std::string out = gguf_string(name) + little(dims.size(), 4);
  for (const std::uint64_t d : dims) out += little(d, 8);
  return out + little(type, 4) + little(offset, 8);
}

struct gguf_parts {
  std::vector<std::string> pairs{}, tensors{};
  std::string data{};
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
};

inline std::string gguf_bytes(const gguf_parts& p) {
  std::string out = "GGUF" + little(p.version, 4) + little(p.tensors.size(), 8) + little(p.pairs.size(), 8);
  for (const std::string& pair : p.pairs) out += pair;
  for (const std::string& tensor : p.tensors) out += tensor;
  if (!p.data.empty()) out.append((p.alignment - out.size() % p.alignment) % p.alignment, '\0');
  return out + p.data;
}

}  // namespace support
