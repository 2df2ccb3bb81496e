// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/tied.hpp: tensors that are one and the same under several names (tied weights), and files without the copies.
//
// Include this for find_tied and dedupe. Formats that cannot share bytes (safetensors) store such a tensor once, and say in their
// metadata which name stands for which.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/content_hash.hpp"
#include "tensorsmith/tensor/filter.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Positions in a catalog of tensors with the same bytes, type and shape, in the order of their names.
using tied_tensors = std::vector<std::size_t>;

namespace detail {

/// What a planned tensor is made of: a range of a source (or an output of a recipe) and the types it is converted to on the way.
struct tensor_identity {
  std::uintptr_t base = 0;
  std::uint64_t offset = 0, length = 0;
  std::vector<dtype> types;
  const shape_type* shape = nullptr;
  std::size_t position = 0;

  static tensor_identity of(const tensor_ref& tensor, std::size_t position) {
    tensor_identity out{.types = {tensor.type()}, .shape = &tensor.shape(), .position = position};
    recipe_ptr source = tensor.source;
    while (recipe_ptr inner = source->uncast()) {
      source = std::move(inner);
      out.types.push_back(source->outputs()[0].type);
    }
    const auto bytes = source->outputs().size() == 1 ? source->stored() : std::nullopt;
    out.base = bytes ? reinterpret_cast<std::uintptr_t>(bytes->source.get()) : reinterpret_cast<std::uintptr_t>(source.get());
    out.offset = bytes ? bytes->offset : tensor.output;
    out.length = bytes ? bytes->length : 0;
    return out;
  }
  auto key() const { return std::tie(base, offset, length, types, *shape); }
};

/// Runs of equal elements of a sorted list that have two members or more, as positions in the order of their names.
template <class Item, class Same>
std::vector<tied_tensors> groups_of(const catalog& tensors, const std::vector<Item>& sorted, Same&& same) {
  std::vector<tied_tensors> out;
  for (std::size_t first = 0; first < sorted.size();) {
    std::size_t last = first + 1;
    while (last < sorted.size() && same(sorted[first], sorted[last])) ++last;
    if (last - first > 1) {
      tied_tensors& group = out.emplace_back();
      for (std::size_t i = first; i < last; ++i) group.push_back(sorted[i].position);
      std::sort(group.begin(), group.end(),
                [&](std::size_t a, std::size_t b) { return tensors.entries()[a].name < tensors.entries()[b].name; });
    }
    first = last;
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace detail

/// The groups of tensors that are the same output of one recipe, or lie in the same bytes of the same file with the same type and shape.
/// Nothing is read; tensors without elements are not tied.
inline std::vector<tied_tensors> find_tied(const catalog& tensors) {
  std::vector<detail::tensor_identity> all;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (tensors.entries()[i].tensor.info().elements() != 0) all.push_back(detail::tensor_identity::of(tensors.entries()[i].tensor, i));
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.key() < b.key(); });
  return detail::groups_of(tensors, all, [](const auto& a, const auto& b) { return a.key() == b.key(); });
}

/// The groups of tensors of at least `smallest_bytes` with equal contents, type and shape, told by SHA-256. Only tensors that have another
/// one of their type and shape are read. @fails as the recipes, cancelled
inline result<std::vector<tied_tensors>> find_equal(const catalog& tensors, std::uint64_t smallest_bytes, const job& run) {
  struct candidate {
    const tensor_info* info;
    std::size_t position;
    sha256_digest digest{};
    auto kind() const { return std::tie(info->type, info->shape); }
  };
  std::vector<candidate> all, hashed;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (const tensor_info& info = tensors.entries()[i].tensor.info(); info.elements() != 0 && info.bytes() >= smallest_bytes)
      all.push_back({.info = &info, .position = i});
  std::sort(all.begin(), all.end(), [](const candidate& a, const candidate& b) { return a.kind() < b.kind(); });
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool alone = (i == 0 || all[i].kind() != all[i - 1].kind()) && (i + 1 == all.size() || all[i].kind() != all[i + 1].kind());
    if (alone) continue;
    TENSORSMITH_TRY(all[i].digest, sha256_of(tensors.entries()[all[i].position].tensor, run));
    hashed.push_back(all[i]);
  }
  const auto key = [](const candidate& c) { return std::tie(c.info->type, c.info->shape, c.digest); };
  std::sort(hashed.begin(), hashed.end(), [&](const candidate& a, const candidate& b) { return key(a) < key(b); });
  return detail::groups_of(tensors, hashed, [&](const candidate& a, const candidate& b) { return key(a) == key(b); });
}

/// What counts as the same tensor.
struct dedupe_options {
  /// Also tensors that are stored twice with equal contents. Reads what may be equal; two layers that happen to hold the same values
  /// count as one, so a program that expects both will miss a name.
  bool by_content = false;
  std::uint64_t smallest_bytes = 64u << 10;  ///< for `by_content`: smaller tensors are often equal by chance (zeros, ones)
};

/// Keeps one tensor of each group of tied ones, the first by name, and takes the others out. Each is added to its component's `ignored`,
/// and to the package's metadata as {name: name that was kept}, unless that key is there already: what safetensors.torch.save_model
/// writes and its load_model understands. In a component with a name both names have it in front. Ties across components are kept.
/// Returns how many were taken out. @fails as find_equal
inline result<std::size_t> dedupe(package& in, const dedupe_options& options, const job& run) {
  std::size_t removed = 0;
  for (component& part : in.components) {
    std::vector<tied_tensors> groups = find_tied(part.weights);
    if (options.by_content) {
      TENSORSMITH_TRY(groups, find_equal(part.weights, options.smallest_bytes, run));
      for (tied_tensors& tied : find_tied(part.weights)) groups.push_back(std::move(tied));  // those that are smaller
    }
    constexpr auto itself = static_cast<std::size_t>(-1);
    std::vector<std::size_t> kept_for(part.weights.size(), itself);
    for (const tied_tensors& group : groups)
      for (std::size_t i = 1; i < group.size(); ++i)
        if (kept_for[group[i]] == itself) kept_for[group[i]] = group[0];  // else its group is part of one that came before
    const auto entries = part.weights.entries();
    std::vector<std::pair<std::string, std::string>> ties;
    for (std::size_t i = 0; i < entries.size(); ++i)
      if (kept_for[i] != itself) ties.emplace_back(qualified_name(part, entries[i].name), qualified_name(part, entries[kept_for[i]].name));
    std::size_t at = 0, tie = 0;
    TENSORSMITH_TRY(const std::size_t count, drop_entries(part, [&](const catalog_entry&) {
      return kept_for[at++] == itself ? std::string() : "the same tensor as " + quoted(ties[tie++].second);
    }));
    removed += count;
    std::sort(ties.begin(), ties.end());
    std::vector<std::string> known;
    for (const auto& [key, value] : in.metadata) known.push_back(key);
    std::sort(known.begin(), known.end());
    for (auto& [name, kept] : ties)
      if (!std::binary_search(known.begin(), known.end(), name)) in.metadata.emplace_back(std::move(name), std::move(kept));
  }
  return removed;
}

TENSORSMITH_END_NAMESPACE
