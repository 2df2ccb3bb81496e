// SPDX-License-Identifier: MIT
//
// The vector kernels against f64 evaluation of the formula, within the stated bound, and against each other bit for bit.
#include <cmath>
#include <cstring>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/merge/simd.hpp"

namespace ts = tensorsmith;
using values = std::vector<float>;

namespace {

values numbers(std::size_t n, unsigned seed) {
  values out(n);
  unsigned state = seed;
  for (float& x : out) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int>(state >> 8) - (1 << 23)) / static_cast<float>(1 << 23);
  }
  return out;
}

struct problem {
  problem(std::size_t row_count, std::size_t col_count, std::size_t rank)
      : rows(row_count), cols(col_count), r(rank), w(numbers(rows * cols, 1)), up(numbers(rows * r, 2)), down(numbers(r * cols, 3)),
        packed(ts::packed_floats(r, cols)) {
    ts::pack_panels({down.data(), r, cols}, packed.data());
  }

  /// W after the merge, made in tiles of `tile_rows` × `tile_cols`.
  template <class Tag>
  values merged(Tag tag, std::size_t tile_rows, std::size_t tile_cols) const {
    values out = w;
    for (std::size_t i = 0; i < rows; i += tile_rows)
      for (std::size_t j = 0; j < cols; j += tile_cols) {
        const std::size_t height = std::min(tile_rows, rows - i), width = std::min(tile_cols, cols - j);
        ts::add_low_rank(tag, {out.data() + i * cols + j, height, width, cols}, j, {up.data() + i * r, height, r}, {packed.data(), r, cols}, s);
      }
    return out;
  }

  void check(const values& found) const {
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < cols; ++j) {
        double sum = 0, size = 0;
        for (std::size_t k = 0; k < r; ++k) {
          const double term = static_cast<double>(up[i * r + k]) * static_cast<double>(down[k * cols + j]);
          sum += term, size += std::fabs(term);
        }
        const double base = static_cast<double>(w[i * cols + j]), exact = base + static_cast<double>(s) * sum;
        const double bound = static_cast<double>(r + 8) * 0x1p-24 * (std::fabs(base) + std::fabs(static_cast<double>(s)) * size);
        wrong += std::fabs(static_cast<double>(found[i * cols + j]) - exact) > bound;
      }
    CHECK(wrong == 0);
  }

  std::size_t rows, cols, r;
  float s = -0.73F;
  values w, up, down, packed;
};

template <class Tag>
values sweep(Tag tag, const problem& p) {
  const values whole = p.merged(tag, p.rows, p.cols);
  p.check(whole);
  for (const auto& [tile_rows, tile_cols] : {std::pair<std::size_t, std::size_t>(1, p.cols), {5, 32}, {16, 64}, {13, 96}})
    CHECK(std::memcmp(p.merged(tag, tile_rows, tile_cols).data(), whole.data(), whole.size() * sizeof(float)) == 0);
  return whole;
}

}  // namespace

TEST_CASE("low-rank products: every kernel is exact to its bound and does not depend on the tiles") {
  for (const auto& [rows, cols, r] : {std::tuple<std::size_t, std::size_t, std::size_t>(37, 131, 8), {12, 32, 1}, {25, 320, 128}, {23, 900, 128}, {3, 7, 4}, {1, 1, 1}}) {
    CAPTURE(rows, cols, r);
    const problem p(rows, cols, r);
    sweep(ts::arch_tag::scalar{}, p);
    values best = p.w;
    ts::best_low_rank()({best.data(), rows, cols}, 0, {p.up.data(), rows, r}, {p.packed.data(), r, cols}, p.s);
    p.check(best);
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) continue;
    const values avx2 = sweep(ts::arch_tag::avx2{}, p);
    if (!__builtin_cpu_supports("avx512f")) continue;
    const values avx512 = sweep(ts::arch_tag::avx512{}, p);
    CHECK(std::memcmp(avx2.data(), avx512.data(), avx2.size() * sizeof(float)) == 0);
#endif
  }
}
