// SPDX-License-Identifier: MIT
//
// merge-checkpoints: blends Stable Diffusion models: weighted sum, add difference, spherical interpolation, by block.
//
//   merge-checkpoints a.safetensors out.safetensors --model b.safetensors --ratio 0.3
//   merge-checkpoints inpainting.ckpt out.ckpt --mode add-difference --model style.safetensors --model v1-5-folder --ratio 1
#include "../common/program.hpp"
#include "blend.hpp"
#include "options.hpp"
#include "summary.hpp"

namespace {

using namespace merge_checkpoints;

int run_program(const options& o) {
  return examples::run_conversion("merge-checkpoints", o, [&](examples::conversion_run& run) -> ts::result<summary> {
    TENSORSMITH_TRY(summary report, blend(o, run.job));
    TENSORSMITH_CHECK(examples::write_report_file(o.report, to_json(report)));
    return report;
  });
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_main<options>("merge-checkpoints", "Blends Stable Diffusion models of one family.", argc, argv, add_options, run_program);
}
