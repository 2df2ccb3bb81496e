// SPDX-License-Identifier: MIT
//
// tensorsmith/format/numpy/swapped.hpp: a tensor stored with the most significant byte first, read as little-endian.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

#include "tensorsmith/tensor/recipe.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Reverses the bytes of every element of output 0 of another recipe; of real and imaginary part each for complex types.
/// @pre elements of whole bytes
class swapped_recipe final : public recipe {
 public:
  explicit swapped_recipe(recipe_ptr inner) : inner_(std::move(inner)) {
    const dtype type = inner_->outputs()[0].type;
    unit_ = bits_of(type) / 8 / (type == dtype::c64 || type == dtype::c128 ? 2 : 1);
  }
  std::span<const tensor_info> outputs() const noexcept override { return inner_->outputs(); }
  plane work() const override { return inner_->work(); }
  region grain() const override { return inner_->grain(); }
  std::size_t prepared_bytes() const noexcept override { return inner_->prepared_bytes(); }
  result<void> prepare(const job& run) override { return inner_->prepare(run); }
  void release() noexcept override { inner_->release(); }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override { inner_->add_sources(out); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    TENSORSMITH_TRY(const view in, inner_->load(r, work));
    const std::size_t bytes = row_bytes(r);
    for (std::size_t i = 0; i < r.rows; ++i) {
      const std::byte* from = in.data + i * in.pitch;
      std::byte* to = tiles[0].data + i * tiles[0].pitch;
      for (std::size_t at = 0; at < bytes; at += unit_) std::reverse_copy(from + at, from + at + unit_, to + at);
    }
    return {};
  }
  recipe_ptr fold_transpose() const override { return wrapped(inner_->fold_transpose()); }
  recipe_ptr fold_reshape(const shape_type& shape) const override { return wrapped(inner_->fold_reshape(shape)); }
  recipe_ptr fold_rows(std::size_t first, std::size_t count) const override { return wrapped(inner_->fold_rows(first, count)); }

 private:
  static recipe_ptr wrapped(recipe_ptr folded) { return folded ? std::make_shared<swapped_recipe>(std::move(folded)) : nullptr; }
  recipe_ptr inner_;
  std::size_t unit_;
};

TENSORSMITH_END_NAMESPACE
