// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/fuse.hpp: several tensors of a package become one above the other, or one becomes several.
//
// Include this for fuse_rows ("to_q", "to_k", "to_v" → "to_qkv") and split_rows, its reverse. No byte moves before the tensors are
// written.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/tensor/name_pattern.hpp"
#include "tensorsmith/tensor/package.hpp"
#include "tensorsmith/tensor/stacked.hpp"
#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

inline failure no_such_wildcard(const std::string& name, const std::string& pattern) {
  return failure{.code = errc::usage, .what = "the name " + quoted(name) + " asks for a wildcard that " + quoted(pattern) + " lacks"};
}

inline failure fits_nothing(std::string_view does, const std::string& pattern, const std::string& file) {
  return failure{.code = errc::usage, .what = "the pattern " + quoted(pattern) + " " + std::string(does) + " nothing", .file = file,
                 .expected = "a pattern that matches a tensor", .advice = "list the names with inspect and correct it"};
}

/// The entries of one component after fusing; `done` counts the fused tensors.
inline result<catalog> fused_entries(const component& part, const std::vector<std::string>& parts, const std::string& whole, std::size_t& done) {
  const auto entries = part.weights.entries();
  std::vector<catalog_entry> made(entries.size());
  std::vector<bool> taken(entries.size(), false), replaced(entries.size(), false);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto captures = match_captures(parts[0], entries[i].name);
    if (!captures) continue;
    std::vector<tensor_ref> pieces;
    for (const std::string& pattern : parts) {
      const auto name = fill_wildcards(pattern, *captures);
      if (!name) return no_such_wildcard(pattern, parts[0]);
      const catalog_entry* piece = part.weights.find(*name);
      if (!piece)
        return failure{.code = errc::mismatch, .what = "a tensor to be fused with " + quoted(entries[i].name) + " is missing",
                       .place = entries[i].origin, .expected = quoted(*name)};
      const auto at = static_cast<std::size_t>(piece - entries.data());
      if (taken[at])
        return failure{.code = errc::mismatch, .what = "the tensor " + quoted(*name) + " would be fused twice", .place = piece->origin};
      taken[at] = true;
      pieces.push_back(piece->tensor);
    }
    auto name = put_captures(whole, *captures);
    if (!name) return no_such_wildcard(whole, parts[0]);
    TENSORSMITH_TRY(tensor_ref stacked, stacked_rows(std::move(pieces)));
    made[i] = {std::move(*name), std::move(stacked), entries[i].origin};
    replaced[i] = true;
    ++done;
  }
  std::vector<catalog_entry> out;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (replaced[i]) out.push_back(std::move(made[i]));
    else if (!taken[i]) out.push_back(entries[i]);
  }
  catalog fused;
  TENSORSMITH_CHECK(fused.add_all(std::move(out)));
  return fused;
}

/// The entries of one component after splitting; `done` counts the tensors that were split.
inline result<catalog> split_entries(const component& part, const std::string& whole, const std::vector<std::string>& parts,
                                     const std::vector<std::size_t>& rows, std::size_t& done) {
  std::vector<catalog_entry> out;
  for (const catalog_entry& entry : part.weights.entries()) {
    const auto captures = match_captures(whole, entry.name);
    if (!captures) {
      out.push_back(entry);
      continue;
    }
    const shape_type& shape = entry.tensor.shape();
    std::vector<std::size_t> counts = rows;
    if (counts.empty()) {
      if (shape.empty() || shape[0] % parts.size() != 0)
        return failure{.code = errc::mismatch, .what = "the tensor " + quoted(entry.name) + " cannot be split evenly", .place = entry.origin,
                       .expected = "a first dimension that " + std::to_string(parts.size()) + " divides", .found = to_string(shape)};
      counts.assign(parts.size(), shape[0] / parts.size());
    }
    std::size_t sum = 0, first = 0;
    bool fits = !shape.empty();
    for (const std::size_t n : counts) fits = fits && !__builtin_add_overflow(sum, n, &sum);
    if (!fits || sum != shape[0])
      return failure{.code = errc::mismatch, .what = "the rows of the parts are not those of the tensor " + quoted(entry.name), .place = entry.origin,
                     .expected = std::to_string(sum) + " rows", .found = to_string(shape)};
    for (std::size_t k = 0; k < parts.size(); ++k) {
      auto name = put_captures(parts[k], *captures);
      if (!name) return no_such_wildcard(parts[k], whole);
      TENSORSMITH_TRY(tensor_ref piece, sliced_rows(entry.tensor, first, counts[k]));
      out.push_back({std::move(*name), std::move(piece), entry.origin});
      first += counts[k];
    }
    ++done;
  }
  catalog split;
  TENSORSMITH_CHECK(split.add_all(std::move(out)));
  return split;
}

}  // namespace detail

/// Stacks tensors along their first dimension: every tensor that matches parts[0] ("*.to_q.weight") with those that the other patterns
/// name when their wildcards are filled the same way ("*.to_k.weight", …), under the name `whole` ("$1.to_qkv.weight"), in the place of
/// the first. Returns how many tensors were made. @fails usage (no tensor matches; fewer than two parts), mismatch (a part is missing;
/// shapes or types differ; a name is taken); the package is unchanged then
inline result<std::size_t> fuse_rows(package& in, const std::vector<std::string>& parts, const std::string& whole) {
  if (parts.size() < 2) return failure{.code = errc::usage, .what = "fusing needs two tensors or more", .found = std::to_string(parts.size())};
  std::vector<catalog> fused;
  std::size_t done = 0;
  for (const component& part : in.components) {
    TENSORSMITH_TRY(fused.emplace_back(), detail::fused_entries(part, parts, whole, done));
  }
  if (done == 0) return detail::fits_nothing("fuses", parts[0], in.source);
  for (std::size_t c = 0; c < in.components.size(); ++c) in.components[c].weights = std::move(fused[c]);
  return done;
}

/// Splits every tensor that matches `whole` ("*.to_qkv.weight") along its first dimension into tensors named by `parts` ("$1.to_q.weight",
/// …), of `rows` rows each, evenly if there are none. Returns how many tensors were split. @fails usage (no tensor matches; numbers of
/// names and rows differ), mismatch (rows that do not add up; a name is taken); the package is unchanged then
inline result<std::size_t> split_rows(package& in, const std::string& whole, const std::vector<std::string>& parts,
                                      const std::vector<std::size_t>& rows = {}) {
  if (parts.empty() || (!rows.empty() && rows.size() != parts.size()))
    return failure{.code = errc::usage, .what = "splitting needs a name and a number of rows for each part",
                   .found = std::to_string(parts.size()) + " names, " + std::to_string(rows.size()) + " numbers"};
  std::vector<catalog> split;
  std::size_t done = 0;
  for (const component& part : in.components) {
    TENSORSMITH_TRY(split.emplace_back(), detail::split_entries(part, whole, parts, rows, done));
  }
  if (done == 0) return detail::fits_nothing("splits", whole, in.source);
  for (std::size_t c = 0; c < in.components.size(); ++c) in.components[c].weights = std::move(split[c]);
  return done;
}

TENSORSMITH_END_NAMESPACE
