// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/builder.hpp: grows a graph node by node; names, types and shapes are its business.
//
// Include graph/ops.hpp and graph/nn.hpp to write an architecture; this is what they work on. A failure (a missing tensor, shapes
// that do not fit) is kept: later calls do nothing, and `finish` returns the first one. So architecture code reads like a model.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "tensorsmith/graph/parameters.hpp"
#include "tensorsmith/graph/shapes.hpp"
#include "tensorsmith/graph/unique_names.hpp"
#include "tensorsmith/tensor/cast.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Builds one graph. Weights are cast to the compute type; every other value has the type its operator gives it.
class graph_builder {
 public:
  /// @param compute the floating type of weights and activations, f32 or f16
  /// @param overflow what a weight's finite value does that does not fit the type; `tally` counts them where that is no error
  graph_builder(std::string name, parameter_source& parameters, dtype compute, cast_overflow overflow = cast_overflow::error,
                std::shared_ptr<cast_tally> tally = {})
      : parameters_(parameters), compute_(compute), overflow_(overflow), tally_(std::move(tally)), types_(model_) {
    model_.name = std::move(name);
  }
  graph_builder(const graph_builder&) = delete;
  graph_builder& operator=(const graph_builder&) = delete;

  dtype compute() const noexcept { return compute_; }
  bool failed() const noexcept { return failure_.has_value(); }
  /// Keeps the first failure.
  void fail(failure error) {
    if (!failure_) failure_ = std::move(error);
  }
  const parameter_source& parameters() const noexcept { return parameters_; }

  /// The shape of a value; empty after a failure.
  const dims& shape(value_id id) const {
    static const dims nothing;
    return id == value_id::none ? nothing : model_[id].shape;
  }
  dtype type(value_id id) const { return id == value_id::none ? compute_ : model_[id].type; }

  /// Prefixes the names of what is added until it is destroyed: the module "resnets.0" inside "down_blocks.1".
  class scope {
   public:
    scope(graph_builder& owner, std::string_view module) : owner_(owner), dots_(owner.dotted_.size()), slashes_(owner.slashed_.size()) {
      if (module.empty()) return;
      if (!owner.dotted_.empty()) owner.dotted_ += '.';
      owner.dotted_ += module;
      owner.slashed_ += '/';
      owner.slashed_ += module;
    }
    ~scope() {
      owner_.dotted_.resize(dots_);
      owner_.slashed_.resize(slashes_);
    }
    scope(const scope&) = delete;
    scope& operator=(const scope&) = delete;

   private:
    graph_builder& owner_;
    std::size_t dots_, slashes_;
  };

  /// Declares a dynamic extent. Declaring it again is harmless.
  dim dynamic(std::string_view name, std::int64_t multiple_of = 1) {
    symbol s{std::string(name), multiple_of};
    if (std::find(model_.symbols.begin(), model_.symbols.end(), s) == model_.symbols.end()) model_.symbols.push_back(s);
    return dim(std::move(s));
  }

  /// Adds a graph input.
  value_id input(std::string_view name, dtype type, dims shape) {
    const value_id id = model_.add({values_.take(std::string(name)), type, std::move(shape)});
    model_.inputs.push_back(id);
    fixed_names_.insert(id);
    return id;
  }

  /// Makes a value a graph output called `name`. The value itself takes the name, or an Identity of it where it has a name that
  /// must stay (inputs, weights, other outputs).
  void output(value_id id, std::string_view name) {
    if (failed()) return;
    if (fixed_names_.count(id) != 0) id = emit("Identity", {id});
    if (failed()) return;
    if (values_.taken(std::string(name)))
      return fail({.code = errc::internal, .what = "two values want the name of an output", .place = quoted(name)});
    model_[id].name = values_.take(std::string(name));
    fixed_names_.insert(id);
    model_.outputs.push_back(id);
  }

  /// The parameter `leaf` of the current module ("weight"), in the compute type. Asking again gives the same value.
  value_id parameter(std::string_view leaf, const shape_type& shape) {
    if (failed()) return value_id::none;
    std::string name = dotted_.empty() ? std::string(leaf) : dotted_ + '.' + std::string(leaf);
    if (const auto at = by_name_.find(name); at != by_name_.end()) return at->second;
    auto taken = parameters_.take(name, shape);
    if (!taken) return fail(std::move(taken).error()), value_id::none;
    auto typed = cast(*taken, compute_, overflow_, tally_);
    if (!typed) return fail(std::move(typed).error()), value_id::none;
    const value_id id = model_.add({values_.take(name), compute_, dims(shape.begin(), shape.end())});
    model_.initializers.push_back({id, std::move(*typed)});
    fixed_names_.insert(id);
    by_name_.emplace(std::move(name), id);
    return id;
  }

  /// A small constant; equal ones are one value.
  value_id hold(constant c) {
    auto key = std::tuple(c.type, c.shape, c.bytes);
    if (const auto at = held_.find(key); at != held_.end()) return at->second;
    const value_id id = model_.add({values_.take("constant_" + std::to_string(held_.size())), c.type, dims(c.shape.begin(), c.shape.end())});
    held_.emplace(std::move(key), id);
    model_.initializers.push_back({id, std::move(c)});
    fixed_names_.insert(id);
    return id;
  }
  /// A list of i64: axes, shapes, bounds.
  value_id integers(const std::vector<std::int64_t>& list) {
    constant c{dtype::i64, {list.size()}, std::vector<std::byte>(list.size() * sizeof(std::int64_t))};
    if (!list.empty()) std::memcpy(c.bytes.data(), list.data(), c.bytes.size());
    return hold(std::move(c));
  }
  /// A rank-0 number in the compute type.
  value_id number(float x) {
    constant c{compute_, {}, {}};
    const auto put = [&c](const auto element) {
      c.bytes.resize(sizeof element);
      std::memcpy(c.bytes.data(), &element, sizeof element);
    };
    if (compute_ == dtype::f16) put(f32_to_f16(x));
    else put(x);
    return hold(std::move(c));
  }

  /// Adds a node with one output, typed by the operator's rule.
  value_id emit(std::string_view op, std::vector<value_id> inputs, std::vector<attribute> attributes = {}) {
    if (failed()) return value_id::none;
    node n{.op = std::string(op), .name = nodes_.take(slashed_ + '/' + std::string(op)), .module = dotted_, .domain = {},
           .inputs = std::move(inputs), .outputs = {}, .attributes = std::move(attributes)};
    auto types = types_.infer(n);
    if (!types) return fail(std::move(types).error()), value_id::none;
    value_type& t = types->front();
    const value_id id = model_.add({values_.take(n.name + "_output_0"), t.type, std::move(t.shape)});
    types_.learn(n, id);
    n.outputs.push_back(id);
    model_.nodes.push_back(std::move(n));
    return id;
  }

  /// The graph. @fails with the first failure that occurred. Leaves the builder empty.
  result<graph> finish() {
    if (failure_) return std::move(*failure_);
    return std::move(model_);
  }

 private:
  graph model_;
  parameter_source& parameters_;
  dtype compute_;
  cast_overflow overflow_;
  std::shared_ptr<cast_tally> tally_;
  type_inference types_;
  std::optional<failure> failure_;
  std::string dotted_, slashed_;
  unique_names values_, nodes_;
  std::unordered_set<value_id> fixed_names_;
  std::unordered_map<std::string, value_id> by_name_;
  std::map<std::tuple<dtype, shape_type, std::vector<std::byte>>, value_id> held_;
};

TENSORSMITH_END_NAMESPACE
