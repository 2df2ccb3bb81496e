// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/update.hpp: an ONNX model with some tensors and nodes changed, everything else byte for byte.
//
// Include this to write what was read with format/onnx/read.hpp. A file is a list of pieces: ranges of the file it comes from, new heads of
// messages, and tensors that are produced into their place. No protobuf, and no payload is held.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/format/onnx/model.hpp"
#include "tensorsmith/format/onnx/wire.hpp"
#include "tensorsmith/format/onnx/wire_reader.hpp"
#include "tensorsmith/graph/element_code.hpp"
#include "tensorsmith/io/path.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What is to change in a model. Initializers and nodes are given by their index in onnx_model.
struct onnx_update {
  struct replaced_tensor {
    std::size_t initializer;
    tensor_ref tensor;        ///< type and shape may be others
    bool keep_shape = false;  ///< its elements, in their order, under the initializer's own shape
  };
  struct added_tensor {
    std::string name;  ///< new in the model
    tensor_ref tensor;
    shape_type shape;  ///< that it is declared with; as many elements
    std::size_t like;  ///< stored as this initializer is: in the model file, or in its external file
  };
  struct changed_input {
    std::size_t node, input;
    std::string name;  ///< the value that it reads from now on
  };
  struct inserted_node {
    std::size_t before;  ///< index of a node
    std::string bytes;   ///< a NodeProto
  };
  std::vector<replaced_tensor> tensors;  ///< each initializer at most once
  std::vector<added_tensor> additions;
  std::vector<changed_input> inputs;
  std::vector<inserted_node> nodes;

  bool empty() const noexcept { return tensors.empty() && additions.empty() && inputs.empty() && nodes.empty(); }
};

/// A part of a planned file: text, or a tensor (ranges of sources are tensors of bytes).
struct planned_piece {
  std::uint64_t at = 0, length = 0;
  std::variant<std::string, tensor_ref> what;
  std::string name;       ///< for messages
};

/// A file of the output. Its pieces lie one behind the other and fill it.
struct planned_file {
  std::string name;  ///< relative to the model's folder
  std::uint64_t size = 0;
  std::vector<planned_piece> pieces;
  std::shared_ptr<const byte_source> unchanged;  ///< set: the file is that of this source
};

namespace detail {

/// Builds the pieces of one file.
class piece_list {
 public:
  explicit piece_list(std::string name) { out_.name = std::move(name); }
  void text(std::string bytes) {
    if (bytes.empty()) return;
    if (!out_.pieces.empty())
      if (auto* last = std::get_if<std::string>(&out_.pieces.back().what)) {
        *last += bytes;
        out_.pieces.back().length += bytes.size();
        out_.size += bytes.size();
        return;
      }
    const std::uint64_t length = bytes.size();
    append({out_.size, length, std::move(bytes), out_.name});
  }
  void range(const std::shared_ptr<const byte_source>& source, std::uint64_t begin, std::uint64_t end) {
    if (begin == end) return;
    tensor_ref bytes{stored_tensor(source, begin, dtype::u8, {static_cast<std::size_t>(end - begin)}, source->name()), 0};
    append({out_.size, end - begin, std::move(bytes), out_.name});
  }
  void tensor(const tensor_ref& what, std::string name) {
    if (what.info().bytes() == 0) return;
    append({out_.size, what.info().bytes(), what, std::move(name)});
  }
  void zeros(std::uint64_t count) {
    // Only ever the rest of a page or two.
    text(std::string(static_cast<std::size_t>(count), '\0'));
  }
  std::uint64_t size() const noexcept { return out_.size; }
  planned_file take() { return std::move(out_); }

 private:
  void append(planned_piece piece) {
    out_.size += piece.length;
    out_.pieces.push_back(std::move(piece));
  }
  planned_file out_;
};

/// What stands in the place of a range of the model file.
struct model_part {
  std::string text{};
  onnx_range range{};       // of the model file
  tensor_ref tensor{};
  std::string name{};

  std::uint64_t length() const { return tensor ? tensor.info().bytes() : !text.empty() ? text.size() : range.end - range.begin; }
};
struct model_edit {
  onnx_range place;
  std::vector<model_part> parts;
};

inline std::string field_head(std::uint32_t field, std::uint64_t length) {
  std::string out;
  append_varint(out, std::uint64_t{field} << 3 | 2U);
  append_varint(out, length);
  return out;
}
inline std::string bytes_field(std::uint32_t field, std::string_view content) { return field_head(field, content.size()) + std::string(content); }
inline std::string number_field(std::uint32_t field, std::uint64_t value) {
  std::string out;
  append_varint(out, std::uint64_t{field} << 3);
  append_varint(out, value);
  return out;
}
inline std::string external_entry(std::string_view key, std::string_view value) {
  return bytes_field(13, bytes_field(1, key) + bytes_field(2, value));
}

/// One update, laid out.
class onnx_update_plan {
 public:
  onnx_update_plan(const onnx_model& model, const onnx_update& update) : model_(model), update_(update), wire_(model.file) {}

  result<std::vector<planned_file>> plan() {
    for (const onnx_update::replaced_tensor& t : update_.tensors) replaced_.emplace(t.initializer, &t);
    TENSORSMITH_CHECK(lay_out_external());
    for (std::size_t i = 0; i < model_.initializers.size(); ++i) TENSORSMITH_CHECK(edit_initializer(i));
    TENSORSMITH_CHECK(edit_nodes());
    TENSORSMITH_CHECK(edit_declarations());
    TENSORSMITH_CHECK(add_initializers());
    TENSORSMITH_CHECK(assemble());
    return std::move(files_);
  }

 private:
  struct place {  // of an initializer in external data, as it will be
    std::string location;
    std::uint64_t offset = 0;
  };
  static constexpr std::uint64_t alignment = 4096;
  static constexpr std::int64_t first_ir_of_plain_initializers = 4;  // before, every initializer had to be an input of the graph too
  static std::uint64_t rounded(std::uint64_t n) noexcept { return (n + alignment - 1) / alignment * alignment; }

  failure refuse(errc code, std::string what, const std::string& tensor) const {
    return failure{.code = code, .what = std::move(what), .file = model_.path, .place = "tensor " + quoted(tensor)};
  }

  /// Containers that know what lies in them: their tensors may change in place, and may not move.
  static bool is_container(std::string_view location) noexcept {
    for (const std::string_view ending : {".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
      if (ends_with_ignoring_case(location, ending)) return true;
    return false;
  }
  /// Zip archives keep checksums: nothing in them may change.
  static result<bool> is_archive(const byte_source& file) {
    std::byte magic[2]{};
    if (file.size() < sizeof magic) return false;
    TENSORSMITH_CHECK(file.read_at(0, magic));
    return magic[0] == std::byte{'P'} && magic[1] == std::byte{'K'};
  }

  /// A name for a new data file beside the model.
  const std::string& new_data_name() {
    if (!new_name_.empty()) return new_name_;
    const auto taken = [&](const std::string& name) {
      return std::any_of(model_.external_files.begin(), model_.external_files.end(), [&](const onnx_external_file& f) { return f.location == name; });
    };
    const std::string base = std::string(file_name(model_.path)) + "_data";
    new_name_ = base;
    for (unsigned n = 2; taken(new_name_); ++n) new_name_ = base + "-" + std::to_string(n);
    return new_name_;
  }

  // --- external files ---

  /// Where every external tensor will lie, and the pieces of the files. Ranges keep their order; what is behind a tensor that grows moves by
  /// whole pages. Tensors that cannot stay (containers, shared ranges, ranges that nodes refer to) go to a place of their own.
  result<void> lay_out_external() {
    piece_list fresh(std::string{});  // the new data file
    for (std::size_t file = 0; file < model_.external_files.size(); ++file) TENSORSMITH_CHECK(lay_out_file(file, fresh));
    for (std::size_t k = 0; k < update_.additions.size(); ++k) {
      const auto& added = update_.additions[k];
      const onnx_initializer& like = model_.initializers[added.like];
      if (like.payload == onnx_payload::external) added_places_.emplace(k, append(fresh, added.tensor, added.name));
    }
    if (fresh.size() == 0) return {};
    files_.push_back(fresh.take());
    files_.back().name = new_data_name();
    return {};
  }

  place append(piece_list& file, const tensor_ref& tensor, const std::string& name) {
    file.zeros(rounded(file.size()) - file.size());
    const place out{new_data_name(), file.size()};
    file.tensor(tensor, name);
    return out;
  }

  struct stored_range {
    std::uint64_t offset, length;
    std::size_t initializer;  // npos: a node's
  };
  static constexpr auto no_initializer = static_cast<std::size_t>(-1);

  result<void> lay_out_file(std::size_t file, piece_list& fresh) {
    const onnx_external_file& data = model_.external_files[file];
    std::vector<stored_range> ranges;
    bool changed = false, nodes_refer = false;
    for (std::size_t i = 0; i < model_.initializers.size(); ++i) {
      const onnx_initializer& t = model_.initializers[i];
      if (t.payload != onnx_payload::external || t.file != file) continue;
      ranges.push_back({t.offset, t.length, i});
      changed = changed || replaced_.count(i) > 0;
    }
    for (const onnx_external_use& use : model_.external_uses)
      if (use.file == file) ranges.push_back({use.offset, use.length, no_initializer}), nodes_refer = true;
    if (!changed) {
      files_.push_back({data.location, data.source->size(), {}, data.source});
      return {};
    }
    std::sort(ranges.begin(), ranges.end(), [](const stored_range& a, const stored_range& b) { return a.offset < b.offset; });
    const bool fixed = nodes_refer || is_container(data.location);
    TENSORSMITH_TRY(const bool archive, is_archive(*data.source));
    piece_list out(data.location);
    std::uint64_t reached = 0, shift = 0;  // bytes of the source that were taken; how far they have moved
    for (std::size_t k = 0; k < ranges.size(); ++k) {
      const stored_range& r = ranges[k];
      if (r.initializer == no_initializer) continue;
      const auto at = replaced_.find(r.initializer);
      const std::string& name = model_.initializers[r.initializer].name;
      if (at == replaced_.end()) {
        if (shift > 0) places_[r.initializer] = {data.location, r.offset + shift};
        continue;
      }
      const std::uint64_t length = at->second->tensor.info().bytes();
      if (length == 0 && r.length == 0) continue;
      // What was empty may have its offset inside another tensor: it has no place of its own.
      const bool shared = r.length == 0 || overlaps(ranges, k);
      if (shared || archive || (length != r.length && fixed)) {
        places_[r.initializer] = append(fresh, at->second->tensor, name);
        continue;
      }
      out.range(data.source, reached, r.offset);
      if (shift > 0) places_[r.initializer] = {data.location, r.offset + shift};
      out.tensor(at->second->tensor, name);
      reached = r.offset + r.length;
      if (length <= r.length) {
        out.zeros(r.length - length);
      } else {
        const std::uint64_t more = rounded(length - r.length);
        if (reached < data.source->size()) out.zeros(more - (length - r.length)), shift += more;
      }
    }
    if (reached == 0 && out.size() == 0) {
      files_.push_back({data.location, data.source->size(), {}, data.source});
      return {};
    }
    out.range(data.source, reached, data.source->size());
    files_.push_back(out.take());
    return {};
  }

  /// True if another tensor uses bytes of this one. `ranges` is sorted by offset.
  static bool overlaps(const std::vector<stored_range>& ranges, std::size_t k) {
    const stored_range& r = ranges[k];
    for (std::size_t j = 0; j < ranges.size(); ++j)
      if (j != k && ranges[j].length > 0 && r.length > 0 && ranges[j].offset < r.offset + r.length && r.offset < ranges[j].offset + ranges[j].length) return true;
    return false;
  }

  // --- the model file ---

  /// True if an initializer keeps the element type and the shape that it is declared with.
  static bool keeps_head(const onnx_initializer& old, const onnx_update::replaced_tensor& now) {
    return now.tensor.type() == old.type && (now.keep_shape || now.tensor.shape() == old.shape);
  }

  result<void> edit_initializer(std::size_t index) {
    const onnx_initializer& old = model_.initializers[index];
    const auto at = replaced_.find(index);
    const auto moved = places_.find(index);
    if (at == replaced_.end() && moved == places_.end()) return {};
    const tensor_ref* const tensor = at == replaced_.end() ? nullptr : &at->second->tensor;
    const bool same = !tensor || keeps_head(old, *at->second);
    if (same && moved == places_.end() && old.payload == onnx_payload::external) return {};
    if (same && moved == places_.end() && old.payload == onnx_payload::raw) {
      edits_.push_back({{old.offset, old.offset + old.length}, {model_part{.tensor = *tensor, .name = old.name}}});
      return {};
    }
    std::string body;
    TENSORSMITH_TRY(body, kept_fields(old, tensor != nullptr, same));
    if (!same) {
      TENSORSMITH_TRY(const std::string head, type_and_shape(tensor->type(), tensor->shape(), old.name));
      body += head;
    }
    model_part payload;
    if (old.payload == onnx_payload::external) {
      const place& to = moved == places_.end() ? place{model_.external_files[old.file].location, old.offset} : moved->second;
      body += external(to, tensor ? tensor->info().bytes() : old.length);
    } else {
      body += field_head(9, tensor->info().bytes());
      payload = {.tensor = *tensor, .name = old.name};
    }
    const std::uint64_t length = body.size() + (payload.tensor ? payload.length() : 0);
    model_edit edit{old.field, {model_part{.text = field_head(5, length) + body}}};
    if (payload.tensor) edit.parts.push_back(std::move(payload));
    edits_.push_back(std::move(edit));
    return {};
  }

  static std::string external(const place& to, std::uint64_t length) {
    return external_entry("location", to.location) + external_entry("offset", std::to_string(to.offset)) +
           external_entry("length", std::to_string(length)) + number_field(14, 1);
  }
  /// The field that holds an element type: of a TensorProto (2) or of a TypeProto.Tensor (1).
  result<std::string> type_field(std::uint32_t field, dtype type, const std::string& name) const {
    const auto code = element_code(type);
    if (!code) return refuse(errc::unsupported, "ONNX has no element type " + std::string(tensorsmith::v0::name_of(type)), name);
    return number_field(field, static_cast<std::uint64_t>(*code));
  }
  result<std::string> type_and_shape(dtype type, const shape_type& shape, const std::string& name) const {
    TENSORSMITH_TRY(const std::string code, type_field(2, type, name));
    std::string out;
    for (const std::size_t extent : shape) out += number_field(1, extent);
    return out + code;
  }
  /// A ValueInfoProto's name and type, without its other fields. `of_type`: further fields of the TypeProto.
  result<std::string> declaration(dtype type, const shape_type& shape, const std::string& name, std::string_view of_type = {}) const {
    TENSORSMITH_TRY(const std::string code, type_field(1, type, name));
    std::string dims;
    for (const std::size_t extent : shape) dims += bytes_field(1, number_field(1, extent));
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, code + bytes_field(2, dims)) + std::string(of_type));
  }
  result<std::string> verbatim(const wire_field& f) {
    std::string bytes(static_cast<std::size_t>(f.end - f.begin), '\0');
    TENSORSMITH_CHECK(wire_.read(f.begin, std::as_writable_bytes(std::span(bytes))));
    return bytes;
  }

  /// The fields of a TensorProto that stay: all but the payload and its place, less shape and type if those change.
  result<std::string> kept_fields(const onnx_initializer& old, bool replaced, bool same) {
    std::string out;
    for (std::uint64_t at = old.body.begin; at < old.body.end;) {
      TENSORSMITH_TRY(const wire_field f, wire_.next(at, old.body.end));
      const bool payload = (f.number >= 4 && f.number <= 7) || (f.number >= 9 && f.number <= 11 && f.number != 8);
      if (payload || f.number == 14 || (!same && (f.number == 1 || f.number == 2))) continue;
      if (f.number == 13) {
        TENSORSMITH_TRY(const bool keep, keep_entry(f, replaced));
        if (!keep) continue;
      }
      TENSORSMITH_TRY(const std::string bytes, verbatim(f));
      out += bytes;
    }
    return out;
  }
  /// Of external_data, what is neither written anew nor, like a checksum, wrong from now on.
  result<bool> keep_entry(const wire_field& f, bool replaced) {
    for (std::uint64_t at = f.value; at < f.end;) {
      TENSORSMITH_TRY(const wire_field part, wire_.next(at, f.end));
      if (part.number != 1) continue;
      TENSORSMITH_TRY(const std::string key, wire_.text(part, 4096, "an entry of external_data"));
      if (key == "location" || key == "offset" || key == "length" || (key == "checksum" && replaced)) return false;
    }
    return true;
  }

  result<void> edit_nodes() {
    std::map<std::size_t, std::map<std::size_t, std::string>> inputs;
    for (const onnx_update::changed_input& c : update_.inputs) inputs[c.node][c.input] = c.name;
    for (const auto& [index, names] : inputs) {
      const onnx_node& node = model_.nodes[index];
      model_edit edit{{node.begin, node.end}, {}};
      std::uint64_t reached = node.body, length = 0;
      std::size_t seen = 0;
      for (std::uint64_t at = node.body; at < node.end;) {
        TENSORSMITH_TRY(const wire_field f, wire_.next(at, node.end));
        if (f.number != 1) continue;
        const auto name = names.find(seen++);
        if (name == names.end()) continue;
        if (f.begin > reached) edit.parts.push_back({.range = {reached, f.begin}});
        edit.parts.push_back({.text = bytes_field(1, name->second)});
        reached = f.end;
      }
      if (node.end > reached) edit.parts.push_back({.range = {reached, node.end}});
      for (const model_part& part : edit.parts) length += part.length();
      edit.parts.insert(edit.parts.begin(), model_part{.text = field_head(1, length)});
      edits_.push_back(std::move(edit));
    }
    for (const onnx_update::inserted_node& n : update_.nodes) {
      const std::uint64_t at = model_.nodes[n.before].begin;
      edits_.push_back({{at, at}, {model_part{.text = bytes_field(1, n.bytes)}}});
    }
    return {};
  }

  // --- what the graph says of values ---

  /// Finds the values whose declared shape would be wrong from now on: initializers that get another one, and what nodes make of them that
  /// pass a value on. What other nodes compute keeps its shape, or the graph would not fit together any more.
  void find_redeclared() {
    for (const auto& [index, now] : replaced_)
      if (!keeps_head(model_.initializers[index], *now)) redeclared_.emplace(model_.initializers[index].name, &now->tensor);
    for (const onnx_update::added_tensor& added : update_.additions)
      if (added.shape != model_.initializers[added.like].shape) redeclared_.emplace(added.name, nullptr);
    if (redeclared_.empty()) return;
    std::map<std::size_t, std::string_view> first_inputs;  // that change
    for (const onnx_update::changed_input& c : update_.inputs)
      if (c.input == 0) first_inputs[c.node] = c.name;
    for (std::size_t n = 0; n < model_.nodes.size(); ++n) {  // a value is defined before it is used: one pass finds all
      const onnx_node& node = model_.nodes[n];
      if (node.inputs == 0 || !(model_.is(node, "Identity") || model_.is(node, "Cast") || model_.is(node, "Transpose"))) continue;
      const auto changed = first_inputs.find(n);
      if (redeclared_.count(changed == first_inputs.end() ? model_.input_of(node, 0) : changed->second) == 0) continue;
      for (std::size_t i = 0; i < node.outputs; ++i)
        if (!model_.output_of(node, i).empty()) redeclared_.emplace(model_.output_of(node, i), nullptr);
    }
  }

  /// Older models, and those of some exporters, declare every initializer as an input of the graph, and models may declare any value in
  /// value_info. Runtimes refuse a model where that contradicts the initializer. An input gets the new shape; an entry of value_info goes:
  /// shape inference finds again what it said.
  result<void> edit_declarations() {
    find_redeclared();
    if (redeclared_.empty()) return {};
    for (const onnx_range& body : model_.graph_bodies)
      for (std::uint64_t at = body.begin; at < body.end;) {
        TENSORSMITH_TRY(const wire_field f, wire_.next(at, body.end));
        if ((f.number != 11 && f.number != 13) || f.type != wire_type::bytes) continue;
        TENSORSMITH_TRY(const std::string name, redeclared_name(f));
        const auto found = redeclared_.find(name);
        if (found == redeclared_.end() || (f.number == 11 && !found->second)) continue;
        model_edit edit{{f.begin, f.end}, {}};
        if (f.number == 11) {
          TENSORSMITH_TRY(const std::string anew, declared_anew(f, name, *found->second));
          edit.parts.push_back({.text = bytes_field(11, anew)});
        }
        edits_.push_back(std::move(edit));
      }
    return {};
  }
  /// The name in a ValueInfoProto, or nothing where it is longer than any that is looked for.
  result<std::string> redeclared_name(const wire_field& f) {
    std::uint64_t longest = 0;
    for (const auto& [name, tensor] : redeclared_) longest = std::max<std::uint64_t>(longest, name.size());
    std::string out;
    for (std::uint64_t at = f.value; at < f.end;) {
      TENSORSMITH_TRY(const wire_field part, wire_.next(at, f.end));
      if (part.number != 1 || part.type != wire_type::bytes) continue;
      out.clear();
      if (part.length() > longest) continue;
      TENSORSMITH_TRY(out, wire_.text(part, longest, "the name of a value"));
    }
    return out;
  }
  /// The ValueInfoProto `f` with the type and shape of a tensor. Its documentation and what is unknown stay.
  result<std::string> declared_anew(const wire_field& f, const std::string& name, const tensor_ref& tensor) {
    std::string others, denotation;
    for (std::uint64_t at = f.value; at < f.end;) {
      TENSORSMITH_TRY(const wire_field part, wire_.next(at, f.end));
      if (part.number == 1) continue;
      if (part.number != 2 || part.type != wire_type::bytes) {
        TENSORSMITH_TRY(const std::string bytes, verbatim(part));
        others += bytes;
        continue;
      }
      for (std::uint64_t in = part.value; in < part.end;) {
        TENSORSMITH_TRY(const wire_field type, wire_.next(in, part.end));
        if (type.number != 6) continue;  // all others are kinds of type, of which there can be only one
        TENSORSMITH_TRY(denotation, verbatim(type));
      }
    }
    TENSORSMITH_TRY(const std::string head, declaration(tensor.type(), tensor.shape(), name, denotation));
    return head + others;
  }

  result<void> add_initializers() {
    const std::uint64_t at = model_.graph_bodies.back().end;
    for (std::size_t k = 0; k < update_.additions.size(); ++k) {
      const onnx_update::added_tensor& added = update_.additions[k];
      TENSORSMITH_TRY(std::string body, type_and_shape(added.tensor.type(), added.shape, added.name));
      body += bytes_field(8, added.name);
      model_edit edit{{at, at}, {}};
      std::uint64_t more = 0;
      if (const auto outside = added_places_.find(k); outside != added_places_.end()) {
        body += external(outside->second, added.tensor.info().bytes());
      } else {
        more = added.tensor.info().bytes();
        body += field_head(9, more);
      }
      edit.parts.push_back({.text = field_head(5, body.size() + more) + body});
      if (more > 0) edit.parts.push_back({.tensor = added.tensor, .name = added.name});
      if (model_.ir_version < first_ir_of_plain_initializers) {
        TENSORSMITH_TRY(const std::string input, declaration(added.tensor.type(), added.shape, added.name));
        edit.parts.push_back({.text = bytes_field(11, input)});
      }
      edits_.push_back(std::move(edit));
    }
    return {};
  }

  /// The model file: what is between the edits stays, the graph's length is written anew.
  result<void> assemble() {
    if (edits_.empty()) {
      files_.push_back({std::string(file_name(model_.path)), model_.file->size(), {}, model_.file});
      return {};
    }
    std::stable_sort(edits_.begin(), edits_.end(), [](const model_edit& a, const model_edit& b) {
      return a.place.begin != b.place.begin ? a.place.begin < b.place.begin : a.place.end < b.place.end;
    });
    piece_list out{std::string(file_name(model_.path))};
    std::uint64_t reached = 0;
    std::size_t next = 0;
    for (std::size_t g = 0; g < model_.graph_bodies.size(); ++g) {
      const onnx_range body = model_.graph_bodies[g];
      std::uint64_t length = body.end - body.begin;
      std::size_t last = next;
      for (; last < edits_.size() && edits_[last].place.begin >= body.begin && edits_[last].place.end <= body.end; ++last) {
        length -= edits_[last].place.end - edits_[last].place.begin;
        for (const model_part& part : edits_[last].parts) length += part.length();
      }
      out.range(model_.file, reached, model_.graph_fields[g].begin);
      out.text(field_head(7, length));
      reached = body.begin;
      for (; next < last; ++next) {
        const model_edit& edit = edits_[next];
        out.range(model_.file, reached, edit.place.begin);
        for (const model_part& part : edit.parts) {
          if (part.tensor) out.tensor(part.tensor, part.name);
          else if (!part.text.empty()) out.text(part.text);
          else out.range(model_.file, part.range.begin, part.range.end);
        }
        reached = edit.place.end;
      }
      out.range(model_.file, reached, body.end);
      reached = body.end;
    }
    out.range(model_.file, reached, model_.file->size());
    constexpr std::uint64_t largest = 0x7FFFFFFF;
    if (out.size() > largest)
      return failure{.code = errc::limit, .what = "the changed model file would exceed what protobuf can hold", .file = model_.path,
                     .expected = "at most " + std::to_string(largest) + " bytes", .found = std::to_string(out.size()),
                     .advice = "keep the model's weights in an external file and merge again"};
    files_.push_back(out.take());
    return {};
  }

  const onnx_model& model_;
  const onnx_update& update_;
  wire_reader wire_;
  std::map<std::size_t, const onnx_update::replaced_tensor*> replaced_;
  std::map<std::size_t, place> places_, added_places_;
  std::map<std::string_view, const tensor_ref*> redeclared_;  // by name; none: not an initializer of the model as it is
  std::string new_name_;
  std::vector<model_edit> edits_;
  std::vector<planned_file> files_;
};

}  // namespace detail

/// The files of a model after `update`: its external files, then the model file. Files that do not change are named as such. No payload is
/// read. @fails limit (a model file over 2 GiB), unsupported (an element type that ONNX lacks), malformed (a declaration of a value whose
/// shape changes is no protobuf), io
inline result<std::vector<planned_file>> plan_onnx_update(const onnx_model& model, const onnx_update& update) {
  return detail::onnx_update_plan(model, update).plan();
}

TENSORSMITH_END_NAMESPACE
