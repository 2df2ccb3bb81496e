// SPDX-License-Identifier: MIT
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "arch/sparse_checkpoint.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;
using support::joined;
using support::ldm_unet;
using support::ldm_vae;
using support::with_prefix;

namespace {

support::parameters sd1_checkpoint(const support::unet_plan& plan = support::sd1_unet()) {
  return joined({ldm_unet(plan), ldm_vae(), with_prefix("cond_stage_model.transformer.", support::clip_parameters(768, 12)),
                 {{"cond_stage_model.transformer.text_model.embeddings.position_ids", {1, 77}}, {"alphas_cumprod", {1000}}}});
}
support::parameters sd2_checkpoint() {
  return joined({ldm_unet(support::sd2_unet()), ldm_vae(), with_prefix("cond_stage_model.model.", support::open_clip_parameters(1024, 24))});
}
support::parameters sdxl_checkpoint(const support::unet_plan& plan = support::sdxl_unet()) {
  return joined({ldm_unet(plan), ldm_vae(), with_prefix("conditioner.embedders.0.transformer.", support::clip_parameters(768, 12)),
                 with_prefix("conditioner.embedders.1.model.", support::open_clip_parameters(1280, 32))});
}

struct opened {
  ts::job run;
  ts::package model;
};

opened open(const std::string& path, const ts::open_options& options = {}) {
  opened out;
  auto model = ts::open_stable_diffusion(path, options, out.run);
  if (!model) FAIL(model.error().message());
  out.model = std::move(*model);
  return out;
}

ts::failure refusal(const std::string& path, const ts::open_options& options = {}) {
  ts::job run;
  auto model = ts::open_stable_diffusion(path, options, run);
  REQUIRE_FALSE(model);
  return model.error();
}

ts::json_value side_json(const ts::package& model, const std::string& path) {
  for (const ts::side_file& file : model.side_files)
    if (file.path == path) return ts::read_json(*file.bytes).value();
  FAIL("no side file " + path);
  return {};
}
bool has_side_file(const ts::package& model, const std::string& path) {
  for (const ts::side_file& file : model.side_files)
    if (file.path == path) return true;
  return false;
}
bool finds(const ts::package& model, const std::string& subject, const std::string& value) {
  for (const ts::evidence& finding : model.findings)
    if (finding.subject == subject && finding.value == value) return true;
  return false;
}
bool noted(const ts::job& run, const std::string& subject, const std::string& part) {
  for (const ts::note& n : run.notes)
    if (n.subject == subject && n.text.find(part) != std::string::npos) return true;
  return false;
}
void write(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

/// Names, shapes and bytes of two packages are the same.
void check_same(const ts::package& a, const ts::package& b) {
  ts::job run;
  REQUIRE(a.components.size() == b.components.size());
  for (const ts::component& part : a.components) {
    const ts::component* other = b.find(part.name);
    REQUIRE(other);
    REQUIRE(other->weights.size() == part.weights.size());
    std::size_t different = 0;
    for (const ts::catalog_entry& entry : part.weights.entries()) {
      const ts::catalog_entry* same = other->weights.find(entry.name);
      INFO(part.name << " " << entry.name);
      REQUIRE(same);
      CHECK(same->tensor.shape() == entry.tensor.shape());
      const auto x = ts::materialize(entry.tensor, run), y = ts::materialize(same->tensor, run);
      REQUIRE(x);
      REQUIRE(y);
      different += *x != *y;
    }
    CHECK(different == 0);
  }
}

}  // namespace

TEST_CASE("a full SD 1.5 checkpoint opens as what it is") {
  const support::temp_folder folder;
  const std::string path = folder / "sd15.safetensors";
  support::write_sparse(path, sd1_checkpoint());
  const auto [run, model] = open(path);
  CHECK(model.family == "sd1");
  REQUIRE(model.components.size() == 3);
  CHECK(model.components[0].name == "text_encoder");
  CHECK(model.components[0].weights.parameters() == 123'060'480);
  CHECK(model.find("unet")->weights.parameters() == 859'520'964);
  CHECK(model.find("vae")->weights.parameters() == 83'653'863);
  CHECK(model.find("text_encoder")->ignored.size() == 1);
  CHECK(model.find("unet")->ignored == std::vector<std::string>{"alphas_cumprod: a buffer of training"});
  CHECK(finds(model, "unet", "sd1"));
  CHECK(finds(model, "prediction_type", "epsilon"));
  CHECK(*model.index.find("_class_name")->as_string() == "StableDiffusionPipeline");
  CHECK(*model.find("unet")->config.find("sample_size")->as_integer() == 64);
  const auto scheduler = side_json(model, "scheduler/scheduler_config.json");
  CHECK(*scheduler.find("_class_name")->as_string() == "PNDMScheduler");
  CHECK_FALSE(scheduler.find("prediction_type"));
  CHECK(*side_json(model, "feature_extractor/preprocessor_config.json").find("crop_size")->as_integer() == 224);
  CHECK(noted(run, "tokenizer", "no vocabulary was found; pass --tokenizer DIR"));
  CHECK(model.find("vae")->weights.find("encoder.mid_block.attentions.0.to_q.weight")->tensor.shape() == ts::shape_type{512, 512});
}

TEST_CASE("inpainting checkpoints get their pipeline and scheduler") {
  const support::temp_folder folder;
  auto plan = support::sd1_unet();
  plan.in = 9;
  const std::string path = folder / "inpaint.safetensors";
  support::write_sparse(path, sd1_checkpoint(plan));
  const auto model = open(path).model;
  CHECK(*model.index.find("_class_name")->as_string() == "StableDiffusionInpaintPipeline");
  CHECK(*side_json(model, "scheduler/scheduler_config.json").find("_class_name")->as_string() == "DDIMScheduler");
}

TEST_CASE("SD2 checkpoints: 23 layers, velocity by default with a warning, epsilon when said") {
  const support::temp_folder folder;
  const std::string path = folder / "sd2.safetensors";
  support::write_sparse(path, sd2_checkpoint());
  const auto [run, model] = open(path);
  CHECK(model.family == "sd2");
  CHECK(model.find("text_encoder")->weights.parameters() == 340'387'840);
  CHECK(*model.find("unet")->config.find("sample_size")->as_integer() == 96);
  CHECK(*model.find("unet")->config.find("upcast_attention")->as_bool());
  CHECK(*side_json(model, "scheduler/scheduler_config.json").find("prediction_type")->as_string() == "v_prediction");
  CHECK(noted(run, "scheduler", "does not say what the model predicts"));
  ts::open_options options;
  options.prediction = "epsilon";
  const auto said = open(path, options);
  CHECK(*said.model.find("unet")->config.find("sample_size")->as_integer() == 64);
  CHECK_FALSE(said.model.find("unet")->config.find("upcast_attention"));
  CHECK_FALSE(noted(said.run, "scheduler", "does not say"));
  support::write_sparse(folder / "meta.safetensors", sd2_checkpoint(), {{"modelspec.prediction_type", "epsilon"}});
  CHECK(finds(open(folder / "meta.safetensors").model, "prediction_type", "epsilon"));
}

TEST_CASE("SDXL, its refiner and a distillation open") {
  const support::temp_folder folder;
  support::write_sparse(folder / "xl.safetensors", sdxl_checkpoint());
  const auto xl = open(folder / "xl.safetensors").model;
  CHECK(xl.family == "sdxl");
  REQUIRE(xl.components.size() == 4);
  CHECK(xl.find("text_encoder_2")->weights.parameters() == 694'659'840);
  CHECK(xl.find("unet")->weights.parameters() == 2'567'463'684);
  CHECK(*xl.find("vae")->config.find("force_upcast")->as_bool());
  CHECK(*side_json(xl, "scheduler/scheduler_config.json").find("_class_name")->as_string() == "EulerDiscreteScheduler");
  CHECK(*xl.index.find("force_zeros_for_empty_prompt")->as_bool());

  support::write_sparse(folder / "refiner.safetensors",
                        joined({ldm_unet(support::refiner_unet()), ldm_vae(),
                                with_prefix("conditioner.embedders.0.model.", support::open_clip_parameters(1280, 32))}));
  const auto refiner = open(folder / "refiner.safetensors").model;
  CHECK(refiner.family == "sdxl-refiner");
  CHECK(refiner.components[0].name == "text_encoder_2");
  CHECK(*refiner.index.find("requires_aesthetics_score")->as_bool());
  CHECK(ts::write_json(*refiner.index.find("text_encoder"), 0) == "[null, null]");

  support::write_sparse(folder / "ssd.safetensors", sdxl_checkpoint(support::ssd_unet()));
  const auto ssd = open(folder / "ssd.safetensors").model;
  CHECK(ssd.family == "sdxl");
  CHECK(finds(ssd, "unet.mid_block_type", "one resnet"));
}

TEST_CASE("markers and metadata of SDXL say velocity and zero terminal SNR") {
  const support::temp_folder folder;
  const std::string path = folder / "vpred.safetensors";
  support::write_sparse(path, joined({sdxl_checkpoint(), {{"v_pred", {0}}, {"ztsnr", {0}}}}));
  const auto scheduler = side_json(open(path).model, "scheduler/scheduler_config.json");
  CHECK(*scheduler.find("prediction_type")->as_string() == "v_prediction");
  CHECK(*scheduler.find("rescale_betas_zero_snr")->as_bool());
}

TEST_CASE("what is missing is named with what to do") {
  const support::temp_folder folder;
  const std::string no_vae = folder / "a.safetensors", only_unet = folder / "b.safetensors", vae = folder / "vae.safetensors";
  support::write_sparse(no_vae, joined({ldm_unet(support::sd1_unet()), with_prefix("cond_stage_model.transformer.", support::clip_parameters(768, 12))}));
  support::write_sparse(only_unet, ldm_unet(support::sdxl_unet(), ""));
  support::write_sparse(vae, joined({ldm_vae(), {{"loss.logvar", {}}}}));
  CHECK(refusal(no_vae).message() == "MIS " + no_vae + ": the checkpoint lacks vae (expected all components of sd1, found text_encoder, unet); pass --vae PATH "
                                     "with an autoencoder, or convert what there is with --components text_encoder,unet");
  CHECK(refusal(only_unet).message() == "MIS " + only_unet + ": the checkpoint lacks text_encoder, text_encoder_2, vae (expected all components of sdxl, found "
                                        "unet); convert what there is with --components unet; --vae PATH gives an autoencoder");
  ts::open_options options;
  options.vae = vae;
  const auto completed = open(no_vae, options).model;
  CHECK(completed.find("vae")->weights.size() == 248);
  CHECK(completed.find("vae")->config.find("scaling_factor"));
  options = {};
  options.components = {"unet"};
  CHECK(open(only_unet, options).model.components.size() == 1);
  options.components = {"text_encoder_2"};
  CHECK(refusal(no_vae, options).code == ts::errc::usage);
  options.components = {"u-net"};
  CHECK(refusal(no_vae, options).message() == "USE unknown component 'u-net' (expected text_encoder, text_encoder_2, unet, vae, vae_encoder or vae_decoder)");
  CHECK(refusal(vae).message().find("pass --model sd1, sd2, sdxl or sdxl-refiner") != std::string::npos);
  options.components = {"vae_decoder"};
  options.model = "sdxl";
  CHECK(*open(vae, options).model.find("vae")->config.find("scaling_factor")->as_double() == 0.13025);
}

TEST_CASE("other architectures are refused by name") {
  const support::temp_folder folder;
  const std::string path = folder / "x.safetensors";
  const auto message = [&](const support::parameters& list) {
    support::write_sparse(path, list);
    const auto error = refusal(path);
    CHECK(error.code == ts::errc::unsupported);
    return error.message();
  };
  CHECK(message({{"model.diffusion_model.joint_blocks.0.x", {1}}}).find("holds a Stable Diffusion 3 model") != std::string::npos);
  CHECK(message({{"double_blocks.0.img_attn.qkv.weight", {1}}}).find("holds a Flux model") != std::string::npos);
  CHECK(message({{"control_model.time_embed.0.weight", {1}}}).find("holds a ControlNet") != std::string::npos);
  CHECK(message({{"lora_unet_down_blocks_0.lora_up.weight", {1}}}).find("holds a LoRA adapter") != std::string::npos);
  CHECK(message(joined({sdxl_checkpoint(), {{"edm_mean", {4}}}})).find("Playground 2.5") != std::string::npos);
  CHECK(message({{"model.diffusion_model.label_emb.weight", {1000, 1024}}}).find("an upscaler") != std::string::npos);
  CHECK(message({{"a", {1}}, {"b", {1}}}).find("holds no Stable Diffusion model (expected names like") != std::string::npos);
}

TEST_CASE("parts of different models in one file are refused") {
  const support::temp_folder folder;
  const std::string path = folder / "mix.safetensors";
  auto plan = support::sdxl_unet();
  plan.cross = 2176;
  support::write_sparse(path, sdxl_checkpoint(plan));
  CHECK(refusal(path).message().find("the UNet and the text encoders do not fit together (expected text states of width 2176, found 2048)") !=
        std::string::npos);
}

TEST_CASE("a yaml beside the file is used; one that contradicts the weights is refused") {
  const support::temp_folder folder;
  const std::string path = folder / "model.safetensors";
  support::write_sparse(path, sd2_checkpoint());
  const std::string unet = "    unet_config:\n      params:\n        in_channels: 4\n        model_channels: 320\n        num_head_channels: 64\n";
  write(folder / "model.yaml", "model:\n  params:\n    parameterization: eps\n    linear_start: 0.001\n" + unet + "        context_dim: 1024\n");
  const auto [run, model] = open(path);
  CHECK(finds(model, "prediction_type", "epsilon"));
  CHECK(*side_json(model, "scheduler/scheduler_config.json").find("beta_start")->as_double() == 0.001);
  CHECK(noted(run, folder / "model.yaml", "is used"));
  write(folder / "other.yaml", "model:\n  params:\n" + unet + "        context_dim: 768\n");
  ts::open_options options;
  options.config_dir = folder / "other.yaml";
  CHECK(refusal(path, options).message() == "MIS " + (folder / "other.yaml") +
                                                ": context_dim: the configuration does not fit the weights (expected 1024 by the shapes of the UNet, found 768)");
  write(folder / "model.yaml", "no yaml\n");
  CHECK(noted(open(path).run, folder / "model.yaml", "is not used: FMT"));
}

TEST_CASE("a given diffusers configuration stands in for the derived one") {
  const support::temp_folder folder;
  auto plan = support::sd2_unet();
  plan.channels = {96, 192, 384, 384};  // no multiples of 64: heads are open
  const std::string path = folder / "odd.safetensors";
  support::write_sparse(path, ldm_unet(plan));
  ts::open_options options;
  options.components = {"unet"};
  CHECK(refusal(path, options).message().find("pass --config DIR with a configuration that tells attention_head_dim") != std::string::npos);
  write(folder / "config/unet/config.json",
        R"({"_class_name": "UNet2DConditionModel", "attention_head_dim": [3, 6, 12, 12], "block_out_channels": [96, 192, 384, 384],
            "cross_attention_dim": 1024, "in_channels": 4, "layers_per_block": 2, "use_linear_projection": true})");
  options.config_dir = folder / "config";
  const auto model = open(path, options).model;
  CHECK(ts::write_json(*model.find("unet")->config.find("attention_head_dim"), 0) == "[3, 6, 12, 12]");
  write(folder / "config/unet/config.json", R"({"block_out_channels": [320, 640, 1280, 1280], "use_linear_projection": true})");
  CHECK(refusal(path, options).message().find("unet block_out_channels: the configuration does not fit the weights (expected 96 by the shapes "
                                              "of the UNet, found 320)") != std::string::npos);
}

TEST_CASE("tokenizers come from the folder that is given, or from beside the file") {
  const support::temp_folder folder;
  const std::string path = folder / "xl.safetensors";
  support::write_sparse(path, sdxl_checkpoint());
  write(folder / "words/vocab.json", "{}");
  write(folder / "words/merges.txt", "#version: 0.2\n");
  ts::open_options options;
  options.tokenizer_dir = folder / "words";
  const auto given = open(path, options).model;
  CHECK(has_side_file(given, "tokenizer/merges.txt"));
  CHECK(*side_json(given, "tokenizer/tokenizer_config.json").find("pad_token")->as_string() == "<|endoftext|>");
  CHECK(*side_json(given, "tokenizer_2/special_tokens_map.json").find("pad_token")->as_string() == "!");
  write(folder / "tokenizer/vocab.json", "{}");
  write(folder / "tokenizer/merges.txt", "#version: 0.2\n");
  const auto [run, beside] = open(path);
  CHECK(has_side_file(beside, "tokenizer/vocab.json"));
  CHECK(has_side_file(beside, "tokenizer_2/vocab.json"));
  CHECK(noted(run, "tokenizer_2", "with the padding token '!'"));
  options.tokenizer_dir = folder / "nothing";
  CHECK(refusal(path, options).message().find("the folder holds no tokenizer") != std::string::npos);
}

TEST_CASE("a folder and the torch checkpoint of the same model give the same components") {
  const auto folder = open(support::data("sd1/diffusers").string()).model, file = open(support::data("sd1/sd1.ckpt").string()).model;
  check_same(folder, file);
  CHECK(file.find("unet")->ignored.size() > 200);  // moving averages, named
  ts::open_options options;
  options.ema = true;
  const auto average = open(support::data("sd1/sd1.ckpt").string(), options).model;
  CHECK(finds(average, "unet.weights", "moving averages"));
  ts::job run;  // the file's moving averages are the weights with the opposite sign
  const auto a = ts::materialize(folder.find("unet")->weights.find("conv_in.bias")->tensor, run);
  const auto b = ts::materialize(average.find("unet")->weights.find("conv_in.bias")->tensor, run);
  REQUIRE(a);
  REQUIRE(b);
  for (std::size_t i = 1; i < a->size(); i += 2) CHECK(((*a)[i] ^ (*b)[i]) == std::byte{0x80});
  CHECK(refusal(support::data("sd1/diffusers").string(), options).code == ts::errc::usage);
}

TEST_CASE("moving averages that are not there are an error") {
  const support::temp_folder folder;
  const std::string path = folder / "a.safetensors";
  support::write_sparse(path, sd1_checkpoint());
  ts::open_options options;
  options.ema = true;
  CHECK(refusal(path, options).message().find("the file holds no moving averages (often it holds them as its weights); leave out --ema") !=
        std::string::npos);
}

TEST_CASE("every stored pipeline opens as its family") {
  for (const auto& [name, family] : {std::pair("sd1", "sd1"), {"sd1_inpaint", "sd1"}, {"sd2_v", "sd2"}, {"sdxl", "sdxl"}, {"sdxl_refiner", "sdxl-refiner"}}) {
    INFO(name);
    const auto model = open((support::data(name) / "diffusers").string()).model;
    CHECK(model.family == family);
    CHECK(has_side_file(model, "scheduler/scheduler_config.json"));
    for (const ts::component& part : model.components)
      for (const ts::catalog_entry& entry : part.weights.entries())
        if (part.name.substr(0, 12) == "text_encoder") CHECK(entry.name.substr(0, 5) == "text_");
  }
}

TEST_CASE("one component's folder or file opens by itself") {
  const auto data = support::data("sd1/diffusers/unet");
  CHECK(open(data.string()).model.components.size() == 1);
  ts::open_options options;
  options.components = {"unet"};
  CHECK(open((data / "diffusion_pytorch_model.safetensors").string(), options).model.family == "sd1");
  options.components = {"text_encoder"};
  options.model = "sd1";
  const auto text = open(support::data("sd1/diffusers/text_encoder/model.safetensors").string(), options).model;
  CHECK(*text.find("text_encoder")->config.find("hidden_act")->as_string() == "quick_gelu");
}

TEST_CASE("what the user says changes a folder's side files, nothing else does") {
  const std::string path = support::data("sd2_v/diffusers").string();
  CHECK(finds(open(path).model, "prediction_type", "v_prediction"));
  ts::open_options options;
  options.prediction = "epsilon";
  options.image_size = 64;
  const auto model = open(path, options).model;
  CHECK(*side_json(model, "scheduler/scheduler_config.json").find("prediction_type")->as_string() == "epsilon");
  CHECK(*model.find("unet")->config.find("sample_size")->as_integer() == 32);
  options.prediction = "both";
  CHECK(refusal(path, options).code == ts::errc::usage);
  options = {};
  options.model = "sdxl";
  CHECK(refusal(path, options).code == ts::errc::mismatch);
}

TEST_CASE("files that are no models are refused") {
  const support::temp_folder folder;
  write(folder / "a.txt", "hello, this is text");
  CHECK(refusal(folder / "a.txt").message() ==
        "UNS " + (folder / "a.txt") + ": byte offset 0: the file is of no format that holds weights (expected a safetensors, torch, npy, npz or "
                                      "GGUF file, found 19 bytes that start with 68 65 6c 6c 6f 2c 20 74)");
  CHECK(refusal(folder / "none.safetensors").code == ts::errc::io);
  std::filesystem::create_directories(folder / "empty");
  CHECK(refusal(folder / "empty").message() ==
        "MIS " + (folder / "empty") + ": the folder is no saved pipeline (expected model_index.json, found a folder without it)");
}
