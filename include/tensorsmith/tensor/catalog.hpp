// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/catalog.hpp: the ordered plan of tensors: name → output of a recipe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/tensor/recipe.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One planned tensor. `origin` is the file and the name it had there, for messages: "model.ckpt: model.diffusion_model.out.0.weight".
struct catalog_entry {
  std::string name;
  tensor_ref tensor;
  std::string origin;
};

/// An ordered list of planned tensors with unique names. Lookup is a binary search over a sorted index, so names chosen to
/// collide cost nothing.
class catalog {
 public:
  std::span<const catalog_entry> entries() const noexcept { return entries_; }
  std::size_t size() const noexcept { return entries_.size(); }
  bool empty() const noexcept { return entries_.empty(); }

  /// Appends an entry. @fails mismatch if the name exists already.
  result<void> add(std::string name, tensor_ref tensor, std::string origin) {
    if (contains(name))
      return failure{.code = errc::mismatch, .what = "two tensors get the name " + quoted(name), .place = origin,
                     .expected = "unique names", .found = "also from " + entries_[*position(name)].origin};
    index(name, entries_.size());
    entries_.push_back({std::move(name), std::move(tensor), std::move(origin)});
    return {};
  }

  /// Appends many entries, sorting once: O(n log n) for a header of a million tensors. On failure nothing was added.
  /// @fails mismatch if a name exists already or twice.
  result<void> add_all(std::vector<catalog_entry> more) {
    std::vector<key> keys;
    keys.reserve(more.size());
    for (std::size_t i = 0; i < more.size(); ++i) {
      if (const catalog_entry* before = find(more[i].name)) return same_name(more[i], *before);
      keys.emplace_back(more[i].name, entries_.size() + i);
    }
    std::sort(keys.begin(), keys.end());
    for (std::size_t i = 1; i < keys.size(); ++i)
      if (keys[i].first == keys[i - 1].first)
        return same_name(more[keys[i].second - entries_.size()], more[keys[i - 1].second - entries_.size()]);
    const auto middle = static_cast<std::ptrdiff_t>(sorted_.size());
    sorted_.insert(sorted_.end(), std::make_move_iterator(keys.begin()), std::make_move_iterator(keys.end()));
    std::inplace_merge(sorted_.begin(), sorted_.begin() + middle, sorted_.end());
    entries_.insert(entries_.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    return {};
  }

  /// The entry called `name`, or nullptr.
  const catalog_entry* find(std::string_view name) const noexcept {
    const auto at = position(name);
    return at ? &entries_[*at] : nullptr;
  }
  bool contains(std::string_view name) const noexcept { return position(name).has_value(); }
  /// Replaces what `name` stands for. @pre it exists
  void replace(std::string_view name, tensor_ref tensor) { entries_[*position(name)].tensor = std::move(tensor); }

  /// Payload bytes of all entries.
  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const catalog_entry& e : entries_) sum += e.tensor.info().bytes();
    return sum;
  }
  /// Elements of all entries.
  std::uint64_t parameters() const {
    std::uint64_t sum = 0;
    for (const catalog_entry& e : entries_) sum += e.tensor.info().elements();
    return sum;
  }

 private:
  // The sorted index is kept in two parts: a large sorted one and a small one that is merged in when it has grown,
  // so that adding n entries costs O(n log n) moves and not O(n²).
  using key = std::pair<std::string, std::size_t>;
  static failure same_name(const catalog_entry& entry, const catalog_entry& before) {
    return failure{.code = errc::mismatch, .what = "two tensors get the name " + quoted(entry.name), .place = entry.origin,
                   .expected = "unique names", .found = "also from " + before.origin};
  }
  static const key* lower(const std::vector<key>& keys, std::string_view name) noexcept {
    const auto at = std::lower_bound(keys.begin(), keys.end(), name,
                                     [](const key& k, std::string_view n) { return std::string_view(k.first) < n; });
    return at != keys.end() && at->first == name ? &*at : nullptr;
  }
  std::optional<std::size_t> position(std::string_view name) const noexcept {
    if (const key* k = lower(recent_, name)) return k->second;
    if (const key* k = lower(sorted_, name)) return k->second;
    return std::nullopt;
  }
  void index(const std::string& name, std::size_t at) {
    const auto place = std::lower_bound(recent_.begin(), recent_.end(), name,
                                        [](const key& k, const std::string& n) { return k.first < n; });
    recent_.insert(place, key{name, at});
    if (recent_.size() < 64 || recent_.size() * recent_.size() < sorted_.size()) return;
    const auto middle = static_cast<std::ptrdiff_t>(sorted_.size());
    sorted_.insert(sorted_.end(), std::make_move_iterator(recent_.begin()), std::make_move_iterator(recent_.end()));
    std::inplace_merge(sorted_.begin(), sorted_.begin() + middle, sorted_.end());
    recent_.clear();
  }

  std::vector<catalog_entry> entries_;
  std::vector<key> sorted_, recent_;
};

TENSORSMITH_END_NAMESPACE
