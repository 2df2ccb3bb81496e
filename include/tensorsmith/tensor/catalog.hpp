// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/catalog.hpp: the ordered plan of tensors: name → output of a recipe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/tensor/name_order.hpp"
#include "tensorsmith/tensor/recipe.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One planned tensor. `origin` is the file and the name it had there, for messages: "model.ckpt: model.diffusion_model.out.0.weight".
struct catalog_entry {
  std::string name;
  tensor_ref tensor;
  std::string origin;
};

/// An ordered list of planned tensors with unique names. Lookup is a binary search over a sorted index of positions, so names chosen
/// to collide cost nothing and no name is held twice.
class catalog {
 public:
  std::span<const catalog_entry> entries() const noexcept { return entries_; }
  std::size_t size() const noexcept { return entries_.size(); }
  bool empty() const noexcept { return entries_.empty(); }

  /// Appends an entry. @fails mismatch if the name exists already, limit at 2^32 entries
  result<void> add(std::string name, tensor_ref tensor, std::string origin) {
    catalog_entry entry{std::move(name), std::move(tensor), std::move(origin)};
    if (const catalog_entry* before = find(entry.name)) return same_name(entry, *before);
    TENSORSMITH_CHECK(room_for(1));
    entries_.push_back(std::move(entry));
    index(static_cast<std::uint32_t>(entries_.size() - 1));
    return {};
  }

  /// Appends many entries, sorting once: O(n log n) for a header of a million tensors. On failure nothing was added.
  /// @fails mismatch if a name exists already or twice, limit at 2^32 entries
  result<void> add_all(std::vector<catalog_entry> more) {
    TENSORSMITH_CHECK(room_for(more.size()));
    if (!entries_.empty())
      for (const catalog_entry& entry : more)
        if (const catalog_entry* before = find(entry.name)) return same_name(entry, *before);
    std::vector<std::uint32_t> order = order_by_name(more.size(), [&](std::size_t i) { return std::string_view(more[i].name); });
    for (std::size_t i = 1; i < order.size(); ++i)
      if (more[order[i]].name == more[order[i - 1]].name) return same_name(more[order[i]], more[order[i - 1]]);
    const auto before = static_cast<std::uint32_t>(entries_.size());
    if (before == 0) {
      entries_ = std::move(more);
      sorted_ = std::move(order);
      return {};
    }
    for (std::uint32_t& position : order) position += before;
    entries_.insert(entries_.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    merge(order);
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
  static failure same_name(const catalog_entry& entry, const catalog_entry& before) {
    return failure{.code = errc::mismatch, .what = "two tensors get the name " + quoted(entry.name), .place = entry.origin,
                   .expected = "unique names", .found = "also from " + before.origin};
  }
  result<void> room_for(std::size_t more) const {
    constexpr std::size_t most = 0xFFFF'FFFF;  // positions have 32 bits
    if (more <= most - entries_.size()) return {};
    return failure{.code = errc::limit, .what = "a catalog has too many tensors", .expected = "fewer than 2^32"};
  }
  std::vector<std::uint32_t>::const_iterator lower(const std::vector<std::uint32_t>& positions, std::string_view name) const noexcept {
    return std::lower_bound(positions.begin(), positions.end(), name,
                            [&](std::uint32_t at, std::string_view wanted) { return std::string_view(entries_[at].name) < wanted; });
  }
  std::optional<std::size_t> position(std::string_view name) const noexcept {
    for (const auto* positions : {&recent_, &sorted_})
      if (const auto at = lower(*positions, name); at != positions->end() && entries_[*at].name == name) return *at;
    return std::nullopt;
  }
  void index(std::uint32_t at) {
    recent_.insert(lower(recent_, entries_[at].name), at);
    if (recent_.size() < 64 || recent_.size() * recent_.size() < sorted_.size()) return;
    merge(recent_);
    recent_.clear();
  }
  void merge(const std::vector<std::uint32_t>& more) {
    const auto middle = static_cast<std::ptrdiff_t>(sorted_.size());
    sorted_.insert(sorted_.end(), more.begin(), more.end());
    std::inplace_merge(sorted_.begin(), sorted_.begin() + middle, sorted_.end(),
                       [&](std::uint32_t a, std::uint32_t b) { return entries_[a].name < entries_[b].name; });
  }

  std::vector<catalog_entry> entries_;
  std::vector<std::uint32_t> sorted_, recent_;  // positions, in the order of their names
};

TENSORSMITH_END_NAMESPACE
