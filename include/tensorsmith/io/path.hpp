// SPDX-License-Identifier: MIT
//
// tensorsmith/io/path.hpp: paths as text: joining, splitting, and the check that a name from a file stays in its folder.
// No system call. Paths are byte strings with '/' between the parts, whatever their encoding.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tensorsmith/core/error.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// `folder/name`; `name` alone if the folder is empty.
inline std::string join_path(std::string_view folder, std::string_view name) {
  std::string out(folder);
  if (!out.empty() && out.back() != '/') out += '/';
  return out.append(name);
}

/// The path less the slashes at its end: "a/b//" → "a/b", "/" → "/".
inline std::string_view without_trailing_slashes(std::string_view path) noexcept {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  return path;
}

/// The last part of a path: "a/b.txt" → "b.txt", "a/" → "a".
inline std::string_view file_name(std::string_view path) noexcept {
  path = without_trailing_slashes(path);
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

/// The folder that holds the path: "a/b" → "a", "b" → ".", "/b" → "/".
inline std::string_view parent_path(std::string_view path) noexcept {
  path = without_trailing_slashes(path);
  const std::size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return slash == 0 ? path.substr(0, 1) : without_trailing_slashes(path.substr(0, slash));
}

/// The extension with its dot: "a/b.safetensors" → ".safetensors"; empty for "b" and ".b".
inline std::string_view extension(std::string_view path) noexcept {
  const std::string_view name = file_name(path);
  const std::size_t dot = name.rfind('.');
  return dot == std::string_view::npos || dot == 0 ? std::string_view() : name.substr(dot);
}

/// True if `text` ends in `ending`, ASCII letters of either case taken as equal.
inline bool ends_with_ignoring_case(std::string_view text, std::string_view ending) noexcept {
  if (text.size() < ending.size()) return false;
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  for (std::size_t i = 0; i < ending.size(); ++i)
    if (lower(text[text.size() - ending.size() + i]) != lower(ending[i])) return false;
  return true;
}

/// Accepts a relative path that cannot leave the folder it is resolved in: no empty, "." or ".." part, no leading slash,
/// no backslash, no control character. `where` names the place that holds it, for the message.
/// @fails path
inline result<void> check_relative_path(std::string_view path, std::string_view file, std::string_view where,
                                        bool allow_subfolders = true) {
  const auto refuse = [&](std::string_view why) {
    return failure{.code = errc::path, .what = "the path " + quoted(path) + " is refused: " + std::string(why),
                   .file = std::string(file), .place = std::string(where),
                   .expected = allow_subfolders ? "a path below the folder" : "the name of a file in the same folder"};
  };
  if (path.empty()) return refuse("it is empty");
  if (path.front() == '/') return refuse("it is absolute");
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = path.find('/', at) == std::string_view::npos ? path.size() : path.find('/', at);
    const std::string_view part = path.substr(at, end - at);
    if (part.empty() || part == ".") return refuse("it has an empty part or '.'");
    if (part == "..") return refuse("it leaves its folder");
    at = end + 1;
    if (!allow_subfolders && at <= path.size()) return refuse("it lies in another folder");
  }
  for (const char c : path)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F || c == '\\')
      return refuse("it holds a control character or a backslash");
  return {};
}

TENSORSMITH_END_NAMESPACE
