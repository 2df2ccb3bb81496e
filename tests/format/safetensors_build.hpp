// SPDX-License-Identifier: MIT
//
// tests/format/safetensors_build.hpp: makes safetensors files, right and wrong ones, from their parts.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/tensor/byte_io.hpp"

namespace support {

using source_ptr = std::shared_ptr<const tensorsmith::byte_source>;

/// Eight little-endian bytes.
inline std::string u64_bytes(std::uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  return out;
}

/// Bytes as a file called "m.safetensors".
inline source_ptr as_file(std::string_view bytes) {
  std::vector<std::byte> copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return std::make_shared<tensorsmith::memory_source>("m.safetensors", std::move(copy));
}

/// A file of a header and `data` zero bytes.
inline source_ptr safetensors_file(std::string_view header, std::size_t data) {
  return as_file(u64_bytes(header.size()).append(header).append(data, '\0'));
}

/// `"name":{"dtype":…,"shape":…,"data_offsets":…}`
inline std::string entry(std::string_view name, std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return "\"" + std::string(name) + "\":{\"dtype\":\"" + std::string(dtype) + "\",\"shape\":" + std::string(shape) +
         ",\"data_offsets\":" + std::string(offsets) + "}";
}

}  // namespace support
