// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/tag.hpp: the tag of files that torch.save writes. Include this to name the format.
#pragma once

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace tags {

/// A checkpoint written by torch.save: .pt, .pth, .ckpt, .bin.
struct torch_file {};

}  // namespace tags
TENSORSMITH_END_NAMESPACE
