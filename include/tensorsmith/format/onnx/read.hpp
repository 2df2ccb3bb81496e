// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/read.hpp: reads the structure of an ONNX model without its payloads.
//
// Include this to open a model.onnx of any size in milliseconds: the wire format is walked once, every initializer becomes a recipe over
// the place where its elements lie. Nothing is copied, protobuf is not involved, and names, counts and nesting are bounded before they cost
// memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/onnx/read_tensor.hpp"
#include "tensorsmith/io/file.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::int64_t newest_onnx_ir = 13, newest_onnx_opset = 26;

/// One walk over a model. Graphs inside attributes are kept on a stack of our own.
class onnx_walk {
 public:
  onnx_walk(std::shared_ptr<const byte_source> file, const onnx_file_opener& open, const limits& bounds)
      : wire_(file, bounds.onnx_depth), bounds_(bounds), tensors_(wire_, model_, bounds, open) {
    model_.file = std::move(file);
    model_.path = model_.file->name();
  }

  result<onnx_model> read() {
    TENSORSMITH_CHECK(check_beginning());
    const std::uint64_t end = model_.file->size();
    for (std::uint64_t at = 0; at < end;) {
      TENSORSMITH_TRY(const wire_field f, wire_.next(at, end));
      TENSORSMITH_CHECK(model_field(f));
    }
    TENSORSMITH_CHECK(check_model());
    TENSORSMITH_CHECK(check_names());
    return std::move(model_);
  }

 private:
  enum class message : std::uint8_t { graph, node, attribute };
  struct frame {
    message kind;
    std::uint64_t at, end;
    std::uint64_t begin = 0;                   // of the field, for messages
    std::uint32_t values = 0, type = 0;        // attribute: which kinds of value it has (bits), the type it declares
    std::uint64_t body = 0;
    std::string name{};                        // attribute, node
    std::string operation{}, domain{};         // node
    std::vector<std::string> attributes{};     // node: their names
    std::vector<onnx_model::name_place> inputs{}, outputs{};  // node
    bool has_graphs = false;                   // node
  };

  failure refuse(std::string what, std::string place = {}, std::string expected = {}, std::string found = {}) const {
    return failure{.code = errc::malformed, .what = std::move(what), .file = model_.path, .place = std::move(place), .expected = std::move(expected),
                   .found = std::move(found)};
  }
  failure too_many(std::string what, std::uint64_t most, const char* option) const {
    return failure{.code = errc::limit, .what = std::move(what), .file = model_.path, .expected = "at most " + std::to_string(most),
                   .advice = std::string("raise limits::") + option + " if you trust it"};
  }
  result<void> expect(const wire_field& f, wire_type type, const char* what) const {
    if (f.type == type) return {};
    return wire_.error(f.begin, std::string("a field of ") + what + " has a wrong encoding");
  }

  /// What is no protobuf at all is told by its first bytes.
  result<void> check_beginning() {
    const std::uint64_t size = model_.file->size();
    if (size == 0) return refuse("the model is empty", {}, "a graph and an operator set", "0 bytes");
    constexpr std::uint64_t largest = 0x7FFFFFFF;
    if (size > largest)
      return failure{.code = errc::limit, .what = "the model file is larger than protobuf can hold", .file = model_.path,
                     .expected = "at most " + std::to_string(largest) + " bytes", .found = std::to_string(size),
                     .advice = "keep its weights in an external file"};
    std::byte head[4]{};
    TENSORSMITH_CHECK(wire_.read(0, std::span(head).first(static_cast<std::size_t>(std::min<std::uint64_t>(4, size)))));
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(head[i]); };
    const char* form = nullptr;
    if (byte(0) == 0x1F && byte(1) == 0x8B) form = "a gzip file";
    else if (byte(0) == '{') form = "JSON";
    else if (byte(0) == 'P' && byte(1) == 'K') form = "a zip archive";
    else if (byte(0) == 'i' && byte(1) == 'r' && byte(2) == '_') form = "protobuf's text format";
    if (!form) return {};
    return failure{.code = errc::unsupported, .what = "the file is no binary ONNX model", .file = model_.path, .expected = "a ModelProto",
                   .found = form};
  }

  result<void> model_field(const wire_field& f) {
    switch (f.number) {
      case 1:
        TENSORSMITH_CHECK(expect(f, wire_type::varint, "a model"));
        model_.ir_version = static_cast<std::int64_t>(f.integer);
        return {};
      case 2: {
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a model"));
        TENSORSMITH_TRY(model_.producer, wire_.text(f, bounds_.name_bytes, "the name of the model's producer"));
        return {};
      }
      case 7:
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a model"));
        model_.graph_fields.push_back({f.begin, f.end});
        model_.graph_bodies.push_back({f.value, f.end});
        return graph(f);
      case 8: return opset_import(f);
      case 25:
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a model"));
        ++functions_;
        return {};
      default: return {};
    }
  }

  result<void> opset_import(const wire_field& f) {
    TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a model"));
    std::string domain;
    std::int64_t version = 0;
    for (std::uint64_t at = f.value; at < f.end;) {
      TENSORSMITH_TRY(const wire_field part, wire_.next(at, f.end));
      if (part.number == 1) {
        TENSORSMITH_CHECK(expect(part, wire_type::bytes, "an operator set"));
        TENSORSMITH_TRY(domain, wire_.text(part, bounds_.name_bytes, "the name of an operator set"));
      } else if (part.number == 2) {
        TENSORSMITH_CHECK(expect(part, wire_type::varint, "an operator set"));
        version = static_cast<std::int64_t>(part.integer);
      }
    }
    if (domain == "ai.onnx") domain.clear();
    if (opsets_.size() >= 1024) return too_many("the model has too many operator sets", 1024, "onnx_values");
    if (std::find(opsets_.begin(), opsets_.end(), domain) != opsets_.end()) return refuse("the operator set " + quoted(domain) + " is imported twice");
    if (version < 1) return refuse("an operator set has no version", "opset_import " + quoted(domain), "1 or more", std::to_string(version));
    opsets_.push_back(domain);
    if (domain.empty()) model_.opset = version;
    return {};
  }

  // --- graphs ---

  result<void> graph(const wire_field& f) {
    std::vector<frame> stack;
    stack.push_back({.kind = message::graph, .at = f.value, .end = f.end, .begin = f.begin});
    std::size_t graphs = 1;
    while (!stack.empty()) {
      frame& top = stack.back();
      if (top.at == top.end) {
        TENSORSMITH_CHECK(finish(stack));
        if (stack.back().kind == message::graph) --graphs;
        stack.pop_back();
        continue;
      }
      TENSORSMITH_TRY(const wire_field part, wire_.next(top.at, top.end));
      const std::size_t before = stack.size();
      switch (top.kind) {
        case message::graph: TENSORSMITH_CHECK(graph_field(part, stack)); break;
        case message::node: TENSORSMITH_CHECK(node_field(part, stack)); break;
        case message::attribute: TENSORSMITH_CHECK(attribute_field(part, stack)); break;
      }
      if (stack.size() > before && stack.back().kind == message::graph && ++graphs > bounds_.onnx_depth)
        return too_many("graphs are nested too deeply", bounds_.onnx_depth, "onnx_depth");
    }
    return {};
  }

  static bool is_main(const std::vector<frame>& stack) noexcept { return stack.size() <= 2; }

  result<void> graph_field(const wire_field& f, std::vector<frame>& stack) {
    const bool main = stack.size() == 1;
    switch (f.number) {
      case 1:
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a graph"));
        if (++nodes_ > bounds_.onnx_nodes) return too_many("the model has too many nodes", bounds_.onnx_nodes, "onnx_nodes");
        stack.push_back({.kind = message::node, .at = f.value, .end = f.end, .begin = f.begin, .body = f.value});
        return {};
      case 5: {
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a graph"));
        if (++tensors_seen_ > bounds_.onnx_initializers) return too_many("the model has too many tensors", bounds_.onnx_initializers, "onnx_initializers");
        TENSORSMITH_TRY(onnx_initializer tensor, tensors_.read(f, main));
        if (tensor.name.empty()) return refuse("an initializer has no name", "byte offset " + std::to_string(f.begin));
        if (main) model_.initializers.push_back(std::move(tensor));
        else if (tensor.payload == onnx_payload::external) model_.external_uses.push_back({tensor.file, tensor.offset, tensor.length});
        return {};
      }
      case 11:
      case 12: {
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a graph"));
        if (!main) return {};
        if (++values_ > bounds_.onnx_values) return too_many("the model has too many values", bounds_.onnx_values, "onnx_values");
        TENSORSMITH_TRY(onnx_value_info info, value_info(f));
        (f.number == 11 ? model_.inputs : model_.outputs).push_back(std::move(info));
        return {};
      }
      case 15:
        return failure{.code = errc::unsupported, .what = "the model has sparse initializers", .file = model_.path,
                       .place = "byte offset " + std::to_string(f.begin), .advice = "export it with dense weights"};
      default: return {};
    }
  }

  /// Name and element type of an input or output; ValueInfoProto → TypeProto → Tensor.
  result<onnx_value_info> value_info(const wire_field& f) {
    onnx_value_info out;
    for (std::uint64_t at = f.value; at < f.end;) {
      TENSORSMITH_TRY(const wire_field part, wire_.next(at, f.end));
      if (part.number == 1) {
        TENSORSMITH_CHECK(expect(part, wire_type::bytes, "a value"));
        TENSORSMITH_TRY(out.name, wire_.text(part, bounds_.name_bytes, "the name of a value"));
      } else if (part.number == 2 && part.type == wire_type::bytes) {
        for (std::uint64_t in = part.value; in < part.end;) {
          TENSORSMITH_TRY(const wire_field type, wire_.next(in, part.end));
          if (type.number != 1 || type.type != wire_type::bytes) continue;
          for (std::uint64_t inner = type.value; inner < type.end;) {
            TENSORSMITH_TRY(const wire_field element, wire_.next(inner, type.end));
            if (element.number == 1 && element.type == wire_type::varint) out.element_type = static_cast<std::int64_t>(element.integer);
          }
        }
      }
    }
    if (out.name.empty()) return refuse("an input or output of the graph has no name", "byte offset " + std::to_string(f.begin));
    return out;
  }

  result<void> node_field(const wire_field& f, std::vector<frame>& stack) {
    frame& node = stack.back();
    switch (f.number) {
      case 1:
      case 2: {
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a node"));
        if (++values_ > bounds_.onnx_values) return too_many("the model has too many values", bounds_.onnx_values, "onnx_values");
        TENSORSMITH_TRY(const std::string text, wire_.text(f, bounds_.name_bytes, "the name of a value"));
        (f.number == 1 ? node.inputs : node.outputs).push_back(model_.add_text(text));
        return {};
      }
      case 3:
      case 4:
      case 7: {
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a node"));
        std::string& into = f.number == 3 ? node.name : f.number == 4 ? node.operation : node.domain;
        TENSORSMITH_TRY(into, wire_.text(f, bounds_.name_bytes, "a name of a node"));
        return {};
      }
      case 5:
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "a node"));
        if (node.attributes.size() >= 4096) return too_many("a node has too many attributes", 4096, "onnx_values");
        stack.push_back({.kind = message::attribute, .at = f.value, .end = f.end, .begin = f.begin});
        return {};
      default: return {};
    }
  }

  result<void> attribute_field(const wire_field& f, std::vector<frame>& stack) {
    frame& attribute = stack.back();
    switch (f.number) {
      case 1: {
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "an attribute"));
        TENSORSMITH_TRY(attribute.name, wire_.text(f, bounds_.name_bytes, "the name of an attribute"));
        return {};
      }
      case 20:
        TENSORSMITH_CHECK(expect(f, wire_type::varint, "an attribute"));
        attribute.type = static_cast<std::uint32_t>(std::min<std::uint64_t>(f.integer, 99));
        return {};
      case 21: return refuse("an attribute refers to one of a function, outside of functions", "byte offset " + std::to_string(f.begin));
      case 5:
      case 10: {
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "an attribute"));
        attribute.values |= bit_of_field(f.number);
        if (++tensors_seen_ > bounds_.onnx_initializers) return too_many("the model has too many tensors", bounds_.onnx_initializers, "onnx_initializers");
        TENSORSMITH_TRY(const onnx_initializer tensor, tensors_.read(f, false));
        if (tensor.payload == onnx_payload::external) model_.external_uses.push_back({tensor.file, tensor.offset, tensor.length});
        return {};
      }
      case 6:
      case 11: {
        TENSORSMITH_CHECK(expect(f, wire_type::bytes, "an attribute"));
        attribute.values |= bit_of_field(f.number);
        stack[stack.size() - 2].has_graphs = true;
        stack.push_back({.kind = message::graph, .at = f.value, .end = f.end, .begin = f.begin});
        return {};
      }
      default: attribute.values |= bit_of_field(f.number); return {};
    }
  }

  /// AttributeProto.AttributeType of a field that holds a value, as a bit; 0 for other fields.
  static std::uint32_t bit_of_field(std::uint32_t number) noexcept {
    constexpr std::pair<std::uint8_t, std::uint8_t> rows[] = {{2, 1}, {3, 2}, {4, 3}, {5, 4}, {6, 5}, {7, 6}, {8, 7}, {9, 8}, {10, 9}, {11, 10},
                                                              {22, 11}, {23, 12}, {14, 13}, {15, 14}};
    for (const auto& [field, type] : rows)
      if (field == number) return 1U << type;
    return 0;
  }

  result<void> finish(std::vector<frame>& stack) {
    frame& done = stack.back();
    if (done.kind == message::graph) return {};
    if (done.kind == message::attribute) {
      frame& node = stack[stack.size() - 2];
      const std::string place = "node " + quoted(node.name) + ", attribute " + quoted(done.name);
      if (done.name.empty()) return refuse("an attribute has no name", "byte offset " + std::to_string(done.begin));
      if ((done.values & (done.values - 1)) != 0) return refuse("an attribute has values of two types", place);
      if (done.type > 14) return refuse("an attribute has a type that does not exist", place, "1 to 14", std::to_string(done.type));
      if (done.type != 0 && done.values != 0 && done.values != 1U << done.type)
        return refuse("an attribute has a value of another type than it declares", place);
      node.attributes.push_back(std::move(done.name));
      return {};
    }
    return finish_node(stack);
  }

  result<void> finish_node(std::vector<frame>& stack) {
    frame& done = stack.back();
    const std::string place = "node " + quoted(done.name);
    if (done.operation.empty()) return refuse("a node has no operator", done.name.empty() ? "byte offset " + std::to_string(done.begin) : place);
    std::sort(done.attributes.begin(), done.attributes.end());
    const auto twice = std::adjacent_find(done.attributes.begin(), done.attributes.end());
    if (twice != done.attributes.end()) return refuse("a node has the attribute " + quoted(*twice) + " twice", place);
    if (!done.domain.empty() && done.domain != "ai.onnx") count_foreign(done.domain, done.operation);
    if (!is_main(stack)) {  // graphs inside nodes: only what they may read from outside matters
      for (const onnx_model::name_place& input : done.inputs)
        if (input.second != 0) model_.nested_inputs.emplace_back(static_cast<std::uint32_t>(model_.nodes.size()), model_.add_name(input));
      return {};
    }
    onnx_node node;
    node.begin = static_cast<std::uint32_t>(done.begin), node.body = static_cast<std::uint32_t>(done.body), node.end = static_cast<std::uint32_t>(done.end);
    node.inputs = static_cast<std::uint32_t>(done.inputs.size()), node.outputs = static_cast<std::uint32_t>(done.outputs.size());
    node.has_graphs = done.has_graphs;
    node.first_name = model_.add_name(model_.add_text(done.name));
    model_.add_name(model_.add_text(done.operation));
    model_.add_name(model_.add_text(done.domain));
    for (const auto* list : {&done.inputs, &done.outputs})
      for (const onnx_model::name_place& name : *list) model_.add_name(name);
    model_.nodes.push_back(node);
    return {};
  }

  void count_foreign(const std::string& domain, const std::string& operation) {
    for (onnx_foreign_operator& known : model_.foreign_operators)
      if (known.domain == domain && known.name == operation) return ++known.count, void();
    if (model_.foreign_operators.size() < 256) model_.foreign_operators.push_back({domain, operation, 1});
  }

  // --- the whole ---

  result<void> check_model() const {
    if (model_.graph_fields.empty()) return refuse("the model has no graph", {}, "a graph and an operator set");
    if (model_.ir_version < 1) return refuse("the model has no version of the format", "ir_version", "1 or more", std::to_string(model_.ir_version));
    if (model_.ir_version > newest_onnx_ir)
      return failure{.code = errc::unsupported, .what = "the model has a version of the format that is not known", .file = model_.path, .place = "ir_version",
                     .expected = "at most " + std::to_string(newest_onnx_ir), .found = std::to_string(model_.ir_version)};
    if (model_.opset == 0) return refuse("the model imports no operator set of ONNX", "opset_import");
    if (model_.opset > newest_onnx_opset)
      return failure{.code = errc::unsupported, .what = "the model uses an operator set that is not known", .file = model_.path, .place = "opset_import ''",
                     .expected = "at most " + std::to_string(newest_onnx_opset), .found = std::to_string(model_.opset)};
    if (functions_ > 0)
      return failure{.code = errc::unsupported, .what = "the model defines operators of its own (functions)", .file = model_.path, .found = std::to_string(functions_),
                     .advice = "export it with inlined functions"};
    return {};
  }

  /// Every value is defined once and before it is used. Definitions are sorted by name; a value's place is that of its node.
  result<void> check_names() const {
    // A definition: whose it is (0: an input, 1: an initializer, n + 2: node n) and its number there.
    using definition = std::pair<std::uint32_t, std::uint32_t>;
    const auto name = [this](const definition& d) -> std::string_view {
      if (d.first == 0) return model_.inputs[d.second].name;
      return d.first == 1 ? std::string_view(model_.initializers[d.second].name) : model_.output_of(model_.nodes[d.first - 2], d.second);
    };
    std::size_t count = model_.inputs.size() + model_.initializers.size();
    for (const onnx_node& node : model_.nodes) count += node.outputs;
    std::vector<definition> all;
    all.reserve(count);
    for (std::uint32_t i = 0; i < model_.inputs.size(); ++i) all.emplace_back(0, i);
    for (std::uint32_t i = 0; i < model_.initializers.size(); ++i) all.emplace_back(1, i);
    for (std::uint32_t n = 0; n < model_.nodes.size(); ++n)
      for (std::uint32_t i = 0; i < model_.nodes[n].outputs; ++i)
        if (!model_.output_of(model_.nodes[n], i).empty()) all.emplace_back(n + 2, i);
    std::sort(all.begin(), all.end(), [&](const definition& a, const definition& b) {
      const int order = name(a).compare(name(b));
      return order != 0 ? order < 0 : a < b;
    });
    const auto node_of = [this](const definition& d) { return quoted(model_.name_of(model_.nodes[d.first - 2])); };
    for (std::size_t i = 1; i < all.size(); ++i) {
      const definition &a = all[i - 1], &b = all[i];
      if (name(a) != name(b) || (b.first == 1 && a.first == 0)) continue;  // an input may have an initializer as its default
      if (b.first < 2) return refuse((b.first == 1 ? "two initializers have the name " : "two inputs have the name ") + quoted(name(b)));
      return refuse("the value " + quoted(name(b)) + " is defined twice", "node " + node_of(b), "one definition",
                    a.first > 1 ? "also by node " + node_of(a) : a.first == 1 ? "also an initializer" : "also an input");
    }
    for (std::uint32_t n = 0; n < model_.nodes.size(); ++n)
      for (std::uint32_t i = 0; i < model_.nodes[n].inputs; ++i) {
        const std::string_view wanted = model_.input_of(model_.nodes[n], i);
        if (wanted.empty()) continue;
        const auto at = std::lower_bound(all.begin(), all.end(), wanted, [&](const definition& d, std::string_view w) { return name(d) < w; });
        const bool known = at != all.end() && name(*at) == wanted;
        if (known && at->first < n + 2) continue;
        failure error = refuse("the value " + quoted(wanted) + " is used before it is defined", "node " + quoted(model_.name_of(model_.nodes[n])), {},
                               known ? "defined by node " + node_of(*at) : "no definition");
        if (known && at->first != n + 2)  // what onnxruntime's float16 converter writes
          error.advice = "sort the graph's nodes, each behind those whose outputs it reads (onnxruntime.transformers.onnx_model's topological_sort does)";
        return error;
      }
    return {};
  }

  onnx_model model_;
  wire_reader wire_;
  const limits& bounds_;
  tensor_proto_reader tensors_;
  std::vector<std::string> opsets_;
  std::uint64_t nodes_ = 0, values_ = 0, tensors_seen_ = 0, functions_ = 0;
};

}  // namespace detail

/// Reads a model whose external files `open` gives. Payloads are not read; their places are proven to exist.
/// @fails malformed (the bytes break protobuf's or ONNX's rules), limit (nodes, values, tensors, depth, names: see limits), unsupported
/// (newer versions, functions, sparse initializers, other forms of the format), path (external files), io
inline result<onnx_model> read_onnx(std::shared_ptr<const byte_source> file, const onnx_file_opener& open, const limits& bounds = {}) {
  return detail::onnx_walk(std::move(file), open, bounds).read();
}

/// Reads `path`. External files must lie below its folder, be regular files and not the model itself; links that lead out are refused.
/// @fails as above
inline result<onnx_model> read_onnx(const std::string& path, const limits& bounds = {}) {
  const std::string folder(parent_path(path));
  TENSORSMITH_TRY(auto file, open_file_below(folder, std::string(file_name(path)), path));
  const auto pool = std::make_shared<descriptor_pool>();
  const file_source* const itself = file->as_file();
  const onnx_file_opener open = [&](const std::string& location) -> result<std::shared_ptr<const byte_source>> {
    TENSORSMITH_TRY(auto opened, open_file_below(folder, location, path, true, pool));
    if (itself && opened->as_file() && opened->as_file()->status().same_file(itself->status()))
      return failure{.code = errc::path, .what = "the path " + quoted(location) + " is refused: it is the model itself", .file = path,
                     .expected = "another file"};
    return opened;
  };
  TENSORSMITH_TRY(onnx_model out, read_onnx(std::move(file), open, bounds));
  out.folder = folder;
  return out;
}

TENSORSMITH_END_NAMESPACE
