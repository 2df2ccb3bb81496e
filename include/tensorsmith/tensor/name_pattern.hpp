// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/name_pattern.hpp: name patterns whose wildcards can be put into another name: "*.to_q.weight" → "$1.query.weight".
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What the wildcards of a pattern (`*` any run of characters, `?` any one; core/glob.hpp) stand for in `text`, in the order of the
/// pattern, if all of the text matches. Each `*` takes as little as it can, the last one the rest. Views into `text`.
inline std::optional<std::vector<std::string_view>> match_captures(std::string_view pattern, std::string_view text) {
  std::vector<std::string_view> out;
  std::size_t p = 0, t = 0;
  std::size_t star = std::string_view::npos, star_capture = 0, star_begin = 0, star_end = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_begin = star_end = t;
      star_capture = out.size();
      out.push_back(text.substr(t, 0));
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      if (pattern[p] == '?') out.push_back(text.substr(t, 1));
      ++p, ++t;
    } else if (star != std::string_view::npos) {  // the last star takes one more, and what came after it starts anew
      out.resize(star_capture);
      ++star_end;
      out.push_back(text.substr(star_begin, star_end - star_begin));
      p = star + 1;
      t = star_end;
    } else {
      return std::nullopt;
    }
  }
  for (; p < pattern.size() && pattern[p] == '*'; ++p) out.push_back(text.substr(text.size()));
  if (p < pattern.size()) return std::nullopt;
  return out;
}

/// `pattern` with `$1` … `$9` replaced by the captures of these numbers; `$$` stands for `$`. Nothing if there is no such capture.
inline std::optional<std::string> put_captures(std::string_view pattern, std::span<const std::string_view> captures) {
  std::string out;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '$' || i + 1 == pattern.size()) {
      out += pattern[i];
      continue;
    }
    const char next = pattern[++i];
    if (next >= '1' && next <= '9') {
      const auto number = static_cast<std::size_t>(next - '1');
      if (number >= captures.size()) return std::nullopt;
      out.append(captures[number]);
    } else {
      out += '$';
      if (next != '$') out += next;
    }
  }
  return out;
}

/// `pattern` with its wildcards, in order, replaced by the captures. Nothing if it has more of them than there are captures.
inline std::optional<std::string> fill_wildcards(std::string_view pattern, std::span<const std::string_view> captures) {
  std::string out;
  std::size_t number = 0;
  for (const char c : pattern) {
    if (c != '*' && c != '?') {
      out += c;
      continue;
    }
    if (number == captures.size()) return std::nullopt;
    out.append(captures[number++]);
  }
  return out;
}

TENSORSMITH_END_NAMESPACE
