// SPDX-License-Identifier: MIT
//
// tests/format/torch_bytes.hpp: zip archives and pickles put together byte by byte, so that each field can be wrong.
#pragma once

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/tensor/byte_io.hpp"

namespace torch_bytes {

#if __has_include(<catch2/catch_test_macros.hpp>)
inline auto Contains(const std::string& part) { return Catch::Matchers::ContainsSubstring(part); }
#else
using Catch::Matchers::Contains;
#endif

inline std::string le(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  return out;
}

inline std::uint32_t crc(const std::string& data) {
  return static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(data.data()), data.size()));
}

inline std::string deflated(const std::string& data) {
  std::string out(::compressBound(static_cast<uLong>(data.size())) + 64, '\0');
  z_stream s{};
  ::deflateInit2(&s, 9, Z_DEFLATED, -MAX_WBITS, 9, Z_DEFAULT_STRATEGY);
  s.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  s.avail_in = static_cast<uInt>(data.size());
  s.next_out = reinterpret_cast<Bytef*>(out.data());
  s.avail_out = static_cast<uInt>(out.size());
  ::deflate(&s, Z_FINISH);
  out.resize(out.size() - s.avail_out);
  ::deflateEnd(&s);
  return out;
}

/// One entry; what is set overrides what would be right.
struct entry {
  std::string name, data;  // data as it lies in the archive
  int method = 0, flags = 0;
  std::optional<std::uint64_t> size{}, compressed{}, offset{};
  std::optional<std::uint32_t> crc32{};
  std::string central_extra{}, local_extra{};
  std::optional<std::string> local_name{};
  std::optional<int> local_method{}, local_flags{};
  std::optional<std::uint64_t> local_size{}, local_compressed{};
  std::optional<std::uint32_t> local_crc{};
  bool descriptor = false;  // bit 3: sizes behind the data
  std::optional<int> disk{};
};

struct end_record {
  std::optional<std::uint64_t> count{}, size{}, offset{};
  std::optional<int> disk{};
  bool zip64 = false;
  std::optional<std::uint64_t> count64{};
  std::string prefix{}, comment{}, suffix{};
};

inline std::string zip(const std::vector<entry>& entries, const end_record& end = {}) {
  std::string out = end.prefix, directory;
  for (const entry& e : entries) {
    const std::uint64_t at = e.offset.value_or(out.size());
    const std::uint64_t size = e.size.value_or(e.data.size()), compressed = e.compressed.value_or(e.data.size());
    const std::uint32_t sum = e.crc32.value_or(e.method == 0 ? crc(e.data) : 0);
    const int flags = e.flags | (e.descriptor ? 8 : 0);
    const std::string local_name = e.local_name.value_or(e.name);
    out += "PK\x03\x04" + le(20, 2) + le(static_cast<std::uint64_t>(e.local_flags.value_or(flags)), 2) +
           le(static_cast<std::uint64_t>(e.local_method.value_or(e.method)), 2) + le(0, 4) +
           le(e.local_crc.value_or(e.descriptor ? 0 : sum), 4) +
           le(e.local_compressed.value_or(e.descriptor ? 0 : compressed), 4) +
           le(e.local_size.value_or(e.descriptor ? 0 : size), 4) + le(local_name.size(), 2) + le(e.local_extra.size(), 2) +
           local_name + e.local_extra + e.data;
    if (e.descriptor) out += le(0x08074B50, 4) + le(sum, 4) + le(compressed, 4) + le(size, 4);
    directory += "PK\x01\x02" + le(20, 2) + le(20, 2) + le(static_cast<std::uint64_t>(flags), 2) +
                 le(static_cast<std::uint64_t>(e.method), 2) + le(0, 4) + le(sum, 4) + le(compressed, 4) + le(size, 4) +
                 le(e.name.size(), 2) + le(e.central_extra.size(), 2) + le(0, 2) +
                 le(static_cast<std::uint64_t>(e.disk.value_or(0)), 2) + le(0, 6) + le(at, 4) + e.name + e.central_extra;
  }
  const std::uint64_t start = out.size(), disk = static_cast<std::uint64_t>(end.disk.value_or(0));
  out += directory;
  if (end.zip64) {
    const std::uint64_t record = out.size(), count = end.count64.value_or(entries.size());
    out += le(0x06064B50, 4) + le(44, 8) + le(45, 2) + le(45, 2) + le(0, 8) + le(count, 8) + le(count, 8) +
           le(directory.size(), 8) + le(start, 8);
    out += le(0x07064B50, 4) + le(0, 4) + le(record, 8) + le(1, 4);
  }
  const std::uint64_t count = end.count.value_or(end.zip64 ? 0xFFFF : entries.size());
  out += le(0x06054B50, 4) + le(disk, 2) + le(disk, 2) + le(count, 2) + le(count, 2) +
         le(end.size.value_or(end.zip64 ? 0xFFFFFFFF : directory.size()), 4) +
         le(end.offset.value_or(end.zip64 ? 0xFFFFFFFF : start), 4) + le(end.comment.size(), 2) + end.comment + end.suffix;
  return out;
}

inline std::shared_ptr<const tensorsmith::byte_source> source(const std::string& bytes, std::string name = "m.ckpt") {
  std::vector<std::byte> copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return std::make_shared<tensorsmith::memory_source>(std::move(name), std::move(copy));
}

// --- pickles --------------------------------------------------------------------------------------------------------------

inline std::string operator""_s(const char* text, std::size_t length) { return {text, length}; }

inline std::string text(std::string_view value) { return "X" + le(value.size(), 4) + std::string(value); }
inline std::string integer(std::int64_t value) { return "\x8A\x08"_s + le(static_cast<std::uint64_t>(value), 8); }
inline std::string global(const std::string& module, const std::string& name) { return "c" + module + "\n" + name + "\n"; }
inline std::string tuple(const std::vector<std::int64_t>& values) {
  std::string out = "(";
  for (const std::int64_t v : values) out += integer(v);
  return out + "t";
}
inline std::string program(const std::string& body) { return "\x80\x02" + body + "."; }

/// A tensor's parts; what is set overrides what would be right.
struct tensor {
  std::string key = "0", storage = "FloatStorage", module = "torch";
  std::int64_t numel = 6, offset = 0;
  std::vector<std::int64_t> size{2, 3}, stride{3, 1};
  std::string metadata{};
};
inline std::string storage(const tensor& t) {
  return "(" + text("storage") + global(t.module, t.storage) + text(t.key) + text("cuda:0") + integer(t.numel) + "tQ";
}
inline std::string value(const tensor& t) {
  return global("torch._utils", "_rebuild_tensor_v2") + "(" + storage(t) + integer(t.offset) + tuple(t.size) + tuple(t.stride) +
         "\x89" + global("collections", "OrderedDict") + ")R" + t.metadata + "tR";
}
/// A dict of one tensor "w".
inline std::string one(const tensor& t) { return program("}" + text("w") + value(t) + "s"); }

/// f32 values 0, 1, 2, …
inline std::string floats(std::size_t count) {
  std::string out(count * 4, '\0');
  for (std::size_t i = 0; i < count; ++i) {
    const float v = static_cast<float>(i);
    std::memcpy(out.data() + 4 * i, &v, 4);
  }
  return out;
}
inline std::vector<entry> checkpoint_entries(const std::string& pickle, const std::string& data = floats(6)) {
  return {{.name = "archive/data.pkl", .data = pickle},
          {.name = "archive/byteorder", .data = "little"},
          {.name = "archive/data/0", .data = data},
          {.name = "archive/version", .data = "3\n"}};
}
inline std::string checkpoint(const std::string& pickle, const std::string& data = floats(6)) {
  return zip(checkpoint_entries(pickle, data));
}

}  // namespace torch_bytes
