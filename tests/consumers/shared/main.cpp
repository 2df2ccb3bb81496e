// SPDX-License-Identifier: MIT
//
// A program of somebody else: opens a weights file in two sources and compares what they see.
#include <cstdio>
#include <string>

#include <tensorsmith/tensor.hpp>

#include "other.hpp"

#if defined(EXPECT_SINGLE_INCLUDE) != defined(TENSORSMITH_SINGLE_INCLUDE)
#error "the other form of the headers was found"
#endif

namespace ts = tensorsmith;

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string path = std::string(argv[1]) + "/sd1/diffusers/unet/diffusion_pytorch_model.safetensors";
  const auto model = ts::open<ts::tags::safetensors_file>(path);
  if (!model) return std::fprintf(stderr, "%s\n", model.error().message().c_str()), 1;
  const std::size_t count = model.value().components.front().weights.size();
  std::printf("%zu tensors, tensorsmith %s\n", count, TENSORSMITH_VERSION);
  return count > 0 && count == tensors_of(path) ? 0 : 1;
}
