// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/stored_change.hpp: rarer changes of a weight: another weight in its place, single elements, changes of part of its columns.
//
// Include this beside tensor/weight_change.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "tensorsmith/tensor/weight_change.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

template <class T>
void append_integers(const std::vector<std::byte>& bytes, std::vector<std::int64_t>& out) {
  for (std::size_t at = 0; at + sizeof(T) <= bytes.size(); at += sizeof(T)) {
    T value{};
    std::memcpy(&value, bytes.data() + at, sizeof value);
    out.push_back(static_cast<std::int64_t>(value));
  }
}

}  // namespace detail

/// All of a planned tensor as integers; true is 1. @fails unsupported (element types that are no integers), and as its source
inline result<std::vector<std::int64_t>> integers_of(const tensor_ref& tensor, const job& run) {
  TENSORSMITH_TRY(const std::vector<std::byte> bytes, materialize(tensor, run));
  std::vector<std::int64_t> out;
  out.reserve(tensor.info().elements());
  switch (tensor.type()) {
    case dtype::i64: detail::append_integers<std::int64_t>(bytes, out); break;
    case dtype::i32: detail::append_integers<std::int32_t>(bytes, out); break;
    case dtype::i16: detail::append_integers<std::int16_t>(bytes, out); break;
    case dtype::i8: detail::append_integers<std::int8_t>(bytes, out); break;
    case dtype::u32: detail::append_integers<std::uint32_t>(bytes, out); break;
    case dtype::u16: detail::append_integers<std::uint16_t>(bytes, out); break;
    case dtype::u8:
    case dtype::boolean: detail::append_integers<std::uint8_t>(bytes, out); break;
    default:
      return failure{.code = errc::unsupported, .what = "a whole number of an adapter is of another type",
                     .place = "tensor " + quoted(tensor.info().name), .expected = "an integer type", .found = std::string(name_of(tensor.type()))};
  }
  return out;
}

/// Another weight in place of this one: W' = W + strength · (saved − W); at strength 1 the saved one, bit by bit.
class replacement_change final : public weight_change {
 public:
  /// @pre saved has as many elements as the weight and, seen as [dim 0, rest], its rows
  replacement_change(tensor_ref saved, float strength) : saved_(std::move(saved)), strength_(strength) {}
  std::size_t prepared_bytes() const noexcept override { return saved_.info().elements() * sizeof(float); }
  result<void> prepare(const job& run) override {
    TENSORSMITH_TRY(values_, finite_floats_of(saved_, run));
    return {};
  }
  void release() noexcept override { values_ = decltype(values_)(); }
  void apply(matrix w, region r, scratch&) const override {
    const std::size_t cols = plane_of(saved_.shape()).cols;
    for (std::size_t i = 0; i < r.rows; ++i) {
      const float* const from = values_.data() + (r.row + i) * cols + r.col;
      float* const to = w.row(i);
      for (std::size_t j = 0; j < r.cols; ++j) to[j] = strength_ == 1.0F ? from[j] : to[j] + strength_ * (from[j] - to[j]);
    }
  }

 private:
  tensor_ref saved_;
  float strength_;
  std::vector<float> values_;
};

/// Where a sparse difference is not zero: coordinates [dimensions, n] and values [n] of a tensor of the shape `extents`.
struct sparse_elements {
  tensor_ref indices, values;
  shape_type extents;
};

/// Single elements: W += scale · difference. Elements that are named twice add up.
class sparse_change final : public weight_change {
 public:
  /// @pre the product of the extents is the weight's count of elements, indices are [extents.size(), n], values [n]
  sparse_change(sparse_elements stored, plane weight, float scale) : stored_(std::move(stored)), weight_(weight), scale_(scale) {}
  region grain() const noexcept override { return {0, 1, 0, 1}; }
  std::size_t prepared_bytes() const noexcept override { return stored_.values.info().elements() * sizeof(element) * 2; }

  /// @fails mismatch (a coordinate outside of the weight)
  result<void> prepare(const job& run) override {
    TENSORSMITH_TRY(const std::vector<std::int64_t> indices, integers_of(stored_.indices, run));
    TENSORSMITH_TRY(const std::vector<float> values, finite_floats_of(stored_.values, run));
    const std::size_t n = values.size();
    elements_.reserve(n);
    for (std::size_t i = 0; i < n; ++i) {
      std::size_t at = 0;
      for (std::size_t d = 0; d < stored_.extents.size(); ++d) {
        const std::int64_t index = indices[d * n + i];
        if (index < 0 || static_cast<std::uint64_t>(index) >= stored_.extents[d])
          return failure{.code = errc::mismatch, .what = "a sparse difference has an element outside of the weight",
                         .place = "tensor " + quoted(stored_.indices.info().name), .expected = "an index below " + std::to_string(stored_.extents[d]),
                         .found = std::to_string(index)};
        at = at * stored_.extents[d] + static_cast<std::size_t>(index);
      }
      elements_.push_back({at, values[i]});
    }
    std::stable_sort(elements_.begin(), elements_.end(), [](const element& a, const element& b) { return a.at < b.at; });
    return {};
  }
  void release() noexcept override { elements_ = decltype(elements_)(); }
  void apply(matrix w, region r, scratch&) const override {
    for (std::size_t i = 0; i < r.rows; ++i) {
      const std::size_t first = (r.row + i) * weight_.cols + r.col, last = first + r.cols;
      auto at = std::lower_bound(elements_.begin(), elements_.end(), first, [](const element& e, std::size_t wanted) { return e.at < wanted; });
      for (; at != elements_.end() && at->at < last; ++at) w.row(i)[at->at - first] += scale_ * at->value;
    }
  }

 private:
  struct element {
    std::size_t at;
    float value;
  };
  sparse_elements stored_;
  plane weight_;
  float scale_;
  std::vector<element> elements_;
};

/// A change and single elements beside it, as one.
class combined_change final : public weight_change {
 public:
  combined_change(weight_change_ptr first, weight_change_ptr elements) : first_(std::move(first)), elements_(std::move(elements)) {}
  region grain() const noexcept override { return first_->grain(); }
  std::size_t prepared_bytes() const noexcept override { return first_->prepared_bytes() + elements_->prepared_bytes(); }
  result<void> prepare(const job& run) override {
    TENSORSMITH_CHECK(first_->prepare(run));
    return elements_->prepare(run);
  }
  void release() noexcept override {
    first_->release();
    elements_->release();
  }
  void apply(matrix w, region r, scratch& work) const override {
    first_->apply(w, r, work);
    elements_->apply(w, r, work);
  }

 private:
  weight_change_ptr first_, elements_;
};

/// A change of the first columns alone: the other input channels of an inpainting model stay.
class partial_change final : public weight_change {
 public:
  /// @pre `inner` changes a weight of as many rows and `cols` columns, by a fixed difference
  partial_change(weight_change_ptr inner, std::size_t cols) : inner_(std::move(inner)), cols_(cols) {}
  region grain() const noexcept override { return inner_->grain(); }
  std::size_t prepared_bytes() const noexcept override { return inner_->prepared_bytes(); }
  result<void> prepare(const job& run) override { return inner_->prepare(run); }
  void release() noexcept override { inner_->release(); }
  void apply(matrix w, region r, scratch& work) const override {
    if (r.col >= cols_) return;
    r.cols = std::min(r.cols, cols_ - r.col);
    w.cols = r.cols;
    inner_->apply(w, r, work);
  }

 private:
  weight_change_ptr inner_;
  std::size_t cols_;
};

TENSORSMITH_END_NAMESPACE
