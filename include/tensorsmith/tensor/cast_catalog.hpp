// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/cast_catalog.hpp: every floating-point tensor of a catalog or a package in another type.
//
// Include this to cast whole models; tensor/cast.hpp casts one tensor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/glob.hpp"
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

/// Casts every floating-point tensor of a catalog, rounding to nearest even, as the tiles pass. Integers, booleans and tensors that `kept`
/// names stay; tensors of type `to` (merged weights rounded to it, for instance) are not touched; tied tensors stay tied. Returns how many
/// were cast. @fails unsupported (no such conversion); values that do not fit fail when they are written, unless `overflow` lets them pass
inline result<std::size_t> cast_floats(catalog& weights, dtype to, const keep& kept = {}, cast_overflow overflow = cast_overflow::error,
                                       std::shared_ptr<cast_tally> tally = {}) {
  // Tensors that are one and the same are cast once, so that writers still see that they are.
  constexpr auto itself = static_cast<std::size_t>(-1);
  std::vector<std::size_t> same_as(weights.size(), itself);
  for (const tied_tensors& group : find_tied(weights)) {
    const std::size_t first = *std::min_element(group.begin(), group.end());
    for (const std::size_t i : group)
      if (i != first) same_as[i] = first;
  }
  std::size_t changed = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const catalog_entry& entry = weights.entries()[i];
    if (!is_floating(entry.tensor.type()) || entry.tensor.type() == to || kept.matches(entry.name)) continue;
    const catalog_entry* twin = same_as[i] == itself ? nullptr : &weights.entries()[same_as[i]];
    tensor_ref other = twin && twin->tensor.type() == to ? twin->tensor : tensor_ref();
    if (!other) {
      TENSORSMITH_TRY(other, cast(entry.tensor, to, overflow, tally));
    }
    weights.replace(entry.name, std::move(other));
    ++changed;
  }
  return changed;
}

/// Checks that every pattern matches a tensor: one that matches none is a spelling mistake that nobody sees. @fails usage
inline result<void> check_kept(const package& in, const keep& kept) {
  const auto matches = [&](const std::string& pattern) {
    for (const component& part : in.components)
      for (const catalog_entry& entry : part.weights.entries())
        if (glob_match(pattern, entry.name)) return true;
    return false;
  };
  for (const std::string& pattern : kept.patterns)
    if (!matches(pattern))
      return failure{.code = errc::usage, .what = "the pattern " + quoted(pattern) + " keeps nothing", .file = in.source,
                     .expected = "a pattern that matches a tensor", .advice = "list the names with inspect and correct it"};
  return {};
}

/// Casts all components of a package; see the overload for a catalog. @fails as that, and usage as check_kept
inline result<std::size_t> cast_floats(package& in, dtype to, const keep& kept = {}, cast_overflow overflow = cast_overflow::error,
                                       std::shared_ptr<cast_tally> tally = {}) {
  TENSORSMITH_CHECK(check_kept(in, kept));
  std::size_t changed = 0;
  for (component& part : in.components) {
    TENSORSMITH_TRY(const std::size_t count, cast_floats(part.weights, to, kept, overflow, tally));
    changed += count;
  }
  return changed;
}

TENSORSMITH_END_NAMESPACE
