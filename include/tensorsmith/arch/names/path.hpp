// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/names/path.hpp: dotted parameter names taken apart. Include this to write a table of names.
#pragma once

#include <charconv>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The same module (or parameter) under the two names it is published with.
struct name_pair {
  std::string_view ldm;        ///< as the original training code calls it
  std::string_view diffusers;  ///< as diffusers and transformers call it
};

/// A dotted name that is read from the front: `path_reader("input_blocks.4.1.norm.weight")`.
class path_reader {
 public:
  explicit path_reader(std::string_view path) noexcept : rest_(path) {}

  /// What has not been taken yet.
  std::string_view rest() const noexcept { return rest_; }
  bool empty() const noexcept { return rest_.empty(); }

  /// Takes `module` if the rest is it or starts with it and a dot.
  bool take(std::string_view module) noexcept {
    if (rest_.substr(0, module.size()) != module) return false;
    if (rest_.size() == module.size()) return rest_ = {}, true;
    if (rest_[module.size()] != '.') return false;
    rest_.remove_prefix(module.size() + 1);
    return true;
  }

  /// Takes a decimal index of at most four digits without leading zeros.
  std::optional<std::size_t> take_index() noexcept {
    const std::string_view part = rest_.substr(0, rest_.find('.'));
    std::size_t value = 0;
    if (part.empty() || part.size() > 4 || (part.size() > 1 && part[0] == '0')) return std::nullopt;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size()) return std::nullopt;
    rest_.remove_prefix(part.size() + (part.size() < rest_.size() ? 1 : 0));
    return value;
  }

 private:
  std::string_view rest_;
};

/// Replaces the module at the start of `key` by its other name, if the table has it.
inline std::optional<std::string> rename_head(std::string_view key, std::span<const name_pair> table, bool to_diffusers) {
  for (const name_pair& pair : table) {
    path_reader path(key);
    if (!path.take(to_diffusers ? pair.ldm : pair.diffusers)) continue;
    std::string out(to_diffusers ? pair.diffusers : pair.ldm);
    if (!path.empty()) out.append(".").append(path.rest());
    return out;
  }
  return std::nullopt;
}

namespace detail {

inline std::string dotted(std::string_view a, std::size_t i, std::string_view b) {
  return std::string(a) + "." + std::to_string(i) + "." + std::string(b);
}
inline std::string dotted(std::string_view a, std::size_t i, std::string_view b, std::size_t j, std::string_view c) {
  return dotted(a, i, dotted(b, j, c));
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
