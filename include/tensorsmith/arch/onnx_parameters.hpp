// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/onnx_parameters.hpp: which initializer of an exported graph is which parameter of the network, and which way it lies.
//
// Include this to find parameters in graphs of any exporter. Names of initializers are taken where they are names of parameters; weights
// that an exporter folded ("onnx::MatMul_123") are named by the node that uses them, whose name is the path of its module. Exporters that
// find equal tensors store them once: such an initializer is several parameters.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/diffusers/names.hpp"
#include "tensorsmith/format/onnx/nodes.hpp"
#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// An input of a node.
struct onnx_reader {
  std::size_t node = 0, input = 0;
  auto operator<=>(const onnx_reader&) const = default;
};

/// An initializer that holds a parameter.
struct onnx_parameter_use {
  std::size_t initializer = 0;
  bool transposed = false;           ///< it holds the transpose
  std::vector<onnx_reader> readers;  ///< the inputs through which this parameter is read, and that name the initializer
};

/// A parameter: its name and shape as the network has them, and where it is stored (more than once only where an exporter made copies).
struct onnx_parameter {
  std::string name;
  tensor_ref tensor;
  std::vector<onnx_parameter_use> uses;
};

/// What was found in a graph.
struct onnx_parameters {
  std::vector<onnx_parameter> parameters;      ///< by name
  std::vector<std::size_t> unnamed;            ///< floating initializers with several elements that are no parameter as far as can be told
  std::vector<std::size_t> owners;             ///< for each initializer: how many parameters it holds
  std::vector<std::size_t> other_readers;      ///< for each initializer: inputs that read it otherwise
  std::vector<std::size_t> nested_readers;     ///< for each initializer: of those, inputs in the graphs inside nodes (branches, loops)
  std::vector<std::size_t> ambiguous;          ///< initializers of matrices that several nodes read which do not tell their modules

  const onnx_parameter* find(std::string_view name) const noexcept {
    const auto at = std::lower_bound(parameters.begin(), parameters.end(), name, [](const onnx_parameter& p, std::string_view n) { return p.name < n; });
    return at != parameters.end() && at->name == name ? &*at : nullptr;
  }
};

namespace detail {

/// A name of a parameter without what exporters put in front of it.
inline std::string plain_parameter(std::string_view name, bool text_encoder) {
  constexpr std::string_view fronts[] = {"module.", "_orig_mod.", "base_model.", "model.", "unet.", "text_encoder.", "text_encoder_2."};
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view front : fronts)
      if (name.starts_with(front)) name.remove_prefix(front.size()), again = true;
  }
  return text_encoder ? classic_clip_name(name) : std::string(name);
}

/// "conv_in.weight", and not "onnx::MatMul_12" or "/conv_in/Conv_output_0".
inline bool is_parameter_name(std::string_view name) noexcept {
  return (name.ends_with(".weight") || name.ends_with(".bias")) && name.find_first_of(":/") == std::string_view::npos;
}

/// "MatMul", "Conv_3", …: what a node is called within its module, and no module.
inline bool is_operator_name(std::string_view part) noexcept {
  if (const std::size_t bar = part.rfind('_'); bar != part.npos && part.find_first_not_of("0123456789", bar + 1) == part.npos) part = part.substr(0, bar);
  return part == "MatMul" || part == "Gemm" || part == "Conv" || part == "Add";
}

/// The path of the module that a node belongs to: "/down_blocks.0/resnets.0/conv1/Conv" → "down_blocks.0.resnets.0.conv1"; empty: it tells none.
/// ONNX Runtime appends the name of an optimisation to that of a node: "/mid_block/proj/MatMul/MatMulAddFusion".
inline std::string module_of_node(std::string_view name) {
  if (!name.starts_with('/')) return {};
  do name = name.substr(0, name.rfind('/'));
  while (is_operator_name(name.substr(name.rfind('/') + 1)));
  if (name.empty()) return {};
  std::string out(name.substr(1));
  std::replace(out.begin(), out.end(), '/', '.');
  return out;
}

/// Goes once over the nodes of a graph, which are in order of use.
class parameter_finder {
 public:
  parameter_finder(const onnx_model& model, bool text_encoder) : model_(model), text_(text_encoder), wire_(model.file) {}

  result<onnx_parameters> find() {
    for (std::size_t i = 0; i < model_.initializers.size(); ++i) {
      const onnx_initializer& t = model_.initializers[i];
      if (!t.type || !is_floating(*t.type)) continue;
      values_.emplace(t.name, value{.initializer = i, .name = is_parameter_name(t.name) ? t.name : std::string_view()});
    }
    out_.owners.assign(model_.initializers.size(), 0);
    out_.other_readers.assign(model_.initializers.size(), 0);
    out_.nested_readers.assign(model_.initializers.size(), 0);
    for (std::size_t n = 0; n < model_.nodes.size(); ++n) note_layer(model_.nodes[n]);
    for (std::size_t n = 0; n < model_.nodes.size(); ++n) TENSORSMITH_CHECK(visit(n));
    for (const auto& [node, name] : model_.nested_inputs)
      if (const auto at = values_.find(model_.name(name)); at != values_.end()) {
        ++out_.other_readers[at->second.initializer];
        ++out_.nested_readers[at->second.initializer];
      }
    for (const onnx_value_info& output : model_.outputs)
      if (const auto at = values_.find(output.name); at != values_.end()) ++out_.other_readers[at->second.initializer];
    choose_names();
    TENSORSMITH_CHECK(collect());
    return std::move(out_);
  }

 private:
  /// A value that is an initializer, or one seen through nodes that only pass it on.
  struct value {
    std::size_t initializer = 0;
    std::string_view name{};   // the nearest name of a parameter
    bool transposed = false;
    bool through = false;      // a node lies between
    onnx_reader reader{};      // the input that names the initializer, if a node lies between
  };
  enum class role : std::uint8_t { none, as_stored, turned, norm_weight, bias, by_name };
  struct use {
    value from;
    onnx_reader reader;
    role what;
    std::string module, name;  // by the node; the chosen name
  };

  void note_layer(const onnx_node& node) {
    if (model_.is(node, "MatMul") || model_.is(node, "Gemm") || model_.is(node, "Conv")) layers_.insert(module_of_node(model_.name_of(node)));
  }

  result<void> visit(std::size_t n) {
    const onnx_node& node = model_.nodes[n];
    for (std::size_t i = 0; i < node.inputs; ++i) {
      const auto at = values_.find(model_.input_of(node, i));
      if (at == values_.end()) continue;
      const value from = at->second;
      TENSORSMITH_TRY(const bool passed, pass_on(n, i, from));
      if (passed) continue;
      TENSORSMITH_TRY(const role what, role_of(node, i, from));
      uses_.push_back({from, from.through ? from.reader : onnx_reader{n, i}, what, plain_parameter(module_of_node(model_.name_of(node)), text_), {}});
    }
    return {};
  }

  /// Nodes that hand a weight on: another type, another shape, the transpose, or another name.
  result<bool> pass_on(std::size_t n, std::size_t input, const value& from) {
    const onnx_node& node = model_.nodes[n];
    if (input != 0 || node.outputs != 1) return false;
    value to = from;
    const std::size_t rank = model_.initializers[from.initializer].shape.size();
    if (model_.is(node, "Transpose")) {
      TENSORSMITH_TRY(const auto attributes, onnx_attributes(node, wire_));
      const onnx_attribute* const perm = find_attribute(attributes, "perm");
      if (rank != 2 || (perm && perm->integers != std::vector<std::int64_t>{1, 0})) return false;
      to.transposed = !to.transposed;
    } else if (model_.is(node, "Unsqueeze") || model_.is(node, "Reshape") || model_.is(node, "Squeeze")) {
      if (rank != 1) return false;
    } else if (!model_.is(node, "Identity") && !model_.is(node, "Cast")) {
      return false;
    }
    const std::string_view name = model_.output_of(node, 0);
    if (is_parameter_name(name)) to.name = name;
    if (!to.through) to.through = true, to.reader = {n, 0};
    values_.insert_or_assign(name, to);
    return true;
  }

  result<role> role_of(const onnx_node& node, std::size_t input, const value& from) {
    const shape_type& shape = model_.initializers[from.initializer].shape;
    const std::string_view name = from.name;
    if (model_.is(node, "Conv") && input == 1) return shape.size() >= 3 ? role::as_stored : role::none;
    if (model_.is(node, "Conv") && input == 2) return role::bias;
    if (model_.is(node, "MatMul") && input == 1) return shape.size() != 2 ? role::none : from.transposed ? role::as_stored : role::turned;
    if (model_.is(node, "Gemm")) return role_in_gemm(node, input, from);
    if (model_.is(node, "LayerNormalization") || model_.is(node, "GroupNormalization"))
      return input == 1 ? role::norm_weight : input == 2 ? role::bias : role::none;
    if (model_.is(node, "Gather") && input == 0) return shape.size() == 2 && !from.transposed ? role::as_stored : role::none;
    if (model_.is(node, "Slice") && input == 0) return name.ends_with("embedding.weight") && !from.transposed ? role::by_name : role::none;
    const std::string module = module_of_node(model_.name_of(node));
    const std::size_t count = element_count(shape);
    if (count < 2 || *std::max_element(shape.begin(), shape.end()) != count) return role::none;  // no vector
    const bool norm = module.substr(module.rfind('.') + 1).find("norm") != std::string::npos;
    if (model_.is(node, "Mul")) return !name.empty() ? role::by_name : norm ? role::norm_weight : role::none;
    if (model_.is(node, "Add")) return !name.empty() ? role::by_name : norm || layers_.count(module) > 0 ? role::bias : role::none;
    return role::none;
  }

  result<role> role_in_gemm(const onnx_node& node, std::size_t input, const value& from) {
    if (input == 0) return role::none;
    TENSORSMITH_TRY(const auto attributes, onnx_attributes(node, wire_));
    const onnx_attribute *const alpha = find_attribute(attributes, "alpha"), *const beta = find_attribute(attributes, "beta"),
                         *const turned = find_attribute(attributes, "transB");
    if (const onnx_attribute* const scale = input == 1 ? alpha : beta; scale && scale->number != 1.0F) return role::none;
    if (input == 2) return role::bias;
    if (model_.initializers[from.initializer].shape.size() != 2) return role::none;
    return (turned && turned->integer != 0) != from.transposed ? role::as_stored : role::turned;
  }

  /// The name of the value, if it has one. Where several modules read one value, it can be the name of one of them only: the others are
  /// called as their nodes say.
  void choose_names() {
    std::map<std::pair<std::size_t, std::string_view>, std::set<std::string_view>> modules;
    std::map<std::size_t, std::set<std::size_t>> untold;  // nodes without a module that read a matrix
    for (const use& u : uses_) {
      if (u.what == role::none) continue;
      if (!u.module.empty()) modules[{u.from.initializer, u.from.name}].insert(u.module);
      else if (u.what == role::as_stored || u.what == role::turned) untold[u.from.initializer].insert(u.reader.node);
    }
    for (const auto& [initializer, nodes] : untold)
      if (nodes.size() > 1) out_.ambiguous.push_back(initializer);
    for (use& u : uses_) {
      if (u.what == role::none) continue;
      const std::string own = u.from.name.empty() ? std::string() : plain_parameter(u.from.name, text_);
      const char* const ending = u.what == role::bias ? ".bias" : ".weight";
      const auto at = modules.find({u.from.initializer, u.from.name});
      const bool several = at != modules.end() && at->second.size() > 1;
      const std::string_view own_module = std::string_view(own).substr(0, own.rfind('.'));
      if (!own.empty() && (!several || u.module.empty() || own_module == u.module)) u.name = own;
      else if (!u.module.empty() && u.what != role::by_name) u.name = u.module + ending;
      else if (!u.module.empty()) u.name = u.module + own.substr(own.rfind('.'));
      if (u.what == role::by_name && !u.name.empty()) u.what = u.name.ends_with(".bias") ? role::bias : role::as_stored;
    }
  }

  /// True if two initializers hold the same elements in the same order. @fails io
  result<bool> equal(const onnx_initializer& a, const onnx_initializer& b) const {
    const auto x = a.tensor.source->stored(), y = b.tensor.source->stored();
    if (!x || !y || a.type != b.type || a.shape != b.shape || x->length != y->length) return false;
    std::vector<std::byte> first(std::min<std::uint64_t>(x->length, std::size_t{1} << 16)), second(first.size());
    for (std::uint64_t at = 0; at < x->length; at += first.size()) {
      const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(first.size(), x->length - at));
      TENSORSMITH_CHECK(x->source->read_at(x->offset + at, std::span(first).first(n)));
      TENSORSMITH_CHECK(y->source->read_at(y->offset + at, std::span(second).first(n)));
      if (!std::equal(first.begin(), first.begin() + static_cast<std::ptrdiff_t>(n), second.begin())) return false;
    }
    return true;
  }

  /// One parameter for each name; a name with initializers of different shapes or, lying the same way, of different elements is none: several
  /// layers under the name of the module around them.
  result<void> collect() {
    std::map<std::string_view, onnx_parameter> found;
    std::set<std::string_view> contradictory;
    for (const use& u : uses_) {
      if (u.name.empty() || contradictory.count(u.name) > 0) continue;
      const onnx_initializer& stored = model_.initializers[u.from.initializer];
      tensor_ref seen = stored.tensor;
      const bool turned = u.what == role::turned;
      if (turned) {
        TENSORSMITH_TRY(seen, transposed(seen));
      } else if ((u.what == role::bias || u.what == role::norm_weight || stored.shape.size() == 3) && stored.shape.size() > 1) {
        TENSORSMITH_TRY(seen, reshaped(seen, {stored.tensor.info().elements()}));
      }
      onnx_parameter& parameter = found[u.name];
      bool fits = !parameter.tensor || parameter.tensor.shape() == seen.shape();
      for (const onnx_parameter_use& other : parameter.uses) {
        if (!fits || other.initializer == u.from.initializer || other.transposed != turned) continue;
        TENSORSMITH_TRY(fits, equal(model_.initializers[other.initializer], stored));
      }
      if (!fits) {
        contradictory.insert(u.name);
        continue;
      }
      if (!parameter.tensor) parameter.name = u.name, parameter.tensor = seen;
      const auto same = std::find_if(parameter.uses.begin(), parameter.uses.end(),
                                     [&](const onnx_parameter_use& p) { return p.initializer == u.from.initializer && p.transposed == turned; });
      onnx_parameter_use& into = same == parameter.uses.end() ? parameter.uses.emplace_back(onnx_parameter_use{u.from.initializer, turned, {}}) : *same;
      if (std::find(into.readers.begin(), into.readers.end(), u.reader) == into.readers.end()) into.readers.push_back(u.reader);
    }
    for (const std::string_view name : contradictory) found.erase(name);
    for (auto& [name, parameter] : found) {
      std::set<std::size_t> stored;
      for (const onnx_parameter_use& u : parameter.uses) stored.insert(u.initializer);
      for (const std::size_t i : stored) ++out_.owners[i];
      out_.parameters.push_back(std::move(parameter));
    }
    for (const use& u : uses_)
      if (u.name.empty() || !out_.find(u.name)) ++out_.other_readers[u.from.initializer];
    for (std::size_t i = 0; i < model_.initializers.size(); ++i) {
      const onnx_initializer& t = model_.initializers[i];
      if (t.type && is_floating(*t.type) && out_.owners[i] == 0 && element_count(t.shape) > 1) out_.unnamed.push_back(i);
    }
    return {};
  }

  const onnx_model& model_;
  bool text_;
  wire_reader wire_;
  std::map<std::string_view, value> values_;
  std::set<std::string> layers_;
  std::vector<use> uses_;
  onnx_parameters out_;
};

}  // namespace detail

/// The parameters of a UNet (diffusers' names) or a CLIP text encoder (transformers' names, with `text_model.`). No payload is read.
/// @fails malformed, io
inline result<onnx_parameters> find_onnx_parameters(const onnx_model& model, bool text_encoder) {
  return detail::parameter_finder(model, text_encoder).find();
}

TENSORSMITH_END_NAMESPACE
