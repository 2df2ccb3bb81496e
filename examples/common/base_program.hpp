// SPDX-License-Identifier: MIT
//
// common/base_program.hpp: what the programs that change a model share: BASE, OUTPUT, how to write, and the beginning of a run.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "base_model.hpp"
#include "report.hpp"
#include "run_options.hpp"

namespace examples {

struct base_options : run_options {
  std::string base, output;
  std::string family = "auto", report;
  cast_options cast;
  bool verify = false;
};

/// The options after those of the program itself. `family_option`: --model, where that is not something else.
inline void add_base_options(CLI::App& app, base_options& o, const std::string& dtype_help, const std::string& family_option, const std::string& report_help) {
  add_dtype_option(app, o.cast, {"f32", "f16", "bf16"}, dtype_help);
  add_overflow_option(app, o.cast);
  app.add_option(family_option, o.family, "what BASE is, if the shapes shall not decide")
      ->check(CLI::IsMember({"auto", "sd1", "sd2", "sdxl", "sdxl-refiner"}))->capture_default_str();
  app.add_option("--report", o.report, report_help)->type_name("FILE.json");
  app.add_flag("--verify-output", o.verify, "read the output again and compare every byte before it is published");
  add_run_options(app, o);
  add_limit_options(app, o);
}

struct base_report : run_report {
  std::string family, form;
  std::uint64_t tensors = 0;  // written
};

inline ts::open_options opening_of(const base_options& o) {
  ts::open_options out;
  out.model = o.family;
  return out;
}

inline base_output output_of(const base_options& o) { return {{o.force, o.verify, o.dry_run}, o.cast}; }

/// Opens BASE and begins the report. `others`: files that are read beside BASE. @fails usage, path, and as open_base
inline ts::result<base_model> begin(const base_options& o, const std::vector<std::string>& others, base_report& report, ts::job& run) {
  report.source = o.base, report.output = o.output, report.dry_run = o.dry_run;
  TENSORSMITH_CHECK(check_run_options(o));
  TENSORSMITH_CHECK(check_base_output(o.base, o.output, o.force, o.report, others));
  TENSORSMITH_TRY(base_model base, open_base(o.base, opening_of(o), run));
  TENSORSMITH_CHECK(check_base_cast(base, o.cast));
  report.family = base.model.family;
  report.form = name_of(base.form);
  report.findings = base.model.findings;
  return base;
}

/// "BASE (sd1)", "OUTPUT (torch)".
inline std::string source_text(const base_report& report) { return report.source + (report.family.empty() ? "" : " (" + report.family + ")"); }
inline std::string output_text(const base_report& report) { return report.output + " (" + report.form + ")"; }

/// `done`: the status of a run that is no plan.
inline void set_base(ts::json_value& out, const base_report& report, const std::string& done) {
  out.set("status", report.dry_run ? "planned" : done);
  for (const auto& [key, text] : {std::pair("source", &report.source), std::pair("output", &report.output), std::pair("form", &report.form),
                                  std::pair("family", &report.family)})
    out.set(key, *text);
}

}  // namespace examples
