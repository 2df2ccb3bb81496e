// SPDX-License-Identifier: MIT
//
// tests/support/bounded_memory.hpp: the rule on memory that refusing a file keeps to.
#pragma once

#include <algorithm>
#include <cstdint>

#include "support/catch.hpp"
#include "tensorsmith/io/os.hpp"

namespace support {

/// Runs `work` and checks that the peak memory grew by at most 64 MiB + 8 × the bytes that are present (U3).
template <class Work>
void bounded_memory([[maybe_unused]] std::uint64_t bytes_present, Work&& work) {
  const auto before = tensorsmith::os::memory_in_use();
  work();
  const auto after = tensorsmith::os::memory_in_use();
  CHECK(after.peak_resident >= before.peak_resident);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // their shadow memory is not ours
  CHECK(after.peak_resident <= std::max(before.peak_resident, before.resident + (64u << 20) + 8 * bytes_present));
#endif
}

}  // namespace support
