// SPDX-License-Identifier: MIT
//
// Torch checkpoints: opening one with many tensors and reading all of it, checksums included.
//
// `of_bare` is the speed as a ratio to a baseline that alternates with the work in this process: one look at every byte of the
// pickle and the directory (open), zlib's CRC-32 and memcpy over the same bytes (read_all).
#include <zlib.h>

#include <cstring>
#include <string>
#include <vector>

#include "support/measure.hpp"
#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

using measure::fail;

/// A checkpoint in memory: `tensors` tensors of `elements` f32 each.
std::shared_ptr<ts::memory_source> checkpoint(std::size_t tensors, std::size_t elements) {
  ts::catalog weights;
  for (std::size_t i = 0; i < tensors; ++i) {
    std::vector<std::byte> bytes(4 * elements);
    for (std::size_t k = 0; k < elements; ++k) ts::detail::store_as(bytes.data() + 4 * k, static_cast<float>(k % 4099) + static_cast<float>(i));
    const std::string name = "model.diffusion_model.output_blocks." + std::to_string(i) + ".weight";
    if (!weights.add(name, ts::in_memory({name, ts::dtype::f32, {elements}}, std::move(bytes)), "bench")) fail("two names");
  }
  const auto layout = ts::torch_layout::plan(weights);
  if (!layout) fail("no layout");
  std::vector<std::byte> file(layout->file_bytes());
  ts::memory_sink sink(file);
  if (!layout->write(sink, ts::job{})) fail("the checkpoint could not be written");
  return std::make_shared<ts::memory_source>("memory", std::move(file));
}

void open(benchmark::State& state) {
  const auto tensors = static_cast<std::size_t>(state.range(0));
  const auto file = checkpoint(tensors, 1);
  measure::alternate(
      state,
      [&] {
        const auto read = ts::read_torch(file);
        if (!read || read->tensors.size() != tensors) fail("the checkpoint was not read");
      },
      [&] { benchmark::DoNotOptimize(::crc32(0, reinterpret_cast<const Bytef*>(file->resident().data()), static_cast<uInt>(file->size()))); });
  state.counters["ns_a_tensor"] = benchmark::Counter(static_cast<double>(tensors) * static_cast<double>(state.iterations()) * 1e-9,
                                                     benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void read_all(benchmark::State& state) {
  constexpr std::size_t tensors = 16, elements = std::size_t{4} << 20;
  const auto file = checkpoint(tensors, elements);
  const std::size_t bytes = 4 * tensors * elements;
  std::vector<std::byte> out(bytes), other(bytes);
  ts::memory_sink sink(out);
  ts::job run;
  run.threads = 1;
  const auto read = [&] {
    const auto opened = ts::read_torch(file);  // anew: a storage's checksum is verified once an opened file
    if (!opened) fail("the checkpoint was not read");
    std::vector<ts::placement> work;
    std::uint64_t at = 0;
    for (const ts::catalog_entry& e : opened->tensors.entries()) {
      work.push_back({e.tensor.source, {{&sink, at}}, e.name});
      at += e.tensor.info().bytes();
    }
    if (!ts::execute(work, run)) fail("the tensors could not be read");
  };
  read();
  if (ts::detail::load_as<float>(out.data() + 4 * elements + 8) != 3.0F) fail("wrong element");
  measure::alternate(state, read, [&] {
    std::memcpy(other.data(), out.data(), bytes);
    benchmark::DoNotOptimize(::crc32(0, reinterpret_cast<const Bytef*>(other.data()), static_cast<uInt>(bytes)));
  });
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * static_cast<std::int64_t>(state.iterations()));
}

}  // namespace

BENCHMARK(open)->Arg(1'000)->Arg(100'000)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(read_all)->UseManualTime();
BENCHMARK_MAIN();
