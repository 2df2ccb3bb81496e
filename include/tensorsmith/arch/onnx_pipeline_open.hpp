// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/onnx_pipeline_open.hpp: opens a finished folder of ONNX graphs as a pipeline with named parameters.
//
// Include arch/onnx_pipeline.hpp instead.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/detect.hpp"
#include "tensorsmith/arch/onnx_parameters.hpp"
#include "tensorsmith/format/onnx/read.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A graph of a pipeline whose parameters are known.
struct onnx_component {
  std::string name;
  std::string network;           ///< the component of the package that has its parameters: its own name, or "unet" for onnx-web's "cnet"
  onnx_model graph;
  onnx_parameters parameters;
  std::vector<side_file> files;  ///< beside the graph, its external files and config.json
};

/// A folder of ONNX graphs: its networks as a package, and what is needed to write it again.
struct onnx_pipeline {
  std::string source;
  package model;                           ///< "text_encoder", "text_encoder_2", "unet": parameters under the networks' names, as the networks have them
  std::vector<onnx_component> components;  ///< the graphs of the same components, and what else has the UNet's parameters
  std::vector<side_file> others;           ///< files that nothing here changes: autoencoders, a safety checker, …
};

/// The components whose parameters are looked for.
inline constexpr std::string_view onnx_pipeline_networks[] = {"text_encoder", "text_encoder_2", "unet"};
/// onnx-web's second export of the UNet, with inputs for a ControlNet: its parameters are those of "unet".
inline constexpr std::string_view onnx_controlled_unet = "cnet";

/// True if the folder holds the ONNX graphs of a Stable Diffusion pipeline.
inline bool is_onnx_pipeline(const std::string& folder) {
  return std::any_of(std::begin(onnx_pipeline_networks), std::end(onnx_pipeline_networks),
                     [&](std::string_view name) { return os::is_regular_file(join_path(join_path(folder, name), "model.onnx")); });
}

namespace detail {

/// Operators that compute with quantized weights.
inline bool is_quantized_operator(std::string_view name) noexcept {
  constexpr std::string_view names[] = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "MatMulNBits",
                                        "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized", "DequantizeLinear", "QuantizeLinear"};
  return name.starts_with("QLinear") || name.starts_with("QAttention") || name.starts_with("QGemm") ||
         std::find(std::begin(names), std::end(names), name) != std::end(names);
}

/// Refuses graphs whose weights are not the network's: quantized ones, and those that an optimizer has packed together.
inline result<void> check_unoptimized(const onnx_model& graph) {
  std::vector<std::pair<std::string, std::size_t>> quantized, fused;
  const auto count = [](std::vector<std::pair<std::string, std::size_t>>& into, std::string_view name) {
    for (auto& [known, n] : into)
      if (known == name) return ++n, void();
    into.emplace_back(name, 1);
  };
  std::vector<std::string_view> matrices;
  for (const onnx_initializer& t : graph.initializers)
    if (t.type && is_floating(*t.type) && t.shape.size() >= 2 && element_count(t.shape) != *std::max_element(t.shape.begin(), t.shape.end())) matrices.push_back(t.name);
  std::sort(matrices.begin(), matrices.end());
  for (const onnx_node& node : graph.nodes) {
    const std::string_view name = graph.operator_of(node);
    if (is_quantized_operator(name)) count(quantized, name);
    if (graph.is_standard(node)) continue;
    for (std::size_t i = 0; i < node.inputs; ++i)
      if (std::binary_search(matrices.begin(), matrices.end(), graph.input_of(node, i))) {
        count(fused, std::string(graph.domain_of(node)) + "." + std::string(name));
        break;
      }
  }
  const auto list = [](const std::vector<std::pair<std::string, std::size_t>>& all) {
    std::string out;
    for (std::size_t i = 0; i < all.size() && i < 8; ++i) out += (i ? ", " : "") + std::to_string(all[i].second) + " of " + quoted(all[i].first);
    return out + (all.size() > 8 ? ", …" : "");
  };
  if (!quantized.empty())
    return failure{.code = errc::unsupported, .what = "the graph is quantized: nothing can be merged into its weights", .file = graph.path,
                   .expected = "floating-point weights", .found = list(quantized), .advice = "merge into the model first and quantize afterwards"};
  if (!fused.empty())
    return failure{.code = errc::unsupported, .what = "an optimizer has fused the graph: its operators pack the weights of several layers", .file = graph.path,
                   .expected = "operators of ONNX", .found = list(fused), .advice = "merge into the export before it was optimized"};
  return {};
}

/// Opens one folder.
class onnx_pipeline_opening {
 public:
  onnx_pipeline_opening(const std::string& folder, job& run) : folder_(folder), run_(run) {}

  result<onnx_pipeline> open() {
    if (!is_onnx_pipeline(folder_))
      return failure{.code = errc::mismatch, .what = "the folder is no pipeline of ONNX graphs", .file = folder_, .expected = "unet/model.onnx or text_encoder/model.onnx",
                     .found = os::is_folder(folder_) ? "a folder without them" : "no folder"};
    TENSORSMITH_TRY(const steady_folder steady, steady_folder::begin(folder_));
    out_.source = out_.model.source = folder_;
    TENSORSMITH_CHECK(list_files());
    for (const std::string_view name : onnx_pipeline_networks)
      if (has(join_path(name, "model.onnx"))) TENSORSMITH_CHECK(open_component(std::string(name), std::string(name)));
    if (out_.model.find("unet") && has(join_path(onnx_controlled_unet, "model.onnx"))) TENSORSMITH_CHECK(open_component(std::string(onnx_controlled_unet), "unet"));
    TENSORSMITH_CHECK(sort_files());
    TENSORSMITH_CHECK(recognize());
    TENSORSMITH_CHECK(steady.check());
    return std::move(out_);
  }

 private:
  bool has(const std::string& path) const { return std::binary_search(files_.begin(), files_.end(), path); }

  /// All files below the folder, by path; hidden ones are no part of it.
  result<void> list_files() {
    constexpr std::size_t most = 10'000, deepest = 8;
    std::vector<std::pair<std::string, std::size_t>> folders{{std::string(), 0}};
    while (!folders.empty()) {
      const auto [at, depth] = std::move(folders.back());
      folders.pop_back();
      TENSORSMITH_TRY(const auto names, os::list_folder(at.empty() ? folder_ : join_path(folder_, at)));
      for (const std::string& name : names) {
        if (name.starts_with('.')) continue;  // what tools and version control keep beside a model
        const std::string path = at.empty() ? name : join_path(at, name);
        if (!os::is_folder(join_path(folder_, path))) files_.push_back(path);
        else if (depth + 1 < deepest) folders.emplace_back(path, depth + 1);
        else run_.warn(path, "left out: it lies too deep in the pipeline's folder");
        if (files_.size() + folders.size() > most)
          return failure{.code = errc::limit, .what = "the folder holds too many files for a pipeline", .file = folder_, .expected = "at most " + std::to_string(most)};
      }
    }
    std::sort(files_.begin(), files_.end());
    return {};
  }

  result<json_value> read_object(const std::string& path) const {
    TENSORSMITH_TRY(const auto file, open_file_below(folder_, path, folder_, true, pool_));
    TENSORSMITH_TRY(json_value value, read_json(*file, run_.limits.config_bytes, run_.limits));
    if (value.as_object()) return value;
    return failure{.code = errc::malformed, .what = "the configuration is no JSON object", .file = join_path(folder_, path), .place = "/", .expected = "an object",
                   .found = std::string(value.kind())};
  }

  result<void> open_component(const std::string& name, const std::string& network) {
    onnx_component found;
    found.name = name, found.network = network;
    TENSORSMITH_TRY(found.graph, read_onnx(join_path(join_path(folder_, name), "model.onnx"), run_.limits));
    for (const note& n : found.graph.notes) run_.notes.push_back({n.severity, name + ": " + n.subject, n.text});
    for (const onnx_foreign_operator& f : found.graph.foreign_operators)
      run_.info(name, "the graph has " + std::to_string(f.count) + " nodes of " + quoted(f.domain + "." + f.name) + ", which are kept as they are");
    TENSORSMITH_CHECK(check_unoptimized(found.graph));
    TENSORSMITH_TRY(found.parameters, find_onnx_parameters(found.graph, network != "unet"));
    component part;
    part.name = name;
    if (has(join_path(name, "config.json"))) {
      TENSORSMITH_TRY(part.config, read_object(join_path(name, "config.json")));
    }
    std::vector<catalog_entry> entries;
    for (const onnx_parameter& p : found.parameters.parameters)
      entries.push_back({p.name, p.tensor, found.graph.path + ": " + found.graph.initializers[p.uses[0].initializer].name});
    if (entries.empty())
      return failure{.code = errc::unsupported, .what = "no initializer of the graph can be matched with a parameter", .file = found.graph.path,
                     .expected = "initializers or nodes that are named after modules", .advice = "export the model again with a current exporter"};
    TENSORSMITH_CHECK(part.weights.add_all(std::move(entries)));
    note_unnamed(found);
    if (network == name) out_.model.components.push_back(std::move(part));
    out_.components.push_back(std::move(found));
    return {};
  }

  void note_unnamed(const onnx_component& found) {
    std::string names;
    std::size_t matrices = 0;
    for (const std::size_t i : found.parameters.unnamed) {
      const onnx_initializer& t = found.graph.initializers[i];
      if (t.name.starts_with("constant_")) continue;  // what our own graphs call their tables
      if (t.shape.size() >= 2 && element_count(t.shape) != *std::max_element(t.shape.begin(), t.shape.end())) ++matrices;
      if (names.size() < 400) names += (names.empty() ? "" : ", ") + quoted(t.name) + " " + to_string(t.shape);
      else if (!names.ends_with("…")) names += ", …";
    }
    std::string shared;
    for (const std::size_t i : found.parameters.ambiguous) shared += (shared.empty() ? "" : ", ") + quoted(found.graph.initializers[i].name);
    if (!shared.empty())
      run_.warn(found.name, "matrices that several nodes read which do not tell their layers are taken for one parameter each: " + shared.substr(0, 400));
    if (names.empty()) return;
    if (matrices > 0) run_.warn(found.name, "floating-point initializers that cannot be matched with parameters stay as they are: " + names);
    else run_.info(found.name, "floating-point initializers that are no parameters: " + names);
  }

  /// What the other files are: side files, files beside a graph, all others.
  result<void> sort_files() {
    for (const std::string& path : files_) {
      const std::size_t slash = path.find('/');
      const std::string_view top = slash == std::string::npos ? std::string_view() : std::string_view(path).substr(0, slash);
      onnx_component* owner = nullptr;
      for (onnx_component& c : out_.components)
        if (c.name == top) owner = &c;
      const std::string inner = slash == std::string::npos ? path : path.substr(slash + 1);
      if (owner && (inner == "model.onnx" || inner == "config.json" || is_external(*owner, inner))) continue;
      if (path == "model_index.json") {
        TENSORSMITH_TRY(out_.model.index, read_object(path));
        continue;
      }
      TENSORSMITH_TRY(auto bytes, open_file_below(folder_, path, folder_, true, pool_));
      const bool side = top == "scheduler" || top.starts_with("tokenizer") || top == "feature_extractor";
      (owner ? owner->files : side ? out_.model.side_files : out_.others).push_back({path, std::move(bytes)});
    }
    return {};
  }
  static bool is_external(const onnx_component& c, const std::string& name) {
    return std::any_of(c.graph.external_files.begin(), c.graph.external_files.end(), [&](const onnx_external_file& f) { return f.location == name; });
  }

  result<void> recognize() {
    family_vote vote;
    if (const component* const unet = out_.model.find("unet")) {
      if (!unet->config.is_null()) vote_of_config(vote, unet->config);
      if (const auto shape = unet_shape_of(unet->weights)) vote_of_unet(vote, *shape);
      else run_.info("unet", "its structure is not one that is known: " + shape.error().message());
    }
    if (out_.model.find("text_encoder_2")) vote.allow({sd_family::sdxl, sd_family::sdxl_refiner}, "the pipeline", "it has text_encoder_2");
    auto outcome = vote.outcome();
    if (!outcome) {
      run_.info("family", "the folder does not tell it: " + (vote.left().only() ? outcome.error().what : vote.left().text()));
      return {};
    }
    out_.model.family = std::string(name_of(outcome->first));
    out_.model.findings = std::move(outcome->second);
    return {};
  }

  const std::string& folder_;
  job& run_;
  std::shared_ptr<descriptor_pool> pool_ = std::make_shared<descriptor_pool>();
  std::vector<std::string> files_;
  onnx_pipeline out_;
};

}  // namespace detail

/// Opens a folder of ONNX graphs that this library, Optimum, diffusers' scripts or onnx-web wrote. No weight is read. What cannot be
/// matched with a parameter is noted and stays as it is.
/// @fails mismatch (no such folder), unsupported (quantized or fused graphs, graphs without names), and as read_onnx
inline result<onnx_pipeline> open_onnx_pipeline(const std::string& folder, job& run) { return detail::onnx_pipeline_opening(folder, run).open(); }

TENSORSMITH_END_NAMESPACE
