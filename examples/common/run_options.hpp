// SPDX-License-Identifier: MIT
//
// common/run_options.hpp: the options that the programs share: threads, memory, limits, what is printed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "command_line.hpp"
#include "process.hpp"
#include "tensorsmith/core/job.hpp"

namespace examples {

struct run_options {
  unsigned threads = 0;
  std::uint64_t memory = 256u << 20;
  std::uint64_t tile = ts::job{}.tile_bytes;
  bool dry_run = false, json = false, force = false, quiet = false, no_crc = false;
  ts::limits limits;
};

/// Every limit has an option: a message that names a limit can be acted on.
inline void add_limit_options(CLI::App& app, run_options& o) {
  ts::limits& l = o.limits;
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
              {"--max-npy-header", "bytes of the header of a .npy array", &l.npy_header_bytes},
              {"--max-gguf-metadata", "bytes of a GGUF file before its data", &l.gguf_metadata_bytes},
              {"--max-expansion", "bytes made of one stored byte", &l.expansion}};
  for (const auto& row : rows)
    add_size(app, row.option, *row.value, std::string(row.what) + " (default " + std::to_string(*row.value) + ")")
        ->group("Limits on what a file may declare");
  app.add_flag("--allow-suspicious", l.allow_suspicious,
               "read pickles that name functions of the block list (nothing of a pickle is ever run)")
      ->group("Limits on what a file may declare");
}

/// Options of a program that reads weights and writes a model.
inline void add_run_options(CLI::App& app, run_options& o) {
  app.add_option("--threads", o.threads, "threads (0: all)")->check(CLI::Range(0, 1024))->capture_default_str();
  add_size(app, "--memory", o.memory, "budget for tiles and buffers (default 256M)");
  add_size(app, "--tile", o.tile, "tuning: bytes of one tile; the output is the same for any (default 256K)");
  app.add_flag("--no-crc", o.no_crc, "do not verify the CRC-32 of zip entries");
  app.add_flag("--dry-run", o.dry_run, "plan and report only: writes nothing");
  app.add_flag("--json", o.json, "print one JSON document on standard output instead of the summary");
  app.add_flag("--force", o.force, "replace OUTPUT if it exists");
  app.add_flag("--quiet", o.quiet, "no progress and no summary; warnings and errors only");
}

/// @fails usage
inline ts::result<void> check_run_options(const run_options& o) {
  if (o.tile < 4096 || o.tile > (1u << 30)) return usage_error("--tile is outside 4K to 1G");
  if (o.memory < (8u << 20)) return usage_error("--memory is below 8M");
  return {};
}

inline ts::job job_of(const run_options& o) {
  ts::job run;
  run.threads = o.threads;
  run.memory_bytes = static_cast<std::size_t>(o.memory);
  run.tile_bytes = static_cast<std::size_t>(o.tile);
  run.limits = o.limits;
  run.limits.check_crc = !o.no_crc;
  run.cancel = &stop_requested;
  return run;
}

}  // namespace examples
