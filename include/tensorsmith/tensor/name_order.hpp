// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/name_order.hpp: sorting very many names that begin alike. Include this for order_by_name.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The positions 0 … count − 1 in the order of name(i); equal names in the order of their positions. @pre count < 2^32
///
/// The eight bytes behind what all names begin with are compared first, as one number that lies beside the position: a million names
/// of tensors need a comparison of texts, which lie all over the memory, only where those agree. No choice of names makes this
/// slower than sorting the texts.
template <class Name>
std::vector<std::uint32_t> order_by_name(std::size_t count, Name&& name) {
  std::vector<std::uint32_t> order(count);
  for (std::size_t i = 0; i < count; ++i) order[i] = static_cast<std::uint32_t>(i);
  if (count < 2) return order;
  const std::string_view first = name(std::size_t{0});
  std::size_t common = first.size();
  bool sorted = true;
  for (std::size_t i = 1; i < count; ++i) {
    const std::string_view here = name(i);
    const std::size_t most = std::min(common, here.size());
    common = static_cast<std::size_t>(std::mismatch(first.begin(), first.begin() + static_cast<std::ptrdiff_t>(most), here.begin()).first - first.begin());
    sorted = sorted && std::string_view(name(i - 1)) <= here;
  }
  if (sorted) return order;
  struct key {
    std::uint64_t start;
    std::uint32_t position;
  };
  std::vector<key> keys(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::string_view here = name(i);
    std::uint64_t start = 0;
    for (std::size_t k = common; k < common + 8; ++k) start = start << 8 | (k < here.size() ? static_cast<unsigned char>(here[k]) : 0U);
    keys[i] = {start, static_cast<std::uint32_t>(i)};
  }
  std::sort(keys.begin(), keys.end(), [&](const key& a, const key& b) {
    if (a.start != b.start) return a.start < b.start;
    const int compared = std::string_view(name(a.position)).compare(name(b.position));
    return compared != 0 ? compared < 0 : a.position < b.position;
  });
  for (std::size_t i = 0; i < count; ++i) order[i] = keys[i].position;
  return order;
}

TENSORSMITH_END_NAMESPACE
