// SPDX-License-Identifier: MIT
//
// Fuzzing read_torch on files of torch 0.1 to 1.5 and on bare pickles: tensors are written and read again as the same.
#include "fuzz/mutate_legacy.hpp"
#include "fuzz/rewrite_torch.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size >= 2 && data[0] == 'P' && data[1] == 'K') return -1;  // zip containers have a target of their own
  const fuzz::memory_bound bound(size);
  const auto read = tensorsmith::read_torch(fuzz::as_file({data, size}, "m.pt"), fuzz::limits_for(size));
  if (!read) return fuzz::check_refusal(read.error()), 0;
  for (const tensorsmith::torch_ignored& part : read->ignored) fuzz::check_line(part.text());
  fuzz::check_notes(read->notes);
  fuzz::check_rewritten(read->tensors, size);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  return fuzz::mutate(data, size, most, seed, fuzz::mutate_legacy);
}
