// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/assembled.hpp: a matrix put together from scaled blocks, side by side, one below the other, on the diagonal, or on top of each
// other.
//
// Include this to join or to add the factors of adapters. Sums are made in f64 and rounded once, by the cast that follows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/tensor/executor.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A small planned tensor as doubles. @fails unsupported (element types that are no numbers), and as its source
inline result<std::vector<double>> doubles_of(const tensor_ref& tensor, const job& run) {
  if (!convertible(tensor.type(), dtype::f64))
    return failure{.code = errc::unsupported,
                   .what = "a factor of an adapter is of a type that cannot be computed with",
                   .place = "tensor " + quoted(tensor.info().name),
                   .expected = "a floating-point type",
                   .found = std::string(name_of(tensor.type()))};
  TENSORSMITH_TRY(const std::vector<std::byte> bytes, materialize(tensor, run));
  std::vector<double> out(tensor.info().elements());
  convert_elements(tensor.type(), bytes.data(), dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}

/// A tensor, seen as [dim 0, rest], times `factor`, with its first element at (row, col) of the whole.
struct scaled_block {
  tensor_ref source;
  double factor = 1;
  std::size_t row = 0, col = 0;
};

/// The sum of scaled blocks in a tensor that is zero elsewhere, in f64. The blocks are held as they are stored while tiles are made. NaN and infinities
/// are an error (numeric): factors that hold them change nothing that can be used.
class assembled_recipe final : public recipe {
 public:
  /// @pre every block lies inside the plane of `shape`, has one output and converts to f64
  assembled_recipe(shape_type shape, std::vector<scaled_block> blocks) : blocks_(std::move(blocks)) {
    info_ = {"", dtype::f64, std::move(shape)};
    if (!blocks_.empty()) info_.name = blocks_[0].source.info().name;
  }
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  std::size_t prepared_bytes() const noexcept override {
    std::size_t sum = 0;
    for (const scaled_block& block : blocks_) sum += block.source.info().bytes();
    return sum;
  }
  result<void> do_prepare(const job& run) override {
    bytes_.resize(blocks_.size());
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      TENSORSMITH_TRY(bytes_[i], materialize(blocks_[i].source, run));
    }
    return {};
  }
  void do_release() noexcept override { bytes_ = decltype(bytes_)(); }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override {
    for (const scaled_block& block : blocks_) block.source.source->add_sources(out);
  }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    const auto room = work.take(r.cols * sizeof(double));
    double* const row = reinterpret_cast<double*>(room.data());
    for (std::size_t i = 0; i < r.rows; ++i) std::fill_n(tiles[0].data + i * tiles[0].pitch, r.cols * sizeof(double), std::byte{});
    for (std::size_t k = 0; k < blocks_.size(); ++k) {
      const scaled_block& block = blocks_[k];
      const tensor_info& info = block.source.info();
      const plane all = plane_of(info.shape);
      const std::size_t first = std::max(r.row, block.row), last = std::min(r.row + r.rows, block.row + all.rows);
      const std::size_t left = std::max(r.col, block.col), right = std::min(r.col + r.cols, block.col + all.cols);
      for (std::size_t i = first; i < last && left < right; ++i) {
        const std::byte* const from = bytes_[k].data() + byte_count(info.type, (i - block.row) * all.cols + left - block.col);
        convert_elements(info.type, from, dtype::f64, room.data(), right - left);
        double* const out = reinterpret_cast<double*>(tiles[0].data + (i - r.row) * tiles[0].pitch) + (left - r.col);
        for (std::size_t j = 0; j < right - left; ++j) out[j] += block.factor * row[j];
      }
    }
    for (std::size_t i = 0; i < r.rows; ++i)
      if (any_nonfinite(dtype::f64, tiles[0].data + i * tiles[0].pitch, r.cols)) return not_finite();
    return {};
  }

 private:
  failure not_finite() const {
    std::string name = quoted(info_.name);  // readers say "file: 'name'": no second pair of quotes around it
    if (name.back() == '\'') name = name.substr(1, name.size() - 2);
    return failure{.code = errc::numeric, .what = "a factor of an adapter holds NaN or infinities", .place = "tensor " + name, .expected = "finite values"};
  }

  std::vector<scaled_block> blocks_;
  tensor_info info_;
  std::vector<std::vector<std::byte>> bytes_;
};

namespace detail {

/// out[p, i·k + y] = Σ_q core[p, q, y] · down[q, i]: a Tucker core and its right factor as one factor (merge/low_rank.hpp's combine_tucker in f64).
inline std::vector<double> combined_core(const std::vector<double>& core, const std::vector<double>& down, std::size_t p, std::size_t q,
                                         std::size_t positions) {
  const std::size_t in = down.size() / q;
  std::vector<double> out(p * in * positions, 0.0);
  for (std::size_t a = 0; a < p; ++a)
    for (std::size_t b = 0; b < q; ++b)
      for (std::size_t i = 0; i < in; ++i)
        for (std::size_t y = 0; y < positions; ++y) out[(a * in + i) * positions + y] += core[(a * q + b) * positions + y] * down[b * in + i];
  return out;
}

}  // namespace detail

/// The right factor [p, in, kh, kw] that stands for a Tucker core [p, q, kh, kw] and `down` [q, in, 1, 1]; in f64.
class combined_core_recipe final : public recipe {
 public:
  combined_core_recipe(tensor_ref core, tensor_ref down) : core_(std::move(core)), down_(std::move(down)) {
    const shape_type& k = core_.shape();
    info_ = {down_.info().name, dtype::f64, {k[0], plane_of(down_.shape()).cols, k[2], k[3]}};
  }
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  std::size_t prepared_bytes() const noexcept override {
    return (info_.elements() + core_.info().elements() + down_.info().elements()) * sizeof(double);
  }
  result<void> do_prepare(const job& run) override {
    TENSORSMITH_TRY(const std::vector<double> core, doubles_of(core_, run));
    TENSORSMITH_TRY(const std::vector<double> down, doubles_of(down_, run));
    const shape_type& k = core_.shape();
    values_ = detail::combined_core(core, down, k[0], k[1], k[2] * k[3]);
    return {};
  }
  void do_release() noexcept override { values_ = decltype(values_)(); }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override {
    core_.source->add_sources(out);
    down_.source->add_sources(out);
  }
  result<void> produce(region r, std::span<const tile> tiles, scratch&) const override {
    const std::size_t cols = plane_of(info_.shape).cols;
    const view in{reinterpret_cast<const std::byte*>(values_.data() + r.row * cols + r.col), cols * sizeof(double)};
    copy_rows(in, tiles[0], r.rows, r.cols * sizeof(double));
    return {};
  }

 private:
  tensor_ref core_, down_;
  tensor_info info_;
  std::vector<double> values_;
};

TENSORSMITH_END_NAMESPACE
