// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/cast.hpp: a planned tensor in another floating-point type, converted tile by tile.
#pragma once

#include <memory>
#include <utility>

#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/tensor/recipe.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Converts output 0 of another recipe, rounding to nearest even once. @pre convertible(inner's dtype, to)
class cast_recipe final : public recipe {
 public:
  cast_recipe(recipe_ptr inner, dtype to) : inner_(std::move(inner)), info_(inner_->outputs()[0]), from_(info_.type) {
    info_.type = to;
  }
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  region grain() const override { return inner_->grain(); }
  std::size_t prepared_bytes() const noexcept override { return inner_->prepared_bytes(); }
  result<void> prepare(const job& run) override { return inner_->prepare(run); }
  void release() noexcept override { inner_->release(); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    TENSORSMITH_TRY(const view in, inner_->load(r, work));
    const tile out = tiles[0];
    if (in.pitch == byte_count(from_, r.cols) && out.pitch == row_bytes(r)) {
      convert_elements(from_, in.data, info_.type, out.data, r.elements());
    } else {
      for (std::size_t i = 0; i < r.rows; ++i)
        convert_elements(from_, in.data + i * in.pitch, info_.type, out.data + i * out.pitch, r.cols);
    }
    return {};
  }
  recipe_ptr uncast() const override { return inner_; }
  recipe_ptr fold_transpose() const override { return wrapped(inner_->fold_transpose()); }
  recipe_ptr fold_reshape(const shape_type& shape) const override { return wrapped(inner_->fold_reshape(shape)); }
  recipe_ptr fold_rows(std::size_t first, std::size_t count) const override { return wrapped(inner_->fold_rows(first, count)); }

 private:
  recipe_ptr wrapped(recipe_ptr folded) const {
    return folded ? std::make_shared<cast_recipe>(std::move(folded), info_.type) : nullptr;
  }
  recipe_ptr inner_;
  tensor_info info_;
  dtype from_;
};

/// `tensor` as `to`; the tensor itself if it has that type. @fails unsupported if there is no such conversion.
inline result<tensor_ref> cast(const tensor_ref& tensor, dtype to) {
  if (tensor.type() == to) return tensor;
  if (!convertible(tensor.type(), to) || tensor.source->outputs().size() != 1)
    return failure{.code = errc::unsupported, .what = "this conversion of element types does not exist",
                   .place = "tensor " + quoted(tensor.info().name), .expected = "one of f64, f32, f16, bf16 on both sides",
                   .found = std::string(name_of(tensor.type())) + " to " + std::string(name_of(to))};
  return tensor_ref{std::make_shared<cast_recipe>(tensor.source, to), 0};
}

TENSORSMITH_END_NAMESPACE
