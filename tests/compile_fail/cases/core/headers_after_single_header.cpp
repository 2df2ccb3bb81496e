// expect: this source includes a single header and the separate headers
// SPDX-License-Identifier: MIT
#include "../../../../single_include/tensorsmith/tensor.hpp"
#ifndef FIXED
#include "tensorsmith/core/config.hpp"
#endif

int main() {}
