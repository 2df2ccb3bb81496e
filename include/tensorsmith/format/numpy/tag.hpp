// SPDX-License-Identifier: MIT
//
// tensorsmith/format/numpy/tag.hpp: the tags that name NumPy's files in templates: open<npz_file>(path), write<npz_file>(path).
#pragma once

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace tags {

/// One array: .npy.
struct npy_file {};
/// A zip archive of arrays: .npz.
struct npz_file {};

}  // namespace tags
TENSORSMITH_END_NAMESPACE
