// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/pickle_write.hpp: the pickle of a checkpoint: dicts, scalars, tensors as persistent ids. Protocol 2,
// with opcodes that every torch accepts under weights_only. Included by write.hpp.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/tensor/info.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Names of a type in torch: its storage class, or nothing if only _rebuild_tensor_v3 names it; its dtype.
struct torch_type_names {
  std::string_view storage, element;
};
inline torch_type_names torch_names_of(dtype type) noexcept {
  switch (type) {
    case dtype::f64:
      return {"DoubleStorage", "float64"};
    case dtype::f32:
      return {"FloatStorage", "float32"};
    case dtype::f16:
      return {"HalfStorage", "float16"};
    case dtype::bf16:
      return {"BFloat16Storage", "bfloat16"};
    case dtype::i64:
      return {"LongStorage", "int64"};
    case dtype::i32:
      return {"IntStorage", "int32"};
    case dtype::i16:
      return {"ShortStorage", "int16"};
    case dtype::i8:
      return {"CharStorage", "int8"};
    case dtype::u8:
      return {"ByteStorage", "uint8"};
    case dtype::boolean:
      return {"BoolStorage", "bool"};
    case dtype::c64:
      return {"ComplexFloatStorage", "complex64"};
    case dtype::c128:
      return {"ComplexDoubleStorage", "complex128"};
    case dtype::u16:
      return {{}, "uint16"};
    case dtype::u32:
      return {{}, "uint32"};
    case dtype::u64:
      return {{}, "uint64"};
    case dtype::f8_e5m2:
      return {{}, "float8_e5m2"};
    case dtype::f8_e4m3:
      return {{}, "float8_e4m3fn"};
    case dtype::f8_e5m2fnuz:
      return {{}, "float8_e5m2fnuz"};
    case dtype::f8_e4m3fnuz:
      return {{}, "float8_e4m3fnuz"};
    case dtype::f8_e8m0:
      return {{}, "float8_e8m0fnu"};
    default:
      return {};
  }
}

class pickle_writer {
 public:
  pickle_writer() : out_("\x80\x02", 2) {}

  void begin_dict() {
    out_ += "}(";
    pairs_.push_back(0);
  }
  /// After a key and its value. Every 1000 pairs go into the dict, which bounds the reader's stack.
  void end_pair() {
    if (++pairs_.back() % 1000 == 0) out_ += "u(";
  }
  void end_dict() {
    out_ += 'u';
    pairs_.pop_back();
  }
  void text(std::string_view value) {
    out_ += 'X';
    number(value.size(), 4);
    out_ += value;
  }
  void integer(std::int64_t value) {
    const auto bits = static_cast<std::uint64_t>(value);
    if (value >= 0 && value < 0x100)
      out_ += 'K', number(bits, 1);
    else if (value >= 0 && value < 0x10000)
      out_ += 'M', number(bits, 2);
    else if (value >= INT32_MIN && value <= INT32_MAX)
      out_ += 'J', number(bits, 4);
    else
      out_ += "\x8A\x08", number(bits, 8);
  }
  /// False for arrays, and for objects that hold one.
  bool scalar(const json_value& value) {
    if (value.is_null())
      out_ += 'N';
    else if (const bool* b = value.as_bool())
      out_ += *b ? '\x88' : '\x89';
    else if (const std::int64_t* i = value.as_integer())
      integer(*i);
    else if (const std::string* s = value.as_string())
      text(*s);
    else if (const double* d = value.as_double())
      real(*d);
    else if (const json_value::object* members = value.as_object())
      return dict(*members);
    else
      return false;
    return true;
  }
  /// A contiguous tensor that is the whole of storage `key`. False if torch has no such type.
  bool tensor(const tensor_info& info, std::string_view key) {
    const torch_type_names names = torch_names_of(info.type);
    if (names.element.empty()) return false;
    const bool typed = !names.storage.empty();
    out_ += typed ? "ctorch._utils\n_rebuild_tensor_v2\n((" : "ctorch._utils\n_rebuild_tensor_v3\n((";
    text("storage");
    global(typed ? "torch" : "torch.storage", typed ? names.storage : "UntypedStorage");
    text(key);
    text("cpu");
    integer(static_cast<std::int64_t>(typed ? info.elements() : info.bytes()));
    out_ += "tQK";
    out_ += '\0';  // offset 0
    tuple(info.shape);
    shape_type strides(info.shape.size(), 1);
    for (std::size_t i = strides.size(); i-- > 1;) strides[i - 1] = strides[i] * (info.shape[i] > 0 ? info.shape[i] : 1);
    tuple(strides);
    out_ +=
        "\x89"
        "ccollections\nOrderedDict\n)R";
    if (!typed) global("torch", names.element);
    out_ += "tR";
    return true;
  }
  std::string finish() && {
    out_ += '.';
    return std::move(out_);
  }

 private:
  bool dict(const json_value::object& members) {
    begin_dict();
    for (const auto& [key, value] : members) {
      text(key);
      if (!scalar(value)) return false;
      end_pair();
    }
    end_dict();
    return true;
  }
  void number(std::uint64_t value, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) out_ += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  }
  void real(double value) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    out_ += 'G';
    for (std::size_t i = 8; i-- > 0;) out_ += static_cast<char>(static_cast<unsigned char>(bits >> (8 * i)));
  }
  void global(std::string_view module, std::string_view name) {
    out_ += 'c';
    out_ += module;
    out_ += '\n';
    out_ += name;
    out_ += '\n';
  }
  void tuple(const shape_type& values) {
    if (values.empty()) {
      out_ += ')';
      return;
    }
    out_ += '(';
    for (const std::size_t v : values) integer(static_cast<std::int64_t>(v));
    out_ += 't';
  }

  std::string out_;
  std::vector<std::size_t> pairs_;
};

}  // namespace detail

TENSORSMITH_END_NAMESPACE
