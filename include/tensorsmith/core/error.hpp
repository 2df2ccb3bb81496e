// SPDX-License-Identifier: MIT
//
// tensorsmith/core/error.hpp: failures as values. Include this for errc, failure, result<T>, exit_code and quoted.
//
// Everything that can fail because of a file, a model or the disk returns a result<T>; nothing throws for bad input.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Stable error codes. The spelling (`code_name`) and the process exit status (`exit_code`) never change.
enum class errc : std::uint8_t {
  malformed,    ///< FMT: the bytes break their format
  limit,        ///< LIM: a limit is exceeded; the message names the option that raises it
  unsupported,  ///< UNS: well-formed but not supported
  path,         ///< PTH: path refused
  integrity,    ///< ITG: checksum or changed file
  mismatch,     ///< MIS: parts do not fit together
  numeric,      ///< NUM: numeric policy
  io,           ///< IO: a system call failed
  no_space,     ///< NOSPC: no space or quota
  network,      ///< NET: transfer
  busy,         ///< BUSY: locked
  denied,       ///< DENY: not permitted by policy
  cancelled,    ///< CANC: cancelled
  usage,        ///< USE: bad option or argument
  internal,     ///< INT: our bug
};

/// The short spelling of a code: "FMT", "LIM", …
constexpr std::string_view code_name(errc code) noexcept {
  constexpr std::string_view names[] = {"FMT", "LIM",   "UNS", "PTH",  "ITG",  "MIS",  "NUM", "IO",
                                        "NOSPC", "NET", "BUSY", "DENY", "CANC", "USE", "INT"};
  return names[static_cast<std::size_t>(code)];
}

/// The process exit status of a code: 2 for a bad option (the custom of command lines), 10 and up for the others.
constexpr int exit_code(errc code) noexcept { return code == errc::usage ? 2 : 10 + static_cast<int>(code); }

namespace detail {
struct quoted_function {
  std::string operator()(std::string_view text) const;
};
}  // namespace detail

/// Untrusted text made safe to print: control characters, escapes, invalid UTF-8 and bidirectional marks become \xNN or \u{N};
/// at most 200 bytes of input are shown and "…(n bytes)" says how many there were; wrapped in single quotes.
/// An object and not a function: argument-dependent lookup would prefer std::quoted wherever <iomanip> is included.
inline constexpr detail::quoted_function quoted{};

/// What went wrong, as data. `message()` puts it into one sentence.
struct failure {
  errc code = errc::internal;
  std::string what{};      ///< the finding as a clause: "the header ends past the end of the file"
  std::string file{};      ///< the file as the user gave it; empty if none is concerned
  std::string place{};     ///< byte offset, JSON pointer, zip entry, pickle opcode offset, tensor or node name
  std::string expected{};  ///< what was expected there
  std::string found{};     ///< what was found there
  std::string advice{};    ///< what to do about it

  /// "CODE file: place: what (expected …, found …); advice". Parts that are empty are left out. One line.
  std::string message() const;
};

inline int exit_code(const failure& error) noexcept { return exit_code(error.code); }

/// A value or a failure. Member names follow std::expected, which the floor compilers lack.
template <class T>
class [[nodiscard]] result {
 public:
  using value_type = T;
  result(T value) : state_(std::in_place_index<0>, std::move(value)) {}           // NOLINT: implicit by design
  result(failure error) : state_(std::in_place_index<1>, std::move(error)) {}     // NOLINT: implicit by design

  bool has_value() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  T& value() & noexcept { return *std::get_if<0>(&state_); }
  const T& value() const& noexcept { return *std::get_if<0>(&state_); }
  T&& value() && noexcept { return std::move(*std::get_if<0>(&state_)); }
  failure& error() & noexcept { return *std::get_if<1>(&state_); }
  const failure& error() const& noexcept { return *std::get_if<1>(&state_); }
  failure&& error() && noexcept { return std::move(*std::get_if<1>(&state_)); }

  T& operator*() & noexcept { return value(); }
  const T& operator*() const& noexcept { return value(); }
  T&& operator*() && noexcept { return std::move(*this).value(); }
  T* operator->() noexcept { return &value(); }
  const T* operator->() const noexcept { return &value(); }

 private:
  std::variant<T, failure> state_;
};

/// Success without a value, or a failure. A default-constructed result<void> is success.
template <>
class [[nodiscard]] result<void> {
 public:
  using value_type = void;
  result() = default;
  result(failure error) : error_(std::move(error)), failed_(true) {}  // NOLINT: implicit by design

  bool has_value() const noexcept { return !failed_; }
  explicit operator bool() const noexcept { return !failed_; }
  failure& error() & noexcept { return error_; }
  const failure& error() const& noexcept { return error_; }
  failure&& error() && noexcept { return std::move(error_); }

 private:
  failure error_;
  bool failed_ = false;
};

namespace detail {

/// Length of the valid UTF-8 sequence at `text[at]` and its code point, or 0 if the bytes there are not UTF-8.
inline std::size_t utf8_sequence(std::string_view text, std::size_t at, std::uint32_t& point) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at);
  if (lead < 0x80) return point = lead, 1;
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 0;
  if (length == 0 || lead > 0xF4 || at + length > text.size()) return 0;
  std::uint32_t value = lead & (0xFFU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
    value = (value << 6) | (byte(at + i) & 0x3FU);
  }
  constexpr std::uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < smallest[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return 0;
  return point = value, length;
}

inline bool unsafe_to_print(std::uint32_t point) noexcept {
  return point < 0x20 || (point >= 0x7F && point < 0xA0) || point == 0x061C || (point >= 0x200B && point <= 0x200F) ||
         (point >= 0x2028 && point <= 0x202E) || (point >= 0x2066 && point <= 0x2069) || point == 0xFEFF;
}

inline void append_hex(std::string& out, std::uint32_t value, int digits) {
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += "0123456789abcdef"[(value >> shift) & 0xF];
}

}  // namespace detail

/// True if all of `text` is valid UTF-8; otherwise `bad_offset` receives the offset of the first wrong byte.
inline bool is_utf8(std::string_view text, std::size_t& bad_offset) noexcept {
  std::uint32_t point = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = detail::utf8_sequence(text, at, point);
    if (length == 0) return bad_offset = at, false;
    at += length;
  }
  return true;
}

inline std::string detail::quoted_function::operator()(std::string_view text) const {
  constexpr std::size_t most = 200;
  std::string out = "'";
  std::size_t at = 0;
  while (at < text.size() && at < most) {
    std::uint32_t point = 0;
    const std::size_t length = detail::utf8_sequence(text, at, point);
    if (length == 0) {
      out += "\\x";
      detail::append_hex(out, static_cast<unsigned char>(text[at++]), 2);
      continue;
    }
    if (at + length > most) break;
    if (point < 0x80 && detail::unsafe_to_print(point)) {
      out += "\\x";
      detail::append_hex(out, point, 2);
    } else if (detail::unsafe_to_print(point)) {
      out += "\\u{";
      detail::append_hex(out, point, 4);
      out += '}';
    } else {
      out.append(text.substr(at, length));
    }
    at += length;
  }
  out += '\'';
  if (at < text.size()) out += "…(" + std::to_string(text.size()) + " bytes)";
  return out;
}

inline std::string failure::message() const {
  std::string out(code_name(code));
  out += ' ';
  if (!file.empty()) out += file + ": ";
  if (!place.empty()) out += place + ": ";
  out += what;
  if (!expected.empty() || !found.empty()) {
    out += " (";
    if (!expected.empty()) out += "expected " + expected;
    if (!expected.empty() && !found.empty()) out += ", ";
    if (!found.empty()) out += "found " + found;
    out += ')';
  }
  if (!advice.empty()) out += "; " + advice;
  return out;
}

TENSORSMITH_END_NAMESPACE
