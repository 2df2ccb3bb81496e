// SPDX-License-Identifier: MIT
#include "tensorsmith/arch/stable_diffusion_build.hpp"

#include "arch/counting_source.hpp"
#include "arch/published_configs.hpp"
#include "support/catch.hpp"

namespace {

namespace ts = tensorsmith;
using arch_test::counting_source;
using arch_test::json;
using arch_test::list;
using arch_test::words;

ts::catalog weights_of(const counting_source& source, ts::dtype type) {
  ts::catalog out;
  for (const auto& [name, shape] : source.shapes) REQUIRE(out.add(name, arch_test::hollow(name, type, shape), "model: " + name));
  return out;
}
template <class Build>
ts::component make(const char* name, json config, ts::dtype type, Build ask) {
  counting_source source;
  ask(config, source);
  ts::component out;
  out.name = name;
  out.weights = weights_of(source, type);
  out.config = std::move(config);
  return out;
}
ts::component text_encoder(const char* name, ts::dtype type, const char* architecture, int width) {
  json config = arch_test::clip(architecture, width, 2, 2, "gelu", width);
  config.set("vocab_size", 100);
  return make(name, config, type, [](const json& c, counting_source& s) { REQUIRE(ts::build_clip_text(c, s, ts::interface_optimum(), {})); });
}
ts::component unet(ts::dtype type, bool xl) {
  json config = xl ? arch_test::unet_sdxl() : arch_test::unet_sd1();
  config.set("block_out_channels", list({32, 64}));
  config.set("attention_head_dim", 2);
  config.set("layers_per_block", 1);
  config.set("cross_attention_dim", xl ? 48 : 16);
  config.set("down_block_types", words({arch_test::CA, arch_test::D}));
  config.set("up_block_types", words({arch_test::U, arch_test::CU}));
  if (xl) {
    config.set("transformer_layers_per_block", 1);
    config.set("projection_class_embeddings_input_dim", 32 + 6 * 256);
  }
  return make("unet", config, type, [](const json& c, counting_source& s) {
    REQUIRE(ts::build_unet2d_condition(c, s, ts::interface_optimum(), {.text_embeds_width = 32}));
  });
}
ts::component vae(ts::dtype type) {
  json config = arch_test::vae();
  config.set("block_out_channels", list({32, 32}));
  config.set("down_block_types", words({"DownEncoderBlock2D", "DownEncoderBlock2D"}));
  config.set("up_block_types", words({"UpDecoderBlock2D", "UpDecoderBlock2D"}));
  config.set("force_upcast", true);
  return make("vae", config, type, [](const json& c, counting_source& s) {
    REQUIRE(ts::build_vae_encoder(c, s, ts::interface_optimum(), {}));
    REQUIRE(ts::build_vae_decoder(c, s, ts::interface_optimum(), {}));
  });
}
ts::package sd1(ts::dtype type = ts::dtype::f32) {
  ts::package out;
  out.source = "model";
  out.family = "sd1";
  out.components.push_back(text_encoder("text_encoder", type, "CLIPTextModel", 16));
  out.components.push_back(unet(type, false));
  out.components.push_back(vae(type));
  out.index = json::object{{"_class_name", "StableDiffusionPipeline"}, {"_diffusers_version", "0.6.0"},
                           {"feature_extractor", words({"transformers", "CLIPImageProcessor"})},
                           {"safety_checker", words({"stable_diffusion", "StableDiffusionSafetyChecker"})},
                           {"scheduler", words({"diffusers", "PNDMScheduler"})}, {"text_encoder", words({"transformers", "CLIPTextModel"})},
                           {"tokenizer", words({"transformers", "CLIPTokenizer"})}, {"unet", words({"diffusers", "UNet2DConditionModel"})},
                           {"vae", words({"diffusers", "AutoencoderKL"})}};
  return out;
}
ts::package sdxl(ts::dtype type) {
  ts::package out;
  out.source = "model";
  out.family = "sdxl";
  out.components.push_back(text_encoder("text_encoder", type, "CLIPTextModel", 16));
  out.components.push_back(text_encoder("text_encoder_2", type, "CLIPTextModelWithProjection", 32));
  out.components.push_back(unet(type, true));
  out.components.push_back(vae(type));
  return out;
}
ts::dtype compute_of(const ts::bundle& b, std::string_view name) {
  for (const ts::bundle_component& c : b.components)
    if (c.name == name)
      for (const ts::initializer& i : c.model.initializers)
        if (const auto* t = std::get_if<ts::tensor_ref>(&i.data)) return t->type();
  return ts::dtype::boolean;
}

}  // namespace

TEST_CASE("a pipeline becomes a bundle of graphs", "[arch][build]") {
  ts::job run;
  const auto made = ts::build_stable_diffusion(sd1(), {}, run);
  if (!made) FAIL(made.error().message());
  REQUIRE(made->components.size() == 4);
  CHECK(made->components[0].name == "text_encoder");
  CHECK(made->components[1].name == "unet");
  CHECK(made->components[2].name == "vae_encoder");
  CHECK(made->components[3].name == "vae_decoder");
  CHECK(made->components[2].weights_component == "vae");
  CHECK(made->components[2].config == made->components[3].config);
  CHECK(made->components[1].config.find("cross_attention_dim"));
  CHECK(made->index == sd1().index);
  CHECK(made->opset == 0);
  CHECK(run.notes.empty());
}

TEST_CASE("the element type is kept or chosen", "[arch][build]") {
  ts::job run;
  SECTION("f16 is kept") {
    const auto made = ts::build_stable_diffusion(sd1(ts::dtype::f16), {}, run);
    REQUIRE(made);
    for (const char* name : {"text_encoder", "unet", "vae_encoder", "vae_decoder"}) CHECK(compute_of(*made, name) == ts::dtype::f16);
  }
  SECTION("bf16 becomes f32, and the run says so") {
    const auto made = ts::build_stable_diffusion(sd1(ts::dtype::bf16), {}, run);
    REQUIRE(made);
    CHECK(compute_of(*made, "unet") == ts::dtype::f32);
    REQUIRE(run.notes.size() == 3);
    CHECK(run.notes[1].subject == "unet");
  }
  SECTION("SDXL's autoencoder stays in f32 unless its configuration says that it need not") {
    const auto made = ts::build_stable_diffusion(sdxl(ts::dtype::f16), {.dtype = ts::dtype::f16}, run);
    if (!made) FAIL(made.error().message());
    CHECK(compute_of(*made, "unet") == ts::dtype::f16);
    CHECK(compute_of(*made, "vae_encoder") == ts::dtype::f32);
    CHECK(compute_of(*made, "vae_decoder") == ts::dtype::f32);
    CHECK(run.notes.size() == 1);
    ts::package fixed = sdxl(ts::dtype::f16);
    fixed.find("vae")->config.set("force_upcast", false);
    const auto again = ts::build_stable_diffusion(std::move(fixed), {.dtype = ts::dtype::f16}, run);
    REQUIRE(again);
    CHECK(compute_of(*again, "vae_decoder") == ts::dtype::f16);
  }
  SECTION("onnx-web's VAE encoder") {
    const auto made = ts::build_stable_diffusion(sd1(), {.io = ts::interface_onnx_web(), .dtype = ts::dtype::f16}, run);
    REQUIRE(made);
    CHECK(compute_of(*made, "vae_encoder") == ts::dtype::f32);
    CHECK(compute_of(*made, "vae_decoder") == ts::dtype::f16);
  }
  SECTION("other types are refused") {
    const auto made = ts::build_stable_diffusion(sd1(), {.dtype = ts::dtype::bf16}, run);
    REQUIRE_FALSE(made);
    CHECK(made.error().message() == "USE graphs compute and speak f32 or f16 (expected f32 or f16, found bf16)");
  }
}

TEST_CASE("SDXL pipelines", "[arch][build]") {
  ts::job run;
  const auto made = ts::build_stable_diffusion(sdxl(ts::dtype::f32), {}, run);
  if (!made) FAIL(made.error().message());
  REQUIRE(made->components.size() == 5);
  const ts::graph &second = made->components[1].model, &denoiser = made->components[2].model;
  CHECK(second.outputs.size() == 2 + 3);
  CHECK(ts::to_string(denoiser[denoiser.inputs[3]].shape) == "[batch_size, 32]");
  CHECK(ts::to_string(denoiser[denoiser.inputs[4]].shape) == "[batch_size, 6]");
  SECTION("the UNet alone: the family tells the number of time ids") {
    ts::package alone;
    alone.family = "sdxl";
    alone.components.push_back(unet(ts::dtype::f32, true));
    const auto one = ts::build_stable_diffusion(std::move(alone), {}, run);
    REQUIRE(one);
    const ts::graph& g = one->components[0].model;
    CHECK(ts::to_string(g[g.inputs[4]].shape) == "[batch_size, 6]");
  }
  SECTION("onnx-web takes them as Optimum writes them") {
    const auto web = ts::build_stable_diffusion(sdxl(ts::dtype::f32), {.io = ts::interface_onnx_web()}, run);
    REQUIRE(web);
    CHECK(web->components[0].model[web->components[0].model.inputs[0]].type == ts::dtype::i64);
  }
}

TEST_CASE("the index of diffusers' layout names ONNX parts", "[arch][build]") {
  ts::job run;
  const auto made = ts::build_stable_diffusion(sd1(), {.io = ts::interface_diffusers()}, run);
  REQUIRE(made);
  const json onnx = words({"diffusers", "OnnxRuntimeModel"});
  CHECK(*made->index.find("_class_name") == json("OnnxStableDiffusionPipeline"));
  for (const char* part : {"text_encoder", "unet", "vae_encoder", "vae_decoder"}) CHECK(*made->index.find(part) == onnx);
  CHECK(made->index.find("vae") == nullptr);
  CHECK(*made->index.find("safety_checker") == json(json::array{nullptr, nullptr}));
  CHECK(*made->index.find("tokenizer") == words({"transformers", "CLIPTokenizer"}));
}

TEST_CASE("every weight is used, ignored by name, or an error", "[arch][build][faults]") {
  ts::job run;
  SECTION("known leftovers are listed") {
    ts::package model = sd1();
    ts::catalog& text = model.find("text_encoder")->weights;
    REQUIRE(text.add("text_model.embeddings.position_ids", arch_test::hollow("p", ts::dtype::i64, {1, 77}), "model"));
    REQUIRE(text.add("text_projection.weight", arch_test::hollow("t", ts::dtype::f32, {16, 16}), "model"));
    const auto made = ts::build_stable_diffusion(std::move(model), {}, run);
    if (!made) FAIL(made.error().message());
    CHECK(made->components[0].ignored == std::vector<std::string>{"text_model.embeddings.position_ids: positions are counted in the graph",
                                                                   "text_projection.weight: a CLIPTextModel has no projection"});
  }
  SECTION("unknown ones are refused") {
    ts::package model = sd1();
    REQUIRE(model.find("unet")->weights.add("extra.weight", arch_test::hollow("e", ts::dtype::f32, {2, 3}), "model"));
    const auto made = ts::build_stable_diffusion(std::move(model), {}, run);
    REQUIRE_FALSE(made);
    CHECK(made.error().message() ==
          "MIS model: unet has tensors that its configuration has no use for (expected every tensor used, found 1 unused: 'extra.weight' "
          "[2, 3]); check that config.json belongs to these weights");
  }
  SECTION("a missing tensor") {
    ts::package model = sd1();
    model.find("unet")->weights = {};
    const auto made = ts::build_stable_diffusion(std::move(model), {}, run);
    REQUIRE_FALSE(made);
    CHECK(made.error().message() ==
          "MIS model: tensor 'time_embedding.linear_1.weight': unet lacks a tensor (expected [128, 32], found 0 tensors without it); the "
          "file is incomplete, or config.json describes another model");
  }
  SECTION("a tensor of wrong shape") {
    ts::package model = sd1();
    model.find("unet")->weights.replace("conv_in.weight", arch_test::hollow("conv_in.weight", ts::dtype::f32, {32, 9, 3, 3}));
    const auto made = ts::build_stable_diffusion(std::move(model), {}, run);
    REQUIRE_FALSE(made);
    CHECK(made.error().message() ==
          "MIS model: tensor 'model: conv_in.weight': the tensor does not have the shape that the configuration of unet gives it (expected "
          "[32, 4, 3, 3], found [32, 9, 3, 3]); check that config.json belongs to these weights");
  }
  SECTION("an unknown component") {
    ts::package model = sd1();
    model.components[1].name = "transformer";
    const auto made = ts::build_stable_diffusion(std::move(model), {}, run);
    REQUIRE_FALSE(made);
    CHECK(made.error().code == ts::errc::unsupported);
  }
}
