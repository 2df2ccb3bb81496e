// SPDX-License-Identifier: MIT
//
// What adapter a list of names and shapes is: every family that the tools of the field write.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/arch/recognize_adapter.hpp"
#include "tensorsmith/tensor/stored.hpp"

namespace {

namespace ts = tensorsmith;
using rows = std::vector<std::pair<std::string, ts::shape_type>>;

ts::catalog make(const rows& list) {
  static const auto nothing = std::make_shared<ts::memory_source>("memory", std::vector<std::byte>());
  ts::catalog out;
  for (const auto& [name, shape] : list) REQUIRE(out.add(name, {ts::stored_tensor(nothing, 0, ts::dtype::f16, shape, name), 0}, name));
  return out;
}

ts::adapter_description described(const rows& list) {
  auto found = ts::recognize_adapter(make(list));
  REQUIRE(found);
  return std::move(*found);
}

using counts = std::map<std::string, std::size_t>;
using ranks = std::map<std::size_t, std::size_t>;

const std::string d = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";

}  // namespace

TEST_CASE("kohya's LoRA with its ranks, alphas, parts and base") {
  const auto a = described({{d + ".lora_down.weight", {16, 768}}, {d + ".lora_up.weight", {640, 16}}, {d + ".alpha", {}},
                            {"lora_unet_conv_in.lora_down.weight", {8, 4, 3, 3}}, {"lora_unet_conv_in.lora_up.weight", {320, 8, 1, 1}},
                            {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", {16, 768}},
                            {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", {3072, 16}}});
  CHECK(a.family == ts::adapter_family::kohya);
  CHECK(a.evidence == d + ".lora_down.weight");
  CHECK(a.algorithms == counts{{"LoRA", 2}, {"LoCon", 1}});
  CHECK(a.parts == counts{{"unet", 2}, {"text_encoder", 1}});
  CHECK(a.ranks == ranks{{8, 1}, {16, 2}});
  CHECK(a.modules == 3);
  CHECK(a.alphas == 1);
  CHECK(a.unknown.empty());
  CHECK(a.base == "sd1");
  CHECK(a.base_reason == ts::quoted(d) + " takes width 768");
}

TEST_CASE("the width of cross-attention tells the base of an adapter") {
  const std::map<std::size_t, std::string> bases = {{768, "sd1"}, {1024, "sd2"}, {2048, "sdxl"}, {1280, "sdxl-refiner"}, {333, ""}};
  for (const auto& [width, base] : bases) {
    CAPTURE(width);
    CHECK(described({{d + ".lora_down.weight", {4, width}}, {d + ".lora_up.weight", {640, 4}}}).base == base);
  }
  CHECK(described({{"lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", {4, 1280}},
                   {"lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", {1280, 4}}}).base == "sdxl");
  CHECK(described({{"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", {4, 1024}},
                   {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", {1024, 4}}}).base == "sd2");
  const auto sgm = described({{"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight", {4, 640}},
                              {"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_up.weight", {640, 4}}});
  CHECK(sgm.base == "sdxl");
  CHECK(sgm.base_reason.find("SDXL alone") != std::string::npos);
}

TEST_CASE("the algorithms of LyCORIS, one module each") {
  const auto one = [](const rows& list) {
    const auto a = described(list);
    REQUIRE(a.modules == 1);
    REQUIRE(a.unknown.empty());
    return a;
  };
  const auto loha = one({{d + ".hada_w1_a", {640, 8}}, {d + ".hada_w1_b", {8, 768}}, {d + ".hada_w2_a", {640, 8}}, {d + ".hada_w2_b", {8, 768}},
                         {d + ".alpha", {}}});
  CHECK(loha.algorithms == counts{{"LoHa", 1}});
  CHECK(loha.ranks == ranks{{8, 1}});
  CHECK(loha.base == "sd1");
  const auto lokr = one({{d + ".lokr_w1", {8, 32}}, {d + ".lokr_w2_a", {80, 4}}, {d + ".lokr_w2_b", {4, 64}}, {d + ".alpha", {}}});
  CHECK(lokr.algorithms == counts{{"LoKr", 1}});
  CHECK(lokr.ranks == ranks{{4, 1}});
  CHECK(lokr.base == "sdxl");  // 32 × 64
  CHECK(one({{d + ".weight", {640}}, {d + ".on_input", {}}}).algorithms == counts{{"(IA)3", 1}});
  CHECK(one({{d + ".a1.weight", {768, 8}}, {d + ".a2.weight", {8, 768}}, {d + ".b1.weight", {640, 8}}, {d + ".b2.weight", {8, 768}},
             {d + ".alpha", {}}}).algorithms == counts{{"GLoRA", 1}});
  CHECK(one({{d + ".oft_blocks", {8, 80, 80}}, {d + ".alpha", {}}}).algorithms == counts{{"OFT", 1}});
  CHECK(one({{"oft_unet_x.oft_blocks", {8, 80, 80}}, {"oft_unet_x.alpha", {}}}).algorithms == counts{{"OFT", 1}});
  CHECK(one({{d + ".oft_blocks", {3, 8, 80, 80}}, {d + ".rescale", {640, 1}}, {d + ".alpha", {}}}).algorithms == counts{{"BOFT", 1}});
  CHECK(one({{d + ".oft_diag", {8, 80, 80}}}).algorithms == counts{{"OFT", 1}});
  const auto full = one({{d + ".diff", {640, 2048}}, {d + ".diff_b", {640}}});
  CHECK(full.algorithms == counts{{"full", 1}});
  CHECK(full.base == "sdxl");
  CHECK(one({{"lora_unet_norm.w_norm", {320}}, {"lora_unet_norm.b_norm", {320}}}).algorithms == counts{{"norm", 1}});
  CHECK(one({{d + ".lora_down.weight", {4, 768}}, {d + ".lora_up.weight", {640, 4}}, {d + ".dora_scale", {640, 1}}}).algorithms ==
        counts{{"DoRA of LoRA", 1}});
  CHECK(one({{d + ".lora_down.weight", {4, 64, 1, 1}}, {d + ".lora_up.weight", {64, 4, 1, 1}}, {d + ".lora_mid.weight", {4, 4, 3, 3}}}).algorithms ==
        counts{{"LoCon (Tucker)", 1}});
  CHECK(one({{"lycoris_down_blocks_0_x.lora_down.weight", {4, 64}}, {"lycoris_down_blocks_0_x.lora_up.weight", {64, 4}}}).parts ==
        counts{{"unet", 1}});
}

TEST_CASE("one parameter of an algorithm alone is listed as unknown") {
  const auto a = described({{d + ".lora_down.weight", {4, 768}}, {d + ".lora_up.weight", {640, 4}}, {"lora_unet_x.lora_down.weight", {4, 768}},
                            {"lora_unet_y.new_thing", {1}}});
  CHECK(a.modules == 1);
  CHECK(a.unknown == std::vector<std::string>{"lora_unet_y.new_thing", "lora_unet_x"});
}

TEST_CASE("the names of diffusers and PEFT") {
  const std::string path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.";
  const auto kind = [](const rows& list) { return described(list).family; };
  CHECK(kind({{"down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight", {4, 768}},
              {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.up.weight", {320, 4}}}) == ts::adapter_family::diffusers);
  CHECK(kind({{path + "to_k.lora.down.weight", {4, 768}}, {path + "to_k.lora.up.weight", {320, 4}}}) == ts::adapter_family::diffusers);
  CHECK(kind({{path + "to_k.lora_A.weight", {4, 768}}, {path + "to_k.lora_B.weight", {320, 4}},
              {path + "to_q.lora.down.weight", {4, 320}}, {path + "to_q.lora.up.weight", {320, 4}}}) == ts::adapter_family::diffusers);
  const auto peft = described({{"base_model.model." + path.substr(5) + "to_k.lora_A.weight", {4, 768}},
                               {"base_model.model." + path.substr(5) + "to_k.lora_B.weight", {320, 4}},
                               {"base_model.model." + path.substr(5) + "to_k.lora_magnitude_vector", {320}}});
  CHECK(peft.family == ts::adapter_family::peft);
  CHECK(peft.algorithms == counts{{"DoRA of LoRA", 1}});
  CHECK(peft.parts == counts{{"unet", 1}});
  CHECK(peft.base == "sd1");
  const auto text = described({{"text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight", {4, 1280}},
                               {"text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight", {1280, 4}}});
  CHECK(text.parts == counts{{"text_encoder_2", 1}});
  CHECK(text.base == "sdxl");
  CHECK(kind({{"diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_down.weight", {4, 2048}},
              {"diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_up.weight", {640, 4}}}) == ts::adapter_family::dotted);
}

TEST_CASE("cloneofsimo's numbered pairs, with a token beside them") {
  const auto a = described({{"unet:0:down", {4, 320}}, {"unet:0:up", {320, 4}}, {"unet:1:down", {4, 768}}, {"unet:1:up", {320, 4}},
                            {"text_encoder:0:down", {4, 768}}, {"text_encoder:0:up", {768, 4}}, {"<s1>", {768}}});
  CHECK(a.family == ts::adapter_family::cloneofsimo);
  CHECK(a.parts == counts{{"unet", 2}, {"text_encoder", 1}});
  CHECK(a.ranks == ranks{{4, 3}});
  CHECK(a.base == "sd1");
  REQUIRE(a.embeddings.size() == 1);
  CHECK(a.embeddings[0].name == "<s1>");
  const auto list = described({{"0", {320, 4}}, {"1", {4, 320}}, {"2", {320, 4}}, {"3", {4, 768}}});
  CHECK(list.family == ts::adapter_family::cloneofsimo);
  CHECK(list.ranks == ranks{{4, 2}});
  CHECK(list.base == "sd1");
  CHECK_FALSE(ts::recognize_adapter(make({{"0", {320, 4}}, {"1", {8, 320}}})));
}

TEST_CASE("names of PEFT: adapters' names, magnitudes, embeddings, biases, modules saved whole") {
  const auto split = [](const std::string& name) {
    const auto key = ts::detail::split_adapter_name(name);
    return key.module + " " + (key.bit == 0 ? "?" : std::string(ts::detail::parameter_of_bit(key.bit)));
  };
  CHECK(split("base_model.model.a.to_q.lora_A.weight") == "base_model.model.a.to_q lora_down");
  CHECK(split("base_model.model.a.to_q.lora_B.style.weight") == "base_model.model.a.to_q lora_up");
  CHECK(split("unet.a.to_q.lora_B.bias") == "unet.a.to_q lora_bias");
  CHECK(split("unet.a.to_q.lora_A.bias") == "unet.a.to_q ?");
  CHECK(split("a.to_q.lora_magnitude_vector") == "a.to_q dora_scale");
  CHECK(split("a.to_q.lora_magnitude_vector.weight") == "a.to_q dora_scale");
  CHECK(split("a.to_q.lora_magnitude_vector.default.weight") == "a.to_q dora_scale");
  CHECK(split("a.to_q.lora_magnitude_vector.default") == "a.to_q dora_scale");
  CHECK(split("base_model.model.embeddings.token_embedding.lora_embedding_A") == "base_model.model.embeddings.token_embedding lora_embedding_A");
  CHECK(split("base_model.model.embeddings.token_embedding.lora_embedding_B.default") == "base_model.model.embeddings.token_embedding lora_embedding_B");
  CHECK(split("base_model.model.conv_out.weight") == "base_model.model.conv_out set_weight");
  CHECK(split("base_model.model.conv_out.bias") == "base_model.model.conv_out set_bias");
  CHECK(split("base_model.model.conv_out.modules_to_save.weight") == "base_model.model.conv_out set_weight");
  CHECK(split("conv_out.modules_to_save.default.weight") == "conv_out set_weight");
  CHECK(split("time_embedding.modules_to_save.default.linear_1.bias") == "time_embedding.linear_1 set_bias");
  CHECK(split("base_model.model.a.v_proj.base_layer.bias") == "base_model.model.a.v_proj set_bias");
  CHECK(split("base_model.model.a.v_proj.base_layer.weight") == "base_model.model.a.v_proj.base_layer.weight ?");
  CHECK(split("a.to_q_lora.alpha") == "a.to_q alpha");
  CHECK(split("a.to_q.lora.alpha") == "a.to_q alpha");
  CHECK(split("a.to_q.alpha") == "a.to_q alpha");
  CHECK(split("conv_out.weight") == "conv_out.weight ?");

  const auto a = described({{"base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight", {2, 768}},
                            {"base_model.model.encoder.layers.0.self_attn.q_proj.lora_B.weight", {768, 2}},
                            {"base_model.model.embeddings.token_embedding.lora_embedding_A", {4, 49408}},
                            {"base_model.model.embeddings.token_embedding.lora_embedding_B", {768, 4}},
                            {"base_model.model.conv_out.weight", {4, 320, 3, 3}}});
  CHECK(a.family == ts::adapter_family::peft);
  CHECK(a.algorithms == counts{{"LoRA", 2}, {"replacement", 1}});
  CHECK(a.parts == counts{{"unet", 1}, {"text_encoder", 2}});
  CHECK(a.ranks == ranks{{2, 1}, {4, 1}});
  CHECK(a.base == "sd1");
}

TEST_CASE("diffusers' files that mix their own names with PEFT's: each name on its own") {
  const std::string attention = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.";
  const auto a = described({{attention + "to_k.lora.down.weight", {4, 1024}}, {attention + "to_k.lora.up.weight", {1280, 4}},
                            {"unet.mid_block.attentions.0.proj_in.lora_A.weight", {4, 1280}}, {"unet.mid_block.attentions.0.proj_in.lora_B.weight", {1280, 4}},
                            {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight", {4, 1024}},
                            {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight", {1024, 4}},
                            {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", {4, 1024}}, {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight", {4096, 4}}});
  CHECK(a.modules == 4);
  CHECK(a.parts == counts{{"unet", 2}, {"text_encoder", 2}});
  CHECK(a.unknown.empty());
  CHECK(a.base == "sd2");
}

TEST_CASE("Textual Inversion in all its containers' names") {
  const auto check = [](const rows& list, const std::string& base, std::size_t vectors) {
    const auto a = described(list);
    CHECK(a.family == ts::adapter_family::textual_inversion);
    CHECK(a.base == base);
    CHECK(a.embeddings[0].vectors == vectors);
  };
  check({{"string_to_param.*", {3, 768}}}, "sd1", 3);
  check({{"emb_params", {2, 1024}}}, "sd2", 2);
  check({{"clip_l", {4, 768}}, {"clip_g", {4, 1280}}}, "sdxl", 4);
  check({{"<cat-toy>", {768}}}, "sd1", 1);
  check({{"<s0>", {1024}}, {"<s1>", {1024}}}, "sd2", 1);
  const auto bundle = described({{d + ".lora_down.weight", {4, 768}}, {d + ".lora_up.weight", {640, 4}},
                                 {"bundle_emb.cat.string_to_param.*", {2, 768}}});
  CHECK(bundle.family == ts::adapter_family::kohya);
  REQUIRE(bundle.embeddings.size() == 1);
  CHECK(bundle.embeddings[0].vectors == 2);
}

TEST_CASE("hypernetworks of the web UI") {
  const auto a = described({{"<768>.0.linear.0.weight", {768, 768}}, {"<768>.1.linear.0.weight", {768, 768}},
                            {"<320>.0.linear.0.weight", {320, 320}}});
  CHECK(a.family == ts::adapter_family::hypernetwork);
  CHECK(a.modules == 2);
  CHECK(a.base == "sd1");
}

TEST_CASE("models are no adapters") {
  for (const rows& list : {rows{}, rows{{"model.diffusion_model.input_blocks.0.0.weight", {320, 4, 3, 3}}, {"alphas_cumprod", {1000}}},
                           rows{{"down_blocks.0.resnets.0.conv1.weight", {320, 320, 3, 3}}}, rows{{"embed.weight", {1000, 768}}},
                           rows{{"wte", {50257, 768}}}, rows{{"act.alpha", {1}}, {"conv.weight", {4, 4}}},
                           rows{{"a.weight", {4, 4}}, {"b.weight", {4, 4}}, {"c.weight", {4, 4}}, {"d.weight", {4, 4}}, {"e.weight", {4}},
                                {d + ".lora_down.weight", {4, 768}}, {d + ".lora_up.weight", {640, 4}}}})
    CHECK_FALSE(ts::recognize_adapter(make(list)));
}

TEST_CASE("networks that are no Stable Diffusion are told by name") {
  const auto named = [](const std::string& name) {
    std::string evidence;
    const auto found = ts::recognize_network(make({{"a.weight", {1}}, {name, {1}}}), evidence);
    CHECK((found.empty() || evidence == name));
    return std::string(found);
  };
  CHECK(named("control_model.input_blocks.0.0.weight") == "a ControlNet (original names)");
  CHECK(named("controlnet_cond_embedding.conv_in.weight") == "a ControlNet (diffusers names)");
  CHECK(named("lora_controlnet") == "a Control-LoRA");
  CHECK(named("body.0.rdb1.conv1.weight") == "an ESRGAN upscaler");
  CHECK(named("layers.0.residual_group.blocks.0.norm1.weight") == "a SwinIR upscaler");
  CHECK(named("double_blocks.0.img_attn.qkv.weight") == "a Flux model");
  CHECK(named("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight") == "a T5 text encoder");
  CHECK(named("down.weight").empty());
}
