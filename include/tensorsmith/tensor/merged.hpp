// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/merged.hpp: a planned weight with the changes of adapters applied, in one pass, rounded once.
//
// Include this to merge. Changes run in their order on f32 blocks that stay in the cache; those that need statistics of the whole weight cost
// a reading more.
#pragma once

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/merge/change_size.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/weight_change.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The size of a change. Elements that are NaN or infinite before or after it do not count.
struct change_norms {
  double change = 0;  ///< Frobenius norm of merged − stored, both in f32
  double weight = 0;  ///< Frobenius norm of the stored weight
};

/// Merged values that are out of the ordinary.
struct merged_counts {
  std::uint64_t overflowed = 0;  ///< finite sums that are infinite or NaN in the type they are written in: |v| >= 65520 for f16
  std::uint64_t nonfinite = 0;   ///< NaN and infinities that come from those of the stored weight
  bool operator==(const merged_counts&) const = default;
};

/// A weight with changes applied, whole rows at a time, computed in f32 and rounded to the output type once, to nearest even.
/// @pre the weight converts to f32, and f32 to the output type
class merged_recipe final : public recipe, public std::enable_shared_from_this<merged_recipe> {
 public:
  /// `name` stands for the layer in messages. `policy` says what becomes of values that do not fit into `to`; NaN that a merge makes of finite
  /// numbers is an error (numeric) in every case.
  merged_recipe(recipe_ptr weight, std::vector<weight_change_ptr> changes, dtype to = dtype::f32, cast_overflow policy = cast_overflow::error,
                std::string name = {})
      : weight_(std::move(weight)), changes_(std::move(changes)), from_(weight_->outputs()[0].type), policy_(policy),
        name_(std::move(name)), info_(weight_->outputs()[0]), all_(plane_of(info_.shape)), plain_(*this) {
    info_.type = to;
    if (name_.empty()) name_ = info_.name;
    std::size_t step = panel_cols;
    for (const weight_change_ptr& change : changes_) {
      const region g = change->grain();
      rows_step_ = std::lcm(rows_step_, g.rows == 0 ? std::max<std::size_t>(1, all_.rows) : g.rows);
      step = g.cols == 0 || step == 0 ? 0 : std::lcm(step, g.cols);
    }
    const std::size_t wide = std::max<std::size_t>(1, all_.cols);
    cols_step_ = step == 0 || step > wide ? wide : step;
    grain_ = weight_->grain();
    grain_.rows = std::min(std::lcm(std::max<std::size_t>(1, grain_.rows), rows_step_), std::max<std::size_t>(1, all_.rows));
    // Factors are read once a tile: a wide weight is given more rows than its tile would have, so that this costs less than multiplying.
    if (wide > 2048) grain_.rows = std::min(std::lcm(grain_.rows, std::gcd(all_.rows, std::size_t{32})), std::max<std::size_t>(1, all_.rows));
    grain_.cols = wide;
  }
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  region grain() const override { return grain_; }
  std::size_t prepared_bytes() const noexcept override {
    std::size_t sum = weight_->prepared_bytes();
    for (const weight_change_ptr& change : changes_) sum += change->prepared_bytes();
    return sum;
  }
  result<void> do_prepare(const job& run) override {
    TENSORSMITH_CHECK(weight_->prepare(run));
    rows_.assign(all_.rows, row_record{});
    stored_finite_ = -1;
    auto outcome = prepare_changes(run);
    if (!outcome) do_release();
    return outcome;
  }
  void do_release() noexcept override {
    weight_->release();
    for (const weight_change_ptr& change : changes_) change->release();
  }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override { weight_->add_sources(out); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override { return write(r, tiles[0], info_.type, work); }
  /// The merged weight before it is rounded, so that a further merge or a cast rounds once.
  recipe_ptr uncast() const override {
    if (info_.type == dtype::f32) return nullptr;
    auto self = std::const_pointer_cast<merged_recipe>(weak_from_this().lock());
    return self ? recipe_ptr(self, &self->plain_) : nullptr;
  }

  /// The size of the change, once all tiles are made; summed row by row, so the same for any number of threads and any tiles.
  change_norms norms() const noexcept {
    double change = 0, weight = 0;
    for (const row_record& row : rows_) change += row.change, weight += row.weight;
    return {std::sqrt(change), std::sqrt(weight)};
  }
  /// How often the stored weight is read: once, and once more for every change that needs statistics of all of it. Known at once.
  std::size_t readings() const noexcept {
    return 1 + static_cast<std::size_t>(std::count_if(changes_.begin(), changes_.end(), [](const auto& change) { return change->observes(); }));
  }
  /// What was counted, once all tiles are made.
  merged_counts counts() const noexcept {
    merged_counts out;
    for (const row_record& row : rows_) out.overflowed += row.overflowed, out.nonfinite += row.nonfinite;
    return out;
  }

 private:
  result<void> prepare_changes(const job& run) {
    for (std::size_t i = 0; i < changes_.size(); ++i) {
      TENSORSMITH_CHECK(changes_[i]->prepare(run));
      if (changes_[i]->observes()) TENSORSMITH_CHECK(show(i, run));
    }
    return {};
  }

  /// What is known of a row. A row belongs to one tile; where a consumer cuts amid a tile, both halves write the same.
  struct row_record {
    double change = 0, weight = 0;
    std::uint64_t overflowed = 0, nonfinite = 0;
  };
  template <class T>
  static void set(T& at, T value) noexcept {
    std::atomic_ref<T>(at).store(value, std::memory_order_relaxed);
  }

  /// The same weight in f32. Part of its merged_recipe, whose records it fills in.
  class plain_recipe final : public recipe {
   public:
    explicit plain_recipe(merged_recipe& owner) : owner_(owner), info_(owner.info_) { info_.type = dtype::f32; }
    std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
    region grain() const override { return owner_.grain(); }
    std::size_t prepared_bytes() const noexcept override { return owner_.prepared_bytes(); }
    result<void> do_prepare(const job& run) override { return owner_.prepare(run); }
    void do_release() noexcept override { owner_.release(); }
    void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override { owner_.add_sources(out); }
    result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
      return owner_.write(r, tiles[0], dtype::f32, work);
    }

   private:
    merged_recipe& owner_;
    tensor_info info_;
  };

  static constexpr std::size_t block_floats = 32 * 1024;  // a block before and after its change: 256 KiB, within the L2 cache

  /// The block of changes' grain at `row`, `col` within `r`, of about block_floats.
  region block_at(region r, std::size_t row, std::size_t col) const noexcept {
    const std::size_t rows = std::min(r.rows, std::max<std::size_t>(rows_step_, 96 / rows_step_ * rows_step_));
    const std::size_t cols = std::min(r.cols, std::max(cols_step_, block_floats / rows / cols_step_ * cols_step_));
    const std::size_t fitting = cols_step_ < all_.cols ? rows : std::min(rows, std::max(rows_step_, block_floats / cols / rows_step_ * rows_step_));
    return {row, std::min(fitting, r.row + r.rows - row), col, std::min(cols, r.col + r.cols - col)};
  }

  /// Calls `use(block, before, after)` for every block of `r`, left to right, then down. @pre whole rows
  template <class Use>
  result<void> each_block(region r, std::size_t change_count, scratch& work, Use&& use) const {
    const scratch::scope keep(work);
    TENSORSMITH_TRY(const view in, weight_->load(r, work));
    const std::size_t size = bits_of(from_) / 8;
    for (std::size_t row = r.row, rows = 0; row < r.row + r.rows; row += rows)
      for (std::size_t col = r.col, cols = 0; col < r.col + r.cols; col += cols) {
        const region b = block_at(r, row, col);
        rows = b.rows, cols = b.cols;
        const scratch::scope one(work);
        const matrix before(floats(work, b), b.rows, b.cols), after(floats(work, b), b.rows, b.cols);
        const std::byte* const first = in.data + (row - r.row) * in.pitch + (col - r.col) * size;
        for (std::size_t i = 0; i < b.rows; ++i)
          convert_elements(from_, first + i * in.pitch, dtype::f32, reinterpret_cast<std::byte*>(before.row(i)), b.cols);
        if (b.elements() > 0) std::copy(before.data, before.data + b.elements(), after.data);
        for (std::size_t i = 0; i < change_count; ++i) changes_[i]->apply(after, b, work);
        TENSORSMITH_CHECK(use(b, const_matrix(before), after));
      }
    return {};
  }
  static float* floats(scratch& work, region r) { return reinterpret_cast<float*>(work.take(r.elements() * sizeof(float)).data()); }

  /// Produces region `r` in type `to` and records its rows.
  result<void> write(region r, tile out, dtype to, scratch& work) const {
    const scratch::scope keep(work);
    struct partial {
      change_squares squares;
      std::uint64_t overflowed = 0, nonfinite = 0;
    };
    std::vector<partial> sums;
    std::size_t at = 0;  // row of sums[0]
    const std::size_t size = bits_of(to) / 8;
    return each_block(r, changes_.size(), work, [&](region b, const_matrix before, matrix after) -> result<void> {
      if (b.col == r.col) sums.assign(b.rows, partial{}), at = b.row;
      for (std::size_t i = 0; i < b.rows; ++i) {
        partial& row = sums[b.row - at + i];
        std::byte* const target = out.data + (b.row - r.row + i) * out.pitch + (b.col - r.col) * size;
        convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(after.row(i)), to, target, b.cols);
        change_squares before_row = row.squares;
        add_change_squares(before.row(i), after.row(i), b.cols, row.squares);
        if (any_nonfinite(to, target, b.cols) || !std::isfinite(change_squares::total(row.squares.change)) ||
            !std::isfinite(change_squares::total(row.squares.before))) {
          TENSORSMITH_CHECK(inspect(after.row(i), target, to, b.cols, row.overflowed, row.nonfinite, work));
          row.squares = before_row;
          add_finite_squares(before.row(i), after.row(i), b.cols, row.squares);
        }
        if (b.col + b.cols == r.col + r.cols) record(b.row + i, row.squares, row.overflowed, row.nonfinite);
      }
      return {};
    });
  }

  void record(std::size_t row, const change_squares& squares, std::uint64_t overflowed, std::uint64_t nonfinite) const noexcept {
    row_record& out = rows_[row];
    set(out.change, change_squares::total(squares.change));
    set(out.weight, change_squares::total(squares.before));
    set(out.overflowed, overflowed);
    set(out.nonfinite, nonfinite);
  }

  static void add_finite_squares(const float* before, const float* after, std::size_t n, change_squares& out) noexcept {
    for (std::size_t j = 0; j < n; ++j) {
      if (!std::isfinite(before[j]) || !std::isfinite(after[j])) continue;
      const double old = static_cast<double>(before[j]), difference = static_cast<double>(after[j]) - old;
      out.change[j % 8] += difference * difference, out.before[j % 8] += old * old;
    }
  }

  /// A piece of a row with values that are not finite once rounded: counts them, and makes them what the policy says.
  result<void> inspect(const float* after, std::byte* target, dtype to, std::size_t n, std::uint64_t& overflowed, std::uint64_t& nonfinite,
                       scratch& work) const {
    const std::size_t size = bits_of(to) / 8;
    std::byte largest[8], smallest[8];
    for (const double sign : {1.0, -1.0}) {
      const double value = sign * largest_finite(to);
      convert_elements(dtype::f64, reinterpret_cast<const std::byte*>(&value), to, sign > 0 ? largest : smallest, 1);
    }
    for (std::size_t j = 0; j < n; ++j) {
      if (detail::is_finite(to, target + j * size)) continue;
      if (!std::isfinite(after[j])) {
        TENSORSMITH_TRY(const bool finite, stored_is_finite(work));
        if (!finite) {  // norms and rotations spread what one element has
          ++nonfinite;
          continue;
        }
      }
      ++overflowed;
      if (std::isnan(after[j]) || policy_ == cast_overflow::error) return describe(to, work);
      if (policy_ == cast_overflow::saturate) std::memcpy(target + j * size, after[j] < 0 ? smallest : largest, size);
    }
    return {};
  }

  /// Whether no element of the stored weight is NaN or infinite; found out once.
  result<bool> stored_is_finite(scratch& work) const {
    if (const int known = stored_finite_.load(std::memory_order_relaxed); known >= 0) return known == 1;
    bool finite = true;
    TENSORSMITH_CHECK(each_tile([&](region r) -> result<void> {
      const scratch::scope keep(work);
      TENSORSMITH_TRY(const view in, weight_->load(r, work));
      for (std::size_t i = 0; i < r.rows; ++i) finite = finite && !any_nonfinite(from_, in.data + i * in.pitch, r.cols);
      return {};
    }));
    stored_finite_.store(finite ? 1 : 0, std::memory_order_relaxed);
    return finite;
  }

  /// Whole rows of the whole weight, about a megabyte at a time.
  template <class Use>
  result<void> each_tile(Use&& use) const {
    const std::size_t wanted = (std::size_t{1} << 18) / std::max<std::size_t>(1, all_.cols);
    const std::size_t rows = detail::round_to(wanted, grain_.rows);
    for (std::size_t row = 0; row < all_.rows; row += rows) TENSORSMITH_CHECK(use(region{row, std::min(rows, all_.rows - row), 0, all_.cols}));
    return {};
  }

  struct finding {
    std::size_t count = 0, at = 0;
    float first = 0, largest = 0;
    void add(std::size_t where, float value) noexcept {
      if (count++ == 0) at = where, first = value;
      if (std::fabs(value) > std::fabs(largest)) largest = value;
    }
  };

  /// What is wrong with the whole weight, so that the message does not depend on tiles and threads.
  result<void> describe(dtype to, scratch& work) const {
    finding nan, overflow;
    TENSORSMITH_TRY(const bool finite, stored_is_finite(work));
    TENSORSMITH_CHECK(each_tile([&](region r) {
      return each_block(r, changes_.size(), work, [&](region b, const_matrix, matrix after) -> result<void> {
        for (std::size_t i = 0; i < b.rows; ++i)
          for (std::size_t j = 0; j < b.cols; ++j) {
            const float value = after.row(i)[j];
            if (!std::isfinite(value) && !finite) continue;
            std::byte out[8];
            convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(&value), to, out, 1);
            if (detail::is_finite(to, out)) continue;
            (std::isnan(value) ? nan : overflow).add((b.row + i) * all_.cols + b.col + j, value);
          }
        return {};
      });
    }));
    if (nan.count > 0)
      return failure{.code = errc::numeric, .what = said(nan.count, "is not a number", "are not numbers"), .place = place(),
                     .expected = "finite values, as those of the weight are", .found = "NaN at " + to_string(index_of(nan.at)),
                     .advice = "leave the adapter out or lower its strength: it is damaged, or too strong for this layer"};
    return failure{.code = errc::numeric, .what = said(overflow.count, "does not fit into ", "do not fit into ") + std::string(name_of(to)),
                   .place = place(), .expected = "at most " + text(largest_finite(to)) + " in magnitude",
                   .found = text(static_cast<double>(overflow.first)) + " at " + to_string(index_of(overflow.at)) +
                            (overflow.count == 1 ? std::string() : ", the largest is " + text(static_cast<double>(overflow.largest))),
                   .advice = "lower the strength, write a type with a larger range, or accept it with --overflow saturate"};
  }
  static std::string said(std::size_t count, const char* one, const char* many) {
    return count == 1 ? std::string("a merged value ") + one : std::to_string(count) + " merged values " + many;
  }
  std::string place() const { return "layer " + quoted(name_); }
  static std::string text(double value) {
    if (!std::isfinite(value)) return value > 0 ? "infinity" : "-infinity";
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::general, 9);
    return std::string(digits, end.ptr);
  }
  shape_type index_of(std::size_t flat) const {
    shape_type index(info_.shape.size());
    for (std::size_t d = index.size(); d-- > 0; flat /= info_.shape[d]) index[d] = flat % info_.shape[d];
    return index;
  }

  /// Shows change `last` every block as the changes before it leave it.
  result<void> show(std::size_t last, const job& run) {
    scratch work;
    return each_tile([&](region r) -> result<void> {
      if (run.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled; nothing was written"};
      return each_block(r, last, work, [&](region b, const_matrix, matrix after) -> result<void> {
        changes_[last]->observe(after, b, work);
        return {};
      });
    });
  }

  recipe_ptr weight_;
  std::vector<weight_change_ptr> changes_;
  dtype from_;
  cast_overflow policy_;
  std::string name_;
  tensor_info info_;
  plane all_;
  region grain_;
  std::size_t rows_step_ = 1, cols_step_ = 1;  // what all changes work on: multiples of these
  plain_recipe plain_;
  mutable std::atomic<int> stored_finite_{-1};  // -1: not known
  mutable std::vector<row_record> rows_;
};

TENSORSMITH_END_NAMESPACE
