// SPDX-License-Identifier: MIT
//
// merge_checkpoints/options.hpp: the command line of merge-checkpoints as plain data.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "../common/adapter_options.hpp"
#include "../common/base_program.hpp"
#include "tensorsmith/arch/blend_checkpoints.hpp"

namespace merge_checkpoints {

namespace ts = tensorsmith;
using examples::usage_error;

struct options : examples::base_options {
  std::vector<std::string> models;
  std::string mode = "weighted-sum", ratio = "0.5", text_encoder_ratio, block_weights;
  std::string vae = "blend", nonfinite = "error";
  bool normalize = false, allow_missing = false, strict = false;
};

inline ts::blend_mode mode_of(const options& o) {
  return o.mode == "slerp" ? ts::blend_mode::slerp : o.mode == "add-difference" ? ts::blend_mode::add_difference : ts::blend_mode::weighted_sum;
}

/// The ratio or the weights that --ratio means: one number for the one other model (or the difference), one a model (the base gets the rest),
/// or one a model and one more, the base's, in front. @fails usage
inline ts::result<void> read_ratio(const options& o, ts::blend_options& out) {
  TENSORSMITH_TRY(std::vector<double> list, examples::parse_numbers("--ratio", o.ratio));
  const bool sum = out.mode == ts::blend_mode::weighted_sum;
  if (list.size() == 1 && (!sum || o.models.size() == 1) && !o.normalize) {
    out.ratio = list[0];
    return {};
  }
  if (!sum) return usage_error("--ratio takes one number with --mode " + o.mode);
  if (list.size() == o.models.size() && !o.normalize) {
    double rest = 1;
    for (const double share : list) rest -= share;
    if (rest < -1e-6)
      return usage_error("the shares of --ratio sum to more than 1, so that nothing is left of BASE",
                         "correct --ratio, or pass one number more, BASE's in front, and --normalize");
    list.insert(list.begin(), rest < 0 ? 0 : rest);
  }
  if (list.size() != o.models.size() + 1)
    return usage_error("--ratio has " + examples::counted(list.size(), "number") + " for " + examples::counted(o.models.size(), "model") +
                           " beside BASE",
                       o.normalize ? "pass one for every model, BASE's in front" : "pass one for every --model, or one more, BASE's in front");
  out.weights = std::move(list);
  return {};
}

/// What the command line says about the blend. @fails usage
inline ts::result<ts::blend_options> blend_options_of(const options& o) {
  ts::blend_options out;
  out.mode = mode_of(o);
  TENSORSMITH_CHECK(read_ratio(o, out));
  if (!o.text_encoder_ratio.empty()) {
    const auto value = examples::number_of(o.text_encoder_ratio);
    if (!value) return usage_error("--text-encoder-ratio: " + ts::quoted(o.text_encoder_ratio) + " is no number");
    out.text_encoder = *value;
  }
  if (!o.block_weights.empty()) {
    TENSORSMITH_TRY(out.blocks, examples::parse_block_weights(o.block_weights));
  }
  out.normalize = o.normalize;
  out.vae = o.vae == "base" ? ts::blend_vae::base : o.vae == "other" ? ts::blend_vae::other : ts::blend_vae::blend;
  out.allow_missing = out.allow_extra = o.allow_missing;
  out.strict = o.strict;
  out.to = examples::dtype_of(o.cast);
  out.overflow = examples::overflow_of(o.cast);
  out.keep_nonfinite = o.nonfinite == "keep";
  return out;
}

/// Describes all options on `app`; values land in `o` when it parses.
inline void add_options(CLI::App& app, options& o) {
  app.add_option("BASE", o.base, "checkpoint (safetensors or torch), diffusers folder or ONNX folder: A")->required();
  app.add_option("OUTPUT", o.output, "what to write, in the form of BASE")->required();
  app.add_option("--model", o.models, "another model of the same family, in any form; repeated: B, C, …")
      ->required()->allow_extra_args(false)->type_name("MODEL");
  app.add_option("--mode", o.mode, "(1 − R)·A + R·B; A + R·(B − C); or from A to B along an arc")
      ->check(CLI::IsMember({"weighted-sum", "add-difference", "slerp"}))->capture_default_str();
  app.add_option("--ratio", o.ratio,
                 "R; a weighted sum of several models takes one number each, comma-separated (BASE gets the rest), or BASE's as well, in front")
      ->type_name("R[,R…]")->capture_default_str();
  app.add_flag("--normalize", o.normalize, "divide the numbers of --ratio, BASE's in front, by their sum");
  app.add_option("--block-weights", o.block_weights,
                 "factors of the ratio by block, comma-separated: 26 (or 17) numbers for SD1 and SD2, 20 (or 12) for SDXL; the first is the factor "
                 "of everything but the UNet")
      ->type_name("W,W,…");
  app.add_option("--text-encoder-ratio", o.text_encoder_ratio, "the ratio of the text encoders, whatever --ratio and --block-weights say")
      ->type_name("R");
  app.add_option("--vae", o.vae, "the autoencoder: blend it, keep BASE's, or take that of the first other model")
      ->check(CLI::IsMember({"blend", "base", "other"}))->capture_default_str();
  app.add_flag("--allow-missing", o.allow_missing,
               "keep BASE's tensors that another model lacks, leave out those that BASE lacks, and list both");
  app.add_flag("--strict", o.strict, "other prediction types, and integer tensors that differ, are errors");
  app.add_option("--nonfinite", o.nonfinite, "infinite and NaN weights end the run (error) or are blended as they are (keep)")
      ->check(CLI::IsMember({"error", "keep"}))->capture_default_str();
  examples::add_base_options(app, o, "element type of the output's floating-point tensors; blended ones are rounded to it once", "--family",
                             "also write the JSON report, with what became of every tensor, to this file");
}

}  // namespace merge_checkpoints
