// expect: dtype_tag
// SPDX-License-Identifier: MIT
#include "tensorsmith/stage/cast.hpp"

int main() {
#ifdef FIXED
  (void)tensorsmith::cast<tensorsmith::tags::f16>();
#else
  (void)tensorsmith::cast<float>();
#endif
}
