// SPDX-License-Identifier: MIT
//
// Compiled with -fno-rtti: readers and writers of weights need no run-time types.
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/format/safetensors/write_sharded.hpp"
#include "tensorsmith/format/torch/write.hpp"
