// SPDX-License-Identifier: MIT
//
// inspect/look.hpp: what a file or a folder holds, from names, types, shapes and configurations alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../common/process.hpp"
#include "../common/report.hpp"
#include "options.hpp"
#include "tensorsmith/arch/checkpoint_catalogs.hpp"
#include "tensorsmith/arch/detect.hpp"
#include "tensorsmith/arch/recognize_adapter.hpp"
#include "tensorsmith/arch/unet_shape.hpp"
#include "tensorsmith/core/sha256.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/format/safetensors/dtypes.hpp"

namespace inspect {

namespace ts = tensorsmith;

struct file_row {
  std::string path;
  std::uint64_t bytes = 0;
  std::string sha256;  // if it was asked for
};

/// A model inside a single file: the tensors under one prefix.
struct part_row {
  std::string component, prefix, names;
  std::uint64_t tensors = 0;
};

struct findings {
  std::string source, container;
  std::string kind;                           // "Stable Diffusion checkpoint", "adapter", …
  std::string family;                         // "sd1", … or empty
  std::vector<ts::evidence> evidence;
  ts::package model;
  std::vector<part_row> parts;                // of a single file
  std::uint64_t moving_averages = 0, outside = 0;  // of a single file: tensors under model_ema., and outside every known prefix
  std::optional<ts::adapter_description> adapter;
  std::vector<file_row> files;
};

/// The spelling of safetensors; upper case of ours for types that it lacks ("C128").
inline std::string dtype_name(ts::dtype type) {
  std::string out(ts::safetensors_name(type));
  if (!out.empty()) return out;
  out = ts::name_of(type);
  for (char& c : out)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return out;
}

inline std::string text_of(const ts::json_value& config, std::string_view key) {
  const ts::json_value* value = config.find(key);
  return value && value->as_string() ? *value->as_string() : std::string();
}

/// "UNet2DConditionModel", "clip_text_model"; empty if the configuration does not tell.
inline std::string class_of(const ts::json_value& config) {
  const std::string name = text_of(config, "_class_name");
  return name.empty() ? text_of(config, "model_type") : name;
}

// --- what it is --------------------------------------------------------------------------------------------------------------

inline void settle_family(const ts::family_vote& vote, findings& out) {
  if (vote.left() == ts::family_set::all()) return;
  auto outcome = vote.outcome();
  if (!outcome) {
    out.evidence.push_back({"family", vote.left().empty() ? "unclear" : vote.left().text(), outcome.error().what});
    return;
  }
  out.family = ts::name_of(outcome->first);
  out.evidence.insert(out.evidence.end(), outcome->second.begin(), outcome->second.end());
}

/// The UNet's structure, if it has one that is known.
inline std::optional<ts::unet_shape> shape_of(const ts::checkpoint_part& part, const ts::catalog& tensors) {
  const auto weights = ts::unet_weights(part, tensors, false);
  if (!weights) return std::nullopt;
  auto shape = ts::unet_shape_of(weights->weights);
  if (!shape) return std::nullopt;
  return std::move(*shape);
}

inline void tell_inputs(const ts::unet_shape& shape, findings& out) {
  const char* const meaning = shape.in_channels == 9 ? "an inpainting model" : shape.in_channels == 8 ? "an image-editing model"
                              : shape.in_channels == 5 ? "a depth-guided model" : shape.in_channels == 7 ? "an upscaler" : "";
  if (*meaning) out.evidence.push_back({"unet.in_channels", std::to_string(shape.in_channels), meaning});
}

/// "Stable Diffusion checkpoint" if there is a UNet and more; the name of the component if it is alone.
inline std::string kind_of_parts(const ts::checkpoint_parts& parts) {
  if (parts.parts.empty()) return {};
  if (parts.parts.size() > 1) return parts.find("unet") ? "Stable Diffusion checkpoint" : "components of a Stable Diffusion model";
  const std::string& only = parts.parts[0].component;
  return only == "unet" ? "UNet of Stable Diffusion" : only == "vae" ? "autoencoder (VAE) of Stable Diffusion" : "CLIP text encoder";
}

inline void look_at_parts(const ts::catalog& tensors, findings& out) {
  const auto split = ts::split_checkpoint(tensors);
  if (!split) {
    out.evidence.push_back({"parts", "contradictory", split.error().message()});
    return;
  }
  // Names such as `decoder.` occur everywhere: a file whose tensors are mostly outside the known prefixes is something else.
  if (split->unknown.size() > tensors.size() / 2) return;
  out.kind = kind_of_parts(*split);
  out.moving_averages = split->moving_averages;
  out.outside = split->unknown.size();
  for (const ts::checkpoint_part& part : split->parts) {
    constexpr std::string_view forms[] = {"original", "diffusers", "transformers", "OpenCLIP"};
    out.parts.push_back({part.component, part.prefix, std::string(forms[static_cast<std::size_t>(part.form)]), part.members.size()});
  }
  ts::family_vote vote;
  ts::vote_of_parts(vote, *split);
  if (const ts::checkpoint_part* unet = split->find("unet"))
    if (const auto shape = shape_of(*unet, tensors)) {
      ts::vote_of_unet(vote, *shape);
      tell_inputs(*shape, out);
      if (shape->classes) out.kind = "Stable Diffusion upscaler with noise levels";
    }
  settle_family(vote, out);
  for (const std::string& marker : split->markers) out.evidence.push_back({"marker", marker, "a tensor that tells how the model was trained"});
}

inline void look_at_pipeline(findings& out) {
  const std::string name = text_of(out.model.index, "_class_name");
  out.kind = "diffusers pipeline" + (name.empty() ? std::string() : " " + name);
  out.evidence.push_back({"pipeline", name.empty() ? "unnamed" : name, "_class_name of model_index.json"});
  const ts::component* unet = out.model.find("unet");
  if (!unet || unet->config.is_null() || class_of(unet->config) != "UNet2DConditionModel") return;
  ts::family_vote vote;
  ts::vote_of_config(vote, unet->config);
  if (const auto shape = ts::unet_shape_of(unet->weights)) {
    ts::vote_of_unet(vote, *shape);
    tell_inputs(*shape, out);
  }
  settle_family(vote, out);
}

/// "Textual Inversion embedding", "LoRA adapter (kohya names)", "adapter of several algorithms (PEFT names)".
inline std::string kind_of_adapter(const ts::adapter_description& a) {
  if (a.family == ts::adapter_family::textual_inversion) return "Textual Inversion embedding";
  if (a.family == ts::adapter_family::hypernetwork) return "hypernetwork";
  return (a.algorithms.size() == 1 ? a.algorithms.begin()->first + " adapter" : std::string("adapter of several algorithms")) + " (" +
         std::string(ts::name_of(a.family)) + " names)";
}

inline void look_at_adapter(findings& out) {
  out.kind = kind_of_adapter(*out.adapter);
  out.family = out.adapter->base;
  out.evidence.push_back({"kind", std::string(ts::name_of(out.adapter->family)), "the name " + ts::quoted(out.adapter->evidence)});
  if (!out.adapter->base.empty()) out.evidence.push_back({"base model", out.adapter->base, out.adapter->base_reason});
  for (const auto& [key, value] : out.model.metadata)
    if (key == "ss_base_model_version" || key == "modelspec.architecture")
      out.evidence.push_back({"base model", ts::quoted(value), "metadata " + key});
}

inline void look_at_model(findings& out) {
  if (!out.model.index.is_null()) return look_at_pipeline(out);
  const ts::component& whole = out.model.components[0];
  if (const std::string name = class_of(whole.config); !name.empty()) {
    out.kind = (text_of(whole.config, "_class_name").empty() ? "transformers model " : "diffusers component ") + name;
    out.evidence.push_back({"class", name, "config.json"});
  }
  out.adapter = ts::recognize_adapter(whole.weights);
  if (out.adapter) return look_at_adapter(out);
  std::string name;
  if (const std::string_view network = ts::recognize_network(whole.weights, name); !network.empty()) {
    if (out.kind.empty()) out.kind = network;
    out.evidence.push_back({"kind", std::string(network), "the name " + ts::quoted(name)});
    return;
  }
  const std::string configured = out.kind;
  look_at_parts(whole.weights, out);
  if (!configured.empty()) out.kind = configured;
  if (out.kind.empty()) out.kind = "weights of an unknown model";
}

// --- files -------------------------------------------------------------------------------------------------------------------

/// The files that SOURCE stands for: itself, an index and its shards, all files of a folder. @fails limit, io, path
inline ts::result<std::vector<file_row>> files_of(const std::string& source, const ts::limits& bounds) {
  std::vector<file_row> out;
  const auto add = [&](std::string path) -> ts::result<void> {
    TENSORSMITH_TRY(const ts::os::file_status status, ts::os::status_of(path));
    out.push_back({std::move(path), status.size, {}});
    return {};
  };
  if (!ts::os::is_folder(source)) {
    TENSORSMITH_CHECK(add(source));
    if (!ts::ends_with_ignoring_case(source, ".index.json")) return out;
    TENSORSMITH_TRY(const ts::shard_index index, ts::read_shard_index(source, bounds));
    for (std::size_t k = 0; k < index.shards.size(); ++k) TENSORSMITH_CHECK(add(index.shard_path(k)));
    return out;
  }
  constexpr std::size_t most = 100'000;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator at(source, error), end; !error && at != end; at.increment(error)) {
    if (!ts::os::is_regular_file(at->path().string())) continue;
    if (out.size() == most)
      return ts::failure{.code = ts::errc::limit, .what = "the folder holds too many files for a model", .file = source,
                         .expected = "at most " + std::to_string(most), .advice = "pass the folder of the model itself"};
    TENSORSMITH_CHECK(add(at->path().string()));
  }
  if (error) return ts::failure{.code = ts::errc::io, .what = "the folder cannot be listed: " + error.message(), .file = source};
  std::sort(out.begin(), out.end(), [](const file_row& a, const file_row& b) { return a.path < b.path; });
  return out;
}

/// @fails io, integrity, cancelled
inline ts::result<std::string> sha256_of(const std::string& path) {
  TENSORSMITH_TRY(const auto file, ts::open_file(path));
  ts::sha256 sum;
  std::vector<std::byte> block(std::size_t{1} << 20);
  for (std::uint64_t at = 0; at < file->size(); at += block.size()) {
    if (examples::stop_requested.load(std::memory_order_relaxed)) return ts::failure{.code = ts::errc::cancelled, .what = "cancelled", .file = path};
    const auto part = std::span(block).first(static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), file->size() - at)));
    TENSORSMITH_CHECK(file->read_at(at, part));
    sum.update(part);
  }
  return ts::hex(sum.finish());
}

/// Opens SOURCE and tells what it is. No weight is read, except by --sha256. @fails as open_weights
inline ts::result<findings> look(const options& o, ts::job& run) {
  findings out;
  out.source = o.source;
  TENSORSMITH_TRY(out.model, ts::open_weights(o.source, {.variant = o.variant, .select = o.key, .prefer = {}}, run));
  out.container = out.model.container.empty() ? "diffusers folder" : out.model.container;
  look_at_model(out);
  TENSORSMITH_TRY(out.files, files_of(o.source, run.limits));
  for (file_row& file : out.files) {
    if (!o.sha256) break;
    TENSORSMITH_TRY(file.sha256, sha256_of(file.path));
  }
  return out;
}

}  // namespace inspect
