// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/cast.hpp: a planned tensor in another floating-point type, converted tile by tile, with a policy for values
// that do not fit. By default they are an error: a model with infinite weights computes nothing but NaN.
#pragma once

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/tensor/recipe.hpp"
#include "tensorsmith/tensor/tiling.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What a cast does with a finite value that becomes infinite or NaN in the new type (65520 as f16). Infinities and NaN of the
/// source pass in every case; a type without infinity (f8_e4m3) has NaN in its place.
enum class cast_overflow : std::uint8_t {
  error,     ///< fails (numeric) and says where, how many and how large
  keep,      ///< infinity, or NaN in a type without
  saturate,  ///< the largest finite value with its sign; infinities, too, in a type without
};

/// Counts what did not fit, where the policy is not `error`. May be shared by many casts.
struct cast_tally {
  std::atomic<std::uint64_t> overflowed{0};
};

/// Converts output 0 of another recipe, rounding to nearest even once. @pre convertible(inner's dtype, to)
class cast_recipe final : public recipe {
 public:
  cast_recipe(recipe_ptr inner, dtype to, cast_overflow policy = cast_overflow::error, std::shared_ptr<cast_tally> tally = nullptr)
      : inner_(std::move(inner)), info_(inner_->outputs()[0]), from_(info_.type), policy_(policy), tally_(std::move(tally)) {
    info_.type = to;
    checked_ = may_overflow(from_, to) && (policy_ != cast_overflow::keep || tally_);
  }
  std::span<const tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  region grain() const override { return inner_->grain(); }
  std::size_t prepared_bytes() const noexcept override { return inner_->prepared_bytes(); }
  result<void> do_prepare(const job& run) override { return inner_->prepare(run); }
  void do_release() noexcept override { inner_->release(); }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override { inner_->add_sources(out); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override {
    const scratch::scope keep(work);
    TENSORSMITH_TRY(const view in, inner_->load(r, work));
    const tile out = tiles[0];
    if (in.pitch == byte_count(from_, r.cols) && out.pitch == row_bytes(r)) return convert(in.data, out.data, r.elements(), work);
    for (std::size_t i = 0; i < r.rows; ++i)
      TENSORSMITH_CHECK(convert(in.data + i * in.pitch, out.data + i * out.pitch, r.cols, work));
    return {};
  }
  recipe_ptr uncast() const override { return inner_; }
  recipe_ptr fold_transpose() const override { return wrapped(inner_->fold_transpose()); }
  recipe_ptr fold_reshape(const shape_type& shape) const override { return wrapped(inner_->fold_reshape(shape)); }
  recipe_ptr fold_rows(std::size_t first, std::size_t count) const override { return wrapped(inner_->fold_rows(first, count)); }

 private:
  static constexpr std::size_t block = 4096;  // elements between two checks: what was just written is still in the L1 cache

  recipe_ptr wrapped(recipe_ptr folded) const {
    return folded ? std::make_shared<cast_recipe>(std::move(folded), info_.type, policy_, tally_) : nullptr;
  }

  result<void> convert(const std::byte* in, std::byte* out, std::size_t count, scratch& work) const {
    if (!checked_) return convert_elements(from_, in, info_.type, out, count), result<void>();
    const std::size_t old_size = bits_of(from_) / 8, new_size = bits_of(info_.type) / 8;
    for (std::size_t at = 0; at < count; at += block, in += block * old_size, out += block * new_size) {
      const std::size_t n = std::min(block, count - at);
      convert_elements(from_, in, info_.type, out, n);
      if (!any_nonfinite(info_.type, out, n)) continue;
      if (policy_ == cast_overflow::error) {
        if (count_new_nonfinite(from_, in, info_.type, out, n) > 0) return describe_overflow(work);
        continue;
      }
      const std::size_t changed = policy_ == cast_overflow::saturate ? saturate_elements(from_, in, info_.type, out, n)
                                                                     : count_new_nonfinite(from_, in, info_.type, out, n);
      if (tally_) tally_->overflowed += changed;
    }
    return {};
  }

  struct overflow {
    std::size_t count = 0, first = std::numeric_limits<std::size_t>::max();
    double first_value = 0, largest = 0;  // of the finite values that overflow; the largest by magnitude
  };

  /// Goes through the whole tensor again, so that the message does not depend on tiles and threads.
  result<void> describe_overflow(scratch& work) const {
    overflow found;
    const placement whole{inner_, {output_slot{}}, {}};
    const detail::tile_grid grid = detail::plan_tiles(whole, std::size_t{1} << 20);
    for (std::size_t k = 0; k < grid.count(); ++k) {
      const scratch::scope keep(work);
      const region r = grid.at(k);
      TENSORSMITH_TRY(const view in, inner_->load(r, work));
      for (std::size_t i = 0; i < r.rows; ++i)
        inspect_row(in.data + i * in.pitch, r.cols, (r.row + i) * grid.all.cols + r.col, found, work);
    }
    const std::string one = found.count == 1 ? "a finite value does not fit into " : std::to_string(found.count) + " finite values do not fit into ";
    return failure{.code = errc::numeric, .what = one + std::string(name_of(info_.type)), .place = "tensor " + shown_name(),
                   .expected = "at most " + text(largest_finite(info_.type)) + " in magnitude",
                   .found = text(found.first_value) + " at " + to_string(index_of(found.first)) +
                            (found.count == 1 ? std::string() : ", the largest is " + text(found.largest)),
                   .advice = "keep this tensor in its type, cast to a type with a larger range, or accept it with --overflow saturate"};
  }

  void inspect_row(const std::byte* in, std::size_t count, std::size_t flat, overflow& found, scratch& work) const {
    const scratch::scope keep(work);
    const std::size_t old_size = bits_of(from_) / 8, new_size = bits_of(info_.type) / 8;
    const auto out = work.take(std::min(block, count) * new_size);
    for (std::size_t at = 0; at < count; at += block, in += block * old_size) {
      const std::size_t n = std::min(block, count - at);
      convert_elements(from_, in, info_.type, out.data(), n);
      if (!any_nonfinite(info_.type, out.data(), n)) continue;
      for (std::size_t i = 0; i < n; ++i) {
        if (detail::is_finite(info_.type, out.data() + i * new_size) || !detail::is_finite(from_, in + i * old_size)) continue;
        double value = 0;
        convert_elements(from_, in + i * old_size, dtype::f64, reinterpret_cast<std::byte*>(&value), 1);
        ++found.count;
        if (flat + at + i < found.first) found.first = flat + at + i, found.first_value = value;
        if (std::fabs(value) > std::fabs(found.largest)) found.largest = value;
      }
    }
  }

  shape_type index_of(std::size_t flat) const {
    shape_type index(info_.shape.size());
    for (std::size_t d = index.size(); d-- > 0; flat /= info_.shape[d]) index[d] = flat % info_.shape[d];
    return index;
  }
  /// Readers name their tensors "file: 'name'": escaped as every untrusted text, without a second pair of quotes.
  std::string shown_name() const {
    std::string name = quoted(info_.name);
    return name.back() == '\'' ? name.substr(1, name.size() - 2) : name;
  }
  static std::string text(double value) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::general, 9);
    return std::string(digits, end.ptr);
  }

  recipe_ptr inner_;
  tensor_info info_;
  dtype from_;
  cast_overflow policy_;
  bool checked_ = false;  // whether produced values are looked at
  std::shared_ptr<cast_tally> tally_;
};

/// `tensor` as `to`; the tensor itself if it has that type. `policy` says what becomes of values that do not fit when the bytes are
/// produced; `tally` counts them where that is no error. @fails unsupported if there is no such conversion.
inline result<tensor_ref> cast(const tensor_ref& tensor, dtype to, cast_overflow policy = cast_overflow::error,
                               std::shared_ptr<cast_tally> tally = nullptr) {
  if (tensor.type() == to) return tensor;
  if (!convertible(tensor.type(), to) || tensor.source->outputs().size() != 1)
    return failure{.code = errc::unsupported, .what = "this conversion of element types does not exist",
                   .place = "tensor " + quoted(tensor.info().name), .expected = "f64, f32, f16, bf16, or one of them and an 8-bit float",
                   .found = std::string(name_of(tensor.type())) + " to " + std::string(name_of(to))};
  return tensor_ref{std::make_shared<cast_recipe>(tensor.source, to, policy, std::move(tally)), 0};
}

TENSORSMITH_END_NAMESPACE
