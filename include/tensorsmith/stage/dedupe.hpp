// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/dedupe.hpp: `… | dedupe() | write<safetensors_file>(…)`: tied weights once.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"
#include "tensorsmith/tensor/tied.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Keeps one of each group of tied tensors; see dedupe in tensor/tied.hpp.
struct dedupe_stage {
  using input = package;
  using output = package;
  static constexpr std::string_view name = "dedupe";

  dedupe_options how;

  result<package> run(package in, job& run) const {
    TENSORSMITH_TRY(const std::size_t removed, dedupe(in, how, run));
    run.info("dedupe", std::to_string(removed) + " tensors are others under a second name and are stored once");
    return in;
  }
};

/// Stage: tied tensors keep the first of their names; the metadata says which the others were. torch files share bytes by themselves.
inline dedupe_stage dedupe(dedupe_options how = {}) { return {how}; }

TENSORSMITH_END_NAMESPACE
