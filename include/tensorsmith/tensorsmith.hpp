// SPDX-License-Identifier: MIT
//
// tensorsmith/tensorsmith.hpp: everything but ext/: open, cast, build, lower, write. Needs nlohmann/json, zlib and onnx (protobuf).
#pragma once

#include "tensorsmith/arch/combine_adapters.hpp"
#include "tensorsmith/graph.hpp"
#include "tensorsmith/stage/blend.hpp"
#include "tensorsmith/stage/build.hpp"
#include "tensorsmith/stage/cast.hpp"
#include "tensorsmith/stage/dedupe.hpp"
#include "tensorsmith/stage/fuse.hpp"
#include "tensorsmith/stage/lower_to.hpp"
#include "tensorsmith/stage/merge_embedding.hpp"
#include "tensorsmith/stage/merge_lora.hpp"
#include "tensorsmith/stage/onnx_folder.hpp"
#include "tensorsmith/stage/open.hpp"
#include "tensorsmith/stage/prune.hpp"
#include "tensorsmith/stage/readers.hpp"
#include "tensorsmith/stage/rename.hpp"
#include "tensorsmith/stage/select.hpp"
#include "tensorsmith/stage/verify.hpp"
#include "tensorsmith/stage/write.hpp"
#include "tensorsmith/stage/write_onnx.hpp"
#include "tensorsmith/stage/write_weights.hpp"
#include "tensorsmith/tensor.hpp"
