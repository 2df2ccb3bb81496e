// SPDX-License-Identifier: MIT
//
// tensorsmith/format/safetensors/tag.hpp: the tag that names the format in templates: open<safetensors_file>(path).
#pragma once

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace tags {
/// A single .safetensors file, or the index of a sharded one.
struct safetensors_file {};
}  // namespace tags

TENSORSMITH_END_NAMESPACE
