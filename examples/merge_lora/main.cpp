// SPDX-License-Identifier: MIT
//
// merge-lora: merges adapters of the LoRA family into a checkpoint or a diffusers folder.
//
//   merge-lora v1-5-pruned.safetensors merged.safetensors --lora style.safetensors:0.8
//   merge-lora sdxl-folder merged --lora first.safetensors:1 --lora second.safetensors:0.5:0
#include "../common/program.hpp"
#include "merge.hpp"
#include "options.hpp"
#include "summary.hpp"

namespace {

using namespace merge_lora;

int run_program(const options& o) {
  return examples::run_conversion("merge-lora", o, [&](examples::conversion_run& run) -> ts::result<summary> {
    TENSORSMITH_TRY(summary report, merge(o, run.job));
    TENSORSMITH_CHECK(write_report_file(o, report));
    return report;
  });
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_main<options>("merge-lora", "Merges LoRA adapters into a Stable Diffusion model.", argc, argv, add_options, run_program);
}
