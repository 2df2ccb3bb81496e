// SPDX-License-Identifier: MIT
//
// tensorsmith/merge.hpp: the merge kernels of adapters and checkpoints in portable C++; nothing beyond <cmath> and <cstddef> is included.
//
// Include this to vendor the kernels into another program; tensorsmith/merge/simd.hpp adds those of the platform.
#pragma once

#include "tensorsmith/merge/blend.hpp"
#include "tensorsmith/merge/dora.hpp"
#include "tensorsmith/merge/low_rank.hpp"
#include "tensorsmith/merge/lycoris.hpp"
#include "tensorsmith/merge/matrix.hpp"
#include "tensorsmith/merge/orthogonal.hpp"
