// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/read_tensor.hpp: one TensorProto: its type and shape, and where its elements lie.
//
// Include format/onnx/read.hpp instead. Elements in raw_data, in external files and in packed lists of floats are used where they lie;
// lists of numbers of variable length are decoded.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/onnx/model.hpp"
#include "tensorsmith/format/onnx/wire_reader.hpp"
#include "tensorsmith/graph/element_code.hpp"
#include "tensorsmith/io/path.hpp"
#include "tensorsmith/tensor/memory.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Opens a file that a model names, below the model's folder.
using onnx_file_opener = std::function<result<std::shared_ptr<const byte_source>>(const std::string& location)>;

namespace detail {

inline constexpr std::int64_t onnx_string_type = 8;

/// What a TensorProto says, before any of it is believed.
struct tensor_fields {
  std::string name;
  std::int64_t type = 0, location = 0;
  std::vector<std::int64_t> dims;
  std::optional<wire_field> raw;
  std::uint32_t typed_field = 0;       ///< the list that holds elements; 0: none
  std::uint64_t typed_count = 0, typed_chunks = 0;
  onnx_range typed_first{};            ///< content of its first chunk, if that is packed
  bool typed_packed = true;
  std::vector<std::pair<std::string, std::string>> external;
};

/// The list of a TensorProto that holds elements of a type (the table in onnx.proto).
constexpr std::uint32_t typed_field_of(std::int64_t type) noexcept {
  switch (type) {
    case 1: case 14: return 4;             // float_data: f32, c64
    case 8: return 6;                      // string_data
    case 7: return 7;                      // int64_data
    case 11: case 15: return 10;           // double_data: f64, c128
    case 12: case 13: return 11;           // uint64_data: u32, u64
    default: return 5;                     // int32_data: all others
  }
}

/// A decimal number without sign, space or leading plus. Nothing: anything else, or above 2^63 − 1.
inline std::optional<std::uint64_t> plain_decimal(std::string_view text) noexcept {
  if (text.empty() || text.size() > 19) return std::nullopt;
  std::uint64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = 10 * value + static_cast<std::uint64_t>(c - '0');
  }
  return value >> 63 ? std::nullopt : std::optional(value);
}

/// Reads TensorProtos of one file.
class tensor_proto_reader {
 public:
  tensor_proto_reader(wire_reader& wire, onnx_model& model, const limits& bounds, const onnx_file_opener& open)
      : wire_(wire), model_(model), bounds_(bounds), open_(open) {}

  /// The tensor of a field. `planned`: its elements become a recipe, else only its place is checked. @fails malformed, limit, unsupported,
  /// path (external files), io
  result<onnx_initializer> read(const wire_field& field, bool planned) {
    tensor_fields said;
    TENSORSMITH_CHECK(scan(field, said));
    onnx_initializer out;
    out.name = std::move(said.name);
    where_ = "tensor " + quoted(out.name);
    out.element_type = said.type;
    out.field = {field.begin, field.end}, out.body = {field.value, field.end};
    TENSORSMITH_CHECK(check_type(said, out));
    TENSORSMITH_CHECK(check_shape(said, out));
    const unsigned places = (said.raw ? 1U : 0U) + (said.typed_field != 0 ? 1U : 0U) + (said.location == 1 ? 1U : 0U);
    if (said.location != 0 && said.location != 1) return refuse("the tensor has a data_location that does not exist", "0 or 1", std::to_string(said.location));
    if (said.location == 0 && !said.external.empty()) return refuse("the tensor names an external file and does not say that its elements lie there");
    if (places > 1) return refuse("the tensor has its elements in more than one place", "one of raw_data, a typed list and an external file");
    if (said.location == 1) TENSORSMITH_CHECK(take_external(said, out, planned));
    else if (said.raw) TENSORSMITH_CHECK(take_raw(said, out, planned));
    else TENSORSMITH_CHECK(take_typed(said, out, planned));
    return out;
  }

 private:
  failure refuse(std::string what, std::string expected = {}, std::string found = {}) const {
    return failure{.code = errc::malformed, .what = std::move(what), .file = wire_.file().name(), .place = where_, .expected = std::move(expected),
                   .found = std::move(found)};
  }
  result<void> expect(const wire_field& f, wire_type type, const char* name) const {
    if (f.type == type) return {};
    return wire_.error(f.begin, std::string("the field ") + name + " of a tensor has a wrong encoding");
  }

  result<void> scan(const wire_field& field, tensor_fields& out) {
    for (std::uint64_t at = field.value; at < field.end;) {
      TENSORSMITH_TRY(const wire_field f, wire_.next(at, field.end));
      switch (f.number) {
        case 1: TENSORSMITH_CHECK(scan_dims(f, out)); break;
        case 2:
          TENSORSMITH_CHECK(expect(f, wire_type::varint, "data_type"));
          out.type = static_cast<std::int32_t>(f.integer);
          break;
        case 3:
          return failure{.code = errc::unsupported, .what = "a tensor is stored in segments", .file = wire_.file().name(),
                         .place = "byte offset " + std::to_string(f.begin)};
        case 4: case 5: case 6: case 7: case 10: case 11: TENSORSMITH_CHECK(scan_typed(f, out)); break;
        case 8: {
          TENSORSMITH_CHECK(expect(f, wire_type::bytes, "name"));
          TENSORSMITH_TRY(out.name, wire_.text(f, bounds_.name_bytes, "the name of a tensor"));
          break;
        }
        case 9:
          TENSORSMITH_CHECK(expect(f, wire_type::bytes, "raw_data"));
          out.raw = f;
          break;
        case 13: TENSORSMITH_CHECK(scan_external(f, out)); break;
        case 14:
          TENSORSMITH_CHECK(expect(f, wire_type::varint, "data_location"));
          out.location = static_cast<std::int32_t>(f.integer);
          break;
        default: break;  // documentation, metadata, what is unknown
      }
    }
    return {};
  }

  result<void> scan_dims(const wire_field& f, tensor_fields& out) {
    const auto add = [&](std::uint64_t value) -> result<void> {
      if (out.dims.size() >= bounds_.rank)
        return failure{.code = errc::limit, .what = "a tensor has too many dimensions", .file = wire_.file().name(),
                       .place = "byte offset " + std::to_string(f.begin), .expected = "at most " + std::to_string(bounds_.rank),
                       .advice = "raise limits::rank if you trust it"};
      out.dims.push_back(static_cast<std::int64_t>(value));
      return {};
    };
    if (f.type == wire_type::varint) return add(f.integer);
    TENSORSMITH_CHECK(expect(f, wire_type::bytes, "dims"));
    for (std::uint64_t at = f.value; at < f.end;) {
      TENSORSMITH_TRY(const std::uint64_t value, wire_.varint(at, f.end));
      TENSORSMITH_CHECK(add(value));
    }
    return {};
  }

  /// Counts the elements of a list; it may come in pieces, packed or one by one.
  result<void> scan_typed(const wire_field& f, tensor_fields& out) {
    const bool floats = f.number == 4 || f.number == 10, texts = f.number == 6;
    const std::uint64_t width = f.number == 4 ? 4 : 8;
    const bool one = !texts && f.type == (floats ? (width == 4 ? wire_type::fixed32 : wire_type::fixed64) : wire_type::varint);
    if (!one) TENSORSMITH_CHECK(expect(f, wire_type::bytes, "of typed elements"));
    if (f.type == wire_type::bytes && !texts && f.length() == 0) return {};
    if (out.typed_field != 0 && out.typed_field != f.number)
      return wire_.error(f.begin, "a tensor has its elements in lists of two types");
    out.typed_field = f.number;
    if (out.typed_chunks++ == 0) out.typed_first = {f.value, f.end};
    if (one || texts) {
      out.typed_packed = false;
      ++out.typed_count;
    } else if (floats) {
      if (f.length() % width != 0) return wire_.error(f.begin, "a list of numbers ends inside a number");
      out.typed_count += f.length() / width;
    } else {
      for (std::uint64_t at = f.value; at < f.end; ++out.typed_count) TENSORSMITH_CHECK(wire_.varint(at, f.end));
    }
    return {};
  }

  result<void> scan_external(const wire_field& f, tensor_fields& out) {
    TENSORSMITH_CHECK(expect(f, wire_type::bytes, "external_data"));
    std::pair<std::string, std::string> entry;
    for (std::uint64_t at = f.value; at < f.end;) {
      TENSORSMITH_TRY(const wire_field part, wire_.next(at, f.end));
      if (part.number != 1 && part.number != 2) continue;
      TENSORSMITH_CHECK(expect(part, wire_type::bytes, "external_data"));
      TENSORSMITH_TRY((part.number == 1 ? entry.first : entry.second), wire_.text(part, 4096, "an entry of external_data"));
    }
    if (out.external.size() >= 32) return wire_.error(f.begin, "a tensor has too many entries of external_data", "at most 32");
    out.external.push_back(std::move(entry));
    return {};
  }

  result<void> check_type(const tensor_fields& said, onnx_initializer& out) const {
    if (said.type == 0) return refuse("the tensor has no element type");
    out.type = dtype_of_element_code(said.type);
    if (!out.type && said.type != onnx_string_type)
      return failure{.code = errc::unsupported, .what = "the element type of the tensor is not known", .file = wire_.file().name(), .place = where_,
                     .expected = "1 to 26", .found = std::to_string(said.type)};
    return {};
  }

  result<void> check_shape(const tensor_fields& said, onnx_initializer& out) const {
    std::uint64_t product = 1;
    const auto too_large = [&](std::string found) {
      return failure{.code = errc::limit, .what = "the tensor has too many elements", .file = wire_.file().name(), .place = where_,
                     .expected = "fewer than " + std::to_string(bounds_.elements), .found = std::move(found), .advice = "raise limits::elements if you trust it"};
    };
    for (const std::int64_t extent : said.dims) {
      if (extent < 0) return refuse("the tensor has a negative extent", "0 or more", std::to_string(extent));
      const auto wide = static_cast<std::uint64_t>(extent);
      if (wide >= bounds_.elements) return too_large(std::to_string(wide));
      std::uint64_t next = 0;
      if (__builtin_mul_overflow(product, std::max<std::uint64_t>(wide, 1), &next) || next >= bounds_.elements) return too_large("more");
      product = next;
      out.shape.push_back(static_cast<std::size_t>(wide));
    }
    return {};
  }

  static std::uint64_t bytes_of(const onnx_initializer& out) { return byte_count(*out.type, element_count(out.shape)); }

  void plan(onnx_initializer& out, std::shared_ptr<const byte_source> source) const {
    std::string where = source->name() + ": " + quoted(out.name);
    out.tensor = {stored_tensor(std::move(source), out.offset, *out.type, out.shape, std::move(where)), 0};
  }

  result<void> take_raw(const tensor_fields& said, onnx_initializer& out, bool planned) const {
    if (!out.type) return refuse("a tensor of texts has raw_data", "string_data");
    if (said.raw->length() != bytes_of(out))
      return refuse("the tensor's raw_data has not the bytes of its shape", std::to_string(bytes_of(out)) + " bytes for " + shown(out),
                    std::to_string(said.raw->length()));
    out.payload = onnx_payload::raw, out.offset = said.raw->value, out.length = said.raw->length();
    if (planned) plan(out, wire_.source());
    return {};
  }
  static std::string shown(const onnx_initializer& out) {
    return std::string(out.type ? tensorsmith::v0::name_of(*out.type) : std::string_view("text")) + " " + to_string(out.shape);
  }

  result<void> take_typed(const tensor_fields& said, onnx_initializer& out, bool planned) {
    const std::uint32_t wanted = typed_field_of(said.type);
    constexpr std::array<std::string_view, 12> names = {"", "", "", "", "float_data", "int32_data", "string_data", "int64_data", "", "", "double_data", "uint64_data"};
    if (said.typed_field != 0 && said.typed_field != wanted)
      return refuse("the tensor has its elements in the list of another type", std::string(names[wanted]), std::string(names[said.typed_field]));
    std::uint64_t count = element_count(out.shape);
    if (out.type && (*out.type == dtype::c64 || *out.type == dtype::c128)) count *= 2;
    if (out.type && bits_of(*out.type) < 8) count = byte_count(*out.type, static_cast<std::size_t>(count));  // packed, a byte in each number
    if (said.typed_count != count)
      return refuse(said.typed_count == 0 ? "the tensor has no elements" : "the tensor has not the elements of its shape",
                    std::to_string(count) + " for " + shown(out), std::to_string(said.typed_count));
    if (count == 0 && out.type) {
      out.payload = onnx_payload::none;
      if (planned) out.tensor = in_memory({quoted(out.name), *out.type, out.shape}, {});
      return {};
    }
    out.payload = onnx_payload::typed;
    if (!out.type || !planned) return {};
    if ((wanted == 4 || wanted == 10) && said.typed_packed && said.typed_chunks == 1) {
      out.offset = said.typed_first.begin, out.length = said.typed_first.end - said.typed_first.begin;
      plan(out, wire_.source());
      return {};
    }
    return decode(wanted, count, out);
  }

  /// Decodes a list. @pre it holds `count` numbers, each a byte of the file at least
  result<void> decode(std::uint32_t list, std::uint64_t count, onnx_initializer& out) {
    std::vector<std::byte> bytes;
    bytes.reserve(static_cast<std::size_t>(bytes_of(out)));
    const std::size_t width = static_cast<std::size_t>(bytes_of(out) / count);
    const auto add = [&](std::uint64_t value) -> result<void> {
      if (!fits(out.element_type, value))
        return refuse("the tensor has an element that its type cannot hold", std::string(tensorsmith::v0::name_of(*out.type)),
                      std::to_string(static_cast<std::int64_t>(value)));
      for (std::size_t i = 0; i < width; ++i) bytes.push_back(static_cast<std::byte>(value >> (8 * i)));
      return {};
    };
    for (std::uint64_t at = out.body.begin; at < out.body.end;) {
      TENSORSMITH_TRY(const wire_field f, wire_.next(at, out.body.end));
      if (f.number != list) continue;
      if (f.type != wire_type::bytes) {
        TENSORSMITH_CHECK(add(f.integer));
        continue;
      }
      const std::size_t each = list == 4 ? 4 : 8;
      for (std::uint64_t place = f.value; place < f.end;) {
        std::uint64_t value = 0;
        if (list == 4 || list == 10) {
          TENSORSMITH_TRY(value, wire_.fixed(place, each));
          place += each;
        } else {
          TENSORSMITH_TRY(value, wire_.varint(place, f.end));
        }
        TENSORSMITH_CHECK(add(value));
      }
    }
    const std::string where = wire_.file().name() + ": " + quoted(out.name);
    out.tensor = in_memory({where, *out.type, out.shape}, std::move(bytes));
    return {};
  }

  /// Whether a number of a list is one of the type's values. Signed ones are sign-extended to 64 bits.
  static bool fits(std::int64_t type, std::uint64_t value) noexcept {
    const auto number = static_cast<std::int64_t>(value);
    switch (type) {
      case 3: return number >= -128 && number <= 127;
      case 5: return number >= -32768 && number <= 32767;
      case 6: return number >= -2147483648LL && number <= 2147483647LL;
      case 4: case 10: case 16: return number >= 0 && number <= 65535;
      case 9: return number == 0 || number == 1;
      case 12: return value <= 0xFFFFFFFFU;
      case 22: case 26: return number >= -128 && number <= 255;
      case 2: case 17: case 18: case 19: case 20: case 21: case 23: case 24: case 25: return number >= 0 && number <= 255;
      default: return true;
    }
  }

  // --- external files ---

  result<void> take_external(const tensor_fields& said, onnx_initializer& out, bool planned) {
    if (!out.type) return refuse("a tensor of texts lies in an external file", "string_data");
    std::optional<std::string> location;
    std::optional<std::uint64_t> offset, length;
    std::vector<std::string_view> seen;
    for (const auto& [key, value] : said.external) {
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) return refuse("external_data has the key " + quoted(key) + " twice");
      seen.push_back(key);
      if (key == "location") {
        location = value;
      } else if (key == "offset" || key == "length") {
        const auto number = plain_decimal(value);
        if (!number) return refuse("the " + key + " of external_data is no decimal number", "0 to 9223372036854775807", quoted(value));
        (key == "offset" ? offset : length) = number;
      } else if (key == "checksum") {
        if (!std::exchange(noted_checksum_, true)) model_.notes.push_back({note::level::info, where_, "checksums of external data are not verified"});
      } else if (noted_keys_ < 20) {
        ++noted_keys_;
        model_.notes.push_back({note::level::info, where_, "the key " + quoted(key) + " of external_data is not known"});
      }
    }
    if (!location) return refuse("the tensor lies in an external file that is not named", "a location");
    if (length && *length != bytes_of(out))
      return refuse("the length of external_data is not that of the tensor", std::to_string(bytes_of(out)) + " bytes for " + shown(out), std::to_string(*length));
    TENSORSMITH_TRY(out.file, file_of(*location));
    out.payload = onnx_payload::external, out.offset = offset.value_or(0), out.length = bytes_of(out);
    const onnx_external_file& file = model_.external_files[out.file];
    const std::uint64_t size = file.source->size();
    if (out.length > size || out.offset > size - out.length)
      return refuse("the tensor ends past the end of the external file " + quoted(file.location),
                    std::to_string(out.length) + " bytes at " + std::to_string(out.offset), "a file of " + std::to_string(size) + " bytes");
    if (planned) plan(out, file.source);
    return {};
  }

  /// The external file of a location. Some exporters write "./data" for "data", and runtimes load it: the plain form is what counts from
  /// here on, so that one file has one name.
  result<std::size_t> file_of(const std::string& written) {
    std::string location = written;
    while (location.starts_with("./")) location.erase(0, 2);
    if (const auto known = files_.find(location); known != files_.end()) return known->second;
    if (const auto plain = check_relative_path(location, wire_.file().name(), where_); !plain) {
      const auto whole = check_relative_path(written, wire_.file().name(), where_);  // the message shows what the model has
      return whole ? plain.error() : whole.error();
    }
    if (location[0] == '~' || (location.size() > 1 && location[1] == ':'))
      return failure{.code = errc::path, .what = "the path " + quoted(written) + " is refused: it is not relative to the model",
                     .file = wire_.file().name(), .place = where_, .expected = "a path below the folder"};
    auto opened = open_(location);
    if (!opened) {
      failure error = std::move(opened).error();
      error.what += "; the model " + quoted(wire_.file().name()) + " has " + where_ + " there";
      return error;
    }
    model_.external_files.push_back({location, std::move(opened).value()});
    files_.emplace(location, model_.external_files.size() - 1);
    return model_.external_files.size() - 1;
  }

  wire_reader& wire_;
  onnx_model& model_;
  const limits& bounds_;
  const onnx_file_opener& open_;
  std::map<std::string, std::size_t> files_;  // location → index
  std::string where_;
  std::size_t noted_keys_ = 0;
  bool noted_checksum_ = false;
};

}  // namespace detail

TENSORSMITH_END_NAMESPACE
