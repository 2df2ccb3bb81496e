// SPDX-License-Identifier: MIT
//
// sd-to-onnx: turns a Stable Diffusion model (diffusers folder, .safetensors or .ckpt) into an ONNX pipeline folder.
//
//   sd-to-onnx v1-5-pruned.safetensors out --tokenizer clip-tokenizer
//   sd-to-onnx sdxl-folder out --dtype f16
//   sd-to-onnx sd15-folder sd15-folder --weights in-place
#include <cstdio>

#include "../common/program.hpp"
#include "convert.hpp"
#include "options.hpp"
#include "summary.hpp"

namespace {

using namespace sd_to_onnx;

int run_program(const options& o) {
  return examples::run_conversion("sd-to-onnx", o, [&](examples::conversion_run& run) -> ts::result<summary> {
    const auto planned = [&](const summary& plan) {
      run.memory.sample();
      if (!run.talkative) return;
      for (const component_summary& part : plan.components) std::fprintf(stderr, "%s\n", component_line(part).c_str());
    };
    TENSORSMITH_CHECK(check_options(o));
    return convert(o, run.job, planned);
  });
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_main<options>("sd-to-onnx", "Turns a Stable Diffusion model into an ONNX pipeline folder.", argc, argv, add_options,
                                     run_program);
}
