// SPDX-License-Identifier: MIT
//
// tensorsmith/format/gguf/tag.hpp: the tag that names the format in templates: open<gguf_file>(path).
#pragma once

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace tags {

/// A .gguf file, as llama.cpp and stable-diffusion.cpp use it.
struct gguf_file {};

}  // namespace tags
TENSORSMITH_END_NAMESPACE
