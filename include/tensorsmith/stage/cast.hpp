// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/cast.hpp: `… | cast<f16>(keep{"*norm*"}) | …`: other element types for the floating-point tensors of a package.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/dtype_tags.hpp"
#include "tensorsmith/core/glob.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/package.hpp"
#include "tensorsmith/tensor/tied.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Name patterns (core/glob.hpp) of tensors that a stage leaves as they are.
struct keep {
  keep() = default;
  keep(std::initializer_list<std::string_view> list) : patterns(list.begin(), list.end()) {}
  std::vector<std::string> patterns;
  bool matches(std::string_view name) const noexcept {
    for (const std::string& p : patterns)
      if (glob_match(p, name)) return true;
    return false;
  }
};

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
    std::size_t changed = 0;
    for (component& part : in.components) {
      // Tensors that are one and the same are cast once, so that writers still see that they are.
      constexpr auto itself = static_cast<std::size_t>(-1);
      std::vector<std::size_t> same_as(part.weights.size(), itself);
      for (const tied_tensors& group : find_tied(part.weights)) {
        const std::size_t first = *std::min_element(group.begin(), group.end());
        for (const std::size_t i : group)
          if (i != first) same_as[i] = first;
      }
      for (std::size_t i = 0; i < part.weights.size(); ++i) {
        const catalog_entry& entry = part.weights.entries()[i];
        if (!is_floating(entry.tensor.type()) || entry.tensor.type() == to || kept.matches(entry.name)) continue;
        const catalog_entry* twin = same_as[i] == itself ? nullptr : &part.weights.entries()[same_as[i]];
        tensor_ref other = twin && twin->tensor.type() == to ? twin->tensor : tensor_ref();
        if (!other) {
          TENSORSMITH_TRY(other, tensorsmith::cast(entry.tensor, to, overflow, tally));
        }
        part.weights.replace(entry.name, std::move(other));
        ++changed;
      }
    }
    for (const std::string& pattern : kept.patterns) TENSORSMITH_CHECK(used(pattern, in));
    run.info("cast", std::to_string(changed) + " tensors become " + std::string(name_of(to)));
    return in;
  }

 private:
  static result<void> used(const std::string& pattern, const package& in) {
    for (const component& part : in.components)
      for (const catalog_entry& entry : part.weights.entries())
        if (glob_match(pattern, entry.name)) return {};
    return failure{.code = errc::usage, .what = "the pattern " + quoted(pattern) + " keeps nothing", .file = in.source,
                   .expected = "a pattern that matches a tensor", .advice = "list the names with inspect and correct it"};
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
