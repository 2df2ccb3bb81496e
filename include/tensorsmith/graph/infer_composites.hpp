// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/infer_composites.hpp: types and shapes of the composites of graph/ops.hpp. graph/shapes.hpp holds the table.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/graph/infer_layers.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

inline inferred infer_linear(const infer_context& c) {
  TENSORSMITH_CHECK(c.need_rank(1, 2));
  TENSORSMITH_CHECK(c.need_same_type(0, 1));
  const dims& weight = c.shape(1);
  if (c.rank(0) < 1 || c.shape(0).back() != weight[1])
    return c.refuse("the weight does not fit the last axis of the input", weight[1].text(), to_string(c.shape(0)));
  if (c.has(2)) TENSORSMITH_CHECK(c.need_shape(2, {weight[0]}));
  dims shape = c.shape(0);
  shape.back() = weight[0];
  return one(c.type(0), std::move(shape));
}

inline inferred infer_attention(const infer_context& c) {
  for (std::size_t k = 0; k < 3; ++k) {
    TENSORSMITH_CHECK(c.need_rank(k, 3));
    TENSORSMITH_CHECK(c.need_same_type(0, k));
  }
  const dims &q = c.shape(0), &k = c.shape(1), &v = c.shape(2);
  if (q[0] != k[0] || k[0] != v[0] || k[1] != v[1] || q[2] != k[2])
    return c.refuse("queries, keys and values do not fit together", "[b, s, d], [b, t, d], [b, t, e]",
                    to_string(q) + ", " + to_string(k) + ", " + to_string(v));
  const std::int64_t heads = c.op().integer("num_heads", 0);
  TENSORSMITH_TRY(const std::int64_t width, c.fixed(q[2], "the width of the heads"));
  TENSORSMITH_TRY(const std::int64_t out, c.fixed(v[2], "the width of the heads"));
  if (heads < 1 || width % heads != 0 || out % heads != 0)
    return c.refuse("the width does not divide into the heads", "a divisor of " + std::to_string(width), std::to_string(heads));
  return one(c.type(0), {q[0], q[1], v[2]});
}

inline inferred infer_geglu(const infer_context& c) {
  if (c.rank(0) < 1) return c.refuse("needs at least one dimension");
  dims shape = c.shape(0);
  const auto half = shape.back().floor_div(2);
  if (!half || *half * dim(2) != shape.back()) return c.refuse("the last axis has no two halves", "an even extent", shape.back().text());
  shape.back() = *half;
  return one(c.type(0), std::move(shape));
}

inline inferred infer_upsample_nearest(const infer_context& c) {
  TENSORSMITH_CHECK(c.need_rank(0, 4));
  const std::int64_t scale = c.op().integer("scale", 0);
  if (scale < 1) return c.refuse("attribute scale is at least 1", {}, std::to_string(scale));
  const dims& x = c.shape(0);
  return one(c.type(0), {x[0], x[1], x[2] * dim(scale), x[3] * dim(scale)});
}

inline inferred infer_timestep_embedding(const infer_context& c) {
  if (c.rank(0) > 1) return c.refuse("timesteps are a number or a list", "0 or 1 dimensions", to_string(c.shape(0)));
  const std::int64_t width = c.op().integer("dim", 0);
  if (width < 2) return c.refuse("attribute dim is at least 2", {}, std::to_string(width));
  return one(dtype::f32, {c.rank(0) == 0 ? dim(1) : c.shape(0)[0], dim(width)});
}

inline inferred infer_image_to_tokens(const infer_context& c) {
  TENSORSMITH_CHECK(c.need_rank(0, 4));
  const dims& x = c.shape(0);
  return one(c.type(0), {x[0], x[2] * x[3], x[1]});
}

inline inferred infer_tokens_to_image(const infer_context& c) {
  TENSORSMITH_CHECK(c.need_rank(0, 3));
  TENSORSMITH_CHECK(c.need_rank(1, 4));
  const dims& like = c.shape(1);
  TENSORSMITH_CHECK(c.need_shape(0, {like[0], like[2] * like[3], like[1]}));
  return one(c.type(0), like);
}

inline inferred infer_pool_at_token(const infer_context& c) {
  TENSORSMITH_CHECK(c.need_rank(0, 3));
  const dims& hidden = c.shape(0);
  TENSORSMITH_CHECK(c.need_shape(1, {hidden[0], hidden[1]}));
  if (c.type(1) != dtype::i64 && c.type(1) != dtype::i32)
    return c.refuse("token ids are i32 or i64", {}, std::string(name_of(c.type(1))));
  return one(c.type(0), {hidden[0], hidden[2]});
}

inline inferred infer_pad_bottom_right(const infer_context& c) {
  TENSORSMITH_CHECK(c.need_rank(0, 4));
  const std::int64_t amount = c.op().integer("amount", -1);
  if (amount < 0) return c.refuse("attribute amount is not negative", {}, std::to_string(amount));
  const dims& x = c.shape(0);
  return one(c.type(0), {x[0], x[1], x[2] + dim(amount), x[3] + dim(amount)});
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
