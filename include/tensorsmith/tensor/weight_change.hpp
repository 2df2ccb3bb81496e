// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/weight_change.hpp: what one adapter does to one weight, tile by tile: the interface of changes, and those that add
// a fixed difference (LoRA, LoHa, LoKr, full).
//
// Include this to write a change of your own; tensor/merged.hpp applies a chain of them in one pass over the weight.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/merge/lycoris.hpp"
#include "tensorsmith/merge/simd.hpp"
#include "tensorsmith/tensor/executor.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What one adapter does to one weight. Weights are seen as the matrix [dim 0, rest] in f32. Thread-safe after `prepare`.
class weight_change {
 public:
  virtual ~weight_change() = default;
  /// Tiles begin at multiples of this many rows and columns, and have as many (but at the edges). 0: all of them.
  virtual region grain() const noexcept { return {0, 1, 0, panel_cols}; }
  /// Bytes that stay allocated between prepare and release.
  virtual std::size_t prepared_bytes() const noexcept = 0;
  /// Reads and packs the factors. @fails as their sources
  virtual result<void> prepare(const job& run) = 0;
  virtual void release() noexcept = 0;
  /// Changes the tile of the weight at region `r`.
  virtual void apply(matrix w, region r, scratch& work) const = 0;
  /// True if every tile must be seen by `observe` before the first `apply`: the weight is then read twice.
  virtual bool observes() const noexcept { return false; }
  /// Sees a tile as `apply` will get it. Called from one thread, for all tiles in ascending order.
  virtual void observe(matrix, region, scratch&) {}
};

using weight_change_ptr = std::shared_ptr<weight_change>;

/// All of a planned tensor as floats. For factors: small. @fails unsupported (element types that are no numbers), and as its source
inline result<std::vector<float>> floats_of(const tensor_ref& tensor, const job& run) {
  const std::size_t n = tensor.info().elements();
  TENSORSMITH_TRY(const std::vector<std::byte> bytes, materialize(tensor, run));
  std::vector<float> out(n);
  if (tensor.type() == dtype::f32) {
    if (n > 0) std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  if (!convertible(tensor.type(), dtype::f32))
    return failure{.code = errc::unsupported, .what = "a factor of an adapter is of a type that cannot be computed with",
                   .place = "tensor " + quoted(tensor.info().name), .expected = "a floating-point type",
                   .found = std::string(name_of(tensor.type()))};
  convert_elements(tensor.type(), bytes.data(), dtype::f32, reinterpret_cast<std::byte*>(out.data()), n);
  return out;
}

/// As floats_of, for what is merged. @fails numeric if an element is NaN or infinite: it would spread over the whole layer
inline result<std::vector<float>> finite_floats_of(const tensor_ref& tensor, const job& run) {
  TENSORSMITH_TRY(std::vector<float> out, floats_of(tensor, run));
  if (!any_nonfinite(dtype::f32, reinterpret_cast<const std::byte*>(out.data()), out.size())) return out;
  std::size_t at = 0;
  while (std::isfinite(out[at])) ++at;
  shape_type index(tensor.shape().size());
  std::size_t rest = at;
  for (std::size_t d = index.size(); d-- > 0; rest /= tensor.shape()[d]) index[d] = rest % tensor.shape()[d];
  return failure{.code = errc::numeric, .what = "an adapter holds values that are not finite", .place = "tensor " + quoted(tensor.info().name),
                 .expected = "finite numbers", .found = (std::isnan(out[at]) ? "NaN at " : "infinity at ") + to_string(index),
                 .advice = "leave the adapter out: it is damaged"};
}

/// A product of two factors with the second one packed, as LoRA and LoHa need it.
class packed_product {
 public:
  /// up [rows, r], down [r, cols]; with a core [p, q, positions] (Tucker), down is [q, cols / positions] and up [rows, p]. `transposed_up`:
  /// up is stored [r, rows], as LoHa's Tucker form does.
  packed_product(tensor_ref up, tensor_ref down, tensor_ref core = {}, bool transposed_up = false)
      : up_ref_(std::move(up)), down_ref_(std::move(down)), core_ref_(std::move(core)), transposed_(transposed_up) {
    const plane left = plane_of(up_ref_.shape()), right = plane_of(down_ref_.shape());
    rank_ = transposed_ ? left.rows : left.cols;
    rows_ = transposed_ ? left.cols : left.rows;
    positions_ = core_ref_ ? plane_of(core_ref_.shape()).cols / right.rows : 1;
    cols_ = right.cols * positions_;
  }
  std::size_t rows() const noexcept { return rows_; }
  std::size_t cols() const noexcept { return cols_; }
  std::size_t prepared_bytes() const noexcept { return (rows_ * rank_ + packed_floats(rank_, cols_)) * sizeof(float); }

  result<void> prepare(const job& run) {
    TENSORSMITH_TRY(up_, finite_floats_of(up_ref_, run));
    if (transposed_) {
      std::vector<float> turned(up_.size());
      for (std::size_t k = 0; k < rank_; ++k)
        for (std::size_t i = 0; i < rows_; ++i) turned[i * rank_ + k] = up_[k * rows_ + i];
      up_ = std::move(turned);
    }
    TENSORSMITH_TRY(std::vector<float> down, finite_floats_of(down_ref_, run));
    if (core_ref_) {
      TENSORSMITH_TRY(const std::vector<float> core, finite_floats_of(core_ref_, run));
      const std::size_t q = plane_of(down_ref_.shape()).rows;
      std::vector<float> combined(rank_ * cols_);
      combine_tucker({core.data(), rank_, q * positions_}, positions_, {down.data(), q, cols_ / positions_}, {combined.data(), rank_, cols_});
      down = std::move(combined);
    }
    packed_.resize(packed_floats(rank_, cols_));
    pack_panels({down.data(), rank_, cols_}, packed_.data());
    return {};
  }
  void release() noexcept {
    up_ = decltype(up_)();
    packed_ = decltype(packed_)();
  }
  /// w += s · the product's tile at `r`.
  void add(matrix w, region r, float s) const noexcept {
    kernel_(w, r.col, {up_.data() + r.row * rank_, r.rows, rank_}, {packed_.data(), rank_, cols_}, s);
  }

 private:
  tensor_ref up_ref_, down_ref_, core_ref_;
  bool transposed_;
  std::size_t rank_ = 0, rows_ = 0, cols_ = 0, positions_ = 1;
  low_rank_kernel kernel_ = best_low_rank();
  std::vector<float> up_, packed_;
};

/// LoRA and LoCon: W += scale · up @ down.
class low_rank_change final : public weight_change {
 public:
  low_rank_change(packed_product product, float scale) : product_(std::move(product)), scale_(scale) {}
  std::size_t prepared_bytes() const noexcept override { return product_.prepared_bytes(); }
  result<void> prepare(const job& run) override { return product_.prepare(run); }
  void release() noexcept override { product_.release(); }
  void apply(matrix w, region r, scratch&) const override { product_.add(w, r, scale_); }

 private:
  packed_product product_;
  float scale_;
};

/// LoHa: W += scale · (first ⊙ second).
class hadamard_change final : public weight_change {
 public:
  hadamard_change(packed_product first, packed_product second, float scale)
      : first_(std::move(first)), second_(std::move(second)), scale_(scale) {}
  std::size_t prepared_bytes() const noexcept override { return first_.prepared_bytes() + second_.prepared_bytes(); }
  result<void> prepare(const job& run) override {
    TENSORSMITH_CHECK(first_.prepare(run));
    return second_.prepare(run);
  }
  void release() noexcept override {
    first_.release();
    second_.release();
  }
  void apply(matrix w, region r, scratch& work) const override {
    const scratch::scope keep(work);
    const auto product = [&](const packed_product& factor) {
      const auto bytes = work.take(r.elements() * sizeof(float));
      std::fill(bytes.begin(), bytes.end(), std::byte{});
      const matrix out(reinterpret_cast<float*>(bytes.data()), r.rows, r.cols);
      factor.add(out, r, 1.0F);
      return out;
    };
    const matrix a = product(first_), b = product(second_);
    add_hadamard(w, a, b, scale_);
  }

 private:
  packed_product first_, second_;
  float scale_;
};

/// One operand of LoKr: stored whole, or as a product of two factors, or with a core.
class kronecker_operand {
 public:
  explicit kronecker_operand(tensor_ref whole) : whole_(std::move(whole)) {
    const plane p = plane_of(whole_.shape());
    rows_ = p.rows, cols_ = p.cols;
  }
  explicit kronecker_operand(packed_product product) : product_(std::make_shared<packed_product>(std::move(product))) {
    rows_ = product_->rows(), cols_ = product_->cols();
  }
  std::size_t rows() const noexcept { return rows_; }
  std::size_t cols() const noexcept { return cols_; }
  result<void> prepare(const job& run) {
    if (!product_) {
      TENSORSMITH_TRY(values_, finite_floats_of(whole_, run));
      return {};
    }
    values_.assign(rows_ * cols_, 0.0F);
    TENSORSMITH_CHECK(product_->prepare(run));
    product_->add({values_.data(), rows_, cols_}, {0, rows_, 0, cols_}, 1.0F);
    product_->release();
    return {};
  }
  void release() noexcept { values_ = decltype(values_)(); }
  const_matrix view() const noexcept { return {values_.data(), rows_, cols_}; }

 private:
  tensor_ref whole_;
  std::shared_ptr<packed_product> product_;
  std::size_t rows_ = 0, cols_ = 0;
  std::vector<float> values_;
};

/// LoKr: W += scale · (w1 ⊗ w2).
class kronecker_change final : public weight_change {
 public:
  kronecker_change(kronecker_operand w1, kronecker_operand w2, float scale) : w1_(std::move(w1)), w2_(std::move(w2)), scale_(scale) {}
  region grain() const noexcept override { return {0, 1, 0, 0}; }
  std::size_t prepared_bytes() const noexcept override {
    return 2 * (w1_.rows() * w1_.cols() + w2_.rows() * w2_.cols()) * sizeof(float);
  }
  result<void> prepare(const job& run) override {
    TENSORSMITH_CHECK(w1_.prepare(run));
    return w2_.prepare(run);
  }
  void release() noexcept override {
    w1_.release();
    w2_.release();
  }
  void apply(matrix w, region r, scratch&) const override { add_kronecker(w, r.row, w1_.view(), w2_.view(), scale_); }

 private:
  kronecker_operand w1_, w2_;
  float scale_;
};

/// A stored difference of the weight's own size: W += scale · diff. Read beside the weight, never as a whole.
class full_change final : public weight_change {
 public:
  /// @pre diff has as many elements as the weight and, seen as [dim 0, rest], its rows
  full_change(tensor_ref diff, float scale) : diff_(std::move(diff)), scale_(scale) {}
  std::size_t prepared_bytes() const noexcept override { return diff_.info().elements() * sizeof(float); }
  result<void> prepare(const job& run) override {
    TENSORSMITH_TRY(values_, finite_floats_of(diff_, run));
    return {};
  }
  void release() noexcept override { values_ = decltype(values_)(); }
  void apply(matrix w, region r, scratch&) const override {
    const std::size_t cols = plane_of(diff_.shape()).cols;
    add_scaled(w, {values_.data() + r.row * cols + r.col, r.rows, r.cols, cols}, scale_);
  }

 private:
  tensor_ref diff_;
  float scale_;
  std::vector<float> values_;
};

TENSORSMITH_END_NAMESPACE
