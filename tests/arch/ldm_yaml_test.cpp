// SPDX-License-Identifier: MIT
#include <string>

#include "support/catch.hpp"
#include "tensorsmith/arch/ldm_yaml.hpp"
#include "tensorsmith/io/json.hpp"

namespace ts = tensorsmith;

namespace {

std::string as_json(const std::string& yaml) {
  const auto value = ts::parse_yaml_subset(yaml, "a.yaml");
  return value ? ts::write_json(*value, 0) : value.error().message();
}

constexpr const char* v2 = R"(model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    timesteps: 1000
    first_stage_key: "jpg"   # a comment
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: False # we set this to false because this is an inference only config

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        use_checkpoint: True
        image_size: 32 # unused
        in_channels: 4
        out_channels: 4
        model_channels: 320
        attention_resolutions: [ 4, 2, 1 ]
        num_res_blocks: 2
        channel_mult: [ 1, 2, 4, 4 ]
        num_head_channels: 64 # need to fix for flash-attn
        use_linear_in_transformer: True
        transformer_depth: 1
        context_dim: 1024
        legacy: False
    first_stage_config:
      params:
        ddconfig:
          ch_mult:
          - 1
          - 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig: {target: torch.nn.Identity}
)";

}  // namespace

TEST_CASE("the yaml subset reads mappings, lists and scalars") {
  CHECK(as_json("a: 1\nb: -2.5\nc: text with spaces\nd: ~\ne:\nf: 'x: y # z'\n") ==
        R"({"a": 1, "b": -2.5, "c": "text with spaces", "d": null, "e": null, "f": "x: y # z"})");
  CHECK(as_json("a:\n  b:\n    c: true\n  d: [1, [2, 3], {e: f}]\n") == R"({"a": {"b": {"c": true}, "d": [1, [2, 3], {"e": "f"}]}})");
  CHECK(as_json("a:\n- 1\n- b: 2\n  c: 3\n-\n  d: 4\n- []\n") == R"({"a": [1, {"b": 2, "c": 3}, {"d": 4}, []]})");
  CHECK(as_json("a: [ 1,\n  2 ]\nb: 3\r\n") == R"({"a": [1, 2], "b": 3})");
  CHECK(as_json("---\n# only a comment\n") == "{}");
  CHECK(as_json("a: |\n  one\n  two\nb: 1\n") == R"({"a": "one\ntwo", "b": 1})");
}

TEST_CASE("what is no such yaml is refused with its line") {
  CHECK(as_json("a: 1\n  b: 2\n") == "FMT a.yaml: line 2: this line belongs to no block (found 'b: 2')");
  CHECK(as_json("a: 1\na: 2\n") == "FMT a.yaml: line 2: the key 'a' occurs twice (found 'a: 2')");
  CHECK(as_json("just text\n") == "FMT a.yaml: line 1: a line is neither 'key: value' nor a list item (found 'just text')");
  CHECK(as_json("a: [1, 2\n").substr(0, 11) == "FMT a.yaml:");
  CHECK(as_json("a: [1}\n").substr(0, 11) == "FMT a.yaml:");
  CHECK(as_json("a: &x 1\n").substr(0, 11) == "FMT a.yaml:");
  CHECK(as_json("\ta: 1\n").substr(0, 11) == "FMT a.yaml:");
  std::string deep;
  for (int i = 0; i < 200; ++i) deep += std::string(static_cast<std::size_t>(i), ' ') + "a:\n";
  CHECK(as_json(deep).find("nested too deeply") != std::string::npos);
  CHECK(as_json("a: " + std::string(100000, '[')).find("FMT") == 0);
}

TEST_CASE("the settings of a v2 configuration are found") {
  const auto yaml = ts::parse_yaml_subset(v2, "v2.yaml");
  REQUIRE(yaml);
  const auto settings = ts::read_ldm_settings(*yaml, "v2.yaml");
  REQUIRE(settings);
  CHECK(settings->parameterization == "v");
  CHECK(settings->linear_start == 0.00085);
  CHECK(settings->timesteps == 1000);
  CHECK(settings->scale_factor == 0.18215);
  CHECK(settings->num_head_channels == 64);
  CHECK_FALSE(settings->num_heads);
  CHECK(settings->context_dim == 1024);
  CHECK(settings->channel_mult == std::vector<std::size_t>{1, 2, 4, 4});
  CHECK(settings->linear_projection == true);
}

TEST_CASE("a yaml of something else is refused") {
  const auto settings = ts::read_ldm_settings(*ts::parse_yaml_subset("a: 1\n", "x.yaml"), "x.yaml");
  REQUIRE_FALSE(settings);
  CHECK(settings.error().code == ts::errc::mismatch);
}
