// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/update_checkpoint.hpp: a single-file checkpoint with some of its weights replaced, everything else as it was.
//
// Include this to write a changed model in the form of the file it came from: the same names in the same order, foreign tensors included.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/checkpoint_names.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A weight of a pipeline that was changed.
struct changed_weight {
  std::string component, name;
};

namespace detail {

/// True if `after` is `before` with more rows: a token embedding that tokens were added to.
inline bool gained_rows(const shape_type& before, const shape_type& after) noexcept {
  return before.size() == 2 && after.size() == 2 && before[1] == after[1] && after[0] > before[0];
}

}  // namespace detail

/// The tensors of `original` (a single file), those that hold a changed weight of `model` taken from there: `model` was recognised from the
/// same file and names its tensors' origins. Stacked projections are stacked again, transposed ones turned back; a matrix may have gained rows.
/// @fails mismatch if a changed weight has no place in the file
inline result<catalog> update_checkpoint(const catalog& original, const package& model, const std::vector<changed_weight>& changed, job& run) {
  TENSORSMITH_TRY(const catalog named, checkpoint_catalog(model, run));
  std::map<std::string_view, std::string_view> name_of_origin;
  for (const catalog_entry& entry : original.entries()) name_of_origin.emplace(entry.origin, entry.name);
  std::map<std::string_view, tensor_ref> replaced;
  for (const changed_weight& weight : changed) {
    const component* const part = model.find(weight.component);
    const catalog_entry* const entry = part ? part->weights.find(weight.name) : nullptr;
    const auto at = entry ? name_of_origin.find(entry->origin) : name_of_origin.end();
    if (at == name_of_origin.end())
      return failure{.code = errc::mismatch, .what = "a changed weight has no place in the checkpoint", .file = model.source,
                     .place = "tensor " + quoted(weight.component + "." + weight.name), .expected = "a tensor that it was read from"};
    const catalog_entry& before = *original.find(at->second);
    const catalog_entry* const renamed = named.find(at->second);
    tensor_ref after = renamed ? renamed->tensor : entry->tensor;  // unusual names: the tensor itself, if it is the whole of the original
    if (after.shape() != before.tensor.shape() && after.info().elements() == before.tensor.info().elements() && !renamed) {
      TENSORSMITH_TRY(after, reshaped(after, before.tensor.shape()));
    }
    if (after.shape() != before.tensor.shape() && !detail::gained_rows(before.tensor.shape(), after.shape()))
      return failure{.code = errc::unsupported, .what = "a changed weight cannot be written under the names of this checkpoint", .file = model.source,
                     .place = "tensor " + quoted(at->second), .expected = to_string(before.tensor.shape()), .found = to_string(after.shape()),
                     .advice = "write a pipeline folder instead"};
    replaced[before.name] = std::move(after);
  }
  std::vector<catalog_entry> entries;
  for (const catalog_entry& entry : original.entries()) {
    const auto at = replaced.find(entry.name);
    entries.push_back({entry.name, at == replaced.end() ? entry.tensor : at->second, entry.origin});
  }
  catalog out;
  TENSORSMITH_CHECK(out.add_all(std::move(entries)));
  return out;
}

TENSORSMITH_END_NAMESPACE
