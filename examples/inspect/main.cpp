// SPDX-License-Identifier: MIT
//
// inspect: what a file or folder of weights is, without loading it.
//
//   inspect model.safetensors
//   inspect stable-diffusion-v1-5 --json
#include "../common/program.hpp"
#include "look.hpp"
#include "options.hpp"
#include "print.hpp"

namespace {

using namespace inspect;

int run_program(const options& o) {
  ts::job run = examples::job_of(o);
  const auto found = look(o, run);
  if (!o.quiet) examples::print_warnings("inspect", run.notes);
  if (!found) return examples::fail("inspect", found.error(), o.json, run.notes);
  const auto printed = o.json ? print_json(*found, run.notes) : examples::print(to_text(*found, run.notes, o.limit));
  return printed ? 0 : examples::fail("inspect", printed.error());
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_main<options>("inspect", "Tells what a file or folder of weights is, without loading it.", argc, argv, add_options,
                                     run_program);
}
