// SPDX-License-Identifier: MIT
//
// convert-weights: weights from any container into another, cast, pruned, selected, sharded.
//
//   convert-weights v1-5-pruned.ckpt v1-5.safetensors --dtype f16 --prune all
//   convert-weights model.safetensors model --to diffusers --tokenizer clip-tokenizer
//   convert-weights model model-sharded --to safetensors --shard-size 5GB
#include "../common/program.hpp"
#include "convert.hpp"
#include "options.hpp"
#include "summary.hpp"

namespace {

using namespace convert_weights;

int run_program(const options& o) {
  return examples::run_conversion("convert-weights", o, [&](examples::conversion_run& run) -> ts::result<summary> {
    TENSORSMITH_CHECK(check_options(o));
    return convert(o, run.job);
  });
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_main<options>("convert-weights", "Converts weights from any container into another.", argc, argv, add_options, run_program);
}
