// SPDX-License-Identifier: MIT
#include "tensorsmith/arch/autoencoder_kl.hpp"

#include <cmath>

#include "arch/counting_source.hpp"
#include "arch/published_configs.hpp"
#include "support/catch.hpp"
#include "tensorsmith/graph/verify.hpp"

namespace {

namespace ts = tensorsmith;
using arch_test::counting_source;
using arch_test::json;

ts::graph sound(ts::result<ts::graph> graph) {
  if (!graph) FAIL(graph.error().message());
  const auto checked = ts::verify(*graph);
  if (!checked) FAIL(checked.error().message());
  return std::move(*graph);
}
ts::graph encoder(const json& config, counting_source& source, const ts::io_interface& io = ts::interface_optimum(), const ts::arch_options& options = {}) {
  return sound(ts::build_vae_encoder(config, source, io, options));
}
ts::graph decoder(const json& config, counting_source& source, const ts::io_interface& io = ts::interface_optimum(), const ts::arch_options& options = {}) {
  return sound(ts::build_vae_decoder(config, source, io, options));
}
std::string shown(const ts::graph& g, ts::value_id id) { return g[id].name + " " + std::string(ts::name_of(g[id].type)) + " " + ts::to_string(g[id].shape); }

}  // namespace

TEST_CASE("both halves of the published autoencoder use each of its tensors once", "[arch][vae]") {
  counting_source source;
  (void)encoder(arch_test::vae(), source);
  (void)decoder(arch_test::vae(), source);
  CHECK(source.shapes.size() == 248);
  CHECK(source.parameters == 83'653'863);
}

TEST_CASE("interfaces of the autoencoder", "[arch][vae]") {
  counting_source source;
  SECTION("Optimum") {
    const ts::graph e = encoder(arch_test::vae(), source), d = decoder(arch_test::vae(), source);
    CHECK(shown(e, e.inputs[0]) == "sample f32 [batch_size, 3, sample_height, sample_width]");
    CHECK(shown(e, e.outputs[0]) == "latent_parameters f32 [batch_size, 8, sample_height / 8, sample_width / 8]");
    CHECK(shown(d, d.inputs[0]) == "latent_sample f32 [batch_size, 4, latent_height, latent_width]");
    CHECK(shown(d, d.outputs[0]) == "sample f32 [batch_size, 3, latent_height * 8, latent_width * 8]");
  }
  SECTION("diffusers gives a latent: the mean") {
    const ts::graph e = encoder(arch_test::vae(), source, ts::interface_diffusers());
    CHECK(shown(e, e.outputs[0]) == "latent_sample f32 [batch, 4, height / 8, width / 8]");
  }
  SECTION("onnx-web speaks f32 to the encoder in any case") {
    ts::io_interface io = ts::interface_onnx_web();
    io.io_float = ts::dtype::f16;
    const ts::graph e = encoder(arch_test::vae(), source, io), d = decoder(arch_test::vae(), source, io, {.compute = ts::dtype::f16});
    CHECK(e[e.inputs[0]].type == ts::dtype::f32);
    CHECK(d[d.inputs[0]].type == ts::dtype::f16);
    CHECK(d[d.outputs[0]].type == ts::dtype::f16);
  }
}

TEST_CASE("optional parts of the autoencoder", "[arch][vae]") {
  json config = arch_test::vae();
  config.set("use_quant_conv", false);
  config.set("use_post_quant_conv", false);
  config.set("mid_block_add_attention", false);
  counting_source source;
  (void)encoder(config, source);
  (void)decoder(config, source);
  CHECK(source.shapes.size() == 248 - 4 - 20);
  const auto attention = std::find_if(source.shapes.begin(), source.shapes.end(), [](const auto& s) { return s.first.find("attentions") != std::string::npos; });
  CHECK(attention == source.shapes.end());
}

TEST_CASE("attention of the autoencoder has one head and is computed in f32", "[arch][vae]") {
  counting_source source;
  const ts::graph d = decoder(arch_test::vae(), source);
  std::size_t found = 0;
  for (const ts::node& n : d.nodes)
    if (n.op == "attention") {
      ++found;
      CHECK(n.integer("num_heads", 0) == 1);
      CHECK(n.integer("upcast", 0) == 1);
      CHECK(std::abs(n.number("scale", 0) - 1.0F / std::sqrt(512.0F)) < 1e-7F);
      CHECK(n.name == "/decoder/mid_block/attentions.0/attention");
    }
  CHECK(found == 1);
}

TEST_CASE("autoencoder configurations that make no sense are refused", "[arch][vae][faults]") {
  const auto with = [](const char* key, json value) {
    json config = arch_test::vae();
    config.set(key, std::move(value));
    counting_source source;
    const auto graph = ts::build_vae_encoder(config, source, ts::interface_optimum(), {});
    return graph ? "accepted" : graph.error().message();
  };
  CHECK(with("layers_per_block", std::int64_t{1'000'000'000}) == "FMT vae/config.json: /layers_per_block: the value is out of range (expected 1 to 256, found 1000000000)");
  CHECK(with("block_out_channels", nullptr) == "FMT vae/config.json: /block_out_channels: the configuration lacks a value (expected an array, found nothing)");
  CHECK(with("block_out_channels", arch_test::list({100, 128, 256, 512})).find("/block_out_channels/0: the channels do not divide into the groups") != std::string::npos);
  CHECK(with("down_block_types", arch_test::words({"AttnDownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"})).find("UNS vae/config.json: /down_block_types/0") == 0);
  CHECK(with("latent_channels", -4).find("FMT vae/config.json: /latent_channels") == 0);
  CHECK(with("use_quant_conv", 1) == "FMT vae/config.json: /use_quant_conv: wrong type (expected true or false, found an integer)");
  CHECK(with("_class_name", "AutoencoderTiny").find("UNS vae/config.json: /_class_name") == 0);
}
