// SPDX-License-Identifier: MIT
//
// tests/support/names.hpp: the names of a package's tensors.
#pragma once

#include <string>
#include <vector>

#include "tensorsmith/tensor/package.hpp"

namespace support {

/// Those of the first component, in order.
inline std::vector<std::string> names(const tensorsmith::package& in) {
  std::vector<std::string> out;
  for (const auto& entry : in.components[0].weights.entries()) out.push_back(entry.name);
  return out;
}

}  // namespace support
