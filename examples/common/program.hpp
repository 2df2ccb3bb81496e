// SPDX-License-Identifier: MIT
//
// common/program.hpp: what `main` of every program does around its work: streams, signals, command line, errors, the report.
#pragma once

#include <chrono>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "process.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "run_options.hpp"
#include "tensorsmith/io/json.hpp"

namespace examples {

/// The error as a line on standard error and, with `json`, as the document. Returns the exit status.
inline int fail(const char* program, const ts::failure& error, bool json = false, const std::vector<ts::note>& notes = {}) {
  std::fprintf(stderr, "%s: %s\n", program, error.message().c_str());
  if (json) (void)print(ts::write_json(failure_document(error, notes)) + '\n');
  return exit_status(error);
}

inline void print_warnings(const char* program, const std::vector<ts::note>& notes) {
  for (const ts::note& n : notes)
    if (n.severity == ts::note::level::warning) std::fprintf(stderr, "%s: warning: %s\n", program, note_line(n).c_str());
}

/// Parses the command line that `add` describes and calls `work(options)`, whose value is the exit status.
template <class Options, class Add, class Work>
int run_main(const char* program, const char* description, int argc, char** argv, Add add, Work work) {
  open_standard_streams();
  install_signal_handlers();
  CLI::App app(description, program);
  Options o;
  add(app, o);
  const parsed outcome = parse(app, argc, argv);
  if (outcome.help) return print(*outcome.help) ? 0 : ts::exit_code(ts::errc::io);
  bool json = false;  // a command line that does not parse may still have asked for a document
  for (int i = 1; i < argc; ++i) json = json || std::string_view(argv[i]) == "--json";
  if (!outcome.outcome) return fail(program, outcome.outcome.error(), json);
  try {
    return work(o);
  } catch (const std::bad_alloc&) {
    return fail(program, {.code = ts::errc::limit, .what = "out of memory", .advice = "lower --memory or --threads"}, json);
  } catch (const std::exception& error) {
    return fail(program, {.code = ts::errc::internal, .what = error.what()}, json);
  }
}

/// What a conversion is given to work with.
struct conversion_run {
  ts::job job;
  memory_watch memory;
  bool talkative = false;  // lines about the plan belong on standard error
};

/// Runs `convert(conversion_run&) -> result<Report>` with a progress bar and prints what came of it: the warnings, then the error or
/// the report (`to_text`, `to_json`; Report derives from run_report). Returns the exit status.
template <class Convert>
int run_conversion(const char* program, const run_options& o, Convert convert) {
  const auto begin = std::chrono::steady_clock::now();
  conversion_run run{.job = job_of(o), .memory = {}, .talkative = false};
  progress_bar bar(!o.quiet && !o.json);
  run.talkative = !o.quiet && !o.json && !bar.visible();
  run.job.on_progress = [&](const ts::progress& p) { run.memory.sample(), bar.update(p); };
  auto report = convert(run);
  bar.clear();
  print_warnings(program, run.job.notes);
  if (!report) return fail(program, report.error(), o.json, run.job.notes);

  report->notes = run.job.notes;
  report->peak = run.memory.finish();
  report->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ts::result<void> printed;
  if (o.json) printed = print(ts::write_json(to_json(*report)) + '\n');
  else if (!o.quiet) printed = print(to_text(*report));
  return printed ? 0 : fail(program, printed.error());
}

}  // namespace examples
