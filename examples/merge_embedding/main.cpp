// SPDX-License-Identifier: MIT
//
// merge-embedding: adds Textual Inversion embeddings to a checkpoint, a diffusers folder or an ONNX folder.
//
//   merge-embedding stable-diffusion-v1-5 with-cat --embedding learned_embeds.safetensors
//   merge-embedding sdxl-onnx with-style --embedding style.safetensors:<style>:0.8 --rule onnx-web
#include "../common/program.hpp"
#include "merge.hpp"
#include "options.hpp"
#include "summary.hpp"

namespace {

using namespace merge_embedding;

int run_program(const options& o) {
  return examples::run_conversion("merge-embedding", o, [&](examples::conversion_run& run) -> ts::result<summary> {
    TENSORSMITH_TRY(summary report, merge(o, run.job));
    TENSORSMITH_CHECK(examples::write_report_file(o.report, to_json(report)));
    return report;
  });
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_main<options>("merge-embedding", "Adds Textual Inversion embeddings to a Stable Diffusion model.",
                                    argc, argv, add_options, run_program);
}
