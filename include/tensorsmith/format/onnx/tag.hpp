// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/tag.hpp: the tags of ONNX output. Include this to name the format: write<onnx_folder>(path).
#pragma once

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace tags {

/// A pipeline folder: one folder a component with model.onnx, its weights and config.json; side files beside them.
struct onnx_folder {};

}  // namespace tags
TENSORSMITH_END_NAMESPACE
