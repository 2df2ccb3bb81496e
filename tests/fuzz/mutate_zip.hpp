// SPDX-License-Identifier: MIT
//
// tests/fuzz/mutate_zip.hpp: mutations of zip archives: entries are taken out, changed and packed again with right checksums
// and offsets; then, sometimes, one field of a header is made wrong.
#pragma once

#include <zlib.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/mutate_npy.hpp"
#include "fuzz/mutate_pickle.hpp"
#include "tensorsmith/io/zip.hpp"

namespace fuzz {

struct packed {
  std::string name, contents;
  bool deflate = false, descriptor = false, wide = false;
};

inline std::string deflated(std::string_view contents) {
  std::string out(::compressBound(static_cast<uLong>(contents.size())) + 64, '\0');
  z_stream s{};
  ::deflateInit2(&s, 1, Z_DEFLATED, -MAX_WBITS, 1, Z_DEFAULT_STRATEGY);
  s.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(contents.data()));
  s.avail_in = static_cast<uInt>(contents.size());
  s.next_out = reinterpret_cast<Bytef*>(out.data());
  s.avail_out = static_cast<uInt>(out.size());
  ::deflate(&s, Z_FINISH);
  out.resize(out.size() - s.avail_out);
  ::deflateEnd(&s);
  return out;
}

inline std::string pack(const std::vector<packed>& entries, bool wide_end) {
  std::string out, directory;
  for (const packed& e : entries) {
    const std::string data = e.deflate ? deflated(e.contents) : e.contents;
    const std::uint64_t at = out.size(), narrow = e.wide ? 0xFFFFFFFF : 0;
    const std::string crc = little_endian(::crc32_z(0, reinterpret_cast<const Bytef*>(e.contents.data()), e.contents.size()), 4);
    const std::string extra = e.wide ? little_endian(1, 2) + little_endian(16, 2) + little_endian(e.contents.size(), 8) +
                                           little_endian(data.size(), 8) : "";
    const std::string sizes = little_endian(narrow ? narrow : data.size(), 4) + little_endian(narrow ? narrow : e.contents.size(), 4);
    const std::string common = little_endian(e.descriptor ? 8 : 0, 2) + little_endian(e.deflate ? 8 : 0, 2) + std::string(4, '\0');
    out += "PK\x03\x04" + little_endian(20, 2) + common + (e.descriptor ? std::string(12, '\0') : crc + sizes) + little_endian(e.name.size(), 2) +
           little_endian(extra.size(), 2) + e.name + extra + data;
    if (e.descriptor) out += "PK\x07\x08" + crc + little_endian(data.size(), 4) + little_endian(e.contents.size(), 4);
    directory += "PK\x01\x02" + little_endian(20, 2) + little_endian(20, 2) + common + crc + sizes + little_endian(e.name.size(), 2) +
                 little_endian(extra.size(), 2) + std::string(10, '\0') + little_endian(at, 4) + e.name + extra;
  }
  const std::uint64_t start = out.size(), count = entries.size();
  out += directory;
  if (wide_end) {
    const std::uint64_t record = out.size();
    out += little_endian(0x06064B50, 4) + little_endian(44, 8) + little_endian(45, 2) + little_endian(45, 2) + std::string(8, '\0') +
           little_endian(count, 8) + little_endian(count, 8) + little_endian(directory.size(), 8) + little_endian(start, 8);
    out += little_endian(0x07064B50, 4) + little_endian(0, 4) + little_endian(record, 8) + little_endian(1, 4);
  }
  return out + "PK\x05\x06" + std::string(4, '\0') + little_endian(count, 2) + little_endian(count, 2) + little_endian(directory.size(), 4) +
         little_endian(start, 4) + little_endian(0, 2);
}

/// The entries of an archive whose checksums may be wrong. Empty if it cannot be read.
inline std::vector<packed> unpack(const std::string& file) {
  std::vector<std::byte> bytes(file.size());
  std::memcpy(bytes.data(), file.data(), file.size());
  tensorsmith::limits bounds;
  bounds.check_crc = false;
  const auto archive = tensorsmith::open_zip(std::make_shared<tensorsmith::memory_source>("m", std::move(bytes)), bounds);
  std::vector<packed> out;
  if (!archive) return out;
  for (const tensorsmith::zip_entry& e : archive->entries()) {
    const auto contents = tensorsmith::read_entry(*archive, e, 1u << 16, "");
    if (!contents) return {};
    out.push_back({e.name, std::string(reinterpret_cast<const char*>(contents->data()), contents->size()), e.method == 8, (e.flags & 8) != 0, false});
  }
  return out;
}

inline void spoil_field(std::string& file, dice& roll) {
  std::vector<std::size_t> records;
  for (std::size_t at = 0; (at = file.find("PK", at)) != file.npos && records.size() < 64; at += 2) records.push_back(at);
  if (records.empty()) return;
  const std::size_t width = std::size_t{1} << (1 + roll.below(3)), at = roll.one_of(records) + 4 + roll.below(44);
  if (at + width > file.size()) return;
  std::uint64_t value = odd_number(roll);
  if (roll.once_in(2)) value = number_at(file, at, width) + roll.below(9) - 4;
  file.replace(at, width, little_endian(value, static_cast<int>(width)));
}

inline bool mutate_zip(std::string& file, dice& roll, std::size_t most) {
  if (roll.once_in(8)) return spoil_field(file, roll), true;
  std::vector<packed> entries = unpack(file);
  if (entries.empty()) return false;
  packed& e = entries[roll.below(entries.size())];
  switch (roll.below(12)) {
    case 0: e.deflate = !e.deflate; break;
    case 1: e.descriptor = !e.descriptor; break;
    case 2: e.wide = !e.wide; break;
    case 3: mutate_bytes(e.name, e.name.size() + 8); break;
    case 4: entries.push_back({e.name + std::to_string(roll.below(3)), e.contents, e.deflate, false, false}); break;
    case 5: entries.erase(entries.begin() + (&e - entries.data())); break;
    default: {
      packed* chosen = &e;
      for (packed& other : entries)  // what holds structure first
        if (other.name.size() >= 8 && other.name.compare(other.name.size() - 8, 8, "data.pkl") == 0 && !roll.once_in(4)) chosen = &other;
      const std::string_view name = chosen->name;
      const std::size_t room = std::min<std::size_t>(most, chosen->contents.size() + 600);
      if (name.size() >= 8 && name.substr(name.size() - 8) == "data.pkl") {
        if (!mutate_pickle(chosen->contents, roll, room)) return false;
      } else if (name.size() >= 4 && name.substr(name.size() - 4) == ".npy") {
        if (!mutate_npy(chosen->contents, roll, room)) mutate_bytes(chosen->contents, room);
      } else {
        mutate_bytes(chosen->contents, chosen->contents.size() + 32);
      }
    }
  }
  file = pack(entries, roll.once_in(10));
  if (roll.once_in(10)) spoil_field(file, roll);
  return true;
}

}  // namespace fuzz
