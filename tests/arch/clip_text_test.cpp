// SPDX-License-Identifier: MIT
#include "tensorsmith/arch/clip_text.hpp"

#include "arch/counting_source.hpp"
#include "arch/published_configs.hpp"
#include "support/catch.hpp"
#include "tensorsmith/graph/verify.hpp"
#include "tensorsmith/tensor/catalog.hpp"

namespace {

namespace ts = tensorsmith;
using arch_test::counting_source;
using arch_test::json;

ts::graph build(const json& config, ts::parameter_source& parameters, const ts::io_interface& io = ts::interface_optimum(),
                const ts::arch_options& options = {}) {
  auto graph = ts::build_clip_text(config, parameters, io, options);
  if (!graph) FAIL(graph.error().message());
  const auto sound = ts::verify(*graph);
  if (!sound) FAIL(sound.error().message());
  return std::move(*graph);
}
std::vector<std::string> outputs(const ts::graph& g) {
  std::vector<std::string> out;
  for (const ts::value_id id : g.outputs) out.push_back(g[id].name + " " + ts::to_string(g[id].shape));
  return out;
}
std::int64_t pooled_token(const json& config, ts::parameter_source& parameters) {
  const ts::graph g = build(config, parameters);
  for (const ts::node& n : g.nodes)
    if (n.op == "pool_at_token") return n.integer("token", -1);
  return -1;
}
json tiny() {
  json out = arch_test::clip("CLIPTextModel", 32, 2, 4, "gelu", 16);
  out.set("vocab_size", 300);
  return out;
}

}  // namespace

TEST_CASE("published text encoders have the tensors and parameters of the published files", "[arch][clip]") {
  const auto check = [](const json& config, std::size_t tensors, std::size_t parameters) {
    counting_source source;
    (void)build(config, source);
    CHECK(source.shapes.size() == tensors);
    CHECK(source.parameters == parameters);
  };
  check(arch_test::clip_l(), 196, 123'060'480);
  check(arch_test::clip_vit_h(), 372, 340'387'840);
  check(arch_test::clip_big_g(), 517, 694'659'840);
}

TEST_CASE("outputs of a text encoder follow the interface and the pipeline", "[arch][clip]") {
  counting_source source;
  using list = std::vector<std::string>;
  SECTION("Optimum, SD 1 and 2") {
    const ts::graph g = build(tiny(), source);
    CHECK(g[g.inputs[0]].type == ts::dtype::i64);
    CHECK(ts::to_string(g[g.inputs[0]].shape) == "[batch_size, sequence_length]");
    CHECK(outputs(g) == list{"last_hidden_state [batch_size, sequence_length, 32]", "pooler_output [batch_size, 32]"});
  }
  SECTION("Optimum, SDXL: all hidden states") {
    CHECK(outputs(build(tiny(), source, ts::interface_optimum(), {.last_state_but_one = true})) ==
          list{"last_hidden_state [batch_size, sequence_length, 32]", "pooler_output [batch_size, 32]",
               "hidden_states.0 [batch_size, sequence_length, 32]", "hidden_states.1 [batch_size, sequence_length, 32]",
               "hidden_states.2 [batch_size, sequence_length, 32]"});
  }
  SECTION("with projection") {
    json config = tiny();
    config.set("architectures", arch_test::words({"CLIPTextModelWithProjection"}));
    CHECK(outputs(build(config, source)) == list{"text_embeds [batch_size, 16]", "last_hidden_state [batch_size, sequence_length, 32]"});
    CHECK(source.shapes.at("text_projection.weight") == ts::shape_type{16, 32});
  }
  SECTION("diffusers and onnx-web") {
    const ts::graph g = build(tiny(), source, ts::interface_diffusers());
    CHECK(g[g.inputs[0]].type == ts::dtype::i32);
    CHECK(outputs(g) == list{"last_hidden_state [batch, sequence, 32]", "pooler_output [batch, 32]"});
    CHECK(outputs(build(tiny(), source, ts::interface_onnx_web())).back() == "hidden_states [batch, sequence, 32]");
  }
  SECTION("f16 inside, f32 outside") {
    const ts::graph g = build(tiny(), source, ts::interface_optimum(), {.compute = ts::dtype::f16, .last_state_but_one = true});
    for (const ts::value_id id : g.outputs) CHECK(g[id].type == ts::dtype::f32);
  }
}

TEST_CASE("the last hidden state is the normalized output of the last layer", "[arch][clip]") {
  counting_source source;
  const ts::graph g = build(tiny(), source, ts::interface_optimum(), {.last_state_but_one = true});
  const auto norm = std::find_if(g.nodes.begin(), g.nodes.end(), [](const ts::node& n) { return n.name == "/text_model/final_layer_norm/layer_norm"; });
  REQUIRE(norm != g.nodes.end());
  CHECK(g[norm->inputs[0]].name == "hidden_states.2");
  CHECK(g[norm->outputs[0]].name == "last_hidden_state");
}

TEST_CASE("the end token is the configured one, or the end marker where configurations hold the old wrong id", "[arch][clip]") {
  counting_source large, small_ones;
  CHECK(pooled_token(arch_test::clip_l(), large) == 49407);
  CHECK(pooled_token(tiny(), small_ones) == 299);
  json config = tiny();
  config.set("eos_token_id", 17);
  CHECK(pooled_token(config, small_ones) == 17);
  SECTION("appended embeddings change neither the end token nor need a changed configuration") {
    ts::catalog weights;
    counting_source shapes;
    json small = arch_test::clip("CLIPTextModel", 32, 1, 4, "gelu", 16);
    (void)build(small, shapes);
    for (const auto& [name, shape] : shapes.shapes) {
      ts::shape_type stored = shape;
      if (name == "text_model.embeddings.token_embedding.weight") stored[0] += 3;
      REQUIRE(weights.add(name, arch_test::hollow(name, ts::dtype::f32, stored), ""));
    }
    ts::catalog_parameters parameters(weights, "text_encoder", "model");
    CHECK(pooled_token(small, parameters) == 49407);
    CHECK(parameters.leftovers().empty());
  }
}

TEST_CASE("without architectures the weights tell whether there is a projection", "[arch][clip]") {
  json config = tiny();
  json::object members = *config.as_object();
  members.erase(members.begin());  // architectures
  config = members;
  counting_source wanted;
  {
    json projected = tiny();
    projected.set("architectures", arch_test::words({"CLIPTextModelWithProjection"}));
    (void)build(projected, wanted);
  }
  ts::catalog weights;
  for (const auto& [name, shape] : wanted.shapes) REQUIRE(weights.add(name, arch_test::hollow(name, ts::dtype::f32, shape), ""));
  ts::catalog_parameters parameters(weights, "text_encoder", "model");
  CHECK(outputs(build(config, parameters))[0] == "text_embeds [batch_size, 16]");
}

TEST_CASE("text encoder configurations that make no sense are refused", "[arch][clip][faults]") {
  const auto with = [](const char* key, json value) {
    json config = tiny();
    config.set(key, std::move(value));
    counting_source source;
    const auto graph = ts::build_clip_text(config, source, ts::interface_optimum(), {.component = "text_encoder_2"});
    return graph ? "accepted" : graph.error().message();
  };
  CHECK(with("hidden_size", 0) == "FMT text_encoder_2/config.json: /hidden_size: the value is out of range (expected 1 to 65536, found 0)");
  CHECK(with("hidden_size", "768") == "FMT text_encoder_2/config.json: /hidden_size: wrong type (expected an integer, found a string)");
  CHECK(with("hidden_size", nullptr) == "FMT text_encoder_2/config.json: /hidden_size: the configuration lacks a value (expected an integer, found nothing)");
  CHECK(with("num_attention_heads", 5) ==
        "FMT text_encoder_2/config.json: /num_attention_heads: the width does not divide into the heads (expected a divisor of 32, found 5)");
  CHECK(with("num_hidden_layers", std::int64_t{1'000'000'000}).find("FMT text_encoder_2/config.json: /num_hidden_layers: the value is out of range") == 0);
  CHECK(with("hidden_act", "swiglu") ==
        "UNS text_encoder_2/config.json: /hidden_act: this value is not supported (expected one of quick_gelu, gelu, found 'swiglu')");
  CHECK(with("architectures", arch_test::words({"T5EncoderModel"})).find("UNS text_encoder_2/config.json: /architectures/0") == 0);
  CHECK(with("eos_token_id", arch_test::list({1, 2})).find("FMT text_encoder_2/config.json: /eos_token_id: wrong type") == 0);
  CHECK(with("layer_norm_eps", -1).find("FMT text_encoder_2/config.json: /layer_norm_eps: the value is out of range") == 0);
}
