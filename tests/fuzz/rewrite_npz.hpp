// SPDX-License-Identifier: MIT
//
// tests/fuzz/rewrite_npz.hpp: tensors written as a .npz file in memory.
#pragma once

#include "fuzz/rewrite.hpp"
#include "tensorsmith/format/numpy/npy.hpp"
#include "tensorsmith/format/numpy/npz.hpp"
#include "tensorsmith/format/numpy/write.hpp"

namespace fuzz {

/// @fails as npz_layout::plan
inline tensorsmith::result<file_ptr> as_npz(const catalog& tensors) {
  TENSORSMITH_TRY(const auto layout, tensorsmith::npz_layout::plan(tensors));
  std::vector<std::byte> bytes(static_cast<std::size_t>(layout.file_bytes()));
  tensorsmith::memory_sink sink(bytes);
  TENSORSMITH_CHECK(layout.write(tensors, sink, one_thread()));
  return in_memory(std::move(bytes), "again.npz");
}

}  // namespace fuzz
