// SPDX-License-Identifier: MIT
#include "tensorsmith/arch/prune.hpp"

#include "support/catch.hpp"
#include "support/names.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
using support::names;

namespace {

ts::package file_of(const std::vector<std::string>& tensors, const std::string& component = {}) {
  ts::package out;
  out.source = "m.ckpt";
  ts::component part;
  part.name = component;
  for (const std::string& t : tensors) REQUIRE(part.weights.add(t, ts::in_memory({t, ts::dtype::u8, {1}}, std::vector<std::byte>(1)), "m.ckpt: " + t));
  out.components.push_back(std::move(part));
  return out;
}

const std::vector<std::string> training = {"model.diffusion_model.out.0.weight",
                                           "model_ema.diffusion_modelout0weight",
                                           "model_ema.decay",
                                           "ema.layer.weight",
                                           "unet_ema.conv.weight",
                                           "betas",
                                           "posterior_variance",
                                           "optimizer_states.0.state.1.exp_avg",
                                           "head.momentum_buffer",
                                           "cond_stage_model.transformer.text_model.embeddings.position_ids",
                                           "schema.weight",
                                           "ema_like",
                                           "encoder.betas"};

}  // namespace

TEST_CASE("each group of training state is pruned by itself", "[arch]") {
  ts::package ema = file_of(training);
  const auto taken = ts::prune(ema, {.ema = true});
  REQUIRE(taken);
  REQUIRE(taken->size() == 4);
  CHECK((*taken)[1].name == "model_ema.decay");
  CHECK((*taken)[1].reason == "a moving average of training");
  CHECK(names(ema).size() == training.size() - 4);
  CHECK(ema.components[0].ignored[0] == "model_ema.diffusion_modelout0weight: a moving average of training");

  ts::package optimizer = file_of(training);
  const auto state = ts::prune(optimizer, {.optimizer = true});
  REQUIRE(state);
  REQUIRE(state->size() == 2);
  CHECK((*state)[0].reason == "state of the optimizer");

  ts::package schedule = file_of(training);
  const auto buffers = ts::prune(schedule, {.schedule = true});
  REQUIRE(buffers);
  REQUIRE(buffers->size() == 2);
  CHECK((*buffers)[0].name == "betas");
  CHECK((*buffers)[1].reason == "a buffer of the noise schedule");

  ts::package all = file_of(training);
  REQUIRE(ts::prune(all, {.ema = true, .optimizer = true, .schedule = true}));
  CHECK(names(all) == std::vector<std::string>{"model.diffusion_model.out.0.weight",
                                               "cond_stage_model.transformer.text_model.embeddings.position_ids", "schema.weight", "ema_like",
                                               "encoder.betas"});
}

TEST_CASE("pruning what holds no training state changes nothing; pruning everything is refused", "[arch]") {
  ts::package clean = file_of({"conv.weight", "conv.bias"});
  const auto taken = ts::prune(clean, {.ema = true, .optimizer = true, .schedule = true});
  REQUIRE(taken);
  CHECK(taken->empty());
  CHECK(clean.components[0].ignored.empty());

  ts::package only = file_of({"model_ema.a", "model_ema.b"});
  const auto refused = ts::prune(only, {.ema = true});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message() ==
        "MIS m.ckpt: pruning leaves no tensor: the source holds nothing but state of training (expected a weight of a network, found "
        "'model_ema.a'); prune less, or choose another source");
  CHECK(names(only).size() == 2);
}

TEST_CASE("a component of moving averages is known by its name", "[arch]") {
  ts::package in = file_of({"conv.weight"}, "unet");
  ts::component averaged;
  averaged.name = "unet_ema";
  REQUIRE(averaged.weights.add("conv.weight", ts::in_memory({"w", ts::dtype::u8, {1}}, std::vector<std::byte>(1)), "w"));
  in.components.push_back(std::move(averaged));
  const auto taken = ts::prune(in, {.ema = true});
  REQUIRE(taken);
  REQUIRE(taken->size() == 1);
  CHECK((*taken)[0].name == "unet_ema.conv.weight");
  CHECK(in.components[1].weights.empty());
}
