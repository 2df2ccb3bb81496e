// SPDX-License-Identifier: MIT
//
// tensorsmith/merge/svd.hpp: small dense kernels in f64: Householder QR, one-sided Jacobi SVD, the leading eigenvectors of a symmetric matrix.
//
// Include this to bring a change of a weight to a lower rank. Matrices are lists of vectors that somebody else owns; nothing is allocated, working
// memory is passed in, the order of every sum is fixed. Formulas: Golub and Van Loan, Matrix Computations, 4th edition, sections 5.1 and 5.2
// (QR), 8.3 (tridiagonal form), 8.4 (bisection), 8.6 (one-sided Jacobi); inverse iteration after Wilkinson, with every vector kept orthogonal to
// those before it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// `count` vectors of `length` doubles each: the columns of a matrix [length, count]. Nothing is owned.
struct vector_list {
  double* data = nullptr;
  std::size_t count = 0, length = 0;
  std::size_t stride = 0;  ///< doubles from one vector to the next

  vector_list() = default;
  vector_list(double* first, std::size_t vectors, std::size_t elements) noexcept : data(first), count(vectors), length(elements), stride(elements) {}
  vector_list(double* first, std::size_t vectors, std::size_t elements, std::size_t pitch) noexcept
      : data(first), count(vectors), length(elements), stride(pitch) {}
  double* operator[](std::size_t i) const noexcept { return data + i * stride; }
};

namespace detail {

/// Four sums that are independent of each other, so that the processor need not wait for one addition to begin the next.
inline double dot(const double* a, const double* b, std::size_t n) noexcept {
  double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    s0 += a[i] * b[i], s1 += a[i + 1] * b[i + 1];
    s2 += a[i + 2] * b[i + 2], s3 += a[i + 3] * b[i + 3];
  }
  for (; i < n; ++i) s0 += a[i] * b[i];
  return (s0 + s1) + (s2 + s3);
}

/// y += f · x
inline void add_multiple(double* y, const double* x, double f, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] += f * x[i];
}

/// Turns x [n] into the v of H = I − tau · v · vᵀ (v[0] = 1, stored from x[1] on) with H · x = beta · e₀; x[0] becomes beta. Returns tau (0: H =
/// I).
inline double make_reflector(double* x, std::size_t n) noexcept {
  const double tail = n > 1 ? dot(x + 1, x + 1, n - 1) : 0.0;
  if (tail == 0) return 0;
  const double norm = std::sqrt(x[0] * x[0] + tail), beta = x[0] > 0 ? -norm : norm;
  const double scale = 1 / (x[0] - beta), tau = (beta - x[0]) / beta;
  for (std::size_t i = 1; i < n; ++i) x[i] *= scale;
  x[0] = beta;
  return tau;
}

/// y [n] := H · y, with v as make_reflector leaves it.
inline void reflect(const double* v, double tau, double* y, std::size_t n) noexcept {
  if (tau == 0) return;
  const double f = -tau * (y[0] + dot(v + 1, y + 1, n - 1));
  y[0] += f;
  add_multiple(y + 1, v + 1, f, n - 1);
}

}  // namespace detail

/// A = Q · R: afterwards R[k][j] (k <= j) is element k of vector j, below it lie the reflectors that make Q; tau [count].
/// @pre length >= count; squares of the elements do not overflow
inline void householder_qr(vector_list a, double* tau) noexcept {
  for (std::size_t k = 0; k < a.count; ++k) {
    tau[k] = detail::make_reflector(a[k] + k, a.length - k);
    for (std::size_t j = k + 1; j < a.count; ++j) detail::reflect(a[k] + k, tau[k], a[j] + k, a.length - k);
  }
}

/// x [length] := Q · x with the Q that householder_qr left in `a` and `tau`. An x that is zero from element `count` on lands in the span of the
/// columns.
inline void apply_q(vector_list a, const double* tau, double* x) noexcept {
  for (std::size_t k = a.count; k-- > 0;) detail::reflect(a[k] + k, tau[k], x + k, a.length - k);
}

namespace detail {

/// One rotation of one-sided Jacobi on vectors p and q of `a`, and of `v`, so that they become orthogonal. `square` holds the squares of the norms.
/// Returns false if they are orthogonal to working precision already.
inline bool rotate_pair(vector_list a, vector_list v, double* square, std::size_t p, std::size_t q, double negligible) noexcept {
  if (square[p] < square[q]) {  // larger vectors first (de Rijk): the values come out sorted, and fewer sweeps are needed
    for (std::size_t i = 0; i < a.length; ++i) std::swap(a[p][i], a[q][i]);
    for (std::size_t i = 0; i < v.length; ++i) std::swap(v[p][i], v[q][i]);
    std::swap(square[p], square[q]);
  }
  if (square[q] <= negligible) return false;
  const double g = dot(a[p], a[q], a.length);
  if (!(std::fabs(g) > 4 * std::numeric_limits<double>::epsilon() * std::sqrt(square[p]) * std::sqrt(square[q]))) return false;
  const double zeta = (square[q] - square[p]) / (2 * g);
  const double t = (zeta >= 0 ? 1.0 : -1.0) / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta)), c = 1 / std::sqrt(1 + t * t), s = c * t;
  for (const vector_list& list : {a, v}) {
    double *const x = list[p], *const y = list[q];
    for (std::size_t i = 0; i < list.length; ++i) {
      const double xi = x[i], yi = y[i];
      x[i] = c * xi - s * yi, y[i] = s * xi + c * yi;
    }
  }
  square[p] = dot(a[p], a[p], a.length), square[q] = dot(a[q], a[q], a.length);
  return true;
}

}  // namespace detail

/// A · V = U · diag(sigma), in place: afterwards the vectors of `a` are U's, those of `v` [count, count] V's, sigma [count] descends. Where sigma
/// is 0, U's vector is zero. Returns the sweeps that were needed; 60 means that it gave up, which no matrix is known to cause. @pre length >= 1
inline int jacobi_svd(vector_list a, vector_list v, double* sigma) noexcept {
  const std::size_t n = a.count;
  double largest = 0;
  for (std::size_t j = 0; j < n; ++j) {
    for (std::size_t i = 0; i < n; ++i) v[j][i] = i == j ? 1.0 : 0.0;
    sigma[j] = detail::dot(a[j], a[j], a.length);
    largest = sigma[j] > largest ? sigma[j] : largest;
  }
  const double negligible = largest * 1e-60;  // vectors 10^30 times smaller than the largest one are rounding errors of nothing
  int sweeps = 0;
  for (bool turned = n > 1; turned && sweeps < 60; ++sweeps) {
    turned = false;
    for (std::size_t p = 0; p + 1 < n; ++p)
      for (std::size_t q = p + 1; q < n; ++q) turned = detail::rotate_pair(a, v, sigma, p, q, negligible) || turned;
  }
  for (std::size_t j = 0; j < n; ++j) {
    const double norm = sigma[j] <= negligible ? 0.0 : std::sqrt(sigma[j]), inverse = norm > 0 ? 1 / norm : 0.0;
    sigma[j] = norm;
    for (std::size_t i = 0; i < a.length; ++i) a[j][i] *= inverse;
  }
  return sweeps;
}

namespace detail {

/// A symmetric g [n, n] becomes tridiagonal: diagonal d [n], beside it e [n] (e[n-1] unused); the reflectors stay in g's rows, right of the diagonal,
/// with tau [n]. `work` holds n doubles.
inline void tridiagonalise(vector_list g, double* d, double* e, double* tau, double* work) noexcept {
  const std::size_t n = g.count;
  for (std::size_t k = 0; k < n; ++k) {
    d[k] = g[k][k], e[k] = 0, tau[k] = 0;
    const std::size_t m = n - k - 1;
    if (m == 0) break;
    double* const v = g[k] + k + 1;
    tau[k] = make_reflector(v, m);
    e[k] = v[0];
    if (tau[k] == 0) continue;
    v[0] = 1;
    double half = 0;
    for (std::size_t i = 0; i < m; ++i) {
      work[i] = tau[k] * dot(g[k + 1 + i] + k + 1, v, m);
      half += work[i] * v[i];
    }
    add_multiple(work, v, -0.5 * tau[k] * half, m);
    for (std::size_t i = 0; i < m; ++i) {
      double* const row = g[k + 1 + i] + k + 1;
      const double a = v[i], b = work[i];
      for (std::size_t j = 0; j < m; ++j) row[j] -= a * work[j] + b * v[j];
    }
    v[0] = e[k];
  }
}

/// How many eigenvalues of a tridiagonal matrix lie below x (Sturm).
inline std::size_t eigenvalues_below(const double* d, const double* e, std::size_t n, double x, double tiny) noexcept {
  std::size_t below = 0;
  double q = 1;
  for (std::size_t i = 0; i < n; ++i) {
    const double off = i ? e[i - 1] : 0.0;
    q = d[i] - x - (i ? off * off / q : 0.0);
    if (std::fabs(q) < tiny) q = -tiny;
    below += q < 0;
  }
  return below;
}

/// x := (T − shift)⁻¹ · x by elimination with row exchange; `u` holds 3 · n doubles.
inline void solve_tridiagonal(const double* d, const double* e, std::size_t n, double shift, double tiny, double* x, double* u) noexcept {
  double *const u0 = u, *const u1 = u + n, *const u2 = u + 2 * n;  // the rows of the upper triangle
  double a = d[0] - shift, b = n > 1 ? e[0] : 0.0;
  for (std::size_t i = 0; i + 1 < n; ++i) {
    const double low = e[i], diagonal = d[i + 1] - shift, high = i + 2 < n ? e[i + 1] : 0.0;
    if (std::fabs(low) > std::fabs(a)) {
      const double f = a / low;
      u0[i] = low, u1[i] = diagonal, u2[i] = high;
      a = b - f * diagonal, b = -f * high;
      const double moved = x[i];
      x[i] = x[i + 1], x[i + 1] = moved - f * x[i + 1];
    } else {
      if (std::fabs(a) < tiny) a = tiny;
      const double f = low / a;
      u0[i] = a, u1[i] = b, u2[i] = 0;
      a = diagonal - f * b, b = high;
      x[i + 1] -= f * x[i];
    }
  }
  u0[n - 1] = std::fabs(a) < tiny ? tiny : a, u1[n - 1] = u2[n - 1] = 0;
  for (std::size_t i = n; i-- > 0;) {
    const double right = (i + 1 < n ? u1[i] * x[i + 1] : 0.0) + (i + 2 < n ? u2[i] * x[i + 2] : 0.0);
    x[i] = (x[i] - right) / u0[i];
  }
}

/// Scales x to length 1; false if it is (next to) nothing.
inline bool normalise(double* x, std::size_t n, double least) noexcept {
  const double norm = std::sqrt(dot(x, x, n));
  if (!(norm > least)) return false;
  for (std::size_t i = 0; i < n; ++i) x[i] /= norm;
  return true;
}

/// Eigenvector `k` of a tridiagonal matrix, orthogonal to the vectors before it, by inverse iteration from a start that depends on k alone.
inline void eigenvector(const double* d, const double* e, std::size_t n, double value, double size, vector_list found, std::size_t k,
                        double* u) noexcept {
  const double eps = std::numeric_limits<double>::epsilon(), tiny = eps * (size > 0 ? size : 1.0);
  const auto purge = [&](double* x) {
    for (int again = 0; again < 2; ++again)
      for (std::size_t j = 0; j < k; ++j) add_multiple(x, found[j], -dot(x, found[j], n), n);
  };
  double* const x = found[k];
  std::uint64_t state = 0x9E3779B97F4A7C15u * (k + 1);
  for (int start = 0; start < 8; ++start) {
    for (std::size_t i = 0; i < n; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      x[i] = static_cast<double>(state >> 40) / 8388608.0 - 1.0;
    }
    purge(x);
    bool good = normalise(x, n, 1e-8);
    for (int step = 0; step < 4 && good; ++step) {
      solve_tridiagonal(d, e, n, value, tiny, x, u);
      double most = 0;  // a solution may be as long as 1/tiny²: bring it into the range of squares first
      for (std::size_t i = 0; i < n; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
      for (std::size_t i = 0; i < n && most > 0; ++i) x[i] /= most;
      good = normalise(x, n, 0.0);
      if (!good) break;
      purge(x);
      good = normalise(x, n, 1e-8);
    }
    if (good) return;
  }
}

}  // namespace detail

/// Doubles of working memory that leading_eigenvectors needs.
constexpr std::size_t eigen_work(std::size_t n) noexcept { return 7 * n; }

/// The largest eigenvalues of a symmetric matrix g [n, n], which is overwritten: values [found.count], descending, with orthonormal vectors in
/// `found`. Tridiagonal form, then bisection and inverse iteration for those that are wanted: n³ · 4/3 multiplications and as many additions. A
/// value's error is about 10^-15 of the largest; vectors of values that are closer to each other span their common space. `work`: eigen_work(n)
/// doubles. @pre n >= 1
inline void leading_eigenvectors(vector_list g, vector_list found, double* values, double* work) noexcept {
  const std::size_t n = g.count;
  double *const d = work, *const e = d + n, *const tau = e + n, *const u = tau + n;
  detail::tridiagonalise(g, d, e, tau, u);
  double low = d[0], high = d[0];
  for (std::size_t i = 0; i < n; ++i) {  // Gershgorin
    const double reach = (i ? std::fabs(e[i - 1]) : 0.0) + (i + 1 < n ? std::fabs(e[i]) : 0.0);
    low = d[i] - reach < low ? d[i] - reach : low;
    high = d[i] + reach > high ? d[i] + reach : high;
  }
  const double size = std::fabs(low) > std::fabs(high) ? std::fabs(low) : std::fabs(high), eps = std::numeric_limits<double>::epsilon();
  const double tiny = size > 0 ? eps * eps * size : std::numeric_limits<double>::min();
  double above = high + eps * size;
  for (std::size_t k = 0; k < found.count; ++k) {
    double a = low - eps * size, b = above;
    for (int step = 0; step < 128 && b - a > eps * size; ++step) {
      const double middle = a + (b - a) / 2;
      // The k-th largest is below the middle if at least n − k of all are.
      if (detail::eigenvalues_below(d, e, n, middle, tiny) >= n - k) b = middle;
      else a = middle;
    }
    above = b;
    values[k] = a + (b - a) / 2;
    detail::eigenvector(d, e, n, values[k], size, found, k, u);
  }
  for (std::size_t k = 0; k < found.count; ++k)  // from the tridiagonal form's space back to g's
    for (std::size_t i = n; i-- > 0;)
      if (i + 1 < n && tau[i] != 0) detail::reflect(g[i] + i + 1, tau[i], found[k] + i + 1, n - i - 1);
}

TENSORSMITH_END_NAMESPACE
