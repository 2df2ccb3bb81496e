// SPDX-License-Identifier: MIT
//
// common/model_options.hpp: what may be said about a Stable Diffusion model that is opened.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "tensorsmith/arch/stable_diffusion_open_options.hpp"

namespace examples {

struct model_options {
  std::string model = "auto";
  std::string config, tokenizer;  // empty: none given
  std::string prediction_type;    // empty: from the evidence
  bool ema = false;
};

/// `group`: the heading in --help.
inline void add_model_options(CLI::App& app, model_options& o, const std::string& group) {
  app.add_option("--model", o.model, "what SOURCE is, if the shapes shall not decide")
      ->check(CLI::IsMember({"auto", "sd1", "sd2", "sdxl", "sdxl-refiner"}))->capture_default_str()->group(group);
  app.add_option("--config", o.config, "folder with diffusers configs (or an LDM yaml) that overrides what is derived")->group(group);
  app.add_option("--tokenizer", o.tokenizer, "folder with tokenizer files (vocab.json, merges.txt; or tokenizer/, tokenizer_2/)")->group(group);
  app.add_flag("--ema", o.ema, "use the EMA weights of a checkpoint")->group(group);
  app.add_option("--prediction-type", o.prediction_type, "epsilon or v_prediction, if the evidence shall not decide")
      ->check(CLI::IsMember({"epsilon", "v_prediction"}))->group(group);
}

inline tensorsmith::open_options opening_of(const model_options& o) {
  tensorsmith::open_options out;
  out.model = o.model;
  out.config_dir = o.config;
  out.tokenizer_dir = o.tokenizer;
  out.ema = o.ema;
  if (!o.prediction_type.empty()) out.prediction = o.prediction_type;
  return out;
}

}  // namespace examples
