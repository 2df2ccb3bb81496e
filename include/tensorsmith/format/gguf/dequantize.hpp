// SPDX-License-Identifier: MIT
//
// tensorsmith/format/gguf/dequantize.hpp: block-quantized GGUF tensors as f32, block by block as the tiles pass.
//
// A block holds 32 consecutive elements of the innermost dimension. With its f16 scale d (ggml, ggml-quants.c):
//   Q8_0 (34 bytes: d, q[32] signed bytes):   y[j] = q[j] · d
//   Q4_0 (18 bytes: d, b[16]):                y[j] = ((b[j] & 15) − 8) · d,  y[j + 16] = ((b[j] >> 4) − 8) · d
// Products are f32, rounded once: the bits that ggml's and gguf-py's reference give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "tensorsmith/core/half.hpp"
#include "tensorsmith/format/gguf/types.hpp"
#include "tensorsmith/tensor/recipe.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::size_t gguf_block = 32;  // elements, for both encodings

inline float gguf_scale(const std::byte* block) noexcept {
  std::uint16_t code;
  std::memcpy(&code, block, sizeof code);
  return f16_to_f32(code);
}

inline void dequantize_q8_0(const std::byte* in, std::byte* out, std::size_t blocks) noexcept {
  for (; blocks > 0; --blocks, in += 34, out += 4 * gguf_block) {
    const float scale = gguf_scale(in);
    std::int8_t codes[gguf_block];
    float values[gguf_block];
    std::memcpy(codes, in + 2, sizeof codes);
    for (std::size_t j = 0; j < gguf_block; ++j) values[j] = static_cast<float>(codes[j]) * scale;
    std::memcpy(out, values, sizeof values);
  }
}

inline void dequantize_q4_0(const std::byte* in, std::byte* out, std::size_t blocks) noexcept {
  for (; blocks > 0; --blocks, in += 18, out += 4 * gguf_block) {
    const float scale = gguf_scale(in);
    std::uint8_t pairs[gguf_block / 2];
    float values[gguf_block];
    std::memcpy(pairs, in + 2, sizeof pairs);
    for (std::size_t j = 0; j < gguf_block / 2; ++j) {
      values[j] = static_cast<float>(static_cast<int>(pairs[j] & 15U) - 8) * scale;
      values[j + gguf_block / 2] = static_cast<float>(static_cast<int>(pairs[j] >> 4) - 8) * scale;
    }
    std::memcpy(out, values, sizeof values);
  }
}

}  // namespace detail

/// A contiguous Q8_0 or Q4_0 tensor of a source as f32. @pre its bytes lie inside the source; the extent of the innermost dimension is
/// a multiple of 32
class dequantized_recipe final : public recipe {
 public:
  dequantized_recipe(std::shared_ptr<const byte_source> file, std::uint64_t byte_offset, gguf_type stored, shape_type shape, std::string where)
      : file_(std::move(file)), offset_(byte_offset), stored_(stored) {
    info_.name = std::move(where);
    info_.type = dtype::f32;
    info_.shape = std::move(shape);
  }
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  region grain() const override { return {0, 1, 0, detail::gguf_block}; }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override {
    if (out.empty() || out.back() != file_) out.push_back(file_);
  }

  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    const std::size_t all = plane_of(info_.shape).cols, row = stored_bytes_of(r.cols);
    view in{nullptr, stored_bytes_of(all)};
    const std::uint64_t first = offset_ + r.row * in.pitch + stored_bytes_of(r.col);
    if (const auto bytes = file_->resident(); !bytes.empty()) {
      in.data = bytes.data() + first;
    } else {
      const auto bytes_read = work.take(row * r.rows);
      if (r.cols == all) {
        TENSORSMITH_CHECK(file_->read_at(first, bytes_read));
      } else {
        for (std::size_t i = 0; i < r.rows; ++i) TENSORSMITH_CHECK(file_->read_at(first + i * in.pitch, bytes_read.subspan(i * row, row)));
      }
      in = {bytes_read.data(), row};
    }
    const auto decode = stored_.encoding == gguf_encoding::q8_0 ? detail::dequantize_q8_0 : detail::dequantize_q4_0;
    for (std::size_t i = 0; i < r.rows; ++i) decode(in.data + i * in.pitch, tiles[0].data + i * tiles[0].pitch, r.cols / detail::gguf_block);
    return {};
  }

  recipe_ptr fold_reshape(const shape_type& shape) const override {
    if (plane_of(shape).cols % detail::gguf_block != 0) return nullptr;
    return std::make_shared<dequantized_recipe>(file_, offset_, stored_, shape, info_.name);
  }
  recipe_ptr fold_rows(std::size_t first, std::size_t count) const override {
    const std::size_t row = info_.shape.size() < 2 ? 1 : plane_of(info_.shape).cols;  // elements of one index of the first dimension
    if (first * row % detail::gguf_block != 0 || count * row % detail::gguf_block != 0) return nullptr;
    shape_type shape = info_.shape;
    shape[0] = count;
    return std::make_shared<dequantized_recipe>(file_, offset_ + stored_bytes_of(first * row), stored_, std::move(shape), info_.name);
  }

 private:
  std::size_t stored_bytes_of(std::size_t elements) const noexcept { return elements / detail::gguf_block * stored_.block_bytes; }

  std::shared_ptr<const byte_source> file_;
  std::uint64_t offset_;
  gguf_type stored_;
  tensor_info info_;
};

TENSORSMITH_END_NAMESPACE
