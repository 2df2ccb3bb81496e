// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/infer_context.hpp: what a rule of shape inference sees of a node, and the arithmetic that rules share.
//
// Include this to write a rule. graph/shapes.hpp holds the table of rules and is what users of shape inference include.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/core/half.hpp"
#include "tensorsmith/graph/ir.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Element type and extents of a value.
struct value_type {
  dtype type = dtype::f32;
  dims shape;
  bool operator==(const value_type&) const = default;
};

/// "f32 [batch_size, 77, 768]".
inline std::string to_string(const value_type& t) { return std::string(name_of(t.type)) + ' ' + to_string(t.shape); }

namespace detail {

/// Elements of a small integer tensor that are known when the graph is built, as expressions: shapes, axes, bounds of slices.
using known_elements = std::unordered_map<value_id, dims>;

/// The elements of a constant of at most `most` integers; nullopt for other types and larger ones.
inline std::optional<dims> integer_elements(const constant& c, std::size_t most = 64) {
  const std::size_t count = element_count(c.shape);
  if (c.shape.size() > 1 || count > most || (c.type != dtype::i64 && c.type != dtype::i32)) return std::nullopt;
  if (c.bytes.size() != byte_count(c.type, count)) return std::nullopt;
  dims out;
  for (std::size_t i = 0; i < count; ++i) {
    std::int64_t wide = 0;
    if (c.type == dtype::i64) {
      std::memcpy(&wide, c.bytes.data() + i * sizeof wide, sizeof wide);
    } else {
      std::int32_t narrow = 0;
      std::memcpy(&narrow, c.bytes.data() + i * sizeof narrow, sizeof narrow);
      wide = narrow;
    }
    out.emplace_back(wide);
  }
  return out;
}

/// A node, the types of its inputs, and what is known of their elements.
class infer_context {
 public:
  infer_context(const graph& model, const node& n, const known_elements& known,
                const std::unordered_map<value_id, std::size_t>& constants)
      : model_(model), node_(n), known_(known), constants_(constants) {}

  const node& op() const noexcept { return node_; }
  std::size_t inputs() const noexcept { return node_.inputs.size(); }
  bool has(std::size_t k) const noexcept { return k < node_.inputs.size() && node_.inputs[k] != value_id::none; }
  dtype type(std::size_t k) const { return model_[node_.inputs[k]].type; }
  const dims& shape(std::size_t k) const { return model_[node_.inputs[k]].shape; }
  std::size_t rank(std::size_t k) const { return shape(k).size(); }

  /// The known elements of input `k`, or nullptr.
  const dims* elements(std::size_t k) const {
    if (!has(k)) return nullptr;
    const auto at = known_.find(node_.inputs[k]);
    return at == known_.end() ? nullptr : &at->second;
  }
  /// The known elements of input `k` as numbers; nullopt if it is absent, unknown, or symbols are among them.
  std::optional<std::vector<std::int64_t>> numbers(std::size_t k) const {
    const dims* list = elements(k);
    if (list == nullptr) return std::nullopt;
    std::vector<std::int64_t> out;
    for (const dim& d : *list) {
      const auto c = d.constant();
      if (!c) return std::nullopt;
      out.push_back(*c);
    }
    return out;
  }
  /// The constant behind input `k`, or nullptr.
  const constant* held(std::size_t k) const {
    if (!has(k)) return nullptr;
    const auto at = constants_.find(node_.inputs[k]);
    return at == constants_.end() ? nullptr : std::get_if<constant>(&model_.initializers[at->second].data);
  }

  failure refuse(std::string what, std::string expected = {}, std::string found = {}) const {
    return failure{.code = errc::mismatch, .what = std::move(what), .place = "node " + quoted(node_.name),
                   .expected = std::move(expected), .found = std::move(found)};
  }

  /// An axis in [-rank, rank) as one in [0, rank).
  result<std::size_t> axis(std::int64_t given, std::size_t rank) const {
    const auto most = static_cast<std::int64_t>(rank);
    if (given < -most || given >= most)
      return refuse("axis outside the tensor", "-" + std::to_string(most) + " to " + std::to_string(most - 1),
                    std::to_string(given));
    return static_cast<std::size_t>(given < 0 ? given + most : given);
  }

  /// @fails mismatch unless input `k` has this rank
  result<void> need_rank(std::size_t k, std::size_t wanted) const {
    if (rank(k) == wanted) return {};
    return refuse("input " + std::to_string(k) + " has the wrong number of dimensions", std::to_string(wanted), to_string(shape(k)));
  }
  /// @fails mismatch unless inputs `a` and `b` have the same element type
  result<void> need_same_type(std::size_t a, std::size_t b) const {
    if (type(a) == type(b)) return {};
    return refuse("inputs have different element types", std::string(name_of(type(a))), std::string(name_of(type(b))));
  }
  /// @fails mismatch unless input `k` has exactly this shape
  result<void> need_shape(std::size_t k, const dims& wanted) const {
    if (shape(k) == wanted) return {};
    return refuse("input " + std::to_string(k) + " has the wrong shape", to_string(wanted), to_string(shape(k)));
  }
  /// The number that an extent is. @fails mismatch if it is symbolic
  result<std::int64_t> fixed(const dim& extent, const char* what) const {
    if (const auto c = extent.constant()) return *c;
    return refuse(std::string(what) + " must be known when the graph is built", "a number", extent.text());
  }

 private:
  const graph& model_;
  const node& node_;
  const known_elements& known_;
  const std::unordered_map<value_id, std::size_t>& constants_;
};

using inferred = result<std::vector<value_type>>;

inline std::vector<value_type> one(dtype type, dims shape) { return {value_type{type, std::move(shape)}}; }

/// numpy's broadcasting: extents from the right, equal expressions or 1.
inline result<dims> broadcast(const infer_context& c, const dims& a, const dims& b) {
  const dims& longer = a.size() >= b.size() ? a : b;
  const dims& shorter = a.size() >= b.size() ? b : a;
  dims out = longer;
  const std::size_t lead = longer.size() - shorter.size();
  for (std::size_t i = 0; i < shorter.size(); ++i) {
    dim& into = out[lead + i];
    if (into == shorter[i] || shorter[i] == dim(1)) continue;
    if (into != dim(1)) return c.refuse("shapes cannot be broadcast", "equal extents or 1", to_string(a) + " and " + to_string(b));
    into = shorter[i];
  }
  return out;
}

/// Product of extents [first, last).
inline dim product(const dims& shape, std::size_t first, std::size_t last) {
  dim out(1);
  for (std::size_t i = first; i < last; ++i) out = out * shape[i];
  return out;
}

/// Extent after a window of `kernel` elements moves by `stride`: floor((x + pad - dilation·(kernel - 1) - 1) / stride) + 1.
inline result<dim> window_extent(const infer_context& c, const dim& x, std::int64_t pad, std::int64_t kernel, std::int64_t dilation,
                                 std::int64_t stride) {
  if (stride < 1 || dilation < 1 || kernel < 1) return c.refuse("strides, dilations and kernels are at least 1");
  const auto steps = (x + dim(pad - dilation * (kernel - 1) - 1)).floor_div(stride);
  if (!steps)
    return c.refuse("the extent cannot be divided by the stride", "a multiple of " + std::to_string(stride), x.text());
  const dim out = *steps + dim(1);
  if (const auto n = out.constant(); n && *n < 1) return c.refuse("the input is smaller than the kernel", {}, x.text());
  return out;
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
