// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/joined.hpp: the tensors of all components of a package in one catalog, for containers that know no components.
#pragma once

#include <utility>
#include <vector>

#include "tensorsmith/tensor/filter.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// All tensors of a package, component by component; those of a component with a name as "component.tensor", which our readers of single
/// files take apart again. @fails mismatch (two tensors get one name)
inline result<catalog> joined_catalog(const package& in) {
  if (in.is_single_model()) return in.components[0].weights;
  std::vector<catalog_entry> entries;
  for (const component& part : in.components)
    for (const catalog_entry& entry : part.weights.entries()) entries.push_back({qualified_name(part, entry.name), entry.tensor, entry.origin});
  catalog out;
  TENSORSMITH_CHECK(out.add_all(std::move(entries)));
  return out;
}

TENSORSMITH_END_NAMESPACE
