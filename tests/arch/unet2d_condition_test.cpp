// SPDX-License-Identifier: MIT
#include "tensorsmith/arch/unet2d_condition.hpp"

#include <chrono>

#include "arch/counting_source.hpp"
#include "arch/published_configs.hpp"
#include "support/catch.hpp"
#include "tensorsmith/graph/verify.hpp"

namespace {

namespace ts = tensorsmith;
using arch_test::counting_source;
using arch_test::json;
using arch_test::list;

const ts::value* input(const ts::graph& g, std::string_view name) {
  for (const ts::value_id id : g.inputs)
    if (g[id].name == name) return &g[id];
  return nullptr;
}
std::size_t nodes(const ts::graph& g, std::string_view op) {
  std::size_t n = 0;
  for (const ts::node& node : g.nodes) n += node.op == op;
  return n;
}

struct built {
  ts::graph graph;
  counting_source parameters;
};
built build(const json& config, const ts::io_interface& io = ts::interface_optimum(), const ts::arch_options& options = {}) {
  built out;
  auto graph = ts::build_unet2d_condition(config, out.parameters, io, options);
  if (!graph) FAIL(graph.error().message());
  out.graph = std::move(*graph);
  const auto sound = ts::verify(out.graph);
  if (!sound) FAIL(sound.error().message());
  return out;
}
std::string refusal(const json& config) {
  counting_source parameters;
  const auto graph = ts::build_unet2d_condition(config, parameters, ts::interface_optimum(), {});
  return graph ? "accepted" : graph.error().message();
}

/// Two levels, as small as they get.
json tiny() {
  json out = arch_test::unet_sd1();
  out.set("block_out_channels", list({32, 64}));
  out.set("down_block_types", arch_test::words({arch_test::CA, arch_test::D}));
  out.set("up_block_types", arch_test::words({arch_test::U, arch_test::CU}));
  out.set("layers_per_block", 1);
  out.set("cross_attention_dim", 24);
  return out;
}

}  // namespace

TEST_CASE("published UNets have the tensors and parameters of the published files", "[arch][unet]") {
  const auto check = [](const json& config, std::size_t tensors, std::size_t parameters) {
    const built b = build(config);
    CHECK(b.parameters.shapes.size() == tensors);
    CHECK(b.parameters.parameters == parameters);
    std::size_t weights = 0;
    for (const ts::initializer& i : b.graph.initializers) weights += std::holds_alternative<ts::tensor_ref>(i.data);
    CHECK(weights == tensors);
  };
  SECTION("SD 1") { check(arch_test::unet_sd1(), 686, 859'520'964); }
  SECTION("SD 2") { check(arch_test::unet_sd2(), 686, 865'910'724); }
  SECTION("SDXL") { check(arch_test::unet_sdxl(), 1680, 2'567'463'684); }
  SECTION("SDXL refiner") { check(arch_test::unet_refiner(), 1220, 2'259'526'660); }
}

TEST_CASE("the interface of SD 1 follows the layout", "[arch][unet]") {
  SECTION("Optimum") {
    const ts::graph g = build(arch_test::unet_sd1()).graph;
    REQUIRE(g.inputs.size() == 3);
    CHECK(ts::to_string(input(g, "sample")->shape) == "[batch_size, 4, height, width]");
    CHECK(input(g, "timestep")->shape.empty());
    CHECK(ts::to_string(input(g, "encoder_hidden_states")->shape) == "[batch_size, sequence_length, 768]");
    CHECK(g[g.outputs[0]].name == "out_sample");
    CHECK(ts::to_string(g[g.outputs[0]].shape) == "[batch_size, 4, height, width]");
    CHECK(nodes(g, "Expand") == 0);
  }
  SECTION("diffusers") {
    const ts::graph g = build(arch_test::unet_sd1(), ts::interface_diffusers()).graph;
    CHECK(ts::to_string(input(g, "timestep")->shape) == "[batch]");
    CHECK(nodes(g, "Expand") == 1);
  }
  SECTION("f16 with f32 outside") {
    const ts::graph g = build(arch_test::unet_sd1(), ts::interface_optimum(), {.compute = ts::dtype::f16}).graph;
    CHECK(input(g, "sample")->type == ts::dtype::f32);
    CHECK(g[g.outputs[0]].type == ts::dtype::f32);
    CHECK(nodes(g, "Cast") == 4);  // sample, text, time embedding (always computed in f32), output
    for (const ts::initializer& i : g.initializers)
      if (const auto* t = std::get_if<ts::tensor_ref>(&i.data)) REQUIRE(t->type() == ts::dtype::f16);
  }
  SECTION("f16 all through") {
    ts::io_interface io = ts::interface_optimum();
    io.io_float = ts::dtype::f16;
    const ts::graph g = build(arch_test::unet_sd1(), io, {.compute = ts::dtype::f16}).graph;
    CHECK(input(g, "timestep")->type == ts::dtype::f16);
    CHECK(nodes(g, "Cast") == 1);
  }
}

TEST_CASE("names are those of the modules", "[arch][unet]") {
  const ts::graph g = build(arch_test::unet_sd1()).graph;
  const auto at = std::find_if(g.nodes.begin(), g.nodes.end(), [](const ts::node& n) { return n.name == "/down_blocks.0/resnets.0/conv1/Conv"; });
  REQUIRE(at != g.nodes.end());
  CHECK(at->module == "down_blocks.0.resnets.0.conv1");
  CHECK(g[at->inputs[1]].name == "down_blocks.0.resnets.0.conv1.weight");
  CHECK(g[at->outputs[0]].name == "/down_blocks.0/resnets.0/conv1/Conv_output_0");
  const ts::graph again = build(arch_test::unet_sd1()).graph;
  REQUIRE(again.nodes.size() == g.nodes.size());
  for (std::size_t i = 0; i < g.nodes.size(); ++i) REQUIRE(again.nodes[i].name == g.nodes[i].name);
}

TEST_CASE("SDXL takes text_embeds and time_ids", "[arch][unet]") {
  SECTION("base") {
    const ts::graph g = build(arch_test::unet_sdxl()).graph;
    CHECK(ts::to_string(input(g, "text_embeds")->shape) == "[batch_size, 1280]");
    CHECK(ts::to_string(input(g, "time_ids")->shape) == "[batch_size, 6]");
  }
  SECTION("refiner") { CHECK(ts::to_string(input(build(arch_test::unet_refiner()).graph, "time_ids")->shape) == "[batch_size, 5]"); }
  SECTION("a text encoder of another width") {
    json config = arch_test::unet_sdxl();
    config.set("projection_class_embeddings_input_dim", 64 + 5 * 256);
    const ts::graph g = build(config, ts::interface_optimum(), {.text_embeds_width = 64}).graph;
    CHECK(ts::to_string(input(g, "time_ids")->shape) == "[batch_size, 5]");
  }
}

TEST_CASE("conditions other than text", "[arch][unet]") {
  json config = tiny();
  SECTION("class ids") {
    config.set("num_class_embeds", 10);
    const built b = build(config);
    CHECK(input(b.graph, "class_labels")->type == ts::dtype::i64);
    CHECK(b.parameters.shapes.at("class_embedding.weight") == ts::shape_type{10, 128});
  }
  SECTION("class timesteps") {
    config.set("class_embed_type", "timestep");
    CHECK(build(config).parameters.shapes.at("class_embedding.linear_1.weight") == ts::shape_type{128, 32});
  }
  SECTION("class vectors, concatenated") {
    config.set("class_embed_type", "projection");
    config.set("projection_class_embeddings_input_dim", 20);
    config.set("class_embeddings_concat", true);
    for (const auto& io : {ts::interface_optimum(), ts::interface_diffusers()}) {
      const built b = build(config, io);
      CHECK(b.parameters.shapes.at("class_embedding.linear_1.weight") == ts::shape_type{128, 20});
      CHECK(b.parameters.shapes.at("mid_block.resnets.0.time_emb_proj.weight") == ts::shape_type{64, 256});
    }
  }
  SECTION("simple_projection and identity") {
    config.set("class_embed_type", "simple_projection");
    config.set("projection_class_embeddings_input_dim", 20);
    CHECK(build(config).parameters.shapes.at("class_embedding.weight") == ts::shape_type{128, 20});
    config.set("class_embed_type", "identity");
    CHECK(ts::to_string(input(build(config).graph, "class_labels")->shape) == "[batch_size, 128]");
  }
  SECTION("guidance embedding of LCM") {
    config.set("time_cond_proj_dim", 256);
    const built b = build(config);
    CHECK(ts::to_string(input(b.graph, "timestep_cond")->shape) == "[batch_size, 256]");
    CHECK(b.parameters.shapes.at("time_embedding.cond_proj.weight") == ts::shape_type{32, 256});
    CHECK(b.parameters.shapes.count("time_embedding.cond_proj.bias") == 0);
  }
}

TEST_CASE("block variants", "[arch][unet]") {
  json config = tiny();
  SECTION("no middle block") {
    config.set("mid_block_type", nullptr);
    const built b = build(config);
    CHECK(b.parameters.shapes.lower_bound("mid_block")->first.rfind("mid_block", 0) != 0);
  }
  SECTION("a middle block without attention has one resnet") {
    config.set("mid_block_type", "UNetMidBlock2D");
    const built b = build(config);
    CHECK(b.parameters.shapes.count("mid_block.resnets.0.conv1.weight") == 1);
    CHECK(b.parameters.shapes.count("mid_block.resnets.1.conv1.weight") == 0);
    CHECK(b.parameters.shapes.count("mid_block.attentions.0.norm.weight") == 0);
  }
  SECTION("time scale and shift") {
    config.set("resnet_time_scale_shift", "scale_shift");
    CHECK(build(config).parameters.shapes.at("down_blocks.0.resnets.0.time_emb_proj.weight") == ts::shape_type{64, 128});
  }
  SECTION("transformer layers of each layer of each level") {
    config.set("layers_per_block", 2);
    config.set("transformer_layers_per_block", json::array{list({1, 3}), 1});
    CHECK(refusal(config).find("FMT unet/config.json: /reverse_transformer_layers_per_block") == 0);
    config.set("reverse_transformer_layers_per_block", json::array{1, list({2, 1, 4})});
    const built b = build(config);
    CHECK(b.parameters.shapes.count("down_blocks.0.attentions.1.transformer_blocks.2.norm1.weight") == 1);
    CHECK(b.parameters.shapes.count("down_blocks.0.attentions.0.transformer_blocks.1.norm1.weight") == 0);
    CHECK(b.parameters.shapes.count("up_blocks.1.attentions.2.transformer_blocks.3.norm1.weight") == 1);
  }
  SECTION("padding 0 adds a row and a column first, centred input, kernels, scaled middle") {
    config.set("downsample_padding", 0);
    config.set("center_input_sample", true);
    config.set("conv_in_kernel", 1);
    config.set("conv_out_kernel", 5);
    config.set("mid_block_scale_factor", 2.0);
    const ts::graph g = build(config).graph;
    CHECK(nodes(g, "pad_bottom_right") == 1);
    CHECK(nodes(g, "Sub") == 1);
    CHECK(nodes(g, "Div") == 2);
  }
  SECTION("the x4 upscaler attends to the text alone at three levels") {
    const built b = build(arch_test::unet_x4_upscaler());
    CHECK(b.parameters.shapes.at("class_embedding.weight") == ts::shape_type{1000, 1024});
    CHECK(b.parameters.shapes.at("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.weight") == ts::shape_type{512, 1024});
    CHECK(b.parameters.shapes.at("mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight") == ts::shape_type{1024, 1024});
  }
}

TEST_CASE("configurations that make no sense are refused at once", "[arch][unet][faults]") {
  const auto with = [](const char* key, json value) {
    json config = tiny();
    config.set(key, std::move(value));
    return refusal(config);
  };
  const auto before = std::chrono::steady_clock::now();
  CHECK(refusal(json(json::array{})) == "FMT unet/config.json: the configuration is no JSON object (expected an object, found an array)");
  CHECK(with("layers_per_block", 1'000'000'000) == "FMT unet/config.json: /layers_per_block: the value is out of range (expected 1 to 256, found 1000000000)");
  CHECK(with("block_out_channels", list({32, -64})) == "FMT unet/config.json: /block_out_channels/1: the value is out of range (expected 1 to 65536, found -64)");
  CHECK(with("block_out_channels", "768") == "FMT unet/config.json: /block_out_channels: wrong type (expected an array, found a string)");
  CHECK(with("block_out_channels", list({0, 0})).find("/block_out_channels/0: the value is out of range") != std::string::npos);
  CHECK(with("block_out_channels", json::array{}).find("/block_out_channels: wrong number of entries") != std::string::npos);
  CHECK(with("block_out_channels", list({33, 64})) ==
        "FMT unet/config.json: /block_out_channels/0: the channels do not divide into the groups (expected a multiple of norm_num_groups 32, found 33)");
  CHECK(with("down_block_types", arch_test::words({arch_test::CA})) ==
        "FMT unet/config.json: /down_block_types: wrong number of entries (expected 2, found 1)");
  CHECK(with("down_block_types", arch_test::words({"KDownBlock2D", arch_test::D})) ==
        "UNS unet/config.json: /down_block_types/0: this value is not supported (expected one of DownBlock2D, CrossAttnDownBlock2D, found 'KDownBlock2D')");
  CHECK(with("act_fn", "mish").find("UNS unet/config.json: /act_fn") == 0);
  CHECK(with("attention_head_dim", 0).find("FMT unet/config.json: /attention_head_dim") == 0);
  CHECK(with("attention_head_dim", 33).find("more attention heads than channels") != std::string::npos);
  CHECK(with("norm_eps", "small").find("FMT unet/config.json: /norm_eps: wrong type (expected a number") == 0);
  CHECK(with("cross_attention_dim", list({24, 24, 24})).find("wrong number of entries") != std::string::npos);
  CHECK(with("cross_attention_dim", list({24, 32})).find("UNS unet/config.json: /cross_attention_dim") == 0);
  CHECK(with("in_channels", 4.5).find("FMT unet/config.json: /in_channels: wrong type (expected an integer, found a number)") == 0);
  CHECK(with("dual_cross_attention", true).find("UNS unet/config.json: /dual_cross_attention") == 0);
  CHECK(with("encoder_hid_dim", 4096).find("UNS unet/config.json: /encoder_hid_dim") == 0);
  CHECK(with("addition_embed_type", "image").find("UNS unet/config.json: /addition_embed_type") == 0);
  CHECK(with("addition_embed_type", "text_time").find("FMT unet/config.json: /addition_time_embed_dim") == 0);
  CHECK(with("mid_block_type", "UNetMidBlock2DSimpleCrossAttn").find("UNS unet/config.json: /mid_block_type") == 0);
  CHECK(with("time_embedding_type", "fourier").find("UNS unet/config.json: /time_embedding_type") == 0);
  CHECK(with("freq_shift", 16).find("FMT unet/config.json: /freq_shift") == 0);
  CHECK(with("conv_in_kernel", 2).find("UNS unet/config.json: /conv_in_kernel") == 0);
  CHECK(with("_class_name", "os.system").find("UNS unet/config.json: /_class_name") == 0);
  CHECK(with("transformer_layers_per_block", list({1, 100000})).find("FMT unet/config.json: /transformer_layers_per_block/1") == 0);
  CHECK(std::chrono::steady_clock::now() - before < std::chrono::seconds(5));
}
