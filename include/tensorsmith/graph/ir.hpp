// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/ir.hpp: a graph as plain data: values, nodes, initializers that are handles to recipe outputs.
//
// Operators are spelled as ONNX spells them ("MatMul", "Conv"), composites in lower case ("linear", "group_norm"); see
// graph/ops.hpp for the vocabulary. Nothing here knows a runtime.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/graph/dim.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Index of a value in graph::values. `none` marks an omitted optional input.
enum class value_id : std::uint32_t { none = 0xFFFFFFFF };

/// A typed edge. Its name is unique in the graph and becomes the ONNX value name.
struct value {
  std::string name;
  dtype type = dtype::f32;
  dims shape;
};

/// A small constant held in the graph itself (axes, scales, target shapes, embedding tables computed at build time).
struct constant {
  dtype type = dtype::i64;
  shape_type shape;
  std::vector<std::byte> bytes;  ///< row-major, little-endian
  bool operator==(const constant&) const = default;
};

using attribute_value = std::variant<std::int64_t, float, std::string, std::vector<std::int64_t>, std::vector<float>, constant>;

struct attribute {
  std::string name;
  attribute_value value;
};

/// An operator application. `name` is "/module/path/Op" and unique; `module` the dotted path of the module it came from.
struct node {
  std::string op;
  std::string name;
  std::string module;
  std::string domain;                   ///< "" for the ONNX operator set and for composites
  std::vector<value_id> inputs;         ///< value_id::none for an omitted optional input
  std::vector<value_id> outputs;
  std::vector<attribute> attributes;    ///< sorted by nothing; order is kept

  const attribute_value* find(std::string_view key) const noexcept {
    for (const attribute& a : attributes)
      if (a.name == key) return &a.value;
    return nullptr;
  }
  std::int64_t integer(std::string_view key, std::int64_t fallback) const noexcept {
    const attribute_value* v = find(key);
    const auto* i = v ? std::get_if<std::int64_t>(v) : nullptr;
    return i ? *i : fallback;
  }
  float number(std::string_view key, float fallback) const noexcept {
    const attribute_value* v = find(key);
    const auto* f = v ? std::get_if<float>(v) : nullptr;
    return f ? *f : fallback;
  }
  std::vector<std::int64_t> integers(std::string_view key) const {
    const attribute_value* v = find(key);
    const auto* list = v ? std::get_if<std::vector<std::int64_t>>(v) : nullptr;
    return list ? *list : std::vector<std::int64_t>{};
  }
  std::string_view text(std::string_view key) const noexcept {
    const attribute_value* v = find(key);
    const auto* s = v ? std::get_if<std::string>(v) : nullptr;
    return s ? std::string_view(*s) : std::string_view{};
  }
};

/// A value that is known before the graph runs: weights (a recipe's output, no bytes here) or a small constant.
struct initializer {
  value_id value = value_id::none;
  std::variant<tensor_ref, constant> data;
};

/// One model as a graph. Nodes are in topological order. Plain data: copy it, edit it, verify it (graph/verify.hpp).
struct graph {
  std::string name;
  std::vector<symbol> symbols;          ///< the dynamic axes of inputs
  std::vector<value> values;
  std::vector<node> nodes;
  std::vector<initializer> initializers;
  std::vector<value_id> inputs;
  std::vector<value_id> outputs;

  const value& operator[](value_id id) const { return values[static_cast<std::size_t>(id)]; }
  value& operator[](value_id id) { return values[static_cast<std::size_t>(id)]; }
  value_id add(value v) {
    values.push_back(std::move(v));
    return static_cast<value_id>(values.size() - 1);
  }
};

/// A graph of a bundle with the configuration that goes beside it. `name` is the folder: "unet", "vae_decoder".
struct bundle_component {
  std::string name;
  graph model;
  json_value config;
  std::vector<std::string> ignored;     ///< source tensors left out on purpose, "name: reason"
  std::string weights_component;        ///< the package component its weights came from: "vae" for "vae_encoder"
};

/// What `build` makes of a package: the same with graphs instead of catalogs.
struct bundle {
  std::string source;
  std::string family;
  std::vector<bundle_component> components;
  json_value index;
  std::vector<side_file> side_files;
  std::vector<evidence> findings;
  std::vector<note> notes;
  int opset = 0;                        ///< ONNX operator set after lowering; 0 while composites are in it
};

TENSORSMITH_END_NAMESPACE
