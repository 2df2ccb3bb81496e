// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/stored.hpp: tensors as they lie in a source: contiguous or strided, sliced, reshaped, transposed.
//
// Include this to write a reader (stored_tensor, strided_tensor) or to view tensors at plan time (transposed, reshaped,
// sliced_rows): views of stored tensors only change strides, no bytes move.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/tensor/recipe.hpp"
#include "tensorsmith/tensor/transpose.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A checksum over stored bytes that is verified before the first tile of any tensor that uses them.
class integrity_check {
 public:
  virtual ~integrity_check() = default;
  /// Thread-safe; does its work once and repeats its answer. @fails integrity.
  virtual result<void> verify(const job&) = 0;
};

/// A tensor at a byte offset of a source, with strides in elements. @pre its bytes lie inside the source (readers prove it).
class stored_recipe final : public recipe {
 public:
  stored_recipe(std::shared_ptr<const byte_source> file, std::uint64_t byte_offset, dtype type, shape_type shape,
                std::vector<std::size_t> strides, std::string where, std::shared_ptr<integrity_check> check)
      : file_(std::move(file)), offset_(byte_offset), strides_(std::move(strides)), check_(std::move(check)) {
    info_.name = std::move(where);
    info_.type = type;
    info_.shape = std::move(shape);
    classify();
  }

  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override {
    if (out.empty() || out.back() != file_) out.push_back(file_);
  }

  plane work() const override { return walked(); }

  region grain() const override {
    const plane all = plane_of(info_.shape);
    switch (layout_) {
      case layout::contiguous: return {0, 1, 0, bits_of(info_.type) < 8 ? 8 / std::gcd(bits_of(info_.type), std::size_t{8}) : 1};
      case layout::transposed: {
        // Full rows of output, so that writes are long; each takes a piece of every source row. Pieces of 1 KiB cost a third of
        // what the copy costs; bands above 16 MiB would need too much memory in each thread.
        const std::size_t element = bits_of(info_.type) / 8, row = std::max<std::size_t>(1, all.cols * element);
        const std::size_t pieces = 1024 / element, affordable = (std::size_t{16} << 20) / row / 16 * 16;
        return {0, std::clamp<std::size_t>(affordable, 16, pieces), 0, all.cols};
      }
      case layout::row_local: return {0, 1, 0, all.cols};
      case layout::scattered: return {0, all.rows, 0, all.cols};
    }
    return {0, 1, 0, 1};
  }

  result<void> do_prepare(const job& run) override {
    if (check_) TENSORSMITH_CHECK(check_->verify(run));
    if (layout_ == layout::transposed)  // read in pieces all over it: have it fetched in one go
      file_->will_need(offset_, span_elements(0) * bits_of(info_.type) / 8);
    return {};
  }

  result<view> load(region r, scratch& work) const override {
    if (layout_ != layout::contiguous) return recipe::load(r, work);
    const plane all = walked();
    const std::size_t pitch = byte_count(info_.type, all.cols);
    const std::uint64_t first = offset_ + r.row * pitch + byte_count(info_.type, r.col);
    if (const auto bytes = file_->resident(); !bytes.empty()) return view{bytes.data() + first, pitch};
    const std::size_t row = row_bytes(r);
    auto out = work.take(row * r.rows);
    if (r.cols == all.cols) {
      TENSORSMITH_CHECK(file_->read_at(first, out));
    } else {
      for (std::size_t i = 0; i < r.rows; ++i) TENSORSMITH_CHECK(file_->read_at(first + i * pitch, out.subspan(i * row, row)));
    }
    return view{out.data(), row};
  }

  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    switch (layout_) {
      case layout::contiguous: return produce_contiguous(r, tiles[0], work);
      case layout::transposed: return produce_transposed(r, tiles[0], work);
      case layout::row_local:
      case layout::scattered: return produce_gathered(r, tiles[0], work);
    }
    return {};
  }

  std::optional<stored_bytes> stored() const override {
    if (layout_ != layout::contiguous) return std::nullopt;
    return stored_bytes{file_, offset_, info_.bytes()};
  }

  recipe_ptr fold_transpose() const override {
    if (info_.shape.size() != 2 || bits_of(info_.type) < 8) return nullptr;
    return std::make_shared<stored_recipe>(file_, offset_, info_.type, shape_type{info_.shape[1], info_.shape[0]},
                                           std::vector<std::size_t>{strides_[1], strides_[0]}, info_.name, check_);
  }

  recipe_ptr fold_reshape(const shape_type& shape) const override {
    std::vector<std::size_t> strides = row_major_strides(shape);
    if (layout_ != layout::contiguous) {  // only extents of 1 may come and go
      std::size_t at = 0;
      for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] == 1) { strides[i] = 0; continue; }
        while (at < info_.shape.size() && info_.shape[at] == 1) ++at;
        if (at == info_.shape.size() || info_.shape[at] != shape[i]) return nullptr;
        strides[i] = strides_[at++];
      }
    }
    return std::make_shared<stored_recipe>(file_, offset_, info_.type, shape, std::move(strides), info_.name, check_);
  }

  recipe_ptr fold_rows(std::size_t first, std::size_t count) const override {
    if (bits_of(info_.type) < 8) return nullptr;
    shape_type shape = info_.shape;
    shape[0] = count;
    return std::make_shared<stored_recipe>(file_, offset_ + first * strides_[0] * bits_of(info_.type) / 8, info_.type,
                                           std::move(shape), strides_, info_.name, check_);
  }

  /// Strides of a contiguous row-major tensor, in elements.
  static std::vector<std::size_t> row_major_strides(const shape_type& shape) {
    std::vector<std::size_t> strides(shape.size(), 1);
    for (std::size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<std::size_t>(shape[i], 1);
    return strides;
  }

 private:
  enum class layout : std::uint8_t {
    contiguous,  // row-major
    transposed,  // 2-D, the first dimension is the dense one
    row_local,   // each row of the plane lies in a stretch of its own: read stretch by stretch, gather
    scattered,   // rows interleave: the whole tensor is one tile
  };

  /// Rows of packed elements that do not end at a whole byte (4 rows of two 6-bit ones: 6 bytes) are walked as one row.
  plane walked() const noexcept {
    const plane all = plane_of(info_.shape);
    return all.cols * bits_of(info_.type) % 8 == 0 ? all : plane{1, info_.elements()};
  }

  void classify() {
    const shape_type& shape = info_.shape;
    const auto dense = row_major_strides(shape);
    bool same = true;
    for (std::size_t i = 0; i < shape.size(); ++i) same = same && (shape[i] <= 1 || strides_[i] == dense[i]);
    if (same || info_.elements() == 0) {
      layout_ = layout::contiguous;
    } else if (shape.size() == 2 && strides_[0] == 1 && strides_[1] >= shape[0]) {
      layout_ = layout::transposed;
    } else {
      layout_ = shape.size() >= 2 && strides_[0] >= span_elements(1) ? layout::row_local : layout::scattered;
    }
  }

  /// Elements between the first and the last of one index of the dimensions before `from`, inclusive.
  std::size_t span_elements(std::size_t from) const noexcept {
    std::size_t last = 0;
    for (std::size_t i = from; i < info_.shape.size(); ++i) last += (info_.shape[i] - 1) * strides_[i];
    return last + 1;
  }

  result<void> produce_contiguous(region r, tile out, scratch& work) const {
    const std::size_t row = row_bytes(r);
    if (r.cols == walked().cols && out.pitch == row && file_->resident().empty())
      return file_->read_at(offset_ + r.row * row, std::span(out.data, row * r.rows));
    TENSORSMITH_TRY(const view in, load(r, work));
    copy_rows(in, out, r.rows, row);
    return {};
  }

  result<void> produce_transposed(region r, tile out, scratch& work) const {
    const std::size_t element = bits_of(info_.type) / 8;
    const std::size_t source_row = strides_[1] * element, wanted = r.rows * element;
    view in{nullptr, wanted};
    const std::uint64_t first = offset_ + r.col * source_row + r.row * element;
    if (const auto bytes = file_->resident(); !bytes.empty()) {
      in = {bytes.data() + first, source_row};
    } else {
      auto panel = work.take(wanted * r.cols);
      in.data = panel.data();
      if (wanted == source_row) {
        TENSORSMITH_CHECK(file_->read_at(first, panel));
      } else {
        for (std::size_t j = 0; j < r.cols; ++j)
          TENSORSMITH_CHECK(file_->read_at(first + j * source_row, panel.subspan(j * wanted, wanted)));
      }
    }
    transpose_plane(in, out, r.cols, r.rows, element);
    return {};
  }

  result<void> produce_gathered(region r, tile out, scratch& work) const {
    const std::size_t element = bits_of(info_.type) / 8;
    if (layout_ == layout::scattered) {  // one stretch holds all rows
      auto bytes = work.take(span_elements(0) * element);
      TENSORSMITH_CHECK(file_->read_at(offset_, bytes));
      const std::size_t step = info_.shape.size() < 2 ? 0 : strides_[0];
      for (std::size_t i = 0; i < r.rows; ++i)
        gather_row(bytes.data() + (r.row + i) * step * element, out.data + i * out.pitch, element);
      return {};
    }
    auto bytes = work.take(span_elements(1) * element);
    for (std::size_t i = 0; i < r.rows; ++i) {
      TENSORSMITH_CHECK(file_->read_at(offset_ + (r.row + i) * strides_[0] * element, bytes));
      gather_row(bytes.data(), out.data + i * out.pitch, element);
    }
    return {};
  }

  /// Copies the elements of one plane row, in row-major order, through the strides.
  void gather_row(const std::byte* from, std::byte* to, std::size_t element) const {
    const std::size_t rank = info_.shape.size(), begin = rank < 2 ? 0 : 1;
    std::vector<std::size_t> index(rank, 0);
    std::size_t at = 0;
    const std::size_t count = plane_of(info_.shape).cols;
    for (std::size_t n = 0; n < count; ++n, to += element) {
      std::memcpy(to, from + at * element, element);
      for (std::size_t d = rank; d-- > begin;) {
        at += strides_[d];
        if (++index[d] < info_.shape[d]) break;
        at -= strides_[d] * info_.shape[d];
        index[d] = 0;
      }
    }
  }

  std::shared_ptr<const byte_source> file_;
  std::uint64_t offset_;
  std::vector<std::size_t> strides_;
  std::shared_ptr<integrity_check> check_;
  tensor_info info_;
  layout layout_ = layout::contiguous;
};

/// A contiguous row-major tensor at `byte_offset`. `where` names it in messages.
inline recipe_ptr stored_tensor(std::shared_ptr<const byte_source> file, std::uint64_t byte_offset, dtype type, shape_type shape,
                                std::string where, std::shared_ptr<integrity_check> check = nullptr) {
  auto strides = stored_recipe::row_major_strides(shape);
  return std::make_shared<stored_recipe>(std::move(file), byte_offset, type, std::move(shape), std::move(strides),
                                         std::move(where), std::move(check));
}

/// A tensor with strides in elements (0 repeats). @pre offset + Σ (size−1)·stride lies inside the source; whole-byte elements.
inline recipe_ptr strided_tensor(std::shared_ptr<const byte_source> file, std::uint64_t byte_offset, dtype type, shape_type shape,
                                 std::vector<std::size_t> strides_in_elements, std::string where,
                                 std::shared_ptr<integrity_check> check = nullptr) {
  return std::make_shared<stored_recipe>(std::move(file), byte_offset, type, std::move(shape), std::move(strides_in_elements),
                                         std::move(where), std::move(check));
}

TENSORSMITH_END_NAMESPACE
