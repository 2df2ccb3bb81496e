// SPDX-License-Identifier: MIT
//
// common/paths.hpp: whether two paths of a command line name the same thing.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>

namespace examples {

/// True if `path` is `folder` or lies below it, links resolved as far as the paths exist.
inline bool lies_within(const std::string& path, const std::string& folder) {
  std::error_code ignored;
  const auto inner = std::filesystem::weakly_canonical(path, ignored);
  auto outer = std::filesystem::weakly_canonical(folder, ignored);
  if (!outer.has_filename()) outer = outer.parent_path();  // "out/" and "out" are one folder
  const auto [in_outer, in_inner] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  return !outer.empty() && !inner.empty() && in_outer == outer.end();  // empty: it cannot be told; publishing asks again
}

/// True if both name one existing file or folder.
inline bool same_place(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return std::filesystem::equivalent(a, b, ignored);
}

}  // namespace examples
