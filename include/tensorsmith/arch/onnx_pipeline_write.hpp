// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/onnx_pipeline_write.hpp: writes a folder of ONNX graphs with some parameters changed, everything else byte for byte.
//
// Include arch/onnx_pipeline.hpp instead.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/arch/onnx_pipeline_open.hpp"
#include "tensorsmith/arch/onnx_pooling.hpp"
#include "tensorsmith/arch/update_checkpoint.hpp"
#include "tensorsmith/format/onnx/report.hpp"
#include "tensorsmith/format/onnx/update.hpp"
#include "tensorsmith/io/publish.hpp"
#include "tensorsmith/tensor/comparing_sink.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How a pipeline is written again.
struct onnx_pipeline_options {
  bool force = false;    ///< replace an existing output
  bool verify = false;   ///< produce everything a second time and compare before it appears
  bool dry_run = false;  ///< only report
  bool repair_pooling = false;  ///< also where no token was added
};

namespace detail {

/// The id of the end marker that a text encoder was trained with.
inline result<std::int64_t> end_of_text(const package& model, const component& encoder, const job& run) {
  if (const json_value* const eos = encoder.config.find("eos_token_id"); eos && eos->as_integer() && *eos->as_integer() > 2) return *eos->as_integer();
  const std::string vocabulary = encoder.name == "text_encoder_2" ? "tokenizer_2/vocab.json" : "tokenizer/vocab.json";
  for (const side_file& file : model.side_files) {
    if (file.path != vocabulary) continue;
    TENSORSMITH_TRY(const json_value words, read_json(*file.bytes, run.limits.tokenizer_bytes, run.limits));
    if (const json_value* const eos = words.find("<|endoftext|>"); eos && eos->as_integer()) return *eos->as_integer();
  }
  return std::int64_t{49407};
}

/// True if both are the same recipe, or the same stored bytes seen the same way (the folder was opened twice).
inline bool same_tensor(const tensor_ref& a, const tensor_ref& b) {
  if (a.source == b.source) return a.output == b.output;
  if (a.type() != b.type() || a.shape() != b.shape() || a.source->outputs().size() != 1 || b.source->outputs().size() != 1) return false;
  const auto same = [](const std::optional<stored_bytes>& x, const std::optional<stored_bytes>& y) {
    return x && y && x->offset == y->offset && x->length == y->length && x->source->name() == y->source->name() && x->source->in_file() && y->source->in_file();
  };
  if (same(a.source->stored(), b.source->stored())) return true;
  const recipe_ptr turned_a = a.source->stored() ? nullptr : a.source->fold_transpose(), turned_b = turned_a ? b.source->fold_transpose() : nullptr;
  return turned_b && !a.source->uncast() && !b.source->uncast() && same(turned_a->stored(), turned_b->stored());
}

/// The update of one graph that a changed component asks for.
class onnx_component_update {
 public:
  /// `before` and `after`: the network that the graph computes.
  onnx_component_update(const onnx_component& graph, const component& before, const component& after) : graph_(graph), before_(before), after_(after) {}

  result<onnx_update> make() {
    for (const onnx_parameter& p : graph_.parameters.parameters) {
      const catalog_entry *const was = before_.weights.find(p.name), *const entry = after_.weights.find(p.name);
      if (!was) continue;  // of a second graph alone
      if (!entry) return refuse(errc::mismatch, "a parameter of the graph is missing in the changed model", p.name);
      if (!same_tensor(entry->tensor, was->tensor)) TENSORSMITH_CHECK(change(p, entry->tensor));
    }
    return std::move(out_);
  }
  bool grew() const noexcept { return grew_; }

 private:
  failure refuse(errc code, std::string what, const std::string& name, std::string expected = {}, std::string found = {}, std::string advice = {}) const {
    return failure{.code = code, .what = std::move(what), .file = graph_.graph.path, .place = "parameter " + quoted(name), .expected = std::move(expected),
                   .found = std::move(found), .advice = std::move(advice)};
  }

  result<void> change(const onnx_parameter& p, const tensor_ref& tensor) {
    if (tensor.type() != p.tensor.type())
      return refuse(errc::usage, "the graph computes with this parameter in another type", p.name, std::string(tensorsmith::v0::name_of(p.tensor.type())),
                    std::string(tensorsmith::v0::name_of(tensor.type())), "keep the type, or convert the original model anew");
    const shape_type& before = p.tensor.shape();
    const shape_type& now = tensor.shape();
    const bool embedding = p.name.ends_with("token_embedding.weight") && now.size() == 2 && before.size() == 2 && now[1] == before[1] && now[0] > before[0];
    if (now != before && !embedding)
      return refuse(errc::mismatch, "the changed parameter has another shape", p.name, to_string(before), to_string(now));
    grew_ = grew_ || (now != before);
    for (const onnx_parameter_use& use : p.uses) {
      tensor_ref stored = tensor;
      if (use.transposed) {
        TENSORSMITH_TRY(stored, transposed(tensor));
      }
      TENSORSMITH_CHECK(place(p, use, stored, now != before));
    }
    return {};
  }

  /// Changes the initializer, or gives this parameter one of its own where others share it.
  result<void> place(const onnx_parameter& p, const onnx_parameter_use& use, const tensor_ref& stored, bool larger) {
    const onnx_initializer& old = graph_.graph.initializers[use.initializer];
    if (graph_.parameters.owners[use.initializer] == 1 && graph_.parameters.other_readers[use.initializer] == 0) {
      out_.tensors.push_back({use.initializer, stored, !larger});
      return {};
    }
    if (graph_.parameters.nested_readers[use.initializer] > 0)
      return refuse(errc::unsupported, "the parameter is read inside a branch or a loop of the graph, too", p.name, "readers in the main graph alone",
                    quoted(old.name), "export the model again without control flow");
    for (const onnx_reader& reader : use.readers)
      for (const onnx_parameter& other : graph_.parameters.parameters)
        for (const onnx_parameter_use& u : other.uses)
          if (&other != &p && std::find(u.readers.begin(), u.readers.end(), reader) != u.readers.end())
            return refuse(errc::unsupported, "the graph computes this parameter and " + quoted(other.name) + " as one value", p.name, "a value for each", {},
                          "export the model again without removing equal values");
    std::string name = free_name(p.name);
    out_.additions.push_back({name, stored, larger ? stored.shape() : old.shape, use.initializer});
    for (const onnx_reader& reader : use.readers) out_.inputs.push_back({reader.node, reader.input, name});
    return {};
  }

  std::string free_name(const std::string& wanted) {
    if (names_.empty()) {
      const onnx_model& g = graph_.graph;
      for (const onnx_initializer& t : g.initializers) names_.insert(t.name);
      for (const onnx_value_info& v : g.inputs) names_.insert(v.name);
      for (const onnx_node& n : g.nodes)
        for (std::size_t i = 0; i < n.outputs; ++i) names_.emplace(g.output_of(n, i));
    }
    std::string name = wanted;
    for (unsigned n = 1; !names_.insert(name).second; ++n) name = wanted + "_changed" + (n > 1 ? "_" + std::to_string(n) : "");
    return name;
  }

  const onnx_component& graph_;
  const component &before_, &after_;
  onnx_update out_;
  bool grew_ = false;
  std::set<std::string> names_;
};

/// Plans a folder and writes it.
class onnx_pipeline_writer {
 public:
  onnx_pipeline_writer(const onnx_pipeline& base, const package& model, const std::string& output, const onnx_pipeline_options& options, job& run)
      : base_(base), model_(model), output_(output), options_(options), run_(run) {}

  result<write_report> go(const std::vector<changed_weight>& changed) {
    for (const changed_weight& w : changed) TENSORSMITH_CHECK(check_known(w));
    for (std::size_t k = 0; k < base_.components.size(); ++k) TENSORSMITH_CHECK(plan_component(base_.components[k]));
    plan_others();
    write_report report = describe();
    if (options_.dry_run) return report;
    TENSORSMITH_TRY(auto out, folder_publication::begin(output_, {options_.force, false, sources()}));
    TENSORSMITH_CHECK(write_files(out));
    if (run_.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled; nothing was written"};
    TENSORSMITH_CHECK(out.commit());
    return report;
  }

 private:
  struct output_entry {
    std::string path;
    planned_file file;
    std::string component;  // empty: none
  };

  result<void> check_known(const changed_weight& w) const {
    for (const onnx_component& c : base_.components)
      if (c.name == w.component && c.parameters.find(w.name)) return {};
    return failure{.code = errc::mismatch, .what = "a changed weight has no place in the ONNX folder", .file = base_.source,
                   .place = "tensor " + quoted(w.component + "." + w.name), .expected = "a parameter of one of its graphs"};
  }

  result<void> plan_component(const onnx_component& graph) {
    const component *const after = model_.find(graph.network), *const before = base_.model.find(graph.network);
    if (!after || !before)
      return failure{.code = errc::mismatch, .what = "the changed model lacks a component of the folder", .file = base_.source, .place = graph.network};
    onnx_component_update builder(graph, *before, *after);
    TENSORSMITH_TRY(onnx_update update, builder.make());
    if (graph.network != "unet" && (builder.grew() || options_.repair_pooling)) {
      TENSORSMITH_TRY(const std::int64_t eos, end_of_text(model_, *after, run_));
      TENSORSMITH_TRY(const pooling_repairs pooling, repair_pooling(graph.graph, eos, update));
      for (const std::string& node : pooling.not_understood)
        run_.warn(graph.name, "the node " + quoted(node) + " may take the pooled output at the largest id, which an added token would be; it was left as it is");
      if (pooling.repaired > 0) run_.info(graph.name, "its pooled output is taken at the first token " + std::to_string(eos) + " from now on, and not at the largest id");
    }
    const bool changes = !update.empty();
    TENSORSMITH_TRY(std::vector<planned_file> files, plan_onnx_update(graph.graph, update));
    for (planned_file& file : files) {
      std::string path = join_path(graph.name, file.name);
      entries_.push_back({std::move(path), std::move(file), graph.name});
    }
    for (const side_file& file : graph.files) {
      if (changes && is_weights(file.path)) {
        run_.warn(file.path, "left out: the graph does not use it, and it may hold the weights as they were");
        continue;
      }
      copy(file, graph.name);
    }
    const std::string path = join_path(graph.name, "config.json");
    if (before->config == after->config || graph.name != graph.network)
      return os::exists(join_path(base_.source, path)) ? copy_named(path, graph.name) : result<void>();
    if (after->config.is_null()) return {};
    text(path, write_json(after->config) + "\n", graph.name);
    return {};
  }

  static bool is_weights(std::string_view path) noexcept {
    constexpr std::string_view endings[] = {".onnx", ".onnx_data", ".onnx.data", ".data", ".pb", ".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".ort", ".gguf"};
    return std::any_of(std::begin(endings), std::end(endings), [&](std::string_view e) { return ends_with_ignoring_case(path, e); });
  }

  void copy(const side_file& file, const std::string& component) {
    planned_file whole;
    whole.size = file.bytes->size(), whole.unchanged = file.bytes;
    entries_.push_back({file.path, std::move(whole), component});
  }
  result<void> copy_named(const std::string& path, const std::string& component) {
    TENSORSMITH_TRY(auto bytes, open_file_below(base_.source, path, base_.source, true));
    copy({path, std::move(bytes)}, component);
    return {};
  }
  void text(const std::string& path, std::string bytes, const std::string& component) {
    piece_list pieces(path);
    pieces.text(std::move(bytes));
    entries_.push_back({path, pieces.take(), component});
  }

  void plan_others() {
    for (const side_file& file : base_.others) copy(file, {});
    for (const side_file& file : model_.side_files) copy(file, {});
    if (model_.index.is_null()) return;
    if (model_.index == base_.model.index && copy_named("model_index.json", {})) return;
    text("model_index.json", write_json(model_.index) + "\n", {});
  }

  std::vector<std::string> sources() const {
    std::set<std::string> paths{base_.source};
    for (const output_entry& e : entries_) {
      if (e.file.unchanged && e.file.unchanged->in_file()) paths.insert(e.file.unchanged->name());
      for (const planned_piece& piece : e.file.pieces)
        if (const auto* tensor = std::get_if<tensor_ref>(&piece.what))
          if (const auto stored = tensor->source->stored(); stored && stored->source->in_file()) paths.insert(stored->source->name());
    }
    return {paths.begin(), paths.end()};
  }

  /// Creates all files. Texts and whole copies are written at once; tensors and ranges go through the executor.
  result<void> write_files(folder_publication& out) {
    std::vector<std::shared_ptr<output_file>> files;
    std::vector<std::shared_ptr<const byte_source>> copied;
    for (const output_entry& e : entries_) {
      if (e.file.unchanged) {
        TENSORSMITH_CHECK(out.write_copy(e.path, *e.file.unchanged));
        copied.push_back(e.file.unchanged);
        files.push_back(nullptr);
        continue;
      }
      TENSORSMITH_TRY(auto file, out.create(e.path, e.file.size));
      for (const planned_piece& piece : e.file.pieces)
        if (const auto* words = std::get_if<std::string>(&piece.what)) TENSORSMITH_CHECK(file->write_at(piece.at, std::as_bytes(std::span(*words))));
      files.push_back(std::move(file));
    }
    std::vector<byte_sink*> sinks;
    for (const auto& file : files) sinks.push_back(file.get());
    TENSORSMITH_CHECK(produce(sinks, true));
    for (const auto& source : copied) TENSORSMITH_CHECK(source->check_unchanged());
    return options_.verify ? verify(files) : result<void>();
  }

  result<void> produce(const std::vector<byte_sink*>& sinks, bool check) {
    std::vector<placement> placements;
    for (std::size_t k = 0; k < entries_.size(); ++k) {
      if (!sinks[k]) continue;
      for (const planned_piece& piece : entries_[k].file.pieces) {
        const auto* const tensor = std::get_if<tensor_ref>(&piece.what);
        if (!tensor) continue;
        placement p{tensor->source, std::vector<output_slot>(tensor->source->outputs().size()), entries_[k].path + ": " + piece.name};
        p.slots[tensor->output] = {sinks[k], piece.at};
        placements.push_back(std::move(p));
      }
    }
    TENSORSMITH_CHECK(execute(placements, run_));
    return check ? check_sources_unchanged(placements) : result<void>();
  }

  result<void> verify(const std::vector<std::shared_ptr<output_file>>& files) {
    std::deque<comparing_sink> compared;
    std::vector<byte_sink*> sinks;
    for (std::size_t k = 0; k < files.size(); ++k) {
      if (!files[k]) {
        sinks.push_back(nullptr);
        continue;
      }
      TENSORSMITH_TRY(auto written, open_file(files[k]->path(), files[k]->name()));
      sinks.push_back(&compared.emplace_back(std::move(written)));
      for (const planned_piece& piece : entries_[k].file.pieces)
        if (const auto* words = std::get_if<std::string>(&piece.what)) TENSORSMITH_CHECK(sinks.back()->write_at(piece.at, std::as_bytes(std::span(*words))));
    }
    return produce(sinks, false);
  }

  write_report describe() const {
    write_report report;
    for (const onnx_component& graph : base_.components) {
      component_report lines;
      lines.name = graph.name, lines.weights = "copied", lines.nodes = graph.graph.nodes.size();
      for (const catalog_entry& entry : model_.find(graph.network)->weights.entries()) {
        const tensor_info& info = entry.tensor.info();
        ++lines.tensors;
        lines.parameters += info.elements();
        lines.weight_bytes += info.bytes();
        const std::string type(tensorsmith::v0::name_of(info.type));
        const auto at = std::find_if(lines.dtypes.begin(), lines.dtypes.end(), [&](const auto& d) { return d.first == type; });
        if (at == lines.dtypes.end()) lines.dtypes.emplace_back(type, 1);
        else ++at->second;
      }
      for (const output_entry& e : entries_)
        if (e.component == graph.name) lines.files.push_back({e.path, e.file.size, false});
      report.components.push_back(std::move(lines));
    }
    std::uint64_t texts = 0;
    for (const output_entry& e : entries_) {
      report.total_bytes += e.file.size;
      if (e.component.empty()) report.other_files.push_back({e.path, e.file.size, false});
      for (const planned_piece& piece : e.file.pieces)
        if (std::holds_alternative<std::string>(piece.what)) texts += piece.length;
    }
    const std::uint64_t threads = run_.threads ? run_.threads : std::max(1U, std::thread::hardware_concurrency());
    report.peak_memory_bytes = std::min<std::uint64_t>(threads * 3 * run_.tile_bytes, run_.memory_bytes) + texts;
    return report;
  }

  const onnx_pipeline& base_;
  const package& model_;
  const std::string& output_;
  const onnx_pipeline_options& options_;
  job& run_;
  std::vector<output_entry> entries_;
};

}  // namespace detail

/// Writes the folder again with the parameters of `model` in the place of those that differ. `changed` names weights that were changed, so
/// that a mistake is found before anything is written. Graphs, unchanged weights and all other files keep their bytes; a parameter that
/// shares its initializer with others gets one of its own; where tokens were added, the pooled output is repaired.
/// @fails mismatch (a change that has no place), usage (another element type), unsupported (values that a graph computes once for several
/// parameters), limit (a model file over 2 GiB), path, denied, no_space, io, integrity, cancelled, and what the recipes fail with
inline result<write_report> write_onnx_pipeline(const onnx_pipeline& base, const package& model, const std::vector<changed_weight>& changed,
                                                const std::string& output, const onnx_pipeline_options& options, job& run) {
  return detail::onnx_pipeline_writer(base, model, output, options, run).go(changed);
}

TENSORSMITH_END_NAMESPACE
