// SPDX-License-Identifier: MIT
//
// Names of adapters' modules on the shapes of the published models: which layer each stands for, how many there are, and what becomes of names
// that have none.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "published_models.hpp"
#include "support/catch.hpp"
#include "tensorsmith/arch/adapter_targets.hpp"

namespace ts = tensorsmith;

namespace {

struct family {
  const char* name;
  support::unet_plan unet;
  std::size_t width, layers;                  // of the first text encoder; 0: none
  std::size_t second_width, second_layers;
  std::size_t weighted, attention, convolutions, text;  // the figures that the architecture gives
};

const family families[] = {
    {"sd1", support::sd1_unet(), 768, 12, 0, 0, 391, 192, 86, 72},
    {"sd2", support::sd2_unet(), 1024, 23, 0, 0, 391, 192, 86, 138},
    {"sdxl", support::sdxl_unet(), 768, 12, 1280, 32, 1050, 722, 66, 264},
    {"sdxl-refiner", support::refiner_unet(), 0, 0, 1280, 32, 742, 462, 86, 192},
};

ts::package model_of(const family& f) {
  ts::package out;
  out.family = f.name;
  const auto add = [&](const char* name, ts::catalog weights) {
    ts::component& part = out.components.emplace_back();
    part.name = name, part.weights = std::move(weights);
  };
  if (f.width) add("text_encoder", support::shapes(support::clip_parameters(f.width, f.layers)));
  if (f.second_width) add("text_encoder_2", support::shapes(support::clip_parameters(f.second_width, f.second_layers, 1280)));
  add("unet", support::shapes(support::unet_parameters(f.unet)));
  return out;
}

bool ends_with_any(std::string_view text, std::initializer_list<std::string_view> tails) {
  return std::any_of(tails.begin(), tails.end(), [&](std::string_view tail) { return text.ends_with(tail); });
}
std::string underscored(std::string text) {
  std::replace(text.begin(), text.end(), '.', '_');
  return text;
}

/// Paths of a component's layers with a weight.
std::vector<std::string> layers_of(const ts::component& part) {
  std::vector<std::string> out;
  for (const ts::catalog_entry& e : part.weights.entries())
    if (e.name.ends_with(".weight")) out.push_back(e.name.substr(0, e.name.size() - 7));
  return out;
}

/// What kohya's scripts train in a UNet: all of a transformer but its norms.
bool is_attention_target(std::string_view path) {
  return path.find("attentions.") != path.npos &&
         ends_with_any(path, {".proj_in", ".proj_out", ".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj", ".ff.net.2"});
}
/// What they train with conv_dim.
bool is_convolution_target(std::string_view path) {
  return ends_with_any(path, {".conv1", ".conv2", ".conv_shortcut", ".time_emb_proj", ".downsamplers.0.conv", ".upsamplers.0.conv"});
}
bool is_text_target(std::string_view path) {
  return ends_with_any(path, {".q_proj", ".k_proj", ".v_proj", ".out_proj", ".mlp.fc1", ".mlp.fc2"});
}

}  // namespace

TEST_CASE("every module that kohya's scripts train is found under its name, in the numbers that the architectures give") {
  for (const family& f : families) {
    INFO(f.name);
    const ts::package model = model_of(f);
    const ts::adapter_targets targets(model);
    std::size_t attention = 0, convolutions = 0, text = 0;
    for (std::size_t i = 0; i < model.components.size(); ++i) {
      const ts::component& part = model.components[i];
      for (const std::string& path : layers_of(part)) {
        const bool unet = part.name == "unet";
        const std::string prefix = unet ? "lora_unet_" : !f.second_width ? "lora_te_" : part.name == "text_encoder" ? "lora_te1_" : "lora_te2_";
        INFO(path);
        const auto found = targets.find(prefix + underscored(path));
        REQUIRE(found);
        REQUIRE((*found == ts::adapter_target{i, path}));
        attention += unet && is_attention_target(path), convolutions += unet && is_convolution_target(path), text += !unet && is_text_target(path);
      }
    }
    CHECK(attention == f.attention);
    CHECK(convolutions == f.convolutions);
    CHECK(text == f.text);
  }
}

TEST_CASE("the two dialects never meet: names of 391, 391, 1050 and 742 layers, each once") {
  for (const family& f : families) {
    INFO(f.name);
    const ts::package model = model_of(f);
    const ts::component& unet = *model.find("unet");
    const std::vector<std::string> paths = layers_of(unet);
    std::vector<std::string_view> names;
    for (const ts::catalog_entry& e : unet.weights.entries()) names.push_back(e.name);
    const ts::unet_name_layout layout = ts::unet_layout_of_diffusers(names);
    std::set<std::string> diffusers, original;
    for (const std::string& path : paths) {
      diffusers.insert(underscored(path));
      const auto ldm = ts::unet_name_to_ldm(path + ".weight", layout);
      REQUIRE(ldm);
      original.insert(underscored(ldm->substr(0, ldm->size() - 7)));
    }
    CHECK(paths.size() == f.weighted);
    CHECK(diffusers.size() == f.weighted);
    CHECK(original.size() == f.weighted);
    std::vector<std::string> both;
    std::set_intersection(diffusers.begin(), diffusers.end(), original.begin(), original.end(), std::back_inserter(both));
    CHECK(both.empty());

    const ts::adapter_targets targets(model);
    for (const std::string& path : paths) {
      const auto ldm = ts::unet_name_to_ldm(path + ".weight", layout);
      for (const char* prefix : {"lora_unet_", "oft_unet_", "lycoris_", "lycoris_unet_"})
        REQUIRE(targets.find(prefix + underscored(ldm->substr(0, ldm->size() - 7)))->module == path);
    }
  }
}

TEST_CASE("no name stands for two layers") {
  for (const family& f : families) {
    INFO(f.name);
    const ts::package model = model_of(f);
    const ts::adapter_targets targets(model);
    const auto names = targets.names();
    CHECK(names.size() > 5 * f.weighted);
    std::size_t twice = 0;
    for (std::size_t i = 1; i < names.size(); ++i) twice += names[i].first == names[i - 1].first;
    CHECK(twice == 0);
  }
}

TEST_CASE("the upsampler's number may be that of another family") {
  const auto layer = [](const family& f, const char* name) {
    const ts::package model = model_of(f);
    const auto found = ts::adapter_targets(model).find(name);
    return found ? found->module : std::string("none");
  };
  for (const char* name : {"lora_unet_output_blocks_2_1_conv", "lora_unet_output_blocks_2_2_conv", "oft_unet_output_blocks_2_1_conv", "lycoris_output_blocks_2_2_conv"})
    for (const family& f : families) {
      INFO(name << " " << f.name);
      CHECK(layer(f, name) == "up_blocks.0.upsamplers.0.conv");
    }
  CHECK(layer(families[0], "lora_unet_output_blocks_8_2_conv") == "up_blocks.2.upsamplers.0.conv");
  CHECK(layer(families[0], "lora_unet_output_blocks_8_1_conv") == "up_blocks.2.upsamplers.0.conv");
  CHECK(layer(families[2], "lora_unet_output_blocks_8_2_conv") == "none");  // the last block of SDXL has none
  CHECK(layer(families[0], "lora_unet_output_blocks_2_0_conv") == "none");
}

TEST_CASE("every spelling of a layer's name is found") {
  const std::string to_out = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", query = "text_model.encoder.layers.3.self_attn.q_proj";
  const std::pair<std::string, std::string> sdxl[] = {
      {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0", to_out},
      {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0", to_out},
      {"lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0", to_out},
      {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", to_out},
      {"unet.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", to_out},
      {"unet.unet.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", to_out},
      {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out", to_out},
      {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out", to_out},
      {"base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", to_out},
      {"unet.base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", to_out},
      {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.default", to_out},
      {"diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0", to_out},
      {"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0", to_out},
      {"lora_te1_text_model_encoder_layers_3_self_attn_q_proj", query},
      {"lora_te2_text_model_encoder_layers_3_self_attn_q_proj", query + "/2"},
      {"lycoris_text_encoder_text_model_encoder_layers_3_self_attn_q_proj", query},
      {"lycoris_text_encoder_2_text_model_encoder_layers_3_self_attn_q_proj", query + "/2"},
      {"text_encoder.text_model.encoder.layers.3.self_attn.q_proj", query},
      {"text_encoder.text_model.encoder.layers.3.self_attn.to_q", query},
      {"text_encoder_2.text_model.encoder.layers.3.self_attn.to_q", query + "/2"},
      {"text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj", query + "/2"},
      {"text_encoder.base_model.model.text_model.encoder.layers.3.self_attn.q_proj", query},
      {"text_model.encoder.layers.3.self_attn.q_proj", query},
      {"lora_te1_encoder_layers_3_self_attn_q_proj", query},  // as transformers 5 names them
      {"lora_te2_encoder_layers_3_self_attn_q_proj", query + "/2"},
      {"text_encoder.encoder.layers.3.self_attn.q_proj", query},
      {"encoder.layers.3.self_attn.q_proj", query},
      {"lora_te2_text_projection", "text_projection/2"},
      {"lora_unet_add_embedding_linear_1", "add_embedding.linear_1"},
      {"lora_unet_label_emb_0_0", "add_embedding.linear_1"},
      {"lora_unet_time_embed_2", "time_embedding.linear_2"},
      {"lora_unet_out_2", "conv_out"},
      {"lora_unet_input_blocks_0_0", "conv_in"},
      {"lora_unet_middle_block_1_proj_in", "mid_block.attentions.0.proj_in"},
      {"lora_unet_input_blocks_7_0_skip_connection", "down_blocks.2.resnets.0.conv_shortcut"},
  };
  const ts::package xl = model_of(families[2]);
  const ts::adapter_targets targets(xl);
  for (const auto& [name, wanted] : sdxl) {
    INFO(name);
    const auto found = targets.find(name);
    REQUIRE(found);
    CHECK(found->module + (xl.components[found->component].name == "text_encoder_2" ? "/2" : "") == wanted);
  }
  // One encoder: both of kohya's prefixes are for it, whichever place of the pipeline it has.
  for (const std::size_t k : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
    const ts::package model = model_of(families[k]);
    const ts::adapter_targets one(model);
    for (const char* name : {"lora_te_text_model_encoder_layers_3_mlp_fc1", "lora_te1_text_model_encoder_layers_3_mlp_fc1"}) {
      INFO(name << " " << families[k].name);
      REQUIRE(one.find(name));
      CHECK(one.find(name)->module == "text_model.encoder.layers.3.mlp.fc1");
    }
  }
}

TEST_CASE("a name without a layer is explained") {
  using kind = ts::adapter_miss::kind;
  const auto explained = [](const ts::package& model, const std::string& name) {
    const ts::adapter_targets targets(model);
    REQUIRE_FALSE(targets.find(name));
    return targets.explain(name);
  };
  const ts::package sd1 = model_of(families[0]), sd2 = model_of(families[1]), xl = model_of(families[2]);
  for (const auto& [name, network] : std::vector<std::pair<std::string, std::string>>{
           {"lora_te3_encoder_block_0_layer_0_SelfAttention_q", "the third text encoder of Stable Diffusion 3 or Flux"},
           {"lora_transformer_transformer_blocks_0_attn_to_q", "a diffusion transformer"},
           {"transformer.transformer_blocks.0.attn.to_q", "a diffusion transformer"},
           {"lora_vae_decoder_conv_in", "an autoencoder"},
           {"lora_controlnet", "a Control-LoRA"},
           {"lllite_unet_input_blocks_1_1_attn1", "a ControlNet-LLLite"},
           {"lora_prior_unet_down_blocks_0", "the prior of Stable Cascade"}}) {
    INFO(name);
    const ts::adapter_miss miss = explained(xl, name);
    CHECK(miss.what == kind::unsupported);
    CHECK(miss.reason == "it belongs to " + network + ", which is not supported");
  }
  const std::string last = "lora_te_text_model_encoder_layers_23_mlp_fc1";
  CHECK(explained(sd2, last).what == kind::expected);
  CHECK(explained(sd2, last).reason == "Stable Diffusion 2 does not have the encoder's last layer");
  CHECK(explained(sd2, "text_encoder.text_model.encoder.layers.23.mlp.fc1").what == kind::expected);
  CHECK(explained(sd2, "encoder.layers.23.mlp.fc1").what == kind::expected);
  CHECK(explained(sd2, "lora_te_text_model_encoder_layers_24_mlp_fc1").what == kind::unknown);
  CHECK(explained(sd1, last).what == kind::unknown);
  CHECK(explained(sd1, last).reason == "the text encoder has no such layer");

  ts::package only;
  only.family = "sdxl";
  only.components.push_back(*xl.find("unet"));
  for (const char* name : {"lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te2_text_model_encoder_layers_0_mlp_fc1",
                           "text_encoder.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"}) {
    INFO(name);
    CHECK(explained(only, name).what == kind::expected);
    CHECK(explained(only, name).reason == "no text encoder is converted");
  }
  only.components[0] = *xl.find("text_encoder");
  CHECK(explained(only, "lora_unet_conv_in").reason == "no UNet is converted");
  CHECK(explained(only, "lora_te2_text_model_encoder_layers_0_mlp_fc1").what == kind::expected);
  CHECK(explained(sd1, "lora_te2_text_model_encoder_layers_0_mlp_fc1").what == kind::unknown);
  CHECK(explained(sd1, "lora_te2_text_model_encoder_layers_0_mlp_fc1").reason == "the model has one text encoder");
  CHECK(explained(xl, "lora_te1_text_projection").what == kind::expected);
  CHECK(explained(sd1, "lora_unet_down_blocks_9_resnets_0_conv1").reason == "the model has no such layer");
  CHECK(explained(sd1, "lora_unet_down_blocks_9_resnets_0_conv1").what == kind::unknown);
}
