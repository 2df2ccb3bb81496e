// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/truncated_svd.hpp: the best approximation of a sum of changes by one product of two factors of a given rank.
//
// Include this to bring adapters to a lower rank. A layer's changes are held whole while their SVD is made: the recipe says how much memory that
// takes, and the executor admits it within its budget.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/merge/svd.hpp"
#include "tensorsmith/tensor/assembled.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/weight_change.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// scale · up @ down, with a Tucker core between if there is one.
struct scaled_product {
  tensor_ref up, core, down;
  double scale = 1;
  /// The right factor's rows: what this product adds to the rank of a sum.
  std::size_t rank() const { return core ? core.shape()[0] : plane_of(down.shape()).rows; }
};

/// What a truncation kept of a change, in Frobenius norms.
struct truncation {
  double whole = 0;  ///< of the exact change
  double lost = 0;   ///< of what the rank left out, before rounding
};

/// Two outputs, up [out, rank] and down [rank, in · positions], whose product is the best approximation of rank `rank` of a sum of changes; rounded
/// once, from f64. Each carries the square root of the singular values, so that both stay in the middle of f16's range. Made whole: one tile.
class truncated_svd_recipe final : public recipe {
 public:
  /// up, down: what the outputs are; both of one element type.
  /// Products alone: QR of the stacked factors, then one-sided Jacobi of the small core; nothing of the size of the weight is made. Where the ranks
  /// together reach the smaller side of the weight, or `others` (changes that add to a weight of zeros) are there, the change [out, in · positions]
  /// is made in f32 and its singular vectors are the leading eigenvectors of its smaller Gram matrix: values below 10^-8 of the largest are lost in
  /// it.
  truncated_svd_recipe(std::vector<scaled_product> products, std::vector<weight_change_ptr> others, tensor_info up, tensor_info down,
                       cast_overflow overflow)
      : products_(std::move(products)), others_(std::move(others)), outputs_{std::move(up), std::move(down)}, overflow_(overflow) {
    rows_ = plane_of(outputs_[0].shape).rows, rank_ = plane_of(outputs_[0].shape).cols, cols_ = plane_of(outputs_[1].shape).cols;
    for (const scaled_product& p : products_) total_ += p.rank();
    whole_ = !others_.empty() || total_ >= std::min(rows_, cols_);
  }

  std::span<const tensor_info> outputs() const noexcept override { return outputs_; }
  region grain() const override { return {0, rows_, 0, rank_}; }
  region output_region(std::size_t k, region r) const override { return k == 0 ? r : region{0, rank_, 0, cols_}; }
  std::size_t prepared_bytes() const noexcept override {
    // In doubles: shapes of a file of a few bytes may multiply beyond 64 bits.
    const auto number = [](std::size_t n) { return static_cast<double>(n); };
    const double rows = number(rows_), cols = number(cols_), n = number(total_), side = std::min(rows, cols);
    double words = 2 * (rows + cols) * number(rank_);  // of 8 bytes
    if (!whole_) {
      words += 2 * (rows + cols) * n + 3 * n * n;
    } else {
      for (const weight_change_ptr& change : others_) words += number(change->prepared_bytes()) / sizeof(double);
      for (const scaled_product& p : products_) words += 2 * (rows + cols) * number(p.rank());
      words += rows * cols / 2 + side * (side + number(rank_) + 256);
    }
    return static_cast<std::size_t>(std::min(words * sizeof(double), 1e18));
  }
  result<void> do_prepare(const job& run) override {
    if (run.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled; nothing was written"};
    up_.assign(rows_ * rank_, 0.0), down_.assign(rank_ * cols_, 0.0);
    TENSORSMITH_CHECK(whole_ ? factor_whole(run) : factor_products(run));
    if (std::isfinite(kept_.whole)) return {};
    return failure{.code = errc::numeric, .what = "the adapters' change has no singular values: it holds NaN or infinities, or is too large",
                   .place = "tensor " + quoted(outputs_[0].name), .expected = "finite values"};
  }
  void do_release() noexcept override { up_ = decltype(up_)(), down_ = decltype(down_)(); }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override {
    for (const scaled_product& p : products_)
      for (const tensor_ref* factor : {&p.up, &p.core, &p.down})
        if (*factor) factor->source->add_sources(out);
  }
  result<void> produce(region, std::span<const tile> tiles, scratch&) const override {
    TENSORSMITH_CHECK(round(up_, rank_, outputs_[0], tiles[0]));
    return round(down_, cols_, outputs_[1], tiles[1]);
  }

  /// What was lost; known once the tensors are written.
  truncation kept() const noexcept { return kept_; }

 private:
  struct factors {
    std::vector<double> up, down;  // [rows, r], [r, cols], down scaled
    std::size_t r = 0;
  };
  result<factors> factors_of(const scaled_product& p, const job& run) const {
    factors out;
    out.r = p.rank();
    TENSORSMITH_TRY(out.up, doubles_of(p.up, run));
    TENSORSMITH_TRY(out.down, doubles_of(p.down, run));
    if (p.core) {
      TENSORSMITH_TRY(const std::vector<double> core, doubles_of(p.core, run));
      const shape_type& k = p.core.shape();
      out.down = detail::combined_core(core, out.down, k[0], k[1], k[2] * k[3]);
    }
    for (double& x : out.down) x *= p.scale;
    return out;
  }

  /// up = Q1 · R1, downᵀ = Q2 · R2, R1 · R2ᵀ = U · Σ · Vᵀ: the sum is (Q1 · U) · Σ · (Q2 · V)ᵀ.
  result<void> factor_products(const job& run) {
    const std::size_t n = total_;
    std::vector<double> left(n * rows_), right(n * cols_), tau(2 * n), core(n * n, 0.0), v(n * n), sigma(n);
    std::size_t at = 0;
    for (const scaled_product& p : products_) {
      TENSORSMITH_TRY(const factors f, factors_of(p, run));
      for (std::size_t k = 0; k < f.r; ++k, ++at) {
        for (std::size_t i = 0; i < rows_; ++i) left[at * rows_ + i] = f.up[i * f.r + k];
        std::copy_n(f.down.begin() + static_cast<std::ptrdiff_t>(k * cols_), cols_, right.begin() + static_cast<std::ptrdiff_t>(at * cols_));
      }
    }
    const vector_list a(left.data(), n, rows_), b(right.data(), n, cols_);
    householder_qr(a, tau.data());
    householder_qr(b, tau.data() + n);
    for (std::size_t j = 0; j < n; ++j)      // column j of R1 · R2ᵀ
      for (std::size_t k = j; k < n; ++k)    // R2[j][k]
        for (std::size_t i = 0; i <= k; ++i) core[j * n + i] += a[k][i] * b[k][j];
    jacobi_svd({core.data(), n, n}, {v.data(), n, n}, sigma.data());
    set_kept(sigma);
    std::vector<double> x(std::max(rows_, cols_));
    const auto place = [&](const double* small, vector_list q, const double* t, double scale, std::size_t length) {
      std::fill(x.begin(), x.end(), 0.0);
      std::copy(small, small + n, x.begin());
      apply_q(q, t, x.data());
      for (std::size_t i = 0; i < length; ++i) x[i] *= scale;
    };
    for (std::size_t k = 0; k < rank_; ++k) {
      const double root = std::sqrt(sigma[k]);
      place(core.data() + k * n, a, tau.data(), root, rows_);
      for (std::size_t i = 0; i < rows_; ++i) up_[i * rank_ + k] = x[i];
      place(v.data() + k * n, b, tau.data() + n, root, cols_);
      std::copy_n(x.begin(), cols_, down_.begin() + static_cast<std::ptrdiff_t>(k * cols_));
    }
    return {};
  }

  /// All of the change, row by row, in f32.
  result<std::vector<float>> change(const job& run) {
    std::vector<float> out(rows_ * cols_, 0.0F);
    const matrix w(out.data(), rows_, cols_);
    for (const scaled_product& p : products_) {
      TENSORSMITH_TRY(const factors f, factors_of(p, run));
      std::vector<double> row(cols_);
      for (std::size_t i = 0; i < rows_; ++i) {
        std::fill(row.begin(), row.end(), 0.0);
        for (std::size_t k = 0; k < f.r; ++k) detail::add_multiple(row.data(), f.down.data() + k * cols_, f.up[i * f.r + k], cols_);
        for (std::size_t j = 0; j < cols_; ++j) w.row(i)[j] += static_cast<float>(row[j]);
      }
    }
    scratch work;
    for (const weight_change_ptr& other : others_) {
      TENSORSMITH_CHECK(other->prepare(run));
      other->apply(w, {0, rows_, 0, cols_}, work);
      other->release();
    }
    return out;
  }

  /// G = C · Cᵀ (or Cᵀ · C, the smaller one), its leading eigenvectors U; the approximation is U · (Uᵀ · C).
  result<void> factor_whole(const job& run) {
    TENSORSMITH_TRY(const std::vector<float> c, change(run));
    const bool tall = rows_ > cols_;  // Gram of the columns
    const std::size_t side = std::min(rows_, cols_), other = std::max(rows_, cols_);
    std::vector<double> gram(side * side, 0.0), vectors(rank_ * side), values(rank_), work(eigen_work(side)), band;
    constexpr std::size_t width = 256;  // of the longer side at a time, so that the panel stays in cache
    band.resize(side * width);
    double square = 0;
    for (std::size_t first = 0; first < other; first += width) {
      if (run.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled; nothing was written"};
      const std::size_t n = std::min(width, other - first);
      for (std::size_t i = 0; i < side; ++i)
        for (std::size_t j = 0; j < n; ++j)
          band[i * n + j] = static_cast<double>(tall ? c[(first + j) * cols_ + i] : c[i * cols_ + first + j]);
      for (std::size_t i = 0; i < side; ++i)
        for (std::size_t j = 0; j <= i; ++j) gram[i * side + j] += detail::dot(band.data() + i * n, band.data() + j * n, n);
    }
    for (std::size_t i = 0; i < side; ++i) {
      square += gram[i * side + i];
      for (std::size_t j = 0; j < i; ++j) gram[j * side + i] = gram[i * side + j];
    }
    if (!std::isfinite(square)) return kept_.whole = square, result<void>();
    leading_eigenvectors({gram.data(), side, side}, {vectors.data(), rank_, side}, values.data(), work.data());
    double taken = 0;
    std::vector<double> x(other);
    for (std::size_t k = 0; k < rank_; ++k) {
      const double* const u = vectors.data() + k * side;
      std::fill(x.begin(), x.end(), 0.0);
      for (std::size_t i = 0; i < rows_; ++i) {
        const float* const row = c.data() + i * cols_;
        if (tall)
          for (std::size_t j = 0; j < cols_; ++j) x[i] += static_cast<double>(row[j]) * u[j];
        else
          for (std::size_t j = 0; j < cols_; ++j) x[j] += static_cast<double>(row[j]) * u[i];
      }
      const double sigma2 = detail::dot(x.data(), x.data(), other), root = std::sqrt(std::sqrt(sigma2)), inverse = root > 0 ? 1 / root : 0.0;
      taken += sigma2;
      const double *const left = tall ? x.data() : u, *const right = tall ? u : x.data();
      for (std::size_t i = 0; i < rows_; ++i) up_[i * rank_ + k] = left[i] * (tall ? inverse : root);
      for (std::size_t j = 0; j < cols_; ++j) down_[k * cols_ + j] = right[j] * (tall ? root : inverse);
    }
    kept_ = {std::sqrt(square), std::sqrt(std::max(0.0, square - taken))};
    return {};
  }

  result<void> round(const std::vector<double>& values, std::size_t cols, const tensor_info& info, tile out) const {
    std::size_t lost = 0;
    for (std::size_t i = 0; i * cols < values.size(); ++i) {
      const std::byte* const from = reinterpret_cast<const std::byte*>(values.data() + i * cols);
      std::byte* const to = out.data + i * out.pitch;
      convert_elements(dtype::f64, from, info.type, to, cols);
      if (overflow_ == cast_overflow::error) lost += count_new_nonfinite(dtype::f64, from, info.type, to, cols);
      if (overflow_ == cast_overflow::saturate) saturate_elements(dtype::f64, from, info.type, to, cols);
    }
    if (lost == 0) return {};
    return failure{.code = errc::numeric,
                   .what = std::to_string(lost) + " finite values do not fit into " + std::string(name_of(info.type)),
                   .place = "tensor " + quoted(info.name),
                   .advice = "write another element type (--dtype f32), or accept it with --overflow saturate"};
  }

  void set_kept(const std::vector<double>& sigma) {
    double taken = 0, lost = 0;
    for (std::size_t k = 0; k < sigma.size(); ++k) (k < rank_ ? taken : lost) += sigma[k] * sigma[k];
    kept_ = {std::sqrt(taken + lost), std::sqrt(lost)};
  }

  std::vector<scaled_product> products_;
  std::vector<weight_change_ptr> others_;
  std::vector<tensor_info> outputs_;
  cast_overflow overflow_;
  std::size_t rows_ = 0, cols_ = 0, rank_ = 0, total_ = 0;
  bool whole_ = false;
  truncation kept_;
  std::vector<double> up_, down_;
};

TENSORSMITH_END_NAMESPACE
