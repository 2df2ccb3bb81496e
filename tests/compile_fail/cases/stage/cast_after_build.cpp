// expect: tensorsmith: this stage cannot follow here
// SPDX-License-Identifier: MIT
#include "tensorsmith/stage/build.hpp"
#include "tensorsmith/stage/cast.hpp"
#include "tensorsmith/stage/open.hpp"

namespace ts = tensorsmith;

ts::chain<ts::package> open();

int main() {
#ifdef FIXED
  auto graphs = open() | ts::cast<ts::tags::f16>() | ts::build<ts::tags::sd15>();
#else
  auto graphs = open() | ts::build<ts::tags::sd15>() | ts::cast<ts::tags::f16>();
#endif
  return graphs ? 0 : 1;
}
