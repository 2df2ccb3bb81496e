// SPDX-License-Identifier: MIT
//
// sd-to-onnx: turns a Stable Diffusion model (diffusers folder, .safetensors or .ckpt) into an ONNX pipeline folder.
//
//   sd-to-onnx v1-5-pruned.safetensors out --tokenizer clip-tokenizer
//   sd-to-onnx sdxl-folder out --dtype f16
//   sd-to-onnx sd15-folder sd15-folder --weights in-place
#include <chrono>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common/command_line.hpp"
#include "../common/process.hpp"
#include "../common/progress.hpp"
#include "convert.hpp"
#include "options.hpp"
#include "summary.hpp"
#include "tensorsmith/io/json.hpp"

namespace {

namespace ts = tensorsmith;
using namespace sd_to_onnx;

/// The error as a line on standard error and, with --json, as the document. Returns the exit status.
int fail(const ts::failure& error, bool json, const std::vector<ts::note>& notes) {
  std::fprintf(stderr, "sd-to-onnx: %s\n", error.message().c_str());
  if (json) (void)examples::print(ts::write_json(to_json(error, notes)) + '\n');
  return ts::exit_code(error);
}

ts::job job_of(const options& o) {
  ts::job run;
  run.threads = o.threads;
  run.memory_bytes = static_cast<std::size_t>(o.memory);
  run.tile_bytes = static_cast<std::size_t>(o.tile);
  run.limits = o.limits;
  run.limits.check_crc = !o.no_crc;
  run.cancel = &examples::stop_requested;
  return run;
}

int run_program(const options& o) {
  const auto begin = std::chrono::steady_clock::now();
  ts::job run = job_of(o);
  examples::memory_watch memory;
  examples::progress_bar bar(!o.quiet && !o.json);
  run.on_progress = [&](const ts::progress& p) { memory.sample(), bar.update(p); };

  const auto planned = [&](const summary& plan) {
    memory.sample();
    if (o.quiet || o.json || bar.visible()) return;
    for (const component_summary& part : plan.components) std::fprintf(stderr, "%s\n", component_line(part).c_str());
  };
  ts::result<void> allowed = check_options(o);
  ts::result<summary> report = allowed ? convert(o, run, planned) : ts::result<summary>(std::move(allowed).error());
  bar.clear();
  for (const ts::note& n : run.notes)
    if (n.severity == ts::note::level::warning) std::fprintf(stderr, "sd-to-onnx: warning: %s\n", note_line(n).c_str());
  if (!report) return fail(report.error(), o.json, run.notes);

  report->notes = run.notes;
  report->peak = memory.finish();
  report->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ts::result<void> printed;
  if (o.json) printed = examples::print(ts::write_json(to_json(*report)) + '\n');
  else if (!o.quiet) printed = examples::print(to_text(*report));
  if (!printed) return fail(printed.error(), false, {});
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  examples::open_standard_streams();
  examples::install_signal_handlers();
  CLI::App app("Turns a Stable Diffusion model into an ONNX pipeline folder.", "sd-to-onnx");
  options o;
  add_options(app, o);
  const examples::parsed parsed = examples::parse(app, argc, argv);
  if (parsed.help) return examples::print(*parsed.help) ? 0 : ts::exit_code(ts::errc::io);
  bool json = false;  // a command line that does not parse may still have asked for a document
  for (int i = 1; i < argc; ++i) json = json || std::string_view(argv[i]) == "--json";
  if (!parsed.outcome) return fail(parsed.outcome.error(), json, {});
  try {
    return run_program(o);
  } catch (const std::bad_alloc&) {
    return fail({.code = ts::errc::limit, .what = "out of memory", .advice = "lower --memory or --threads"}, json, {});
  } catch (const std::exception& error) {
    return fail({.code = ts::errc::internal, .what = error.what()}, json, {});
  }
}
