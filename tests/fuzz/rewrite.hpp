// SPDX-License-Identifier: MIT
//
// tests/fuzz/rewrite.hpp: tensors written into memory in each of the formats.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fuzz/property.hpp"
#include "tensorsmith/format/safetensors/write.hpp"

namespace fuzz {

using file_ptr = std::shared_ptr<const tensorsmith::byte_source>;

inline file_ptr in_memory(std::vector<std::byte> bytes, std::string name) {
  return std::make_shared<tensorsmith::memory_source>(std::move(name), std::move(bytes));
}

/// @fails as plan_safetensors
inline tensorsmith::result<file_ptr> as_safetensors(const catalog& tensors, tensorsmith::safetensors_metadata metadata = {}) {
  TENSORSMITH_TRY(const auto plan, tensorsmith::plan_safetensors(tensors, std::move(metadata)));
  std::vector<std::byte> bytes(static_cast<std::size_t>(plan.size));
  tensorsmith::memory_sink sink(bytes);
  TENSORSMITH_CHECK(sink.write_at(0, std::as_bytes(std::span(plan.header))));
  const auto work = tensorsmith::safetensors_placements(plan, tensors, sink);
  TENSORSMITH_CHECK(tensorsmith::execute(work, one_thread()));
  return in_memory(std::move(bytes), "again.safetensors");
}

}  // namespace fuzz
