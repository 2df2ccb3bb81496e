// SPDX-License-Identifier: MIT
//
// tensorsmith/io/zip_write.hpp: zip archives of stored entries whose every offset is known before the first byte moves.
//
// Include this to write containers that are zips: plan with zip_layout, write the contents at their offsets in any order through
// crc_sink, then the headers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/io/zip.hpp"
#include "tensorsmith/tensor/byte_io.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Entries of an archive to be written: all stored, sizes and CRC-32 in the local headers, ZIP64 where a number needs it.
class zip_layout {
 public:
  /// Plans an entry of `size` bytes behind those there are; returns its index. With `alignment` (a power of two), its contents
  /// start at a multiple of it: an extra field "FB" fills the gap, as torch does it.
  std::size_t add(std::string name, std::uint64_t size, std::uint64_t alignment = 1) {
    entry e{std::move(name), size, end_, 0, 0};
    const std::uint64_t fixed = end_ + 30 + e.name.size() + (wide(size) ? 20 : 0);
    if (alignment > 1) e.padding = static_cast<std::uint16_t>(4 + (alignment - (fixed + 4) % alignment) % alignment);
    e.data = fixed + e.padding;
    end_ = e.data + size;
    entries_.push_back(std::move(e));
    return entries_.size() - 1;
  }
  std::size_t count() const noexcept { return entries_.size(); }
  /// Where the contents of an entry start.
  std::uint64_t offset(std::size_t i) const noexcept { return entries_[i].data; }
  std::uint64_t size(std::size_t i) const noexcept { return entries_[i].size; }

  /// Bytes of the whole archive.
  std::uint64_t file_bytes() const { return end_ + directory({}).size(); }

  /// Writes local headers, central directory and end records; `crcs` has the CRC-32 of each entry. @fails io, no_space
  result<void> write_headers(byte_sink& sink, std::span<const std::uint32_t> crcs) const {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const entry& e = entries_[i];
      std::vector<std::byte> head;
      number(head, 0x04034B50, 4);
      common(head, e, crcs[i]);
      number(head, (wide(e.size) ? 20U : 0U) + e.padding, 2);
      text(head, e.name);
      if (wide(e.size)) number(head, 0x0001, 2), number(head, 16, 2), number(head, e.size, 8), number(head, e.size, 8);
      if (e.padding > 0) {
        number(head, 0x4246, 2), number(head, e.padding - 4U, 2);
        head.insert(head.end(), e.padding - 4U, std::byte{'Z'});
      }
      TENSORSMITH_CHECK(sink.write_at(e.header, head));
    }
    return sink.write_at(end_, directory(crcs));
  }

 private:
  struct entry {
    std::string name;
    std::uint64_t size, header, data;
    std::uint16_t padding;  // bytes of the FB field with its head
  };
  static bool wide(std::uint64_t value) noexcept { return value >= 0xFFFFFFFF; }
  static void number(std::vector<std::byte>& out, std::uint64_t value, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i)));
  }
  static void text(std::vector<std::byte>& out, std::string_view value) {
    for (const char c : value) out.push_back(static_cast<std::byte>(c));
  }
  static std::uint64_t narrowed(std::uint64_t value) noexcept { return std::min<std::uint64_t>(value, 0xFFFFFFFF); }
  /// What local header and directory share: version needed, UTF-8 names, stored, 1980-01-01, CRC, sizes, length of the name.
  static void common(std::vector<std::byte>& out, const entry& e, std::uint32_t crc) {
    number(out, wide(e.size) || wide(e.header) ? 45 : 10, 2), number(out, 0x0800, 2), number(out, 0, 2), number(out, 0, 2),
        number(out, 0x0021, 2);
    number(out, crc, 4), number(out, narrowed(e.size), 4), number(out, narrowed(e.size), 4), number(out, e.name.size(), 2);
  }

  /// Central directory and end records. Without CRCs: zeros in their place.
  std::vector<std::byte> directory(std::span<const std::uint32_t> crcs) const {
    std::vector<std::byte> out;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const entry& e = entries_[i];
      std::vector<std::byte> extra;
      if (wide(e.size)) number(extra, e.size, 8), number(extra, e.size, 8);
      if (wide(e.header)) number(extra, e.header, 8);
      number(out, 0x02014B50, 4), number(out, 0x032D, 2);
      common(out, e, i < crcs.size() ? crcs[i] : 0);
      number(out, extra.empty() ? 0 : 4 + extra.size(), 2), number(out, 0, 2), number(out, 0, 2), number(out, 0, 2),
          number(out, 0, 4);
      number(out, narrowed(e.header), 4);
      text(out, e.name);
      if (!extra.empty()) number(out, 0x0001, 2), number(out, extra.size(), 2);
      out.insert(out.end(), extra.begin(), extra.end());
    }
    const std::uint64_t bytes = out.size(), count = entries_.size();
    if (wide(bytes) || wide(end_) || count >= 0xFFFF) {
      number(out, 0x06064B50, 4), number(out, 44, 8), number(out, 0x032D, 2), number(out, 45, 2), number(out, 0, 4),
          number(out, 0, 4);
      number(out, count, 8), number(out, count, 8), number(out, bytes, 8), number(out, end_, 8);
      number(out, 0x07064B50, 4), number(out, 0, 4), number(out, end_ + bytes, 8), number(out, 1, 4);
    }
    const std::uint64_t shown = std::min<std::uint64_t>(count, 0xFFFF);
    number(out, 0x06054B50, 4), number(out, 0, 2), number(out, 0, 2), number(out, shown, 2), number(out, shown, 2);
    number(out, narrowed(bytes), 4), number(out, narrowed(end_), 4), number(out, 0, 2);
    return out;
  }

  std::vector<entry> entries_;
  std::uint64_t end_ = 0;
};

/// The part of a sink that one entry's contents take up. Computes the CRC-32 of the pieces as they are written, in any order
/// and from any thread, and joins them at the end.
class crc_sink final : public byte_sink {
 public:
  crc_sink(byte_sink& to, std::uint64_t offset, std::uint64_t size) : to_(to), offset_(offset), size_(size) {}
  const std::string& name() const noexcept override { return to_.name(); }
  result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    if (offset > size_ || bytes.size() > size_ - offset)
      return failure{.code = errc::internal,
                     .what = "write past the planned end of a zip entry",
                     .file = name(),
                     .place = "byte offset " + std::to_string(offset)};
    const std::uint32_t crc = crc32_of(bytes);
    TENSORSMITH_CHECK(to_.write_at(offset_ + offset, bytes));
    const std::scoped_lock lock(mutex_);
    pieces_.push_back({offset, bytes.size(), crc});
    return {};
  }
  /// CRC-32 of all that was written. @fails internal if pieces are missing or were written twice
  result<std::uint32_t> crc() {
    const std::scoped_lock lock(mutex_);
    std::sort(pieces_.begin(), pieces_.end(), [](const piece& a, const piece& b) { return a.offset < b.offset; });
    std::uint64_t end = 0;
    std::uint32_t all = 0;
    for (const piece& p : pieces_) {
      if (p.length == 0) continue;
      if (p.offset != end) break;
      all = crc32_joined(all, p.crc, p.length);
      end += p.length;
    }
    if (end != size_)
      return failure{.code = errc::internal,
                     .what = "a zip entry was not written as planned",
                     .file = name(),
                     .expected = std::to_string(size_) + " bytes",
                     .found = "a gap or an overlap at " + std::to_string(end)};
    return all;
  }

 private:
  struct piece {
    std::uint64_t offset, length;
    std::uint32_t crc;
  };
  byte_sink& to_;
  std::uint64_t offset_, size_;
  std::mutex mutex_;
  std::vector<piece> pieces_;
};

TENSORSMITH_END_NAMESPACE
