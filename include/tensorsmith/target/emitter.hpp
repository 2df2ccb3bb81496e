// SPDX-License-Identifier: MIT
//
// tensorsmith/target/emitter.hpp: rewrites a graph node by node: what a lowering uses to replace a composite by several nodes.
//
// Include this to write a lowering. The emitter names the new nodes and values after the module they come from, types them, and
// holds every small constant once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "tensorsmith/core/half.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/graph/unique_names.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Appends the bytes of a number as one element of `type` (f64, f32, f16, bf16, i64, i32).
inline void append_element(std::vector<std::byte>& out, dtype type, double value) {
  const auto put = [&out](auto element) {
    const std::size_t at = out.size();
    out.resize(at + sizeof element);
    std::memcpy(out.data() + at, &element, sizeof element);
  };
  switch (type) {
    case dtype::f64: return put(value);
    case dtype::f16: return put(f32_to_f16(f64_to_f32_odd(value)));
    case dtype::bf16: return put(f32_to_bf16(f64_to_f32_odd(value)));
    case dtype::i64: return put(static_cast<std::int64_t>(value));
    case dtype::i32: return put(static_cast<std::int32_t>(value));
    default: return put(static_cast<float>(value));
  }
}

}  // namespace detail

/// Replaces the nodes of a graph in order. Values and initializers are only added; `finish` puts the new nodes in place.
class graph_emitter {
 public:
  explicit graph_emitter(graph& model) : model_(model) {
    nodes_.reserve(model.nodes.size() * 3);
    for (const value& v : model.values) value_names_.take(v.name);
    for (const node& n : model.nodes) node_names_.take(n.name);
    for (const initializer& i : model.initializers)
      if (const auto* c = std::get_if<constant>(&i.data)) known_.emplace(key_of(*c), i.value);
  }

  const graph& model() const noexcept { return model_; }
  const value& operator[](value_id id) const { return model_[id]; }

  /// Starts the replacement of `from`: later nodes are named after its place in the model.
  void begin(const node& from) {
    const std::size_t slash = from.name.rfind('/');
    prefix_ = slash == std::string::npos ? std::string() : from.name.substr(0, slash);
    module_ = from.module;
    replaced_ = from.name;
  }

  /// Takes a node over as it is.
  void keep(node n) { nodes_.push_back(std::move(n)); }

  /// Adds a node with one output of the given type and shape and returns that output.
  value_id emit(std::string_view op, std::vector<value_id> inputs, dtype type, dims shape,
                std::vector<attribute> attributes = {}) {
    std::string name = node_names_.take(prefix_ + "/" + std::string(op));
    const value_id out = model_.add({value_names_.take(name + "_output_0"), type, std::move(shape)});
    push(op, std::move(name), std::move(inputs), {out}, std::move(attributes));
    return out;
  }

  /// Adds a node that writes existing values: the last of a replacement.
  void emit_into(std::vector<value_id> outputs, std::string_view op, std::vector<value_id> inputs,
                 std::vector<attribute> attributes = {}) {
    std::string name = node_names_.take(prefix_ + "/" + std::string(op));
    for (std::size_t k = 0; k < outputs.size(); ++k) {  // a value that was named after the composite gets the new node's name
      std::string& old = model_[outputs[k]].name;
      const std::string ending = "_output_" + std::to_string(k);
      if (old == replaced_ + ending) old = value_names_.take(name + ending);
    }
    push(op, std::move(name), std::move(inputs), std::move(outputs), std::move(attributes));
  }

  /// `emit_into` when `into` is a value, else `emit`.
  value_id emit_or_into(value_id into, std::string_view op, std::vector<value_id> inputs, dtype type, dims shape,
                        std::vector<attribute> attributes = {}) {
    if (into == value_id::none) return emit(op, std::move(inputs), type, std::move(shape), std::move(attributes));
    emit_into({into}, op, std::move(inputs), std::move(attributes));
    return into;
  }

  /// Adds a node with several outputs.
  std::vector<value_id> emit_many(std::string_view op, std::vector<value_id> inputs, dtype type, const std::vector<dims>& shapes,
                                  std::vector<attribute> attributes = {}) {
    std::string name = node_names_.take(prefix_ + "/" + std::string(op));
    std::vector<value_id> outs;
    for (std::size_t k = 0; k < shapes.size(); ++k)
      outs.push_back(model_.add({value_names_.take(name + "_output_" + std::to_string(k)), type, shapes[k]}));
    push(op, std::move(name), std::move(inputs), outs, std::move(attributes));
    return outs;
  }

  /// A constant of the graph; equal ones are one value.
  value_id hold(constant c) {
    auto key = key_of(c);
    if (const auto at = known_.find(key); at != known_.end()) return at->second;
    dims shape;
    for (const std::size_t extent : c.shape) shape.emplace_back(extent);
    const value_id id = model_.add({value_names_.take("constant_" + std::to_string(held_++)), c.type, std::move(shape)});
    known_.emplace(std::move(key), id);
    model_.initializers.push_back({id, std::move(c)});
    return id;
  }
  /// An i64 vector: axes, target shapes, split sizes.
  value_id integers(const std::vector<std::int64_t>& list) {
    constant c{dtype::i64, {list.size()}, {}};
    for (const std::int64_t i : list) {
      c.bytes.resize(c.bytes.size() + sizeof i);
      std::memcpy(c.bytes.data() + c.bytes.size() - sizeof i, &i, sizeof i);
    }
    return hold(std::move(c));
  }
  /// A rank-0 constant.
  value_id scalar(dtype type, double number) {
    constant c{type, {}, {}};
    detail::append_element(c.bytes, type, number);
    return hold(std::move(c));
  }
  /// A constant of any shape from numbers in row-major order.
  value_id numbers(dtype type, shape_type shape, const std::vector<double>& list) {
    constant c{type, std::move(shape), {}};
    c.bytes.reserve(byte_count(type, list.size()));
    for (const double x : list) detail::append_element(c.bytes, type, x);
    return hold(std::move(c));
  }

  /// Weights derived from others (a transposed matrix). The caller has seen to it that `name` is the parameter's.
  value_id hold_weights(std::string name, tensor_ref tensor) {
    dims shape;
    for (const std::size_t extent : tensor.shape()) shape.emplace_back(extent);
    const value_id id = model_.add({value_names_.take(std::move(name)), tensor.type(), std::move(shape)});
    model_.initializers.push_back({id, std::move(tensor)});
    return id;
  }

  /// A value computed before, by what it depends on ("mask 77 f32"): lets several modules share one subgraph.
  value_id recall(const std::string& key) const {
    const auto at = shared_.find(key);
    return at == shared_.end() ? value_id::none : at->second;
  }
  void remember(std::string key, value_id id) { shared_.emplace(std::move(key), id); }

  /// Puts the new nodes into the graph.
  void finish() { model_.nodes = std::move(nodes_); }

 private:
  using constant_key = std::tuple<dtype, shape_type, std::vector<std::byte>>;
  static constant_key key_of(const constant& c) { return {c.type, c.shape, c.bytes}; }

  void push(std::string_view op, std::string name, std::vector<value_id> inputs, std::vector<value_id> outputs,
            std::vector<attribute> attributes) {
    nodes_.push_back(
        {std::string(op), std::move(name), module_, "", std::move(inputs), std::move(outputs), std::move(attributes)});
  }

  graph& model_;
  std::vector<node> nodes_;
  std::string prefix_, module_, replaced_;
  unique_names value_names_, node_names_;
  std::map<constant_key, value_id> known_;
  std::map<std::string, value_id> shared_;
  std::size_t held_ = 0;
};

TENSORSMITH_END_NAMESPACE
