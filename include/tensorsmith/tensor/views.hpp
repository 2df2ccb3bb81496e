// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/views.hpp: a planned tensor seen otherwise: transposed, reshaped, rows of it.
//
// The view folds into the recipe where that is free (stored tensors change their strides, casts hand it on); otherwise a small
// recipe does it tile by tile.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "tensorsmith/tensor/recipe.hpp"
#include "tensorsmith/tensor/transpose.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// What a plain view of another single-output recipe has in common with it.
class view_recipe : public recipe {
 public:
  view_recipe(recipe_ptr inner, shape_type shape) : inner_(std::move(inner)), info_(inner_->outputs()[0]) {
    info_.shape = std::move(shape);
  }
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  std::size_t prepared_bytes() const noexcept override { return inner_->prepared_bytes(); }
  result<void> do_prepare(const job& run) override { return inner_->prepare(run); }
  void do_release() noexcept override { inner_->release(); }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override { inner_->add_sources(out); }

 protected:
  recipe_ptr inner_;
  tensor_info info_;
};

class transposed_recipe final : public view_recipe {
 public:
  explicit transposed_recipe(recipe_ptr inner)
      : view_recipe(inner, {inner->outputs()[0].shape[1], inner->outputs()[0].shape[0]}) {}
  region grain() const override {
    const region g = inner_->grain();
    const std::size_t rows = std::max<std::size_t>(g.rows, 1);
    return {0, g.cols, 0, (std::max<std::size_t>(rows, 64) + rows - 1) / rows * rows};  // 64 columns: whole cache lines of output
  }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    TENSORSMITH_TRY(const view in, inner_->load({r.col, r.cols, r.row, r.rows}, work));
    transpose_plane(in, tiles[0], r.cols, r.rows, bits_of(info_.type) / 8);
    return {};
  }
  recipe_ptr fold_transpose() const override { return inner_; }
};

class reshaped_recipe final : public view_recipe {
 public:
  reshaped_recipe(recipe_ptr inner, shape_type shape) : view_recipe(std::move(inner), std::move(shape)) {}
  region grain() const override { return inner_->grain(); }
  result<view> load(region r, scratch& work) const override { return inner_->load(r, work); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    return inner_->produce(r, tiles, work);
  }
  std::optional<stored_bytes> stored() const override { return inner_->stored(); }
};

class rows_recipe final : public view_recipe {
 public:
  rows_recipe(recipe_ptr inner, shape_type shape, std::size_t first)
      : view_recipe(std::move(inner), std::move(shape)), first_(first) {}
  region grain() const override { return inner_->grain(); }
  result<view> load(region r, scratch& work) const override { return inner_->load(moved(r), work); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    return inner_->produce(moved(r), tiles, work);
  }

 private:
  region moved(region r) const noexcept {
    if (info_.shape.size() < 2) return {r.row, r.rows, r.col + first_, r.cols};
    return {r.row + first_, r.rows, r.col, r.cols};
  }
  std::size_t first_;
};

inline failure view_failure(const tensor_ref& tensor, const char* what, std::string wanted) {
  return failure{.code = errc::mismatch, .what = what, .place = "tensor " + quoted(tensor.info().name),
                 .expected = std::move(wanted), .found = to_string(tensor.shape())};
}

}  // namespace detail

/// The transpose of a matrix. @fails mismatch if the rank is not 2 or the elements are packed.
inline result<tensor_ref> transposed(const tensor_ref& tensor) {
  if (tensor.shape().size() != 2 || tensor.source->outputs().size() != 1 || bits_of(tensor.type()) < 8)
    return detail::view_failure(tensor, "only a matrix can be transposed", "two dimensions");
  if (recipe_ptr folded = tensor.source->fold_transpose()) return tensor_ref{std::move(folded), 0};
  return tensor_ref{std::make_shared<detail::transposed_recipe>(tensor.source), 0};
}

/// The same elements in row-major order under another shape. @fails mismatch if the counts differ or the tensor is neither stored
/// contiguously nor keeps its plane.
inline result<tensor_ref> reshaped(const tensor_ref& tensor, const shape_type& shape) {
  if (tensor.shape() == shape) return tensor;
  if (element_count(shape) != tensor.info().elements() || tensor.source->outputs().size() != 1)
    return detail::view_failure(tensor, "a reshape must keep the number of elements", to_string(shape));
  if (recipe_ptr folded = tensor.source->fold_reshape(shape)) return tensor_ref{std::move(folded), 0};
  if (plane_of(shape) != plane_of(tensor.shape()))
    return detail::view_failure(tensor, "this tensor cannot be reshaped without a copy", to_string(shape));
  return tensor_ref{std::make_shared<detail::reshaped_recipe>(tensor.source, shape), 0};
}

/// `count` indices of the first dimension from `first` on. @fails mismatch if they lie outside or the elements are packed.
inline result<tensor_ref> sliced_rows(const tensor_ref& tensor, std::size_t first, std::size_t count) {
  const shape_type& shape = tensor.shape();
  if (shape.empty() || first > shape[0] || count > shape[0] - first || tensor.source->outputs().size() != 1 ||
      bits_of(tensor.type()) < 8)
    return detail::view_failure(tensor, "the slice lies outside the tensor",
                                "rows " + std::to_string(first) + " to " + std::to_string(first + count));
  if (recipe_ptr folded = tensor.source->fold_rows(first, count)) return tensor_ref{std::move(folded), 0};
  const region grain = tensor.source->grain();
  if (first % (shape.size() < 2 ? grain.cols : grain.rows) != 0)
    return detail::view_failure(tensor, "the slice does not start at a block of the tensor", "a multiple of its grain");
  shape_type cut = shape;
  cut[0] = count;
  return tensor_ref{std::make_shared<detail::rows_recipe>(tensor.source, std::move(cut), first), 0};
}

TENSORSMITH_END_NAMESPACE
