// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/symbols.hpp: which Python globals a pickle may name, what they mean here, and which are refused.
//
// Nothing of Python is ever called: a known global has a meaning in tensors.hpp, any other one stays an inert name. The block
// list (after mmaitre314/picklescan) holds globals that a weight file has no business naming.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

#include "tensorsmith/core/dtype.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What a global of a pickle means to the reader.
enum class torch_symbol : std::uint16_t {
  unknown,  ///< an inert name; objects made from it are opaque
  ordered_dict,
  default_dict,
  counter,
  plain_dict,
  plain_list,
  plain_tuple,
  set,
  bytes,
  bytearray,
  complex,
  encode,  ///< _codecs encode: bytes in protocol 2
  size,
  device,
  tensor_v1,
  tensor_v2,
  tensor_v3,
  parameter,
  parameter_with_state,
  from_device,
  from_type,
  parameter_class,
  tensor_class,
  storage_class,
  element_type,
  constant,  ///< layouts, memory formats, quantization schemes
  numpy_dtype,
  numpy_scalar,
  numpy_array,   ///< _reconstruct: an array whose parts follow as its state
  numpy_buffer,  ///< _frombuffer: an array of protocol 5
  numpy_class,
  packed_storage,      ///< _load_from_bytes: a storage as the bytes of a legacy stream of its own
  unsupported_tensor,  ///< sparse, quantized, meta, nested tensors: known, and refused by name
};

namespace detail {

struct symbol_row {
  std::string_view module, name;
  torch_symbol symbol;
};
inline constexpr symbol_row symbol_rows[] = {
    {"collections", "OrderedDict", torch_symbol::ordered_dict},
    {"collections", "defaultdict", torch_symbol::default_dict},
    {"collections", "Counter", torch_symbol::counter},
    {"builtins", "dict", torch_symbol::plain_dict},
    {"builtins", "list", torch_symbol::plain_list},
    {"builtins", "tuple", torch_symbol::plain_tuple},
    {"builtins", "set", torch_symbol::set},
    {"builtins", "frozenset", torch_symbol::set},
    {"builtins", "bytes", torch_symbol::bytes},
    {"builtins", "bytearray", torch_symbol::bytearray},
    {"builtins", "complex", torch_symbol::complex},
    {"_codecs", "encode", torch_symbol::encode},
    {"torch", "Size", torch_symbol::size},
    {"torch", "device", torch_symbol::device},
    {"torch._utils", "_rebuild_tensor", torch_symbol::tensor_v1},
    {"torch._utils", "_rebuild_tensor_v2", torch_symbol::tensor_v2},
    {"torch._utils", "_rebuild_tensor_v3", torch_symbol::tensor_v3},
    {"torch._utils", "_rebuild_parameter", torch_symbol::parameter},
    {"torch._utils", "_rebuild_parameter_with_state", torch_symbol::parameter_with_state},
    {"torch._utils", "_rebuild_device_tensor_from_cpu_tensor", torch_symbol::from_device},
    {"torch._tensor", "_rebuild_from_type_v2", torch_symbol::from_type},
    {"torch._utils", "_rebuild_qtensor", torch_symbol::unsupported_tensor},
    {"torch._utils", "_rebuild_sparse_tensor", torch_symbol::unsupported_tensor},
    {"torch._utils", "_rebuild_sparse_csr_tensor", torch_symbol::unsupported_tensor},
    {"torch._utils", "_rebuild_meta_tensor_no_storage", torch_symbol::unsupported_tensor},
    {"torch._utils", "_rebuild_device_tensor_from_numpy", torch_symbol::unsupported_tensor},
    {"torch._utils", "_rebuild_xla_tensor", torch_symbol::unsupported_tensor},
    {"torch._utils", "_rebuild_nested_tensor", torch_symbol::unsupported_tensor},
    {"torch._utils", "_rebuild_wrapper_subclass", torch_symbol::unsupported_tensor},
    {"torch.nn.parameter", "Parameter", torch_symbol::parameter_class},
    {"torch.nn.parameter", "Buffer", torch_symbol::parameter_class},
    {"torch.storage", "UntypedStorage", torch_symbol::storage_class},
    {"torch.storage", "_load_from_bytes", torch_symbol::packed_storage},
    {"torch.serialization", "_get_layout", torch_symbol::constant},
    {"numpy", "dtype", torch_symbol::numpy_dtype},
    {"numpy", "ndarray", torch_symbol::numpy_class},
    {"numpy.core.multiarray", "scalar", torch_symbol::numpy_scalar},
    {"numpy._core.multiarray", "scalar", torch_symbol::numpy_scalar},
    {"numpy.core.multiarray", "_reconstruct", torch_symbol::numpy_array},
    {"numpy._core.multiarray", "_reconstruct", torch_symbol::numpy_array},
    {"numpy.core.numeric", "_frombuffer", torch_symbol::numpy_buffer},
    {"numpy._core.numeric", "_frombuffer", torch_symbol::numpy_buffer}};

struct storage_row {
  std::string_view name;
  std::optional<dtype> type;
};
inline constexpr storage_row storage_rows[] = {{"DoubleStorage", dtype::f64},
                                               {"FloatStorage", dtype::f32},
                                               {"HalfStorage", dtype::f16},
                                               {"BFloat16Storage", dtype::bf16},
                                               {"LongStorage", dtype::i64},
                                               {"IntStorage", dtype::i32},
                                               {"ShortStorage", dtype::i16},
                                               {"CharStorage", dtype::i8},
                                               {"ByteStorage", dtype::u8},
                                               {"BoolStorage", dtype::boolean},
                                               {"ComplexDoubleStorage", dtype::c128},
                                               {"ComplexFloatStorage", dtype::c64},
                                               {"UntypedStorage", dtype::u8},
                                               {"QInt8Storage", std::nullopt},
                                               {"QUInt8Storage", std::nullopt},
                                               {"QInt32Storage", std::nullopt},
                                               {"QUInt4x2Storage", std::nullopt},
                                               {"QUInt2x4Storage", std::nullopt}};

inline constexpr storage_row element_rows[] = {{"float32", dtype::f32},
                                               {"float", dtype::f32},
                                               {"float64", dtype::f64},
                                               {"double", dtype::f64},
                                               {"float16", dtype::f16},
                                               {"half", dtype::f16},
                                               {"bfloat16", dtype::bf16},
                                               {"int8", dtype::i8},
                                               {"uint8", dtype::u8},
                                               {"int16", dtype::i16},
                                               {"short", dtype::i16},
                                               {"int32", dtype::i32},
                                               {"int", dtype::i32},
                                               {"int64", dtype::i64},
                                               {"long", dtype::i64},
                                               {"bool", dtype::boolean},
                                               {"complex64", dtype::c64},
                                               {"complex128", dtype::c128},
                                               {"uint16", dtype::u16},
                                               {"uint32", dtype::u32},
                                               {"uint64", dtype::u64},
                                               {"float8_e5m2", dtype::f8_e5m2},
                                               {"float8_e4m3fn", dtype::f8_e4m3},
                                               {"float8_e5m2fnuz", dtype::f8_e5m2fnuz},
                                               {"float8_e4m3fnuz", dtype::f8_e4m3fnuz},
                                               {"float8_e8m0fnu", dtype::f8_e8m0},
                                               {"complex32", std::nullopt},
                                               {"float4_e2m1fn_x2", std::nullopt},
                                               {"quint8", std::nullopt},
                                               {"qint8", std::nullopt},
                                               {"qint32", std::nullopt},
                                               {"quint4x2", std::nullopt},
                                               {"quint2x4", std::nullopt}};

inline constexpr std::string_view constant_names[] = {"contiguous_format",
                                                      "channels_last",
                                                      "channels_last_3d",
                                                      "preserve_format",
                                                      "strided",
                                                      "sparse_coo",
                                                      "sparse_csr",
                                                      "sparse_csc",
                                                      "sparse_bsr",
                                                      "sparse_bsc",
                                                      "per_tensor_affine",
                                                      "per_channel_affine",
                                                      "per_channel_affine_float_qparams",
                                                      "per_tensor_symmetric",
                                                      "per_channel_symmetric"};

inline constexpr std::string_view blocked_modules[] = {"os",
                                                       "posix",
                                                       "nt",
                                                       "sys",
                                                       "subprocess",
                                                       "pty",
                                                       "runpy",
                                                       "shutil",
                                                       "socket",
                                                       "ctypes",
                                                       "importlib",
                                                       "multiprocessing",
                                                       "signal",
                                                       "webbrowser",
                                                       "asyncio",
                                                       "pip",
                                                       "code",
                                                       "bdb",
                                                       "pdb",
                                                       "timeit",
                                                       "profile",
                                                       "cProfile",
                                                       "doctest",
                                                       "trace",
                                                       "venv",
                                                       "ensurepip",
                                                       "http",
                                                       "urllib",
                                                       "requests",
                                                       "aiohttp",
                                                       "httplib",
                                                       "pickle",
                                                       "_pickle",
                                                       "dill",
                                                       "joblib",
                                                       "cloudpickle",
                                                       "commands",
                                                       "torch.hub",
                                                       "torch._dynamo",
                                                       "torch._inductor",
                                                       "numpy.testing",
                                                       "numpy.f2py",
                                                       "numpy.distutils",
                                                       "logging.config",
                                                       "tempfile",
                                                       "lib2to3"};

struct blocked_row {
  std::string_view module, name;
};
inline constexpr blocked_row blocked_rows[] = {{"builtins", "eval"},
                                               {"builtins", "exec"},
                                               {"builtins", "compile"},
                                               {"builtins", "execfile"},
                                               {"builtins", "open"},
                                               {"builtins", "getattr"},
                                               {"builtins", "setattr"},
                                               {"builtins", "delattr"},
                                               {"builtins", "globals"},
                                               {"builtins", "locals"},
                                               {"builtins", "vars"},
                                               {"builtins", "__import__"},
                                               {"builtins", "breakpoint"},
                                               {"builtins", "input"},
                                               {"builtins", "apply"},
                                               {"builtins", "map"},
                                               {"builtins", "filter"},
                                               {"builtins", "type"},
                                               {"operator", "attrgetter"},
                                               {"operator", "itemgetter"},
                                               {"operator", "methodcaller"},
                                               {"_operator", "attrgetter"},
                                               {"_operator", "itemgetter"},
                                               {"_operator", "methodcaller"},
                                               {"functools", "partial"},
                                               {"types", "CodeType"},
                                               {"types", "FunctionType"},
                                               {"torch.jit", "load"},
                                               {"torch", "load"},
                                               {"torch.serialization", "load"},
                                               {"torch.storage", "_load_from_bytes"},
                                               {"uuid", "_get_command_stdout"}};

/// Python 2's names of modules, as Python 3 maps them.
inline std::string_view python3_module(std::string_view module) noexcept {
  if (module == "__builtin__") return "builtins";
  if (module == "copy_reg") return "copyreg";
  if (module == "cPickle") return "pickle";
  return module;
}

inline bool in_module(std::string_view module, std::string_view root) noexcept {
  return module.substr(0, root.size()) == root && (module.size() == root.size() || module[root.size()] == '.');
}

template <class Rows>
constexpr const auto* row_named(const Rows& rows, std::string_view name) noexcept {
  for (const auto& row : rows)
    if (row.name == name) return &row;
  return static_cast<decltype(std::data(rows))>(nullptr);
}

}  // namespace detail

/// True if a weight file must not name this global. Dotted names ("serialization.os.system") are looked through: Python
/// resolves them by attribute, and most modules import others.
inline bool is_blocked_global(std::string_view module, std::string_view name) noexcept {
  module = detail::python3_module(module);
  for (const std::string_view root : detail::blocked_modules)
    if (detail::in_module(module, root)) return true;
  for (const auto& row : detail::blocked_rows)
    if (row.module == module && detail::in_module(name, row.name)) return true;
  if (name.find('.') == name.npos) return false;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('.', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    for (const std::string_view root : detail::blocked_modules)
      if (part == root) return true;
    for (const auto& row : detail::blocked_rows)
      if (part == row.name) return true;
    if (part.substr(0, 2) == "__") return true;
    at = end + 1;
  }
  return false;
}

/// What a global means; `unknown` for everything that is not listed.
inline torch_symbol symbol_of(std::string_view module, std::string_view name) noexcept {
  module = detail::python3_module(module);
  if (module == "torch" || module == "torch.cuda") {
    if (detail::row_named(detail::storage_rows, name) != nullptr) return torch_symbol::storage_class;
    if (name.size() >= 6 && name.substr(name.size() - 6) == "Tensor") return torch_symbol::tensor_class;
  }
  if (module == "torch" && detail::row_named(detail::element_rows, name) != nullptr) return torch_symbol::element_type;
  if (module == "torch" &&
      std::find(std::begin(detail::constant_names), std::end(detail::constant_names), name) != std::end(detail::constant_names))
    return torch_symbol::constant;
  for (const auto& row : detail::symbol_rows)
    if (row.name == name && row.module == module) return row.symbol;
  return torch_symbol::unknown;
}

/// Element type of a storage class ("FloatStorage"); nothing if it is quantized.
inline std::optional<dtype> storage_type(std::string_view name) noexcept {
  const auto* row = detail::row_named(detail::storage_rows, name);
  return row ? row->type : std::nullopt;
}
/// Element type of a dtype global ("float8_e4m3fn"); nothing if this library has none.
inline std::optional<dtype> element_type(std::string_view name) noexcept {
  const auto* row = detail::row_named(detail::element_rows, name);
  return row ? row->type : std::nullopt;
}

TENSORSMITH_END_NAMESPACE
