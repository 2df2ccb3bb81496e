// expect: tensorsmith: this stage cannot follow here
// SPDX-License-Identifier: MIT
#include "tensorsmith/stage/build.hpp"
#include "tensorsmith/stage/lower_to.hpp"
#include "tensorsmith/stage/open.hpp"

namespace ts = tensorsmith;

ts::chain<ts::package> open();

int main() {
#ifdef FIXED
  auto graphs = open() | ts::build<ts::tags::sd15>() | ts::lower_to<ts::tags::ort>();
#else
  auto graphs = open() | ts::lower_to<ts::tags::ort>();
#endif
  return graphs ? 0 : 1;
}
