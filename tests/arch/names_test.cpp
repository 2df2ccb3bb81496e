// SPDX-License-Identifier: MIT
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "arch/published_models.hpp"
#include "support/catch.hpp"
#include "tensorsmith/arch/names/clip.hpp"
#include "tensorsmith/arch/names/open_clip.hpp"
#include "tensorsmith/arch/names/unet.hpp"
#include "tensorsmith/arch/names/vae.hpp"

namespace ts = tensorsmith;

namespace {

std::vector<std::string_view> names_of(const support::parameters& list) {
  std::vector<std::string_view> out;
  for (const auto& entry : list) out.push_back(entry.first);
  return out;
}

}  // namespace

TEST_CASE("the parameters of the published models are those that were counted") {
  CHECK(support::unet_parameters(support::sd1_unet()).size() == 686);
  CHECK(support::unet_parameters(support::sd2_unet()).size() == 686);
  CHECK(support::unet_parameters(support::sdxl_unet()).size() == 1680);
  CHECK(support::unet_parameters(support::refiner_unet()).size() == 1220);
  CHECK(support::vae_parameters().size() == 248);
  CHECK(support::clip_parameters(768, 12).size() == 196);
  CHECK(support::open_clip_parameters(1024, 24).size() == 294 - 1);  // and logit_scale
  CHECK(support::open_clip_parameters(1280, 32).size() == 390 - 1);
  CHECK(support::elements(support::unet_parameters(support::sd1_unet())) == 859'520'964);
  CHECK(support::elements(support::unet_parameters(support::sd2_unet())) == 865'910'724);
  CHECK(support::elements(support::unet_parameters(support::sdxl_unet())) == 2'567'463'684);
  CHECK(support::elements(support::unet_parameters(support::refiner_unet())) == 2'259'526'660);
  CHECK(support::elements(support::vae_parameters()) == 83'653'863);
  CHECK(support::elements(support::clip_parameters(768, 12)) == 123'060'480);
  CHECK(support::elements(support::clip_parameters(1024, 23)) == 340'387'840);
  CHECK(support::elements(support::clip_parameters(1280, 32, 1280)) == 694'659'840);
}

TEST_CASE("every UNet name goes to LDM and back") {
  for (const auto& plan : {support::sd1_unet(), support::sd2_unet(), support::sdxl_unet(), support::refiner_unet(), support::ssd_unet(),
                           support::small_unet(), support::tiny_unet()}) {
    const auto list = support::unet_parameters(plan);
    const auto layout = ts::unet_layout_of_diffusers(names_of(list));
    CHECK(layout.layers_per_block == plan.layers);
    std::set<std::string> ldm;
    std::vector<std::string> kept;
    for (const auto& entry : list) {
      const auto name = ts::unet_name_to_ldm(entry.first, layout);
      INFO(entry.first);
      REQUIRE(name);
      CHECK(ldm.insert(*name).second);
      kept.push_back(*name);
    }
    const std::vector<std::string_view> views(kept.begin(), kept.end());
    const auto back = ts::unet_layout_of_ldm(views);
    CHECK(back.layers_per_block == plan.layers);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      INFO(kept[i]);
      CHECK(ts::unet_name_to_diffusers(kept[i], back) == list[i].first);
    }
  }
}

TEST_CASE("UNet names are those of the checkpoints") {
  const auto list = support::unet_parameters(support::sd1_unet());
  const auto layout = ts::unet_layout_of_diffusers(names_of(list));
  const std::pair<const char*, const char*> rows[] = {
      {"conv_in.weight", "input_blocks.0.0.weight"},
      {"time_embedding.linear_2.bias", "time_embed.2.bias"},
      {"add_embedding.linear_1.weight", "label_emb.0.0.weight"},
      {"class_embedding.weight", "label_emb.weight"},
      {"down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"},
      {"down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"},
      {"down_blocks.3.resnets.1.norm2.weight", "input_blocks.11.0.out_layers.0.weight"},
      {"down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight", "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight"},
      {"mid_block.resnets.1.time_emb_proj.bias", "middle_block.2.emb_layers.1.bias"},
      {"mid_block.attentions.0.proj_out.weight", "middle_block.1.proj_out.weight"},
      {"up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"},
      {"up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"},
      {"up_blocks.3.attentions.2.norm.weight", "output_blocks.11.1.norm.weight"},
      {"up_blocks.3.resnets.0.conv1.weight", "output_blocks.9.0.in_layers.2.weight"},
      {"conv_norm_out.weight", "out.0.weight"},
      {"conv_out.bias", "out.2.bias"},
  };
  for (const auto& [diffusers, ldm] : rows) {
    CHECK(ts::unet_name_to_ldm(diffusers, layout) == ldm);
    CHECK(ts::unet_name_to_diffusers(ldm, layout) == diffusers);
  }
  CHECK(ts::unet_name_to_diffusers("label_emb.0.2.bias", {.layers_per_block = 2, .up_attention = {}, .class_embedding = true}) ==
        "class_embedding.linear_2.bias");
  CHECK(ts::unet_ema_name("input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight");
}

TEST_CASE("names that no UNet has are nothing") {
  for (const char* name : {"", "input_blocks", "input_blocks.0.1.norm.weight", "input_blocks.x.0.op.weight", "input_blocks.01.0.in_layers.0.weight",
                           "input_blocks.3.0.in_layers.0.weight", "input_blocks.1.2.conv.weight", "input_blocks.1.0.in_layers.1.weight",
                           "input_blocks.1.1.extra.weight", "input_blocks.99999.0.op.weight", "middle_block.3.norm.weight", "middle_block.1.",
                           "output_blocks.1.1.conv.weight", "output_blocks.2.3.conv.weight", "output_blocks.0.2.norm.weight", "outx.0.weight"})
    CHECK_FALSE(ts::unet_name_to_diffusers(name));
  for (const char* name : {"down_blocks.0.resnets.2.conv1.weight", "down_blocks.0.resnets.0.conv3.weight", "down_blocks.0.upsamplers.0.conv.weight",
                           "up_blocks.0.resnets.3.conv1.weight", "mid_block.resnets.2.conv1.weight", "mid_block.attentions.1.norm.weight", "nothing"})
    CHECK_FALSE(ts::unet_name_to_ldm(name, {}));
}

TEST_CASE("every autoencoder name goes to LDM and back; the decoder counts backwards") {
  for (const auto& channels : {std::vector<std::size_t>{128, 256, 512, 512}, {32, 32}, {64}}) {
    const auto list = support::vae_parameters(channels);
    const auto layout = ts::vae_layout_of(names_of(list));
    CHECK(layout.levels == channels.size());
    std::set<std::string> ldm;
    for (const auto& entry : list) {
      INFO(entry.first);
      const auto name = ts::vae_name_to_ldm(entry.first, layout);
      REQUIRE(name);
      CHECK(ldm.insert(*name).second);
      CHECK(ts::vae_name_to_diffusers(*name, layout) == entry.first);
    }
    const std::vector<std::string_view> views(ldm.begin(), ldm.end());
    CHECK(ts::vae_layout_of(views).levels == channels.size());
  }
  CHECK(ts::vae_name_to_ldm("decoder.up_blocks.0.resnets.2.conv1.weight") == "decoder.up.3.block.2.conv1.weight");
  CHECK(ts::vae_name_to_ldm("decoder.up_blocks.2.upsamplers.0.conv.bias") == "decoder.up.1.upsample.conv.bias");
  CHECK(ts::vae_name_to_ldm("encoder.down_blocks.1.resnets.0.conv_shortcut.weight") == "encoder.down.1.block.0.nin_shortcut.weight");
  CHECK(ts::vae_name_to_ldm("encoder.mid_block.attentions.0.to_out.0.weight") == "encoder.mid.attn_1.proj_out.weight");
  CHECK(ts::vae_name_to_ldm("decoder.mid_block.attentions.0.group_norm.bias") == "decoder.mid.attn_1.norm.bias");
  CHECK(ts::vae_name_to_ldm("encoder.conv_norm_out.weight") == "encoder.norm_out.weight");
  CHECK_FALSE(ts::vae_name_to_diffusers("encoder.down.0.attn.0.q.weight"));
  CHECK_FALSE(ts::vae_name_to_diffusers("decoder.up.4.block.0.conv1.weight"));
}

TEST_CASE("attention names of old autoencoders become today's, and projections are told from biases") {
  CHECK(ts::modern_vae_name("encoder.mid_block.attentions.0.query.weight") == "encoder.mid_block.attentions.0.to_q.weight");
  CHECK(ts::modern_vae_name("decoder.mid_block.attentions.0.proj_attn.bias") == "decoder.mid_block.attentions.0.to_out.0.bias");
  CHECK(ts::modern_vae_name("decoder.mid_block.attentions.0.group_norm.bias") == "decoder.mid_block.attentions.0.group_norm.bias");
  CHECK(ts::modern_vae_name("decoder.conv_in.weight") == "decoder.conv_in.weight");
  CHECK(ts::is_vae_projection("encoder.mid_block.attentions.0.to_out.0.weight"));
  CHECK_FALSE(ts::is_vae_projection("encoder.mid_block.attentions.0.to_q.bias"));
  CHECK_FALSE(ts::is_vae_projection("encoder.conv_in.weight"));
}

TEST_CASE("CLIP names are kept; early files get their missing level") {
  for (const auto& entry : support::clip_parameters(768, 12, 768)) CHECK(ts::clip_name_to_diffusers(entry.first) == entry.first);
  CHECK(ts::clip_name_to_diffusers("encoder.layers.3.mlp.fc1.bias") == "text_model.encoder.layers.3.mlp.fc1.bias");
  CHECK(ts::clip_name_to_diffusers("embeddings.token_embedding.weight") == "text_model.embeddings.token_embedding.weight");
  CHECK(ts::clip_name_to_diffusers("final_layer_norm.bias") == "text_model.final_layer_norm.bias");
  CHECK_FALSE(ts::clip_name_to_diffusers("text_model.encoder.layers.0.self_attn.r_proj.weight"));
  CHECK_FALSE(ts::clip_name_to_diffusers("vision_model.embeddings.class_embedding"));
}

TEST_CASE("OpenCLIP names become transformers' and back; stacked projections come apart") {
  const auto wanted = support::clip_parameters(1280, 32, 1280);
  std::set<std::string> made;
  for (const auto& entry : support::open_clip_parameters(1280, 32)) {
    const auto targets = ts::open_clip_name_to_diffusers(entry.first);
    INFO(entry.first);
    REQUIRE_FALSE(targets.empty());
    for (const auto& target : targets) {
      CHECK(made.insert(target.name).second);
      const auto back = ts::open_clip_name_to_ldm(target.name);
      REQUIRE(back);
      CHECK(back->name == entry.first);
      CHECK(back->action == target.action);
      CHECK(back->part == target.part);
    }
  }
  CHECK(made.size() == wanted.size());
  for (const auto& entry : wanted) CHECK(made.count(entry.first) == 1);
  const auto stacked = ts::open_clip_name_to_diffusers("transformer.resblocks.7.attn.in_proj_bias");
  REQUIRE(stacked.size() == 3);
  CHECK(stacked[1].name == "text_model.encoder.layers.7.self_attn.k_proj.bias");
  CHECK(stacked[2].part == 2);
  CHECK(ts::open_clip_name_to_diffusers("text_projection")[0].action == ts::open_clip_action::transpose);
  CHECK(ts::open_clip_name_to_diffusers("text_projection.weight.weight")[0].name == "text_projection.weight");
  CHECK(ts::open_clip_name_to_diffusers("visual.conv1.weight").empty());
}
