// SPDX-License-Identifier: MIT
//
// tests/format/numpy_bytes.hpp: makes .npy and .npz files, right and wrong ones, from their parts.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/tensor/byte_io.hpp"

namespace support {

inline std::string little(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  return out;
}

/// Bytes as a file called `name`.
inline std::shared_ptr<const tensorsmith::byte_source> file_of(std::string_view bytes, std::string name) {
  std::vector<std::byte> copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return std::make_shared<tensorsmith::memory_source>(std::move(name), std::move(copy));
}

/// A .npy file of version 1.0 with the given dictionary and data.
inline std::string npy_bytes(std::string_view dictionary, std::string_view data) {
  return "\x93NUMPY" + std::string("\1\0", 2) + little(dictionary.size(), 2) + std::string(dictionary) + std::string(data);
}
/// The same with a dictionary of the three usual keys.
inline std::string npy_bytes(std::string_view descr, std::string_view shape, std::string_view data, bool fortran = false) {
  return npy_bytes(
      "{'descr': '" + std::string(descr) + "', 'fortran_order': " + (fortran ? "True" : "False") + ", 'shape': " + std::string(shape) + ", }\n",
      data);
}

/// One entry of an archive that zip_bytes makes. Sizes and CRC-32 can be made to lie.
struct zip_part {
  std::string name, contents;
  bool deflated = false;
  std::uint32_t crc_change = 0;   ///< XORed onto the true CRC-32
  std::int64_t size_change = 0;   ///< added to the declared size
};

inline std::string deflated(std::string_view bytes) {
  z_stream stream{};
  (void)::deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(::deflateBound(&stream, static_cast<uLong>(bytes.size())), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  (void)::deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  (void)::deflateEnd(&stream);
  return out;
}

inline std::string zip_bytes(const std::vector<zip_part>& parts) {
  std::string out, directory;
  for (const zip_part& p : parts) {
    const std::string stored = p.deflated ? deflated(p.contents) : p.contents;
    const auto crc = static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(p.contents.data()), p.contents.size())) ^ p.crc_change;
    const auto size = static_cast<std::uint64_t>(static_cast<std::int64_t>(p.contents.size()) + p.size_change);
    const std::string common = little(20, 2) + little(0, 2) + little(p.deflated ? 8 : 0, 2) + little(0, 4) + little(crc, 4) +
                               little(stored.size(), 4) + little(size, 4) + little(p.name.size(), 2) + little(0, 2);
    directory += "PK\1\2" + little(20, 2) + common + little(0, 2) + little(0, 2) + little(0, 2) + little(0, 4) + little(out.size(), 4) + p.name;
    out += "PK\3\4" + common + p.name + stored;
  }
  return out + directory + "PK\5\6" + little(0, 4) + little(parts.size(), 2) + little(parts.size(), 2) + little(directory.size(), 4) +
         little(out.size(), 4) + little(0, 2);
}

}  // namespace support
