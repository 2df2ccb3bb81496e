// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/onnx_pipeline.hpp: finished folders of ONNX graphs as models that adapters and embeddings are merged into.
//
// Include this to open a folder that this library, Optimum, diffusers' scripts or onnx-web wrote, to change parameters under the networks'
// names, and to write the folder again. Protobuf is not needed.
#pragma once

#include "tensorsmith/arch/onnx_pipeline_open.hpp"
#include "tensorsmith/arch/onnx_pipeline_write.hpp"
