// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/unique_names.hpp: the one authority on which names are free in a graph.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Hands out names that are free: the wanted one, or with _1, _2, … behind it.
class unique_names {
 public:
  std::string take(std::string wanted) {
    if (taken_.insert(wanted).second) return wanted;
    std::size_t& last = last_[wanted];
    for (;;) {
      std::string name = wanted + '_' + std::to_string(++last);
      if (taken_.insert(name).second) return name;
    }
  }
  bool taken(const std::string& name) const { return taken_.count(name) != 0; }

 private:
  std::unordered_set<std::string> taken_;
  std::unordered_map<std::string, std::size_t> last_;
};

TENSORSMITH_END_NAMESPACE
