// SPDX-License-Identifier: MIT
//
// Fuzzing read_gguf: tensors, decoded where they are quantized, are written as safetensors and read again as the same.
#include "fuzz/mutate_gguf.hpp"
#include "fuzz/rewrite.hpp"
#include "tensorsmith/format/gguf/read.hpp"
#include "tensorsmith/format/safetensors/read.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace tensorsmith;
  const fuzz::memory_bound bound(size);
  const auto file = fuzz::as_file({data, size}, "m.gguf");
  (void)looks_like_gguf(*file);
  const auto read = read_gguf(file, fuzz::limits_for(size));
  if (!read) return fuzz::check_refusal(read.error()), 0;
  for (const auto& [key, value] : read->metadata)
    if (key.size() + value.size() > 2 * size + 4096) fuzz::violated("reports of metadata stay short", std::to_string(value.size()));
  fuzz::small_tensors small;
  if (!fuzz::take_small(read->tensors, small)) fuzz::violated("a proven file can be read", "gguf");
  if (small.tensors.empty()) return 0;
  const auto again = fuzz::as_safetensors(small.tensors);
  if (!again) {
    fuzz::check_refusal(again.error());
    if (again.error().code != errc::mismatch) fuzz::violated("what was read can be written", again.error().message());
    return 0;
  }
  const auto second = read_safetensors(*again);
  if (!second) fuzz::violated("what was written can be read", second.error().message());
  fuzz::check_same(small, *second, "safetensors");
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  return fuzz::mutate(data, size, most, seed, fuzz::mutate_gguf);
}
