// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/rename.hpp: `… | rename({rename_prefix("model.", ""), rename_pattern("*.gamma", "$1.weight")}) | …`.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"
#include "tensorsmith/tensor/rename.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Renames tensors by rules; see rename_tensors.
struct rename_stage {
  using input = package;
  using output = package;
  static constexpr std::string_view name = "rename";

  std::vector<rename_rule> rules;

  result<package> run(package in, job& run) const {
    TENSORSMITH_TRY(const std::size_t changed, rename_tensors(in, rules));
    run.info("rename", std::to_string(changed) + " tensors get other names");
    return in;
  }
};

/// Stage: other names for tensors, by the first rule that fits each. @fails usage (a rule that fits nothing), mismatch (one name twice)
inline rename_stage rename(std::vector<rename_rule> rules) { return {std::move(rules)}; }

TENSORSMITH_END_NAMESPACE
