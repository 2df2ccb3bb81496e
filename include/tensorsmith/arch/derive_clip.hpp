// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/derive_clip.hpp: the configuration of a CLIP text encoder from the shapes of its weights.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/derive_unet.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The structure of a CLIP text encoder as far as shapes tell it.
struct clip_shape {
  std::size_t vocabulary = 0, positions = 0, width = 0, intermediate = 0, layers = 0;
  std::optional<std::size_t> projection;  ///< rows of text_projection, if it has one
  bool operator==(const clip_shape&) const = default;
};

/// Reads the structure of a text encoder from weights with transformers names. @fails mismatch
inline result<clip_shape> clip_shape_of(const catalog& weights) {
  detail::shape_reader read(weights);
  clip_shape out;
  out.vocabulary = read.extent("text_model.embeddings.token_embedding.weight", 0);
  out.width = read.extent("text_model.embeddings.token_embedding.weight", 1);
  out.positions = read.extent("text_model.embeddings.position_embedding.weight", 0);
  out.layers = read.count("text_model.encoder.layers.", ".mlp.fc1.weight");
  out.intermediate = read.extent("text_model.encoder.layers.0.mlp.fc1.weight", 0);
  read.agree(out.width, "the width of the token embedding", read.extent("text_model.encoder.layers.0.self_attn.q_proj.weight", 0),
             "that of the first layer");
  if (read.has("text_projection.weight")) {
    out.projection = read.extent("text_projection.weight", 0);
    read.agree(out.width, "the width of the text encoder", read.extent("text_projection.weight", 1), "that of text_projection");
  }
  TENSORSMITH_CHECK(read.outcome());
  return out;
}

/// The activations of the two kinds of text encoders: CLIP-L's approximation, OpenCLIP's exact function.
enum class clip_activation : std::uint8_t { quick_gelu, gelu };

/// The config.json of a text encoder. `torch_type` is what it records as the type of its weights ("float16").
/// @fails mismatch if the width leaves the number of heads open.
inline result<derived_config> derive_clip_config(const std::string& component, const clip_shape& shape, clip_activation activation,
                                                 std::string_view torch_type) {
  if (shape.width % 64 != 0)
    return failure{.code = errc::mismatch, .what = "the number of attention heads is open: the width is no multiple of 64",
                   .place = component, .found = std::to_string(shape.width),
                   .advice = "pass --config DIR with a configuration that tells num_attention_heads"};
  const bool quick = activation == clip_activation::quick_gelu;
  // SD2's configuration names a projection that its network does not have: 512, half the width.
  const std::size_t projection = shape.projection.value_or(quick ? shape.width : shape.width / 2);
  json_value config;
  config.set("architectures", json_value::array{shape.projection ? "CLIPTextModelWithProjection" : "CLIPTextModel"});
  config.set("attention_dropout", 0.0);
  config.set("bos_token_id", 0);
  config.set("dropout", 0.0);
  // With 2, transformers pools at the largest id of a prompt; that is the end marker only as long as no token was added behind it.
  constexpr std::size_t published = 49408;
  config.set("eos_token_id", shape.vocabulary > published ? detail::integer(published - 1) : 2);
  config.set("hidden_act", quick ? "quick_gelu" : "gelu");
  config.set("hidden_size", detail::integer(shape.width));
  config.set("initializer_factor", 1.0);
  config.set("initializer_range", 0.02);
  config.set("intermediate_size", detail::integer(shape.intermediate));
  config.set("layer_norm_eps", 1e-5);
  config.set("max_position_embeddings", detail::integer(shape.positions));
  config.set("model_type", "clip_text_model");
  config.set("num_attention_heads", detail::integer(shape.width / 64));
  config.set("num_hidden_layers", detail::integer(shape.layers));
  config.set("pad_token_id", 1);
  config.set("projection_dim", detail::integer(projection));
  config.set("torch_dtype", torch_type);
  config.set("vocab_size", detail::integer(shape.vocabulary));
  const clip_shape clip_l{49408, 77, 768, 3072, 12, {}}, vit_h{49408, 77, 1024, 4096, 23, {}}, big_g{49408, 77, 1280, 5120, 32, 1280};
  std::vector<evidence> findings;
  if ((quick && shape == clip_l) || (!quick && (shape == vit_h || shape == big_g))) {
    findings.push_back({component, shape == clip_l ? "CLIP ViT-L/14" : shape == vit_h ? "OpenCLIP ViT-H/14" : "OpenCLIP ViT-bigG/14",
                        "its structure is exactly the published one"});
  } else {
    findings.push_back({component + ".hidden_size", std::to_string(shape.width), "width of the token embedding"});
    findings.push_back({component + ".num_hidden_layers", std::to_string(shape.layers), "layers in the file"});
    findings.push_back({component + ".num_attention_heads", std::to_string(shape.width / 64), "convention: heads of 64"});
    findings.push_back({component + ".hidden_act", quick ? "quick_gelu" : "gelu",
                        quick ? "convention of CLIP text encoders" : "convention of OpenCLIP text encoders"});
  }
  return derived_config{std::move(config), std::move(findings)};
}

TENSORSMITH_END_NAMESPACE
