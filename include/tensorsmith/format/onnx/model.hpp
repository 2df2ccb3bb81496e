// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/model.hpp: the structure of an ONNX file as it was read: where everything lies, nothing of the payloads.
//
// Include format/onnx/read.hpp to get one. No protobuf here: every part keeps its bytes in the file, and what is changed is written beside
// verbatim copies of the rest (format/onnx/update.hpp).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/catalog.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A range of bytes of the model file.
struct onnx_range {
  std::uint64_t begin = 0, end = 0;
};

/// Where the elements of an initializer lie.
enum class onnx_payload : std::uint8_t {
  none,      ///< no elements, or texts
  raw,       ///< raw_data, in the model file
  typed,     ///< float_data and its siblings, in the model file: decoded, or as they lie where that is the same
  external,  ///< in another file
};

/// A tensor of the graph.
struct onnx_initializer {
  std::string name;
  std::int64_t element_type = 0;  ///< TensorProto.DataType
  std::optional<dtype> type;      ///< none: texts
  shape_type shape;
  onnx_payload payload = onnx_payload::none;
  onnx_range field;               ///< the whole field of the graph, its tag included
  onnx_range body;                ///< the TensorProto
  std::uint64_t offset = 0, length = 0;          ///< of the elements: in the model file (raw) or in the external file
  std::size_t file = 0;                          ///< external: which of onnx_model::external_files
  tensor_ref tensor;                             ///< the elements; empty for texts
};

/// A file beside the model that holds elements.
struct onnx_external_file {
  std::string location;  ///< as the model names it, without "./" in front
  std::shared_ptr<const byte_source> source;
};

/// A tensor in an attribute of a node that lies in an external file. Its place there is fixed: the node is never rewritten.
struct onnx_external_use {
  std::size_t file = 0;
  std::uint64_t offset = 0, length = 0;
};

/// A node of the graph: the field [begin, end) of the model file, whose NodeProto starts at `body`. Names are looked up in the model: they
/// are held once, in one text. A model file has less than 2^31 bytes.
struct onnx_node {
  std::uint32_t begin = 0, body = 0, end = 0;
  std::uint32_t first_name = 0;    ///< name, operator, domain, then inputs and outputs
  std::uint32_t inputs = 0, outputs = 0;
  bool has_graphs = false;         ///< an attribute holds a graph
};

/// An input or output of the graph.
struct onnx_value_info {
  std::string name;
  std::int64_t element_type = 0;  ///< 0: not given
};

/// An operator of a domain that is not ONNX's own.
struct onnx_foreign_operator {
  std::string domain, name;
  std::size_t count = 0;
};

/// What read_onnx gives. Positions are of the model file.
struct onnx_model {
  std::string path;    ///< of the model, as the user gave it
  std::string folder;  ///< where external files lie
  std::shared_ptr<const byte_source> file;
  std::int64_t ir_version = 0, opset = 0;
  std::string producer;
  std::vector<onnx_range> graph_fields, graph_bodies;  ///< one each; more only where a writer split the message
  std::vector<onnx_initializer> initializers;
  std::vector<onnx_node> nodes;
  std::vector<onnx_value_info> inputs, outputs;
  std::vector<onnx_external_file> external_files;
  std::vector<onnx_external_use> external_uses;
  std::vector<onnx_foreign_operator> foreign_operators;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> nested_inputs;  ///< (node, name): values that graphs inside nodes read
  std::vector<note> notes;

  // --- names ---
  /// The text of a name by its number.
  std::string_view name(std::uint32_t number) const noexcept {
    const auto& [at, length] = names_[number];
    return std::string_view(text_).substr(at, length);
  }
  std::string_view name_of(const onnx_node& node) const noexcept { return name(node.first_name); }
  std::string_view operator_of(const onnx_node& node) const noexcept { return name(node.first_name + 1); }
  std::string_view domain_of(const onnx_node& node) const noexcept { return name(node.first_name + 2); }
  std::string_view input_of(const onnx_node& node, std::size_t i) const noexcept { return name(static_cast<std::uint32_t>(node.first_name + 3 + i)); }
  std::string_view output_of(const onnx_node& node, std::size_t i) const noexcept {
    return name(static_cast<std::uint32_t>(node.first_name + 3 + node.inputs + i));
  }
  /// True for an operator of ONNX's own domain: only then its name says what it does.
  bool is_standard(const onnx_node& node) const noexcept {
    const std::string_view domain = domain_of(node);
    return domain.empty() || domain == "ai.onnx";
  }
  bool is(const onnx_node& node, std::string_view standard_operator) const noexcept { return operator_of(node) == standard_operator && is_standard(node); }

  /// A name's place in the text: offset and length.
  using name_place = std::pair<std::uint32_t, std::uint32_t>;
  /// Adds the text of a name. A model file has less than 2^31 bytes, so its names have.
  name_place add_text(std::string_view name) {
    text_ += name;
    return {static_cast<std::uint32_t>(text_.size() - name.size()), static_cast<std::uint32_t>(name.size())};
  }
  /// Gives a name the next number.
  std::uint32_t add_name(name_place place) {
    names_.push_back(place);
    return static_cast<std::uint32_t>(names_.size() - 1);
  }

 private:
  std::string text_;               // all names of nodes and values
  std::vector<name_place> names_;
};

/// The initializers as a catalog, under their own names; texts are left out. @fails as catalog::add_all
inline result<catalog> onnx_catalog(const onnx_model& model) {
  std::vector<catalog_entry> entries;
  for (const onnx_initializer& i : model.initializers)
    if (i.tensor) entries.push_back({i.name, i.tensor, model.file->name() + ": " + i.name});
  catalog out;
  TENSORSMITH_CHECK(out.add_all(std::move(entries)));
  return out;
}

TENSORSMITH_END_NAMESPACE
