// expect: tensorsmith: build<Arch> needs an architecture tag
// SPDX-License-Identifier: MIT
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/stage/build.hpp"

namespace ts = tensorsmith;

int main() {
#ifdef FIXED
  (void)ts::build<ts::tags::sd15>();
#else
  (void)ts::build<ts::tags::safetensors_file>();
#endif
}
