// SPDX-License-Identifier: MIT
//
// tests/fuzz/rewrite_torch.hpp: tensors written as a torch checkpoint in memory, and the check that both formats keep them.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fuzz/rewrite.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/format/torch/write.hpp"

namespace fuzz {

/// @fails as torch_layout::plan
inline tensorsmith::result<file_ptr> as_torch(const catalog& tensors) {
  TENSORSMITH_TRY(const auto layout, tensorsmith::torch_layout::plan(tensors));
  std::vector<std::byte> bytes(static_cast<std::size_t>(layout.file_bytes()));
  tensorsmith::memory_sink sink(bytes);
  TENSORSMITH_CHECK(layout.write(sink, one_thread()));
  return in_memory(std::move(bytes), "again.pt");
}

/// The small tensors of an accepted file, written as safetensors or (every other time) as a torch checkpoint, are the same when
/// read again. Types and names that a format lacks are the only reason not to write.
inline void check_rewritten(const catalog& tensors, std::size_t turn) {
  using tensorsmith::errc;
  small_tensors small;
  if (!take_small(tensors, small) || small.tensors.empty()) return;
  const bool torch = turn / 2 % 2 == 0;
  const auto again = torch ? as_torch(small.tensors) : as_safetensors(small.tensors);
  if (!again) {
    check_refusal(again.error());
    if (again.error().code != errc::unsupported && again.error().code != errc::mismatch)
      violated("what was read can be written", again.error().message());
    return;
  }
  if (torch) {
    const auto read = tensorsmith::read_torch(*again);
    if (!read) violated("a checkpoint that was written can be read", read.error().message());
    check_same(small, read->tensors, "torch");
  } else {
    const auto read = tensorsmith::read_safetensors(*again);
    if (!read) violated("what was written can be read", read.error().message());
    check_same(small, *read, "safetensors");
  }
}

}  // namespace fuzz
