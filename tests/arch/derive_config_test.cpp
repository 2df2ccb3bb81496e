// SPDX-License-Identifier: MIT
#include <string>
#include <vector>

#include "arch/published_models.hpp"
#include "support/catch.hpp"
#include "tensorsmith/arch/derive_config.hpp"
#include "tensorsmith/io/json.hpp"

namespace ts = tensorsmith;

namespace {

ts::json_value json(const std::string& text) { return ts::parse_json(text, "expected").value(); }

/// The values of `expected` must be in `config`, and `config` must hold nothing else.
void check_same(const ts::json_value& config, const ts::json_value& expected) {
  for (const auto& [key, value] : *expected.as_object()) {
    INFO(key);
    const ts::json_value* found = config.find(key);
    REQUIRE(found);
    CHECK(ts::write_json(*found, 0) == ts::write_json(value, 0));
  }
  for (const auto& member : *config.as_object()) {
    INFO(member.first);
    CHECK(expected.find(member.first));
  }
}

ts::derived_config derive(const support::unet_plan& plan, ts::sd_family family, const ts::unet_choices& choices) {
  const auto shape = ts::unet_shape_of(support::shapes(support::unet_parameters(plan)));
  REQUIRE(shape);
  auto derived = ts::derive_unet_config(*shape, family, choices);
  REQUIRE(derived);
  return std::move(*derived);
}

std::string message_of(const support::parameters& list) {
  const auto shape = ts::unet_shape_of(support::shapes(list));
  REQUIRE_FALSE(shape);
  return shape.error().message();
}

}  // namespace

TEST_CASE("SD 1.5 gets its published UNet configuration") {
  const auto derived = derive(support::sd1_unet(), ts::sd_family::sd1, {});
  check_same(derived.config, json(R"({"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]})"));
  REQUIRE(derived.findings.size() == 1);
  CHECK(derived.findings[0].reason == "its structure is exactly the published sd1 UNet's");
}

TEST_CASE("SD 1.5 inpainting differs in its input channels alone") {
  auto plan = support::sd1_unet();
  plan.in = 9;
  const auto derived = derive(plan, ts::sd_family::sd1, {});
  CHECK(*derived.config.find("in_channels")->as_integer() == 9);
  CHECK(derived.findings.size() == 1);
}

TEST_CASE("SD 2.1 gets its published UNet configuration") {
  const auto derived = derive(support::sd2_unet(), ts::sd_family::sd2, {.heads = {}, .head_size = {}, .sample_size = 96, .upcast_attention = true});
  check_same(derived.config, json(R"({"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.10.0.dev0", "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
    "cross_attention_dim": 1024, "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "dual_cross_attention": false, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "num_class_embeds": null,
    "only_cross_attention": false, "out_channels": 4, "sample_size": 96,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "upcast_attention": true, "use_linear_projection": true})"));
  const auto base = derive(support::sd2_unet(), ts::sd_family::sd2, {});
  CHECK_FALSE(base.config.find("upcast_attention"));
}

TEST_CASE("SDXL base and refiner get their published UNet configurations") {
  const char* shared = R"("_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
    "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256, "center_input_sample": false,
    "class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": null,
    "downsample_padding": 1, "dual_cross_attention": false, "encoder_hid_dim": null, "encoder_hid_dim_type": null,
    "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_only_cross_attention": null,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32,
    "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false, "resnet_time_scale_shift": "default", "sample_size": 128,
    "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim": null, "time_embedding_type": "positional",
    "timestep_post_act": null, "upcast_attention": null, "use_linear_projection": true)";
  const ts::unet_choices choices{.heads = {}, .head_size = {}, .sample_size = 128, .upcast_attention = {}};
  const auto base = derive(support::sdxl_unet(), ts::sd_family::sdxl, choices);
  check_same(base.config, json(std::string("{") + shared + R"(, "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816, "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]})"));
  const auto refiner = derive(support::refiner_unet(), ts::sd_family::sdxl_refiner, choices);
  check_same(refiner.config, json(std::string("{") + shared + R"(, "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536], "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560, "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]})"));
  CHECK(base.findings.size() == 1);
  CHECK(refiner.findings.size() == 1);
}

TEST_CASE("reduced models get configurations that say what is missing from them, with the evidence") {
  const auto ssd = derive(support::ssd_unet(), ts::sd_family::sdxl, {});
  CHECK(ts::write_json(*ssd.config.find("transformer_layers_per_block"), 0) == "[1, 2, 4]");
  CHECK(ts::write_json(*ssd.config.find("reverse_transformer_layers_per_block"), 0) == "[[4, 4, 10], [2, 1, 1], 1]");
  CHECK(*ssd.config.find("mid_block_type")->as_string() == "UNetMidBlock2D");
  CHECK(ts::write_json(*ssd.config.find("attention_head_dim"), 0) == "[5, 10, 20]");
  CHECK(ssd.findings.size() > 4);
  const auto small = derive(support::small_unet(), ts::sd_family::sd1, {});
  CHECK(small.config.find("mid_block_type")->is_null());
  CHECK(*small.config.find("layers_per_block")->as_integer() == 1);
  CHECK(*small.config.find("attention_head_dim")->as_integer() == 8);
  CHECK_FALSE(small.config.find("transformer_layers_per_block"));
  const auto tiny = derive(support::tiny_unet(), ts::sd_family::sd1, {});
  CHECK(ts::write_json(*tiny.config.find("down_block_types"), 0) ==
        R"(["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"])");
}

TEST_CASE("a guidance embedding becomes time_cond_proj_dim") {
  auto list = support::unet_parameters(support::sd1_unet());
  list.push_back({"time_embedding.cond_proj.weight", {320, 256}});
  const auto shape = ts::unet_shape_of(support::shapes(list));
  REQUIRE(shape);
  const auto derived = ts::derive_unet_config(*shape, ts::sd_family::sd1);
  REQUIRE(derived);
  CHECK(*derived->config.find("time_cond_proj_dim")->as_integer() == 256);
}

TEST_CASE("shapes that contradict each other are refused with both places") {
  const auto altered = [](const std::string& name, const ts::shape_type& shape) {
    auto list = support::unet_parameters(support::sd1_unet());
    for (auto& entry : list)
      if (entry.first == name) entry.second = shape;
    return message_of(list);
  };
  CHECK(altered("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", {1280, 1024}) ==
        "MIS shapes contradict each other: the width of the first cross-attention and that of "
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight differ (expected 768, found 1024); the file is damaged or of an "
        "unknown architecture; --config DIR tells its configuration");
  CHECK(altered("down_blocks.1.resnets.1.conv1.weight", {320, 640, 3, 3}) ==
        "MIS shapes contradict each other: the channels of down_blocks.1 and its resnet 1 differ (expected 640, found 320); the file is "
        "damaged or of an unknown architecture; --config DIR tells its configuration");
  CHECK(altered("mid_block.attentions.0.proj_in.weight", {1280, 1280}).find("the rank of the first proj_in") != std::string::npos);
  CHECK(altered("conv_in.weight", {}).find("MIS made: conv_in.weight: a tensor has a shape that this layer cannot have") == 0);
}

TEST_CASE("missing tensors are named") {
  const auto without = [](const std::string& name) {
    support::parameters list;
    for (auto& entry : support::unet_parameters(support::sd1_unet()))
      if (entry.first != name) list.push_back(entry);
    return message_of(list);
  };
  CHECK(without("conv_out.weight").find("the tensor 'conv_out.weight' is missing") != std::string::npos);
  CHECK(without("down_blocks.1.downsamplers.0.conv.weight").find("'down_blocks.1.downsamplers.0.conv.weight' is missing") != std::string::npos);
  CHECK(without("up_blocks.2.resnets.2.conv1.weight").find("those of up_blocks.2 differ") != std::string::npos);
  CHECK(message_of({}).find("MIS") == 0);
}

TEST_CASE("a number of heads that conventions leave open is asked for") {
  auto plan = support::sd2_unet();
  plan.channels = {96, 192, 384, 384};
  const auto shape = ts::unet_shape_of(support::shapes(support::unet_parameters(plan)));
  REQUIRE(shape);
  const auto derived = ts::derive_unet_config(*shape, ts::sd_family::sd2);
  REQUIRE_FALSE(derived);
  CHECK(derived.error().message() ==
        "MIS unet: the number of attention heads of level 0 is open: 96 channels are no multiple of 64 channels a head, the convention of "
        "sd2; pass --config DIR with a configuration that tells attention_head_dim");
  CHECK(ts::derive_unet_config(*shape, ts::sd_family::sd2, {.heads = {}, .head_size = 32, .sample_size = 64, .upcast_attention = {}}));
}

TEST_CASE("autoencoders get their published configurations") {
  const auto shape = ts::vae_shape_of(support::shapes(support::vae_parameters()));
  REQUIRE(shape);
  CHECK(shape->scale() == 8);
  const auto sdxl = ts::derive_vae_config(*shape, ts::sd_family::sdxl, 1024);
  REQUIRE(sdxl);
  check_same(sdxl->config, json(R"({"_class_name": "AutoencoderKL", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D",
    "DownEncoderBlock2D"], "force_upcast": true, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "out_channels": 3, "sample_size": 1024, "scaling_factor": 0.13025, "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D",
    "UpDecoderBlock2D", "UpDecoderBlock2D"]})"));
  const auto sd1 = ts::derive_vae_config(*shape, ts::sd_family::sd1, 512);
  REQUIRE(sd1);
  CHECK(*sd1->config.find("scaling_factor")->as_double() == 0.18215);
  CHECK_FALSE(sd1->config.find("force_upcast"));
}

TEST_CASE("an autoencoder without its encoder is refused") {
  support::parameters list;
  for (auto& entry : support::vae_parameters())
    if (entry.first.substr(0, 8) != "encoder.") list.push_back(entry);
  const auto shape = ts::vae_shape_of(support::shapes(list));
  REQUIRE_FALSE(shape);
  CHECK(shape.error().code == ts::errc::mismatch);
}

TEST_CASE("text encoders get their published configurations") {
  const char* shared = R"("attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "initializer_factor": 1.0,
    "initializer_range": 0.02, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model", "pad_token_id": 1,
    "torch_dtype": "float16", "vocab_size": 49408)";
  const auto derive_text = [](std::size_t width, std::size_t layers, std::size_t projection, ts::clip_activation activation) {
    const auto shape = ts::clip_shape_of(support::shapes(support::clip_parameters(width, layers, projection)));
    REQUIRE(shape);
    auto derived = ts::derive_clip_config("text_encoder", *shape, activation, "float16");
    REQUIRE(derived);
    CHECK(derived->findings.size() == 1);
    return derived->config;
  };
  check_same(derive_text(768, 12, 0, ts::clip_activation::quick_gelu),
             json(std::string("{") + shared + R"(, "architectures": ["CLIPTextModel"], "hidden_size": 768, "intermediate_size": 3072,
      "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768})"));
  check_same(derive_text(1024, 23, 0, ts::clip_activation::gelu),
             json(std::string("{") + shared + R"(, "architectures": ["CLIPTextModel"], "hidden_size": 1024, "intermediate_size": 4096,
      "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512})"));
  check_same(derive_text(1280, 32, 1280, ts::clip_activation::gelu),
             json(std::string("{") + shared + R"(, "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280,
      "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280})"));
}
