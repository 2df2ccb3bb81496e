// SPDX-License-Identifier: MIT
//
// tensorsmith/format/numpy/header.hpp: the header of a .npy file, read strictly and written.
//
// The format (numpy/lib/format.py): "\x93NUMPY", version (1.0, 2.0 or 3.0), the header's length in 2 or 4 bytes, and a Python
// dictionary literal with exactly the keys 'descr', 'fortran_order' and 'shape'. Only numbers are read: nothing is evaluated, and
// pickled objects are refused.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/info.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What a .npy header says, proven to be a type that we have and a shape within the limits.
struct npy_header {
  dtype type = dtype::f32;
  bool big_endian = false;     ///< elements of more than one byte, most significant byte first
  bool fortran_order = false;  ///< the first dimension is the dense one
  shape_type shape;
  std::uint64_t data_offset = 0;  ///< from the first byte of the file

  /// Bytes of the data.
  std::uint64_t data_bytes() const noexcept { return byte_count(type, element_count(shape)); }
  /// Strides in elements.
  std::vector<std::size_t> strides() const {
    std::vector<std::size_t> out(shape.size(), 1);
    for (std::size_t i = 1; i < shape.size(); ++i) {
      const std::size_t to = fortran_order ? i : shape.size() - 1 - i, from = fortran_order ? i - 1 : to + 1;
      out[to] = out[from] * (shape[from] > 0 ? shape[from] : 1);
    }
    return out;
  }
};

namespace detail {

inline constexpr std::string_view npy_magic = "\x93NUMPY";

struct npy_dtype {
  std::string_view code;  // kind and bytes
  dtype type;
};
inline constexpr npy_dtype npy_dtypes[] = {
    {"b1", dtype::boolean}, {"i1", dtype::i8}, {"i2", dtype::i16}, {"i4", dtype::i32}, {"i8", dtype::i64},
    {"u1", dtype::u8}, {"u2", dtype::u16}, {"u4", dtype::u32}, {"u8", dtype::u64},
    {"f2", dtype::f16}, {"f4", dtype::f32}, {"f8", dtype::f64}, {"c8", dtype::c64}, {"c16", dtype::c128}};

/// Reads the dictionary of a header. Offsets in messages count from the first byte of the .npy file.
class npy_header_parser {
 public:
  npy_header_parser(std::string_view text, std::size_t base, std::string file, std::string place, const limits& bounds)
      : text_(text), base_(base), file_(std::move(file)), place_(std::move(place)), bounds_(bounds) {}

  result<npy_header> parse() {
    skip_space();
    if (!take('{')) return wrong("the header is no dictionary", "'{'");
    for (;;) {
      skip_space();
      if (take('}')) break;
      TENSORSMITH_CHECK(parse_pair());
      skip_space();
      if (take(',')) continue;
      if (!take('}')) return wrong("the header's dictionary is damaged", "',' or '}'");
      break;
    }
    skip_space();
    if (at_ != text_.size()) return wrong("the header goes on behind its dictionary", "spaces");
    constexpr std::string_view names[] = {"'descr'", "'fortran_order'", "'shape'"};
    for (unsigned k = 0; k < 3; ++k)
      if (!(seen_ & (1U << k))) return wrong("the header has no " + std::string(names[k]), "'descr', 'fortran_order' and 'shape'", {});
    TENSORSMITH_CHECK(check_size());
    return std::move(out_);
  }

 private:
  failure fail(errc code, std::string what, std::string expected, std::string found, std::string advice = {}) const {
    return failure{.code = code, .what = std::move(what), .file = file_,
                   .place = place_ + "byte offset " + std::to_string(base_ + at_), .expected = std::move(expected),
                   .found = std::move(found), .advice = std::move(advice)};
  }
  failure wrong(std::string what, std::string expected) const { return wrong(std::move(what), std::move(expected), next()); }
  failure wrong(std::string what, std::string expected, std::string found) const {
    return fail(errc::malformed, std::move(what), std::move(expected), std::move(found));
  }
  std::string next() const { return at_ < text_.size() ? quoted(text_.substr(at_, 12)) : "the end of the header"; }

  void skip_space() noexcept {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }
  bool take(char wanted) noexcept {
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    return ++at_, true;
  }
  bool take(std::string_view wanted) noexcept {
    if (text_.substr(at_, wanted.size()) != wanted) return false;
    return at_ += wanted.size(), true;
  }

  result<void> parse_pair() {
    const std::size_t start = at_;
    TENSORSMITH_TRY(const std::string_view key, parse_string("a key in quotes"));
    const unsigned k = key == "descr" ? 0 : key == "fortran_order" ? 1 : key == "shape" ? 2 : 3;
    if (k == 3 || (seen_ & (1U << k)) != 0) {
      at_ = start;
      return wrong(k == 3 ? "the header has an unknown key" : "the header has a key twice", "'descr', 'fortran_order' and 'shape', once each",
                   quoted(key));
    }
    seen_ |= 1U << k;
    skip_space();
    if (!take(':')) return wrong("a key has no value", "':'");
    skip_space();
    if (k == 0) return parse_type();
    if (k == 2) return parse_shape();
    if (take(std::string_view("True"))) return out_.fortran_order = true, result<void>();
    if (take(std::string_view("False"))) return {};
    return wrong("'fortran_order' has a value of the wrong kind", "True or False");
  }

  result<std::string_view> parse_string(std::string_view what) {
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) return wrong("the header's dictionary is damaged", std::string(what));
    const char quote = text_[at_++];
    const std::size_t start = at_;
    while (at_ < text_.size() && text_[at_] != quote && text_[at_] != '\\') ++at_;
    if (at_ == text_.size() || text_[at_] == '\\') return wrong("a string of the header does not end", "a closing quote, no escapes");
    return text_.substr(start, at_++ - start);
  }

  result<void> parse_type() {
    const std::size_t start = at_;
    if (at_ < text_.size() && text_[at_] == '[')
      return fail(errc::unsupported, "the array has a structured type", "an array of numbers", "records of named fields",
                  "save each field as an array of its own");
    TENSORSMITH_TRY(const std::string_view descr, parse_string("the array's type in quotes"));
    const std::size_t end = std::exchange(at_, start);
    const bool order = !descr.empty() && (descr[0] == '<' || descr[0] == '>' || descr[0] == '|' || descr[0] == '=');
    const std::string_view code = order ? descr.substr(1) : std::string_view();
    for (const npy_dtype& row : npy_dtypes) {
      if (row.code != code) continue;
      if (descr[0] == '|' && bits_of(row.type) > 8)
        return wrong("the array's type has no byte order", "'<' or '>' before " + std::string(code), quoted(descr));
      out_.type = row.type;
      out_.big_endian = descr[0] == '>' && bits_of(row.type) > 8;
      at_ = end;
      return {};
    }
    return refuse_type(descr, code.empty() ? '\0' : code[0], code);
  }

  failure refuse_type(std::string_view descr, char kind, std::string_view code) const {
    const auto refuse = [&](std::string what, std::string advice) {
      return fail(errc::unsupported, std::move(what), "booleans, integers, f2, f4, f8, c8 or c16", quoted(descr), std::move(advice));
    };
    switch (kind) {
      case 'O': return refuse("the array holds pickled Python objects, which are never loaded", "save numbers: array.astype('f4')");
      case 'S': case 'U': case 'a': return refuse("the array holds strings", "save numbers only");
      case 'M': case 'm': return refuse("the array holds dates or durations", "save them as integers: array.view('i8')");
      case 'V':
        if (code == "V2")
          return refuse("the array's elements are raw bytes",
                        "if they were bfloat16 (NumPy forgets the type), save array.astype('f4'), or write safetensors");
        return refuse("the array's elements are raw bytes", "save numbers: array.astype('f4')");
      default: return refuse("the array has an unsupported type", "save it with another type: array.astype('f4')");
    }
  }

  result<void> parse_shape() {
    if (!take('(')) return wrong("'shape' has a value of the wrong kind", "a tuple of integers");
    bool comma = false;
    for (;;) {
      skip_space();
      if (take(')')) break;
      if (!out_.shape.empty() && !comma) return wrong("'shape' is damaged", "',' or ')'");
      if (out_.shape.size() >= bounds_.rank)
        return fail(errc::limit, "the array has too many dimensions", "at most " + std::to_string(bounds_.rank), {},
                    "raise limits::rank (--max-rank) if you trust it");
      TENSORSMITH_TRY(const std::size_t extent, parse_extent());
      out_.shape.push_back(extent);
      skip_space();
      comma = take(',');
    }
    if (out_.shape.size() == 1 && !comma) return wrong("'shape' has a value of the wrong kind", "a tuple: (n,)", "an integer in parentheses");
    return {};
  }

  result<std::size_t> parse_extent() {
    const std::size_t start = at_;
    std::uint64_t value = 0;
    bool overflow = false;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9')
      overflow = __builtin_mul_overflow(value, std::uint64_t{10}, &value) ||
                 __builtin_add_overflow(value, static_cast<std::uint64_t>(text_[at_] - '0'), &value) || overflow, ++at_;
    const std::string_view digits = text_.substr(start, at_ - start);
    if (digits.empty() || (digits.size() > 1 && digits[0] == '0')) {
      at_ = start;
      return wrong("'shape' holds something that is no extent", "a non-negative integer");
    }
    if (overflow) {
      at_ = start;
      return wrong("an extent overflows 64 bits", "less than 2^64", quoted(digits));
    }
    (void)take('L');  // Python 2 wrote its long integers so
    return static_cast<std::size_t>(value);
  }

  /// Products are checked at every step, also where a later extent is 0.
  result<void> check_size() const {
    std::uint64_t elements = 1, dense = 1;  // dense: without the extents that are 0, which libraries multiply as well
    bool overflow = false, too_large = false;
    for (const std::size_t extent : out_.shape) {
      overflow = overflow || __builtin_mul_overflow(elements, static_cast<std::uint64_t>(extent), &elements);
      too_large = too_large || __builtin_mul_overflow(dense, std::max<std::uint64_t>(extent, 1), &dense) || dense >= bounds_.elements;
    }
    std::uint64_t bytes = 0;
    overflow = overflow || __builtin_mul_overflow(elements, static_cast<std::uint64_t>(bits_of(out_.type) / 8), &bytes);
    if (overflow) return wrong("the size of the array overflows 64 bits", {}, "shape " + to_string(out_.shape));
    if (too_large)
      return fail(errc::limit, "the array is too large", "fewer than " + std::to_string(bounds_.elements) + " elements",
                  "shape " + to_string(out_.shape), "raise limits::elements (--max-elements) if you trust it");
    return {};
  }

  std::string_view text_;
  std::size_t base_, at_ = 0;
  std::string file_, place_;
  const limits& bounds_;
  npy_header out_;
  unsigned seen_ = 0;
};

/// The fixed start of a .npy file: where the dictionary begins and ends.
struct npy_start {
  std::size_t text = 0;
  std::uint64_t data = 0;
};

/// Checks magic, version and length. `start`: the first 12 bytes, fewer if the file is shorter; `size`: bytes of the file.
inline result<npy_start> read_npy_start(std::span<const std::byte> start, std::uint64_t size, const std::string& file, const std::string& place,
                                        const limits& bounds) {
  const auto refuse = [&](errc code, std::string what, std::size_t at, std::string expected, std::string found, std::string advice = {}) {
    return failure{.code = code, .what = std::move(what), .file = file, .place = place + "byte offset " + std::to_string(at),
                   .expected = std::move(expected), .found = std::move(found), .advice = std::move(advice)};
  };
  const std::string_view text(reinterpret_cast<const char*>(start.data()), start.size());
  if (!text.starts_with(npy_magic))
    return refuse(errc::malformed, "the array does not start as a NumPy array", 0, "\\x93NUMPY", size == 0 ? "nothing" : quoted(text.substr(0, 6)));
  const auto byte = [&](std::size_t i) { return static_cast<std::uint64_t>(static_cast<unsigned char>(text[i])); };
  const bool narrow = size >= 8 && byte(6) == 1;
  if (const std::size_t fixed = narrow ? 10 : 12; start.size() < fixed)
    return refuse(errc::malformed, "the array is too short for a header", 0, std::to_string(fixed) + " bytes", std::to_string(size));
  if (byte(6) < 1 || byte(6) > 3 || byte(7) != 0)
    return refuse(errc::unsupported, "the array has an unknown version of the format", 6, "1.0, 2.0 or 3.0",
                  std::to_string(byte(6)) + "." + std::to_string(byte(7)));
  npy_start out{narrow ? std::size_t{10} : std::size_t{12}, 0};
  std::uint64_t length = 0;
  for (std::size_t i = out.text; i-- > 8;) length = (length << 8) | byte(i);
  if (length > bounds.npy_header_bytes)
    return refuse(errc::limit, "the header is too long", 8, "at most " + std::to_string(bounds.npy_header_bytes) + " bytes", std::to_string(length),
                  "raise limits::npy_header_bytes (--max-npy-header) if you trust it");
  if (length > size - out.text)
    return refuse(errc::malformed, "the header ends past the end of the array", 8, "at most " + std::to_string(size - out.text) + " bytes",
                  std::to_string(length), "copy or download it again");
  out.data = out.text + length;
  return out;
}

/// Reads a header from its file. `read(n)` gives the first n bytes (fewer if there are no more); `place` ends in ": " unless empty.
template <class Read>
result<npy_header> read_npy_header(std::uint64_t size, const std::string& file, const std::string& place, const limits& bounds, Read&& read) {
  TENSORSMITH_TRY(std::vector<std::byte> bytes, read(std::size_t{12}));
  TENSORSMITH_TRY(const npy_start start, read_npy_start(bytes, size, file, place, bounds));
  TENSORSMITH_TRY(bytes, read(static_cast<std::size_t>(start.data)));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  TENSORSMITH_TRY(npy_header header, npy_header_parser(text.substr(start.text), start.text, file, place, bounds).parse());
  header.data_offset = start.data;
  const std::uint64_t present = size - start.data, wanted = header.data_bytes();
  if (present != wanted)
    return failure{.code = errc::malformed,
                   .what = present < wanted ? "the array is cut off" : std::to_string(present - wanted) + " bytes behind the array belong to nothing",
                   .file = file, .place = place + "byte offset " + std::to_string(start.data + (present < wanted ? present : wanted)),
                   .expected = std::to_string(wanted) + " bytes for " + std::string(name_of(header.type)) + " " + to_string(header.shape),
                   .found = std::to_string(present), .advice = present < wanted ? "copy or download it again" : ""};
  return header;
}

}  // namespace detail

/// How NumPy spells an element type ("<f4"), if it has it: no bf16, no 8-bit floats, nothing below a byte.
inline std::optional<std::string> npy_name(dtype type) {
  for (const detail::npy_dtype& row : detail::npy_dtypes)
    if (row.type == type) return (bits_of(type) > 8 ? "<" : "|") + std::string(row.code);
  return std::nullopt;
}

/// The bytes before the data of an array in C order, version 1.0, padded with spaces to a multiple of 64. @pre npy_name(type)
inline std::string npy_header_bytes(dtype type, const shape_type& shape) {
  std::string text = "{'descr': '" + *npy_name(type) + "', 'fortran_order': False, 'shape': (";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  text += shape.size() == 1 ? ",), }" : "), }";
  text.append((64 - (10 + text.size() + 1) % 64) % 64, ' ');
  text += '\n';
  std::string out(detail::npy_magic);
  out += '\1';
  out += '\0';
  out += static_cast<char>(static_cast<unsigned char>(text.size() & 0xFF));
  out += static_cast<char>(static_cast<unsigned char>(text.size() >> 8));
  return out + text;
}

TENSORSMITH_END_NAMESPACE
