// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/pipeline_files.hpp: the small files of a pipeline folder that a single-file checkpoint lacks.
//
// Include this to write model_index.json, the scheduler's, the feature extractor's and the tokenizers' configurations with the
// values of the published pipelines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/arch/family.hpp"
#include "tensorsmith/core/json_value.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What a UNet's input channels make of a pipeline.
enum class sd_task : std::uint8_t {
  text_to_image,  ///< 4: the latents
  inpaint,        ///< 9: latents, mask, masked latents
  instruct,       ///< 8: latents, latents of the image to change
  depth,          ///< 5: latents, depth map
};

/// The task that goes with a number of input channels. Nothing: no known pipeline has it.
constexpr std::optional<sd_task> task_of_channels(std::size_t in_channels) noexcept {
  switch (in_channels) {
    case 4: return sd_task::text_to_image;
    case 9: return sd_task::inpaint;
    case 8: return sd_task::instruct;
    case 5: return sd_task::depth;
    default: return std::nullopt;
  }
}

/// The class that diffusers loads the pipeline with.
constexpr std::string_view pipeline_class(sd_family family, sd_task task) noexcept {
  if (family == sd_family::sdxl_refiner) return "StableDiffusionXLImg2ImgPipeline";
  const bool xl = family == sd_family::sdxl;
  switch (task) {
    case sd_task::inpaint: return xl ? "StableDiffusionXLInpaintPipeline" : "StableDiffusionInpaintPipeline";
    case sd_task::instruct: return xl ? "StableDiffusionXLInstructPix2PixPipeline" : "StableDiffusionInstructPix2PixPipeline";
    case sd_task::depth: return "StableDiffusionDepth2ImgPipeline";
    case sd_task::text_to_image: break;
  }
  return xl ? "StableDiffusionXLPipeline" : "StableDiffusionPipeline";
}

/// Which components there are, for model_index.json.
struct pipeline_parts {
  bool text_encoder = true, text_encoder_2 = false, unet = true, vae = true;
  bool feature_extractor = true;
};

namespace detail {
inline json_value class_entry(bool present, const char* library, const char* name) {
  if (!present) return json_value::array{nullptr, nullptr};
  return json_value::array{library, name};
}
}  // namespace detail

/// model_index.json of a pipeline of this family. Absent parts are [null, null].
inline json_value make_model_index(sd_family family, sd_task task, const pipeline_parts& parts, std::string_view scheduler) {
  json_value index;
  index.set("_class_name", pipeline_class(family, task));
  index.set("_diffusers_version", conventions_of(family).diffusers_version);
  if (is_sdxl(family)) {
    index.set("force_zeros_for_empty_prompt", family == sd_family::sdxl);
    if (family == sd_family::sdxl_refiner) index.set("requires_aesthetics_score", true);
    if (family == sd_family::sdxl && task == sd_task::inpaint) index.set("requires_aesthetics_score", false);
  } else {
    index.set("feature_extractor", detail::class_entry(parts.feature_extractor, "transformers", "CLIPImageProcessor"));
    index.set("requires_safety_checker", false);
    index.set("safety_checker", detail::class_entry(false, "", ""));
  }
  index.set("scheduler", detail::class_entry(true, "diffusers", std::string(scheduler).c_str()));
  index.set("text_encoder", detail::class_entry(parts.text_encoder, "transformers", "CLIPTextModel"));
  if (is_sdxl(family))
    index.set("text_encoder_2", detail::class_entry(parts.text_encoder_2, "transformers", "CLIPTextModelWithProjection"));
  index.set("tokenizer", detail::class_entry(parts.text_encoder, "transformers", "CLIPTokenizer"));
  if (is_sdxl(family)) index.set("tokenizer_2", detail::class_entry(parts.text_encoder_2, "transformers", "CLIPTokenizer"));
  index.set("unet", detail::class_entry(parts.unet, "diffusers", "UNet2DConditionModel"));
  index.set("vae", detail::class_entry(parts.vae, "diffusers", "AutoencoderKL"));
  return index;
}

/// What a scheduler's configuration depends on; unset members are the published values.
struct scheduler_choices {
  bool velocity = false;                       ///< prediction_type v_prediction
  bool zero_snr = false;                       ///< rescale_betas_zero_snr
  std::optional<double> beta_start, beta_end;  ///< of a yaml configuration
  std::optional<std::int64_t> timesteps;
};

/// scheduler/scheduler_config.json: PNDM for SD1 and SD2 inpainting, DDIM for SD1 inpainting and SD2, Euler for SDXL.
inline json_value make_scheduler_config(sd_family family, sd_task task, const scheduler_choices& choices) {
  const bool inpaint = task == sd_task::inpaint;
  const bool pndm = (family == sd_family::sd1 && !inpaint) || (family == sd_family::sd2 && inpaint);
  json_value config;
  config.set("_class_name", is_sdxl(family) ? "EulerDiscreteScheduler" : pndm ? "PNDMScheduler" : "DDIMScheduler");
  config.set("_diffusers_version", conventions_of(family).diffusers_version);
  config.set("beta_end", choices.beta_end.value_or(0.012));
  config.set("beta_schedule", "scaled_linear");
  config.set("beta_start", choices.beta_start.value_or(0.00085));
  config.set("clip_sample", false);
  if (is_sdxl(family)) config.set("interpolation_type", "linear");
  config.set("num_train_timesteps", choices.timesteps.value_or(1000));
  if (choices.velocity) config.set("prediction_type", "v_prediction");
  else if (is_sdxl(family) || (family == sd_family::sd2 && !inpaint)) config.set("prediction_type", "epsilon");
  if (choices.zero_snr) config.set("rescale_betas_zero_snr", true);
  if (is_sdxl(family)) config.set("sample_max_value", 1.0);
  config.set("set_alpha_to_one", false);
  config.set("skip_prk_steps", true);
  config.set("steps_offset", 1);
  if (is_sdxl(family)) config.set("timestep_spacing", "leading");
  config.set("trained_betas", nullptr);
  if (is_sdxl(family)) config.set("use_karras_sigmas", false);
  return config;
}

/// feature_extractor/preprocessor_config.json: CLIP's image statistics.
inline json_value make_preprocessor_config() {
  json_value config;
  config.set("crop_size", 224);
  config.set("do_center_crop", true);
  config.set("do_convert_rgb", true);
  config.set("do_normalize", true);
  config.set("do_resize", true);
  config.set("feature_extractor_type", "CLIPFeatureExtractor");
  config.set("image_mean", json_value::array{0.48145466, 0.4578275, 0.40821073});
  config.set("image_std", json_value::array{0.26862954, 0.26130258, 0.27577711});
  config.set("resample", 3);
  config.set("size", 224);
  return config;
}

/// The token that pads a prompt: the end marker for CLIP-L, "!" for the OpenCLIP encoders of SD2 and SDXL.
constexpr std::string_view pad_token(sd_family family, bool second) noexcept {
  return family == sd_family::sd2 || second ? "!" : "<|endoftext|>";
}

/// tokenizer_config.json of a CLIP tokenizer.
inline json_value make_tokenizer_config(std::string_view pad) {
  json_value config;
  config.set("add_prefix_space", false);
  config.set("bos_token", "<|startoftext|>");
  config.set("do_lower_case", true);
  config.set("eos_token", "<|endoftext|>");
  config.set("errors", "replace");
  config.set("model_max_length", 77);
  config.set("pad_token", pad);
  config.set("tokenizer_class", "CLIPTokenizer");
  config.set("unk_token", "<|endoftext|>");
  return config;
}

/// special_tokens_map.json of a CLIP tokenizer.
inline json_value make_special_tokens_map(std::string_view pad) {
  json_value map;
  map.set("bos_token", "<|startoftext|>");
  map.set("eos_token", "<|endoftext|>");
  map.set("pad_token", pad);
  map.set("unk_token", "<|endoftext|>");
  return map;
}

TENSORSMITH_END_NAMESPACE
