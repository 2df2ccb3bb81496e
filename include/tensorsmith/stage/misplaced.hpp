// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/misplaced.hpp: what the compiler says when a stage stands in the wrong place of a chain.
#pragma once

#include <concepts>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

template <class Stage>
concept works_on_graphs = std::same_as<typename Stage::input, bundle>;
template <class Stage>
concept works_on_weights = std::same_as<typename Stage::input, package>;

template <works_on_graphs Stage>
struct misplaced<Stage, package> {
  static_assert(!works_on_graphs<Stage>,
                "tensorsmith: this stage works on graphs, but only weights flow here; put build<architecture>() before it");
};

template <works_on_weights Stage>
struct misplaced<Stage, bundle> {
  static_assert(!works_on_weights<Stage>, "tensorsmith: this stage works on weights, but graphs flow here; put it before build<…>()");
};

}  // namespace detail

TENSORSMITH_END_NAMESPACE
