// SPDX-License-Identifier: MIT
//
// The dense kernels: orthogonality, reconstruction, graded and deficient matrices, shapes of one row and one column; values recorded from
// numpy.linalg.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/merge/svd.hpp"

namespace ts = tensorsmith;

namespace {

using doubles = std::vector<double>;

struct generator {
  unsigned state = 1;
  double operator()() {
    state = state * 1664525u + 1013904223u;
    return static_cast<double>(state >> 8) / 8388608.0 - 1.0;
  }
};

doubles random_values(std::size_t n, unsigned seed) {
  generator next{seed * 2654435761u + 1};
  doubles out(n);
  for (double& x : out) x = next();
  return out;
}

/// Largest deviation of the vectors' inner products from those of an orthonormal set. Vectors of zeros are left out.
double deviation(const doubles& v, std::size_t count, std::size_t length) {
  double most = 0;
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t j = 0; j <= i; ++j) {
      double dot = 0, own = 0, other = 0;
      for (std::size_t k = 0; k < length; ++k) {
        dot += v[i * length + k] * v[j * length + k];
        own += v[i * length + k] * v[i * length + k], other += v[j * length + k] * v[j * length + k];
      }
      if (own > 0 && other > 0) most = std::max(most, std::fabs(dot - (i == j ? 1.0 : 0.0)));
    }
  return most;
}

struct svd {
  doubles u, v, sigma;
  int sweeps = 0;
};

/// Columns of a [length, count]; checks what holds for every matrix.
svd checked_svd(const doubles& a, std::size_t count, std::size_t length) {
  CAPTURE(count, length);
  svd out{a, doubles(count * count), doubles(count)};
  out.sweeps = ts::jacobi_svd({out.u.data(), count, length}, {out.v.data(), count, count}, out.sigma.data());
  CHECK(out.sweeps < 30);
  double size = 0, error = 0;
  for (const double x : a) size = std::max(size, std::fabs(x));
  for (std::size_t j = 0; j < count; ++j)
    for (std::size_t i = 0; i < length; ++i) {
      double x = 0;
      for (std::size_t k = 0; k < count; ++k) x += out.u[k * length + i] * out.sigma[k] * out.v[k * count + j];
      error = std::max(error, std::fabs(x - a[j * length + i]));
    }
  CHECK(error <= 1e-14 * size * static_cast<double>(count + length));
  CHECK(deviation(out.v, count, count) <= 1e-13);
  for (std::size_t k = 1; k < count; ++k) CHECK(out.sigma[k] <= out.sigma[k - 1]);
  return out;
}

}  // namespace

TEST_CASE("QR: R is triangular, Q is orthogonal, Q · R is the matrix") {
  for (const auto& [count, length] : {std::pair<std::size_t, std::size_t>{1, 1}, {1, 7}, {5, 5}, {6, 40}, {32, 33}}) {
    CAPTURE(count, length);
    const doubles a = random_values(count * length, 3);
    doubles work(a), tau(count);
    const ts::vector_list q(work.data(), count, length);
    ts::householder_qr(q, tau.data());
    doubles columns(length * length, 0.0);
    for (std::size_t j = 0; j < length; ++j) {
      columns[j * length + j] = 1;
      ts::apply_q(q, tau.data(), columns.data() + j * length);
    }
    CHECK(deviation(columns, length, length) <= 1e-14);
    double error = 0;
    for (std::size_t j = 0; j < count; ++j)
      for (std::size_t i = 0; i < length; ++i) {
        double x = 0;
        for (std::size_t k = 0; k <= j; ++k) x += columns[k * length + i] * work[j * length + k];
        error = std::max(error, std::fabs(x - a[j * length + i]));
      }
    CHECK(error <= 1e-14 * static_cast<double>(count));
  }
  doubles zero(12, 0.0), tau(3);
  ts::householder_qr({zero.data(), 3, 4}, tau.data());
  CHECK(zero == doubles(12, 0.0));
  CHECK(tau == doubles(3, 0.0));
}

TEST_CASE("Jacobi: square, tall, wide, one by one, deficient, graded, zero") {
  checked_svd(random_values(1, 1), 1, 1);
  checked_svd(random_values(9, 2), 1, 9);
  checked_svd(random_values(64 * 64, 3), 64, 64);
  checked_svd(random_values(8 * 50, 4), 8, 50);
  const svd wide = checked_svd(random_values(50 * 8, 5), 50, 8);  // 50 columns in a space of 8 dimensions
  CHECK(wide.sigma[7] > 0.1);
  CHECK(wide.sigma[8] <= 1e-14 * wide.sigma[0]);

  doubles twice = random_values(10 * 20, 6);
  std::copy_n(twice.begin(), 100, twice.begin() + 100);  // columns 5 to 9 are columns 0 to 4 again
  const svd half = checked_svd(twice, 10, 20);
  CHECK(half.sigma[4] > 0.1);
  CHECK(half.sigma[5] <= 1e-15 * half.sigma[0]);

  doubles graded = random_values(12 * 20, 7);
  for (std::size_t j = 0; j < 12; ++j)
    for (std::size_t i = 0; i < 20; ++i) graded[j * 20 + i] *= std::pow(10.0, -2.0 * static_cast<double>(j));
  const svd steps = checked_svd(graded, 12, 20);
  for (std::size_t k = 0; k < 12; ++k) {  // small values keep their accuracy: each is of its column's size
    CHECK(steps.sigma[k] < 10 * std::pow(10.0, -2.0 * static_cast<double>(k)));
    CHECK(steps.sigma[k] > 0.3 * std::pow(10.0, -2.0 * static_cast<double>(k)));
  }

  const svd none = checked_svd(doubles(12, 0.0), 3, 4);
  CHECK(none.sigma == doubles(3, 0.0));
  CHECK(none.u == doubles(12, 0.0));
}

TEST_CASE("values of numpy") {
  // numpy.linalg.svd(numpy.array([[4, 0, 1], [2, 3, -1], [0, 5, 2], [1, 1, 7]], float)), compute_uv=False
  const doubles a{4, 2, 0, 1, 0, 3, 5, 1, 1, -1, 2, 7};
  const svd found = checked_svd(a, 3, 4);
  const double sigma[] = {8.06610790917552, 5.31059372798152, 4.211353399307578};
  for (std::size_t k = 0; k < 3; ++k) CHECK(std::fabs(found.sigma[k] - sigma[k]) <= 1e-14 * sigma[0]);
  // numpy.linalg.eigvalsh([[2, -1, 0, 3], [-1, 5, 4, 0], [0, 4, 1, -2], [3, 0, -2, -6]]), the two largest
  doubles g{2, -1, 0, 3, -1, 5, 4, 0, 0, 4, 1, -2, 3, 0, -2, -6}, vectors(8), values(2), work(ts::eigen_work(4));
  ts::leading_eigenvectors({g.data(), 4, 4}, {vectors.data(), 2, 4}, values.data(), work.data());
  CHECK(std::fabs(values[0] - 7.780690472226871) <= 1e-14 * 8);
  CHECK(std::fabs(values[1] - 2.729351960986301) <= 1e-14 * 8);
}

TEST_CASE("leading eigenvectors: residuals and orthogonality, also of multiple values, of a zero matrix, of blocks that do not meet") {
  for (const std::size_t n : {1u, 2u, 3u, 17u, 90u})
    for (int kind = 0; kind < 4; ++kind) {
      CAPTURE(n, kind);
      doubles g(n * n, 0.0);
      generator next{static_cast<unsigned>(n)};
      if (kind == 0)
        for (std::size_t i = 0; i < n; ++i)
          for (std::size_t j = 0; j <= i; ++j) g[i * n + j] = g[j * n + i] = next();
      if (kind == 1)
        for (std::size_t i = 0; i < n; ++i) g[i * n + i] = 3;
      if (kind == 2)
        for (std::size_t i = 0; i < n; ++i)
          for (std::size_t j = 0; j < n; ++j) g[i * n + j] = i / 2 == j / 2 ? 2 : 0;
      const doubles before(g);
      const std::size_t wanted = std::min<std::size_t>(n, 12);
      doubles vectors(wanted * n), values(wanted), work(ts::eigen_work(n));
      ts::leading_eigenvectors({g.data(), n, n}, {vectors.data(), wanted, n}, values.data(), work.data());
      CHECK(deviation(vectors, wanted, n) <= 1e-13);
      double worst = 0, trace = 0;
      for (std::size_t k = 0; k < wanted; ++k) {
        if (k) CHECK(values[k] <= values[k - 1] + 1e-13);
        for (std::size_t i = 0; i < n; ++i) {
          double x = -values[k] * vectors[k * n + i];
          for (std::size_t j = 0; j < n; ++j) x += before[i * n + j] * vectors[k * n + j];
          worst = std::max(worst, std::fabs(x));
        }
      }
      CHECK(worst <= 2e-14 * static_cast<double>(n));
      for (std::size_t i = 0; i < n; ++i) trace += before[i * n + i];
      if (wanted == n) {
        for (const double value : values) trace -= value;
        CHECK(std::fabs(trace) <= 1e-13 * static_cast<double>(n));
      }
    }
}
