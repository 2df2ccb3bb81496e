// SPDX-License-Identifier: MIT
//
// convert_weights/accounts.hpp: what became of every tensor of the source: written, dropped, pruned or ignored, with the reason.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/checkpoint_parts.hpp"
#include "tensorsmith/tensor/filter.hpp"
#include "tensorsmith/tensor/package.hpp"

namespace convert_weights {

namespace ts = tensorsmith;
using left_out = std::vector<ts::ignored_tensor>;

/// The names of a package's tensors and where they come from, as they were at one point.
class inventory {
 public:
  explicit inventory(const ts::package& model) {
    for (const ts::component& part : model.components) {
      listed_.push_back(part.ignored.size());
      for (const ts::catalog_entry& entry : part.weights.entries())
        rows_.push_back({listed_.size() - 1, entry.name, ts::qualified_name(part, entry.name), entry.origin});
    }
  }

  std::size_t size() const noexcept { return rows_.size(); }

  /// What a step took out of the same components since then: it listed each tensor, in order, as "name: reason".
  left_out taken(const ts::package& now) const {
    left_out out;
    auto row = rows_.begin();
    for (std::size_t c = 0; c < listed_.size(); ++c)
      for (std::size_t i = listed_[c]; i < now.components[c].ignored.size(); ++i) {
        const std::string& text = now.components[c].ignored[i];
        while (row != rows_.end() && (row->component < c || !text.starts_with(row->name + ": "))) ++row;
        if (row == rows_.end()) return out;
        out.push_back({row->whole_name, text.substr(row->name.size() + 2)});
      }
    return out;
  }

  /// What a recognised model does not use: no tensor of it comes from there. The reasons are those that its components list.
  left_out unused(const ts::package& recognised) const {
    std::vector<std::string_view> used;
    std::vector<std::string> listed;
    for (const ts::component& part : recognised.components) {
      for (const ts::catalog_entry& entry : part.weights.entries()) used.push_back(entry.origin);
      listed.insert(listed.end(), part.ignored.begin(), part.ignored.end());
    }
    std::sort(used.begin(), used.end());
    std::sort(listed.begin(), listed.end());
    left_out out;
    for (const tensor_row& r : rows_) {
      if (std::binary_search(used.begin(), used.end(), std::string_view(r.origin))) continue;
      const std::string head = r.name + ": ";
      const auto at = std::lower_bound(listed.begin(), listed.end(), head);
      out.push_back({r.whole_name, at != listed.end() && at->starts_with(head) ? at->substr(head.size()) : "no part of what is written"});
    }
    return out;
  }

  /// Those of these texts that begin with a tensor's name in the package: "name: reason".
  left_out named(const std::vector<std::string>& texts) const {
    std::vector<std::string_view> names;
    for (const tensor_row& r : rows_) names.push_back(r.whole_name);
    std::sort(names.begin(), names.end());
    left_out out;
    for (const std::string& text : texts)
      for (std::size_t at = text.find(": "); at != std::string::npos; at = text.find(": ", at + 1)) {
        if (!std::binary_search(names.begin(), names.end(), std::string_view(text).substr(0, at))) continue;
        out.push_back({text.substr(0, at), text.substr(at + 2)});
        break;
      }
    return out;
  }

 private:
  struct tensor_row {
    std::size_t component;
    std::string name, whole_name, origin;
  };
  std::vector<tensor_row> rows_;
  std::vector<std::size_t> listed_;  // how many parts each component had left out already
};

}  // namespace convert_weights
