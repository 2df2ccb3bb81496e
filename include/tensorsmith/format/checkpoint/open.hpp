// SPDX-License-Identifier: MIT
//
// tensorsmith/format/checkpoint/open.hpp: opens whatever a user may call "the weights": a file, shards, or a folder.
//
// Include this in tools that take any source. Of several files with the same weights one is chosen in the documented order
// (rank_weight_files), and the notes of the job say which.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/checkpoint/read.hpp"
#include "tensorsmith/format/diffusers/read.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What a caller may say about the weights to open.
struct open_weights_options {
  std::string variant;  ///< of folders: "fp16", "non_ema", …; components that lack it give their plain file, with a warning
  std::string select;   ///< of torch files: the dict to read, keys joined with '/'; empty to find it
  std::string prefer;   ///< of folders with both: "safetensors" (also if empty) or "torch"
};

namespace detail {

/// A file as a package of one component without a name.
inline package package_of(checkpoint_file file, const std::string& path) {
  package out;
  out.source = path;
  out.metadata = std::move(file.metadata);
  out.global_step = file.global_step;
  out.container = std::string(name_of(file.container));
  out.nested = std::move(file.nested);
  out.scalars = std::move(file.scalars);
  component whole;
  whole.weights = std::move(file.tensors);
  whole.ignored = std::move(file.ignored);
  out.components.push_back(std::move(whole));
  return out;
}

/// Opens a folder.
class weights_folder {
 public:
  weights_folder(const std::string& path, const open_weights_options& options, job& run) : path_(path), options_(options), run_(run) {}

  result<package> open() {
    if (!options_.select.empty())
      return failure{.code = errc::usage, .what = "only a torch file has parts to choose from", .file = path_, .expected = "a torch file",
                     .found = "a folder"};
    if (is_diffusers_folder(path_)) return open_pipeline();
    TENSORSMITH_TRY(names_, component_files(path_));
    TENSORSMITH_TRY(const std::string file, choose());
    package out;
    if (ends_with_ignoring_case(file, ".json")) {
      TENSORSMITH_TRY(const auto inside, open_file_below(path_, file, path_));
      TENSORSMITH_TRY(checkpoint_file read, read_checkpoint_shards(join_path(path_, file), run_));
      out = package_of(std::move(read), path_);
    } else {
      TENSORSMITH_TRY(auto bytes, open_file_below(path_, file, path_));
      TENSORSMITH_TRY(checkpoint_file read, read_checkpoint(std::move(bytes), run_));
      out = package_of(std::move(read), path_);
    }
    if (os::is_regular_file(join_path(path_, "config.json"))) {
      TENSORSMITH_TRY(out.components[0].config, read_config(path_, "config.json", run_.limits));
    }
    return out;
  }

 private:
  bool wants_torch() const noexcept { return options_.prefer == "torch"; }

  result<package> open_pipeline() {
    TENSORSMITH_CHECK(check_variant());
    const diffusers_options how{.variant = options_.variant, .prefer_pickle = wants_torch(), .components = {}, .every_model = true};
    return read_diffusers_folder(path_, how, run_);
  }

  /// A variant that no component has is a mistake, not a matter of falling back.
  result<void> check_variant() const {
    if (options_.variant.empty()) return {};
    TENSORSMITH_TRY(std::vector<std::string> folders, component_files(path_));
    std::vector<std::string> variants;
    for (const std::string& name : folders) {
      const std::string folder = join_path(path_, name);
      if (!os::is_folder(folder)) continue;
      TENSORSMITH_TRY(const auto files, component_files(folder));
      collect_variants(files, variants);
    }
    return variant_found(variants);
  }

  static void collect_variants(const std::vector<std::string>& files, std::vector<std::string>& variants) {
    weight_file file;
    for (const std::string& name : files)
      if (read_weight_file_name(name, file) && !file.variant.empty() && !listed_in(variants, file.variant)) variants.push_back(file.variant);
  }

  result<void> variant_found(std::vector<std::string> variants) const {
    if (listed_in(variants, options_.variant)) return {};
    std::sort(variants.begin(), variants.end());
    std::string found;
    for (const std::string& variant : variants) found += (found.empty() ? "" : ", ") + quoted(variant);
    return failure{.code = errc::mismatch, .what = "the folder has no variant " + quoted(options_.variant), .file = path_,
                   .found = found.empty() ? "no variants" : found, .advice = "correct --variant, or leave it out"};
  }

  /// The file to read: by the names that diffusers and transformers use, else the only file of weights there is.
  result<std::string> choose() {
    const auto files = rank_weight_files(names_, options_.variant, wants_torch());
    if (!files.empty()) {
      if (!options_.variant.empty()) {
        std::vector<std::string> variants;
        collect_variants(names_, variants);
        TENSORSMITH_CHECK(variant_found(std::move(variants)));
      }
      const diffusers_options how{.variant = options_.variant, .prefer_pickle = wants_torch(), .components = {}};
      note_choice(path_, files, how, run_);
      return files[0].name;
    }
    std::vector<std::string> candidates;
    for (const std::string& name : names_)
      if (is_candidate(name)) candidates.push_back(name);
    if (candidates.size() == 1) {
      run_.info(path_, "weights are read from " + quoted(candidates[0]));
      return candidates[0];
    }
    if (candidates.empty()) return no_weights();
    return failure{.code = errc::usage, .what = "the folder holds several files of weights", .file = path_, .found = listed(candidates),
                   .advice = "pass the one to read"};
  }

  bool is_candidate(const std::string& name) const {
    if (!os::is_regular_file(join_path(path_, name))) return false;
    if (name.size() > 11 && name.substr(name.size() - 11) == ".index.json") return true;
    if (is_shard(name)) return false;
    // What trainers leave beside the weights.
    for (const std::string_view other : {"optimizer.", "scheduler.", "training_args.", "rng_state", "scaler.", "openvino_"})
      if (name.substr(0, other.size()) == other) return false;
    constexpr std::string_view endings[] = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".npz", ".npy", ".gguf"};
    return std::any_of(std::begin(endings), std::end(endings), [&](std::string_view e) { return ends_with_ignoring_case(name, e); });
  }

  failure no_weights() const {
    std::string parts;
    for (const std::string& name : names_)
      if (os::is_regular_file(join_path(join_path(path_, name), "config.json"))) parts += (parts.empty() ? "" : ", ") + quoted(name);
    const bool shards = std::any_of(names_.begin(), names_.end(), [](const std::string& n) { return is_shard(n); });
    failure out{.code = errc::mismatch, .what = "the folder holds no weights", .file = path_,
                .expected = "model_index.json of a pipeline, model.safetensors, pytorch_model.bin, an index of shards, or one file of weights",
                .found = shards           ? "shards without their index"
                         : names_.empty() ? "an empty folder"
                                          : std::to_string(names_.size()) + " other entries"};
    if (shards) out.advice = "download the *.index.json into the same folder";
    if (!parts.empty()) {
      out.found = "the components " + parts + " without model_index.json";
      out.advice = "download model_index.json, or pass one of the components' folders";
    }
    return out;
  }

  const std::string& path_;
  const open_weights_options& options_;
  job& run_;
  std::vector<std::string> names_;
};

}  // namespace detail

/// Opens a file of weights in any container, the `*.index.json` of shards, a pipeline's folder, the folder of one component or of a
/// transformers model, or a folder with one file of weights. Folders of pipelines give their components under their names; everything
/// else gives one component without a name, with the config.json beside it if there is one. No weight is read.
/// Several files with the same weights: the variant asked for comes first, then plain files; safetensors before torch files (or as
/// `prefer` says), whole files before shards. Remarks go to `run.notes`.
/// @fails usage (options; a folder with several candidates), mismatch (nothing to read, no such variant, missing parts), and as the
/// readers of the files
inline result<package> open_weights(const std::string& path, const open_weights_options& options, job& run) {
  if (!options.prefer.empty() && options.prefer != "safetensors" && options.prefer != "torch")
    return failure{.code = errc::usage, .what = "unknown preference " + quoted(options.prefer), .expected = "safetensors or torch"};
  if (os::is_folder(path)) return detail::weights_folder(path, options, run).open();
  if (!options.variant.empty())
    return failure{.code = errc::usage, .what = "only folders have variants", .file = path, .found = "a file", .advice = "leave out --variant"};
  TENSORSMITH_TRY(checkpoint_file file, read_checkpoint_file(path, run, options.select));
  return detail::package_of(std::move(file), path);
}

TENSORSMITH_END_NAMESPACE
