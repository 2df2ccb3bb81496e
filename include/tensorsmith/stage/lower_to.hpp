// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/lower_to.hpp: `… | build<…>() | lower_to<ort_cuda>() | …`: composites become what the target has.
#pragma once

#include <string_view>
#include <utility>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/stage/misplaced.hpp"
#include "tensorsmith/target/ort.hpp"
#include "tensorsmith/target/target.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Lowers every graph of a bundle by the overload `lower(Target, …)`; a target without one of its own gets its fallback's.
template <class Target>
struct lower_stage {
  using input = bundle;
  using output = bundle;
  static constexpr std::string_view name = "lower_to";

  ort_options options;

  result<bundle> run(bundle in, job& run) const { return lower(Target{}, std::move(in), options, run); }
};

/// Stage: graphs in the operators of `Target`. @fails usage (operator set), internal
template <class Target>
lower_stage<Target> lower_to(ort_options options = {}) {
  static_assert(ort_target<Target>,
                "tensorsmith: lower_to<Target> needs a target tag such as tags::ort_cpu; formats belong into write<…>, architectures into build<…>");
  return {options};
}

TENSORSMITH_END_NAMESPACE
