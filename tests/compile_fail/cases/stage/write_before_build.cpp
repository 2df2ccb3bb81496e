// expect: tensorsmith: this stage cannot follow here
// SPDX-License-Identifier: MIT
#include "tensorsmith/stage/build.hpp"
#include "tensorsmith/stage/lower_to.hpp"
#include "tensorsmith/stage/open.hpp"
#include "tensorsmith/stage/write.hpp"

namespace ts = tensorsmith;

ts::chain<ts::package> open();

int main() {
#ifdef FIXED
  auto written = open() | ts::build<ts::tags::sd15>() | ts::lower_to<ts::tags::ort>() | ts::write<ts::tags::onnx_folder>("out");
#else
  auto written = open() | ts::write<ts::tags::onnx_folder>("out");
#endif
  return written ? 0 : 1;
}
