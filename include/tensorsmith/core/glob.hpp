// SPDX-License-Identifier: MIT
//
// tensorsmith/core/glob.hpp: shell-like name patterns: `*` any run of characters, `?` any one character.
#pragma once

#include <cstddef>
#include <string_view>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// True if all of `text` matches `pattern`. Dots and slashes are ordinary characters. Time is O(|pattern| · |text|).
constexpr bool glob_match(std::string_view pattern, std::string_view text) noexcept {
  std::size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || (pattern[p] != '*' && pattern[p] == text[t]))) {
      ++p, ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

TENSORSMITH_END_NAMESPACE
