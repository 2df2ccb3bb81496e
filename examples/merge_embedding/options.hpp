// SPDX-License-Identifier: MIT
//
// merge_embedding/options.hpp: the command line of merge-embedding as plain data.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "../common/base_program.hpp"
#include "../common/embedding_options.hpp"

namespace merge_embedding {

namespace ts = tensorsmith;

struct options : examples::base_options {
  examples::embedding_options embeddings;
};

/// Describes all options on `app`; values land in `o` when it parses.
inline void add_options(CLI::App& app, options& o) {
  app.add_option("BASE", o.base, "checkpoint (safetensors or torch), diffusers folder or ONNX folder")->required();
  app.add_option("OUTPUT", o.output, "what to write, in the form of BASE")->required();
  examples::add_embedding_option(app, o.embeddings,
                                 "an embedding; TOKEN is its trigger word (default: what the file says), STRENGTH multiplies its vectors; two files with "
                                 "a comma between are the two encoders of SDXL; repeated: ids in their order")->required();
  examples::add_embedding_rules(app, o.embeddings);
  examples::add_base_options(app, o, "element type of the output's floating-point tensors", "--model", "also write the JSON report to this file");
}

}  // namespace merge_embedding
