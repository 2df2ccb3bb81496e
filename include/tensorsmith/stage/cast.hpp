// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/cast.hpp: `… | cast<f16>(keep{"*norm*"}) | …`: other element types for the floating-point tensors of a package.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/core/dtype_tags.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"
#include "tensorsmith/tensor/cast_catalog.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Casts every floating-point tensor of every component, rounding to nearest even, as the tiles pass. Integers and booleans stay, and
/// tied tensors stay tied. A pattern that matches nothing is an error (usage): it would be a spelling mistake that nobody sees.
struct cast_stage {
  using input = package;
  using output = package;
  static constexpr std::string_view name = "cast";

  dtype to = dtype::f16;
  keep kept{};
  cast_overflow overflow = cast_overflow::error;  ///< for finite values that do not fit; found when the tensors are written
  std::shared_ptr<cast_tally> tally{};            ///< counts them where that is no error

  result<package> run(package in, job& run) const {
    TENSORSMITH_TRY(const std::size_t changed, cast_floats(in, to, kept, overflow, tally));
    run.info("cast", std::to_string(changed) + " tensors become " + std::string(name_of(to)));
    return in;
  }
};

/// Stage: floating-point tensors become `Dtype` (a tag of tags::), except those that `kept` names. A finite value that does not fit is an
/// error (numeric) when it is written, unless `overflow` lets it pass.
template <class Dtype>
cast_stage cast(keep kept = {}, cast_overflow overflow = cast_overflow::error) {
  static_assert(dtype_tag<Dtype>, "tensorsmith: cast<Dtype> needs an element type tag: tags::f32, tags::f16, tags::bf16 or tags::f64");
  cast_stage stage;
  if constexpr (dtype_tag<Dtype>) stage.to = Dtype::type;
  stage.kept = std::move(kept);
  stage.overflow = overflow;
  return stage;
}

TENSORSMITH_END_NAMESPACE
