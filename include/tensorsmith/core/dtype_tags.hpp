// SPDX-License-Identifier: MIT
//
// tensorsmith/core/dtype_tags.hpp: element types as tags, for template arguments: `cast<f16>()`.
#pragma once

#include <concepts>

#include "tensorsmith/core/dtype.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace tags {

struct f64 { static constexpr dtype type = dtype::f64; };
struct f32 { static constexpr dtype type = dtype::f32; };
struct f16 { static constexpr dtype type = dtype::f16; };
struct bf16 { static constexpr dtype type = dtype::bf16; };

}  // namespace tags

/// A tag that names an element type.
template <class T>
concept dtype_tag = requires {
  { T::type } -> std::convertible_to<dtype>;
};

TENSORSMITH_END_NAMESPACE
