// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/dependent_change.hpp: changes that depend on the weight itself: (IA)³, GLoRA, OFT, BOFT, and DoRA around others.
//
// Include this beside tensor/weight_change.hpp. The order of such changes matters: each sees what those before it left.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "tensorsmith/merge/dora.hpp"
#include "tensorsmith/merge/orthogonal.hpp"
#include "tensorsmith/tensor/weight_change.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// (IA)³: W *= 1 + strength · scale, by input channel or by output row.
class scaling_change final : public weight_change {
 public:
  /// `positions`: elements of the kernel, 1 for a linear layer; used by input channels alone.
  scaling_change(tensor_ref scale, bool on_input, std::size_t positions, float strength)
      : scale_(std::move(scale)), on_input_(on_input), positions_(positions), strength_(strength) {}
  std::size_t prepared_bytes() const noexcept override { return scale_.info().elements() * sizeof(float); }
  result<void> prepare(const job& run) override {
    TENSORSMITH_TRY(values_, finite_floats_of(scale_, run));
    return {};
  }
  void release() noexcept override { values_ = decltype(values_)(); }
  void apply(matrix w, region r, scratch&) const override {
    if (on_input_) scale_columns(w, r.col, positions_, values_.data(), strength_);
    else scale_rows(w, values_.data() + r.row, strength_);
  }

 private:
  tensor_ref scale_;
  bool on_input_;
  std::size_t positions_;
  float strength_;
  std::vector<float> values_;
};

/// GLoRA: W += scale · ((W @ right) @ left + fixed).
class glora_change final : public weight_change {
 public:
  /// right [in, r], left [r, in]; fixed: b1 @ b2.
  glora_change(tensor_ref right, tensor_ref left, packed_product fixed, std::size_t positions, float scale)
      : right_(std::move(right)), left_(std::move(left)), fixed_(std::move(fixed)), positions_(positions), scale_(scale) {}
  region grain() const noexcept override { return {0, 1, 0, 0}; }
  std::size_t prepared_bytes() const noexcept override {
    return fixed_.prepared_bytes() + (right_.info().elements() + left_.info().elements()) * sizeof(float);
  }
  result<void> prepare(const job& run) override {
    TENSORSMITH_TRY(right_values_, finite_floats_of(right_, run));
    TENSORSMITH_TRY(left_values_, finite_floats_of(left_, run));
    return fixed_.prepare(run);
  }
  void release() noexcept override {
    right_values_ = decltype(right_values_)(), left_values_ = decltype(left_values_)();
    fixed_.release();
  }
  void apply(matrix w, region r, scratch& work) const override {
    const scratch::scope keep(work);
    const plane p = plane_of(right_.shape());
    const auto room = work.take(p.cols * sizeof(float));
    add_glora(w, positions_, {right_values_.data(), p.rows, p.cols}, {left_values_.data(), p.cols, p.rows}, scale_, reinterpret_cast<float*>(room.data()));
    fixed_.add(w, r, scale_);
  }

 private:
  tensor_ref right_, left_;
  packed_product fixed_;
  std::size_t positions_;
  float scale_;
  std::vector<float> right_values_, left_values_;
};

/// What an OFT or BOFT module stores.
struct rotation_parameters {
  tensor_ref blocks;        ///< [n, b, b], or [levels, n, b, b] (BOFT)
  tensor_ref rescale;       ///< [rows, 1, …] or none
  bool solved = false;      ///< blocks are rotations already (`oft_diag`)
  oft_constraint rule = oft_constraint::lycoris;
  double constraint = 0;    ///< alpha · output channels
};

/// OFT and BOFT at strength m: rotations of the output rows, then `rescale`.
class rotation_change final : public weight_change {
 public:
  rotation_change(rotation_parameters parameters, double strength) : p_(std::move(parameters)), strength_(strength) {
    const shape_type& shape = p_.blocks.shape();
    b_ = shape.back();
    butterfly_ = shape.size() == 4;
  }
  region grain() const noexcept override { return {0, butterfly_ ? 0 : b_, 0, 1}; }
  std::size_t prepared_bytes() const noexcept override { return p_.blocks.info().elements() * 2 * sizeof(float) + 2 * b_ * b_ * sizeof(double); }
  result<void> prepare(const job& run) override {
    TENSORSMITH_TRY(rotations_, finite_floats_of(p_.blocks, run));
    if (p_.rescale) {
      TENSORSMITH_TRY(rescale_, finite_floats_of(p_.rescale, run));
    }
    const std::size_t rows = rotations_.size() / b_;
    const double limit = p_.solved ? 1.0 : oft_scale({rotations_.data(), rows, b_}, p_.rule, p_.constraint);
    std::vector<double> work(2 * b_ * b_);
    std::vector<float> one(b_ * b_);
    for (std::size_t at = 0; at < rotations_.size(); at += one.size()) {
      float* const block = rotations_.data() + at;
      if (p_.solved) {
        for (std::size_t i = 0; i < one.size(); ++i)
          one[i] = static_cast<float>(strength_ * static_cast<double>(block[i]) + (i % (b_ + 1) == 0 ? 1.0 - strength_ : 0.0));
      } else {
        oft_rotation({block, b_, b_}, limit, strength_, {one.data(), b_, b_}, work.data());
      }
      for (std::size_t i = 0; i < b_; ++i)  // what multiplies the rows: Rᵀ for OFT, R for BOFT
        for (std::size_t j = 0; j < b_; ++j) block[i * b_ + j] = butterfly_ ? one[i * b_ + j] : one[j * b_ + i];
    }
    return {};
  }
  void release() noexcept override { rotations_ = decltype(rotations_)(), rescale_ = decltype(rescale_)(); }
  void apply(matrix w, region r, scratch& work) const override {
    const scratch::scope keep(work);
    const auto room = work.take((butterfly_ ? 2 * w.rows : b_) * panel_cols * sizeof(float));
    float* const floats = reinterpret_cast<float*>(room.data());
    if (butterfly_) rotate_butterfly(w, {rotations_.data(), rotations_.size() / b_, b_}, kernel_, floats);
    else rotate_rows(w, {rotations_.data() + r.row * b_, w.rows, b_}, kernel_, floats);
    if (rescale_.empty()) return;
    for (std::size_t i = 0; i < w.rows; ++i)
      for (std::size_t j = 0; j < w.cols; ++j) w.row(i)[j] *= rescale_[r.row + i];
  }

 private:
  rotation_parameters p_;
  double strength_;
  std::size_t b_ = 1;
  bool butterfly_ = false;
  low_rank_kernel kernel_ = best_low_rank();
  std::vector<float> rotations_, rescale_;
};

/// DoRA around another change, which is built for strength 1 (for the rule `peft`: for strength m).
class dora_change final : public weight_change {
 public:
  /// magnitude: as many values as the weight has rows (`by_rows`) or input channels of `positions` columns each.
  dora_change(weight_change_ptr inner, tensor_ref magnitude, bool by_rows, std::size_t positions, dora_strength rule, double strength)
      : inner_(std::move(inner)), magnitude_(std::move(magnitude)), by_rows_(by_rows), positions_(positions), rule_(rule), strength_(strength) {}
  region grain() const noexcept override {
    const region g = inner_->grain();
    return by_rows_ ? region{0, g.rows, 0, 0} : g;
  }
  std::size_t prepared_bytes() const noexcept override {
    return inner_->prepared_bytes() + magnitude_.info().elements() * (sizeof(float) + sizeof(double));
  }
  result<void> prepare(const job& run) override {
    TENSORSMITH_CHECK(inner_->prepare(run));
    TENSORSMITH_TRY(values_, finite_floats_of(magnitude_, run));
    if (!by_rows_) squares_.assign(values_.size(), 0.0);
    return {};
  }
  void release() noexcept override {
    inner_->release();
    values_ = decltype(values_)(), squares_ = decltype(squares_)();
  }
  bool observes() const noexcept override { return !by_rows_; }
  void observe(matrix w, region r, scratch& work) override {
    inner_->apply(w, r, work);
    add_column_squares(w, r.col, positions_, squares_.data());
  }
  void apply(matrix w, region r, scratch& work) const override {
    const scratch::scope keep(work);
    const_matrix before = w;
    if (rule_ == dora_strength::interpolate) {
      const auto bytes = work.take(r.elements() * sizeof(float));
      float* const copy = reinterpret_cast<float*>(bytes.data());
      for (std::size_t i = 0; i < r.rows; ++i) std::copy(w.row(i), w.row(i) + r.cols, copy + i * r.cols);
      before = {copy, r.rows, r.cols};
    }
    inner_->apply(w, r, work);
    if (by_rows_) apply_dora_rows(before, w, values_.data() + r.row, rule_, strength_);
    else apply_dora_columns(before, w, r.col, positions_, values_.data(), squares_.data(), rule_, strength_);
  }

 private:
  weight_change_ptr inner_;
  tensor_ref magnitude_;
  bool by_rows_;
  std::size_t positions_;
  dora_strength rule_;
  double strength_;
  std::vector<float> values_;
  std::vector<double> squares_;
};

TENSORSMITH_END_NAMESPACE
