// SPDX-License-Identifier: MIT
//
// Every algorithm of the LoRA family on one layer of f32, one thread, memory to memory, preparation of its factors included. `of_plain`: speed
// as a ratio to the same pass without a change (read, size of the change, write), by alternation in this process.
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "support/measure.hpp"
#include "tensorsmith/tensor/dependent_change.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/merged.hpp"

namespace ts = tensorsmith;

namespace {

constexpr std::size_t out_size = 1280, in_size = 1280, rank = 16;

ts::tensor_ref random_tensor(ts::shape_type shape, float size) {
  std::vector<float> values(ts::element_count(shape));
  unsigned state = static_cast<unsigned>(values.size());
  for (float& x : values) {
    state = state * 1664525u + 1013904223u;
    x = size * static_cast<float>(static_cast<int>(state >> 8) - (1 << 23)) / static_cast<float>(1 << 23);
  }
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return ts::in_memory({"t", ts::dtype::f32, std::move(shape)}, std::move(bytes));
}

ts::packed_product product(std::size_t r) { return {random_tensor({out_size, r}, 0.1F), random_tensor({r, in_size}, 0.1F)}; }
ts::weight_change_ptr low_rank() { return std::make_shared<ts::low_rank_change>(product(rank), 0.5F); }
ts::weight_change_ptr dora(bool by_rows) {
  return std::make_shared<ts::dora_change>(low_rank(), random_tensor({by_rows ? out_size : in_size}, 1.0F), by_rows, 1, ts::dora_strength::interpolate, 0.5);
}
ts::weight_change_ptr rotation(ts::shape_type blocks) {
  return std::make_shared<ts::rotation_change>(ts::rotation_parameters{.blocks = random_tensor(std::move(blocks), 0.02F), .rescale = {}}, 1.0);
}

ts::weight_change_ptr change_of(const std::string& kind) {
  if (kind == "lora") return low_rank();
  if (kind == "loha") return std::make_shared<ts::hadamard_change>(product(rank), product(rank), 0.5F);
  if (kind == "lokr")
    return std::make_shared<ts::kronecker_change>(ts::kronecker_operand(random_tensor({32, 32}, 0.1F)), ts::kronecker_operand(random_tensor({40, 40}, 0.1F)), 0.5F);
  if (kind == "full") return std::make_shared<ts::full_change>(random_tensor({out_size, in_size}, 0.1F), 0.5F);
  if (kind == "ia3_in") return std::make_shared<ts::scaling_change>(random_tensor({in_size}, 0.1F), true, 1, 0.5F);
  if (kind == "glora") return std::make_shared<ts::glora_change>(random_tensor({in_size, rank}, 0.1F), random_tensor({rank, in_size}, 0.1F), product(rank), 1, 0.5F);
  if (kind == "oft_4") return rotation({out_size / 4, 4, 4});
  if (kind == "oft_320") return rotation({4, 320, 320});
  if (kind == "boft_8") return rotation({4, out_size / 8, 8, 8});
  return dora(kind == "dora_out");
}

std::vector<std::byte> merged(const ts::tensor_ref& weight, std::vector<ts::weight_change_ptr> changes, std::size_t tile_bytes = ts::job().tile_bytes) {
  const auto recipe = std::make_shared<ts::merged_recipe>(weight.source, std::move(changes));
  std::vector<std::byte> out(weight.info().bytes());
  ts::memory_sink sink(out);
  const ts::placement whole{recipe, {ts::output_slot{&sink, 0}}, "w"};
  ts::job run;
  run.threads = 1;
  run.tile_bytes = tile_bytes;
  if (const auto done = ts::execute(std::span(&whole, 1), run); !done) measure::fail(done.error().message().c_str());
  return out;
}

void merge(benchmark::State& state, const std::string& kind) {
  const ts::tensor_ref weight = random_tensor({out_size, in_size}, 0.05F);
  const auto result = merged(weight, {change_of(kind)});
  if (result == merged(weight, {})) measure::fail("nothing changed");
  if (result != merged(weight, {change_of(kind)}, 1 << 20)) measure::fail("the result depends on the tiles");
  for (std::size_t i = 0; i < result.size(); i += sizeof(float)) {
    float x;
    std::memcpy(&x, result.data() + i, sizeof x);
    if (!std::isfinite(x)) measure::fail("a value is not finite");
  }
  const ts::weight_change_ptr change = change_of(kind);
  measure::alternate(
      state, [&] { benchmark::DoNotOptimize(merged(weight, {change})); }, [&] { benchmark::DoNotOptimize(merged(weight, {})); }, "of_plain");
  state.SetBytesProcessed(static_cast<std::int64_t>(2 * weight.info().bytes()) * static_cast<std::int64_t>(state.iterations()));
}

}  // namespace

BENCHMARK_CAPTURE(merge, lora, std::string("lora"))->UseManualTime();
BENCHMARK_CAPTURE(merge, loha, std::string("loha"))->UseManualTime();
BENCHMARK_CAPTURE(merge, lokr, std::string("lokr"))->UseManualTime();
BENCHMARK_CAPTURE(merge, full, std::string("full"))->UseManualTime();
BENCHMARK_CAPTURE(merge, ia3_on_input, std::string("ia3_in"))->UseManualTime();
BENCHMARK_CAPTURE(merge, glora, std::string("glora"))->UseManualTime();
BENCHMARK_CAPTURE(merge, dora_by_rows, std::string("dora_out"))->UseManualTime();
BENCHMARK_CAPTURE(merge, dora_by_columns, std::string("dora_in"))->UseManualTime();
BENCHMARK_CAPTURE(merge, oft_blocks_of_4, std::string("oft_4"))->UseManualTime();
BENCHMARK_CAPTURE(merge, oft_blocks_of_320, std::string("oft_320"))->UseManualTime();
BENCHMARK_CAPTURE(merge, boft_blocks_of_8, std::string("boft_8"))->UseManualTime();
BENCHMARK_MAIN();
