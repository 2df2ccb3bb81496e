// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/blended.hpp: planned tensors of several models blended into one, in one pass over each, rounded once.
//
// Include this to merge checkpoints tensor by tensor; arch/blend_checkpoints.hpp does it for whole models. Tiles of all sources are converted
// to f32, blended while they are in the first-level cache, and rounded to the output type. Spherical interpolation reads its sources twice.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/merge/blend.hpp"
#include "tensorsmith/merge/blend_simd.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How tensors are blended. A is the first of them, B the second, C the third.
enum class blend_mode : std::uint8_t {
  weighted_sum,    ///< w₀·A + w₁·B + …
  add_difference,  ///< A + r·(B − C)
  slerp,           ///< on the arc from A to B, both read as vectors; see slerp_factors
};

constexpr std::string_view name_of(blend_mode mode) noexcept {
  constexpr std::string_view names[] = {"weighted-sum", "add-difference", "slerp"};
  return names[static_cast<std::size_t>(mode)];
}

/// Counts blended values that are infinite or NaN, where that is no error. May be shared by many blends.
struct blend_tally {
  std::atomic<std::uint64_t> nonfinite{0};
};

/// How a blend rounds, and what it accepts.
struct blend_rounding {
  dtype to = dtype::f32;                              ///< element type of the output
  cast_overflow overflow = cast_overflow::error;      ///< of blended values in that type
  std::shared_ptr<cast_tally> overflowed{};           ///< counts them where that is no error
  bool keep_nonfinite = false;                        ///< infinite and NaN sources are blended as they are; otherwise an error
  std::shared_ptr<blend_tally> nonfinite{};           ///< counts them where they are kept
};

/// One tensor of a blend and where it is from, for messages.
struct blend_term {
  tensor_ref tensor;
  std::string origin;
};

/// A blend in f32. Every output element is Σ of at most as many rounded products and sums as there are sources, so its error is at most
/// (n + 2) · 2⁻²⁴ · Σ|wᵢ·xᵢ| for n sources (weights are rounded to f32 as well); for add difference 4 · 2⁻²⁴ · (|A| + |r|·(|B| + |C|)).
class blended_recipe final : public recipe {
 public:
  /// Of `columns` columns (all, or fewer where the others have fewer input channels than the first) the rest stays the first's.
  /// weights: one a term, or the ratio alone. @pre all terms convert to f32, have one output, and planes of as many rows
  blended_recipe(std::vector<blend_term> terms, blend_mode mode, std::vector<double> weights, std::size_t columns, bool keep_nonfinite,
                 std::shared_ptr<blend_tally> tally)
      : terms_(std::move(terms)), mode_(mode), weights_(std::move(weights)), columns_(columns), keep_nonfinite_(keep_nonfinite),
        tally_(std::move(tally)) {
    info_ = terms_[0].tensor.info();
    info_.type = dtype::f32;
    all_ = plane_of(info_.shape);
    const auto clipped = [](std::size_t grain, std::size_t whole) {
      return std::min(std::max<std::size_t>(grain, 1), std::max<std::size_t>(whole, 1));
    };
    for (const blend_term& term : terms_) {
      const region own = term.tensor.source->grain();
      grain_.rows = std::lcm(grain_.rows, clipped(own.rows, all_.rows));
      grain_.cols = std::lcm(grain_.cols, clipped(own.cols, all_.cols));
    }
    grain_.rows = clipped(grain_.rows, all_.rows);
    grain_.cols = columns_ == all_.cols ? clipped(grain_.cols, all_.cols) : all_.cols;
  }

  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  region grain() const override { return grain_; }
  std::size_t prepared_bytes() const noexcept override {
    std::size_t sum = 0;
    for (const blend_term& term : terms_) sum += term.tensor.source->prepared_bytes();
    return sum;
  }
  result<void> do_prepare(const job& run) override {
    std::vector<recipe_ptr> sources;
    for (const blend_term& term : terms_) sources.push_back(term.tensor.source);
    TENSORSMITH_CHECK(prepare_all(sources, run));
    if (mode_ != blend_mode::slerp) return {};
    auto outcome = measure(run);
    if (!outcome) do_release();
    return outcome;
  }
  void do_release() noexcept override {
    for (const blend_term& term : terms_) term.tensor.source->release();
  }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override {
    for (const blend_term& term : terms_) term.tensor.source->add_sources(out);
  }

  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    std::vector<view> in(terms_.size());
    for (std::size_t k = 0; k < terms_.size(); ++k) {
      TENSORSMITH_TRY(in[k], terms_[k].tensor.source->load(k == 0 ? r : shared(r), work));
    }
    const buffers room(work);
    bool dense = columns_ == all_.cols && tiles[0].pitch == r.cols * sizeof(float);
    for (std::size_t k = 0; k < terms_.size(); ++k) dense = dense && in[k].pitch == byte_count(terms_[k].tensor.type(), r.cols);
    if (dense) return blend_row(in, 0, tiles[0].data, r.elements(), r.elements(), room, work);
    const std::size_t blended = std::min(r.cols, shared(r).cols);
    for (std::size_t i = 0; i < r.rows; ++i) TENSORSMITH_CHECK(blend_row(in, i, tiles[0].data + i * tiles[0].pitch, r.cols, blended, room, work));
    return {};
  }

  /// Element by element, so the transposed sources may be blended; only the sums of spherical interpolation depend on the order.
  recipe_ptr fold_transpose() const override {
    if (mode_ == blend_mode::slerp || columns_ != all_.cols || info_.shape.size() != 2) return nullptr;
    std::vector<blend_term> turned;
    for (const blend_term& term : terms_) {
      auto tensor = transposed(term.tensor);
      if (!tensor) return nullptr;
      turned.push_back({std::move(*tensor), term.origin});
    }
    return std::make_shared<blended_recipe>(std::move(turned), mode_, weights_, all_.rows, keep_nonfinite_, tally_);
  }

 private:
  static constexpr std::size_t block = 4096;  // elements: the f32 values of three sources stay in a first-level cache of 48 KiB

  /// Room for one block of each of three sources.
  struct buffers {
    explicit buffers(scratch& work) : first(floats(work)), second(floats(work)), third(floats(work)) {}
    static float* floats(scratch& work) { return reinterpret_cast<float*>(work.take(block * sizeof(float)).data()); }
    float *first, *second, *third;
  };

  /// What a region is in the sources that may have fewer columns.
  region shared(region r) const noexcept { return columns_ == all_.cols ? r : region{r.row, r.rows, 0, columns_}; }
  float weight(std::size_t k) const noexcept { return static_cast<float>(weights_[k]); }

  /// `cols` elements of row i, of which the first `blended` are in all sources.
  result<void> blend_row(const std::vector<view>& in, std::size_t i, std::byte* out, std::size_t cols, std::size_t blended, const buffers& room,
                         scratch& work) const {
    for (std::size_t at = 0; at < cols;) {
      const std::size_t n = std::min(block, (at < blended ? blended : cols) - at);
      load_floats(in, 0, i, at, n, room.first);
      if (at < blended) blend_block(in, i, at, n, room);
      if (any_nonfinite(dtype::f32, reinterpret_cast<const std::byte*>(room.first), n)) {
        if (!keep_nonfinite_) return describe_nonfinite(work);
        const auto count = std::count_if(room.first, room.first + n, [](float x) { return !std::isfinite(x); });
        if (tally_) tally_->nonfinite += static_cast<std::uint64_t>(count);
      }
      std::memcpy(out + at * sizeof(float), room.first, n * sizeof(float));
      at += n;
    }
    return {};
  }

  void load_floats(const std::vector<view>& in, std::size_t k, std::size_t i, std::size_t at, std::size_t n, float* to) const {
    const dtype from = terms_[k].tensor.type();
    convert_elements(from, in[k].data + i * in[k].pitch + byte_count(from, at), dtype::f32, reinterpret_cast<std::byte*>(to), n);
  }

  /// Blends the other sources into room.first.
  void blend_block(const std::vector<view>& in, std::size_t i, std::size_t at, std::size_t n, const buffers& room) const {
    load_floats(in, 1, i, at, n, room.second);
    switch (mode_) {
      case blend_mode::weighted_sum:
        if (weights_[0] == 0 && weights_[1] == 1) std::memcpy(room.first, room.second, n * sizeof(float));  // 0 · A would change signs and make NaN
        else weighted_sum(room.first, room.second, n, weight(0), weight(1));
        for (std::size_t k = 2; k < terms_.size(); ++k) {
          load_floats(in, k, i, at, n, room.second);
          add_weighted(room.first, room.second, n, weight(k));
        }
        break;
      case blend_mode::add_difference:
        load_floats(in, 2, i, at, n, room.third);
        add_difference(room.first, room.second, room.third, n, weight(0));
        break;
      case blend_mode::slerp:
        weighted_sum(room.first, room.second, n, first_factor_.load(std::memory_order_relaxed), second_factor_.load(std::memory_order_relaxed));
        break;
    }
  }

  /// Calls visit(region, views) for the whole tensor in order: bands of whole rows, or pieces of one row where a row is long.
  template <class Visit>
  result<void> walk(scratch& work, const std::atomic<bool>* cancel, Visit&& visit) const {
    if (all_.rows == 0 || all_.cols == 0) return {};
    constexpr std::size_t wanted = std::size_t{64} << 10;  // elements
    std::size_t rows = grain_.rows, cols = all_.cols;
    const std::size_t step = std::lcm(grain_.cols, slerp_lanes::count);
    if (rows * cols <= wanted) rows = std::min(all_.rows, wanted / cols / rows * rows);
    else if (rows == 1) cols = std::min(cols, step * std::max<std::size_t>(1, wanted / step));
    for (std::size_t row = 0; row < all_.rows; row += rows)
      for (std::size_t col = 0; col < all_.cols; col += cols) {
        if (cancel && cancel->load(std::memory_order_relaxed))
          return failure{.code = errc::cancelled, .what = "cancelled; nothing was written"};
        const scratch::scope keep(work);
        const region r{row, std::min(rows, all_.rows - row), col, std::min(cols, all_.cols - col)};
        std::vector<view> in(terms_.size());
        for (std::size_t k = 0; k < terms_.size(); ++k) {
          TENSORSMITH_TRY(in[k], terms_[k].tensor.source->load(k == 0 ? r : shared(r), work));
        }
        visit(r, in);
      }
    return {};
  }

  /// The factors of spherical interpolation, from sums over each row that are added in the order of the rows.
  result<void> measure(const job& run) {
    scratch work;
    const buffers room(work);
    const slerp_lanes_kernel add = best_slerp_lanes();
    slerp_sums sums;
    slerp_lanes lanes;
    TENSORSMITH_CHECK(walk(work, run.cancel, [&](region r, const std::vector<view>& in) {
      const std::size_t cols = std::min(r.cols, shared(r).cols);
      for (std::size_t i = 0; i < r.rows; ++i) {
        if (r.col == 0) lanes = {};
        for (std::size_t at = 0; at < cols; at += block) {
          const std::size_t n = std::min(block, cols - at);
          load_floats(in, 0, i, at, n, room.first), load_floats(in, 1, i, at, n, room.second);
          add(lanes, room.first, room.second, n);
        }
        if (r.col + r.cols == all_.cols) sums.add(lanes.sums());
      }
    }));
    const slerp_factors factors(sums, weights_[0]);
    // Placements that share this recipe may prepare it again while tiles are made: they store the same values.
    first_factor_.store(factors.a, std::memory_order_relaxed), second_factor_.store(factors.b, std::memory_order_relaxed);
    return {};
  }

  /// Goes through the sources again, so that the message does not depend on tiles and threads.
  result<void> describe_nonfinite(scratch& work) const {
    std::vector<std::size_t> counts(terms_.size(), 0), first(terms_.size(), 0);
    std::vector<float> values(terms_.size(), 0.0F);
    const buffers room(work);
    TENSORSMITH_CHECK(walk(work, nullptr, [&](region r, const std::vector<view>& in) {
      for (std::size_t k = 0; k < terms_.size(); ++k) {
        const std::size_t cols = k == 0 ? r.cols : std::min(r.cols, shared(r).cols);
        for (std::size_t i = 0; i < r.rows; ++i)
          for (std::size_t at = 0; at < cols; at += block) {
            const std::size_t n = std::min(block, cols - at);
            load_floats(in, k, i, at, n, room.first);
            for (std::size_t j = 0; j < n; ++j)
              if (!std::isfinite(room.first[j]) && counts[k]++ == 0)
                first[k] = (r.row + i) * (k == 0 ? all_.cols : columns_) + r.col + at + j, values[k] = room.first[j];
          }
      }
    }));
    for (std::size_t k = 0; k < terms_.size(); ++k)
      if (counts[k] != 0)
        return failure{.code = errc::numeric,
                       .what = counts[k] == 1 ? "a weight is not finite" : std::to_string(counts[k]) + " weights are not finite",
                       .place = terms_[k].origin, .expected = "finite numbers",
                       .found = (std::isnan(values[k]) ? "NaN at " : values[k] > 0 ? "infinity at " : "-infinity at ") +
                                index_text(first[k], terms_[k].tensor.shape()),
                       .advice = "repair the model, or blend them as they are with --nonfinite keep"};
    return failure{.code = errc::numeric, .what = "a blend of finite weights is too large for f32", .place = terms_[0].origin,
                   .advice = "lower the ratio, or accept it with --nonfinite keep"};
  }

  static std::string index_text(std::size_t flat, const shape_type& shape) {
    shape_type index(shape.size());
    for (std::size_t d = index.size(); d-- > 0; flat /= shape[d]) index[d] = flat % shape[d];
    return to_string(index);
  }

  std::vector<blend_term> terms_;
  blend_mode mode_;
  std::vector<double> weights_;
  std::size_t columns_;
  bool keep_nonfinite_;
  std::shared_ptr<blend_tally> tally_;
  tensor_info info_;
  plane all_;
  region grain_{0, 1, 0, 1};
  std::atomic<float> first_factor_{1.0F}, second_factor_{0.0F};
};

namespace detail {

/// How many leading dimensions count: trailing extents of 1 do not tell a matrix from a 1 × 1 convolution.
inline std::size_t significant_rank(const shape_type& shape) noexcept {
  std::size_t rank = shape.size();
  while (rank > 2 && shape[rank - 1] == 1) --rank;
  return rank;
}

/// The same tensor but for trailing extents of 1.
inline bool same_plane(const shape_type& a, const shape_type& b) noexcept {
  const std::size_t rank = significant_rank(a);
  return rank >= 2 && rank == significant_rank(b) && std::equal(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(rank), b.begin());
}

/// Whether b is a convolution as a is, but with fewer input channels: 4 where an inpainting model has 9.
inline bool fewer_inputs(const shape_type& a, const shape_type& b) noexcept {
  return a.size() == 4 && b.size() == 4 && b[1] > 0 && b[1] < a[1] && a[0] == b[0] && a[2] == b[2] && a[3] == b[3];
}

/// Which of the sources the blend is, bit for bit: their position, or as many as there are if it is none of them.
inline std::size_t blend_is_copy_of(blend_mode mode, std::span<const double> weights, std::size_t terms) noexcept {
  if (mode != blend_mode::weighted_sum) return weights[0] == 0 ? 0 : mode == blend_mode::slerp && weights[0] == 1 ? 1 : terms;
  std::size_t one = terms;
  for (std::size_t k = 0; k < terms; ++k) {
    if (weights[k] == 0) continue;
    if (weights[k] != 1 || one != terms) return terms;
    one = k;
  }
  return one;
}

}  // namespace detail

/// Blends tensors. weights: one a term for a weighted sum, else the ratio alone. A weighted sum whose only weight is 1, and ratios of 0 and
/// (but for add difference) 1, give that tensor itself, so its bits where the type stays; terms of weight 0 are not read. The shape is the
/// first's; a matrix and a 1 × 1 convolution agree. Where all others have fewer input channels than the first (an inpainting model and
/// ordinary ones), the channels that all have are blended and the rest stays.
/// @fails mismatch (shapes), unsupported (types that do not convert to f32), usage (too few terms, weights that do not fit)
inline result<tensor_ref> blended(std::vector<blend_term> terms, blend_mode mode, std::vector<double> weights, const blend_rounding& how) {
  const std::size_t wanted = mode == blend_mode::add_difference ? 3 : 2;
  if (terms.size() < wanted || (mode != blend_mode::weighted_sum && terms.size() != wanted) ||
      weights.size() != (mode == blend_mode::weighted_sum ? terms.size() : 1))
    return failure{.code = errc::usage, .what = "the number of models or weights does not fit the mode " + std::string(name_of(mode)),
                   .found = std::to_string(terms.size()) + " models, " + std::to_string(weights.size()) + " weights"};
  const shape_type& head = terms[0].tensor.shape();
  std::size_t columns = plane_of(head).cols;
  for (std::size_t k = 0; k < terms.size(); ++k) {
    blend_term& term = terms[k];
    if (!convertible(term.tensor.type(), dtype::f32) || !is_floating(term.tensor.type()) || term.tensor.source->outputs().size() != 1)
      return failure{.code = errc::unsupported, .what = "a tensor of this type cannot be blended", .place = term.origin,
                     .expected = "a floating-point type", .found = std::string(name_of(term.tensor.type())), .advice = "convert the model first"};
    if (k == 0) continue;
    if (term.tensor.shape() == head || detail::same_plane(head, term.tensor.shape())) {
      TENSORSMITH_TRY(term.tensor, reshaped(term.tensor, head));
    } else if (detail::fewer_inputs(head, term.tensor.shape()) && (k == 1 || term.tensor.shape() == terms[1].tensor.shape())) {
      columns = plane_of(term.tensor.shape()).cols;
      continue;
    } else {
      const bool inpainting = detail::fewer_inputs(term.tensor.shape(), head);
      return failure{.code = errc::mismatch, .what = "tensors of different shapes cannot be blended", .place = term.origin,
                     .expected = to_string(head), .found = to_string(term.tensor.shape()),
                     .advice = inpainting ? "make the model with more input channels (inpainting) the base" : ""};
    }
    if (columns != plane_of(head).cols)
      return failure{.code = errc::mismatch, .what = "the models that are blended into the base have different shapes", .place = term.origin,
                     .expected = to_string(terms[1].tensor.shape()), .found = to_string(term.tensor.shape())};
  }
  const bool partial = columns != plane_of(head).cols;
  if (const std::size_t only = detail::blend_is_copy_of(mode, weights, terms.size()); only < terms.size() && (only == 0 || !partial))
    return cast(terms[only].tensor, how.to, how.overflow, how.overflowed);
  if (mode == blend_mode::weighted_sum)
    for (std::size_t k = terms.size(); k-- > (partial ? 1U : 0U);)  // where the others are narrower, the first gives the shape
      if (weights[k] == 0 && terms.size() > 2) {
        terms.erase(terms.begin() + static_cast<std::ptrdiff_t>(k));
        weights.erase(weights.begin() + static_cast<std::ptrdiff_t>(k));
      }
  auto recipe = std::make_shared<blended_recipe>(std::move(terms), mode, std::move(weights), columns, how.keep_nonfinite, how.nonfinite);
  return cast(tensor_ref{std::move(recipe), 0}, how.to, how.overflow, how.overflowed);
}

TENSORSMITH_END_NAMESPACE
