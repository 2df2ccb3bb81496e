// SPDX-License-Identifier: MIT
//
// Fuzzing a whole conversion in memory: any bytes, read by what they are; kept or cast; written as safetensors, torch checkpoint
// or .npz; read again by what they are, and the same.
#include "fuzz/mutate_gguf.hpp"
#include "fuzz/mutate_legacy.hpp"
#include "fuzz/mutate_zip.hpp"
#include "fuzz/rewrite_npz.hpp"
#include "fuzz/rewrite_torch.hpp"
#include "tensorsmith/format/checkpoint/read.hpp"
#include "tensorsmith/tensor/cast.hpp"

namespace {

using namespace tensorsmith;

/// The floating-point tensors as `to`; the others as they are.
catalog cast_all(const catalog& tensors, dtype to) {
  catalog out;
  for (const catalog_entry& e : tensors.entries()) {
    tensor_ref tensor = e.tensor;
    if (is_floating(tensor.type()) && convertible(tensor.type(), to)) {
      auto other = cast(tensor, to);
      if (!other) fuzz::violated("what is convertible can be cast", other.error().message());
      tensor = std::move(*other);
    }
    if (!out.add(e.name, std::move(tensor), e.origin)) fuzz::violated("names are unique", e.name);
  }
  return out;
}

bool mutate_any(std::string& file, fuzz::dice& roll, std::size_t most) {
  const std::string_view start(file);
  if (start.substr(0, 2) == "PK") return fuzz::mutate_zip(file, roll, most);
  if (start.substr(0, 4) == "GGUF") return fuzz::mutate_gguf(file, roll, most);
  if (start.substr(0, 6) == "\x93NUMPY") return fuzz::mutate_npy(file, roll, most);
  if (start.substr(0, 1) == "\x80" || (start.size() > 262 && start.substr(257, 5) == "ustar")) return fuzz::mutate_legacy(file, roll, most);
  return fuzz::mutate_safetensors(file, roll, most);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_bound bound(size);
  job run = fuzz::one_thread();
  run.limits = fuzz::limits_for(size);
  const auto read = read_checkpoint(fuzz::as_file({data, size}, size % 3 ? "m.bin" : "m.safetensors"), run);
  if (!read) return fuzz::check_refusal(read.error()), 0;
  fuzz::check_notes(run.notes);
  for (const std::string& line : read->ignored) fuzz::check_line(line);
  const std::size_t turn = size + (size ? data[size / 2] : 0);
  constexpr dtype types[] = {dtype::f32, dtype::f16, dtype::bf16, dtype::f64};
  fuzz::small_tensors small;
  if (!fuzz::take_small(turn % 2 ? read->tensors : cast_all(read->tensors, types[turn / 2 % 4]), small) || small.tensors.empty()) return 0;
  const auto again = turn / 8 % 3 == 0   ? fuzz::as_safetensors(small.tensors)
                     : turn / 8 % 3 == 1 ? fuzz::as_torch(small.tensors)
                                         : fuzz::as_npz(small.tensors);
  if (!again) {
    fuzz::check_refusal(again.error());
    if (again.error().code != errc::unsupported && again.error().code != errc::mismatch)
      fuzz::violated("what was read can be written", again.error().message());
    return 0;
  }
  const auto second = read_checkpoint(*again, run = fuzz::one_thread());
  if (!second) fuzz::violated("what was written can be read", second.error().message());
  fuzz::check_same(small, second->tensors, "conversion");
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  return fuzz::mutate(data, size, most, seed, mutate_any);
}
