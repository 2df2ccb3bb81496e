// SPDX-License-Identifier: MIT
//
// inspect/options.hpp: the command line of inspect.
#pragma once

#include <cstddef>
#include <string>

#include <CLI/CLI.hpp>

#include "../common/run_options.hpp"

namespace inspect {

struct options : examples::run_options {
  std::string source, variant, key;
  std::size_t limit = 20;
  bool sha256 = false;
};

/// Describes all options on `app`; values land in `o` when it parses.
inline void add_options(CLI::App& app, options& o) {
  app.add_option("FILE_OR_DIR", o.source, "file of weights, index of shards, or folder of a pipeline or a component")->required();
  app.add_flag("--json", o.json, "print one JSON document with all tensors");
  app.add_flag("--sha256", o.sha256, "hash every file (reads all of it)");
  app.add_option("--limit", o.limit, "tensors that are listed without --json; 0: all")->type_name("N")->capture_default_str();
  app.add_option("--variant", o.variant, "of a folder: the weights of this variant (fp16, non_ema)")->type_name("NAME");
  app.add_option("--key", o.key, "of a torch file: the dict to read, keys joined with '/' (params_ema)")->type_name("NAME");
  app.add_flag("--quiet", o.quiet, "no warnings");
  examples::add_limit_options(app, o);
}

}  // namespace inspect
