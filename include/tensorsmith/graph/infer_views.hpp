// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/infer_views.hpp: types and shapes of operators that move elements: reshape, transpose, slice, gather, and those
// that compute with shapes. graph/shapes.hpp holds the table that names them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/graph/infer_context.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

inline inferred infer_concat(const infer_context& c) {
  TENSORSMITH_TRY(const std::size_t axis, c.axis(c.op().integer("axis", 0), c.rank(0)));
  dims shape = c.shape(0);
  for (std::size_t k = 1; k < c.inputs(); ++k) {
    TENSORSMITH_CHECK(c.need_same_type(0, k));
    TENSORSMITH_CHECK(c.need_rank(k, shape.size()));
    dims other = c.shape(k);
    const dim joined = shape[axis] + other[axis];
    other[axis] = shape[axis];
    if (other != shape) return c.refuse("extents beside the joined axis differ", to_string(c.shape(0)), to_string(c.shape(k)));
    shape[axis] = joined;
  }
  return one(c.type(0), std::move(shape));
}

inline inferred infer_gather(const infer_context& c) {
  if (c.type(1) != dtype::i64 && c.type(1) != dtype::i32)
    return c.refuse("indices are i32 or i64", {}, std::string(name_of(c.type(1))));
  TENSORSMITH_TRY(const std::size_t axis, c.axis(c.op().integer("axis", 0), c.rank(0)));
  const auto at = static_cast<std::ptrdiff_t>(axis);
  dims shape(c.shape(0).begin(), c.shape(0).begin() + at);
  shape.insert(shape.end(), c.shape(1).begin(), c.shape(1).end());
  shape.insert(shape.end(), c.shape(0).begin() + at + 1, c.shape(0).end());
  return one(c.type(0), std::move(shape));
}

/// GatherND: the last axis of the indices addresses the axes of the data that follow the batch.
inline inferred infer_gather_nd(const infer_context& c) {
  if (c.type(1) != dtype::i64) return c.refuse("indices are i64", {}, std::string(name_of(c.type(1))));
  const std::int64_t batch = c.op().integer("batch_dims", 0);
  const dims &data = c.shape(0), &indices = c.shape(1);
  if (indices.empty() || batch < 0 || static_cast<std::size_t>(batch) >= std::min(data.size(), indices.size()))
    return c.refuse("batch_dims is below both ranks", {}, std::to_string(batch));
  TENSORSMITH_TRY(const std::int64_t depth, c.fixed(indices.back(), "the number of axes that indices address"));
  if (depth < 1 || batch + depth > static_cast<std::int64_t>(data.size()))
    return c.refuse("indices address more axes than the data has", to_string(data), std::to_string(depth));
  dims shape(indices.begin(), indices.end() - 1);
  shape.insert(shape.end(), data.begin() + static_cast<std::ptrdiff_t>(batch + depth), data.end());
  return one(c.type(0), std::move(shape));
}

/// The extent that -1 stands for: the product of `all` divided by that of `named`, after what both have in common is taken out.
inline std::optional<dim> left_over(dims all, const dims& named) {
  dim rest(1);
  for (const dim& d : named) {
    const auto at = std::find(all.begin(), all.end(), d);
    if (at != all.end()) all.erase(at);
    else rest = rest * d;
  }
  return product(all, 0, all.size()).exact_div(rest);
}

/// Reshape to known extents: 0 copies the extent of the same place, -1 takes the rest.
inline inferred infer_reshape(const infer_context& c) {
  const dims* target = c.elements(1);
  if (target == nullptr) return c.refuse("the target shape must be known when the graph is built");
  const dims& from = c.shape(0);
  const bool keep_zero = c.op().integer("allowzero", 0) != 0;
  dims shape;
  std::optional<std::size_t> open;
  for (std::size_t i = 0; i < target->size(); ++i) {
    const auto n = (*target)[i].constant();
    if (n == 0 && !keep_zero) {
      if (i >= from.size()) return c.refuse("0 in the target shape copies an extent that does not exist", {}, to_string(*target));
      shape.push_back(from[i]);
    } else if (n && *n < 0) {
      if (*n != -1 || open) return c.refuse("the target shape has a second open or a negative extent", {}, to_string(*target));
      open = i;
      shape.emplace_back(1);
    } else {
      shape.push_back((*target)[i]);
    }
  }
  const std::string both = to_string(from) + " to " + to_string(*target);
  if (open) {
    const auto rest = left_over(from, shape);
    if (!rest) return c.refuse("the elements do not divide into the target shape", {}, both);
    shape[*open] = *rest;
  } else if (product(from, 0, from.size()) != product(shape, 0, shape.size())) {
    return c.refuse("a reshape must keep the number of elements", {}, both);
  }
  return one(c.type(0), std::move(shape));
}

inline inferred infer_transpose(const infer_context& c) {
  auto perm = c.op().integers("perm");
  const std::size_t rank = c.rank(0);
  if (perm.empty())
    for (std::size_t i = rank; i-- > 0;) perm.push_back(static_cast<std::int64_t>(i));
  std::vector<bool> seen(rank, false);
  dims shape;
  for (const std::int64_t p : perm) {
    if (p < 0 || p >= static_cast<std::int64_t>(rank) || seen[static_cast<std::size_t>(p)])
      return c.refuse("attribute perm is no permutation of the axes", {}, std::to_string(p));
    seen[static_cast<std::size_t>(p)] = true;
    shape.push_back(c.shape(0)[static_cast<std::size_t>(p)]);
  }
  if (shape.size() != rank) return c.refuse("attribute perm is no permutation of the axes", std::to_string(rank), std::to_string(perm.size()));
  return one(c.type(0), std::move(shape));
}

inline inferred infer_shape(const infer_context& c) {
  const auto rank = static_cast<std::int64_t>(c.rank(0));
  const auto clamped = [rank](std::int64_t i) { return std::clamp<std::int64_t>(i < 0 ? i + rank : i, 0, rank); };
  const std::int64_t first = clamped(c.op().integer("start", 0)), last = clamped(c.op().integer("end", rank));
  return one(dtype::i64, {dim(std::max<std::int64_t>(last - first, 0))});
}

/// Extent of [start, end) of `x`, with step 1. Symbolic bounds are taken to lie inside.
inline std::optional<dim> sliced_extent(const dim& x, const dim& start, const dim& end) {
  constexpr std::int64_t endless = std::int64_t{1} << 31;  // exporters write INT_MAX or INT64_MAX for "to the end"
  const auto bound = [&](const dim& d) -> std::optional<dim> {
    const auto n = d.constant();
    if (!n) return d;
    if (*n >= endless - 1) return x;
    if (*n < 0) return *n <= -endless ? dim(0) : x + d;
    const auto whole = x.constant();
    if (whole) return dim(std::min(*n, *whole));
    return *n == 0 ? std::optional(d) : std::nullopt;  // a positive bound of an unknown extent may lie past its end
  };
  const auto from = start.constant() && *start.constant() >= 0 ? std::optional(start) : bound(start);
  const auto to = bound(end);
  if (!from || !to) return std::nullopt;
  const dim out = *to - *from;
  const auto n = out.constant();
  return n && *n < 0 ? dim(0) : out;
}

/// Slice: x, starts, ends, axes?, steps?.
inline inferred infer_slice(const infer_context& c) {
  const dims *starts = c.elements(1), *ends = c.elements(2);
  if (starts == nullptr || ends == nullptr || starts->size() != ends->size())
    return c.refuse("starts and ends must be known when the graph is built and of one length");
  std::vector<std::int64_t> axes(starts->size()), steps(starts->size(), 1);
  for (std::size_t i = 0; i < axes.size(); ++i) axes[i] = static_cast<std::int64_t>(i);
  if (c.has(3)) {
    const auto given = c.numbers(3);
    if (!given || given->size() != axes.size()) return c.refuse("axes must be known and as many as starts");
    axes = *given;
  }
  if (c.has(4)) {
    const auto given = c.numbers(4);
    if (!given || given->size() != axes.size()) return c.refuse("steps must be known and as many as starts");
    steps = *given;
  }
  dims shape = c.shape(0);
  for (std::size_t i = 0; i < axes.size(); ++i) {
    TENSORSMITH_TRY(const std::size_t at, c.axis(axes[i], shape.size()));
    auto extent = steps[i] >= 1 ? sliced_extent(shape[at], (*starts)[i], (*ends)[i]) : std::nullopt;
    if (extent && steps[i] > 1) extent = (*extent + dim(steps[i] - 1)).floor_div(steps[i]);
    if (!extent)
      return c.refuse("the extent of the slice cannot be told", {}, "[" + (*starts)[i].text() + ", " + (*ends)[i].text() + ") of " + shape[at].text());
    shape[at] = *extent;
  }
  return one(c.type(0), std::move(shape));
}

/// Split: x, sizes? ; equal parts without sizes.
inline inferred infer_split(const infer_context& c) {
  TENSORSMITH_TRY(const std::size_t axis, c.axis(c.op().integer("axis", 0), c.rank(0)));
  const std::size_t parts = c.op().outputs.size();
  std::vector<value_type> out(parts, value_type{c.type(0), c.shape(0)});
  if (const dims* sizes = c.elements(1)) {
    dim sum(0);
    for (const dim& s : *sizes) sum = sum + s;
    if (sizes->size() != parts || sum != c.shape(0)[axis])
      return c.refuse("the parts do not make up the whole", c.shape(0)[axis].text(), to_string(*sizes));
    for (std::size_t k = 0; k < parts; ++k) out[k].shape[axis] = (*sizes)[k];
    return out;
  }
  if (c.has(1)) return c.refuse("the sizes must be known when the graph is built");
  const dim& whole = c.shape(0)[axis];
  const auto part = parts == 0 ? std::nullopt : whole.floor_div(static_cast<std::int64_t>(parts));
  if (!part || *part * dim(parts) != whole) return c.refuse("the extent does not divide into equal parts", whole.text(), std::to_string(parts));
  for (value_type& t : out) t.shape[axis] = *part;
  return out;
}

inline inferred infer_pad(const infer_context& c) {
  const auto pads = c.numbers(1);
  const std::size_t rank = c.rank(0);
  if (!pads || pads->size() != 2 * rank) return c.refuse("pads must be known when the graph is built", std::to_string(2 * rank) + " numbers");
  dims shape = c.shape(0);
  for (std::size_t i = 0; i < rank; ++i) shape[i] = shape[i] + dim((*pads)[i] + (*pads)[rank + i]);
  return one(c.type(0), std::move(shape));
}

inline inferred infer_unsqueeze(const infer_context& c) {
  const auto axes = c.numbers(1);
  if (!axes) return c.refuse("the axes must be known when the graph is built");
  const std::size_t rank = c.rank(0) + axes->size();
  std::vector<bool> added(rank, false);
  for (const std::int64_t a : *axes) {
    TENSORSMITH_TRY(const std::size_t at, c.axis(a, rank));
    if (added[at]) return c.refuse("an axis is named twice", {}, std::to_string(a));
    added[at] = true;
  }
  dims shape;
  std::size_t next = 0;
  for (std::size_t i = 0; i < rank; ++i) shape.push_back(added[i] ? dim(1) : c.shape(0)[next++]);
  return one(c.type(0), std::move(shape));
}

inline inferred infer_squeeze(const infer_context& c) {
  const auto axes = c.numbers(1);
  if (!axes) return c.refuse("the axes must be known when the graph is built");
  std::vector<bool> dropped(c.rank(0), false);
  for (const std::int64_t a : *axes) {
    TENSORSMITH_TRY(const std::size_t at, c.axis(a, c.rank(0)));
    if (c.shape(0)[at] != dim(1)) return c.refuse("only extents of 1 can be dropped", "1", c.shape(0)[at].text());
    dropped[at] = true;
  }
  dims shape;
  for (std::size_t i = 0; i < c.rank(0); ++i)
    if (!dropped[i]) shape.push_back(c.shape(0)[i]);
  return one(c.type(0), std::move(shape));
}

/// Expand broadcasts both ways. An input of symbolic extent is taken to be 1 or the target: that is what Expand demands of it.
inline inferred infer_expand(const infer_context& c) {
  const dims* target = c.elements(1);
  if (target == nullptr) return c.refuse("the target shape must be known when the graph is built");
  dims from = c.shape(0);
  for (std::size_t i = 0; i < from.size() && i < target->size(); ++i) {
    dim& d = from[from.size() - 1 - i];
    const dim& t = (*target)[target->size() - 1 - i];
    if (!d.is_constant() && t != dim(1)) d = t;
  }
  TENSORSMITH_TRY(dims shape, broadcast(c, from, *target));
  return one(c.type(0), std::move(shape));
}

/// ConstantOfShape: attribute value tells the type (f32 without it).
inline inferred infer_constant_of_shape(const infer_context& c) {
  const dims* target = c.elements(0);
  if (target == nullptr) return c.refuse("the shape must be known when the graph is built");
  const attribute_value* filler = c.op().find("value");
  const auto* held = filler ? std::get_if<constant>(filler) : nullptr;
  return one(held ? held->type : dtype::f32, *target);
}

/// Range of known integers: start, limit, step.
inline inferred infer_range(const infer_context& c) {
  const dims *start = c.elements(0), *limit = c.elements(1);
  const auto step = c.numbers(2);
  if (start == nullptr || limit == nullptr || !step || step->size() != 1 || (*step)[0] != 1)
    return c.refuse("start and limit must be known when the graph is built, and the step 1");
  return one(c.type(0), {(*limit)[0] - (*start)[0]});
}

inline inferred infer_trilu(const infer_context& c) {
  if (c.rank(0) < 2) return c.refuse("needs a matrix", "2 dimensions or more", to_string(c.shape(0)));
  return one(c.type(0), c.shape(0));
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
