// SPDX-License-Identifier: MIT
#include "other.hpp"

#include <tensorsmith/tensor.hpp>

std::size_t tensors_of(const std::string& path) {
  using namespace tensorsmith;
  const auto model = open<tags::safetensors_file>(path) | cast<tags::f32>();
  return model ? model.value().components.front().weights.size() : 0;
}
