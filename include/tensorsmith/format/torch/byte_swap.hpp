// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/byte_swap.hpp: big-endian numbers as a planned tensor of the same numbers in little-endian.
//
// Included by tensors.hpp: storages of checkpoints written on big-endian machines, numpy arrays of either byte order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace detail {

/// Bytes of the numbers that an element consists of: complex elements consist of two.
inline std::size_t swapped_unit(dtype type) noexcept {
  const std::size_t bytes = bits_of(type) / 8;
  return type == dtype::c64 || type == dtype::c128 ? bytes / 2 : bytes;
}

class swapped_recipe final : public view_recipe {
 public:
  explicit swapped_recipe(recipe_ptr inner) : view_recipe(inner, inner->outputs()[0].shape) {}
  region grain() const override { return inner_->grain(); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    TENSORSMITH_CHECK(inner_->produce(r, tiles, work));
    const std::size_t unit = swapped_unit(info_.type), row = row_bytes(r);
    for (std::size_t i = 0; i < r.rows; ++i) {
      std::byte* const begin = tiles[0].data + i * tiles[0].pitch;
      for (std::size_t at = 0; at + unit <= row; at += unit) std::reverse(begin + at, begin + at + unit);
    }
    return {};
  }
  recipe_ptr fold_transpose() const override { return folded(inner_->fold_transpose()); }
  recipe_ptr fold_reshape(const shape_type& shape) const override { return folded(inner_->fold_reshape(shape)); }
  recipe_ptr fold_rows(std::size_t first, std::size_t count) const override { return folded(inner_->fold_rows(first, count)); }

 private:
  static recipe_ptr folded(recipe_ptr inner) { return inner ? std::make_shared<swapped_recipe>(std::move(inner)) : nullptr; }
};

/// `inner` with the bytes of each number in reverse order; `inner` itself where numbers have one byte.
inline recipe_ptr swapped(recipe_ptr inner) {
  if (swapped_unit(inner->outputs()[0].type) == 1) return inner;
  return std::make_shared<swapped_recipe>(std::move(inner));
}

}  // namespace detail
TENSORSMITH_END_NAMESPACE
