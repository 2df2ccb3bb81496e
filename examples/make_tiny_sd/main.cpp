// SPDX-License-Identifier: MIT
//
// make-tiny-sd: writes Stable Diffusion models with made-up weights, small ones or of published size, for demos, tests and
// benchmarks without a download.
//
//   make-tiny-sd tiny-sdxl --family sdxl --form diffusers
//   make-tiny-sd sd15.ckpt --family sd1 --form ckpt --size full
#include <cstdint>
#include <string>

#include "../common/program.hpp"
#include "write_model.hpp"

namespace {

namespace ts = tensorsmith;
using namespace make_tiny_sd;

struct options {
  std::string output, family, form, size = "tiny", dtype = "f32";
  std::uint64_t seed = 1;
  unsigned threads = 0;
  bool force = false;
};

void add_options(CLI::App& app, options& o) {
  app.add_option("OUTPUT", o.output, "folder or file to write")->required();
  app.add_option("--family", o.family, "what it is a model of")->required()
      ->check(CLI::IsMember({"sd1", "sd1-inpaint", "sd2", "sdxl", "sdxl-refiner"}));
  app.add_option("--form", o.form, "diffusers folder, or an LDM checkpoint as safetensors or as torch zip")->required()
      ->check(CLI::IsMember({"diffusers", "safetensors", "ckpt"}));
  app.add_option("--size", o.size, "tiny, or the published size")->check(CLI::IsMember({"tiny", "full"}))->capture_default_str();
  app.add_option("--dtype", o.dtype, "type of the weights")->check(CLI::IsMember({"f32", "f16"}))->capture_default_str();
  app.add_option("--seed", o.seed, "the same seed gives the same weights in every form")->capture_default_str();
  app.add_option("--threads", o.threads, "threads (0: all)")->check(CLI::Range(0, 1024))->capture_default_str();
  app.add_flag("--force", o.force, "replace OUTPUT if it exists");
}

int fail(const ts::failure& error) { return examples::fail("make-tiny-sd", error); }

int run_program(const options& o) {
  model_choice model;
  model.inpaint = o.family == "sd1-inpaint";
  model.family = model.inpaint ? ts::sd_family::sd1 : *ts::family_named(o.family);
  model.full = o.size == "full";
  model.type = o.dtype == "f16" ? ts::dtype::f16 : ts::dtype::f32;

  ts::job run;
  run.threads = o.threads;
  run.cancel = &examples::stop_requested;
  examples::progress_bar bar(true);
  run.on_progress = [&](const ts::progress& p) { bar.update(p); };
  const auto done = o.form == "diffusers" ? write_folder(model, o.seed, o.output, o.force, run)
                                          : write_checkpoint(model, o.seed, o.form == "ckpt", o.output, o.force, run);
  bar.clear();
  if (!done) return fail(done.error());
  std::string line = "Wrote " + o.output + ": " + o.size + ' ' + o.family + ", " + std::to_string(done->tensors) + " tensors, ";
  line += examples::human_count(static_cast<double>(done->parameters)) + " parameters, ";
  line += examples::human_bytes(static_cast<double>(done->bytes)) + '\n';
  const auto printed = examples::print(line);
  return printed ? 0 : fail(printed.error());
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_main<options>("make-tiny-sd", "Writes a Stable Diffusion model with made-up weights.", argc, argv, add_options, run_program);
}
