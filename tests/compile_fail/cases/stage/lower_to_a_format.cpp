// expect: tensorsmith: lower_to<Target> needs a target tag
// SPDX-License-Identifier: MIT
#include "tensorsmith/format/onnx/tag.hpp"
#include "tensorsmith/stage/lower_to.hpp"

namespace ts = tensorsmith;

int main() {
#ifdef FIXED
  (void)ts::lower_to<ts::tags::ort_cpu>();
#else
  (void)ts::lower_to<ts::tags::onnx_folder>();
#endif
}
