// SPDX-License-Identifier: MIT
//
// tensorsmith/format/checkpoint/tag.hpp: the tag of weights in any container: open<weights_file>(path).
#pragma once

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace tags {
/// Whatever a user may call the weights: a file of any container that is read, the index of shards, or a folder. Contents decide.
struct weights_file {};
}  // namespace tags

TENSORSMITH_END_NAMESPACE
