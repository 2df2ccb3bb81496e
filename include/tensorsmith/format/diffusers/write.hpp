// SPDX-License-Identifier: MIT
//
// tensorsmith/format/diffusers/write.hpp: writes a package as a folder that diffusers and transformers load.
//
// Include this to write a pipeline's folder (model_index.json, one folder a component, side files) or the folder of one component.
// File names are those of diffusers; the folder appears when it is complete and on the disk.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/diffusers/weight_files.hpp"
#include "tensorsmith/format/onnx/report.hpp"
#include "tensorsmith/format/safetensors/write_sharded.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/io/publish.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How write_diffusers_folder writes.
struct diffusers_write_options {
  bool force = false;                 ///< replace an existing folder
  bool verify = false;                ///< compare all weights with what was written before the folder is published
  std::uint64_t max_shard_bytes = 0;  ///< payload of one file of weights; 0: one file a component
  std::string variant;                ///< "fp16": in the names of the files of weights
  bool dry_run = false;               ///< plan and report; write nothing
};

namespace detail {

/// The stem of a component's files of weights: what its library looks for. Its configuration tells, else its name.
inline std::string_view weights_stem(const component& part) {
  if (part.config.find("_class_name")) return "diffusion_pytorch_model";
  if (part.config.find("architectures") || part.config.find("model_type")) return "model";
  for (const std::string_view name : {"text_encoder", "safety_checker", "image_encoder"})
    if (part.name.substr(0, name.size()) == name) return "model";
  return "diffusion_pytorch_model";
}

/// Plans a folder and writes it.
class diffusers_folder_writer {
 public:
  diffusers_folder_writer(const package& in, const std::string& path, const diffusers_write_options& options, job& run)
      : in_(in), path_(path), options_(options), run_(run) {}

  result<write_report> go() {
    TENSORSMITH_CHECK(check_variant());
    TENSORSMITH_CHECK(plan());
    write_report report = describe();
    if (options_.dry_run) return report;
    TENSORSMITH_TRY(auto out, folder_publication::begin(path_, {.force = options_.force, .sources = sources()}));
    if (const std::uint64_t free = os::free_space(out.staging_path()); free < report.total_bytes)
      return failure{.code = errc::no_space, .what = "the output does not fit on the disk", .file = path_,
                     .expected = std::to_string(report.total_bytes) + " bytes", .found = std::to_string(free) + " bytes free"};
    for (std::size_t k = 0; k < plans_.size(); ++k)
      TENSORSMITH_CHECK(write_planned_shards(in_.components[k].weights, plans_[k].weights, plans_[k].folder, options_.verify, out, run_));
    for (const component_files_plan& plan : plans_)
      if (!plan.config.empty()) TENSORSMITH_CHECK(out.write_text(plan.folder + "config.json", plan.config));
    for (const side_file& file : in_.side_files) {
      TENSORSMITH_CHECK(out.write_copy(file.path, *file.bytes));
      TENSORSMITH_CHECK(file.bytes->check_unchanged());
    }
    if (!index_.empty()) TENSORSMITH_CHECK(out.write_text("model_index.json", index_));
    if (run_.cancelled()) return failure{.code = errc::cancelled, .what = "cancelled; nothing was written"};
    TENSORSMITH_CHECK(out.commit());
    return report;
  }

 private:
  struct component_files_plan {
    std::string folder;  // "unet/", or empty: the top
    std::string config;
    sharded_safetensors_plan weights;
  };

  result<void> check_variant() const {
    const std::string& v = options_.variant;
    const bool fine = std::all_of(v.begin(), v.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    });
    if (fine && !is_shard(v)) return {};
    return failure{.code = errc::usage, .what = "a variant cannot be called " + quoted(v), .expected = "letters, digits, '_' and '-'"};
  }

  result<void> plan() {
    const bool single = in_.is_single_model();
    if (single && in_.components[0].config.is_null())
      return failure{.code = errc::mismatch, .what = "a folder needs the configuration of its model", .file = in_.source,
                     .expected = "a config.json", .found = "weights without one",
                     .advice = "open the file as a Stable Diffusion model, which derives configurations"};
    if (!single && in_.index.is_null())
      return failure{.code = errc::mismatch, .what = "a pipeline's folder needs an index", .file = in_.source, .expected = "a model_index.json"};
    if (in_.components.empty()) return failure{.code = errc::mismatch, .what = "there are no components to write", .file = in_.source};
    for (const component& part : in_.components) {
      component_files_plan plan;
      if (!part.name.empty()) plan.folder = part.name + "/";
      TENSORSMITH_CHECK(check_relative_path(single ? "component" : part.name, in_.source, "name of a component", false));
      auto weights = plan_sharded_safetensors(part.weights, {std::string(weights_stem(part)), options_.variant, options_.max_shard_bytes},
                                              {{"format", "pt"}}, run_.limits);
      if (!weights) {
        failure error = std::move(weights).error();
        error.place = part.name + (part.name.empty() || error.place.empty() ? "" : ": ") + error.place;
        return error;
      }
      plan.weights = std::move(weights).value();
      if (!part.config.is_null()) plan.config = write_json(config_of(part)) + "\n";
      plans_.push_back(std::move(plan));
    }
    if (!single) make_index();
    return {};
  }

  /// transformers records the type of the weights, and newer releases load them as that.
  json_value config_of(const component& part) {
    json_value config = part.config;
    const std::string_view type = torch_type(part.weights);
    for (const std::string_view key : {"torch_dtype", "dtype"}) {
      const json_value* says = config.find(key);
      if (!says || !says->as_string() || type.empty() || *says->as_string() == type) continue;
      run_.info(part.name, std::string(key) + " in config.json becomes " + quoted(type) + ", was " + quoted(*says->as_string()));
      config.set(key, type);
    }
    return config;
  }

  /// The floating type that most bytes have, as torch calls it; empty if there is none.
  static std::string_view torch_type(const catalog& weights) {
    constexpr std::pair<dtype, std::string_view> names[] = {
        {dtype::f64, "float64"}, {dtype::f32, "float32"}, {dtype::f16, "float16"}, {dtype::bf16, "bfloat16"}};
    std::array<std::uint64_t, std::size(names)> bytes{};
    for (const catalog_entry& entry : weights.entries())
      for (std::size_t k = 0; k < bytes.size(); ++k)
        if (entry.tensor.type() == names[k].first) bytes[k] += entry.tensor.info().bytes();
    const auto most = std::max_element(bytes.begin(), bytes.end());
    return *most == 0 ? std::string_view() : names[static_cast<std::size_t>(most - bytes.begin())].second;
  }

  /// The index says which parts there are: those that were left out become [null, null]. Tokenizers stay listed, with a warning: they
  /// are the part that users add.
  void make_index() {
    json_value index{json_value::object{}};
    for (const auto& [name, value] : *in_.index.as_object()) {
      const auto* pair = value.as_array();
      const bool listed = pair && pair->size() == 2 && !(*pair)[1].is_null() && name.substr(0, 1) != "_";
      if (!listed || holds(name)) {
        index.set(name, value);
      } else if (name.substr(0, 9) == "tokenizer") {
        index.set(name, value);
        run_.warn(name, "the index lists it, but there are no files of it; put its folder beside the others before loading the pipeline");
      } else {
        index.set(name, json_value::array{nullptr, nullptr});
        run_.info(name, "the written model_index.json says that there is none");
      }
    }
    for (const component& part : in_.components)
      if (!index.find(part.name))
        run_.warn(part.name, "model_index.json does not list this component; it is written, and pipelines do not load it");
    index_ = write_json(index) + "\n";
  }

  bool holds(const std::string& name) const {
    if (in_.find(name)) return true;
    const std::string folder = name + "/";
    return std::any_of(in_.side_files.begin(), in_.side_files.end(),
                       [&](const side_file& f) { return f.path.compare(0, folder.size(), folder) == 0; });
  }

  std::vector<std::string> sources() const {
    std::set<std::string> paths;
    if (!in_.source.empty()) paths.insert(in_.source);
    for (const component& part : in_.components)
      for (const catalog_entry& entry : part.weights.entries())
        if (const auto stored = entry.tensor.source->stored(); stored && stored->source->descriptor() >= 0) paths.insert(stored->source->name());
    for (const side_file& file : in_.side_files)
      if (file.bytes->descriptor() >= 0) paths.insert(file.bytes->name());
    return {paths.begin(), paths.end()};
  }

  write_report describe() const {
    write_report report;
    std::uint64_t largest = 0;
    for (std::size_t k = 0; k < plans_.size(); ++k) {
      const component& part = in_.components[k];
      component_report lines;
      lines.name = part.name;
      lines.weights = "copied";
      for (std::size_t i = 0; i < plans_[k].weights.files.size(); ++i)
        lines.files.push_back({plans_[k].folder + plans_[k].weights.names[i], plans_[k].weights.files[i].size, false});
      if (!plans_[k].weights.index_name.empty())
        lines.files.push_back({plans_[k].folder + plans_[k].weights.index_name, plans_[k].weights.index_text.size(), false});
      if (!plans_[k].config.empty()) lines.files.push_back({plans_[k].folder + "config.json", plans_[k].config.size(), false});
      for (const catalog_entry& entry : part.weights.entries()) count(entry.tensor.info(), lines, largest);
      for (const written_file& file : lines.files) report.total_bytes += file.bytes;
      report.components.push_back(std::move(lines));
    }
    for (const side_file& file : in_.side_files) report.other_files.push_back({file.path, file.bytes->size(), false});
    if (!index_.empty()) report.other_files.push_back({"model_index.json", index_.size(), false});
    for (const written_file& file : report.other_files) report.total_bytes += file.bytes;
    const std::uint64_t threads = run_.threads ? run_.threads : std::max(1U, std::thread::hardware_concurrency());
    report.peak_memory_bytes = std::min<std::uint64_t>(threads * 3 * std::min<std::uint64_t>(largest, run_.tile_bytes), run_.memory_bytes);
    return report;
  }

  static void count(const tensor_info& info, component_report& lines, std::uint64_t& largest) {
    ++lines.tensors;
    lines.parameters += info.elements();
    lines.weight_bytes += info.bytes();
    largest = std::max<std::uint64_t>(largest, info.bytes());
    const std::string type(name_of(info.type));
    const auto at = std::find_if(lines.dtypes.begin(), lines.dtypes.end(), [&](const auto& d) { return d.first == type; });
    if (at == lines.dtypes.end()) lines.dtypes.emplace_back(type, 1);
    else ++at->second;
  }

  const package& in_;
  const std::string& path_;
  const diffusers_write_options& options_;
  job& run_;
  std::vector<component_files_plan> plans_;
  std::string index_;
};

}  // namespace detail

/// Writes a package as the folder `path`: model_index.json, each component with config.json and safetensors files of weights, side files
/// unchanged. A single component without a name gives the folder of that component alone.
/// @fails mismatch (no index or configuration, no tensors), usage (options), unsupported (element types that safetensors lacks), path (the
/// folder exists), denied (force would delete a source), no_space, io, cancelled, and what the recipes fail with
inline result<write_report> write_diffusers_folder(const package& in, const std::string& path, const diffusers_write_options& options, job& run) {
  return detail::diffusers_folder_writer(in, path, options, run).go();
}

TENSORSMITH_END_NAMESPACE
