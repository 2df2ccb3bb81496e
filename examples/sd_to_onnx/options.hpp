// SPDX-License-Identifier: MIT
//
// sd_to_onnx/options.hpp: the command line of sd-to-onnx as plain data, and what contradicts what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "../common/command_line.hpp"
#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"

namespace sd_to_onnx {

namespace ts = tensorsmith;
using examples::add_size;
using examples::usage_error;

struct options {
  std::string source;
  std::string output;
  std::string layout = "optimum";
  std::string dtype = "keep";
  std::string weights = "copy";
  std::string io;                     // empty: f32
  std::string model = "auto";
  std::string config, vae, tokenizer; // empty: none given
  std::string prediction_type;        // empty: from the evidence
  std::vector<std::string> components;
  std::optional<std::size_t> image_size;
  int opset = 17;
  unsigned threads = 0;
  std::uint64_t memory = 256u << 20;
  std::uint64_t tile = 1u << 20;
  bool ema = false, dry_run = false, json = false, force = false, quiet = false, no_crc = false;
  ts::limits limits;
};

/// True if `path` is `folder` or lies below it, links resolved as far as the paths exist.
inline bool lies_within(const std::string& path, const std::string& folder) {
  std::error_code ignored;
  const auto inner = std::filesystem::weakly_canonical(path, ignored);
  auto outer = std::filesystem::weakly_canonical(folder, ignored);
  if (!outer.has_filename()) outer = outer.parent_path();  // "out/" and "out" are one folder
  const auto [in_outer, in_inner] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  return in_outer == outer.end();
}

/// True if both name one existing file or folder.
inline bool same_place(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return std::filesystem::equivalent(a, b, ignored);
}

/// What can be refused before any file is read.
inline ts::result<void> check_options(const options& o) {
  if (o.io == "f16" && o.dtype == "f32")
    return usage_error("--io f16 needs a model that computes in f16, and --dtype f32 asks for f32", "pass --dtype f16 or drop --io");
  if (o.opset < 14) return usage_error("--opset " + std::to_string(o.opset) + " is too old", "pass 14 or more");
  if (o.image_size && (*o.image_size < 8 || *o.image_size > 65536 || *o.image_size % 8 != 0))
    return usage_error("--image-size " + std::to_string(*o.image_size) + " is no image size in pixels",
                       "pass a multiple of 8 between 8 and 65536");
  if (o.tile < 4096 || o.tile > (1u << 30)) return usage_error("--tile is outside 4K to 1G");
  if (o.memory < (8u << 20)) return usage_error("--memory is below 8M");
  const bool onto_itself = same_place(o.source, o.output);
  if (onto_itself && o.weights != "in-place")
    return usage_error("OUTPUT is SOURCE, which only --weights in-place may write into",
                       "choose another OUTPUT or pass --weights in-place");
  if (onto_itself && !std::filesystem::is_directory(o.output))
    return usage_error("OUTPUT is the source file itself", "OUTPUT is a folder: choose another name");
  if (onto_itself) return {};
  // Replacing OUTPUT would remove what is read.
  for (const auto& [option, path] : {std::pair("SOURCE", &o.source), std::pair("--config", &o.config), std::pair("--vae", &o.vae),
                                     std::pair("--tokenizer", &o.tokenizer)})
    if (o.force && !path->empty() && std::filesystem::exists(o.output) && lies_within(*path, o.output))
      return usage_error(std::string(option) + " lies inside OUTPUT, which --force would replace", "choose another OUTPUT");
  return {};
}

namespace detail {

inline void add_model_options(CLI::App& app, options& o) {
  app.add_option("--model", o.model, "what SOURCE is, if the shapes shall not decide")
      ->check(CLI::IsMember({"auto", "sd1", "sd2", "sdxl", "sdxl-refiner"}))->capture_default_str();
  app.add_option("--config", o.config, "folder with diffusers configs (or an LDM yaml) that overrides what is derived");
  app.add_option("--vae", o.vae, "VAE to use: a component folder, a VAE file or a checkpoint");
  app.add_option("--tokenizer", o.tokenizer, "folder with tokenizer files (vocab.json, merges.txt; or tokenizer/, tokenizer_2/)");
  app.add_flag("--ema", o.ema, "use the EMA weights of a checkpoint");
  app.add_option("--image-size", o.image_size, "image size in pixels that the configs name");
  app.add_option("--prediction-type", o.prediction_type, "epsilon or v_prediction, if the evidence shall not decide")
      ->check(CLI::IsMember({"epsilon", "v_prediction"}));
  app.add_option("--components", o.components,
                 "only these: text_encoder, text_encoder_2, unet, vae or one half of it, vae_encoder, vae_decoder (comma-separated)")
      ->delimiter(',')->check(CLI::IsMember({"text_encoder", "text_encoder_2", "unet", "vae", "vae_encoder", "vae_decoder"}));
}

/// Every limit has an option: a message that names a limit can be acted on.
inline void add_limit_options(CLI::App& app, ts::limits& l) {
  const struct {
    const char *option, *what;
    std::uint64_t* value;
  } rows[] = {{"--max-header", "bytes of a safetensors header", &l.safetensors_header_bytes},
              {"--max-tensors", "tensors in a file", &l.tensors},
              {"--max-name", "bytes of a name", &l.name_bytes},
              {"--max-rank", "dimensions of a tensor", &l.rank},
              {"--max-elements", "elements of a tensor, exclusive", &l.elements},
              {"--max-json-depth", "nested arrays and objects", &l.json_depth},
              {"--max-config", "bytes of a configuration", &l.config_bytes},
              {"--max-index", "bytes of an index of shards", &l.index_bytes},
              {"--max-tokenizer", "bytes of a tokenizer's file", &l.tokenizer_bytes},
              {"--max-pickle", "bytes of a pickle", &l.pickle_bytes},
              {"--max-pickle-opcodes", "opcodes of a pickle", &l.pickle_opcodes},
              {"--max-pickle-depth", "nested values of a pickle", &l.pickle_depth},
              {"--max-pickle-integer", "bytes of an integer of a pickle", &l.pickle_integer_bytes},
              {"--max-zip-entries", "entries of a zip archive", &l.zip_entries},
              {"--max-zip-directory", "bytes of a zip archive's directory", &l.zip_directory_bytes},
              {"--max-expansion", "bytes made of one stored byte", &l.expansion}};
  for (const auto& row : rows)
    add_size(app, row.option, *row.value, std::string(row.what) + " (default " + std::to_string(*row.value) + ")")
        ->group("Limits on what a file may declare");
}

inline void add_run_options(CLI::App& app, options& o) {
  app.add_option("--threads", o.threads, "threads (0: all)")->check(CLI::Range(0, 1024))->capture_default_str();
  add_size(app, "--memory", o.memory, "budget for tiles and buffers (default 256M)");
  add_size(app, "--tile", o.tile, "tuning: bytes of one tile; the output is the same for any (default 1M)");
  app.add_flag("--no-crc", o.no_crc, "do not verify the CRC-32 of the zip entries of a .ckpt");
  app.add_flag("--allow-suspicious", o.limits.allow_suspicious,
               "read pickles that name functions of the block list (nothing of a pickle is ever run)");
  app.add_flag("--dry-run", o.dry_run, "plan and report only: writes nothing");
  app.add_flag("--json", o.json, "print one JSON document on standard output instead of the summary");
  app.add_flag("--force", o.force, "replace OUTPUT if it exists");
  app.add_flag("--quiet", o.quiet, "no progress and no summary; warnings and errors only");
}

}  // namespace detail

/// Describes all options on `app`; values land in `o` when it parses.
inline void add_options(CLI::App& app, options& o) {
  app.add_option("SOURCE", o.source, "diffusers folder, .safetensors or .ckpt")->required();
  app.add_option("OUTPUT", o.output, "folder to write (SOURCE itself with --weights in-place)")->required();
  app.add_option("--layout", o.layout, "file names and interface: Optimum's, diffusers' or onnx-web's")
      ->check(CLI::IsMember({"optimum", "diffusers", "onnx-web"}))->capture_default_str();
  app.add_option("--dtype", o.dtype, "what the graphs store and compute in")
      ->check(CLI::IsMember({"keep", "f32", "f16"}))->capture_default_str();
  app.add_option("--weights", o.weights, "copy: beside the graph; in-place: refer to SOURCE's bytes; embed: in the graph file")
      ->check(CLI::IsMember({"copy", "in-place", "embed"}))->capture_default_str();
  app.add_option("--opset", o.opset, "ONNX operator set, 14 or newer")->capture_default_str();
  app.add_option("--io", o.io, "floating type of inputs and outputs (default f32)")->check(CLI::IsMember({"f32", "f16"}));
  detail::add_model_options(app, o);
  detail::add_run_options(app, o);
  detail::add_limit_options(app, o.limits);
}

}  // namespace sd_to_onnx
