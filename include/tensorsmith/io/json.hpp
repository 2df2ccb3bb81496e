// SPDX-License-Identifier: MIT
//
// tensorsmith/io/json.hpp: JSON text to json_value and back, and a bounded walk over JSON that builds nothing.
//
// Include this for configurations (parse_json, read_json_file, write_json) and, in readers of formats with large JSON headers,
// for walk_json. The one header that includes nlohmann/json.
#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/io/file.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How walk_json reads.
struct walk_options {
  std::uint64_t depth = limits{}.json_depth;  ///< most nested arrays and objects
  std::uint64_t base_offset = 0;              ///< offset of the text in its file, for messages
  /// Objects at this depth and deeper must have unique keys (0: all). A handler that checks the keys of outer objects itself
  /// sets it higher, and no second copy of those keys is held.
  std::size_t unique_keys_from = 0;
  bool large_integers = false;                ///< integers beyond 64 bits are numbers and no error: transformers writes 10^30 for "no limit"
};

/// Where a walk is. A handler reports what it refuses through `fail`.
class json_cursor {
 public:
  /// Byte offset in the file just behind the token that is being reported (one further behind a number).
  std::uint64_t offset() const noexcept { return options_.base_offset + static_cast<std::uint64_t>(at_ - text_.data()); }
  /// Open arrays and objects around the current value.
  std::size_t depth() const noexcept { return depth_; }
  /// The key or index of the current value in the container of nesting `level` (0: the outermost).
  std::string_view key(std::size_t level) const noexcept { return frames_[level].key; }
  std::size_t index(std::size_t level) const noexcept { return frames_[level].index; }

  /// RFC 6901 pointer of the current value, quoted for printing.
  std::string pointer() const {
    std::string out;
    for (std::size_t i = 0; i < depth_; ++i) {
      const frame& f = frames_[i];
      if (f.count == 0) break;
      out += '/';
      if (f.array) {
        out += std::to_string(f.index);
        continue;
      }
      for (const char c : f.key) out += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
    }
    return quoted(out);
  }

  /// "byte offset 12 at '/a/shape/0'", without the pointer at the top of the document.
  std::string place() const {
    const std::string at = pointer();
    return "byte offset " + std::to_string(offset()) + (at == "''" ? std::string() : " at " + at);
  }

  /// Stops the walk with this failure; its file and place are filled in. Returns false, to be returned by the handler.
  bool fail(errc code, std::string what, std::string expected = {}, std::string found = {}, std::string advice = {}) {
    error_ = failure{.code = code, .what = std::move(what), .file = file_, .place = place(), .expected = std::move(expected),
                     .found = std::move(found), .advice = std::move(advice)};
    return false;
  }

 protected:
  struct frame {
    bool array = false;
    std::size_t index = 0, count = 0;
    std::size_t first_key = 0;  // in keys_, if keys are collected
    std::string key;
  };
  json_cursor(std::string_view text, const std::string& file, const walk_options& options)
      : text_(text), at_(text.data()), file_(file), options_(options) {}

  std::string_view text_;
  const char* at_;
  const std::string& file_;
  const walk_options& options_;
  std::vector<frame> frames_;  // kept when a container closes, so that their strings are reused
  std::size_t depth_ = 0;
  std::optional<failure> error_;
};

namespace detail {

/// A byte iterator that tells how far the parser has read.
class counting_iterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  counting_iterator() = default;
  counting_iterator(const char* at, const char** seen) noexcept : at_(at), seen_(seen) {}
  reference operator*() const noexcept { return *at_; }
  counting_iterator& operator++() noexcept {
    *seen_ = ++at_;
    return *this;
  }
  counting_iterator operator++(int) noexcept {
    counting_iterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const counting_iterator& other) const noexcept { return at_ == other.at_; }

 private:
  const char* at_ = nullptr;
  const char** seen_ = nullptr;
};

/// Turns the parser's events into the handler's, keeping depth, position and unique keys.
template <class Handler>
class json_walker final : public json_cursor {
 public:
  using json = nlohmann::json;
  json_walker(std::string_view text, const std::string& file, const walk_options& options, Handler& handler)
      : json_cursor(text, file, options), handler_(handler) {}

  result<void> go() {
    if (const void* nul = text_.empty() ? nullptr : std::memchr(text_.data(), 0, text_.size())) {
      at_ = static_cast<const char*>(nul);  // the parser would take it for the end of the text
      fail(errc::malformed, "a NUL byte in JSON text");
      return std::move(*error_);
    }
    if (text_.starts_with("\xEF\xBB\xBF")) {
      fail(errc::malformed, "a byte order mark before JSON text", "'{' or another value", {}, "save the file as UTF-8 without it");
      return std::move(*error_);
    }
    const counting_iterator first(text_.data(), &at_), last(text_.data() + text_.size(), &at_);
    if (json::sax_parse(first, last, this, json::input_format_t::json, /*strict=*/true)) return {};
    if (!error_) fail(errc::malformed, "invalid JSON");
    return std::move(*error_);
  }

  bool null() { return next() && handler_.null(*this); }
  bool boolean(bool value) { return next() && handler_.boolean(value, *this); }
  bool number_integer(json::number_integer_t value) { return next() && handler_.integer(value, *this); }
  bool number_unsigned(json::number_unsigned_t value) { return next() && handler_.natural(value, *this); }
  bool number_float(json::number_float_t value, const json::string_t& written) {
    if (!next()) return false;
    // Not asked by its point: in a locale with decimal commas the parser hands the text on with a comma.
    if (!options_.large_integers && written.find_first_not_of("-0123456789") == std::string::npos)
      return fail(errc::malformed, "the integer is out of range", "an integer of 64 bits", quoted(written));
    return handler_.number(value, *this);
  }
  bool string(json::string_t& value) { return next() && handler_.string(value, *this); }
  bool binary(json::binary_t&) { return false; }  // never in text
  bool start_object(std::size_t) { return next() && open(false) && handler_.start_object(*this); }
  bool start_array(std::size_t) { return next() && open(true) && handler_.start_array(*this); }
  bool end_array() {
    --depth_;
    return handler_.end_array(*this);
  }
  bool key(json::string_t& name) {
    frame& f = frames_[depth_ - 1];
    ++f.count;
    f.key = name;
    if (depth_ > options_.unique_keys_from) keys_.push_back({name, offset()});
    return handler_.key(name, *this);
  }
  bool end_object() {
    if (depth_ > options_.unique_keys_from && !unique_keys()) return false;
    --depth_;
    return handler_.end_object(*this);
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& problem) {
    // "[json.exception…] parse error at line 1, column 5: syntax error while parsing value - unexpected end of input; expected …"
    std::string_view reason(problem.what());
    if (reason.find("number overflow") != std::string_view::npos)
      return fail(errc::malformed, "the number is out of range", "a number that a double holds");
    if (const std::size_t dash = reason.find(" - "); dash != std::string_view::npos) reason.remove_prefix(dash + 3);
    std::string what(reason.substr(0, std::min(reason.find("; last read"), reason.find("; expected"))));
    if (what.find("UTF-8") != std::string::npos || what.find("ill-formed") != std::string::npos) what = "invalid UTF-8 in a string";
    if (at_ != text_.data() && what.find("end of input") == std::string::npos) --at_;  // the offending byte itself
    return fail(errc::malformed, "invalid JSON: " + what, {}, found_byte());
  }

 private:
  struct known_key {
    std::string name;
    std::uint64_t offset;
  };

  /// Counts a value in the array around it.
  bool next() noexcept {
    if (depth_ == 0) return true;
    frame& f = frames_[depth_ - 1];
    if (f.array) f.index = f.count++;
    return true;
  }

  bool open(bool array) {
    if (depth_ >= options_.depth)
      return fail(errc::limit, "JSON is nested too deeply", "at most " + std::to_string(options_.depth) + " levels", {},
                  "raise limits::json_depth (--max-json-depth) if you trust it");
    if (depth_ == frames_.size()) frames_.emplace_back();
    frame& f = frames_[depth_++];
    f.array = array;
    f.index = f.count = 0;
    f.first_key = keys_.size();
    return true;
  }

  bool unique_keys() {
    const auto first = keys_.begin() + static_cast<std::ptrdiff_t>(frames_[depth_ - 1].first_key);
    if (keys_.end() - first > 1) {
      std::sort(first, keys_.end(), [](const known_key& a, const known_key& b) {
        return a.name != b.name ? a.name < b.name : a.offset < b.offset;
      });
      const auto twice = std::adjacent_find(first, keys_.end(), [](const auto& a, const auto& b) { return a.name == b.name; });
      if (twice != keys_.end()) {
        frames_[depth_ - 1].key = twice->name;
        at_ = text_.data() + (twice[1].offset - options_.base_offset);
        return fail(errc::malformed, "the key " + quoted(twice->name) + " appears twice in one object", "unique keys",
                    "it at byte offsets " + std::to_string(twice[0].offset) + " and " + std::to_string(twice[1].offset));
      }
    }
    keys_.erase(first, keys_.end());
    return true;
  }

  std::string found_byte() const {
    return at_ < text_.data() + text_.size() ? quoted(text_.substr(static_cast<std::size_t>(at_ - text_.data()), 1))
                                             : std::string("the end of the text");
  }

  Handler& handler_;
  std::vector<known_key> keys_;  // of the open objects whose keys are checked
};

}  // namespace detail

/// Reads JSON text event by event in bounded memory. `Handler` has, each returning false after json_cursor::fail to stop:
/// null(c), boolean(bool, c), integer(int64, c) (negative ones), natural(uint64, c), number(double, c), string(std::string&, c),
/// start_object(c), key(std::string&, c), end_object(c), start_array(c), end_array(c), with `json_cursor& c` last. Strings may be moved from.
/// @fails malformed (syntax, UTF-8, numbers out of range, duplicate keys, anything behind the value), limit (depth), and what
/// the handler refuses
template <class Handler>
result<void> walk_json(std::string_view text, const std::string& file, Handler& handler, const walk_options& options = {}) {
  detail::json_walker<Handler> walker(text, file, options, handler);
  return walker.go();
}

namespace detail {

/// Builds a json_value. Its memory stays within 32 MiB + 4 × the length of the text.
class json_builder {
 public:
  explicit json_builder(std::size_t text_bytes) : budget_(((std::size_t{32} << 20) + 4 * text_bytes) / sizeof(json_value)) {}
  json_value take() { return std::move(root_); }

  bool null(json_cursor& c) { return put(json_value(), c); }
  bool boolean(bool value, json_cursor& c) { return put(json_value(value), c); }
  bool integer(std::int64_t value, json_cursor& c) { return put(json_value(value), c); }
  bool natural(std::uint64_t value, json_cursor& c) {
    if (value > static_cast<std::uint64_t>(INT64_MAX))
      return c.fail(errc::malformed, "the integer is out of range", "an integer of 64 bits", std::to_string(value));
    return put(json_value(static_cast<std::int64_t>(value)), c);
  }
  bool number(double value, json_cursor& c) { return put(json_value(value), c); }
  bool string(std::string& value, json_cursor& c) { return put(json_value(std::move(value)), c); }
  bool key(std::string& name, json_cursor&) {
    open_.back()->as_object()->emplace_back(std::move(name), json_value());
    return true;
  }
  bool start_object(json_cursor& c) { return put(json_value(json_value::object{}), c); }
  bool start_array(json_cursor& c) { return put(json_value(json_value::array{}), c); }
  bool end_object(json_cursor&) { return open_.pop_back(), true; }
  bool end_array(json_cursor&) { return open_.pop_back(), true; }

 private:
  bool put(json_value value, json_cursor& c) {
    if (budget_ == 0)
      return c.fail(errc::limit, "JSON has too many values for its length", {}, {}, "this is no configuration; check the file");
    --budget_;
    json_value* place = &root_;
    if (!open_.empty()) {
      if (json_value::array* items = open_.back()->as_array()) {
        place = &items->emplace_back();
      } else {
        place = &open_.back()->as_object()->back().second;
      }
    }
    *place = std::move(value);
    if (place->as_object() || place->as_array()) open_.push_back(place);  // stays valid: only the innermost container grows
    return true;
  }

  json_value root_;
  std::vector<json_value*> open_;
  std::size_t budget_;
};

}  // namespace detail

/// JSON text as a value; `file` is what messages call it. @fails malformed, limit (depth, too many values)
inline result<json_value> parse_json(std::string_view text, const std::string& file, const limits& bounds = {}) {
  detail::json_builder builder(text.size());
  TENSORSMITH_CHECK(walk_json(text, file, builder, {.depth = bounds.json_depth}));
  return builder.take();
}

/// The JSON document in a source of at most `most` bytes. @fails malformed, limit, io
inline result<json_value> read_json(const byte_source& source, std::uint64_t most = limits{}.config_bytes, const limits& bounds = {}) {
  TENSORSMITH_TRY(const std::string text, read_text(source, most, "limits::config_bytes (--max-config)"));
  return parse_json(text, source.name(), bounds);
}

/// The JSON document in a file of at most `most` bytes. @fails malformed, limit, path, io
inline result<json_value> read_json_file(const std::string& path, std::uint64_t most = limits{}.config_bytes, const limits& bounds = {}) {
  TENSORSMITH_TRY(const auto file, open_file(path));
  return read_json(*file, most, bounds);
}

/// Appends text as a JSON string with quotes. UTF-8 is kept; bytes that are no UTF-8 become U+FFFD.
inline void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (std::size_t at = 0; at < text.size();) {
    std::uint32_t point = 0;
    const std::size_t length = detail::utf8_sequence(text, at, point);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      ++at;
      continue;
    }
    switch (point) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (point < 0x20) {
          out += "\\u";
          detail::append_hex(out, point, 4);
        } else {
          out.append(text.substr(at, length));
        }
    }
    at += length;
  }
  out += '"';
}

/// Appends the shortest text that reads back as the same double, in the form Python prints: 0.00085, 1e-05, 1.0. Values that
/// JSON cannot hold (infinite, not a number) become null.
inline void append_json_number(std::string& out, double value) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  char digits[400];
  const double size = std::fabs(value);
  const bool plain = value == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(digits, digits + sizeof digits, value,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific);
  const std::string_view text(digits, static_cast<std::size_t>(end.ptr - digits));
  out += text;
  if (plain && text.find('.') == std::string_view::npos) out += ".0";
}

namespace detail {

inline void append_json(std::string& out, const json_value& value, int indent, int level) {
  const auto line = [&](int depth) {
    if (indent <= 0) return;
    out += '\n';
    out.append(static_cast<std::size_t>(indent * depth), ' ');
  };
  const std::string_view comma = indent > 0 ? "," : ", ";
  if (const bool* b = value.as_bool()) {
    out += *b ? "true" : "false";
  } else if (const std::int64_t* i = value.as_integer()) {
    out += std::to_string(*i);
  } else if (const double* d = value.as_double()) {
    append_json_number(out, *d);
  } else if (const std::string* s = value.as_string()) {
    append_json_string(out, *s);
  } else if (const json_value::array* items = value.as_array()) {
    out += '[';
    for (std::size_t k = 0; k < items->size(); ++k) {
      if (k) out += comma;
      line(level + 1);
      append_json(out, (*items)[k], indent, level + 1);
    }
    if (!items->empty()) line(level);
    out += ']';
  } else if (const json_value::object* members = value.as_object()) {
    out += '{';
    for (std::size_t k = 0; k < members->size(); ++k) {
      if (k) out += comma;
      line(level + 1);
      append_json_string(out, (*members)[k].first);
      out += ": ";
      append_json(out, (*members)[k].second, indent, level + 1);
    }
    if (!members->empty()) line(level);
    out += '}';
  } else {
    out += "null";
  }
}

}  // namespace detail

/// JSON text of a value, laid out as Python's json.dumps(value, indent=indent, ensure_ascii=False); one line if indent is 0.
/// The same value gives the same bytes on every machine and in every locale.
inline std::string write_json(const json_value& value, int indent = 2) {
  std::string out;
  detail::append_json(out, value, indent, 0);
  return out;
}

TENSORSMITH_END_NAMESPACE
