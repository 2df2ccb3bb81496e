// SPDX-License-Identifier: MIT
//
// Fuzzing read_safetensors_header and safetensors_catalog: what is accepted is written, and read again as the same.
#include <algorithm>

#include "fuzz/mutate.hpp"
#include "fuzz/rewrite.hpp"
#include "tensorsmith/format/safetensors/read.hpp"

namespace {

using namespace tensorsmith;

void check_header(const safetensors_header& header, std::uint64_t file_bytes) {
  std::uint64_t reached = 0;
  for (const safetensors_entry& e : header.entries) {
    if (e.begin != reached || e.end < e.begin || (e.end - e.begin) * 8 != element_count(e.shape) * bits_of(e.type))
      fuzz::violated("tensors have the bytes of their shape and lie one behind the other", quoted(e.name));
    reached = e.end;
  }
  if (header.data_offset + reached != file_bytes) fuzz::violated("tensors cover the file", std::to_string(reached));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_bound bound(size);
  const auto file = fuzz::as_file({data, size}, "m.safetensors");
  (void)looks_like_safetensors(*file);
  auto header = read_safetensors_header(*file, fuzz::limits_for(size));
  if (!header) return fuzz::check_refusal(header.error()), 0;
  check_header(*header, size);
  auto metadata = header->metadata;
  const auto tensors = safetensors_catalog(file, *header);
  if (!tensors) fuzz::violated("a proven header makes a catalog", tensors.error().message());
  fuzz::small_tensors small;
  if (!fuzz::take_small(*tensors, small)) fuzz::violated("a proven file can be read", "safetensors");
  if (small.tensors.empty()) return 0;
  const auto again = fuzz::as_safetensors(small.tensors, metadata);
  if (!again) fuzz::violated("what was read can be written", again.error().message());
  const auto second = read_safetensors_header(**again);
  if (!second) fuzz::violated("what was written can be read", second.error().message());
  std::sort(metadata.begin(), metadata.end());
  if (second->metadata != metadata) fuzz::violated("metadata stays", std::to_string(metadata.size()));
  const auto read = safetensors_catalog(*again, *second);
  if (!read) fuzz::violated("what was written can be read", read.error().message());
  fuzz::check_same(small, *read, "safetensors");
  return 0;
}

/// Half of the mutations work on the header's text alone; length and data follow it.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  return fuzz::mutate(data, size, most, seed, fuzz::mutate_safetensors);
}
