// SPDX-License-Identifier: MIT
//
// tensorsmith/core/json_value.hpp: a JSON document as plain data; objects keep the order of their keys.
//
// Include this to hold configurations. Reading and writing text lives in io/json.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A JSON value. Numbers written without fraction or exponent are integers, all others doubles.
class json_value {
 public:
  using array = std::vector<json_value>;
  using member = std::pair<std::string, json_value>;
  using object = std::vector<member>;  // ordered as in the text; no duplicate keys

  json_value() = default;
  json_value(std::nullptr_t) {}                                              // NOLINT: implicit by design, as below
  json_value(bool value) : data_(value) {}                                   // NOLINT
  json_value(int value) : data_(static_cast<std::int64_t>(value)) {}         // NOLINT
  json_value(std::int64_t value) : data_(value) {}                           // NOLINT
  json_value(std::uint64_t value) : data_(static_cast<std::int64_t>(value)) {}  // NOLINT
  json_value(double value) : data_(value) {}                                 // NOLINT
  json_value(const char* value) : data_(std::string(value)) {}               // NOLINT
  json_value(std::string value) : data_(std::move(value)) {}                 // NOLINT
  json_value(std::string_view value) : data_(std::string(value)) {}          // NOLINT
  json_value(array value) : data_(std::move(value)) {}                       // NOLINT
  json_value(object value) : data_(std::move(value)) {}                      // NOLINT

  bool is_null() const noexcept { return std::holds_alternative<std::monostate>(data_); }
  const bool* as_bool() const noexcept { return std::get_if<bool>(&data_); }
  const std::int64_t* as_integer() const noexcept { return std::get_if<std::int64_t>(&data_); }
  const double* as_double() const noexcept { return std::get_if<double>(&data_); }  ///< only if written as a double
  const std::string* as_string() const noexcept { return std::get_if<std::string>(&data_); }
  const array* as_array() const noexcept { return std::get_if<array>(&data_); }
  const object* as_object() const noexcept { return std::get_if<object>(&data_); }
  array* as_array() noexcept { return std::get_if<array>(&data_); }
  object* as_object() noexcept { return std::get_if<object>(&data_); }

  /// The member `key` of an object, or nullptr (also if this is no object).
  const json_value* find(std::string_view key) const noexcept {
    if (const object* members = as_object())
      for (const member& m : *members)
        if (m.first == key) return &m.second;
    return nullptr;
  }
  /// Sets or appends the member `key`; turns anything that is no object into an empty object first.
  json_value& set(std::string_view key, json_value value) {
    if (!as_object()) data_ = object{};
    for (member& m : *as_object())
      if (m.first == key) return m.second = std::move(value);
    as_object()->emplace_back(std::string(key), std::move(value));
    return as_object()->back().second;
  }
  /// "null", "a boolean", "an integer", "a number", "a string", "an array", "an object": for messages.
  std::string_view kind() const noexcept {
    constexpr std::string_view kinds[] = {"null", "a boolean", "an integer", "a number", "a string", "an array", "an object"};
    return kinds[data_.index()];
  }
  bool operator==(const json_value& other) const { return data_ == other.data_; }

 private:
  std::variant<std::monostate, bool, std::int64_t, double, std::string, array, object> data_;
};

TENSORSMITH_END_NAMESPACE
