// SPDX-License-Identifier: MIT
//
// Blends of one layer, memory to memory, one thread: two or three models of one type, the same type out. `of_memcpy`: speed, in bytes that are
// read and written, as a ratio to memcpy of one source (which also reads and writes), by alternation in this process.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "support/measure.hpp"
#include "tensorsmith/tensor/blended.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

const ts::shape_type shape{4096, 4096};  // beyond the caches, so that memory is the limit

std::vector<std::byte> random_bytes(ts::dtype type, unsigned seed) {
  std::vector<float> values(ts::element_count(shape));
  unsigned state = seed * 2654435761u + 1;
  for (float& x : values) {
    state = state * 1664525u + 1013904223u;
    x = 0.05F * static_cast<float>(static_cast<int>(state >> 8) - (1 << 23)) / static_cast<float>(1 << 23);
  }
  std::vector<std::byte> bytes(ts::byte_count(type, values.size()));
  ts::convert_elements(ts::dtype::f32, reinterpret_cast<const std::byte*>(values.data()), type, bytes.data(), values.size());
  return bytes;
}

double value_at(ts::dtype type, const std::vector<std::byte>& bytes, std::size_t i) {
  double out = 0;
  ts::convert_elements(type, bytes.data() + ts::byte_count(type, i), ts::dtype::f64, reinterpret_cast<std::byte*>(&out), 1);
  return out;
}

void run(const ts::tensor_ref& tensor, std::vector<std::byte>& out) {
  ts::memory_sink sink(out);
  const ts::placement whole{tensor.source, {ts::output_slot{&sink, 0}}, "w"};
  ts::job one;
  one.threads = 1;
  if (const auto done = ts::execute({&whole, 1}, one); !done) measure::fail(done.error().message().c_str());
}

void blend(benchmark::State& state, ts::blend_mode mode, ts::dtype type) {
  const std::size_t models = mode == ts::blend_mode::add_difference ? 3 : 2;
  std::vector<std::vector<std::byte>> sources;
  std::vector<ts::blend_term> terms;
  for (std::size_t k = 0; k < models; ++k) {
    sources.push_back(random_bytes(type, static_cast<unsigned>(k + 1)));
    terms.push_back({ts::in_memory({"w", type, shape}, sources.back()), "w"});
  }
  const auto made = ts::blended(std::move(terms), mode, mode == ts::blend_mode::weighted_sum ? std::vector<double>{0.7, 0.3} : std::vector<double>{0.3}, {.to = type});
  if (!made) measure::fail(made.error().message().c_str());
  std::vector<std::byte> out(sources[0].size()), copy(sources[0].size());
  run(*made, out);
  double dot = 0, aa = 0, bb = 0;
  if (mode == ts::blend_mode::slerp)
    for (std::size_t i = 0; i < ts::element_count(shape); ++i) {
      const double a = value_at(type, sources[0], i), b = value_at(type, sources[1], i);
      dot += a * b, aa += a * a, bb += b * b;
    }
  const double angle = std::acos(dot / std::sqrt(aa * bb)), wa = std::sin(0.7 * angle) / std::sin(angle), wb = std::sin(0.3 * angle) / std::sin(angle);
  for (std::size_t i = 0; i < ts::element_count(shape); i += 997) {
    const double a = value_at(type, sources[0], i), b = value_at(type, sources[1], i), c = models > 2 ? value_at(type, sources[2], i) : 0;
    const double exact = mode == ts::blend_mode::weighted_sum ? 0.7 * a + 0.3 * b : mode == ts::blend_mode::slerp ? wa * a + wb * b : a + 0.3 * (b - c);
    const double step = type == ts::dtype::f32 ? 0x1p-22 * 0.05 : 1.001 * (type == ts::dtype::f16 ? 0x1p-15 : 0x1p-12);  // of values up to 0.08
    if (!(std::fabs(value_at(type, out, i) - exact) <= step)) measure::fail("a blended value is not what the formula gives");
  }
  const double traffic = static_cast<double>(models + 1) / 2;  // of memcpy's
  double work = 0, baseline = 0;
  for (auto _ : state) {
    const double start = measure::seconds();
    run(*made, out);
    const double middle = measure::seconds();
    std::memcpy(copy.data(), sources[0].data(), copy.size());
    benchmark::DoNotOptimize(copy.data());
    benchmark::ClobberMemory();
    baseline += measure::seconds() - middle;
    work += middle - start;
    state.SetIterationTime(middle - start);
  }
  state.counters["of_memcpy"] = traffic * baseline / work;
  state.SetBytesProcessed(static_cast<std::int64_t>((models + 1) * out.size()) * static_cast<std::int64_t>(state.iterations()));
}

}  // namespace

BENCHMARK_CAPTURE(blend, weighted_sum_f16, ts::blend_mode::weighted_sum, ts::dtype::f16)->UseManualTime();
BENCHMARK_CAPTURE(blend, weighted_sum_bf16, ts::blend_mode::weighted_sum, ts::dtype::bf16)->UseManualTime();
BENCHMARK_CAPTURE(blend, weighted_sum_f32, ts::blend_mode::weighted_sum, ts::dtype::f32)->UseManualTime();
BENCHMARK_CAPTURE(blend, add_difference_f16, ts::blend_mode::add_difference, ts::dtype::f16)->UseManualTime();
BENCHMARK_CAPTURE(blend, add_difference_f32, ts::blend_mode::add_difference, ts::dtype::f32)->UseManualTime();
BENCHMARK_CAPTURE(blend, slerp_f16, ts::blend_mode::slerp, ts::dtype::f16)->UseManualTime();
BENCHMARK_CAPTURE(blend, slerp_f32, ts::blend_mode::slerp, ts::dtype::f32)->UseManualTime();
BENCHMARK_MAIN();
