// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/infer_layers.hpp: types and shapes of operators that compute: elementwise ones, products, convolutions,
// normalizations, reductions. graph/shapes.hpp holds the table that names them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/graph/element_code.hpp"
#include "tensorsmith/graph/infer_context.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Same type and shape as the first input.
inline inferred infer_same(const infer_context& c) { return one(c.type(0), c.shape(0)); }

/// Same as the first input, floating point only.
inline inferred infer_float(const infer_context& c) {
  if (!is_floating(c.type(0))) return c.refuse("needs floating-point elements", {}, std::string(name_of(c.type(0))));
  return infer_same(c);
}

/// Broadcast of all inputs, which have one type.
inline inferred infer_arithmetic(const infer_context& c) {
  dims shape = c.shape(0);
  for (std::size_t k = 1; k < c.inputs(); ++k) {
    TENSORSMITH_CHECK(c.need_same_type(0, k));
    TENSORSMITH_TRY(shape, broadcast(c, shape, c.shape(k)));
  }
  return one(c.type(0), std::move(shape));
}

/// The exponent may have another type.
inline inferred infer_pow(const infer_context& c) {
  TENSORSMITH_TRY(dims shape, broadcast(c, c.shape(0), c.shape(1)));
  return one(c.type(0), std::move(shape));
}

inline inferred infer_compare(const infer_context& c) {
  TENSORSMITH_TRY(std::vector<value_type> out, infer_arithmetic(c));
  out[0].type = dtype::boolean;
  return out;
}

inline inferred infer_where(const infer_context& c) {
  if (c.type(0) != dtype::boolean) return c.refuse("the condition must be boolean", "bool", std::string(name_of(c.type(0))));
  TENSORSMITH_CHECK(c.need_same_type(1, 2));
  TENSORSMITH_TRY(const dims branches, broadcast(c, c.shape(1), c.shape(2)));
  TENSORSMITH_TRY(dims shape, broadcast(c, c.shape(0), branches));
  return one(c.type(1), std::move(shape));
}

inline inferred infer_cast(const infer_context& c) {
  const auto to = dtype_of_element_code(c.op().integer("to", 0));
  if (!to) return c.refuse("attribute to names no element type", {}, std::to_string(c.op().integer("to", 0)));
  return one(*to, c.shape(0));
}

inline inferred infer_softmax(const infer_context& c) {
  TENSORSMITH_CHECK(c.axis(c.op().integer("axis", -1), c.rank(0)));
  return infer_float(c);
}

inline inferred infer_matmul(const infer_context& c) {
  TENSORSMITH_CHECK(c.need_same_type(0, 1));
  const dims &a = c.shape(0), &b = c.shape(1);
  if (a.size() < 2 || b.size() < 2) return c.refuse("factors are matrices or stacks of them", "2 dimensions or more", to_string(a) + " and " + to_string(b));
  if (a.back() != b[b.size() - 2]) return c.refuse("inner extents of a product differ", a.back().text(), b[b.size() - 2].text());
  TENSORSMITH_TRY(dims shape, broadcast(c, dims(a.begin(), a.end() - 2), dims(b.begin(), b.end() - 2)));
  shape.push_back(a[a.size() - 2]);
  shape.push_back(b.back());
  return one(c.type(0), std::move(shape));
}

inline inferred infer_gemm(const infer_context& c) {
  TENSORSMITH_CHECK(c.need_rank(0, 2));
  TENSORSMITH_CHECK(c.need_rank(1, 2));
  TENSORSMITH_CHECK(c.need_same_type(0, 1));
  dims a = c.shape(0), b = c.shape(1);
  if (c.op().integer("transA", 0) != 0) std::swap(a[0], a[1]);
  if (c.op().integer("transB", 0) != 0) std::swap(b[0], b[1]);
  if (a[1] != b[0]) return c.refuse("inner extents of a product differ", a[1].text(), b[0].text());
  dims shape{a[0], b[1]};
  if (c.has(2)) {
    TENSORSMITH_TRY(const dims with_bias, broadcast(c, shape, c.shape(2)));
    if (with_bias != shape) return c.refuse("the bias is larger than the product", to_string(shape), to_string(c.shape(2)));
  }
  return one(c.type(0), std::move(shape));
}

/// Conv: x [n, c, …], weight [o, c/group, kernel…], bias [o]?.
inline inferred infer_conv(const infer_context& c) {
  const dims &x = c.shape(0), &w = c.shape(1);
  TENSORSMITH_CHECK(c.need_same_type(0, 1));
  if (x.size() < 3 || w.size() != x.size()) return c.refuse("input and weight need one number of dimensions, 3 or more", to_string(x), to_string(w));
  const std::int64_t group = c.op().integer("group", 1);
  if (group < 1 || x[1] != w[1] * dim(group))
    return c.refuse("the weight does not fit the channels of the input", (w[1] * dim(group)).text() + " channels", x[1].text());
  if (c.has(2)) TENSORSMITH_CHECK(c.need_shape(2, {w[0]}));
  const std::size_t spatial = x.size() - 2;
  const auto list = [&](const char* key, std::size_t count, std::int64_t fallback) {
    auto values = c.op().integers(key);
    if (values.size() != count) values.assign(count, fallback);
    return values;
  };
  const auto strides = list("strides", spatial, 1), dilations = list("dilations", spatial, 1), pads = list("pads", 2 * spatial, 0);
  dims shape{x[0], w[0]};
  for (std::size_t i = 0; i < spatial; ++i) {
    TENSORSMITH_TRY(const std::int64_t kernel, c.fixed(w[2 + i], "a kernel"));
    TENSORSMITH_TRY(dim extent, window_extent(c, x[2 + i], pads[i] + pads[spatial + i], kernel, dilations[i], strides[i]));
    shape.push_back(std::move(extent));
  }
  return one(c.type(0), std::move(shape));
}

/// InstanceNormalization: x [n, c, …], scale [c], bias [c].
inline inferred infer_instance_norm(const infer_context& c) {
  if (c.rank(0) < 3) return c.refuse("needs [n, c, …]", "3 dimensions or more", to_string(c.shape(0)));
  for (std::size_t k = 1; k <= 2; ++k) {
    TENSORSMITH_CHECK(c.need_shape(k, {c.shape(0)[1]}));
    TENSORSMITH_CHECK(c.need_same_type(0, k));
  }
  return infer_float(c);
}

/// group_norm: as InstanceNormalization, and the channels divide into the groups.
inline inferred infer_group_norm(const infer_context& c) {
  TENSORSMITH_TRY(auto out, infer_instance_norm(c));
  TENSORSMITH_TRY(const std::int64_t channels, c.fixed(c.shape(0)[1], "the channels of a group_norm"));
  const std::int64_t groups = c.op().integer("num_groups", 0);
  if (groups < 1 || channels % groups != 0)
    return c.refuse("the channels do not divide into the groups", "a divisor of " + std::to_string(channels), std::to_string(groups));
  return out;
}

/// LayerNormalization and layer_norm: scale and bias over the axes from `axis` on (composite: the last one).
inline inferred infer_layer_norm(const infer_context& c) {
  if (c.rank(0) < 1) return c.refuse("needs at least one dimension");
  TENSORSMITH_TRY(const std::size_t axis, c.axis(c.op().integer("axis", -1), c.rank(0)));
  const dims tail(c.shape(0).begin() + static_cast<std::ptrdiff_t>(axis), c.shape(0).end());
  for (std::size_t k = 1; k < c.inputs(); ++k) {
    if (!c.has(k)) continue;
    TENSORSMITH_CHECK(c.need_shape(k, tail));
    TENSORSMITH_CHECK(c.need_same_type(0, k));
  }
  return infer_float(c);
}

/// ReduceMean, ReduceSum, ReduceMax, ReduceMin: axes as attribute (before opset 18) or second input; all axes without either.
inline inferred infer_reduce(const infer_context& c) {
  const auto given = c.has(1) ? c.numbers(1) : std::optional(c.op().integers("axes"));
  if (!given) return c.refuse("the axes must be known when the graph is built");
  const bool keep = c.op().integer("keepdims", 1) != 0;
  std::vector<bool> reduced(c.rank(0), given->empty());
  for (const std::int64_t a : *given) {
    TENSORSMITH_TRY(const std::size_t at, c.axis(a, c.rank(0)));
    reduced[at] = true;
  }
  dims shape;
  for (std::size_t i = 0; i < c.rank(0); ++i) {
    if (!reduced[i]) shape.push_back(c.shape(0)[i]);
    else if (keep) shape.emplace_back(1);
  }
  return one(c.type(0), std::move(shape));
}

inline inferred infer_argmax(const infer_context& c) {
  TENSORSMITH_TRY(const std::size_t axis, c.axis(c.op().integer("axis", 0), c.rank(0)));
  dims shape = c.shape(0);
  if (c.op().integer("keepdims", 1) != 0) shape[axis] = dim(1);
  else shape.erase(shape.begin() + static_cast<std::ptrdiff_t>(axis));
  return one(dtype::i64, std::move(shape));
}

/// Resize by constant scales (whole numbers) or known sizes; inputs x, roi?, scales?, sizes?.
inline inferred infer_resize(const infer_context& c) {
  if (const dims* sizes = c.elements(3)) {
    if (sizes->size() != c.rank(0)) return c.refuse("one size for each dimension", std::to_string(c.rank(0)), std::to_string(sizes->size()));
    return one(c.type(0), *sizes);
  }
  const constant* scales = c.held(2);
  if (scales == nullptr || scales->type != dtype::f32 || scales->bytes.size() != c.rank(0) * sizeof(float))
    return c.refuse("scales or sizes must be known when the graph is built", std::to_string(c.rank(0)) + " numbers");
  dims shape;
  for (std::size_t i = 0; i < c.rank(0); ++i) {
    float scale = 0;
    std::memcpy(&scale, scales->bytes.data() + i * sizeof scale, sizeof scale);
    if (!(scale >= 1 && scale <= 65536) || scale != std::floor(scale))
      return c.refuse("scales are whole numbers", "1 to 65536", std::to_string(scale));
    shape.push_back(c.shape(0)[i] * dim(static_cast<std::int64_t>(scale)));
  }
  return one(c.type(0), std::move(shape));
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
