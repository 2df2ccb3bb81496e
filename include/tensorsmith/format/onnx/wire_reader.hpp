// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/wire_reader.hpp: protobuf's wire format, read field by field from a file without loading it.
//
// Include format/onnx/read.hpp instead. Payloads are stepped over: reading the structure of a model of 2 GB touches kilobytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/byte_io.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// How a field is encoded: the low three bits of its tag.
enum class wire_type : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, group = 3, end_group = 4, fixed32 = 5 };

/// One field of a message: bytes [begin, end) of the file, the value (of bytes: the content) at [value, end).
struct wire_field {
  std::uint32_t number = 0;
  wire_type type = wire_type::varint;
  std::uint64_t begin = 0, value = 0, end = 0;
  std::uint64_t integer = 0;  ///< of a varint or a fixed number

  std::uint64_t length() const noexcept { return end - value; }
};

/// Reads fields at positions of a source through a small window.
class wire_reader {
 public:
  explicit wire_reader(std::shared_ptr<const byte_source> file, std::uint64_t deepest_group = 32)
      : file_(std::move(file)), resident_(file_->resident()), deepest_(deepest_group) {}

  const byte_source& file() const noexcept { return *file_; }
  const std::shared_ptr<const byte_source>& source() const noexcept { return file_; }

  failure error(std::uint64_t at, std::string what, std::string expected = {}, std::string found = {}) const {
    return failure{.code = errc::malformed, .what = std::move(what), .file = file_->name(), .place = "byte offset " + std::to_string(at),
                   .expected = std::move(expected), .found = std::move(found)};
  }

  /// The field at `at`, which moves behind it; the message ends at `end`. @fails malformed, limit (groups inside groups), io
  result<wire_field> next(std::uint64_t& at, std::uint64_t end) {
    wire_field out;
    TENSORSMITH_CHECK(field(at, end, out));
    if (out.type == wire_type::end_group) return error(out.begin, "a group ends that did not begin");
    if (out.type != wire_type::group) return out;
    std::vector<std::uint32_t> open{out.number};  // unknown groups are legal; they may be nested
    while (!open.empty()) {
      wire_field inner;
      TENSORSMITH_CHECK(field(at, end, inner));
      if (inner.type == wire_type::end_group) {
        if (inner.number != open.back()) return error(inner.begin, "a group ends that did not begin");
        open.pop_back();
      } else if (inner.type == wire_type::group) {
        if (open.size() >= deepest_)
          return failure{.code = errc::limit, .what = "groups are nested too deeply", .file = file_->name(),
                         .place = "byte offset " + std::to_string(inner.begin), .expected = "at most " + std::to_string(deepest_) + " levels",
                         .advice = "raise limits::onnx_depth if you trust it"};
        open.push_back(inner.number);
      }
    }
    out.end = at;
    return out;
  }

  /// A varint at `at`, which moves behind it. @fails malformed, io
  result<std::uint64_t> varint(std::uint64_t& at, std::uint64_t end) {
    const std::uint64_t begin = at;
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
      if (at >= end) return error(begin, "a number ends past the end of its message");
      TENSORSMITH_TRY(const std::uint8_t byte, byte_at(at));
      ++at;
      if (shift == 63 && byte > 1) break;
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    return error(begin, "a number is longer than 64 bits");
  }

  /// A little-endian number of `bytes` bytes. @pre it lies inside the file
  result<std::uint64_t> fixed(std::uint64_t at, std::size_t bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
      TENSORSMITH_TRY(const std::uint8_t byte, byte_at(at + i));
      value |= std::uint64_t{byte} << (8 * i);
    }
    return value;
  }

  /// The content of a field as text. @fails limit (longer than `most`), io
  result<std::string> text(const wire_field& field, std::uint64_t most, std::string_view what) {
    if (field.length() > most)
      return failure{.code = errc::limit, .what = std::string(what) + " is too long", .file = file_->name(),
                     .place = "byte offset " + std::to_string(field.value), .expected = "at most " + std::to_string(most) + " bytes",
                     .found = std::to_string(field.length()), .advice = "raise limits::name_bytes if you trust it"};
    std::string out(static_cast<std::size_t>(field.length()), '\0');
    TENSORSMITH_CHECK(read(field.value, std::as_writable_bytes(std::span(out))));
    return out;
  }

  /// Bytes of the file, through the window where they lie in it.
  result<void> read(std::uint64_t at, std::span<std::byte> out) {
    if (out.empty()) return {};
    if (out.size() > window_bytes) return file_->read_at(at, out);
    TENSORSMITH_CHECK(load(at));
    if (at + out.size() > from_ + view_.size()) {  // at the edge of the window
      TENSORSMITH_CHECK(move_window(at));
      if (out.size() > view_.size()) return file_->read_at(at, out);  // says what is missing
    }
    std::memcpy(out.data(), view_.data() + (at - from_), out.size());
    return {};
  }

 private:
  static constexpr std::size_t window_bytes = 16u << 10;

  result<void> field(std::uint64_t& at, std::uint64_t end, wire_field& out) {
    out.begin = at;
    TENSORSMITH_TRY(const std::uint64_t tag, varint(at, end));
    out.number = static_cast<std::uint32_t>(tag >> 3);
    const auto kind = static_cast<std::uint8_t>(tag & 7);
    if (tag >> 32 != 0 || out.number == 0) return error(out.begin, "a field has a number that cannot be", "1 to 536870911", std::to_string(tag >> 3));
    if (kind > 5) return error(out.begin, "a field has an encoding that does not exist", "0 to 5", std::to_string(kind));
    out.type = static_cast<wire_type>(kind);
    out.value = at;
    switch (out.type) {
      case wire_type::varint: {
        TENSORSMITH_TRY(out.integer, varint(at, end));
        break;
      }
      case wire_type::fixed64:
      case wire_type::fixed32: {
        const std::size_t bytes = out.type == wire_type::fixed64 ? 8 : 4;
        if (end - at < bytes) return error(out.begin, "a number ends past the end of its message");
        TENSORSMITH_TRY(out.integer, fixed(at, bytes));
        at += bytes;
        break;
      }
      case wire_type::bytes: {
        TENSORSMITH_TRY(const std::uint64_t length, varint(at, end));
        if (length > end - at)
          return error(out.begin, "a field ends past the end of its message", "at most " + std::to_string(end - at) + " bytes", std::to_string(length));
        out.value = at;
        at += length;
        break;
      }
      case wire_type::group:
      case wire_type::end_group: break;
    }
    out.end = at;
    return {};
  }

  result<std::uint8_t> byte_at(std::uint64_t at) {
    if (at < from_ || at - from_ >= view_.size()) TENSORSMITH_CHECK(move_window(at));
    return static_cast<std::uint8_t>(view_[static_cast<std::size_t>(at - from_)]);
  }
  result<void> load(std::uint64_t at) {
    if (at >= from_ && at - from_ < view_.size()) return {};
    return move_window(at);
  }
  result<void> move_window(std::uint64_t at) {
    if (!resident_.empty()) {
      from_ = 0, view_ = resident_;
      if (at < view_.size()) return {};
    }
    if (at >= file_->size()) return error(at, "the data ends past the end of the file");
    if (window_.empty()) window_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(window_bytes, file_->size())));
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(window_.size(), file_->size() - at));
    view_ = {};
    TENSORSMITH_CHECK(file_->read_at(at, std::span(window_).first(count)));
    from_ = at, view_ = std::span<const std::byte>(window_).first(count);
    return {};
  }

  std::shared_ptr<const byte_source> file_;
  std::span<const std::byte> resident_;
  std::uint64_t deepest_;
  std::vector<std::byte> window_;
  std::span<const std::byte> view_;
  std::uint64_t from_ = 0;
};

}  // namespace detail

TENSORSMITH_END_NAMESPACE
