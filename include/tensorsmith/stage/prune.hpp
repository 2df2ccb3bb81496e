// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/prune.hpp: `… | prune(ema | optimizer) | …`: without what only training needs.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/arch/prune.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace tags {

/// Moving averages of the weights.
inline constexpr prune_options ema{.ema = true};
/// State of the optimizer.
inline constexpr prune_options optimizer{.optimizer = true};
/// Buffers of the noise schedule.
inline constexpr prune_options schedule{.schedule = true};

}  // namespace tags

/// What either of two names.
constexpr prune_options operator|(prune_options a, prune_options b) noexcept {
  return {a.ema || b.ema, a.optimizer || b.optimizer, a.schedule || b.schedule};
}

/// Takes out state of training; see arch/prune.hpp. A model that has none passes unchanged.
struct prune_stage {
  using input = package;
  using output = package;
  static constexpr std::string_view name = "prune";

  prune_options what;

  result<package> run(package in, job& run) const {
    TENSORSMITH_TRY(const auto taken, prune(in, what));
    run.info("prune", std::to_string(taken.size()) + " tensors of training are left out");
    return in;
  }
};

/// Stage: leaves out tags::ema, tags::optimizer, tags::schedule, or several of them joined with `|`. @fails mismatch (nothing would be left)
inline prune_stage prune(prune_options what) { return {what}; }

TENSORSMITH_END_NAMESPACE
