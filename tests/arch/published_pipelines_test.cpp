// SPDX-License-Identifier: MIT
//
// Checkpoints of the published sizes, as sparse files: opened, built, lowered and verified without reading a weight. Every tensor must
// be used: a missing or a leftover one fails the build.
#include <map>
#include <string>

#include "arch/sparse_checkpoint.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/stable_diffusion_build.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/graph/verify.hpp"
#include "tensorsmith/target/ort.hpp"

namespace ts = tensorsmith;
using support::joined;
using support::ldm_unet;
using support::ldm_vae;
using support::with_prefix;

namespace {

/// Parameters of each graph of the pipeline that these tensors make.
std::map<std::string, std::size_t> pipeline_of(const support::parameters& tensors, const std::string& family) {
  const support::temp_folder folder;
  const std::string path = folder / "model.safetensors";
  support::write_sparse(path, tensors);
  ts::job run;
  auto opened = ts::open_stable_diffusion(path, {}, run);
  INFO((opened ? std::string("opened") : opened.error().message()));
  REQUIRE(opened);
  CHECK(opened->family == family);
  auto built = ts::build_stable_diffusion(std::move(*opened), {}, run);
  INFO((built ? std::string("built") : built.error().message()));
  REQUIRE(built);
  auto lowered = ts::lower_to_ort(std::move(*built), {}, run);
  INFO((lowered ? std::string("lowered") : lowered.error().message()));
  REQUIRE(lowered);
  std::map<std::string, std::size_t> counts;
  for (const ts::bundle_component& part : lowered->components) {
    const auto sound = ts::verify(part.model);
    INFO(part.name << ": " << (sound ? std::string("sound") : sound.error().message()));
    CHECK(sound);
    for (const ts::initializer& i : part.model.initializers)
      if (const auto* weights = std::get_if<ts::tensor_ref>(&i.data)) counts[part.name] += weights->info().elements();
  }
  return counts;
}

const support::parameters clip_l = with_prefix("cond_stage_model.transformer.", support::clip_parameters(768, 12));
support::parameters xl_encoders() {
  return joined({with_prefix("conditioner.embedders.0.transformer.", support::clip_parameters(768, 12)),
                 with_prefix("conditioner.embedders.1.model.", support::open_clip_parameters(1280, 32))});
}

}  // namespace

TEST_CASE("SD1 checkpoints and their small relatives become whole pipelines", "[arch]") {
  const auto sd1 = pipeline_of(joined({ldm_unet(support::sd1_unet()), ldm_vae(), clip_l}), "sd1");
  CHECK(sd1.at("unet") == 859'520'964);
  CHECK(sd1.at("text_encoder") == 123'060'480);
  CHECK(sd1.at("vae_encoder") + sd1.at("vae_decoder") == 83'653'863);

  auto inpaint = support::sd1_unet();
  inpaint.in = 9;
  CHECK(pipeline_of(joined({ldm_unet(inpaint), ldm_vae(), clip_l}), "sd1").at("unet") == 859'520'964 + 5 * 320 * 9);
  CHECK(pipeline_of(joined({ldm_unet(support::small_unet()), ldm_vae(), clip_l}), "sd1").at("unet") < 859'520'964);
  CHECK(pipeline_of(joined({ldm_unet(support::tiny_unet()), ldm_vae(), clip_l}), "sd1").at("unet") < 859'520'964);

  auto consistency = ldm_unet(support::sd1_unet());
  consistency.push_back({"model.diffusion_model.time_embed.cond_proj.weight", {320, 256}});
  CHECK(pipeline_of(joined({consistency, ldm_vae(), clip_l}), "sd1").at("unet") == 859'520'964 + 320 * 256);
}

TEST_CASE("SD2 checkpoints become whole pipelines", "[arch]") {
  for (const char* prefix : {"cond_stage_model.model.", "conditioner.embedders.0.model."}) {
    INFO(prefix);
    const auto sd2 = pipeline_of(joined({ldm_unet(support::sd2_unet()), ldm_vae(), with_prefix(prefix, support::open_clip_parameters(1024, 24))}), "sd2");
    CHECK(sd2.at("unet") == 865'910'724);
    CHECK(sd2.at("text_encoder") == 340'387'840);
  }
}

TEST_CASE("SDXL checkpoints, the refiner and SSD-1B become whole pipelines", "[arch]") {
  const auto base = pipeline_of(joined({ldm_unet(support::sdxl_unet()), ldm_vae(), xl_encoders()}), "sdxl");
  CHECK(base.at("unet") == 2'567'463'684);
  CHECK(base.at("text_encoder") == 123'060'480);
  CHECK(base.at("text_encoder_2") == 694'659'840);
  CHECK(pipeline_of(joined({ldm_unet(support::ssd_unet()), ldm_vae(), xl_encoders()}), "sdxl").at("unet") < 2'567'463'684);
  const auto refiner = pipeline_of(
      joined({ldm_unet(support::refiner_unet()), ldm_vae(), with_prefix("conditioner.embedders.0.model.", support::open_clip_parameters(1280, 32))}),
      "sdxl-refiner");
  CHECK(refiner.at("unet") == 2'259'526'660);
  CHECK(refiner.count("text_encoder") == 0);
}
