// SPDX-License-Identifier: MIT
//
// make_tiny_sd/model_configs.hpp: the configuration files of made-up pipelines: published sizes, or the same made small.
//
// Tiny models keep what the families differ in (heads, projections, embeddings, which blocks attend) and shrink the rest:
// channels to multiples of 32 (64 where heads are 64 wide), two or three levels, one resnet a block.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "synthetic_tokenizer.hpp"
#include "tensorsmith/arch/derive_config.hpp"
#include "tensorsmith/arch/family.hpp"
#include "tensorsmith/arch/pipeline_files.hpp"
#include "tensorsmith/core/dtype.hpp"

namespace make_tiny_sd {

namespace ts = tensorsmith;

struct model_choice {
  ts::sd_family family = ts::sd_family::sd1;
  bool inpaint = false;
  bool full = false;  // published sizes
  ts::dtype type = ts::dtype::f32;

  ts::sd_task task() const { return inpaint ? ts::sd_task::inpaint : ts::sd_task::text_to_image; }
  bool has_first_encoder() const { return family != ts::sd_family::sdxl_refiner; }
  bool has_second_encoder() const { return ts::is_sdxl(family); }
  std::size_t vocabulary() const { return full ? 49408 : 600; }
  std::size_t image_size() const { return full ? ts::conventions_of(family).image_size : 32; }
};

/// A component that has weights: folder name, configuration.
struct component_plan {
  std::string name;
  ts::json_value config;
};

namespace detail {

/// A published shape with one resnet a block instead of two.
inline ts::unet_shape thinner(ts::unet_shape shape) {
  shape.layers_per_block = 1;
  for (auto* half : {&shape.down, &shape.up})
    for (ts::unet_level& level : *half)
      if (!level.depth.empty()) level.depth.pop_back();
  return shape;
}

/// Widths of the text encoders: CLIP-L or ViT-H, bigG. Tiny ones differ, so that a mix-up shows.
inline std::size_t width_of(const model_choice& m, bool second) {
  if (second) return m.full ? 1280 : m.family == ts::sd_family::sdxl ? 128 : 64;
  return !m.full ? 64 : m.family == ts::sd_family::sd2 ? 1024 : 768;
}

inline ts::unet_shape unet_shape_for(const model_choice& m) {
  ts::unet_shape shape;
  const std::size_t first = width_of(m, false), second = width_of(m, true);
  if (m.full) {
    shape = ts::published_unet_shape(m.family);
  } else {
    switch (m.family) {
      case ts::sd_family::sd1: shape = ts::make_unet_shape({32, 64, 64}, {1, 1, 0}, 1, first, false, {}); break;
      case ts::sd_family::sd2: shape = ts::make_unet_shape({64, 128}, {1, 0}, 1, first, true, {}); break;
      case ts::sd_family::sdxl:
        shape = ts::make_unet_shape({64, 128}, {0, 2}, 2, first + second, true, second + 6 * 256);
        break;
      case ts::sd_family::sdxl_refiner:
        shape = ts::make_unet_shape({64, 128, 128}, {0, 2, 0}, 2, second, true, second + 5 * 256);
        break;
    }
    shape = thinner(std::move(shape));
  }
  if (m.inpaint) shape.in_channels = 9;
  return shape;
}

inline ts::result<ts::json_value> text_config(const model_choice& m, bool second) {
  const bool vit_h = m.family == ts::sd_family::sd2;
  ts::clip_shape shape;
  shape.vocabulary = m.vocabulary();
  shape.positions = 77;
  shape.width = width_of(m, second);
  shape.intermediate = 4 * shape.width;
  shape.layers = !m.full ? 2 : second ? 32 : vit_h ? 23 : 12;
  if (second) shape.projection = shape.width;
  const auto activation = second || vit_h ? ts::clip_activation::gelu : ts::clip_activation::quick_gelu;
  TENSORSMITH_TRY(auto derived, ts::derive_clip_config(second ? "text_encoder_2" : "text_encoder", shape, activation,
                                                       m.type == ts::dtype::f16 ? "float16" : "float32"));
  return std::move(derived.config);
}

inline ts::result<ts::json_value> unet_config(const model_choice& m, std::size_t latent_size) {
  ts::unet_choices choices;
  choices.sample_size = latent_size;
  if (m.family == ts::sd_family::sd2) choices.upcast_attention = true;
  TENSORSMITH_TRY(auto derived, ts::derive_unet_config(unet_shape_for(m), m.family, choices));
  return std::move(derived.config);
}

}  // namespace detail

/// The components with weights: text encoders, unet, vae.
inline ts::result<std::vector<component_plan>> plan_components(const model_choice& m) {
  std::vector<component_plan> plans;
  for (const bool second : {false, true}) {
    if (second ? !m.has_second_encoder() : !m.has_first_encoder()) continue;
    TENSORSMITH_TRY(auto config, detail::text_config(m, second));
    plans.push_back({second ? "text_encoder_2" : "text_encoder", std::move(config)});
  }
  ts::vae_shape vae;
  vae.layers_per_block = m.full ? 2 : 1;
  vae.channels = m.full ? std::vector<std::size_t>{128, 256, 512, 512} : std::vector<std::size_t>{32, 64};
  TENSORSMITH_TRY(auto unet, detail::unet_config(m, m.image_size() / vae.scale()));
  TENSORSMITH_TRY(auto derived, ts::derive_vae_config(vae, m.family, m.image_size()));
  plans.push_back({"unet", std::move(unet)});
  plans.push_back({"vae", std::move(derived.config)});
  return plans;
}

/// Everything in a diffusers folder that is no component with weights.
inline std::vector<text_file> plan_side_files(const model_choice& m) {
  ts::scheduler_choices schedule;
  schedule.velocity = m.family == ts::sd_family::sd2;
  const ts::json_value scheduler = ts::make_scheduler_config(m.family, m.task(), schedule);
  ts::pipeline_parts parts;
  parts.text_encoder = m.has_first_encoder();
  parts.text_encoder_2 = m.has_second_encoder();
  parts.feature_extractor = !ts::is_sdxl(m.family);

  std::vector<text_file> files;
  files.push_back({"model_index.json", ts::make_model_index(m.family, m.task(), parts, *scheduler.find("_class_name")->as_string())});
  files.push_back({"scheduler/scheduler_config.json", scheduler});
  if (parts.feature_extractor) files.push_back({"feature_extractor/preprocessor_config.json", ts::make_preprocessor_config()});
  for (const bool second : {false, true}) {
    if (second ? !m.has_second_encoder() : !m.has_first_encoder()) continue;
    for (text_file& file : synthetic_tokenizer(second ? "tokenizer_2" : "tokenizer", m.vocabulary(), ts::pad_token(m.family, second)))
      files.push_back(std::move(file));
  }
  return files;
}

}  // namespace make_tiny_sd
