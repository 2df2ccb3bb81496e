// SPDX-License-Identifier: MIT
//
// arch/published_configs.hpp: the configurations of the published models, as far as they matter for their graphs.
#pragma once

#include <initializer_list>
#include <utility>

#include "tensorsmith/core/json_value.hpp"

namespace arch_test {

namespace ts = tensorsmith;
using json = ts::json_value;

inline json list(std::initializer_list<int> values) {
  json::array out;
  for (const int v : values) out.emplace_back(v);
  return out;
}
inline json words(std::initializer_list<const char*> values) {
  json::array out;
  for (const char* v : values) out.emplace_back(v);
  return out;
}

inline constexpr const char *D = "DownBlock2D", *CA = "CrossAttnDownBlock2D", *U = "UpBlock2D", *CU = "CrossAttnUpBlock2D";

inline json unet_sd1() {
  return json::object{{"_class_name", "UNet2DConditionModel"}, {"act_fn", "silu"}, {"attention_head_dim", 8},
                      {"block_out_channels", list({320, 640, 1280, 1280})}, {"center_input_sample", false}, {"cross_attention_dim", 768},
                      {"down_block_types", words({CA, CA, CA, D})}, {"downsample_padding", 1}, {"flip_sin_to_cos", true}, {"freq_shift", 0},
                      {"in_channels", 4}, {"layers_per_block", 2}, {"mid_block_scale_factor", 1}, {"norm_eps", 1e-5}, {"norm_num_groups", 32},
                      {"out_channels", 4}, {"sample_size", 64}, {"up_block_types", words({U, CU, CU, CU})}};
}
inline json unet_sd2() {
  json out = unet_sd1();
  out.set("attention_head_dim", list({5, 10, 20, 20}));
  out.set("cross_attention_dim", 1024);
  out.set("use_linear_projection", true);
  out.set("upcast_attention", true);
  out.set("dual_cross_attention", false);
  out.set("only_cross_attention", false);
  out.set("num_class_embeds", nullptr);
  return out;
}
inline json unet_sdxl() {
  json out = unet_sd2();
  out.set("attention_head_dim", list({5, 10, 20}));
  out.set("block_out_channels", list({320, 640, 1280}));
  out.set("cross_attention_dim", 2048);
  out.set("down_block_types", words({D, CA, CA}));
  out.set("up_block_types", words({CU, CU, U}));
  out.set("transformer_layers_per_block", list({1, 2, 10}));
  out.set("upcast_attention", nullptr);
  out.set("mid_block_type", "UNetMidBlock2DCrossAttn");
  out.set("addition_embed_type", "text_time");
  out.set("addition_time_embed_dim", 256);
  out.set("projection_class_embeddings_input_dim", 2816);
  return out;
}
inline json unet_refiner() {
  json out = unet_sdxl();
  out.set("attention_head_dim", list({6, 12, 24, 24}));
  out.set("block_out_channels", list({384, 768, 1536, 1536}));
  out.set("cross_attention_dim", 1280);
  out.set("down_block_types", words({D, CA, CA, D}));
  out.set("up_block_types", words({U, CU, CU, U}));
  out.set("transformer_layers_per_block", 4);
  out.set("projection_class_embeddings_input_dim", 2560);
  return out;
}
inline json unet_x4_upscaler() {
  json out = unet_sd2();
  out.set("attention_head_dim", 8);
  out.set("block_out_channels", list({256, 512, 512, 1024}));
  out.set("down_block_types", words({D, CA, CA, CA}));
  out.set("up_block_types", words({CU, CU, CU, U}));
  out.set("in_channels", 7);
  out.set("num_class_embeds", 1000);
  out.set("only_cross_attention", json::array{true, true, true, false});
  return out;
}

inline json vae() {
  const char *down = "DownEncoderBlock2D", *up = "UpDecoderBlock2D";
  return json::object{{"_class_name", "AutoencoderKL"}, {"act_fn", "silu"}, {"block_out_channels", list({128, 256, 512, 512})},
                      {"down_block_types", words({down, down, down, down})}, {"in_channels", 3}, {"latent_channels", 4},
                      {"layers_per_block", 2}, {"norm_num_groups", 32}, {"out_channels", 3}, {"sample_size", 512},
                      {"up_block_types", words({up, up, up, up})}};
}

inline json clip(const char* architecture, int width, int layers, int heads, const char* act, int projection) {
  return json::object{{"architectures", words({architecture})}, {"eos_token_id", 2}, {"hidden_act", act}, {"hidden_size", width},
                      {"intermediate_size", 4 * width}, {"layer_norm_eps", 1e-5}, {"max_position_embeddings", 77},
                      {"model_type", "clip_text_model"}, {"num_attention_heads", heads}, {"num_hidden_layers", layers},
                      {"projection_dim", projection}, {"vocab_size", 49408}};
}
inline json clip_l() { return clip("CLIPTextModel", 768, 12, 12, "quick_gelu", 768); }
inline json clip_vit_h() { return clip("CLIPTextModel", 1024, 23, 16, "gelu", 512); }
inline json clip_big_g() { return clip("CLIPTextModelWithProjection", 1280, 32, 20, "gelu", 1280); }

}  // namespace arch_test
