// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/select.hpp: `… | select({"unet.*"}) | drop({"*.position_ids"}) | …`: keeping tensors by name patterns.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"
#include "tensorsmith/tensor/filter.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Keeps what is wanted; see filter_tensors.
struct select_stage {
  using input = package;
  using output = package;
  static constexpr std::string_view name = "select";

  std::vector<std::string> wanted, unwanted;

  result<package> run(package in, job& run) const {
    TENSORSMITH_TRY(const filtered_tensors counts, filter_tensors(in, wanted, unwanted));
    run.info("select", std::to_string(counts.kept) + " tensors stay, " + std::to_string(counts.dropped) + " are left out");
    return in;
  }
};

/// Stage: only the tensors that one of the patterns matches, by their own names or as "component.tensor". @fails usage (a pattern that
/// matches nothing)
inline select_stage select(std::vector<std::string> patterns) { return {std::move(patterns), {}}; }

/// Stage: all tensors but those that one of the patterns matches. @fails usage (a pattern that matches nothing; no tensor is left)
inline select_stage drop(std::vector<std::string> patterns) { return {{}, std::move(patterns)}; }

TENSORSMITH_END_NAMESPACE
