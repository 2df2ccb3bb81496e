// SPDX-License-Identifier: MIT
//
// tensorsmith/format/diffusers/tag.hpp: the tag that names the format in templates: open<diffusers_folder>(path).
#pragma once

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace tags {
/// A folder as diffusers saves pipelines: model_index.json and one folder per component.
struct diffusers_folder {};
}  // namespace tags

TENSORSMITH_END_NAMESPACE
