// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/numpy_values.hpp: numpy's element types, arrays and scalars as pickles describe them.
//
// Included by tensors.hpp and walk.hpp. Three forms of arrays exist: `_reconstruct(class, (0,), b'b')` with the state (1, shape,
// dtype, is_fortran, bytes), and since protocol 5 `_frombuffer(bytes, dtype, shape, order)`.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/core/half.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/format/torch/pickle_document.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace detail {

/// An element type of numpy that this library has too.
struct numpy_type {
  dtype type = dtype::u8;
  bool big_endian = false;
};

inline std::optional<dtype> numpy_dtype_named(std::string_view name) noexcept {
  struct row {
    std::string_view name;
    dtype type;
  };
  constexpr row rows[] = {{"f8", dtype::f64}, {"f4", dtype::f32}, {"f2", dtype::f16},     {"i8", dtype::i64}, {"i4", dtype::i32},
                          {"i2", dtype::i16}, {"i1", dtype::i8},  {"u8", dtype::u64},     {"u4", dtype::u32}, {"u2", dtype::u16},
                          {"u1", dtype::u8},  {"b1", dtype::boolean}, {"c8", dtype::c64}, {"c16", dtype::c128},
                          {"ml_dtypes.bfloat16", dtype::bf16}, {"ml_dtypes.float8_e5m2", dtype::f8_e5m2},
                          {"ml_dtypes.float8_e4m3fn", dtype::f8_e4m3}, {"ml_dtypes.float8_e5m2fnuz", dtype::f8_e5m2fnuz},
                          {"ml_dtypes.float8_e4m3fnuz", dtype::f8_e4m3fnuz}, {"ml_dtypes.float8_e8m0fnu", dtype::f8_e8m0}};
  for (const row& r : rows)
    if (r.name == name) return r.type;
  return std::nullopt;
}

/// The type that `dtype(name, align, copy)` with the state (3, byte order, …) stands for; nothing for strings, dates, records,
/// objects and floats of 80 bits and more.
inline std::optional<numpy_type> numpy_type_of(const pickle_document& doc, pickle_document::id n) {
  if (doc.kind(n) != pickle_kind::object || doc.maker(n) != torch_symbol::numpy_dtype) return std::nullopt;
  const auto arguments = doc.arguments(n), state = doc.state(n);
  if (doc.count(arguments) < 1 || doc.count(arguments) > 3) return std::nullopt;
  const auto name = doc.items(arguments)[0];
  const bool is_class = doc.kind(name) == pickle_kind::global;  // ml_dtypes: the scalar's class instead of a name
  if (!is_class && doc.kind(name) != pickle_kind::text) return std::nullopt;
  const auto type = is_class ? numpy_dtype_named(doc.full_name(name)) : numpy_dtype_named(doc.text(name));
  if (!type) return std::nullopt;
  numpy_type out{*type, false};
  if (state == pickle_document::nothing) return out;
  if (doc.kind(state) != pickle_kind::tuple || doc.count(state) < 2 || doc.count(state) > 16) return std::nullopt;
  const auto order = doc.items(state)[1];
  if (doc.kind(order) != pickle_kind::text) return std::nullopt;
  const std::string_view mark = doc.text(order);
  if (mark != "<" && mark != ">" && mark != "|" && mark != "=") return std::nullopt;
  out.big_endian = mark == ">";
  return out;
}

/// The parts of an array of numbers.
struct numpy_array {
  numpy_type type;
  pickle_document::id shape = 0, data = 0;
  bool fortran = false;
};

/// What object `n` holds if it is an array of numbers; nothing for other objects, and for arrays of strings, dates, records and
/// Python objects.
inline std::optional<numpy_array> numpy_array_of(const pickle_document& doc, pickle_document::id n) {
  if (doc.kind(n) != pickle_kind::object) return std::nullopt;
  if (doc.maker(n) == torch_symbol::numpy_buffer) {
    if (doc.count(doc.arguments(n)) != 4) return std::nullopt;
    const auto parts = doc.items(doc.arguments(n));
    const auto type = numpy_type_of(doc, parts[1]);
    if (!type || !doc.is_byte_string(parts[0])) return std::nullopt;
    return numpy_array{*type, parts[2], parts[0], doc.is_text(parts[3], "F")};
  }
  const auto state = doc.maker(n) == torch_symbol::numpy_array ? doc.state(n) : pickle_document::nothing;
  if (state == pickle_document::nothing || doc.kind(state) != pickle_kind::tuple || doc.count(state) != 5) return std::nullopt;
  const auto parts = doc.items(state);
  const auto type = numpy_type_of(doc, parts[2]);
  if (!type || doc.kind(parts[3]) != pickle_kind::boolean || !doc.is_byte_string(parts[4])) return std::nullopt;
  return numpy_array{*type, parts[1], parts[4], doc.boolean(parts[3])};
}

/// The number that `scalar(dtype, bytes)` stands for.
inline std::optional<json_value> numpy_scalar_of(const pickle_document& doc, pickle_document::id n) {
  if (doc.count(doc.arguments(n)) != 2) return std::nullopt;
  const auto parts = doc.items(doc.arguments(n));
  const auto type = numpy_type_of(doc, parts[0]);
  if (!type || !doc.is_byte_string(parts[1])) return std::nullopt;
  std::string raw(doc.text(parts[1]));
  const std::size_t width = bits_of(type->type) / 8;
  if (width > 8 || raw.size() != width) return std::nullopt;
  if (type->big_endian) std::reverse(raw.begin(), raw.end());
  std::uint64_t bits = 0;
  for (std::size_t i = width; i-- > 0;) bits = (bits << 8) | static_cast<unsigned char>(raw[i]);
  switch (type->type) {
    case dtype::boolean:
      return json_value(bits != 0);
    case dtype::u64:
    case dtype::u32:
    case dtype::u16:
    case dtype::u8:
      return json_value(bits);
    case dtype::i64:
    case dtype::i32:
    case dtype::i16:
    case dtype::i8: {
      const unsigned unused = 64 - 8 * static_cast<unsigned>(width);
      return json_value(static_cast<std::int64_t>(bits << unused) >> unused);
    }
    case dtype::f64:
      return json_value(std::bit_cast<double>(bits));
    case dtype::f32:
      return json_value(static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits))));
    case dtype::f16:
      return json_value(static_cast<double>(f16_to_f32(static_cast<std::uint16_t>(bits))));
    default:
      return std::nullopt;
  }
}

}  // namespace detail
TENSORSMITH_END_NAMESPACE
