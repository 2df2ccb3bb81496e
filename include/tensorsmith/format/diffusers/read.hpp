// SPDX-License-Identifier: MIT
//
// tensorsmith/format/diffusers/read.hpp: reads folders as diffusers and transformers save them: pipelines and single components.
//
// Include this to open a pipeline folder. Configurations are taken over as they are; parameter names of all releases become those of
// names.hpp; which file of several was chosen is noted.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/checkpoint/read.hpp"
#include "tensorsmith/format/diffusers/names.hpp"
#include "tensorsmith/format/diffusers/tag.hpp"
#include "tensorsmith/format/diffusers/weight_files.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/package.hpp"
#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How to read a folder.
struct diffusers_options {
  std::string variant;                  ///< "fp16", "non_ema", …: preferred where a component has it
  bool prefer_pickle = false;           ///< .bin before .safetensors
  std::vector<std::string> components;  ///< which models to read; empty: all
  bool every_model = false;             ///< also those that this library builds no graph of (safety checkers, image encoders, …)
};

/// Folders that hold models, in the order in which packages list them.
inline constexpr std::string_view diffusers_models[] = {"text_encoder", "text_encoder_2", "unet", "vae"};
/// Folders whose files are carried along unchanged.
inline constexpr std::string_view diffusers_side_folders[] = {"scheduler", "tokenizer", "tokenizer_2", "feature_extractor"};

/// True if the folder is a saved pipeline.
inline bool is_diffusers_folder(const std::string& path) { return os::is_regular_file(join_path(path, "model_index.json")); }

/// True if the folder holds one component: a configuration and no pipeline index.
inline bool is_component_folder(const std::string& path) {
  return os::is_regular_file(join_path(path, "config.json")) && !is_diffusers_folder(path);
}

namespace detail {

/// A JSON object in a folder; symbolic links may not lead out of it.
inline result<json_value> read_config(const std::string& folder, const std::string& name, const limits& bounds) {
  TENSORSMITH_TRY(const auto file, open_file_below(folder, name, folder));
  TENSORSMITH_TRY(json_value value, read_json(*file, bounds.config_bytes, bounds));
  if (!value.as_object())
    return failure{.code = errc::malformed, .what = "the configuration is no JSON object", .file = join_path(folder, name),
                   .place = "/", .expected = "an object", .found = std::string(value.kind())};
  return value;
}

/// Names of the files of a folder, sorted; a folder of more than 10 000 is refused.
inline result<std::vector<std::string>> component_files(const std::string& folder) {
  TENSORSMITH_TRY(std::vector<std::string> names, os::list_folder(folder));
  if (names.size() > 10'000)
    return failure{.code = errc::limit, .what = "the folder holds too many files for a component", .file = folder,
                   .expected = "at most 10000", .found = std::to_string(names.size())};
  return names;
}

inline void note_choice(const std::string& name, const std::vector<weight_file>& files, const diffusers_options& options, job& run) {
  std::string others;
  for (std::size_t i = 1; i < files.size(); ++i) others += (i > 1 ? ", " : "") + quoted(files[i].name);
  run.info(name, "weights are read from " + quoted(files[0].name) + (others.empty() ? "" : ", not from " + others));
  if (!options.variant.empty() && files[0].variant != options.variant)
    run.warn(name, "there is no variant " + quoted(options.variant) + "; " + quoted(files[0].name) + " is read instead");
}

/// True if a configuration's `key` is absent or has a value that contains `text`.
inline bool may_be(const json_value& config, std::string_view key, std::string_view text) {
  const json_value* value = config.find(key);
  return !value || !value->as_string() || value->as_string()->find(text) != std::string::npos;
}

/// Gives weights the names of names.hpp and drops what no network reads. Other architectures under the same component names (T5 text
/// encoders, other autoencoders) keep theirs.
inline result<void> normalize_component(component& part, catalog read) {
  const bool text = part.name.substr(0, 12) == "text_encoder" && may_be(part.config, "model_type", "clip");
  const bool vae = part.name == "vae" && may_be(part.config, "_class_name", "AutoencoderKL");
  std::vector<catalog_entry> entries;
  entries.reserve(read.size());
  for (const catalog_entry& entry : read.entries()) {
    const std::string& name = entry.name;
    if (text && name.size() >= 12 && name.substr(name.size() - 12) == "position_ids") {
      part.ignored.push_back(name + ": positions are counted, not read");
      continue;
    }
    catalog_entry out{text ? classic_clip_name(name) : vae ? modern_vae_name(name) : name, entry.tensor, entry.origin};
    const shape_type& shape = entry.tensor.shape();
    if (vae && is_vae_projection(out.name) && shape.size() > 2 &&
        std::all_of(shape.begin() + 2, shape.end(), [](std::size_t extent) { return extent == 1; })) {
      TENSORSMITH_TRY(out.tensor, reshaped(entry.tensor, {shape[0], shape[1]}));
    }
    entries.push_back(std::move(out));
  }
  return part.weights.add_all(std::move(entries));
}

}  // namespace detail

/// Reads one component: `folder` holds config.json and the weights. @fails mismatch (a part is missing, with its path), path, and as
/// the readers of the files.
inline result<component> read_diffusers_component(const std::string& folder, const std::string& name,
                                                  const diffusers_options& options, job& run) {
  component out;
  out.name = name;
  if (!os::is_folder(folder))
    return failure{.code = errc::mismatch, .what = "the component " + quoted(name) + " is missing", .file = folder,
                   .expected = "a folder with config.json and weights", .found = "no folder",
                   .advice = "download it, or leave it out with --components"};
  TENSORSMITH_TRY(const auto names, detail::component_files(folder));
  if (std::find(names.begin(), names.end(), "config.json") == names.end())
    return failure{.code = errc::mismatch, .what = "the component " + quoted(name) + " has no configuration",
                   .file = join_path(folder, "config.json"), .expected = "a file", .found = "none"};
  TENSORSMITH_TRY(out.config, detail::read_config(folder, "config.json", run.limits));
  const auto files = rank_weight_files(names, options.variant, options.prefer_pickle);
  if (files.empty()) {
    const bool shards = std::any_of(names.begin(), names.end(), [](const std::string& n) { return detail::is_shard(n); });
    return failure{.code = errc::mismatch, .what = "the component " + quoted(name) + " has no weights", .file = folder,
                   .expected = name.substr(0, 12) == "text_encoder"
                                   ? "model.safetensors, pytorch_model.bin or an index of shards"
                                   : "diffusion_pytorch_model.safetensors, diffusion_pytorch_model.bin or an index of shards",
                   .found = shards ? "shards without their index" : "none of them"};
  }
  detail::note_choice(name, files, options, run);
  TENSORSMITH_TRY(auto chosen, open_file_below(folder, files[0].name, folder));
  checkpoint_file read;
  if (files[0].sharded) {
    TENSORSMITH_TRY(read, read_checkpoint_file(join_path(folder, files[0].name), run));
  } else {
    TENSORSMITH_TRY(read, read_checkpoint(std::move(chosen), run));
  }
  for (const std::string& part : read.ignored) out.ignored.push_back(files[0].name + ": " + part);
  TENSORSMITH_CHECK(detail::normalize_component(out, std::move(read.tensors)));
  return out;
}

/// Carries the files of a folder along, as `name/file`. Folders inside are left out, with a note.
inline result<void> add_side_folder(std::vector<side_file>& out, const std::string& folder, const std::string& name, job& run) {
  TENSORSMITH_TRY(const auto names, detail::component_files(folder));
  for (const std::string& file : names) {
    if (os::is_folder(join_path(folder, file))) {
      run.info(name, "the folder " + quoted(file) + " is left out");
      continue;
    }
    TENSORSMITH_TRY(auto bytes, open_file_below(folder, file, folder));
    if (bytes->size() > run.limits.tokenizer_bytes)
      return failure{.code = errc::limit, .what = "the file is too long for a side file", .file = bytes->name(),
                     .expected = "at most " + std::to_string(run.limits.tokenizer_bytes) + " bytes",
                     .found = std::to_string(bytes->size()), .advice = "raise limits::tokenizer_bytes (--max-tokenizer) if you trust it"};
    out.push_back({join_path(name, file), std::move(bytes)});
  }
  return {};
}

namespace detail {

/// Whether model_index.json lists a component as present. @fails malformed, path (a name that is no folder name)
inline result<bool> index_entry(const std::string& file, const std::string& name, const json_value& value) {
  const auto* pair = value.as_array();
  const bool component = std::find(std::begin(diffusers_models), std::end(diffusers_models), name) != std::end(diffusers_models);
  if (!pair && component && !value.is_null())
    return failure{.code = errc::malformed, .what = "an entry of the index is no pair of names", .file = file, .place = "/" + name,
                   .expected = "[library, class]", .found = std::string(value.kind())};
  if (!pair) return false;  // a scalar: an argument of the pipeline
  TENSORSMITH_CHECK(check_relative_path(name, file, "/" + name, false));
  const auto fine = [](const json_value& v) { return v.is_null() || v.as_string(); };
  if (pair->size() != 2 || !fine((*pair)[0]) || !fine((*pair)[1]))
    return failure{.code = errc::malformed, .what = "an entry of the index is no pair of names", .file = file, .place = "/" + name,
                   .expected = "[library, class]", .found = std::string(value.kind()) + " of " + std::to_string(pair->size())};
  return !(*pair)[1].is_null();
}

template <class Names>
bool listed_in(const Names& names, std::string_view name) {
  return std::any_of(std::begin(names), std::end(names), [&](std::string_view n) { return n == name; });
}

/// Names in the order of a list, then the others as they were.
template <class Names>
void order_as(std::vector<std::string>& names, const Names& order) {
  const auto rank = [&](const std::string& name) { return std::find(std::begin(order), std::end(order), name) - std::begin(order); };
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) { return rank(a) < rank(b); });
}

/// True if a folder has files that are named as weights of a component are.
inline bool holds_weights(const std::string& folder) {
  const result<std::vector<std::string>> names = os::is_folder(folder) ? component_files(folder) : std::vector<std::string>{};
  weight_file file;
  return names && std::any_of(names->begin(), names->end(), [&](const std::string& n) { return read_weight_file_name(n, file); });
}

}  // namespace detail

/// Reads a pipeline folder. Models that `options.components` leaves out are noted and not read; so are, unless `options.every_model`,
/// components that are neither models of this library nor side files (a safety checker).
/// @fails mismatch (missing parts, with their paths), malformed, limit, path, io
inline result<package> read_diffusers_folder(const std::string& path, const diffusers_options& options, job& run) {
  package out;
  out.source = path;
  const std::string index_file = join_path(path, "model_index.json");
  if (!is_diffusers_folder(path))
    return failure{.code = errc::mismatch, .what = "the folder is no saved pipeline", .file = path, .expected = "model_index.json",
                   .found = os::is_folder(path) ? "a folder without it" : "no folder"};
  TENSORSMITH_TRY(const steady_folder steady, steady_folder::begin(path));
  TENSORSMITH_TRY(out.index, detail::read_config(path, "model_index.json", run.limits));
  std::vector<std::string> models, others, sides;
  for (const auto& [name, value] : *out.index.as_object()) {
    if (name.substr(0, 1) == "_") continue;
    TENSORSMITH_TRY(const bool present, detail::index_entry(index_file, name, value));
    if (!present) continue;
    const bool wanted = options.components.empty() || detail::listed_in(options.components, name);
    if (detail::listed_in(diffusers_models, name)) {
      if (wanted) models.push_back(name);
      else run.info(name, "left out: not among the components asked for");
    } else if (detail::listed_in(diffusers_side_folders, name)) {
      sides.push_back(name);
    } else if (options.every_model) {
      (detail::holds_weights(join_path(path, name)) ? others : sides).push_back(name);
    } else {
      run.info(name, "left out on purpose: no part of the conversion");
    }
  }
  detail::order_as(models, diffusers_models);
  detail::order_as(sides, diffusers_side_folders);
  models.insert(models.end(), others.begin(), others.end());
  for (const std::string& name : models) {
    TENSORSMITH_TRY(component part, read_diffusers_component(join_path(path, name), name, options, run));
    out.components.push_back(std::move(part));
  }
  for (const std::string& name : sides) {
    TENSORSMITH_TRY(const bool there, os::has_folder(join_path(path, name)));
    if (!there) {
      run.warn(name, "the index lists it, but the folder " + quoted(join_path(path, name)) + " is missing");
      continue;
    }
    TENSORSMITH_CHECK(add_side_folder(out.side_files, join_path(path, name), name, run));
  }
  TENSORSMITH_CHECK(steady.check());
  return out;
}

TENSORSMITH_END_NAMESPACE
