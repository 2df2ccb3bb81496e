// SPDX-License-Identifier: MIT
//
// tensorsmith/format/safetensors/read.hpp: reads safetensors files: header, proof that it describes the file, catalog.
//
// The file: u64 length N, N bytes of JSON (name → dtype, shape, data_offsets; "__metadata__": strings), then the data, which the
// tensors must cover without hole, overlap or rest. Opening reads the header only and copies no tensor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/safetensors/dtypes.hpp"
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One tensor of a header. Offsets count from the start of the data.
struct safetensors_entry {
  std::string name;
  dtype type = dtype::f32;
  shape_type shape;
  std::uint64_t begin = 0, end = 0;
};

/// A header that was proven to describe its file: every tensor lies inside, nothing overlaps, nothing is left over.
struct safetensors_header {
  std::vector<safetensors_entry> entries;                     ///< by offset; empty tensors at one offset in the order of the text
  std::vector<std::pair<std::string, std::string>> metadata;  ///< "__metadata__", in the order of the text
  std::uint64_t data_offset = 8;                              ///< where the data starts in the file
  std::vector<std::string> ignored_fields;                    ///< pointers of fields that the format does not know

  /// The metadata value called `key`, or nullptr.
  const std::string* find_metadata(std::string_view key) const noexcept {
    for (const auto& [name, value] : metadata)
      if (name == key) return &value;
    return nullptr;
  }
};

namespace detail {

/// Collects the entries of a header from the walk over its JSON.
class safetensors_header_handler {
 public:
  safetensors_header_handler(safetensors_header& header, const limits& bounds) : header_(header), bounds_(bounds) {}

  bool null(json_cursor& c) { return scalar("null", c); }
  bool boolean(bool, json_cursor& c) { return scalar("a boolean", c); }
  bool integer(std::int64_t value, json_cursor& c) { return scalar("the negative integer " + std::to_string(value), c); }
  bool number(double, json_cursor& c) { return scalar("a number that is no integer", c); }

  bool natural(std::uint64_t value, json_cursor& c) {
    if (inside_unknown(c)) return true;
    if (c.depth() != 3 || metadata_) return scalar("the integer " + std::to_string(value), c);
    if (field_ == field::offsets) {
      const std::size_t k = c.index(2);
      if (k > 1) return c.fail(errc::malformed, "data_offsets has too many values", "begin and end");
      (k == 0 ? header_.entries.back().begin : header_.entries.back().end) = value;
      ++offsets_;
      return true;
    }
    if (c.index(2) >= bounds_.rank)
      return c.fail(errc::limit, "the tensor " + quoted(c.key(0)) + " has too many dimensions",
                    "at most " + std::to_string(bounds_.rank), {}, "raise limits::rank (--max-rank) if you trust it");
    header_.entries.back().shape.push_back(value);
    return true;
  }

  bool string(std::string& value, json_cursor& c) {
    if (inside_unknown(c)) return true;
    if (metadata_ && c.depth() == 2) return header_.metadata.emplace_back(c.key(1), std::move(value)), true;
    if (c.depth() != 2 || field_ != field::dtype) return scalar("the string " + quoted(value), c);
    const auto type = safetensors_dtype_named(value);
    if (!type)
      return c.fail(errc::unsupported, "the tensor " + quoted(c.key(0)) + " has an unknown dtype", "a dtype of safetensors",
                    quoted(value));
    header_.entries.back().type = *type;
    return true;
  }

  bool start_object(json_cursor& c) {
    if (c.depth() == 1) return true;
    if (c.depth() > 2) return scalar("an object", c, 1);
    if (metadata_) return true;
    header_.entries.push_back({std::string(c.key(0)), dtype::f32, {}, 0, 0});
    starts_.push_back(c.offset());
    seen_ = 0;
    offsets_ = 0;
    return true;
  }

  bool start_array(json_cursor& c) {
    if (c.depth() == 1) return c.fail(errc::malformed, "the header is no JSON object", "an object", "an array");
    if (c.depth() == 3 && !metadata_ && (field_ == field::shape || field_ == field::offsets)) return true;
    return scalar("an array", c, 1);
  }

  bool key(std::string& name, json_cursor& c) {
    if (c.depth() == 1) {
      if (name.size() > bounds_.name_bytes)
        return c.fail(errc::limit, "a tensor name is too long", "at most " + std::to_string(bounds_.name_bytes) + " bytes",
                      std::to_string(name.size()), "raise limits::name_bytes (--max-name) if you trust it");
      metadata_ = name == "__metadata__";
      if (metadata_ && std::exchange(had_metadata_, true))
        return c.fail(errc::malformed, "the key '__metadata__' appears twice", "unique keys");
      if (!metadata_ && header_.entries.size() >= bounds_.tensors)
        return c.fail(errc::limit, "the file has too many tensors", "at most " + std::to_string(bounds_.tensors), {},
                      "raise limits::tensors (--max-tensors) if you trust it");
      return true;
    }
    if (c.depth() != 2 || metadata_) return true;
    field_ = name == "dtype" ? field::dtype : name == "shape" ? field::shape : name == "data_offsets" ? field::offsets : field::unknown;
    offsets_ = 0;
    if (field_ == field::unknown) {
      constexpr std::size_t listed = 100;  // each is a remark for a person; all of them are counted by the caller's note
      if (header_.ignored_fields.size() < listed) header_.ignored_fields.push_back(c.pointer());
    } else {
      seen_ |= 1U << static_cast<unsigned>(field_);
    }
    return true;
  }

  bool end_array(json_cursor& c) {
    if (c.depth() == 2 && !metadata_ && field_ == field::offsets && offsets_ != 2)
      return c.fail(errc::malformed, "data_offsets has too few values", "begin and end", std::to_string(offsets_));
    return true;
  }

  bool end_object(json_cursor& c) { return c.depth() != 1 || metadata_ || finish_entry(c); }

  /// Orders the entries by offset and proves that the keys are unique. @fails malformed
  result<void> finish(const std::string& file) {
    std::vector<safetensors_entry>& entries = header_.entries;
    const std::vector<std::uint32_t> order = order_by_name(entries.size(), [&](std::size_t i) { return std::string_view(entries[i].name); });
    for (std::size_t i = 1; i < order.size(); ++i)
      if (entries[order[i]].name == entries[order[i - 1]].name)
        return failure{.code = errc::malformed, .what = "the tensor " + quoted(entries[order[i]].name) + " appears twice in the header",
                       .file = file, .place = "byte offset " + std::to_string(starts_[order[i]]), .expected = "unique names",
                       .found = "entries at byte offsets " + std::to_string(starts_[order[i - 1]]) + " and " +
                                std::to_string(starts_[order[i]])};
    sort_by_offset();
    return {};
  }

 private:
  enum class field : std::uint8_t { dtype, shape, offsets, unknown };

  /// True for values of fields that the format does not know; `opened` is 1 if the value opened a container already.
  bool inside_unknown(const json_cursor& c, std::size_t opened = 0) const noexcept {
    return !metadata_ && c.depth() - opened >= 2 && field_ == field::unknown;
  }

  /// Refuses a value of the wrong kind; values of unknown fields pass.
  bool scalar(const std::string& found, json_cursor& c, std::size_t opened = 0) {
    if (inside_unknown(c, opened)) return true;
    const std::size_t depth = c.depth() - opened;
    if (depth == 0) return c.fail(errc::malformed, "the header is no JSON object", "an object", found);
    if (metadata_)
      return c.fail(errc::malformed, depth == 1 ? "'__metadata__' is no object" : "a '__metadata__' value is no string",
                    depth == 1 ? "an object of strings" : "a string", found);
    if (depth == 1) return c.fail(errc::malformed, "the tensor " + quoted(c.key(0)) + " is described by no object", "an object", found);
    constexpr std::string_view wanted[] = {"a string", "an array of non-negative integers", "two non-negative integers", ""};
    constexpr std::string_view names[] = {"dtype", "shape", "data_offsets", ""};
    const auto k = static_cast<std::size_t>(field_);
    return c.fail(errc::malformed, std::string(names[k]) + " of the tensor " + quoted(c.key(0)) + " has a value of the wrong kind",
                  std::string(wanted[k]), found);
  }

  /// Entries of one range keep the order of the text. Positions are sorted, not entries, and entries move once at most.
  void sort_by_offset() {
    std::vector<safetensors_entry>& entries = header_.entries;
    const auto before = [](const safetensors_entry& a, const safetensors_entry& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; };
    if (std::is_sorted(entries.begin(), entries.end(), before)) return;
    std::vector<std::uint32_t> order(entries.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
    std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
      return before(entries[a], entries[b]) || (!before(entries[b], entries[a]) && a < b);
    });
    for (std::size_t start = 0; start < order.size(); ++start) {  // along each cycle of the permutation
      if (order[start] == start) continue;
      safetensors_entry displaced = std::move(entries[start]);
      std::size_t at = start;
      while (order[at] != start) {
        const std::size_t from = order[at];
        entries[at] = std::move(entries[from]);
        order[at] = static_cast<std::uint32_t>(at);
        at = from;
      }
      entries[at] = std::move(displaced);
      order[at] = static_cast<std::uint32_t>(at);
    }
  }

  /// Checks an entry by itself: fields present, no overflow, bytes = elements × size. Products are checked at every step, also
  /// where a later dimension is 0, as the reference implementation does.
  bool finish_entry(json_cursor& c) {
    const safetensors_entry& e = header_.entries.back();
    const auto who = [&] { return "the tensor " + quoted(e.name); };
    constexpr std::string_view names[] = {"dtype", "shape", "data_offsets"};
    for (unsigned k = 0; k < 3; ++k)
      if (!(seen_ & (1U << k))) return c.fail(errc::malformed, who() + " has no " + std::string(names[k]));
    if (e.end < e.begin)
      return c.fail(errc::malformed, who() + " ends before it begins", "begin ≤ end",
                    "data_offsets [" + std::to_string(e.begin) + ", " + std::to_string(e.end) + "]");
    std::uint64_t elements = 1, bits = 0, dense = 1;  // dense: without the extents that are 0, which libraries multiply as well
    bool overflow = false, too_large = false;
    for (const std::size_t extent : e.shape) {
      overflow = overflow || __builtin_mul_overflow(elements, static_cast<std::uint64_t>(extent), &elements);
      too_large = too_large || __builtin_mul_overflow(dense, std::max<std::uint64_t>(extent, 1), &dense) || dense >= bounds_.elements;
    }
    overflow = overflow || __builtin_mul_overflow(elements, static_cast<std::uint64_t>(bits_of(e.type)), &bits);
    if (overflow) return c.fail(errc::malformed, "the size of " + who() + " overflows 64 bits", {}, "shape " + to_string(e.shape));
    if (too_large)
      return c.fail(errc::limit, who() + " is too large", "fewer than " + std::to_string(bounds_.elements) + " elements",
                    "shape " + to_string(e.shape), "raise limits::elements (--max-elements) if you trust it");
    if (bits % 8 != 0)
      return c.fail(errc::malformed, who() + " does not fill whole bytes", "a multiple of 8 bits", std::to_string(bits) + " bits");
    if (e.end - e.begin != bits / 8)
      return c.fail(errc::malformed, who() + " has the wrong number of bytes",
                    std::to_string(bits / 8) + " bytes for " + std::string(safetensors_name(e.type)) + " " + to_string(e.shape),
                    std::to_string(e.end - e.begin));
    return true;
  }

  safetensors_header& header_;
  const limits& bounds_;
  std::vector<std::uint64_t> starts_;  // offset in the file of each entry, in the order of the text
  field field_ = field::unknown;
  unsigned seen_ = 0, offsets_ = 0;
  bool metadata_ = false, had_metadata_ = false;
};

/// Proves that sorted entries cover the data exactly. @fails malformed
inline result<void> check_safetensors_coverage(const safetensors_header& header, std::uint64_t file_size, const std::string& file) {
  const auto refuse = [&](std::string what, std::uint64_t offset, std::string expected = {}, std::string found = {}, std::string advice = {}) {
    return failure{.code = errc::malformed, .what = std::move(what), .file = file,
                   .place = "byte offset " + std::to_string(header.data_offset + offset), .expected = std::move(expected),
                   .found = std::move(found), .advice = std::move(advice)};
  };
  const auto text = [](std::uint64_t n) { return std::to_string(n); };
  std::uint64_t reached = 0;
  const safetensors_entry* before = nullptr;
  for (const safetensors_entry& e : header.entries) {
    if (e.begin < reached)
      return refuse("the tensors " + quoted(before->name) + " and " + quoted(e.name) + " overlap", e.begin,
                    "it to begin at " + text(reached), text(e.begin));
    if (e.begin > reached)
      return refuse("a hole of " + text(e.begin - reached) + " bytes " +
                        (before ? "between the tensors " + quoted(before->name) + " and " : std::string("before the tensor ")) + quoted(e.name),
                    reached, "it to begin at " + text(reached), text(e.begin));
    reached = e.end;
    if (!before || e.end > before->begin) before = &e;
  }
  const std::uint64_t present = file_size - header.data_offset;
  if (reached > present)
    return refuse("the file is cut off", present, text(header.data_offset + reached) + " bytes",
                  text(file_size) + ", " + text(reached - present) + " missing", "download or copy it again");
  if (reached < present)
    return refuse(text(present - reached) + " bytes behind the last tensor belong to no tensor", reached,
                  text(header.data_offset + reached) + " bytes", text(file_size));
  return {};
}

/// What a file that is no safetensors file looks like, from its first bytes; empty if unknown.
inline std::string_view recognize_other_format(std::span<const char> start) noexcept {
  const std::string_view s(start.data(), start.size());
  if (s.starts_with("PK\x03\x04")) return "a zip archive, as PyTorch writes it";
  if (s.size() >= 2 && s[0] == '\x80' && s[1] >= '\x02' && s[1] <= '\x05') return "a pickle, as old PyTorch writes it";
  if (s.starts_with("GGUF")) return "a GGUF file";
  if (s.starts_with("\x93NUMPY")) return "a NumPy array";
  if (s.starts_with("<!") || s.starts_with("<html")) return "a web page";
  if (s.starts_with("version https://git-lfs")) return "a Git LFS pointer, not the file it stands for";
  return {};
}

/// The checked length of the header. @fails malformed, limit, unsupported (another format), io
inline result<std::uint64_t> read_safetensors_length(const byte_source& file, const limits& bounds) {
  const std::uint64_t size = file.size();
  if (size < 8)
    return failure{.code = errc::malformed, .what = "the file is too short for a safetensors header", .file = file.name(),
                   .place = "byte offset 0", .expected = "8 length bytes", .found = std::to_string(size)};
  char start[24] = {};
  const std::size_t got = size < sizeof start ? static_cast<std::size_t>(size) : sizeof start;
  TENSORSMITH_CHECK(file.read_at(0, std::as_writable_bytes(std::span(start).first(got))));
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | static_cast<unsigned char>(start[i]);
  const bool json = got > 8 && (start[8] == '{' || start[8] == ' ' || start[8] == '\t' || start[8] == '\r' || start[8] == '\n');
  if (const auto other = recognize_other_format(std::span<const char>(start, got)); !json && !other.empty())
    return failure{.code = errc::unsupported, .what = "the file is no safetensors file", .file = file.name(),
                   .place = "byte offset 0", .found = std::string(other)};
  if (length > bounds.safetensors_header_bytes)
    return failure{.code = errc::limit, .what = "the header is too long", .file = file.name(), .place = "byte offset 0",
                   .expected = "at most " + std::to_string(bounds.safetensors_header_bytes) + " bytes", .found = std::to_string(length),
                   .advice = "raise limits::safetensors_header_bytes (--max-header) if you trust it"};
  if (length > size - 8)
    return failure{.code = errc::malformed, .what = "the header ends past the end of the file", .file = file.name(),
                   .place = "byte offset 0", .expected = "at most " + std::to_string(size - 8) + " bytes of header",
                   .found = std::to_string(length), .advice = "download or copy it again"};
  if (length == 0)
    return failure{.code = errc::malformed, .what = "the header is empty", .file = file.name(), .place = "byte offset 8",
                   .expected = "a JSON object"};
  return length;
}

}  // namespace detail

/// True if the file starts like a safetensors file: a header length that fits into it, then white space or '{'. Names decide
/// nothing: files are told apart by content.
inline bool looks_like_safetensors(const byte_source& file) {
  unsigned char start[9];
  if (file.size() < 10 || !file.read_at(0, std::as_writable_bytes(std::span(start)))) return false;
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | start[i];
  const unsigned char first = start[8];
  return length >= 2 && length <= file.size() - 8 && (first == '{' || first == ' ' || first == '\t' || first == '\r' || first == '\n');
}

/// Reads and proves the header. No tensor is read; memory stays within a few times the header's bytes.
/// @fails malformed, limit, unsupported (dtype; another format), io
inline result<safetensors_header> read_safetensors_header(const byte_source& file, const limits& bounds = {}) {
  TENSORSMITH_TRY(const std::uint64_t length, detail::read_safetensors_length(file, bounds));
  safetensors_header header;
  header.data_offset = 8 + length;
  detail::safetensors_header_handler handler(header, bounds);
  {
    std::string text(static_cast<std::size_t>(length), '\0');
    TENSORSMITH_CHECK(file.read_at(8, std::as_writable_bytes(std::span(text))));
    // The names of the tensors are checked for duplicates by the handler, which has them anyway.
    TENSORSMITH_CHECK(walk_json(text, file.name(), handler, {.depth = bounds.json_depth, .base_offset = 8, .unique_keys_from = 1}));
  }
  TENSORSMITH_CHECK(handler.finish(file.name()));
  TENSORSMITH_CHECK(detail::check_safetensors_coverage(header, file.size(), file.name()));
  return header;
}

/// The tensors of a proven header as a catalog: recipes that read the file when they are asked to.
inline result<catalog> safetensors_catalog(std::shared_ptr<const byte_source> file, safetensors_header header) {
  std::vector<catalog_entry> planned;
  planned.reserve(header.entries.size());
  for (safetensors_entry& e : header.entries) {
    std::string origin = file->name() + ": " + quoted(e.name);
    recipe_ptr source = stored_tensor(file, header.data_offset + e.begin, e.type, std::move(e.shape), origin);
    planned.push_back({std::move(e.name), tensor_ref{std::move(source), 0}, std::move(origin)});
  }
  catalog out;
  TENSORSMITH_CHECK(out.add_all(std::move(planned)));
  return out;
}

/// Opens the tensors of a file. An empty header gives an empty catalog. @fails as read_safetensors_header
inline result<catalog> read_safetensors(std::shared_ptr<const byte_source> file, const limits& bounds = {}) {
  TENSORSMITH_TRY(safetensors_header header, read_safetensors_header(*file, bounds));
  return safetensors_catalog(std::move(file), std::move(header));
}

/// As above, with a warning in the job's notes for fields of the header that the format does not know.
inline result<catalog> read_safetensors(std::shared_ptr<const byte_source> file, job& run) {
  TENSORSMITH_TRY(safetensors_header header, read_safetensors_header(*file, run.limits));
  if (!header.ignored_fields.empty()) {
    std::string text = "fields of the header that safetensors does not define were ignored:";
    for (const std::string& field : header.ignored_fields) text += " " + field;
    run.warn(file->name(), std::move(text));
  }
  return safetensors_catalog(std::move(file), std::move(header));
}

TENSORSMITH_END_NAMESPACE
