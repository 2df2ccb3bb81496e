// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/verify.hpp: `… | verify() | …`: the invariants of every graph of a bundle, checked.
#pragma once

#include <string_view>
#include <utility>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/graph/verify.hpp"
#include "tensorsmith/stage/misplaced.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Hands a bundle on unchanged if all its graphs are sound.
struct verify_stage {
  using input = bundle;
  using output = bundle;
  static constexpr std::string_view name = "verify";

  result<bundle> run(bundle in, job&) const {
    for (const bundle_component& part : in.components)
      if (auto sound = tensorsmith::v0::verify(part.model); !sound) {
        failure error = std::move(sound).error();
        error.place = part.name + (error.place.empty() ? "" : ": " + error.place);
        return error;
      }
    return in;
  }
};

/// Stage: checks order, names, arity, types and shapes of every node, before or after lowering. @fails internal
inline verify_stage verify() { return {}; }

TENSORSMITH_END_NAMESPACE
