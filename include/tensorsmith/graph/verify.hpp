// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/verify.hpp: checks that a graph is what every consumer relies on.
//
// Include this after building or rewriting a graph, and in tests.
#pragma once

#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "tensorsmith/graph/shapes.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// The checks of one graph, in the order in which its parts become defined.
class graph_verifier {
 public:
  explicit graph_verifier(const graph& model) : model_(model), defined_(model.values.size(), false), types_(model) {}

  result<void> run() {
    TENSORSMITH_CHECK(value_names());
    for (const value_id id : model_.inputs) {
      TENSORSMITH_CHECK(define(id, "input"));
      TENSORSMITH_CHECK(declared_symbols(id));
    }
    for (const initializer& i : model_.initializers) {
      TENSORSMITH_CHECK(define(i.value, "initializer"));
      TENSORSMITH_CHECK(stored_type(i));
    }
    std::unordered_set<std::string_view> names;
    for (const node& n : model_.nodes) {
      if (n.name.empty() || !names.insert(n.name).second) return wrong("node", n.name, "the name is empty or not unique");
      TENSORSMITH_CHECK(check(n));
    }
    return outputs();
  }

 private:
  static failure wrong(const char* kind, const std::string& name, std::string what, std::string expected = {}, std::string found = {}) {
    return failure{.code = errc::mismatch, .what = std::move(what), .place = std::string(kind) + ' ' + quoted(name),
                   .expected = std::move(expected), .found = std::move(found)};
  }
  bool in_range(value_id id) const noexcept { return static_cast<std::size_t>(id) < model_.values.size(); }

  result<void> value_names() const {
    std::unordered_set<std::string_view> names;
    for (const value& v : model_.values)
      if (v.name.empty() || !names.insert(v.name).second) return wrong("value", v.name, "the name is empty or not unique");
    return {};
  }

  result<void> define(value_id id, const std::string& by) {
    if (!in_range(id)) return wrong("graph", model_.name, by + " refers to a value that does not exist");
    if (defined_[static_cast<std::size_t>(id)]) return wrong("value", model_[id].name, "it is defined twice", {}, "again by " + by);
    defined_[static_cast<std::size_t>(id)] = true;
    return {};
  }

  result<void> declared_symbols(value_id id) const {
    for (const dim& d : model_[id].shape)
      for (const auto& term : d.terms())
        for (const symbol& s : term.first)
          if (std::find(model_.symbols.begin(), model_.symbols.end(), s) == model_.symbols.end())
            return wrong("input", model_[id].name, "the graph does not declare symbol " + quoted(s.name));
    return {};
  }

  result<void> stored_type(const initializer& i) const {
    value_type stored;
    if (const auto* tensor = std::get_if<tensor_ref>(&i.data)) {
      if (!*tensor) return wrong("initializer", model_[i.value].name, "it has no data");
      stored = {tensor->type(), dims(tensor->shape().begin(), tensor->shape().end())};
    } else {
      const auto& held = std::get<constant>(i.data);
      stored = {held.type, dims(held.shape.begin(), held.shape.end())};
      if (held.bytes.size() != byte_count(held.type, element_count(held.shape)))
        return wrong("initializer", model_[i.value].name, "its bytes do not make up its shape",
                     std::to_string(byte_count(held.type, element_count(held.shape))) + " bytes", std::to_string(held.bytes.size()));
    }
    return same(model_[i.value], stored, "initializer", model_[i.value].name);
  }

  static result<void> same(const value& declared, const value_type& actual, const char* kind, const std::string& name) {
    const value_type said{declared.type, declared.shape};
    if (said == actual) return {};
    return wrong(kind, name, "value " + quoted(declared.name) + " has another type or shape", to_string(actual), to_string(said));
  }

  result<void> check(const node& n) {
    for (const value_id id : n.inputs) {
      if (id == value_id::none) continue;
      if (!in_range(id)) return wrong("node", n.name, "it reads a value that does not exist");
      if (!defined_[static_cast<std::size_t>(id)])
        return wrong("node", n.name, "it reads " + quoted(model_[id].name) + " before that is defined");
    }
    for (const value_id id : n.outputs) TENSORSMITH_CHECK(define(id, "node " + quoted(n.name)));
    if (n.outputs.empty()) return wrong("node", n.name, "it has no output");
    if (!n.domain.empty()) return {};  // operators of another domain have no rule here
    TENSORSMITH_TRY(const auto types, types_.infer(n));
    if (types.size() != n.outputs.size())
      return wrong("node", n.name, "wrong number of outputs", std::to_string(types.size()), std::to_string(n.outputs.size()));
    for (std::size_t k = 0; k < types.size(); ++k)
      TENSORSMITH_CHECK(same(model_[n.outputs[k]], types[k], "node", n.name));
    types_.learn(n, n.outputs[0]);
    return {};
  }

  result<void> outputs() const {
    std::unordered_set<value_id> seen;
    if (model_.outputs.empty()) return wrong("graph", model_.name, "it has no outputs");
    for (const value_id id : model_.outputs) {
      if (!in_range(id) || !defined_[static_cast<std::size_t>(id)])
        return wrong("graph", model_.name, "an output is not defined", {}, in_range(id) ? quoted(model_[id].name) : "no value");
      if (!seen.insert(id).second) return wrong("graph", model_.name, "a value is output twice", {}, quoted(model_[id].name));
    }
    return {};
  }

  const graph& model_;
  std::vector<bool> defined_;
  type_inference types_;
};

}  // namespace detail

/// Checks unique names, one producer for each value, topological order, arity, and that every type and shape is what the operators
/// give. Nodes of other domains than "" are checked for order only. @fails mismatch, unsupported; both name the node or value.
inline result<void> verify(const graph& model) { return detail::graph_verifier(model).run(); }

TENSORSMITH_END_NAMESPACE
