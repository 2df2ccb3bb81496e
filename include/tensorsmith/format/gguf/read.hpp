// SPDX-License-Identifier: MIT
//
// tensorsmith/format/gguf/read.hpp: reads GGUF files (versions 2 and 3, little-endian): metadata, proof of the layout, catalog.
//
// The file (ggml, docs/gguf.md): "GGUF", version, counts of tensors and of key-value pairs; the pairs; name, dimensions (innermost
// first), type and offset of each tensor; then the data, every tensor at a multiple of general.alignment. Opening reads what lies
// before the data, through a window: no declared count or length allocates anything before the bytes for it are known to be there.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/gguf/dequantize.hpp"
#include "tensorsmith/format/gguf/types.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/name_order.hpp"
#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What a GGUF file holds. Q8_0 and Q4_0 tensors are planned as f32.
struct gguf_contents {
  catalog tensors;                                               ///< in the order of the file; shapes outermost first, as everywhere here
  std::vector<std::pair<std::string, std::string>> metadata;     ///< for reports: numbers as text, long arrays and strings shortened
  std::vector<std::pair<std::string, std::string>> stored_types; ///< name and GGUF's name of its type ("Q8_0"), in the order of the catalog
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
  std::uint64_t data_offset = 0;  ///< where the data starts in the file
};

namespace detail {

/// One tensor of a file, before it is believed.
struct gguf_tensor {
  std::string name;
  std::array<std::uint64_t, 4> extents{};  // innermost first, as stored
  std::uint32_t rank = 0;
  const gguf_type* type = nullptr;
  std::uint64_t offset = 0, bytes = 0;     // in the data
  std::uint64_t place = 0;                 // of its description, in the file
};

/// Reads what lies before the data, from front to back, through a window of the file.
class gguf_reader {
 public:
  gguf_reader(const byte_source& file, const limits& bounds) : file_(file), bounds_(bounds) {}

  result<void> read() {
    TENSORSMITH_CHECK(read_start());
    TENSORSMITH_CHECK(read_pairs());
    TENSORSMITH_CHECK(read_tensors());
    TENSORSMITH_CHECK(check_names());
    return check_layout();
  }

  gguf_contents out;                  ///< all but the catalog
  std::vector<gguf_tensor> tensors;

 private:
  enum value_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64, value_types };
  static constexpr std::size_t value_bytes[value_types] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: of varying length
  static constexpr std::size_t shown_values = 16, shown_bytes = 65536, window_bytes = 64u << 10;

  failure fail(errc code, std::uint64_t at, std::string what, std::string expected = {}, std::string found = {}, std::string advice = {}) const {
    return failure{.code = code, .what = std::move(what), .file = file_.name(), .place = "byte offset " + std::to_string(at),
                   .expected = std::move(expected), .found = std::move(found), .advice = std::move(advice)};
  }
  static std::string text(std::uint64_t n) { return std::to_string(n); }
  std::uint64_t left() const noexcept { return file_.size() - at_; }

  /// Proves that `count` more bytes of metadata are there and allowed.
  result<void> need(std::uint64_t count, std::string_view what) const {
    if (count > left())
      return fail(errc::malformed, at_, std::string(what) + " ends past the end of the file", text(count) + " bytes", text(left()),
                  "download or copy it again");
    if (at_ > bounds_.gguf_metadata_bytes || count > bounds_.gguf_metadata_bytes - at_)
      return fail(errc::limit, at_, "the metadata is too long", "at most " + text(bounds_.gguf_metadata_bytes) + " bytes",
                  "at least " + text(at_ + std::min(count, left())), "raise limits::gguf_metadata_bytes (--max-gguf-metadata) if you trust it");
    return {};
  }

  /// The next `count` bytes, which stay valid until the next call. @pre count <= window_bytes
  result<const std::byte*> take(std::size_t count, std::string_view what) {
    TENSORSMITH_CHECK(need(count, what));
    if (at_ < window_at_ || at_ - window_at_ > window_.size() || window_.size() - (at_ - window_at_) < count) {
      window_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(window_bytes, left())));
      window_at_ = at_;
      TENSORSMITH_CHECK(file_.read_at(at_, window_));
    }
    const std::byte* data = window_.data() + (at_ - window_at_);
    at_ += count;
    return data;
  }
  template <class T>
  result<T> number(std::string_view what) {
    TENSORSMITH_TRY(const std::byte* data, take(sizeof(T), what));
    T value;
    std::memcpy(&value, data, sizeof value);
    return value;
  }

  /// Bytes of a string whose length was just read. Those beyond `most` are skipped.
  result<std::string> characters(std::uint64_t length, std::uint64_t most, std::string_view what) {
    TENSORSMITH_CHECK(need(length, what));
    std::string out_text(static_cast<std::size_t>(std::min(length, most)), '\0');
    const std::uint64_t end = at_ + length;
    for (std::size_t done = 0; done < out_text.size();) {
      const std::size_t part = std::min(out_text.size() - done, window_bytes);
      TENSORSMITH_TRY(const std::byte* data, take(part, what));
      std::memcpy(out_text.data() + done, data, part);
      done += part;
    }
    at_ = end;
    return out_text;
  }

  /// A name: UTF-8, not longer than the limit.
  result<std::string> name(std::string_view what) {
    const std::uint64_t start = at_;
    TENSORSMITH_TRY(const std::uint64_t length, number<std::uint64_t>(what));
    if (length > bounds_.name_bytes && length <= left())
      return fail(errc::limit, start, std::string(what) + " is too long", "at most " + text(bounds_.name_bytes) + " bytes", text(length),
                  "raise limits::name_bytes (--max-name) if you trust it");
    TENSORSMITH_TRY(std::string out_text, characters(length, length, what));
    std::size_t bad = 0;
    if (!is_utf8(out_text, bad)) return fail(errc::malformed, start + 8 + bad, std::string(what) + " is no UTF-8 text", {}, quoted(out_text));
    return out_text;
  }

  result<void> read_start() {
    char magic[4] = {};
    if (file_.size() < 24)
      return fail(errc::malformed, 0, "the file is too short for a GGUF header", "24 bytes", text(file_.size()));
    TENSORSMITH_CHECK(file_.read_at(0, std::as_writable_bytes(std::span(magic))));
    if (std::string_view(magic, 4) != "GGUF")
      return fail(errc::malformed, 0, "the file does not start as a GGUF file", "GGUF", quoted(std::string_view(magic, 4)));
    at_ = 4;
    TENSORSMITH_TRY(out.version, number<std::uint32_t>("the version"));
    if (out.version != 0 && (out.version & 0xFFFF) == 0)
      return fail(errc::unsupported, 4, "the file is a big-endian GGUF file", "a little-endian one", {},
                  "convert it with gguf-py on a little-endian machine");
    if (out.version != 2 && out.version != 3)
      return fail(errc::unsupported, 4, "the file has an unsupported version of GGUF", "2 or 3", text(out.version));
    TENSORSMITH_TRY(tensor_count_, number<std::uint64_t>("the number of tensors"));
    TENSORSMITH_TRY(pair_count_, number<std::uint64_t>("the number of key-value pairs"));
    // The shortest descriptions: a tensor has a length, a rank, a type and an offset, a pair a length, a type and one byte.
    if (pair_count_ > left() / 13)
      return fail(errc::malformed, 16, "the file has no room for its key-value pairs", "at most " + text(left() / 13), text(pair_count_));
    if (tensor_count_ > left() / 24)
      return fail(errc::malformed, 8, "the file has no room for its tensors", "at most " + text(left() / 24), text(tensor_count_));
    if (pair_count_ > bounds_.tensors)
      return fail(errc::limit, 16, "the file has too many key-value pairs", "at most " + text(bounds_.tensors), text(pair_count_),
                  "raise limits::tensors (--max-tensors) if you trust it");
    if (tensor_count_ > bounds_.tensors)
      return fail(errc::limit, 8, "the file has too many tensors", "at most " + text(bounds_.tensors), text(tensor_count_),
                  "raise limits::tensors (--max-tensors) if you trust it");
    return {};
  }

  result<void> read_pairs() {
    std::vector<std::uint64_t> places;
    for (std::uint64_t i = 0; i < pair_count_; ++i) {
      places.push_back(at_);
      TENSORSMITH_TRY(std::string key, name("a key"));
      const std::uint64_t start = at_;
      TENSORSMITH_TRY(const auto type, number<std::uint32_t>("the type of a value"));
      if (key == "general.alignment") {
        TENSORSMITH_CHECK(read_alignment(type, start));
        out.metadata.emplace_back(std::move(key), text(out.alignment));
        continue;
      }
      std::string shown;
      if (type == array) TENSORSMITH_CHECK(read_array(key, shown));
      else TENSORSMITH_CHECK(read_value(type, start, key, shown));
      out.metadata.emplace_back(std::move(key), std::move(shown));
    }
    const auto order = order_by_name(out.metadata.size(), [&](std::size_t i) { return std::string_view(out.metadata[i].first); });
    for (std::size_t i = 1; i < order.size(); ++i)
      if (out.metadata[order[i]].first == out.metadata[order[i - 1]].first)
        return fail(errc::malformed, places[std::max(order[i], order[i - 1])], "the key " + quoted(out.metadata[order[i]].first) + " appears twice",
                    "unique keys", "also at byte offset " + text(places[std::min(order[i], order[i - 1])]));
    return {};
  }

  result<void> read_alignment(std::uint32_t type, std::uint64_t start) {
    if (type != u32) return fail(errc::malformed, start, "'general.alignment' has a value of the wrong type", "type 4 (u32)", "type " + text(type));
    TENSORSMITH_TRY(const auto value, number<std::uint32_t>("'general.alignment'"));
    if (!std::has_single_bit(value))
      return fail(errc::malformed, start + 4, "'general.alignment' is no power of two", "a power of two", text(value));
    out.alignment = value;
    return {};
  }

  template <class T>
  result<void> append_number(std::string& shown) {
    TENSORSMITH_TRY(const T value, number<T>("a value"));
    char digits[40];
    if constexpr (sizeof(T) == 1) {
      shown += std::to_string(static_cast<int>(value));
    } else {
      shown.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
    }
    return {};
  }

  /// Reads a value that is no array and appends its text.
  result<void> read_value(std::uint32_t type, std::uint64_t start, const std::string& key, std::string& shown) {
    switch (type) {
      case u8: return append_number<std::uint8_t>(shown);
      case i8: return append_number<std::int8_t>(shown);
      case u16: return append_number<std::uint16_t>(shown);
      case i16: return append_number<std::int16_t>(shown);
      case u32: return append_number<std::uint32_t>(shown);
      case i32: return append_number<std::int32_t>(shown);
      case f32: return append_number<float>(shown);
      case u64: return append_number<std::uint64_t>(shown);
      case i64: return append_number<std::int64_t>(shown);
      case f64: return append_number<double>(shown);
      case boolean: {
        TENSORSMITH_TRY(const auto value, number<std::uint8_t>("a value"));
        if (value > 1) return fail(errc::malformed, at_ - 1, "the boolean " + quoted(key) + " is neither 0 nor 1", "0 or 1", text(value));
        shown += value != 0 ? "true" : "false";
        return {};
      }
      case string: return read_text(shown, shown_bytes);
      default:
        return fail(errc::malformed, start, "the value of " + quoted(key) + " has an unknown type", "0 to 12", text(type));
    }
  }

  result<void> read_text(std::string& shown, std::size_t most) {
    TENSORSMITH_TRY(const std::uint64_t length, number<std::uint64_t>("a string"));
    TENSORSMITH_TRY(std::string value, characters(length, most, "a string"));
    std::size_t bad = value.size();
    if (!is_utf8(value, bad) && (length <= most || bad + 4 < value.size())) shown += quoted(value);  // metadata is text: escape what is none
    else shown += value.substr(0, bad);
    if (length > most) shown += "…(" + text(length) + " bytes)";
    return {};
  }

  /// Reads an array of values; only the first few are kept.
  result<void> read_array(const std::string& key, std::string& shown) {
    const std::uint64_t start = at_;
    TENSORSMITH_TRY(const auto type, number<std::uint32_t>("the type of an array"));
    TENSORSMITH_TRY(const auto count, number<std::uint64_t>("the length of an array"));
    if (type == array)
      return fail(errc::unsupported, start, "the value of " + quoted(key) + " is an array of arrays", "an array of numbers or strings");
    if (type >= value_types)
      return fail(errc::malformed, start, "the array " + quoted(key) + " has elements of an unknown type", "0 to 12", text(type));
    const std::size_t smallest = type == string ? 8 : value_bytes[type];
    if (count > left() / smallest)
      return fail(errc::malformed, start + 4, "the array " + quoted(key) + " ends past the end of the file",
                  "at most " + text(left() / smallest) + " values", text(count), "download or copy it again");
    shown = "[";
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(count, shown_values); ++i) {
      if (i > 0) shown += ", ";
      if (type == string) TENSORSMITH_CHECK(read_text(shown, 200));
      else TENSORSMITH_CHECK(read_value(type, start, key, shown));
    }
    if (count > shown_values) {
      TENSORSMITH_CHECK(skip_values(type, count - shown_values));
      shown += ", …(" + text(count) + " values)";
    }
    shown += "]";
    return {};
  }

  result<void> skip_values(std::uint32_t type, std::uint64_t count) {
    if (type != string) {
      TENSORSMITH_CHECK(need(count * value_bytes[type], "an array"));  // cannot wrap: count was compared with the bytes left
      at_ += count * value_bytes[type];
      return {};
    }
    for (; count > 0; --count) {
      TENSORSMITH_TRY(const auto length, number<std::uint64_t>("a string"));
      TENSORSMITH_CHECK(need(length, "a string"));
      at_ += length;
    }
    return {};
  }

  result<void> read_tensors() {
    if (tensor_count_ > left() / 24)
      return fail(errc::malformed, 8, "the file has no room for its tensors", "at most " + text(left() / 24), text(tensor_count_));
    for (std::uint64_t i = 0; i < tensor_count_; ++i) {
      gguf_tensor t;
      t.place = at_;
      TENSORSMITH_TRY(t.name, name("the name of a tensor"));
      TENSORSMITH_CHECK(read_tensor(t));
      tensors.push_back(std::move(t));
    }
    out.data_offset = at_ + (out.alignment - at_ % out.alignment) % out.alignment;
    return {};
  }

  result<void> read_tensor(gguf_tensor& t) {
    const auto who = [&] { return "the tensor " + quoted(t.name); };
    std::uint64_t start = at_;
    TENSORSMITH_TRY(t.rank, number<std::uint32_t>("a tensor"));
    if (t.rank > t.extents.size())
      return fail(errc::unsupported, start, who() + " has too many dimensions", "at most 4", text(t.rank));
    for (std::uint32_t d = 0; d < t.rank; ++d) {
      TENSORSMITH_TRY(t.extents[d], number<std::uint64_t>("a tensor"));
    }
    const std::uint64_t shape_at = std::exchange(start, at_) + 4;  // behind the number of dimensions
    TENSORSMITH_TRY(const auto type, number<std::uint32_t>("a tensor"));
    TENSORSMITH_TRY(t.offset, number<std::uint64_t>("a tensor"));
    t.type = find_gguf_type(type);
    if (!t.type || t.type->encoding == gguf_encoding::unsupported)
      return fail(errc::unsupported, start, who() + " has an unsupported type", "F32, F16, BF16, F64, I8, I16, I32, I64, Q8_0 or Q4_0",
                  t.type ? std::string(t.type->name) : "type " + text(type), t.type ? "convert the file to one of these with llama-quantize" : "");
    std::uint64_t elements = 1, dense = 1;  // dense: without the extents that are 0, which libraries multiply as well
    bool overflow = false, too_large = false;
    for (std::uint32_t d = 0; d < t.rank; ++d) {
      overflow = overflow || __builtin_mul_overflow(elements, t.extents[d], &elements);
      too_large = too_large || __builtin_mul_overflow(dense, std::max<std::uint64_t>(t.extents[d], 1), &dense) || dense >= bounds_.elements;
    }
    // Also where a later extent is 0, the products before it must not wrap.
    if (overflow) return fail(errc::malformed, shape_at, "the size of " + who() + " overflows 64 bits", {}, "shape " + to_string(shape_of(t)));
    if (too_large)
      return fail(errc::limit, shape_at, who() + " is too large", "fewer than " + text(bounds_.elements) + " elements",
                  "shape " + to_string(shape_of(t)), "raise limits::elements (--max-elements) if you trust it");
    const std::uint64_t inner = t.rank > 0 ? t.extents[0] : 1;
    if (inner % t.type->block != 0)
      return fail(errc::malformed, shape_at, who() + " has rows that are no whole blocks of " + std::string(t.type->name),
                  "a multiple of " + text(t.type->block) + " columns", text(inner));
    if (__builtin_mul_overflow(elements / t.type->block, std::uint64_t{t.type->block_bytes}, &t.bytes))
      return fail(errc::malformed, shape_at, "the size of " + who() + " overflows 64 bits", {}, "shape " + to_string(shape_of(t)));
    if (t.offset % out.alignment != 0)
      return fail(errc::malformed, start + 4, who() + " is not aligned", "a multiple of " + text(out.alignment), text(t.offset));
    return {};
  }

 public:
  /// Our order of the dimensions: outermost first.
  static shape_type shape_of(const gguf_tensor& t) {
    shape_type shape;
    for (std::uint32_t d = t.rank; d-- > 0;) shape.push_back(static_cast<std::size_t>(t.extents[d]));
    return shape;
  }

 private:
  result<void> check_names() const {
    const auto order = order_by_name(tensors.size(), [&](std::size_t i) { return std::string_view(tensors[i].name); });
    for (std::size_t i = 1; i < order.size(); ++i) {
      const gguf_tensor &a = tensors[order[i - 1]], &b = tensors[order[i]];
      if (a.name == b.name)
        return fail(errc::malformed, std::max(a.place, b.place), "the tensor " + quoted(a.name) + " appears twice", "unique names",
                    "also at byte offset " + text(std::min(a.place, b.place)));
    }
    return {};
  }

  /// Proves that the tensors cover the data without overlap, and without holes and rests larger than the alignment makes them.
  result<void> check_layout() const {
    std::vector<std::uint32_t> order(tensors.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
      return tensors[a].offset != tensors[b].offset ? tensors[a].offset < tensors[b].offset : tensors[a].bytes < tensors[b].bytes;
    });
    if (tensors.empty()) return check_end(0);
    if (out.data_offset > file_.size())
      return fail(errc::malformed, file_.size(), "the file is cut off", "data from byte " + text(out.data_offset) + " on",
                  text(file_.size()) + " bytes", "download or copy it again");
    const std::uint64_t present = file_.size() - out.data_offset;
    std::uint64_t end = 0, next = 0;  // of the tensors so far; where the next may begin
    const gguf_tensor* before = nullptr;
    for (const std::uint32_t i : order) {
      const gguf_tensor& t = tensors[i];
      if (t.offset < end)
        return fail(errc::malformed, t.place, "the tensors " + quoted(before->name) + " and " + quoted(t.name) + " overlap",
                    "an offset of at least " + text(end), text(t.offset));
      if (t.offset > next)
        return fail(errc::malformed, t.place, "a hole of " + text(t.offset - next) + " bytes lies before the tensor " + quoted(t.name),
                    "offset " + text(next), text(t.offset));
      if (t.offset > present || t.bytes > present - t.offset)
        return fail(errc::malformed, t.place, "the tensor " + quoted(t.name) + " ends past the end of the file",
                    text(t.bytes) + " bytes at offset " + text(t.offset) + " of the data", text(present) + " bytes of data",
                    "download or copy it again");
      end = t.offset + t.bytes;
      next = end + (out.alignment - end % out.alignment) % out.alignment;
      before = &t;
    }
    return check_end(end);
  }

  result<void> check_end(std::uint64_t end) const {
    // Without tensors the padding before the data may be missing, too.
    const std::uint64_t begin = tensors.empty() ? at_ : out.data_offset + end;
    const std::uint64_t most = begin + (out.alignment - begin % out.alignment) % out.alignment;
    if (file_.size() <= most) return {};
    return fail(errc::malformed, most, text(file_.size() - most) + " bytes behind the last tensor belong to no tensor",
                "at most " + text(most) + " bytes", text(file_.size()));
  }

  const byte_source& file_;
  const limits& bounds_;
  std::uint64_t at_ = 0, window_at_ = 0;
  std::uint64_t tensor_count_ = 0, pair_count_ = 0;
  std::vector<std::byte> window_;
};

}  // namespace detail

/// True if the file starts as a GGUF file.
inline bool looks_like_gguf(const byte_source& file) {
  char magic[4];
  return file.size() >= sizeof magic && file.read_at(0, std::as_writable_bytes(std::span(magic))) && std::string_view(magic, 4) == "GGUF";
}

/// Reads the metadata and the names, types and shapes of all tensors; no tensor is read.
/// @fails malformed, limit, unsupported (versions, big-endian files, tensor types, nested arrays), io
inline result<gguf_contents> read_gguf(std::shared_ptr<const byte_source> file, const limits& bounds = {}) {
  detail::gguf_reader reader(*file, bounds);
  TENSORSMITH_CHECK(reader.read());
  gguf_contents out = std::move(reader.out);
  std::vector<catalog_entry> planned;
  planned.reserve(reader.tensors.size());
  out.stored_types.reserve(reader.tensors.size());
  for (detail::gguf_tensor& t : reader.tensors) {
    std::string origin = file->name() + ": " + quoted(t.name);
    const std::uint64_t offset = out.data_offset + t.offset;
    shape_type shape = detail::gguf_reader::shape_of(t);
    recipe_ptr source;
    if (t.type->encoding == gguf_encoding::direct) source = stored_tensor(file, offset, t.type->type, std::move(shape), origin);
    else source = std::make_shared<dequantized_recipe>(file, offset, *t.type, std::move(shape), origin);
    out.stored_types.emplace_back(t.name, t.type->name);
    planned.push_back({std::move(t.name), {std::move(source), 0}, std::move(origin)});
  }
  TENSORSMITH_CHECK(out.tensors.add_all(std::move(planned)));
  return out;
}

TENSORSMITH_END_NAMESPACE
