// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/stacked.hpp: several planned tensors one below the other, as one.
//
// Include this to write fused parameters: OpenCLIP files keep query, key and value projections in one matrix, for example. It is the
// inverse of sliced_rows (tensor/views.hpp).
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/recipe.hpp"
#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// One output of a recipe that has several, as a recipe of its own: the whole output is produced in `prepare` and kept until `release`,
/// because a region of one output need not say which region of the others it belongs to.
class held_output_recipe final : public recipe {
 public:
  explicit held_output_recipe(tensor_ref tensor) : tensor_(std::move(tensor)), info_(tensor_.info()) {}
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  region grain() const override { return {0, 1, 0, bits_of(info_.type) < 8 ? 8 / std::gcd(bits_of(info_.type), std::size_t{8}) : 1}; }
  std::size_t prepared_bytes() const noexcept override { return info_.bytes() + tensor_.source->prepared_bytes(); }

  result<void> do_prepare(const job& run) override {
    TENSORSMITH_TRY(bytes_, materialize(tensor_, run));
    return {};
  }
  void do_release() noexcept override { bytes_ = decltype(bytes_)(); }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override { tensor_.source->add_sources(out); }
  result<view> load(region r, scratch&) const override { return at(r); }
  result<void> produce(region r, std::span<const tile> tiles, scratch&) const override {
    copy_rows(at(r), tiles[0], r.rows, row_bytes(r));
    return {};
  }

 private:
  view at(region r) const noexcept {
    const std::size_t pitch = byte_count(info_.type, plane_of(info_.shape).cols);
    return {bytes_.data() + r.row * pitch + byte_count(info_.type, r.col), pitch};
  }
  tensor_ref tensor_;
  tensor_info info_;
  std::vector<std::byte> bytes_;
};

/// Single-output recipes one below the other. A vector's plane is one row, so vectors lie beside each other.
class stacked_recipe final : public recipe {
 public:
  explicit stacked_recipe(std::vector<recipe_ptr> parts) : parts_(std::move(parts)), info_(parts_[0]->outputs()[0]) {
    info_.shape[0] = 0;
    for (const recipe_ptr& part : parts_) {
      info_.shape[0] += length_of(part);
      if (std::find(distinct_.begin(), distinct_.end(), part) == distinct_.end()) distinct_.push_back(part);
    }
    const plane all = plane_of(info_.shape);
    for (const recipe_ptr& part : parts_) {
      const region own = part->grain();
      const plane whole = plane_of(part->outputs()[0].shape);
      // A grain beyond the edge means the whole tensor. Pieces that start amid a grain are widened, so the largest will do.
      grain_.rows = std::max(grain_.rows, std::min(std::max<std::size_t>(own.rows, 1), std::max<std::size_t>(whole.rows, 1)));
      const std::size_t cols = std::min(std::max<std::size_t>(own.cols, 1), std::max<std::size_t>(whole.cols, 1));
      grain_.cols = flat() ? std::max(grain_.cols, cols) : std::lcm(grain_.cols, cols);
    }
    // Sub-byte elements: regions must start at whole bytes, whatever the parts ask for.
    if (const std::size_t bits = bits_of(info_.type); bits < 8) grain_.cols = std::lcm(grain_.cols, 8 / std::gcd(bits, std::size_t{8}));
    grain_.cols = std::min(grain_.cols, std::max<std::size_t>(all.cols, 1));
  }

  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  region grain() const override { return grain_; }
  std::size_t prepared_bytes() const noexcept override {
    std::size_t sum = 0;
    for (const recipe_ptr& part : distinct_) sum += part->prepared_bytes();
    return sum;
  }
  result<void> do_prepare(const job& run) override {
    return prepare_all(distinct_, run);
  }
  void do_release() noexcept override {
    for (const recipe_ptr& part : distinct_) part->release();
  }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override {
    for (const recipe_ptr& part : distinct_) part->add_sources(out);
  }

  result<view> load(region r, scratch& work) const override {
    std::size_t start = 0;
    for (const recipe_ptr& part : parts_) {  // a region inside one part needs no copy
      const std::size_t length = length_of(part);
      if (first(r) >= start && first(r) + count(r) <= start + length) return load_piece(*part, piece_of(r, first(r) - start, count(r)), work);
      start += length;
    }
    return recipe::load(r, work);
  }

  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    std::size_t start = 0;
    for (const recipe_ptr& part : parts_) {
      const std::size_t length = length_of(part);
      const std::size_t from = std::max(first(r), start), to = std::min(first(r) + count(r), start + length);
      if (from < to) {
        const scratch::scope keep(work);
        const region piece = piece_of(r, from - start, to - from);
        const std::size_t skipped = from - first(r);
        const tile target{tiles[0].data + (flat() ? byte_count(info_.type, skipped) : skipped * tiles[0].pitch), tiles[0].pitch};
        TENSORSMITH_TRY(const view in, load_piece(*part, piece, work));
        copy_rows(in, target, piece.rows, row_bytes(piece));
      }
      start += length;
    }
    return {};
  }

  /// The rows of one part are that part.
  recipe_ptr fold_rows(std::size_t first_row, std::size_t row_count) const override {
    std::size_t start = 0;
    for (const recipe_ptr& part : parts_) {
      if (start == first_row && length_of(part) == row_count) return part;
      start += length_of(part);
    }
    return nullptr;
  }

  /// Parts that lie one behind the other in the same source (slices of what was stacked there) are one stretch of it.
  std::optional<stored_bytes> stored() const override {
    std::optional<stored_bytes> out;
    for (const recipe_ptr& part : parts_) {
      const auto own = part->stored();
      if (!own) return std::nullopt;
      if (!out) out = own;
      else if (out->source != own->source || out->offset + out->length != own->offset) return std::nullopt;
      else out->length += own->length;
    }
    return out;
  }

 private:
  bool flat() const noexcept { return info_.shape.size() < 2; }
  static std::size_t length_of(const recipe_ptr& part) { return part->outputs()[0].shape[0]; }
  std::size_t first(region r) const noexcept { return flat() ? r.col : r.row; }
  std::size_t count(region r) const noexcept { return flat() ? r.cols : r.rows; }
  region piece_of(region r, std::size_t from, std::size_t length) const noexcept {
    return flat() ? region{r.row, r.rows, from, length} : region{from, length, r.col, r.cols};
  }

  /// A piece of a part. Pieces that are no multiples of the part's grain are cut out of the smallest region that is.
  static result<view> load_piece(const recipe& part, region piece, scratch& work) {
    const region grain = part.grain();
    const plane all = plane_of(part.outputs()[0].shape);
    const auto widen = [](std::size_t& at, std::size_t& length, std::size_t step, std::size_t whole) {
      const std::size_t end = at + length, wanted = step == 0 ? 1 : step;
      at = at / wanted * wanted;
      length = std::min(whole, (end + wanted - 1) / wanted * wanted) - at;
    };
    region wide = piece;
    widen(wide.row, wide.rows, grain.rows, all.rows);
    widen(wide.col, wide.cols, grain.cols, all.cols);
    TENSORSMITH_TRY(view in, part.load(wide, work));
    in.data += (piece.row - wide.row) * in.pitch + byte_count(part.outputs()[0].type, piece.col - wide.col);
    return in;
  }

  std::vector<recipe_ptr> parts_, distinct_;
  tensor_info info_;
  region grain_{0, 1, 0, 1};
};

}  // namespace detail

/// Tensors of one element type that agree in all dimensions but the first, one below the other: [a, …] and [b, …] give [a + b, …].
/// Outputs of recipes that have several are held in memory while they are written.
/// @fails mismatch (no tensors; types or shapes differ; packed elements that do not end at a whole byte)
inline result<tensor_ref> stacked_rows(std::vector<tensor_ref> parts) {
  if (parts.empty()) return failure{.code = errc::mismatch, .what = "there is nothing to stack", .expected = "at least one tensor", .found = "none"};
  const auto refuse = [&](const tensor_ref& part, std::string what, std::string expected, std::string found) {
    return failure{.code = errc::mismatch, .what = std::move(what), .place = "tensor " + quoted(part.info().name),
                   .expected = std::move(expected), .found = std::move(found)};
  };
  const tensor_info& head = parts[0].info();
  std::vector<recipe_ptr> sources;
  std::vector<std::pair<tensor_ref, recipe_ptr>> held;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const tensor_info& info = parts[i].info();
    if (info.shape.empty()) return refuse(parts[i], "a single value cannot be stacked", "at least one dimension", to_string(info.shape));
    if (info.type != head.type)
      return refuse(parts[i], "tensors of different types cannot be stacked", std::string(name_of(head.type)), std::string(name_of(info.type)));
    if (info.shape.size() != head.shape.size() || !std::equal(info.shape.begin() + 1, info.shape.end(), head.shape.begin() + 1))
      return refuse(parts[i], "tensors of different shapes cannot be stacked", to_string(head.shape) + " but for the first dimension",
                    to_string(info.shape));
    const plane all = plane_of(info.shape);
    if (i + 1 < parts.size() && (all.cols * bits_of(info.type)) % 8 != 0)
      return refuse(parts[i], "packed elements cannot be stacked where they do not end at a whole byte", "rows of whole bytes",
                    std::to_string(all.cols * bits_of(info.type)) + " bits");
    if (parts[i].source->outputs().size() == 1) {
      sources.push_back(parts[i].source);
      continue;
    }
    std::size_t k = 0;
    while (k < held.size() && (held[k].first.source != parts[i].source || held[k].first.output != parts[i].output)) ++k;
    if (k == held.size()) held.emplace_back(parts[i], std::make_shared<detail::held_output_recipe>(parts[i]));
    sources.push_back(held[k].second);
  }
  if (sources.size() == 1) return tensor_ref{std::move(sources[0]), 0};
  return tensor_ref{std::make_shared<detail::stacked_recipe>(std::move(sources)), 0};
}

TENSORSMITH_END_NAMESPACE
