// SPDX-License-Identifier: MIT
//
// Fuzzing read_npy and read_npz: arrays are written as a .npz file and read again as the same.
#include "fuzz/mutate_zip.hpp"
#include "fuzz/rewrite_npz.hpp"

namespace {

using namespace tensorsmith;

void check_rewritten(const catalog& tensors) {
  fuzz::small_tensors small;
  if (!fuzz::take_small(tensors, small) || small.tensors.empty()) return;
  const auto again = fuzz::as_npz(small.tensors);
  if (!again) {  // names that a .npz file cannot have
    fuzz::check_refusal(again.error());
    if (again.error().code != errc::mismatch) fuzz::violated("arrays that were read can be written", again.error().message());
    return;
  }
  if (!looks_like_npz(**again)) fuzz::violated("a .npz file looks like one", quoted(small.tensors.entries()[0].name));
  const auto read = read_npz(*again);
  if (!read) fuzz::violated("what was written can be read", read.error().message());
  fuzz::check_same(small, read->tensors, "npz");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_bound bound(size);
  const limits bounds = fuzz::limits_for(size);
  const auto file = fuzz::as_file({data, size}, "arrays/m.npz");
  (void)looks_like_npz(*file);
  if (looks_like_npy(*file)) {
    const auto array = read_npy(file, bounds);
    if (!array) return fuzz::check_refusal(array.error()), 0;
    check_rewritten(*array);
    return 0;
  }
  const auto arrays = read_npz(file, bounds);
  if (!arrays) return fuzz::check_refusal(arrays.error()), 0;
  fuzz::check_notes(arrays->notes);
  for (const std::string& line : arrays->ignored) fuzz::check_line(line);
  check_rewritten(arrays->tensors);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  const bool zip = size > 2 && data[0] == 'P' && data[1] == 'K';
  return fuzz::mutate(data, size, most, seed, zip ? fuzz::mutate_zip : fuzz::mutate_npy);
}
