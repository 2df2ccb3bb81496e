// SPDX-License-Identifier: MIT
//
// tensorsmith/io/zip.hpp: the entries of a zip archive, found by its central directory and checked before anything is believed.
//
// Include this to read containers that are zips (torch, npz) or to check and combine CRC-32 values. Needs zlib. Nothing is
// ever extracted to disk. An archive starts at byte 0 and ends with its end record; what two readers could understand
// differently (duplicate names, overlapping entries, local headers that contradict the directory) is refused.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/byte_io.hpp"
#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One entry of an archive, as its central directory and its local header agree on it.
struct zip_entry {
  std::string name;
  std::uint16_t method = 0;         ///< 0 stored, 8 deflated
  std::uint16_t flags = 0;          ///< general purpose bits of the central directory
  std::uint32_t crc = 0;            ///< CRC-32 of the contents
  std::uint64_t compressed = 0;     ///< bytes in the archive
  std::uint64_t size = 0;           ///< bytes of the contents
  std::uint64_t header_offset = 0;  ///< local header, from the start of the file
  std::uint64_t data_offset = 0;    ///< first byte of the (compressed) contents, from the start of the file

  bool is_folder() const noexcept { return !name.empty() && name.back() == '/'; }
};

/// An opened archive. Names are unique, lookup is a binary search.
class zip_archive {
 public:
  zip_archive(std::shared_ptr<const byte_source> file, std::vector<zip_entry> entries, std::vector<std::uint32_t> by_name,
              bool check_crc)
      : file_(std::move(file)), entries_(std::move(entries)), by_name_(std::move(by_name)), check_crc_(check_crc) {}

  const std::shared_ptr<const byte_source>& file() const noexcept { return file_; }
  /// In the order of the central directory.
  std::span<const zip_entry> entries() const noexcept { return entries_; }
  /// The entry called exactly `name`, or nullptr.
  const zip_entry* find(std::string_view name) const noexcept {
    const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                     [&](std::uint32_t i, std::string_view n) { return std::string_view(entries_[i].name) < n; });
    return at != by_name_.end() && entries_[*at].name == name ? &entries_[*at] : nullptr;
  }
  /// Whether contents are compared with their CRC-32 (limits::check_crc).
  bool checks_crc() const noexcept { return check_crc_; }

 private:
  std::shared_ptr<const byte_source> file_;
  std::vector<zip_entry> entries_;
  std::vector<std::uint32_t> by_name_;
  bool check_crc_;
};

/// CRC-32 (zip, gzip, PNG) of `bytes`, continuing from `start`.
inline std::uint32_t crc32_of(std::span<const std::byte> bytes, std::uint32_t start = 0) noexcept {
  return static_cast<std::uint32_t>(::crc32_z(start, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

/// CRC-32 of two pieces put together, from the CRC-32 of each and the length of the second.
inline std::uint32_t crc32_joined(std::uint32_t first, std::uint32_t second, std::uint64_t second_bytes) noexcept {
  return static_cast<std::uint32_t>(::crc32_combine(first, second, static_cast<z_off_t>(second_bytes)));
}

namespace detail {

inline constexpr std::uint64_t zip_free_expansion = 64u << 20;  // no ratio is too high below this many bytes

inline std::uint64_t zip_number(std::span<const std::byte> bytes, std::size_t at, std::size_t width) noexcept {
  std::uint64_t value = 0;
  for (std::size_t i = width; i-- > 0;) value = (value << 8) | std::to_integer<std::uint64_t>(bytes[at + i]);
  return value;
}
inline std::uint16_t zip_u16(std::span<const std::byte> bytes, std::size_t at) noexcept {
  return static_cast<std::uint16_t>(zip_number(bytes, at, 2));
}
inline std::uint32_t zip_u32(std::span<const std::byte> bytes, std::size_t at) noexcept {
  return static_cast<std::uint32_t>(zip_number(bytes, at, 4));
}
inline std::uint64_t zip_u64(std::span<const std::byte> bytes, std::size_t at) noexcept { return zip_number(bytes, at, 8); }

inline std::string zip_hex(std::uint32_t value, int digits = 8) {
  std::string out = "0x";
  append_hex(out, value, digits);
  return out;
}

/// Where and how large the central directory is, from the end records.
struct zip_directory {
  std::uint64_t offset = 0, bytes = 0, count = 0;
};

/// One reading of an archive's structure: end records, central directory, local headers.
class zip_reader {
 public:
  zip_reader(std::shared_ptr<const byte_source> file, const limits& bounds) : file_(std::move(file)), limits_(bounds) {}

  result<zip_archive> open() {
    TENSORSMITH_TRY(const zip_directory where, find_directory());
    if (where.bytes > limits_.zip_directory_bytes)
      return fail(errc::limit, "the central directory is too large",
                  std::to_string(limits_.zip_directory_bytes) + " bytes at most", std::to_string(where.bytes),
                  "raise it with --max-zip-directory");
    if (where.bytes < where.count && where.count <= limits_.zip_entries)
      return fail(errc::malformed, "the end record counts more entries than the directory has room for",
                  std::to_string(where.count) + " entries", std::to_string(where.bytes) + " bytes");
    std::vector<std::byte> directory(static_cast<std::size_t>(where.bytes));
    TENSORSMITH_CHECK(file_->read_at(where.offset, directory));
    TENSORSMITH_CHECK(walk(directory, where));
    TENSORSMITH_TRY(std::vector<std::uint32_t> by_name, sort_names());
    for (zip_entry& e : entries_) TENSORSMITH_CHECK(check_local(e, where.offset));
    TENSORSMITH_CHECK(check_layout(where.offset));
    return zip_archive(file_, std::move(entries_), std::move(by_name), limits_.check_crc);
  }

 private:
  failure fail(errc code, std::string what, std::string expected = {}, std::string found = {}, std::string advice = {}) const {
    return failure{.code = code,
                   .what = std::move(what),
                   .file = file_->name(),
                   .place = place_,
                   .expected = std::move(expected),
                   .found = std::move(found),
                   .advice = std::move(advice)};
  }
  void at_entry(const zip_entry& e) { place_ = "zip entry " + quoted(e.name); }

  result<zip_directory> find_directory() {
    const std::uint64_t size = file_->size();
    const std::size_t length = static_cast<std::size_t>(std::min<std::uint64_t>(size, 65535 + 22));
    std::vector<std::byte> tail(length);
    TENSORSMITH_CHECK(file_->read_at(size - length, tail));
    std::optional<std::size_t> last;  // the record nearest to the end
    std::size_t complete = 0;         // records whose comment ends exactly with the file
    for (std::size_t i = 0; i + 22 <= length; ++i) {
      if (tail[i] != std::byte{0x50} || zip_u32(tail, i) != 0x06054B50) continue;
      last = i;
      complete += i + 22 + zip_u16(tail, i + 20) == length;
    }
    if (!last)
      return fail(errc::malformed, "the zip archive has no end record", "PK\\5\\6 in the last 64 KiB", "none",
                  "is the download incomplete?");
    place_ = "byte offset " + std::to_string(size - length + *last);
    if (complete > 1)
      return fail(errc::malformed, "the zip archive has more than one end record", "one", std::to_string(complete));
    const std::uint64_t end = size - length + *last + 22 + zip_u16(tail, *last + 20);
    if (end != size)
      return fail(errc::malformed, "the zip archive does not end with its end record",
                  "a file of " + std::to_string(end) + " bytes", std::to_string(size));
    return read_end(std::span(tail).subspan(*last, 22), size - length + *last);
  }

  result<zip_directory> read_end(std::span<const std::byte> end, std::uint64_t position) {
    zip_directory where{zip_u32(end, 16), zip_u32(end, 12), zip_u16(end, 10)};
    if (zip_u16(end, 4) != zip_u16(end, 6) || (zip_u16(end, 4) != 0 && zip_u16(end, 4) != 0xFFFF))
      return fail(errc::unsupported, "the zip archive is split over several disks", "disk 0", std::to_string(zip_u16(end, 4)));
    if (zip_u16(end, 8) != zip_u16(end, 10))
      return fail(errc::malformed, "the end record gives two entry counts", std::to_string(zip_u16(end, 10)),
                  std::to_string(zip_u16(end, 8)));
    std::uint64_t directory_end = position;
    std::vector<std::byte> locator(20);
    if (position >= 20) TENSORSMITH_CHECK(file_->read_at(position - 20, locator));
    if (position >= 20 && zip_u32(locator, 0) == 0x07064B50) {
      const zip_directory narrow = where;
      TENSORSMITH_TRY(where, read_zip64_end(locator, position - 20, directory_end));
      if ((narrow.offset != 0xFFFFFFFF && narrow.offset != where.offset) ||
          (narrow.bytes != 0xFFFFFFFF && narrow.bytes != where.bytes) || (narrow.count != 0xFFFF && narrow.count != where.count))
        return fail(errc::malformed, "the two end records contradict each other",
                    "count " + std::to_string(where.count) + ", bytes " + std::to_string(where.bytes) + ", offset " +
                        std::to_string(where.offset),
                    "count " + std::to_string(narrow.count) + ", bytes " + std::to_string(narrow.bytes) + ", offset " +
                        std::to_string(narrow.offset));
    }
    if (where.offset > directory_end || where.bytes != directory_end - where.offset)
      return fail(errc::malformed, "the central directory does not end where its end record begins",
                  "byte " + std::to_string(directory_end),
                  "offset " + std::to_string(where.offset) + " and " + std::to_string(where.bytes) + " bytes");
    return where;
  }

  result<zip_directory> read_zip64_end(std::span<const std::byte> locator, std::uint64_t position, std::uint64_t& directory_end) {
    if (zip_u32(locator, 4) != 0 || zip_u32(locator, 16) > 1)
      return fail(errc::unsupported, "the zip archive is split over several disks", "1 disk",
                  std::to_string(zip_u32(locator, 16)));
    const std::uint64_t offset = zip_u64(locator, 8);
    std::vector<std::byte> record(56);
    if (offset > position || position - offset < 56)
      return fail(errc::malformed, "the ZIP64 end record lies outside the file", "at most byte " + std::to_string(position),
                  std::to_string(offset));
    TENSORSMITH_CHECK(file_->read_at(offset, record));
    if (zip_u32(record, 0) != 0x06064B50 || zip_u64(record, 4) != position - offset - 12)
      return fail(errc::malformed, "the ZIP64 end record is damaged",
                  "PK\\6\\6 and " + std::to_string(position - offset - 12) + " bytes",
                  zip_hex(zip_u32(record, 0)) + " and " + std::to_string(zip_u64(record, 4)));
    if (zip_u32(record, 16) != 0 || zip_u32(record, 20) != 0)
      return fail(errc::unsupported, "the zip archive is split over several disks", "disk 0",
                  std::to_string(zip_u32(record, 16)));
    if (zip_u64(record, 24) != zip_u64(record, 32))
      return fail(errc::malformed, "the ZIP64 end record gives two entry counts", std::to_string(zip_u64(record, 32)),
                  std::to_string(zip_u64(record, 24)));
    directory_end = offset;
    return zip_directory{zip_u64(record, 48), zip_u64(record, 40), zip_u64(record, 32)};
  }

  result<void> walk(std::span<const std::byte> directory, const zip_directory& where) {
    std::size_t at = 0;
    while (at < directory.size()) {
      place_ = "byte offset " + std::to_string(where.offset + at);
      if (entries_.size() == limits_.zip_entries)
        return fail(errc::limit, "the zip archive has too many entries", std::to_string(limits_.zip_entries) + " at most",
                    std::to_string(where.count), "raise it with --max-zip-entries");
      if (directory.size() - at < 46 || zip_u32(directory, at) != 0x02014B50)
        return fail(
            errc::malformed, "the central directory is damaged", "PK\\1\\2 and 46 bytes",
            directory.size() - at < 4 ? std::to_string(directory.size() - at) + " bytes" : zip_hex(zip_u32(directory, at)));
      const std::size_t name = zip_u16(directory, at + 28), extra = zip_u16(directory, at + 30),
                        comment = zip_u16(directory, at + 32);
      if (directory.size() - at - 46 < name + extra + comment)
        return fail(errc::malformed, "a directory entry reaches past the central directory",
                    std::to_string(name + extra + comment) + " bytes", std::to_string(directory.size() - at - 46));
      zip_entry e;
      e.name.assign(reinterpret_cast<const char*>(directory.data() + at + 46), name);
      at_entry(e);
      const auto fixed = directory.subspan(at, 46);
      e.flags = zip_u16(fixed, 8);
      e.method = zip_u16(fixed, 10);
      e.crc = zip_u32(fixed, 16);
      e.compressed = zip_u32(fixed, 20);
      e.size = zip_u32(fixed, 24);
      e.header_offset = zip_u32(fixed, 42);
      TENSORSMITH_CHECK(read_zip64_extra(directory.subspan(at + 46 + name, extra), e, zip_u16(fixed, 34)));
      TENSORSMITH_CHECK(check_entry(e, where.offset));
      entries_.push_back(std::move(e));
      at += 46 + name + extra + comment;
    }
    place_.clear();
    if (entries_.size() != where.count)
      return fail(errc::malformed, "the end record counts other entries than the central directory has",
                  std::to_string(where.count), std::to_string(entries_.size()));
    return {};
  }

  /// Fields that are saturated in the fixed part follow in the ZIP64 extra field, in this order.
  result<void> read_zip64_extra(std::span<const std::byte> extra, zip_entry& e, std::uint16_t disk) {
    TENSORSMITH_TRY(const auto field, find_zip64(extra));
    std::size_t at = 0;
    const bool needed = e.size == 0xFFFFFFFF || e.compressed == 0xFFFFFFFF || e.header_offset == 0xFFFFFFFF;
    if (needed && field.empty()) return fail(errc::malformed, "sizes refer to a ZIP64 extra field that is not there");
    for (std::uint64_t* value : {&e.size, &e.compressed, &e.header_offset}) {
      if (*value != 0xFFFFFFFF) continue;
      if (field.size() - at < 8)
        return fail(errc::malformed, "the ZIP64 extra field is too short", std::to_string(at + 8) + " bytes",
                    std::to_string(field.size()));
      *value = zip_u64(field, at);
      at += 8;
    }
    if (disk == 0xFFFF && field.size() - at >= 4)
      disk = static_cast<std::uint16_t>(std::min<std::uint32_t>(zip_u32(field, at), 0xFFFF));
    if (disk != 0) return fail(errc::unsupported, "the entry lies on another disk", "disk 0", std::to_string(disk));
    return {};
  }

  result<std::span<const std::byte>> find_zip64(std::span<const std::byte> extra) {
    std::span<const std::byte> found;
    bool seen = false;
    for (std::size_t at = 0; at + 4 <= extra.size();) {
      const std::size_t length = zip_u16(extra, at + 2);
      if (length > extra.size() - at - 4)
        return fail(errc::malformed, "an extra field reaches past its record",
                    std::to_string(extra.size() - at - 4) + " bytes at most", std::to_string(length));
      if (zip_u16(extra, at) == 0x0001) {
        if (seen) return fail(errc::malformed, "the entry has two ZIP64 extra fields");
        if (length < 4 || length > 28)
          return fail(errc::malformed, "the ZIP64 extra field has an impossible size", "4 to 28 bytes", std::to_string(length));
        found = extra.subspan(at + 4, length);
        seen = true;
      }
      at += 4 + length;
    }
    return found;
  }

  result<void> check_flags(std::uint16_t flags) const {
    constexpr std::uint16_t known = 0x0002 | 0x0004 | 0x0008 | 0x0800;  // deflate level, data descriptor, UTF-8
    if ((flags & ~known) == 0) return {};
    const char* what = (flags & 0x0001)   ? "the entry is encrypted"
                       : (flags & 0x0020) ? "the entry is a patch to another file"
                       : (flags & 0x0040) ? "the entry is strongly encrypted"
                       : (flags & 0x2000) ? "the headers of the archive are masked"
                                          : "the entry has flags without a meaning here";
    return fail(errc::unsupported, what, "no flags but " + zip_hex(known, 4), "flags " + zip_hex(flags, 4));
  }

  result<void> check_entry(const zip_entry& e, std::uint64_t directory_offset) {
    TENSORSMITH_CHECK(check_name(e));
    TENSORSMITH_CHECK(check_flags(e.flags));
    if (e.method != 0 && e.method != 8)
      return fail(errc::unsupported, "the entry is compressed in an unsupported way", "method 0 (stored) or 8 (deflated)",
                  "method " + std::to_string(e.method));
    if (e.method == 0 && e.compressed != e.size)
      return fail(errc::malformed, "the stored entry has two sizes", std::to_string(e.size) + " bytes",
                  std::to_string(e.compressed));
    if (e.header_offset > directory_offset || directory_offset - e.header_offset < 30 ||
        e.compressed > directory_offset - e.header_offset - 30)
      return fail(errc::malformed, "the entry reaches past the entries' part of the file",
                  "an end at or before byte " + std::to_string(directory_offset),
                  "offset " + std::to_string(e.header_offset) + " and " + std::to_string(e.compressed) + " bytes");
    // deflate turns one byte into at most 1032
    if (e.method == 8 && e.size / 1032 > e.compressed + 8)
      return fail(errc::malformed, "the deflated entry cannot be as large as declared",
                  "at most 1032 times " + std::to_string(e.compressed) + " bytes", std::to_string(e.size));
    if (e.method == 8 && e.size > zip_free_expansion && e.size / limits_.expansion > e.compressed)
      return fail(errc::limit, "the deflated entry expands too much", "at most " + std::to_string(limits_.expansion) + " times",
                  std::to_string(e.size) + " bytes from " + std::to_string(e.compressed), "raise it with --max-expansion");
    return {};
  }

  result<void> check_name(const zip_entry& e) const {
    const std::string_view name = e.name;
    if (name.empty()) return fail(errc::malformed, "an entry has no name");
    const bool drive = name.size() > 1 && name[1] == ':';
    if (name.front() == '/' || drive || name.find('\\') != name.npos || name.find('\0') != name.npos)
      return fail(errc::path, "the entry's name is no relative path", "a relative path with '/'", quoted(name));
    for (std::size_t at = 0; at < name.size();) {
      const std::size_t end = std::min(name.find('/', at), name.size());
      const std::string_view part = name.substr(at, end - at);
      if (part.empty() || part == "." || part == "..")
        return fail(errc::path, "the entry's name leaves or hides its folder", "no empty, '.' or '..' parts", quoted(name));
      at = end + 1;
    }
    return {};
  }

  result<std::vector<std::uint32_t>> sort_names() {
    std::vector<std::uint32_t> order(entries_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
    std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return entries_[a].name < entries_[b].name; });
    for (std::size_t i = 1; i < order.size(); ++i)
      if (entries_[order[i]].name == entries_[order[i - 1]].name) {
        at_entry(entries_[order[i]]);
        return fail(errc::malformed, "two entries have the same name");
      }
    return order;
  }

  result<void> check_local(zip_entry& e, std::uint64_t directory_offset) {
    at_entry(e);
    std::vector<std::byte>& head = head_;
    head.resize(static_cast<std::size_t>(std::min<std::uint64_t>(30 + e.name.size(), file_->size() - e.header_offset)));
    TENSORSMITH_CHECK(file_->read_at(e.header_offset, head));
    if (zip_u32(head, 0) != 0x04034B50)
      return fail(errc::malformed, "there is no local header at byte offset " + std::to_string(e.header_offset), "PK\\3\\4",
                  zip_hex(zip_u32(head, 0)));
    const std::size_t name = zip_u16(head, 26), extra = zip_u16(head, 28);
    const std::string_view local(reinterpret_cast<const char*>(head.data() + 30), head.size() - 30);
    if (name != e.name.size() || local != e.name)
      return fail(errc::malformed, "the local header has another name than the central directory", quoted(e.name),
                  quoted(local.substr(0, name)) + ", " + std::to_string(name) + " bytes");
    const std::uint16_t flags = zip_u16(head, 6);
    TENSORSMITH_CHECK(check_flags(flags));
    if (zip_u16(head, 8) != e.method)
      return fail(errc::malformed, "the local header has another method than the central directory", std::to_string(e.method),
                  std::to_string(zip_u16(head, 8)));
    e.data_offset = e.header_offset + 30 + name + extra;
    if (e.data_offset > directory_offset || e.compressed > directory_offset - e.data_offset)
      return fail(errc::malformed, "the entry overlaps the central directory",
                  "an end at or before byte " + std::to_string(directory_offset),
                  "offset " + std::to_string(e.data_offset) + " and " + std::to_string(e.compressed) + " bytes");
    if ((flags & 0x0008) != 0) return {};  // sizes and checksum follow the data
    zip_entry copy{.name = {}, .compressed = zip_u32(head, 18), .size = zip_u32(head, 22)};
    copy.crc = zip_u32(head, 14);
    if (copy.compressed == 0xFFFFFFFF || copy.size == 0xFFFFFFFF) {
      std::vector<std::byte> fields(extra);
      TENSORSMITH_CHECK(file_->read_at(e.header_offset + 30 + name, fields));
      TENSORSMITH_CHECK(read_zip64_extra(fields, copy, 0));
    }
    if (copy.crc != e.crc || copy.compressed != e.compressed || copy.size != e.size)
      return fail(
          errc::malformed, "the local header contradicts the central directory",
          "CRC " + zip_hex(e.crc) + ", " + std::to_string(e.compressed) + " and " + std::to_string(e.size) + " bytes",
          "CRC " + zip_hex(copy.crc) + ", " + std::to_string(copy.compressed) + " and " + std::to_string(copy.size) + " bytes");
    return {};
  }

  result<void> check_layout(std::uint64_t directory_offset) {
    std::vector<std::uint32_t> order(entries_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
    std::sort(order.begin(), order.end(),
              [&](std::uint32_t a, std::uint32_t b) { return entries_[a].header_offset < entries_[b].header_offset; });
    place_.clear();
    const std::uint64_t first = order.empty() ? directory_offset : entries_[order[0]].header_offset;
    if (first != 0)
      return fail(errc::malformed, "the zip archive does not start at the first byte of the file", "byte 0",
                  "byte " + std::to_string(first));
    for (std::size_t i = 1; i < order.size(); ++i) {
      const zip_entry &before = entries_[order[i - 1]], &e = entries_[order[i]];
      if (e.header_offset >= before.data_offset + before.compressed) continue;
      at_entry(e);
      return fail(errc::malformed, "the entry overlaps " + quoted(before.name),
                  "a start at or after byte " + std::to_string(before.data_offset + before.compressed),
                  "byte " + std::to_string(e.header_offset));
    }
    return {};
  }

  std::shared_ptr<const byte_source> file_;
  limits limits_;
  std::vector<zip_entry> entries_;
  std::vector<std::byte> head_;
  std::string place_;
};

inline failure zip_entry_failure(const byte_source& file, const zip_entry& e, errc code, std::string what, std::string expected,
                                 std::string found, std::string advice = {}) {
  return failure{.code = code,
                 .what = std::move(what),
                 .file = file.name(),
                 .place = "zip entry " + quoted(e.name),
                 .expected = std::move(expected),
                 .found = std::move(found),
                 .advice = std::move(advice)};
}

inline result<void> compare_crc(const byte_source& file, const zip_entry& e, std::uint32_t actual) {
  if (actual == e.crc) return {};
  return zip_entry_failure(file, e, errc::integrity, "the contents do not match their checksum", "CRC-32 " + zip_hex(e.crc),
                           zip_hex(actual), "the file is damaged, or was written without checksums: --no-crc reads it as it is");
}

/// Inflates a whole entry. Memory grows with the bytes that come out, never past the declared size.
inline result<std::vector<std::byte>> inflate_entry(const byte_source& file, const zip_entry& e) {
  z_stream stream{};
  if (::inflateInit2(&stream, -MAX_WBITS) != Z_OK)
    return zip_entry_failure(file, e, errc::internal, "zlib cannot start", {}, stream.msg ? stream.msg : "no reason");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> closing(&stream, &::inflateEnd);
  constexpr std::uint64_t chunk = 256u << 10;
  std::vector<std::byte> in(static_cast<std::size_t>(std::min(chunk, e.compressed))), out;
  std::byte spare{};  // one byte more than declared shows that there is more
  std::uint64_t consumed = 0, produced = 0;
  int status = Z_OK;
  while (status != Z_STREAM_END) {
    if (stream.avail_in == 0 && consumed < e.compressed) {
      const auto part =
          std::span(in).first(static_cast<std::size_t>(std::min<std::uint64_t>(in.size(), e.compressed - consumed)));
      TENSORSMITH_CHECK(file.read_at(e.data_offset + consumed, part));
      consumed += part.size();
      stream.next_in = reinterpret_cast<Bytef*>(part.data());
      stream.avail_in = static_cast<uInt>(part.size());
    }
    if (produced == out.size() && produced < e.size)
      out.resize(static_cast<std::size_t>(std::min(e.size, std::max<std::uint64_t>(chunk, 2 * produced))));
    const std::uint64_t room = std::min<std::uint64_t>(out.size() - produced, 1u << 30);
    stream.next_out = reinterpret_cast<Bytef*>(room > 0 ? out.data() + produced : &spare);
    stream.avail_out = room > 0 ? static_cast<uInt>(room) : 1U;
    const uInt before = stream.avail_out;
    status = ::inflate(&stream, Z_NO_FLUSH);
    const std::uint64_t step = before - stream.avail_out;
    if (room == 0 && step > 0)
      return zip_entry_failure(file, e, errc::malformed, "the entry inflates to more than it declares",
                               std::to_string(e.size) + " bytes", "more");
    produced += step;
    if (status != Z_OK && status != Z_STREAM_END)
      return zip_entry_failure(file, e, errc::malformed, "the deflated data is damaged", "a complete deflate stream",
                               stream.msg ? stream.msg : "it stops after " + std::to_string(produced) + " bytes");
  }
  if (produced != e.size || stream.avail_in != 0 || consumed != e.compressed)
    return zip_entry_failure(file, e, errc::malformed, "the deflated data does not have the declared size",
                             std::to_string(e.size) + " bytes from " + std::to_string(e.compressed),
                             std::to_string(produced) + " from " + std::to_string(consumed - stream.avail_in));
  return out;
}

/// The contents of a deflated entry: inflated as a whole when first read, kept until the source goes away.
class inflated_source final : public byte_source {
 public:
  inflated_source(zip_archive archive, zip_entry e) : archive_(std::move(archive)), entry_(std::move(e)) {}
  std::uint64_t size() const noexcept override { return entry_.size; }
  const std::string& name() const noexcept override { return archive_.file()->name(); }
  result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset > entry_.size || out.size() > entry_.size - offset)
      return zip_entry_failure(*archive_.file(), entry_, errc::malformed, "read past the end",
                               std::to_string(out.size()) + " bytes at " + std::to_string(offset),
                               std::to_string(entry_.size) + " bytes");
    const std::lock_guard lock(mutex_);
    if (!bytes_) {
      TENSORSMITH_TRY(std::vector<std::byte> all, inflate_entry(*archive_.file(), entry_));
      if (archive_.checks_crc()) TENSORSMITH_CHECK(compare_crc(*archive_.file(), entry_, crc32_of(all)));
      bytes_ = std::move(all);
    }
    if (!out.empty()) std::memcpy(out.data(), bytes_->data() + offset, out.size());
    return {};
  }

 private:
  zip_archive archive_;
  zip_entry entry_;
  mutable std::mutex mutex_;
  mutable std::optional<std::vector<std::byte>> bytes_;
};

/// Compares a stored entry with its CRC-32, once.
class crc_check final : public integrity_check {
 public:
  crc_check(std::shared_ptr<const byte_source> file, zip_entry e) : file_(std::move(file)), entry_(std::move(e)) {}
  result<void> verify(const job& run) override {
    const std::lock_guard lock(mutex_);
    if (!answer_) {
      auto answer = read(run);
      if (!answer && answer.error().code == errc::cancelled) return answer;
      answer_ = std::move(answer);
    }
    return *answer_;
  }

 private:
  result<void> read(const job& run) const {
    std::vector<std::byte> buffer(static_cast<std::size_t>(std::min<std::uint64_t>(entry_.size, 1u << 20)));
    std::uint32_t crc = 0;
    for (std::uint64_t at = 0; at < entry_.size; at += buffer.size()) {
      if (run.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled", .file = file_->name()};
      const auto part =
          std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), entry_.size - at)));
      TENSORSMITH_CHECK(file_->read_at(entry_.data_offset + at, part));
      crc = crc32_of(part, crc);
    }
    return compare_crc(*file_, entry_, crc);
  }

  std::shared_ptr<const byte_source> file_;
  zip_entry entry_;
  std::mutex mutex_;
  std::optional<result<void>> answer_;
};

}  // namespace detail

/// Reads the structure of a zip archive: end records, central directory and every local header, no contents.
/// @fails malformed (damage, contradictions, overlaps, duplicate names, bytes before or behind the archive), limit (entries,
/// directory bytes, expansion), unsupported (encryption, other methods, several disks), path (names that leave their folder).
inline result<zip_archive> open_zip(std::shared_ptr<const byte_source> file, const limits& bounds = {}) {
  return detail::zip_reader(std::move(file), bounds).open();
}

/// The whole contents of a small entry. `most` bounds its size; `option` is what raises that bound, for the message.
/// @fails limit, malformed, integrity (CRC-32), io.
inline result<std::vector<std::byte>> read_entry(const zip_archive& archive, const zip_entry& e, std::uint64_t most,
                                                 std::string_view option) {
  if (e.size > most)
    return detail::zip_entry_failure(*archive.file(), e, errc::limit, "the entry is too large",
                                     std::to_string(most) + " bytes at most", std::to_string(e.size),
                                     "raise it with " + std::string(option));
  std::vector<std::byte> bytes;
  if (e.method == 8) {
    TENSORSMITH_TRY(bytes, detail::inflate_entry(*archive.file(), e));
  } else {
    bytes.resize(static_cast<std::size_t>(e.size));
    TENSORSMITH_CHECK(archive.file()->read_at(e.data_offset, bytes));
  }
  if (archive.checks_crc()) TENSORSMITH_CHECK(detail::compare_crc(*archive.file(), e, crc32_of(bytes)));
  return bytes;
}

/// Where the contents of an entry can be read at any offset: the archive itself for a stored entry, a copy in memory for a
/// deflated one (inflated as a whole when first read).
struct entry_bytes {
  std::shared_ptr<const byte_source> source;
  std::uint64_t offset = 0;                ///< of the first byte of the contents, in `source`
  std::shared_ptr<integrity_check> check;  ///< CRC-32 of a stored entry; null if not to be checked (or checked when inflating)
};

/// Presents an entry as bytes for stored_tensor() and strided_tensor(). Needs no memory for stored entries, e.size for deflated
/// ones.
inline entry_bytes open_entry(const zip_archive& archive, const zip_entry& e) {
  if (e.method == 8) return {std::make_shared<detail::inflated_source>(archive, e), 0, nullptr};
  entry_bytes out{archive.file(), e.data_offset, nullptr};
  if (archive.checks_crc()) out.check = std::make_shared<detail::crc_check>(archive.file(), e);
  return out;
}

TENSORSMITH_END_NAMESPACE
