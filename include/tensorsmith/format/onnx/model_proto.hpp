// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/model_proto.hpp: a graph's structure as the onnx package's generated classes; weights are described,
// never held.
//
// Include this to hand a graph to code that takes an onnx::ModelProto (a checker, shape inference). Compile with -DONNX_ML=1
// -DONNX_NAMESPACE=onnx and link onnx, onnx_proto and protobuf.
#pragma once

#include <onnx/onnx_pb.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/graph/element_code.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/version.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// The IR version that came out with an operator set (the table in ONNX's docs/Versioning.md).
constexpr std::int64_t onnx_ir_version(int opset) noexcept {
  if (opset <= 14) return 7;
  if (opset <= 18) return 8;
  if (opset <= 20) return 9;
  return 10;
}

/// The IR version that introduced an element type: 9 brought the 8-bit floats, 10 the 4-bit integers, 11 the 4-bit float, 12 and
/// 13 the scale type and the 2-bit integers.
constexpr std::int64_t onnx_ir_version(dtype type) noexcept {
  const std::int64_t code = element_code(type).value_or(0);
  return code <= 16 ? 3 : code <= 20 ? 9 : code <= 22 ? 10 : code == 23 ? 11 : code == 24 ? 12 : 13;
}

inline result<std::int32_t> onnx_type(dtype type, const std::string& place) {
  if (const auto code = element_code(type)) return static_cast<std::int32_t>(*code);
  return failure{.code = errc::unsupported, .what = "ONNX has no element type " + std::string(name_of(type)), .place = place,
                 .advice = "cast it first"};
}

/// Sets name, element type and extents of a tensor; no data.
inline result<void> fill_tensor_head(onnx::TensorProto& out, const std::string& name, dtype type, const shape_type& shape) {
  TENSORSMITH_TRY(const std::int32_t number, onnx_type(type, "tensor " + quoted(name)));
  for (const std::size_t extent : shape) out.add_dims(static_cast<std::int64_t>(extent));
  out.set_data_type(number);
  if (!name.empty()) out.set_name(name);
  return {};
}

inline result<void> fill_constant(onnx::TensorProto& out, const std::string& name, const constant& c) {
  TENSORSMITH_CHECK(fill_tensor_head(out, name, c.type, c.shape));
  if (c.bytes.size() != byte_count(c.type, element_count(c.shape)))
    return failure{.code = errc::internal,
                   .what = "a constant has the wrong number of bytes",
                   .place = quoted(name),
                   .expected = std::to_string(byte_count(c.type, element_count(c.shape))),
                   .found = std::to_string(c.bytes.size())};
  out.set_raw_data(c.bytes.data(), c.bytes.size());
  return {};
}

inline result<void> fill_attribute(onnx::AttributeProto& out, const attribute& a, const node& n) {
  out.set_name(a.name);
  if (const auto* i = std::get_if<std::int64_t>(&a.value)) {
    out.set_type(onnx::AttributeProto::INT);
    out.set_i(*i);
  } else if (const auto* f = std::get_if<float>(&a.value)) {
    out.set_type(onnx::AttributeProto::FLOAT);
    out.set_f(*f);
  } else if (const auto* s = std::get_if<std::string>(&a.value)) {
    out.set_type(onnx::AttributeProto::STRING);
    out.set_s(*s);
  } else if (const auto* list = std::get_if<std::vector<std::int64_t>>(&a.value)) {
    out.set_type(onnx::AttributeProto::INTS);
    for (const std::int64_t element : *list) out.add_ints(element);
  } else if (const auto* numbers = std::get_if<std::vector<float>>(&a.value)) {
    out.set_type(onnx::AttributeProto::FLOATS);
    for (const float element : *numbers) out.add_floats(element);
  } else {
    out.set_type(onnx::AttributeProto::TENSOR);
    return fill_constant(*out.mutable_t(), n.name + "/" + a.name, std::get<constant>(a.value));
  }
  return {};
}

inline result<void> fill_value_info(onnx::ValueInfoProto& out, const value& v) {
  out.set_name(v.name);
  TENSORSMITH_TRY(const std::int32_t number, onnx_type(v.type, "value " + quoted(v.name)));
  auto* type = out.mutable_type()->mutable_tensor_type();
  type->set_elem_type(number);
  type->mutable_shape();
  for (const dim& d : v.shape) {
    auto* extent = type->mutable_shape()->add_dim();
    if (const auto c = d.constant()) extent->set_dim_value(*c);
    else extent->set_dim_param(d.text());
  }
  return {};
}

}  // namespace detail

/// The structure of a lowered graph: nodes, inputs, outputs, small constants; initializers that are recipes are left out (their
/// place is the writer's decision). Intermediate values carry no type: readers infer them, and files stay small. The same graph
/// always gives the same bytes. @fails unsupported (an element type that ONNX lacks), internal (a composite is left)
inline result<onnx::ModelProto> onnx_structure(const graph& model, const std::string& name, int opset) {
  onnx::ModelProto out;
  std::int64_t ir_version = detail::onnx_ir_version(opset);
  out.set_producer_name("tensorsmith");
  out.set_producer_version(TENSORSMITH_VERSION);
  auto* standard = out.add_opset_import();
  standard->set_domain("");
  standard->set_version(opset);
  onnx::GraphProto& g = *out.mutable_graph();
  g.set_name(name);
  std::set<std::string, std::less<>> domains;
  const auto value_name = [&model](value_id id) { return id == value_id::none ? std::string() : model[id].name; };
  for (const node& n : model.nodes) {
    if (n.domain.empty() && !n.op.empty() && n.op[0] >= 'a' && n.op[0] <= 'z')
      return failure{.code = errc::internal, .what = "the graph holds " + quoted(n.op) + ", which is no ONNX operator",
                     .place = "node " + quoted(n.name), .advice = "lower the graph first"};
    onnx::NodeProto& p = *g.add_node();
    p.set_name(n.name);
    p.set_op_type(n.op);
    if (!n.domain.empty()) p.set_domain(n.domain), domains.insert(n.domain);
    for (const value_id id : n.inputs) p.add_input(value_name(id));
    for (const value_id id : n.outputs) p.add_output(value_name(id));
    for (const attribute& a : n.attributes) TENSORSMITH_CHECK(detail::fill_attribute(*p.add_attribute(), a, n));
  }
  for (const std::string& domain : domains) {
    auto* import = out.add_opset_import();
    import->set_domain(domain);
    import->set_version(1);
  }
  for (const value_id id : model.inputs) TENSORSMITH_CHECK(detail::fill_value_info(*g.add_input(), model[id]));
  for (const value_id id : model.outputs) TENSORSMITH_CHECK(detail::fill_value_info(*g.add_output(), model[id]));
  for (const value& v : model.values) ir_version = std::max(ir_version, detail::onnx_ir_version(v.type));
  out.set_ir_version(ir_version);
  return out;
}

TENSORSMITH_END_NAMESPACE
