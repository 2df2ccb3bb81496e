// SPDX-License-Identifier: MIT
//
// merge_lora/options.hpp: the command line of merge-lora as plain data.
#pragma once

#include <cstddef>
#include <string>

#include <CLI/CLI.hpp>

#include "../common/adapter_options.hpp"
#include "../common/base_program.hpp"

namespace merge_lora {

namespace ts = tensorsmith;
using examples::usage_error;

struct options : examples::base_options {
  examples::adapter_options adapters;
  std::string mode = "auto";
  std::size_t rank = 0, conv_rank = 0;  // of --mode svd; 0: not given
};

/// Describes all options on `app`; values land in `o` when it parses.
inline void add_options(CLI::App& app, options& o) {
  app.add_option("BASE", o.base, "checkpoint (safetensors or torch), diffusers folder or ONNX folder; or an adapter, FILE:STRENGTH, to combine with those of --lora")
      ->required();
  app.add_option("OUTPUT", o.output, "what to write, in the form of BASE; missing where --mode combines adapters: BASE is the output then");
  examples::add_lora_option(app, o.adapters, "adapter (file or PEFT folder) and its strength, FILE:STRENGTH or FILE:UNET:TEXT_ENCODER; repeated: applied in "
                                             "their order, rounded once");
  examples::add_adapter_options(app, o.adapters);
  app.add_option("--mode", o.mode, "merge: into a model; upl: the same into a diffusers folder, with the adapter's embeddings; upl-ckpt-v2: and written as a checkpoint. "
                                   "Adapters into one adapter: concat (exact, ranks add up), svd (to --rank), lpl and ljl (as cloneofsimo's), kohya (as its merge_lora.py). "
                                   "auto: merge, or concat if BASE is an adapter")
      ->check(CLI::IsMember({"auto", "merge", "upl", "upl-ckpt-v2", "concat", "svd", "lpl", "ljl", "kohya"}))->capture_default_str();
  app.add_option("--rank", o.rank, "of --mode svd: the rank of the result")->check(CLI::Range(1, 65536));
  app.add_option("--conv-rank", o.conv_rank, "of --mode svd: the rank for kernels larger than 1×1, if not --rank")->check(CLI::Range(1, 65536));
  examples::add_base_options(app, o, "element type of the output's floating-point tensors; merged weights are rounded to it once", "--model",
                             "also write the JSON report, with the size of every change, to this file");
}

}  // namespace merge_lora
