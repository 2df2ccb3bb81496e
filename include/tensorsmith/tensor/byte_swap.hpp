// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/byte_swap.hpp: big-endian numbers as a planned tensor of the same numbers in little-endian.
//
// Include this in readers of files that machines of either byte order write.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Bytes of the numbers that an element consists of: complex elements consist of two. @pre elements of whole bytes
constexpr std::size_t number_bytes(dtype type) noexcept {
  const std::size_t bytes = bits_of(type) / 8;
  return type == dtype::c64 || type == dtype::c128 ? bytes / 2 : bytes;
}

namespace detail {

class byte_swapped_recipe final : public view_recipe {
 public:
  explicit byte_swapped_recipe(recipe_ptr inner) : view_recipe(inner, inner->outputs()[0].shape) {}
  plane work() const override { return inner_->work(); }
  region grain() const override { return inner_->grain(); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    TENSORSMITH_TRY(const view in, inner_->load(r, work));
    const std::size_t unit = number_bytes(info_.type), row = row_bytes(r);
    for (std::size_t i = 0; i < r.rows; ++i) {
      const std::byte* const from = in.data + i * in.pitch;
      std::byte* const to = tiles[0].data + i * tiles[0].pitch;
      for (std::size_t at = 0; at + unit <= row; at += unit) std::reverse_copy(from + at, from + at + unit, to + at);
    }
    return {};
  }
  recipe_ptr fold_transpose() const override { return wrapped(inner_->fold_transpose()); }
  recipe_ptr fold_reshape(const shape_type& shape) const override { return wrapped(inner_->fold_reshape(shape)); }
  recipe_ptr fold_rows(std::size_t first, std::size_t count) const override { return wrapped(inner_->fold_rows(first, count)); }

 private:
  static recipe_ptr wrapped(recipe_ptr folded) { return folded ? std::make_shared<byte_swapped_recipe>(std::move(folded)) : nullptr; }
};

}  // namespace detail

/// A single-output recipe with the bytes of each number in reverse order; the recipe itself where numbers have one byte.
inline recipe_ptr byte_swapped(recipe_ptr inner) {
  if (number_bytes(inner->outputs()[0].type) == 1) return inner;
  return std::make_shared<detail::byte_swapped_recipe>(std::move(inner));
}

TENSORSMITH_END_NAMESPACE
