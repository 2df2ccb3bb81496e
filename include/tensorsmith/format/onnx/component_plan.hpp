// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/component_plan.hpp: where every byte of one component's .onnx and data file goes, before any is
// written. Include format/onnx/write.hpp instead.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/onnx/model_proto.hpp"
#include "tensorsmith/format/onnx/report.hpp"
#include "tensorsmith/format/onnx/wire.hpp"
#include "tensorsmith/io/path.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::uint64_t onnx_inline_below = 1024;      // the onnx package's own threshold for external data
inline constexpr std::uint64_t onnx_alignment = 4096;         // a page: lets readers map tensors
inline constexpr std::uint64_t onnx_largest_file = std::numeric_limits<std::int32_t>::max();  // protobuf's limit on a message
inline constexpr std::uint64_t onnx_inline_unstored = 65536;  // in place: not stored as needed, but small enough to hold

/// Where one weight tensor goes.
struct planned_weight {
  tensor_ref tensor;
  std::string name;
  onnx::TensorProto* held = nullptr;  ///< inside the structure, its raw_data sized and waiting; else in the file at `offset`
  std::uint64_t offset = 0;           ///< in the data file (copy) or the .onnx file (embed)
  std::string head;                   ///< embed: the bytes that precede the payload
};

/// A source file that external data points into.
struct referenced_file {
  std::shared_ptr<const byte_source> source;
  std::string location;  ///< its name in the component's folder
};

/// One component, laid out.
struct component_plan {
  const bundle_component* component = nullptr;
  weights_mode mode = weights_mode::copy;
  onnx::ModelProto model;
  std::string structure;                  ///< embed: the bytes before the weights
  std::vector<planned_weight> weights;    ///< those whose bytes this run produces
  std::vector<referenced_file> references;
  std::uint64_t model_bytes = 0, data_bytes = 0;
};

inline failure file_too_large(const std::string& name, std::uint64_t bytes) {
  return failure{.code = errc::limit, .what = "the .onnx file of " + quoted(name) + " would exceed what protobuf can hold",
                 .expected = "at most " + std::to_string(onnx_largest_file) + " bytes", .found = std::to_string(bytes),
                 .advice = "use --weights copy, which puts the weights into a data file"};
}

inline void add_external(onnx::TensorProto& out, const std::string& location, std::uint64_t offset, std::uint64_t length) {
  out.set_data_location(onnx::TensorProto::EXTERNAL);
  const std::pair<const char*, std::string> entries[] = {
      {"location", location}, {"offset", std::to_string(offset)}, {"length", std::to_string(length)}};
  for (const auto& [key, text] : entries) {
    auto* entry = out.add_external_data();
    entry->set_key(key);
    entry->set_value(text);
  }
}

/// Gives every source file of an in-place component a name in its folder, distinct from the names we write ourselves.
class location_names {
 public:
  explicit location_names(std::string data_name) : taken_{{"model.onnx", 0}, {"config.json", 0}, {std::move(data_name), 0}} {}

  const std::string& of(const std::shared_ptr<const byte_source>& source, std::vector<referenced_file>& files) {
    for (const referenced_file& f : files)
      if (f.source == source || f.source->name() == source->name()) return f.location;
    const std::string base(file_name(source->name()));
    std::string name = base;
    for (unsigned n = 2; !taken_.emplace(name, 0).second; ++n) name = "weights-" + std::to_string(n) + "-" + base;
    files.push_back({source, std::move(name)});
    return files.back().location;
  }

 private:
  std::map<std::string, int> taken_;
};

inline failure not_in_place(const std::string& name, const tensor_ref& tensor) {
  return failure{.code = errc::usage,
                 .what = "the weights cannot stay in place: the graph needs this tensor otherwise than it is stored",
                 .place = "tensor " + quoted(name),
                 .expected = "contiguous " + std::string(name_of(tensor.type())) + " " + to_string(tensor.shape()) + " in a file",
                 .found = "a tensor that is cast, reordered or computed on the way",
                 .advice = "use --weights copy, or --dtype keep if a cast is the reason"};
}

/// The initializers in their order: constants and small weights inside the structure, the others external.
inline result<void> plan_outside(component_plan& plan, const onnx_write_options& options) {
  onnx::GraphProto& g = *plan.model.mutable_graph();
  const graph& model = plan.component->model;
  location_names names(options.data_name);
  for (const initializer& i : model.initializers) {
    const std::string& name = model[i.value].name;
    onnx::TensorProto& out = *g.add_initializer();
    if (const auto* c = std::get_if<constant>(&i.data)) {
      TENSORSMITH_CHECK(fill_constant(out, name, *c));
      continue;
    }
    const tensor_ref& tensor = std::get<tensor_ref>(i.data);
    TENSORSMITH_CHECK(fill_tensor_head(out, name, tensor.type(), tensor.shape()));
    const std::uint64_t bytes = tensor.info().bytes();
    const auto stored = plan.mode == weights_mode::in_place ? tensor.source->stored() : std::nullopt;
    const bool in_file = stored && stored->source->in_file();
    if (bytes >= onnx_inline_below && in_file) {
      add_external(out, names.of(stored->source, plan.references), stored->offset, stored->length);
    } else if (bytes < onnx_inline_below || (plan.mode == weights_mode::in_place && bytes <= onnx_inline_unstored)) {
      out.mutable_raw_data()->resize(static_cast<std::size_t>(bytes));
      plan.weights.push_back({tensor, name, &out, 0, {}});
    } else if (plan.mode == weights_mode::in_place) {
      return not_in_place(name, tensor);
    } else {
      plan.data_bytes = (plan.data_bytes + onnx_alignment - 1) / onnx_alignment * onnx_alignment;
      add_external(out, options.data_name, plan.data_bytes, bytes);
      plan.weights.push_back({tensor, name, nullptr, plan.data_bytes, {}});
      plan.data_bytes += bytes;
    }
  }
  plan.model_bytes = plan.model.ByteSizeLong();
  if (plan.model_bytes > onnx_largest_file) return file_too_large(plan.component->name, plan.model_bytes);
  return {};
}

/// One file: the model's fields, then the graph as a single field whose tail is the weights. Protobuf sees all but the payloads;
/// fields may come in any order, so initializers may stand behind everything else.
inline result<void> plan_embedded(component_plan& plan) {
  onnx::GraphProto& g = *plan.model.mutable_graph();
  const graph& model = plan.component->model;
  constexpr std::uint32_t initializer_field = 5, raw_data_field = 9, graph_field = 7;
  std::uint64_t tail = 0;
  for (const initializer& i : model.initializers) {
    const std::string& name = model[i.value].name;
    if (const auto* c = std::get_if<constant>(&i.data)) {
      TENSORSMITH_CHECK(fill_constant(*g.add_initializer(), name, *c));
      continue;
    }
    const tensor_ref& tensor = std::get<tensor_ref>(i.data);
    onnx::TensorProto described;
    TENSORSMITH_CHECK(fill_tensor_head(described, name, tensor.type(), tensor.shape()));
    const std::uint64_t bytes = tensor.info().bytes();
    const std::string fields = described.SerializeAsString();
    std::string head;
    append_field_head(head, initializer_field, fields.size() + field_size(bytes));
    head += fields;
    append_field_head(head, raw_data_field, bytes);
    plan.weights.push_back({tensor, name, nullptr, tail + head.size(), std::move(head)});
    tail = plan.weights.back().offset + bytes;
  }
  const std::string graph_bytes = g.SerializeAsString();
  plan.model.clear_graph();
  plan.structure = plan.model.SerializeAsString();
  append_field_head(plan.structure, graph_field, graph_bytes.size() + tail);
  plan.structure += graph_bytes;
  for (planned_weight& w : plan.weights) w.offset += plan.structure.size();
  plan.model_bytes = plan.structure.size() + tail;
  if (plan.model_bytes > onnx_largest_file) return file_too_large(plan.component->name, plan.model_bytes);
  return {};
}

/// Lays one component out. No weight is read. @fails limit (over 2 GiB in one .onnx file), usage (weights that cannot stay in
/// place), unsupported (an element type that ONNX lacks)
inline result<component_plan> plan_component(const bundle_component& c, int opset, weights_mode mode,
                                             const onnx_write_options& options) {
  component_plan plan;
  plan.component = &c;
  plan.mode = mode;
  auto structure = onnx_structure(c.model, c.name, opset);
  if (structure) {
    plan.model = std::move(structure).value();
    if (auto done = mode == weights_mode::embed ? plan_embedded(plan) : plan_outside(plan, options); !done)
      structure = std::move(done).error();
  }
  if (!structure) {
    failure error = std::move(structure).error();
    if (error.code != errc::limit) error.place = c.name + (error.place.empty() ? "" : ": " + error.place);
    return error;
  }
  return plan;
}

/// The numbers of a component for the report; its files are listed as they will lie in the output folder.
inline component_report report_of(const component_plan& plan, const std::string& data_name) {
  component_report out;
  const bundle_component& c = *plan.component;
  out.name = c.name;
  out.nodes = c.model.nodes.size();
  for (const initializer& i : c.model.initializers) {
    const auto* tensor = std::get_if<tensor_ref>(&i.data);
    if (!tensor) continue;
    ++out.tensors;
    out.parameters += tensor->info().elements();
    out.weight_bytes += tensor->info().bytes();
    const std::string type(name_of(tensor->type()));
    auto at = out.dtypes.begin();
    while (at != out.dtypes.end() && at->first != type) ++at;
    if (at == out.dtypes.end()) at = out.dtypes.insert(at, {type, 0});
    ++at->second;
  }
  if (plan.data_bytes > 0) out.files.push_back({c.name + "/" + data_name, plan.data_bytes, false});
  out.files.push_back({c.name + "/model.onnx", plan.model_bytes, false});
  switch (plan.mode) {
    case weights_mode::copy: out.weights = "copied"; break;
    case weights_mode::in_place: out.weights = "in place"; break;
    case weights_mode::embed: out.weights = "embedded"; break;
  }
  return out;
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
