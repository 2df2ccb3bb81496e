// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/stable_diffusion_open_options.hpp: what a caller may say about a model that is to be opened.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/core/error.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How to open a Stable Diffusion model. The defaults take what the files say.
struct open_options {
  std::string model = "auto";             ///< auto, sd1, sd2, sdxl, sdxl-refiner; must agree with the shapes
  std::string config_dir;                 ///< diffusers configurations, or an LDM yaml (the file or its folder)
  std::string vae;                        ///< an autoencoder to use instead: folder, file, or a checkpoint that has one
  std::string tokenizer_dir;              ///< vocab.json and merges.txt, or a folder with tokenizer/ (and tokenizer_2/)
  bool ema = false;                       ///< the UNet's moving averages instead of its last weights
  std::optional<std::size_t> image_size;  ///< pixels of the training images
  std::optional<std::string> prediction;  ///< "epsilon" or "v_prediction"
  std::vector<std::string> components;    ///< only these; empty: all that the family has
  std::string variant;                    ///< of folders: "fp16", "non_ema", …
};

namespace detail {

/// The models among `--components`; the two halves of the autoencoder stand for it. @fails usage
inline result<std::vector<std::string>> wanted_models(const open_options& options) {
  std::vector<std::string> out;
  for (const std::string& name : options.components) {
    const bool half = name == "vae_encoder" || name == "vae_decoder";
    if (!half && name != "text_encoder" && name != "text_encoder_2" && name != "unet" && name != "vae")
      return failure{.code = errc::usage, .what = "unknown component " + quoted(name),
                     .expected = "text_encoder, text_encoder_2, unet, vae, vae_encoder or vae_decoder"};
    const std::string model = half ? "vae" : name;
    if (std::find(out.begin(), out.end(), model) == out.end()) out.push_back(model);
  }
  return out;
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
