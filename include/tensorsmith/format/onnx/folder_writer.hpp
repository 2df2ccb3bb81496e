// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/folder_writer.hpp: the steps of writing a pipeline folder. Include format/onnx/write.hpp instead.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensorsmith/format/onnx/component_plan.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/io/publish.hpp"
#include "tensorsmith/tensor/executor.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Plans a folder and writes it. Weights of all components go through one run of the executor, so that every thread has work
/// until the last tensor.
class onnx_folder_writer {
 public:
  onnx_folder_writer(const bundle& models, std::string target, const onnx_write_options& options, job& run)
      : models_(models), target_(std::move(target)), options_(options), run_(run) {}

  /// Lays everything out and checks the options; nothing is written.
  result<void> plan() {
    TENSORSMITH_CHECK(check_relative_path(options_.data_name, {}, "name of the data file", false));
    if (options_.data_name == "model.onnx" || options_.data_name == "config.json")
      return failure{.code = errc::usage, .what = "the data file cannot have this name", .found = quoted(options_.data_name)};
    if (models_.opset == 0)
      return failure{
          .code = errc::internal, .what = "the graphs were not lowered to ONNX operators", .advice = "lower them first"};
    merging_ = options_.weights == weights_mode::in_place && same_folder(models_.source, target_);
    for (const bundle_component& c : models_.components) {
      TENSORSMITH_TRY(component_plan planned, plan_component(c, models_.opset, options_.weights, options_));
      plans_.push_back(std::move(planned));
    }
    return {};
  }

  /// Writes what was planned and publishes it.
  result<write_report> write() {
    TENSORSMITH_TRY(auto out, folder_publication::begin(target_, {options_.force, merging_, source_paths()}));
    write_report report;
    for (component_plan& p : plans_) {
      component_report lines;
      TENSORSMITH_CHECK(link_references(p, out, lines));
      component_report whole = report_of(p, options_.data_name);
      if (!lines.weights.empty()) whole.weights = lines.weights;
      whole.files.insert(whole.files.begin(), lines.files.begin(), lines.files.end());
      report.components.push_back(std::move(whole));
    }
    TENSORSMITH_CHECK(write_weights(out));
    for (component_plan& p : plans_) TENSORSMITH_CHECK(write_structure(p, out));
    TENSORSMITH_CHECK(write_other_files(&out, report));
    TENSORSMITH_CHECK(check_sources());
    note_hard_links();
    if (run_.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled; nothing was written"};
    TENSORSMITH_CHECK(out.commit());
    finish(report);
    return report;
  }

  /// What `write` would report; links are assumed to work.
  result<write_report> describe() {
    write_report report;
    for (const component_plan& p : plans_) {
      component_report lines = report_of(p, options_.data_name);
      for (const referenced_file& f : p.references)
        if (!lies_beside(p, f))
          lines.files.insert(lines.files.begin(), {p.component->name + "/" + f.location, f.source->size(), true});
      report.components.push_back(std::move(lines));
    }
    TENSORSMITH_CHECK(write_other_files(nullptr, report));
    finish(report);
    return report;
  }

 private:
  static bool same_folder(const std::string& a, const std::string& b) {
    if (a.empty() || b.empty() || !os::is_folder(a) || !os::is_folder(b)) return false;
    const auto left = os::real_path(a), right = os::real_path(b);
    return left && right && left.value() == right.value();
  }

  template <class F>
  void for_each_source(F&& use) const {
    std::vector<std::shared_ptr<const byte_source>> sources;
    for (const bundle_component& c : models_.components)
      for (const initializer& i : c.model.initializers)
        if (const auto* tensor = std::get_if<tensor_ref>(&i.data)) tensor->source->add_sources(sources);
    for (const auto& source : sources) use(*source);
  }

  std::vector<std::string> source_paths() const {
    std::set<std::string> paths;
    if (!models_.source.empty()) paths.insert(models_.source);
    for_each_source([&](const byte_source& s) { if (s.in_file()) paths.insert(s.name()); });
    return {paths.begin(), paths.end()};
  }

  /// True if a file of the target folder itself serves as external data: a regular file (runtimes refuse symbolic links) that is
  /// the source, or a copy of it.
  bool lies_beside(const component_plan& p, const referenced_file& f) const {
    if (!merging_) return false;
    const std::string path = join_path(join_path(target_, p.component->name), f.location);
    const auto status = os::status_of(path, false);
    if (!status || status.value().kind != os::file_kind::regular) return false;
    const auto same = same_contents(path, f.source->name());
    return same && same.value();
  }

  /// Beside existing files, a link must not take the name of another file.
  void choose_free_name(const component_plan& p, referenced_file& f) const {
    const std::string base = f.location;
    for (unsigned n = 1; merging_ && !lies_beside(p, f) &&
                         os::exists(join_path(join_path(target_, p.component->name), f.location), false);
         ++n)
      f.location = "linked-" + (n > 1 ? std::to_string(n) + "-" : std::string()) + base;
  }

  /// Brings the source files of an in-place component into its folder without copying; if the file system refuses, the component
  /// is planned again as a copy.
  result<void> link_references(component_plan& p, folder_publication& out, component_report& report) {
    if (p.references.empty()) return {};
    bool renamed = false;
    for (referenced_file& f : p.references) {
      const std::string before = f.location;
      choose_free_name(p, f);
      if (f.location != before) renamed |= rename_location(p, before, f.location);
      if (lies_beside(p, f)) continue;
      TENSORSMITH_TRY(const auto kind, out.link_or_clone(p.component->name + "/" + f.location, f.source->name()));
      using link = folder_publication::link_kind;
      if (kind == link::none) {
        run_.warn(p.component->name, "the weights were copied: " + quoted(f.source->name()) +
                                         " can be neither cloned nor linked into the output folder (another file system)");
        TENSORSMITH_TRY(p, plan_component(*p.component, models_.opset, weights_mode::copy, options_));
        report = {};
        return {};
      }
      report.files.push_back({p.component->name + "/" + f.location, f.source->size(), true});
      report.weights = kind == link::clone ? "clone" : "hard link";
      if (kind == link::hard_link) hard_links_.push_back(p.component->name + "/" + f.location);
    }
    if (renamed) p.model_bytes = p.model.ByteSizeLong();
    return {};
  }

  /// Hard links work, with two reservations that the user should know.
  void note_hard_links() {
    if (hard_links_.empty()) return;
    std::string list;
    for (const std::string& path : hard_links_) list += (list.empty() ? "" : ", ") + path;
    run_.info(list, "hard links to the source weights: ONNX Runtime loads them, the onnx package's checker refuses hard links; "
                    "changing one changes both");
  }

  static bool rename_location(component_plan& p, const std::string& from, const std::string& to) {
    for (onnx::TensorProto& t : *p.model.mutable_graph()->mutable_initializer())
      for (onnx::StringStringEntryProto& e : *t.mutable_external_data())
        if (e.key() == "location" && e.value() == from) e.set_value(to);
    return true;
  }

  /// One run of the executor over the weights of all components.
  result<void> write_weights(folder_publication& out) {
    std::vector<std::unique_ptr<memory_sink>> small;
    std::vector<placement> placements;
    std::unordered_map<const recipe*, std::size_t> shared;
    const auto place = [&](const planned_weight& w, byte_sink* sink, const std::string& component) {
      const std::size_t outputs = w.tensor.source->outputs().size();
      if (outputs > 1) {  // a recipe of several outputs runs once for all of them
        const auto at = shared.find(w.tensor.source.get());
        if (at != shared.end() && !placements[at->second].slots[w.tensor.output].sink) {
          placements[at->second].slots[w.tensor.output] = {sink, w.offset};
          return;
        }
        shared[w.tensor.source.get()] = placements.size();
      }
      placement p{w.tensor.source, std::vector<output_slot>(outputs), component + ": " + w.name};
      p.slots[w.tensor.output] = {sink, w.offset};
      placements.push_back(std::move(p));
    };
    for (component_plan& p : plans_) {
      std::shared_ptr<output_file> file;
      if (p.mode == weights_mode::embed) {
        TENSORSMITH_TRY(file, out.create(p.component->name + "/model.onnx", p.model_bytes));
        TENSORSMITH_CHECK(write_embedded_heads(p, *file));
      } else if (p.data_bytes > 0) {
        TENSORSMITH_TRY(file, out.create(p.component->name + "/" + options_.data_name, p.data_bytes));
      }
      for (const planned_weight& w : p.weights) {
        if (!w.held) {
          place(w, file.get(), p.component->name);
          continue;
        }
        std::string& bytes = *w.held->mutable_raw_data();
        small.push_back(std::make_unique<memory_sink>(std::as_writable_bytes(std::span(bytes)), p.component->name));
        place(w, small.back().get(), p.component->name);
      }
    }
    return execute(placements, run_);
  }

  static result<void> write_embedded_heads(const component_plan& p, output_file& file) {
    TENSORSMITH_CHECK(file.write_at(0, std::as_bytes(std::span(p.structure))));
    for (const planned_weight& w : p.weights)
      TENSORSMITH_CHECK(file.write_at(w.offset - w.head.size(), std::as_bytes(std::span(w.head))));
    return {};
  }

  static result<void> write_structure(component_plan& p, folder_publication& out) {
    if (p.mode == weights_mode::embed) return {};
    return out.write_text(p.component->name + "/model.onnx", p.model.SerializeAsString());
  }

  /// Configurations, side files and, last of all, model_index.json. Beside source weights, files that exist stay as they are.
  result<void> write_other_files(folder_publication* out, write_report& report) {
    const auto wanted = [&](const std::string& path) { return !merging_ || !os::exists(join_path(target_, path), false); };
    for (std::size_t k = 0; k < plans_.size(); ++k) {
      const bundle_component& c = *plans_[k].component;
      const std::string path = c.name + "/config.json";
      if (c.config.is_null() || !wanted(path)) continue;
      const std::string text = write_json(c.config) + "\n";
      if (out) TENSORSMITH_CHECK(out->write_text(path, text));
      report.components[k].files.push_back({path, text.size(), false});
    }
    for (const side_file& f : models_.side_files) {
      if (!wanted(f.path)) continue;
      if (out) TENSORSMITH_CHECK(out->write_copy(f.path, *f.bytes));
      report.other_files.push_back({f.path, f.bytes->size(), false});
    }
    if (models_.index.is_null()) return {};
    if (!wanted("model_index.json")) {
      if (out) run_.info("model_index.json", "the source's own model_index.json and side files were left as they are");
      return {};
    }
    const std::string text = write_json(models_.index) + "\n";
    if (out) TENSORSMITH_CHECK(out->write_text("model_index.json", text));
    report.other_files.push_back({"model_index.json", text.size(), false});
    return {};
  }

  /// Files that changed while they were read are not published; zip sources that were only referred to are named.
  result<void> check_sources() {
    std::set<const byte_source*> seen;
    std::vector<const byte_source*> order;
    for_each_source([&](const byte_source& s) { if (seen.insert(&s).second) order.push_back(&s); });
    for (const side_file& f : models_.side_files)
      if (seen.insert(f.bytes.get()).second) order.push_back(f.bytes.get());
    for (const byte_source* s : order) TENSORSMITH_CHECK(s->check_unchanged());
    std::set<std::string> named;
    for (const component_plan& p : plans_)
      for (const referenced_file& f : p.references) {
        std::byte magic[2]{};
        if (f.source->size() < sizeof magic || !named.insert(f.source->name()).second) continue;
        TENSORSMITH_CHECK(f.source->read_at(0, magic));
        if (magic[0] == std::byte{'P'} && magic[1] == std::byte{'K'})
          run_.warn(f.source->name(), "the weights stay in this zip archive, so its checksums (CRC-32) were not verified");
      }
    return {};
  }

  void finish(write_report& report) const {
    const auto count = [&](const written_file& f) { (f.linked ? report.linked_bytes : report.total_bytes) += f.bytes; };
    std::uint64_t structure = 0, largest_tile = 0;
    for (const component_report& c : report.components)
      for (const written_file& f : c.files) count(f);
    for (const written_file& f : report.other_files) count(f);
    memory_sink nowhere({});
    for (const component_plan& p : plans_) {
      structure += p.mode == weights_mode::embed ? p.structure.size() : p.model_bytes;
      for (const planned_weight& w : p.weights) {
        placement sample{w.tensor.source, std::vector<output_slot>(w.tensor.source->outputs().size()), {}};
        sample.slots[w.tensor.output] = {&nowhere, 0};
        largest_tile = std::max<std::uint64_t>(largest_tile, plan_tiles(sample, run_.tile_bytes).tile_bytes);
      }
    }
    // The executor takes three tiles a thread (read, computed, reordered) within the budget; the structure is there as objects
    // (about four times its text) and once as text.
    const std::uint64_t threads = run_.threads ? run_.threads : std::max(1U, std::thread::hardware_concurrency());
    report.peak_memory_bytes = std::min<std::uint64_t>(threads * 3 * largest_tile, run_.memory_bytes) + 5 * structure;
  }

  const bundle& models_;
  std::string target_;
  const onnx_write_options& options_;
  job& run_;
  bool merging_ = false;
  std::vector<component_plan> plans_;
  std::vector<std::string> hard_links_;
};

}  // namespace detail

TENSORSMITH_END_NAMESPACE
