// SPDX-License-Identifier: MIT
//
// sd_to_onnx/options.hpp: the command line of sd-to-onnx as plain data, and what contradicts what.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "../common/adapter_options.hpp"
#include "../common/cast_options.hpp"
#include "../common/command_line.hpp"
#include "../common/embedding_options.hpp"
#include "../common/model_options.hpp"
#include "../common/paths.hpp"
#include "../common/run_options.hpp"
#include "tensorsmith/core/error.hpp"
#include "tensorsmith/io/os.hpp"

namespace sd_to_onnx {

namespace ts = tensorsmith;
using examples::lies_within;
using examples::same_place;
using examples::usage_error;

struct options : examples::run_options, examples::model_options, examples::cast_options {
  std::string source;
  std::string output;
  examples::adapter_options adapters;
  examples::embedding_options embeddings;
  std::string layout = "optimum";
  std::string weights = "copy";
  std::string io;   // empty: f32
  std::string vae;  // empty: the model's own
  std::vector<std::string> components;
  std::optional<std::size_t> image_size;
  int opset = 17;
};

/// What can be refused before any file is read.
inline ts::result<void> check_options(const options& o) {
  if (o.io == "f16" && o.dtype == "f32")
    return usage_error("--io f16 needs a model that computes in f16, and --dtype f32 asks for f32", "pass --dtype f16 or drop --io");
  if (o.opset < 14) return usage_error("--opset " + std::to_string(o.opset) + " is too old", "pass 14 or more");
  if (o.image_size && (*o.image_size < 8 || *o.image_size > 65536 || *o.image_size % 8 != 0))
    return usage_error("--image-size " + std::to_string(*o.image_size) + " is no image size in pixels",
                       "pass a multiple of 8 between 8 and 65536");
  TENSORSMITH_CHECK(examples::check_run_options(o));
  TENSORSMITH_CHECK(examples::check_adapter_options(o.adapters));
  if (o.weights == "in-place" && (!o.adapters.loras.empty() || !o.embeddings.embeddings.empty()))
    return usage_error("--weights in-place refers to the bytes of SOURCE, which --lora and --embedding change",
                       "drop --weights in-place, or make a merged model with merge-lora and convert that one in place");
  const bool onto_itself = same_place(o.source, o.output);
  if (onto_itself && o.weights != "in-place")
    return usage_error("OUTPUT is SOURCE, which only --weights in-place may write into",
                       "choose another OUTPUT or pass --weights in-place");
  if (onto_itself && !ts::os::is_folder(o.output))
    return usage_error("OUTPUT is the source file itself", "OUTPUT is a folder: choose another name");
  if (onto_itself) return {};
  // Replacing OUTPUT would remove what is read.
  for (const auto& [option, path] : {std::pair("SOURCE", &o.source), std::pair("--config", &o.config), std::pair("--vae", &o.vae),
                                     std::pair("--tokenizer", &o.tokenizer)})
    if (o.force && !path->empty() && ts::os::exists(o.output) && lies_within(*path, o.output))
      return usage_error(std::string(option) + " lies inside OUTPUT, which --force would replace", "choose another OUTPUT");
  return {};
}

namespace detail {

inline void add_model_options(CLI::App& app, options& o) {
  examples::add_model_options(app, o, "Options");
  app.add_option("--vae", o.vae, "VAE to use: a component folder, a VAE file or a checkpoint");
  app.add_option("--image-size", o.image_size, "image size in pixels that the configs name");
  app.add_option("--components", o.components,
                 "only these: text_encoder, text_encoder_2, unet, vae or one half of it, vae_encoder, vae_decoder (comma-separated)")
      ->delimiter(',')->check(CLI::IsMember({"text_encoder", "text_encoder_2", "unet", "vae", "vae_encoder", "vae_decoder"}));
}

/// Adapters and embeddings, merged while the model passes.
inline void add_merge_options(CLI::App& app, options& o) {
  const char* const group = "Merging on the way";
  examples::add_lora_option(app, o.adapters,
                              "merge an adapter, FILE:STRENGTH or FILE:UNET:TEXT_ENCODER; repeated: in their order, rounded once")->group(group);
  examples::add_adapter_options(app, o.adapters, group);
  examples::add_embedding_option(app, o.embeddings, "add a Textual Inversion embedding; repeated; before the adapters")->group(group);
  examples::add_embedding_rules(app, o.embeddings, group);
}

}  // namespace detail

/// Describes all options on `app`; values land in `o` when it parses.
inline void add_options(CLI::App& app, options& o) {
  app.add_option("SOURCE", o.source, "diffusers folder, .safetensors or .ckpt")->required();
  app.add_option("OUTPUT", o.output, "folder to write (SOURCE itself with --weights in-place)")->required();
  app.add_option("--layout", o.layout, "file names and interface: Optimum's, diffusers' or onnx-web's")
      ->check(CLI::IsMember({"optimum", "diffusers", "onnx-web"}))->capture_default_str();
  examples::add_dtype_option(app, o, {"f32", "f16"}, "what the graphs store and compute in; merged weights are rounded to it once");
  examples::add_overflow_option(app, o);
  app.add_option("--weights", o.weights, "copy: beside the graph; in-place: refer to SOURCE's bytes; embed: in the graph file")
      ->check(CLI::IsMember({"copy", "in-place", "embed"}))->capture_default_str();
  app.add_option("--opset", o.opset, "ONNX operator set, 14 or newer")->capture_default_str();
  app.add_option("--io", o.io, "floating type of inputs and outputs (default f32)")->check(CLI::IsMember({"f32", "f16"}));
  detail::add_model_options(app, o);
  detail::add_merge_options(app, o);
  examples::add_run_options(app, o);
  examples::add_limit_options(app, o);
}

}  // namespace sd_to_onnx
