// SPDX-License-Identifier: MIT
//
// The rank-r kernel of LoRA, one thread: W += s · up @ down on layers of SD1 and SDXL, cut into bands of rows as the executor cuts them.
// The time includes the packing of `down`, once a tensor. `of_blas`: speed as a ratio to OpenBLAS's sgemm on the same arrays, by alternation in
// this process; `of_memory`: as a ratio to a loop that reads, adds and writes W, which is what a kernel bound by memory takes. OpenBLAS picks its
// kernels by the processor; one that it does not know gets AVX2's. OPENBLAS_CORETYPE=SkylakeX makes it use AVX-512, as `best` does.
#include <cmath>
#include <cstring>
#include <vector>

#if TENSORSMITH_OPENBLAS
#include <cblas.h>
extern "C" void openblas_set_num_threads(int);
#endif

#include "support/measure.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/merge/simd.hpp"

namespace ts = tensorsmith;
using values = std::vector<float>;

namespace {

values numbers(std::size_t n, unsigned seed, float size) {
  values out(n);
  unsigned state = seed;
  for (float& x : out) {
    state = state * 1664525u + 1013904223u;
    x = size * static_cast<float>(static_cast<int>(state >> 8) - (1 << 23)) / static_cast<float>(1 << 23);
  }
  return out;
}

/// One layer and one adapter; `merge` changes W as the pipeline does.
struct layer {
  layer(std::size_t row_count, std::size_t col_count, std::size_t rank)
      : rows(row_count), cols(col_count), r(rank), w(numbers(rows * cols, 1, 0.05F)), up(numbers(rows * r, 2, 0.02F)), down(numbers(r * cols, 3, 0.02F)),
        packed(ts::packed_floats(r, cols)) {}

  void merge(float s) {
    ts::pack_panels({down.data(), r, cols}, packed.data());
    const std::size_t band = std::max<std::size_t>(1, ts::job().tile_bytes / (cols * sizeof(float)));
    for (std::size_t i = 0; i < rows; i += band) {
      const std::size_t n = std::min(band, rows - i);
      kernel({w.data() + i * cols, n, cols}, 0, {up.data() + i * r, n, r}, {packed.data(), r, cols}, s);
    }
  }

  /// Every 37th element against the sum in double, within the kernel's bound.
  void verify() {
    const values before = w;
    merge(0.7F);
    for (std::size_t at = 0; at < w.size(); at += 37) {
      double sum = 0, size = 0;
      for (std::size_t k = 0; k < r; ++k) {
        const double term = static_cast<double>(up[at / cols * r + k]) * static_cast<double>(down[k * cols + at % cols]);
        sum += term, size += std::fabs(term);
      }
      const double base = static_cast<double>(before[at]), s = static_cast<double>(0.7F);
      const double bound = static_cast<double>(r + 8) * 0x1p-24 * (std::fabs(base) + s * size);
      if (!(std::fabs(static_cast<double>(w[at]) - (base + s * sum)) <= bound)) measure::fail("the merged weight is wrong");
    }
    w = before;
  }

  std::size_t rows, cols, r;
  ts::low_rank_kernel kernel = ts::best_low_rank();
  values w, up, down, packed;
};

layer layer_of(const benchmark::State& state) {
  return {static_cast<std::size_t>(state.range(0)), static_cast<std::size_t>(state.range(1)), static_cast<std::size_t>(state.range(2))};
}

void report(benchmark::State& state, const layer& l) {
  const auto rounds = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * static_cast<double>(l.rows * l.cols * l.r) * rounds, benchmark::Counter::kIsRate);
  state.SetBytesProcessed(static_cast<std::int64_t>(2 * sizeof(float) * l.w.size()) * static_cast<std::int64_t>(state.iterations()));
}

void low_rank_against_blas(benchmark::State& state, ts::low_rank_kernel kernel) {
#if TENSORSMITH_OPENBLAS
  if (kernel == nullptr) {
    state.SkipWithError("left out: this processor has no such kernel");
    return;
  }
  layer l = layer_of(state);
  l.kernel = kernel;
  l.verify();
  openblas_set_num_threads(1);
  values other = l.w;
  const auto m = static_cast<int>(l.rows), n = static_cast<int>(l.cols), k = static_cast<int>(l.r);
  const auto sgemm = [&](float s) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, s, l.up.data(), k, l.down.data(), n, 1.0F, other.data(), n);
  };
  l.merge(0.7F);
  sgemm(0.7F);
  for (std::size_t i = 0; i < other.size(); ++i)
    if (!(std::fabs(l.w[i] - other[i]) <= 1e-5F)) measure::fail("the library and sgemm differ");
  float s = 1e-6F;  // forth and back, so that W stays what it is
  measure::alternate(
      state, [&] { l.merge(s); }, [&] { sgemm(s), s = -s; }, "of_blas");
  report(state, l);
#else
  static_cast<void>(kernel);
  state.SkipWithError("left out: OpenBLAS was not found (Debian: libopenblas-dev)");
#endif
}

/// AVX2's kernel, or none.
ts::low_rank_kernel avx2_kernel() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return [](ts::matrix w, std::size_t first, ts::const_matrix up, ts::packed_factor down, float s) noexcept {
      ts::add_low_rank(ts::arch_tag::avx2{}, w, first, up, down, s);
    };
#endif
  return nullptr;
}

void low_rank_against_memory(benchmark::State& state) {
  layer l = layer_of(state);
  l.verify();
  float s = 1e-6F;
  values other = l.w;
  measure::alternate(
      state, [&] { l.merge(s); },
      [&] {
        for (float& x : other) x += s;
        benchmark::ClobberMemory();
        s = -s;
      },
      "of_memory");
  report(state, l);
}

void layers(benchmark::internal::Benchmark* b) {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>(320, 320), {1280, 1280}, {1280, 5120}, {1280, 11520}})
    for (const std::int64_t r : {8, 32, 128}) b->Args({rows, cols, r});
  b->ArgNames({"out", "in", "r"})->UseManualTime();
}

}  // namespace

BENCHMARK_CAPTURE(low_rank_against_blas, best, ts::best_low_rank())->Apply(layers);
BENCHMARK_CAPTURE(low_rank_against_blas, avx2, avx2_kernel())->Apply(layers);
BENCHMARK(low_rank_against_memory)->Apply(layers);
BENCHMARK_MAIN();
