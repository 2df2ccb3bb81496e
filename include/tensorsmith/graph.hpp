// SPDX-License-Identifier: MIT
//
// tensorsmith/graph.hpp: entry header of graphs: representation, builder, passes, targets; no containers.
#pragma once

#include "tensorsmith/graph/builder.hpp"
#include "tensorsmith/graph/dim.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/graph/nn.hpp"
#include "tensorsmith/graph/ops.hpp"
#include "tensorsmith/graph/parameters.hpp"
#include "tensorsmith/graph/shapes.hpp"
#include "tensorsmith/graph/verify.hpp"
#include "tensorsmith/pass/expose_stored_weights.hpp"
#include "tensorsmith/pass/remove_unused.hpp"
#include "tensorsmith/target/ort.hpp"
#include "tensorsmith/version.hpp"
