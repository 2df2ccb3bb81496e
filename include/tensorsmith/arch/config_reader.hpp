// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/config_reader.hpp: reads a model's config.json with types and limits; every complaint names file and JSON pointer.
//
// Include this to read the configuration of an architecture. The reader keeps the first failure and goes on with harmless values; ask
// `outcome` before using what was read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/json_value.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Bounds of configured sizes. No published model comes near; they keep a nonsensical configuration from costing time or memory.
struct config_bounds {
  static constexpr std::size_t channels = 65536;    ///< channels, widths, input dimensions
  static constexpr std::size_t vocabulary = 1u << 24;
  static constexpr std::size_t layers = 256;        ///< layers of a stack, of a block, transformer blocks of a layer
  static constexpr std::size_t levels = 12;         ///< resolutions of a UNet or autoencoder
  static constexpr std::size_t heads = 4096;
};

/// A configuration being read.
class config_reader {
 public:
  /// `file` names the document in messages: "unet/config.json".
  config_reader(const json_value& config, std::string file) : config_(config), file_(std::move(file)) {
    if (config_.as_object() == nullptr) refuse(errc::malformed, "", "the configuration is no JSON object", "an object", std::string(config_.kind()));
  }

  /// The first failure, if there was one.
  result<void> outcome() const {
    if (failure_) return *failure_;
    return {};
  }
  bool failed() const noexcept { return failure_.has_value(); }

  /// True if the key exists and is not null.
  bool has(std::string_view key) const noexcept {
    const json_value* v = config_.find(key);
    return v != nullptr && !v->is_null();
  }
  const json_value* find(std::string_view key) const noexcept { return has(key) ? config_.find(key) : nullptr; }

  /// Keeps a failure at a key.
  void refuse(errc code, std::string_view key, std::string what, std::string expected = {}, std::string found = {}) {
    if (failure_) return;
    failure_ = failure{.code = code, .what = std::move(what), .file = file_, .place = key.empty() ? "" : "/" + std::string(key),
                       .expected = std::move(expected), .found = std::move(found)};
  }

  /// An integer in [least, most]; `fallback` where the key is absent or null.
  std::size_t integer(std::string_view key, std::size_t fallback, std::size_t most, std::size_t least = 1) {
    const json_value* v = find(key);
    return v ? checked(*v, std::string(key), least, most) : fallback;
  }
  /// An integer in [least, most] that must be there.
  std::size_t required(std::string_view key, std::size_t most, std::size_t least = 1) {
    if (!has(key)) refuse(errc::malformed, key, "the configuration lacks a value", "an integer", "nothing");
    return integer(key, least, most, least);
  }
  std::optional<std::size_t> optional(std::string_view key, std::size_t most, std::size_t least = 1) {
    if (!has(key)) return std::nullopt;
    return integer(key, least, most, least);
  }

  /// A finite number in [least, most].
  double number(std::string_view key, double fallback, double least, double most) {
    const json_value* v = find(key);
    if (v == nullptr) return fallback;
    double x = 0;
    if (const auto* i = v->as_integer()) x = static_cast<double>(*i);
    else if (const auto* d = v->as_double()) x = *d;
    else return refuse(errc::malformed, key, "wrong type", "a number", std::string(v->kind())), fallback;
    if (!(x >= least && x <= most))
      return refuse(errc::malformed, key, "the value is out of range", shown(least) + " to " + shown(most), shown(x)), fallback;
    return x;
  }

  bool flag(std::string_view key, bool fallback) {
    const json_value* v = find(key);
    if (v == nullptr) return fallback;
    if (const bool* b = v->as_bool()) return *b;
    refuse(errc::malformed, key, "wrong type", "true or false", std::string(v->kind()));
    return fallback;
  }

  std::string text(std::string_view key, std::string_view fallback) {
    const json_value* v = find(key);
    if (v == nullptr) return std::string(fallback);
    if (const std::string* s = v->as_string()) return *s;
    refuse(errc::malformed, key, "wrong type", "a string", std::string(v->kind()));
    return std::string(fallback);
  }

  /// One of some words; the index of it. @fails unsupported for any other word
  std::size_t choice(std::string_view key, std::string_view fallback, std::span<const std::string_view> words) {
    const std::string word = text(key, fallback);
    return index_of(word, std::string(key), words);
  }

  /// A list of integers of `count` entries, or of 1 to `most_entries` where count is 0.
  std::vector<std::size_t> integers(std::string_view key, std::size_t count, std::size_t most, std::size_t most_entries) {
    const json_value::array* list = entries(key, count, most_entries);
    std::vector<std::size_t> out;
    if (list == nullptr) return out;
    for (std::size_t i = 0; i < list->size(); ++i) out.push_back(checked((*list)[i], place(key, i), 1, most));
    return out;
  }

  /// An integer for all of `count` entries, or a list of them.
  std::vector<std::size_t> integer_or_list(std::string_view key, std::size_t fallback, std::size_t count, std::size_t most,
                                           std::size_t least = 1) {
    const json_value* v = find(key);
    if (v == nullptr || v->as_array() == nullptr) return std::vector<std::size_t>(count, integer(key, fallback, most, least));
    std::vector<std::size_t> out;
    if (const auto* list = entries(key, count, count))
      for (std::size_t i = 0; i < list->size(); ++i) out.push_back(checked((*list)[i], place(key, i), least, most));
    out.resize(count, fallback);
    return out;
  }

  std::vector<bool> flag_or_list(std::string_view key, bool fallback, std::size_t count) {
    const json_value* v = find(key);
    if (v == nullptr || v->as_array() == nullptr) return std::vector<bool>(count, flag(key, fallback));
    std::vector<bool> out;
    if (const auto* list = entries(key, count, count))
      for (std::size_t i = 0; i < list->size(); ++i) {
        const bool* b = (*list)[i].as_bool();
        if (b == nullptr) refuse(errc::malformed, place(key, i), "wrong type", "true or false", std::string((*list)[i].kind()));
        out.push_back(b && *b);
      }
    out.resize(count, fallback);
    return out;
  }

  /// A list of `count` words out of some; their indices. @fails unsupported for any other word
  std::vector<std::size_t> choices(std::string_view key, std::size_t count, std::span<const std::string_view> words) {
    std::vector<std::size_t> out;
    const json_value::array* list = entries(key, count, count);
    for (std::size_t i = 0; list != nullptr && i < list->size(); ++i) {
      const std::string* word = (*list)[i].as_string();
      if (word == nullptr) refuse(errc::malformed, place(key, i), "wrong type", "a string", std::string((*list)[i].kind()));
      out.push_back(word ? index_of(*word, place(key, i), words) : 0);
    }
    out.resize(count, 0);
    return out;
  }

  /// The list at a key, which must be there and have `count` entries (0: 1 to `most`); nullptr after a failure.
  const json_value::array* entries(std::string_view key, std::size_t count, std::size_t most) {
    const json_value* v = find(key);
    const json_value::array* list = v ? v->as_array() : nullptr;
    if (list == nullptr)
      return refuse(errc::malformed, key, v ? "wrong type" : "the configuration lacks a value", "an array", v ? std::string(v->kind()) : "nothing"), nullptr;
    if (count != 0 ? list->size() != count : list->empty() || list->size() > most)
      return refuse(errc::malformed, key, "wrong number of entries", count != 0 ? std::to_string(count) : "1 to " + std::to_string(most),
                    std::to_string(list->size())), nullptr;
    return list;
  }

  /// An integer at a place of the document.
  std::size_t checked(const json_value& v, const std::string& where, std::size_t least, std::size_t most) {
    const std::int64_t* n = v.as_integer();
    if (n == nullptr) return refuse(errc::malformed, where, "wrong type", "an integer", std::string(v.kind())), least;
    if (*n < static_cast<std::int64_t>(least) || *n > static_cast<std::int64_t>(most))
      return refuse(errc::malformed, where, "the value is out of range", std::to_string(least) + " to " + std::to_string(most),
                    std::to_string(*n)), least;
    return static_cast<std::size_t>(*n);
  }

  /// Refuses a feature that a key asks for: anything but absent, null or `usual`.
  void only(std::string_view key, const json_value& usual, std::string_view feature) {
    const json_value* v = find(key);
    if (v != nullptr && !(*v == usual)) refuse(errc::unsupported, key, std::string(feature) + " is not supported", "null or absent", shown(*v));
  }

  static std::string place(std::string_view key, std::size_t index) { return std::string(key) + '/' + std::to_string(index); }

  /// Short text of a value for messages.
  static std::string shown(const json_value& v) {
    if (const auto* s = v.as_string()) return quoted(*s);
    if (const auto* i = v.as_integer()) return std::to_string(*i);
    if (const auto* b = v.as_bool()) return *b ? "true" : "false";
    return std::string(v.kind());
  }

 private:
  static std::string shown(double x) {
    if (x == std::floor(x) && std::abs(x) < 1e15) return std::to_string(static_cast<std::int64_t>(x));
    char text[32];
    const int n = std::snprintf(text, sizeof text, "%g", x);
    return std::string(text, static_cast<std::size_t>(n));
  }
  std::size_t index_of(const std::string& word, const std::string& where, std::span<const std::string_view> words) {
    for (std::size_t i = 0; i < words.size(); ++i)
      if (words[i] == word) return i;
    std::string all;
    for (const std::string_view w : words) all += (all.empty() ? "" : ", ") + std::string(w);
    refuse(errc::unsupported, where, "this value is not supported", "one of " + all, quoted(word));
    return 0;
  }

  const json_value& config_;
  std::string file_;
  std::optional<failure> failure_;
};

TENSORSMITH_END_NAMESPACE
