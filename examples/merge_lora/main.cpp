// SPDX-License-Identifier: MIT
//
// merge-lora: merges adapters of the LoRA family into a checkpoint, a diffusers folder or an ONNX folder, or into one adapter.
//
//   merge-lora v1-5-pruned.safetensors merged.safetensors --lora style.safetensors:0.8
//   merge-lora sdxl-folder merged --lora first.safetensors:1 --lora second.safetensors:0.5:0
//   merge-lora first.safetensors:0.8 both.safetensors --lora second.safetensors:0.4
#include "../common/program.hpp"
#include "combine.hpp"
#include "merge.hpp"
#include "options.hpp"
#include "summary.hpp"
#include "upl.hpp"

namespace {

using namespace merge_lora;

int run_program(const options& o) {
  const ts::result<bool> combining = wants_combination(o);
  if (!combining) return examples::fail("merge-lora", combining.error(), o.json);
  if (*combining)
    return examples::run_conversion("merge-lora", o, [&](examples::conversion_run& run) -> ts::result<combination> {
      TENSORSMITH_TRY(combination report, combine(o, run.job));
      TENSORSMITH_CHECK(examples::write_report_file(o.report, to_json(report)));
      return report;
    });
  return examples::run_conversion("merge-lora", o, [&](examples::conversion_run& run) -> ts::result<summary> {
    TENSORSMITH_TRY(summary report, is_upl(o) ? merge_as_upl(o, run.job) : merge(o, run.job));
    TENSORSMITH_CHECK(examples::write_report_file(o.report, to_json(report)));
    return report;
  });
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_main<options>("merge-lora", "Merges LoRA adapters into a Stable Diffusion model.", argc, argv, add_options, run_program);
}
