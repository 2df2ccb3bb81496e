// expect: writable_format
// SPDX-License-Identifier: MIT
#include "tensorsmith/format/diffusers/tag.hpp"
#include "tensorsmith/stage/write.hpp"

namespace ts = tensorsmith;

int main() {
#ifdef FIXED
  (void)ts::write<ts::tags::onnx_folder>("out");
#else
  (void)ts::write<ts::tags::diffusers_folder>("out");
#endif
}
