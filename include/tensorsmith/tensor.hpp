// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor.hpp: entry header of the tensor model and the weight containers; no graphs. Needs nlohmann/json and zlib.
#pragma once

#include "tensorsmith/core/dtype_tags.hpp"
#include "tensorsmith/format/checkpoint/read.hpp"
#include "tensorsmith/format/diffusers/read.hpp"
#include "tensorsmith/format/diffusers/tag.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/format/safetensors/sharded.hpp"
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/format/torch/tag.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/stage/cast.hpp"
#include "tensorsmith/stage/open.hpp"
#include "tensorsmith/stage/readers.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/views.hpp"
#include "tensorsmith/version.hpp"
