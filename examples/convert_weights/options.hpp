// SPDX-License-Identifier: MIT
//
// convert_weights/options.hpp: the command line of convert-weights as plain data, and what contradicts what.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "../common/cast_options.hpp"
#include "../common/command_line.hpp"
#include "../common/model_options.hpp"
#include "../common/paths.hpp"
#include "../common/run_options.hpp"
#include "tensorsmith/arch/prune.hpp"
#include "tensorsmith/core/error.hpp"
#include "tensorsmith/io/os.hpp"
#include "tensorsmith/io/path.hpp"

namespace convert_weights {

namespace ts = tensorsmith;
using examples::usage_error;

enum class target { safetensors, torch, diffusers, checkpoint, npz };

struct options : examples::run_options, examples::model_options, examples::cast_options {
  std::string source, output;
  std::string to;            // empty: from OUTPUT's extension
  std::vector<std::string> prune, select, drop;
  std::uint64_t shard_size = 0;  // 0: one file
  std::string variant, output_variant, key, prefer;
  bool verify = false;
};

/// What is written, by --to or by the extension of OUTPUT. @fails usage
inline ts::result<target> target_of(const options& o) {
  constexpr std::pair<std::string_view, target> names[] = {{"safetensors", target::safetensors}, {"torch", target::torch},
                                                           {"diffusers", target::diffusers}, {"checkpoint", target::checkpoint},
                                                           {"npz", target::npz}};
  for (const auto& [name, which] : names)
    if (o.to == name) return which;
  constexpr std::pair<std::string_view, target> endings[] = {{".safetensors", target::safetensors}, {".pt", target::torch},
                                                             {".pth", target::torch}, {".bin", target::torch}, {".ckpt", target::torch},
                                                             {".npz", target::npz}};
  for (const auto& [ending, which] : endings)
    if (ts::ends_with_ignoring_case(o.output, ending)) return which;
  return usage_error("what to write is not said: " + ts::quoted(o.output) + " ends in no extension of a weights file",
                     "pass --to safetensors, torch, diffusers, checkpoint or npz");
}

inline ts::prune_options pruning(const options& o) {
  ts::prune_options out;
  for (const std::string& group : o.prune) {
    const bool all = group == "all";
    out.ema = out.ema || all || group == "ema";
    out.optimizer = out.optimizer || all || group == "optimizer";
    out.schedule = out.schedule || all || group == "schedule";
  }
  return out;
}

/// Refuses outputs that would take away what is read. @fails usage
inline ts::result<void> check_places(const options& o) {
  if (!ts::os::is_folder(o.output)) return {};
  if (examples::same_place(o.source, o.output)) return usage_error("OUTPUT is SOURCE", "choose another OUTPUT");
  for (const auto& [option, path] : {std::pair("SOURCE", &o.source), std::pair("--config", &o.config), std::pair("--tokenizer", &o.tokenizer)})
    if (!path->empty() && examples::lies_within(*path, o.output))
      return usage_error(std::string(option) + " lies inside OUTPUT, which would be replaced", "choose another OUTPUT");
  return {};
}

/// What can be refused before any file is read. @fails usage
inline ts::result<void> check_options(const options& o) {
  TENSORSMITH_CHECK(examples::check_run_options(o));
  if (o.source.empty()) return usage_error("SOURCE is empty", "pass a file or a folder");
  TENSORSMITH_TRY(const target to, target_of(o));
  const bool model = to == target::diffusers || to == target::checkpoint;
  if (o.shard_size != 0 && to != target::safetensors && to != target::diffusers)
    return usage_error("--shard-size is for --to safetensors and --to diffusers", "drop it");
  if (!o.output_variant.empty() && to != target::diffusers) return usage_error("--output-variant is for --to diffusers", "drop it");
  for (const auto& [option, given] : {std::pair("--config", !o.config.empty()), std::pair("--tokenizer", !o.tokenizer.empty()),
                                      std::pair("--model", o.model != "auto"), std::pair("--prediction-type", !o.prediction_type.empty()),
                                      std::pair("--ema", o.ema)})
    if (given && !model) return usage_error(std::string(option) + " is for --to diffusers and --to checkpoint", "drop it");
  if (o.ema && pruning(o).ema) return usage_error("--ema uses the moving averages that --prune ema leaves out", "drop one of the two");
  return check_places(o);
}

namespace detail {

inline void add_choice_options(CLI::App& app, options& o) {
  app.add_option("--prune", o.prune, "leave out what only training needs: ema, optimizer, schedule (comma-separated), or all")
      ->delimiter(',')->check(CLI::IsMember({"ema", "optimizer", "schedule", "all"}));
  app.add_option("--select", o.select, "write only tensors whose names match GLOB (* any characters, ? any one); may be repeated")
      ->type_name("GLOB")->allow_extra_args(false);
  app.add_option("--drop", o.drop, "leave out tensors whose names match GLOB; may be repeated; wins over --select")
      ->type_name("GLOB")->allow_extra_args(false);
}

inline void add_source_options(CLI::App& app, options& o) {
  app.add_option("--variant", o.variant, "of a folder: read the weights of this variant (fp16, non_ema)")->type_name("NAME");
  app.add_option("--prefer", o.prefer, "of a folder with both: read its safetensors (default) or its torch files")
      ->check(CLI::IsMember({"safetensors", "torch"}));
  app.add_option("--key", o.key, "of a torch file: the dict to read, keys joined with '/' (params_ema)")->type_name("NAME");
}

inline void add_pipeline_options(CLI::App& app, options& o) {
  const char* const group = "Writing a pipeline or a checkpoint";
  examples::add_model_options(app, o, group);
  app.add_option("--output-variant", o.output_variant, "variant in the names of the weight files: fp16 for model.fp16.safetensors")
      ->type_name("NAME")->group(group);
}

}  // namespace detail

/// Describes all options on `app`; values land in `o` when it parses.
inline void add_options(CLI::App& app, options& o) {
  app.add_option("SOURCE", o.source, "file of weights, index of shards, or folder of a pipeline or a component")->required();
  app.add_option("OUTPUT", o.output, "file or folder to write")->required();
  app.add_option("--to", o.to, "safetensors; torch: a .pt that torch.load(weights_only=True) reads; diffusers: a pipeline folder; checkpoint: "
                               "one file with the original names; npz. Default: by OUTPUT's extension")
      ->check(CLI::IsMember({"safetensors", "torch", "diffusers", "checkpoint", "npz"}));
  examples::add_dtype_option(app, o, {"f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"},
                               "element type of floating-point tensors; others stay as they are");
  examples::add_overflow_option(app, o);
  examples::add_decimal_size(app, "--shard-size", o.shard_size, "largest shard, 5GB or 512MiB (kB, MB, GB: powers of 1000, as transformers "
                                                                "counts; KiB, MiB, GiB: of 1024); OUTPUT becomes a folder");
  detail::add_choice_options(app, o);
  detail::add_source_options(app, o);
  detail::add_pipeline_options(app, o);
  examples::add_run_options(app, o);
  app.add_flag("--verify-output", o.verify, "read what was written before it is published, and compare");
  examples::add_limit_options(app, o);
}

}  // namespace convert_weights
