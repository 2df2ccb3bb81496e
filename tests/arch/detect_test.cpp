// SPDX-License-Identifier: MIT
#include <string>
#include <vector>

#include "arch/published_models.hpp"
#include "support/catch.hpp"
#include "tensorsmith/arch/checkpoint_catalogs.hpp"
#include "tensorsmith/arch/derive_config.hpp"
#include "tensorsmith/arch/detect.hpp"
#include "tensorsmith/arch/prediction.hpp"

namespace ts = tensorsmith;

namespace {

ts::unet_shape shape_of(const support::unet_plan& plan) {
  auto shape = ts::unet_shape_of(support::shapes(support::unet_parameters(plan)));
  REQUIRE(shape);
  return *shape;
}

std::string family_of(const support::unet_plan& plan, const std::string& user = "auto") {
  ts::family_vote vote;
  REQUIRE(ts::vote_of_user(vote, user));
  ts::vote_of_unet(vote, shape_of(plan));
  const auto outcome = vote.outcome();
  return outcome ? std::string(ts::name_of(outcome->first)) : outcome.error().message();
}

support::parameters prefixed(const std::string& prefix, const support::parameters& list) {
  support::parameters out;
  for (const auto& entry : list) out.push_back({prefix + entry.first, entry.second});
  return out;
}

}  // namespace

TEST_CASE("a UNet alone tells its family by its shapes") {
  CHECK(family_of(support::sd1_unet()) == "sd1");
  CHECK(family_of(support::sd2_unet()) == "sd2");
  CHECK(family_of(support::sdxl_unet()) == "sdxl");
  CHECK(family_of(support::refiner_unet()) == "sdxl-refiner");
  CHECK(family_of(support::ssd_unet()) == "sdxl");
  CHECK(family_of(support::tiny_unet()) == "sd1");
  auto scaled = support::sdxl_unet();  // widths that no published model has
  scaled.cross = 192, scaled.added = 128 + 6 * 256;
  CHECK(family_of(scaled) == "sdxl");
  scaled.cross = 64, scaled.added = 64 + 5 * 256;
  CHECK(family_of(scaled) == "sdxl-refiner");
}

TEST_CASE("what the user says must agree with the shapes, and settles what they leave open") {
  CHECK(family_of(support::sd1_unet(), "sdxl") ==
        "MIS the UNet: the evidence of the model's family contradicts itself (expected sdxl (--model: sdxl), found sd1 or sd2 (it has no "
        "add_embedding (label_emb))); check --model, or pass --model and --config to say what it is");
  CHECK(family_of(support::sd2_unet(), "sd1").substr(0, 4) == "MIS ");
  auto mixed = support::sd1_unet();
  mixed.linear = true;  // CLIP-L's width with matrices
  CHECK(family_of(mixed).substr(0, 4) == "MIS ");
  CHECK(family_of(mixed, "sd1") == "sd1");
  auto open = support::sdxl_unet();
  open.cross = 1000, open.added = 2816;
  CHECK(family_of(open).find("pass --model sd1, sd2, sdxl or sdxl-refiner") != std::string::npos);
  CHECK(family_of(open, "sdxl") == "sdxl");
  ts::family_vote vote;
  const auto bad = ts::vote_of_user(vote, "sd3");
  REQUIRE_FALSE(bad);
  CHECK(bad.error().message() == "USE unknown model 'sd3' (expected auto, sd1, sd2, sdxl or sdxl-refiner)");
}

TEST_CASE("a checkpoint comes apart by its prefixes; everything is accounted for") {
  auto list = prefixed("model.diffusion_model.", {{"input_blocks.0.0.weight", {320, 4, 3, 3}}, {"out.2.bias", {4}}});
  for (auto& entry : support::parameters{{"first_stage_model.encoder.conv_in.weight", {128, 3, 3, 3}},
                                         {"cond_stage_model.transformer.text_model.embeddings.position_ids", {1, 77}},
                                         {"cond_stage_model.transformer.text_model.final_layer_norm.bias", {768}},
                                         {"alphas_cumprod", {1000}},
                                         {"model_ema.diffusion_modelout2bias", {4}},
                                         {"model_ema.decay", {}},
                                         {"v_pred", {0}},
                                         {"something.else", {3}}})
    list.push_back(entry);
  const auto tensors = support::shapes(list);
  const auto parts = ts::split_checkpoint(tensors);
  REQUIRE(parts);
  REQUIRE(parts->parts.size() == 3);
  CHECK(parts->find("unet")->members[0].name == "input_blocks.0.0.weight");
  CHECK(parts->find("vae")->form == ts::part_form::ldm);
  CHECK(parts->find("text_encoder")->form == ts::part_form::clip);
  CHECK(parts->ignored.size() == 3);
  CHECK(parts->moving_averages == 1);
  CHECK(parts->marked("v_pred"));
  REQUIRE(parts->unknown.size() == 1);
  CHECK(parts->unknown[0]->name == "something.else");
}

TEST_CASE("two prefixes for one component are refused") {
  const auto tensors = support::shapes({{"cond_stage_model.transformer.text_model.final_layer_norm.bias", {8}},
                                        {"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", {8}}});
  const auto parts = ts::split_checkpoint(tensors);
  REQUIRE_FALSE(parts);
  CHECK(parts.error().code == ts::errc::mismatch);
}

TEST_CASE("names that a component cannot have are an error") {
  const auto tensors = support::shapes({{"model.diffusion_model.input_blocks.0.0.weight", {320, 4, 3, 3}},
                                        {"model.diffusion_model.input_blocks.1.0.strange.weight", {1}}});
  const auto parts = ts::split_checkpoint(tensors);
  REQUIRE(parts);
  const auto weights = ts::unet_weights(*parts->find("unet"), tensors, false);
  REQUIRE_FALSE(weights);
  CHECK(weights.error().message() ==
        "UNS model.diffusion_model.: 1 tensors have names that no known UNet has (found 'model.diffusion_model.input_blocks.1.0.strange.weight'); "
        "this is a variant that is not supported");
}

TEST_CASE("OpenCLIP loses its last block only where it is complete") {
  const auto blocks_of = [](const support::parameters& list, bool projected) {
    const auto tensors = support::shapes(list);
    const auto parts = ts::split_checkpoint(tensors);
    REQUIRE(parts);
    const auto weights = ts::open_clip_weights(parts->parts[0], tensors, projected);
    REQUIRE(weights);
    const auto shape = ts::clip_shape_of(weights->weights);
    REQUIRE(shape);
    return *shape;
  };
  const std::string prefix = "cond_stage_model.model.";
  const auto whole = prefixed(prefix, support::open_clip_parameters(1024, 24));
  CHECK(blocks_of(whole, false).layers == 23);
  CHECK_FALSE(blocks_of(whole, false).projection);
  support::parameters cut;  // as diffusers' own script writes it
  for (const auto& entry : prefixed(prefix, support::open_clip_parameters(1024, 23)))
    if (entry.first != prefix + "text_projection") cut.push_back(entry);
  CHECK(blocks_of(cut, false).layers == 23);
  CHECK(blocks_of(prefixed("conditioner.embedders.1.model.", support::open_clip_parameters(1280, 32)), true).layers == 32);
  CHECK(blocks_of(prefixed("conditioner.embedders.1.model.", support::open_clip_parameters(1280, 32)), true).projection == 1280);
}

TEST_CASE("the prediction type follows the strongest evidence") {
  const auto tensors = support::shapes({{"v_pred", {0}}, {"ztsnr", {0}}});
  const auto marked = ts::split_checkpoint(tensors).value();
  const ts::checkpoint_parts plain;
  const auto kind = [](ts::sd_family family, const ts::training_facts& facts, const ts::checkpoint_parts& parts,
                       std::optional<std::string> variant = {}) {
    const auto choice = ts::choose_prediction(family, facts, parts, variant);
    REQUIRE(choice);
    return *choice;
  };
  CHECK(kind(ts::sd_family::sd1, {}, plain).name() == "epsilon");
  CHECK(kind(ts::sd_family::sdxl, {}, plain).name() == "epsilon");
  CHECK(kind(ts::sd_family::sdxl, {}, marked).name() == "v_prediction");
  CHECK(kind(ts::sd_family::sdxl, {}, marked).zero_snr);
  const auto guess = kind(ts::sd_family::sd2, {}, plain);
  CHECK(guess.name() == "v_prediction");
  CHECK(guess.guessed);
  const auto facts = [](std::optional<std::string> user, std::optional<std::string> yaml, std::vector<std::pair<std::string, std::string>> metadata,
                        std::optional<std::int64_t> step) {
    return ts::training_facts{std::move(user), std::move(yaml), std::move(metadata), step};
  };
  CHECK(kind(ts::sd_family::sd2, facts({}, {}, {}, 875000), plain).name() == "epsilon");
  CHECK(kind(ts::sd_family::sd2, facts({}, {}, {}, 140000), plain).name() == "v_prediction");
  CHECK_FALSE(kind(ts::sd_family::sd2, facts({}, {}, {}, 140000), plain).guessed);
  CHECK(kind(ts::sd_family::sd2, {}, plain, "inpainting").name() == "epsilon");
  CHECK(kind(ts::sd_family::sd2, facts({}, {}, {{"modelspec.prediction_type", "epsilon"}}, 140000), plain).name() == "epsilon");
  CHECK(kind(ts::sd_family::sd2, facts({}, "v", {{"modelspec.prediction_type", "epsilon"}}, {}), plain).name() == "v_prediction");
  CHECK(kind(ts::sd_family::sd2, facts("epsilon", "v", {}, {}), plain).name() == "epsilon");
  CHECK(kind(ts::sd_family::sd2, facts({}, {}, {{"ss_base_model_version", "sd_v2_v"}}, {}), plain).name() == "v_prediction");
  CHECK_FALSE(ts::choose_prediction(ts::sd_family::sd1, facts("x0", {}, {}, {}), plain));
}
