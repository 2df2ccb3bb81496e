// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/memory.hpp: a tensor whose bytes are already in memory.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A tensor over owned bytes. @pre bytes.size() == info.bytes()
inline tensor_ref in_memory(tensor_info info, std::vector<std::byte> bytes) {
  auto source = std::make_shared<memory_source>(info.name, std::move(bytes));
  return {stored_tensor(std::move(source), 0, info.type, info.shape, info.name), 0};
}

TENSORSMITH_END_NAMESPACE
