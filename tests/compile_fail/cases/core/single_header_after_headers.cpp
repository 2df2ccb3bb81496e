// expect: this source includes the separate headers and a single header
// SPDX-License-Identifier: MIT
#ifndef FIXED
#include "tensorsmith/core/config.hpp"
#endif
#include "../../../../single_include/tensorsmith/tensor.hpp"

int main() {}
