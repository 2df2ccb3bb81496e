// SPDX-License-Identifier: MIT
//
// tensorsmith/core/config.hpp: compiler floor and the few macros that every header shares.
//
// Include this for the namespace and early-return macros. No macro here changes a type or a function's meaning.
#pragma once

#ifdef TENSORSMITH_SINGLE_INCLUDE
#error "tensorsmith: this source includes a single header and the separate headers; use one or the other"
#endif

#if !defined(__cplusplus) || __cplusplus < 202002L
#error "tensorsmith needs C++20: compile with -std=c++20 or newer"
#endif

#if defined(__SIZEOF_SIZE_T__) && __SIZEOF_SIZE_T__ < 8
#error "tensorsmith needs a 64-bit target: tensors and files are larger than 4 GiB"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensorsmith needs a little-endian target: files are read and written without swapping"
#endif
#if !defined(__cpp_exceptions) && !defined(_CPPUNWIND)
#error "tensorsmith needs exceptions: standard containers throw when memory runs out. Drop -fno-exceptions"
#endif

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "tensorsmith needs GCC 12 or newer"
#endif
#if defined(__clang__) && __clang_major__ < 14
#error "tensorsmith needs Clang 14 or newer"
#endif

#define TENSORSMITH_BEGIN_NAMESPACE \
  namespace tensorsmith {           \
  inline namespace v0 {
#define TENSORSMITH_END_NAMESPACE \
  }                               \
  }

#define TENSORSMITH_CONCAT_INNER(a, b) a##b
#define TENSORSMITH_CONCAT(a, b) TENSORSMITH_CONCAT_INNER(a, b)

/// Evaluates a `result<T>` expression; returns its failure from the enclosing function, or else binds the value:
/// `TENSORSMITH_TRY(const auto header, read_header(file));`
#define TENSORSMITH_TRY(declaration, ...) \
  TENSORSMITH_TRY_INNER(TENSORSMITH_CONCAT(tensorsmith_result_, __LINE__), declaration, __VA_ARGS__)
#define TENSORSMITH_TRY_INNER(name, declaration, ...)     \
  auto name = (__VA_ARGS__);                              \
  if (!name) return std::move(name).error();              \
  declaration = std::move(name).value()

/// Evaluates a `result<void>` (or any result) expression and returns its failure from the enclosing function.
#define TENSORSMITH_CHECK(...)                                                            \
  do {                                                                                    \
    if (auto tensorsmith_checked = (__VA_ARGS__); !tensorsmith_checked)                   \
      return std::move(tensorsmith_checked).error();                                      \
  } while (false)
