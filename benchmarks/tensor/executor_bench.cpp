// SPDX-License-Identifier: MIT
//
// The executor from memory to memory: same-dtype copy, transpose, f32 → f16. Each row reports the bytes it reads a second and
// `of_bare`: its speed as a ratio to the bare loop (memcpy, or the conversion kernel over one array) on the same bytes,
// measured in this process by alternation with the work itself.
#include <thread>
#include <vector>

#include "support/measure.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;

namespace {

using measure::fail;

constexpr std::size_t rows = 1280, cols = 5120, matrices = 8;  // 210 MB of f32: far larger than the caches

struct fixture {
  fixture() : in(rows * cols * 4 * matrices), out(in.size()), bare(in.size()) {
    for (std::size_t i = 0; i < in.size() / 4; ++i) ts::detail::store_as(in.data() + 4 * i, static_cast<float>(i % 4099) * 0.37f - 700.0f);
    source = std::make_shared<ts::memory_source>("memory", in);
  }
  ts::tensor_ref matrix(std::size_t i) const {
    return {ts::stored_tensor(source, i * rows * cols * 4, ts::dtype::f32, {rows, cols}, "m"), 0};
  }
  std::vector<std::byte> in, out, bare;
  std::shared_ptr<ts::memory_source> source;
};

fixture& shared() {
  static fixture f;
  return f;
}

enum class work { copy, transpose, half };

std::vector<ts::placement> plan(work kind, ts::memory_sink& sink) {
  std::vector<ts::placement> all;
  std::size_t offset = 0;
  for (std::size_t i = 0; i < matrices; ++i) {
    ts::tensor_ref m = shared().matrix(i);
    if (kind == work::transpose) m = ts::transposed(m).value();
    if (kind == work::half) m = ts::cast(m, ts::dtype::f16).value();
    all.push_back({m.source, {{&sink, offset}}, "m"});
    offset += m.info().bytes();
  }
  return all;
}

void run_bare(work kind, std::size_t threads) {
  fixture& f = shared();
  const std::size_t part = f.in.size() / threads;
  std::vector<std::thread> pool;
  for (std::size_t t = 0; t < threads; ++t)
    pool.emplace_back([&f, kind, part, t] {
      if (kind == work::half) ts::convert_elements(ts::dtype::f32, f.in.data() + t * part, ts::dtype::f16, f.bare.data() + t * part / 2, part / 4);
      else std::memcpy(f.bare.data() + t * part, f.in.data() + t * part, part);
    });
  for (std::thread& t : pool) t.join();
}

void verify(work kind) {
  fixture& f = shared();
  for (const std::size_t i : {std::size_t{0}, rows * cols - 1, 3 * rows * cols + 7 * cols + 11}) {
    const std::size_t m = i / (rows * cols), r = i % (rows * cols) / cols, c = i % cols;
    const auto x = ts::detail::load_as<float>(f.in.data() + 4 * i);
    if (kind == work::half) {
      if (ts::detail::load_as<std::uint16_t>(f.out.data() + 2 * i) != ts::f32_to_f16(x)) fail("wrong f16");
    } else {
      const std::size_t at = kind == work::copy ? i : m * rows * cols + c * rows + r;
      if (ts::detail::load_as<float>(f.out.data() + 4 * at) != x) fail("wrong element");
    }
  }
}

void executor(benchmark::State& state, work kind) {
  fixture& f = shared();
  ts::memory_sink sink(f.out);
  const auto all = plan(kind, sink);
  ts::job run;
  run.threads = static_cast<unsigned>(state.range(0));
  run_bare(kind, run.threads);  // touches the pages
  if (!ts::execute(all, run)) fail("the run failed");
  verify(kind);
  measure::alternate(
      state, [&] { if (!ts::execute(all, run)) fail("the run failed"); }, [&] { run_bare(kind, run.threads); });
  state.SetBytesProcessed(static_cast<std::int64_t>(f.in.size()) * static_cast<std::int64_t>(state.iterations()));
}

}  // namespace

BENCHMARK_CAPTURE(executor, copy, work::copy)->Arg(1)->Arg(2)->UseManualTime();
BENCHMARK_CAPTURE(executor, transpose, work::transpose)->Arg(1)->Arg(2)->UseManualTime();
BENCHMARK_CAPTURE(executor, f32_to_f16, work::half)->Arg(1)->Arg(2)->UseManualTime();
BENCHMARK_MAIN();
