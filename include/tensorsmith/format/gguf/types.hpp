// SPDX-License-Identifier: MIT
//
// tensorsmith/format/gguf/types.hpp: the tensor types of GGUF: their names, and which of them are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tensorsmith/core/dtype.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How the elements of a GGUF tensor become ours.
enum class gguf_encoding : std::uint8_t {
  direct,       ///< stored as one of our element types
  q8_0,         ///< blocks of 32: one f16 scale, 32 signed bytes
  q4_0,         ///< blocks of 32: one f16 scale, 32 codes of 4 bits
  unsupported,  ///< known by name only
};

/// A row of the table of tensor types (enum ggml_type of ggml.h).
struct gguf_type {
  std::uint32_t id = 0;
  std::string_view name;
  gguf_encoding encoding = gguf_encoding::unsupported;
  dtype type = dtype::f32;        ///< of the planned tensor
  std::size_t block = 1;          ///< elements that are stored together, along the innermost dimension
  std::size_t block_bytes = 0;    ///< bytes of them
};

namespace detail {

inline constexpr gguf_type gguf_types[] = {
    {0, "F32", gguf_encoding::direct, dtype::f32, 1, 4}, {1, "F16", gguf_encoding::direct, dtype::f16, 1, 2},
    {2, "Q4_0", gguf_encoding::q4_0, dtype::f32, 32, 18}, {3, "Q4_1"}, {4, "Q4_2"}, {5, "Q4_3"}, {6, "Q5_0"}, {7, "Q5_1"},
    {8, "Q8_0", gguf_encoding::q8_0, dtype::f32, 32, 34}, {9, "Q8_1"}, {10, "Q2_K"}, {11, "Q3_K"}, {12, "Q4_K"}, {13, "Q5_K"},
    {14, "Q6_K"}, {15, "Q8_K"}, {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},
    {22, "IQ2_S"}, {23, "IQ4_XS"}, {24, "I8", gguf_encoding::direct, dtype::i8, 1, 1}, {25, "I16", gguf_encoding::direct, dtype::i16, 1, 2},
    {26, "I32", gguf_encoding::direct, dtype::i32, 1, 4}, {27, "I64", gguf_encoding::direct, dtype::i64, 1, 8},
    {28, "F64", gguf_encoding::direct, dtype::f64, 1, 8}, {29, "IQ1_M"}, {30, "BF16", gguf_encoding::direct, dtype::bf16, 1, 2},
    {31, "Q4_0_4_4"}, {32, "Q4_0_4_8"}, {33, "Q4_0_8_8"}, {34, "TQ1_0"}, {35, "TQ2_0"}, {36, "IQ4_NL_4_4"}, {37, "IQ4_NL_4_8"},
    {38, "IQ4_NL_8_8"}, {39, "MXFP4"}};

}  // namespace detail

/// The row of a type, or nullptr for a number without a name here.
constexpr const gguf_type* find_gguf_type(std::uint32_t id) noexcept {
  for (const gguf_type& row : detail::gguf_types)
    if (row.id == id) return &row;
  return nullptr;
}

TENSORSMITH_END_NAMESPACE
