// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/merged.hpp: a planned weight with the changes of adapters applied, in one pass, rounded once.
//
// Include this to merge. Changes run in their order on one f32 tile; those that need statistics of the whole weight cost a reading more.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/weight_change.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The size of a change, over all tiles that passed.
struct change_norms {
  double change = 0;  ///< Frobenius norm of merged − stored, both in f32
  double weight = 0;  ///< Frobenius norm of the stored weight
};

/// A weight in f32 with changes applied, whole rows at a time. Output: f32; cast it for another type. @pre the weight converts to f32
class merged_recipe final : public recipe {
 public:
  merged_recipe(recipe_ptr weight, std::vector<weight_change_ptr> changes)
      : weight_(std::move(weight)), changes_(std::move(changes)), from_(weight_->outputs()[0].type), info_(weight_->outputs()[0]) {
    info_.type = dtype::f32;
    const plane all = plane_of(info_.shape);
    grain_ = weight_->grain();
    for (const weight_change_ptr& change : changes_) {
      const region g = change->grain();
      grain_.rows = g.rows == 0 ? std::max<std::size_t>(1, all.rows) : std::lcm(grain_.rows, g.rows);
    }
    grain_.rows = std::min(grain_.rows, std::max<std::size_t>(1, all.rows));
    grain_.cols = std::max<std::size_t>(1, all.cols);
  }
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  region grain() const override { return grain_; }
  std::size_t prepared_bytes() const noexcept override {
    std::size_t sum = weight_->prepared_bytes();
    for (const weight_change_ptr& change : changes_) sum += change->prepared_bytes();
    return sum;
  }
  result<void> prepare(const job& run) override {
    TENSORSMITH_CHECK(weight_->prepare(run));
    squares_.assign(2 * plane_of(info_.shape).rows, 0.0);
    for (std::size_t i = 0; i < changes_.size(); ++i) {
      TENSORSMITH_CHECK(changes_[i]->prepare(run));
      if (changes_[i]->observes()) TENSORSMITH_CHECK(show(i, run));
    }
    return {};
  }
  void release() noexcept override {
    weight_->release();
    for (const weight_change_ptr& change : changes_) change->release();
  }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override { weight_->add_sources(out); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    const auto bytes = work.take(r.elements() * sizeof(float));
    const matrix w(reinterpret_cast<float*>(bytes.data()), r.rows, r.cols);
    TENSORSMITH_CHECK(load_floats(w, r, work));
    const auto before = work.take(bytes.size());
    std::copy(bytes.begin(), bytes.end(), before.begin());
    for (const weight_change_ptr& change : changes_) change->apply(w, r, work);
    const const_matrix old(reinterpret_cast<const float*>(before.data()), r.rows, r.cols);
    for (std::size_t i = 0; i < r.rows; ++i) measure(old.row(i), w.row(i), r.cols, r.row + i);
    copy_rows({bytes.data(), r.cols * sizeof(float)}, tiles[0], r.rows, r.cols * sizeof(float));
    return {};
  }

  /// The size of the change, once all tiles are made; summed row by row, so the same for any number of threads.
  change_norms norms() const noexcept {
    double change = 0, weight = 0;
    for (std::size_t i = 0; i < squares_.size(); i += 2) change += squares_[i], weight += squares_[i + 1];
    return {std::sqrt(change), std::sqrt(weight)};
  }

 private:
  /// A row belongs to one tile, hence to one thread.
  void measure(const float* before, const float* after, std::size_t n, std::size_t row) const noexcept {
    double change = 0, weight = 0;
    for (std::size_t j = 0; j < n; ++j) {
      const double old = before[j], difference = static_cast<double>(after[j]) - old;
      change += difference * difference, weight += old * old;
    }
    squares_[2 * row] = change, squares_[2 * row + 1] = weight;
  }

  result<void> load_floats(matrix w, region r, scratch& work) const {
    const scratch::scope keep(work);
    TENSORSMITH_TRY(const view in, weight_->load(r, work));
    for (std::size_t i = 0; i < r.rows; ++i)
      convert_elements(from_, in.data + i * in.pitch, dtype::f32, reinterpret_cast<std::byte*>(w.row(i)), r.cols);
    return {};
  }

  /// Shows change `last` every tile as the changes before it leave it.
  result<void> show(std::size_t last, const job& run) {
    const placement whole{weight_, {output_slot{}}, {}};
    detail::tile_grid grid = detail::plan_tiles(whole, run.tile_bytes);
    grid.cols = grid.all.cols, grid.across = 1;  // whole rows, as many as the grain asks for
    grid.rows = std::min(grid.all.rows, (std::max(grid.rows, std::size_t{1}) + grain_.rows - 1) / grain_.rows * grain_.rows);
    grid.down = grid.rows == 0 ? 0 : (grid.all.rows + grid.rows - 1) / grid.rows;
    scratch work;
    for (std::size_t k = 0; k < grid.down; ++k) {
      if (run.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled; nothing was written"};
      const scratch::scope keep(work);
      const region r = grid.at(k);
      const auto bytes = work.take(r.elements() * sizeof(float));
      const matrix w(reinterpret_cast<float*>(bytes.data()), r.rows, r.cols);
      TENSORSMITH_CHECK(load_floats(w, r, work));
      for (std::size_t i = 0; i < last; ++i) changes_[i]->apply(w, r, work);
      changes_[last]->observe(w, r, work);
    }
    return {};
  }

  recipe_ptr weight_;
  std::vector<weight_change_ptr> changes_;
  dtype from_;
  tensor_info info_;
  region grain_;
  mutable std::vector<double> squares_;  // of the change and of the weight, a pair a row
};

TENSORSMITH_END_NAMESPACE
