// SPDX-License-Identifier: MIT
#include "tensorsmith/arch/checkpoint_names.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "arch/sparse_checkpoint.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/format/diffusers/write.hpp"
#include "tensorsmith/format/torch/write.hpp"

namespace ts = tensorsmith;

namespace {

template <class T>
T got(ts::result<T> result) {
  if (!result) FAIL(result.error().message());
  return std::move(result).value();
}
void fine(const ts::result<void>& result) {
  if (!result) FAIL(result.error().message());
}

using contents = std::map<std::string, std::tuple<ts::dtype, ts::shape_type, std::vector<std::byte>>>;

contents contents_of(const ts::catalog& tensors) {
  contents out;
  for (const ts::catalog_entry& entry : tensors.entries())
    out[entry.name] = {entry.tensor.type(), entry.tensor.shape(), got(ts::materialize(entry.tensor, {}))};
  return out;
}

/// "a, b" for the names that only one of them has, and "a differs".
std::string differences(const contents& a, const contents& b) {
  std::string out;
  for (const auto& [name, tensor] : a)
    if (const auto other = b.find(name); other == b.end()) out += "- " + name + "\n";
    else if (other->second != tensor) out += "differs: " + name + "\n";
  for (const auto& [name, tensor] : b)
    if (a.find(name) == a.end()) out += "+ " + name + "\n";
  return out;
}

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

ts::package weights(const std::string& path) {
  ts::job run;
  return got(ts::open_weights(path, {}, run));
}
ts::package model(const std::string& path) {
  ts::job run;
  return got(ts::open_stable_diffusion(path, {}, run));
}
ts::single_file_checkpoint checkpoint(const ts::package& in) {
  ts::job run;
  return got(ts::make_checkpoint(in, run));
}

void write_checkpoint(const ts::single_file_checkpoint& made, const std::string& path, bool torch, ts::job run = {}) {
  if (!torch) {
    got(ts::write_safetensors(made.tensors, path, {.metadata = made.metadata, .force = true, .verify = true}, run));
    return;
  }
  ts::torch_write_options options;
  options.nested = "state_dict";
  options.force = true;
  if (made.global_step) options.scalars = {{"global_step", *made.global_step}};
  got(ts::write_torch(made.tensors, path, run, options));
}

void write_folder(const ts::package& in, const std::string& path, ts::job run = {}) {
  got(ts::write_diffusers_folder(in, path, {.force = true, .verify = true, .max_shard_bytes = 0, .variant = {}, .dry_run = false}, run));
}

ts::json_value side_json(const ts::package& in, const std::string& path) {
  for (const ts::side_file& file : in.side_files)
    if (file.path == path) return got(ts::read_json(*file.bytes));
  return {};
}
void change_scheduler(ts::package& in, const std::string& key, const ts::json_value& value) {
  for (ts::side_file& file : in.side_files)
    if (file.path == "scheduler/scheduler_config.json") {
      ts::json_value config = got(ts::read_json(*file.bytes));
      config.set(key, value);
      file = ts::detail::json_side_file(file.path, config);
    }
}

const std::vector<std::string> models = {"sd1", "sd2_v", "sdxl", "sdxl_refiner", "sd1_inpaint"};

ts::package folder_of(const std::string& name) { return weights((support::data(name) / "diffusers").string()); }

ts::tensor_ref zeros(const ts::shape_type& shape) {
  return ts::in_memory({"zeros", ts::dtype::f32, shape}, std::vector<std::byte>(4 * ts::element_count(shape)));
}

/// What published checkpoints hold beside the weights that a pipeline uses; the names are returned, too.
std::vector<std::string> add_published_extras(ts::catalog& out, const std::string& name) {
  std::vector<std::pair<std::string, ts::tensor_ref>> more = {{"betas", zeros({1000})}, {"alphas_cumprod", zeros({1000})},
                                                              {"model_ema.decay", zeros({})}, {"model_ema.num_updates", zeros({})}};
  const ts::catalog_entry* conv = out.find("model.diffusion_model.out.2.weight");
  more.emplace_back("model_ema.diffusion_modelout2weight", conv->tensor);
  for (const char* prefix : {"cond_stage_model.transformer.", "conditioner.embedders.0.transformer."})
    if (out.contains(std::string(prefix) + "text_model.final_layer_norm.weight"))
      more.emplace_back(std::string(prefix) + "text_model.embeddings.position_ids", zeros({1, 77}));
  for (const char* prefix : {"cond_stage_model.model.", "conditioner.embedders.0.model.", "conditioner.embedders.1.model."})
    if (out.contains(std::string(prefix) + "ln_final.weight")) more.emplace_back(std::string(prefix) + "logit_scale", zeros({}));
  if (name == "sd2_v") {  // a last block and a projection that the network does not use
    const std::string stem = "cond_stage_model.model.transformer.resblocks.";
    std::size_t blocks = 0;
    while (out.contains(stem + std::to_string(blocks) + ".ln_1.weight")) ++blocks;
    const std::string last = stem + std::to_string(blocks - 1) + ".";
    for (const ts::catalog_entry& entry : out.entries())
      if (entry.name.compare(0, last.size(), last) == 0)
        more.emplace_back(stem + std::to_string(blocks) + "." + entry.name.substr(last.size()), entry.tensor);
    more.emplace_back("cond_stage_model.model.text_projection", zeros({4, 4}));
  }
  std::vector<std::string> names;
  for (auto& [extra, tensor] : more) {
    fine(out.add(extra, tensor, "extra"));
    names.push_back(extra);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("folder, checkpoint, folder: every tensor comes back bit by bit, from either container") {
  for (const std::string& name : models) {
    INFO(name);
    const support::temp_folder folder;
    const ts::package original = folder_of(name);
    const ts::single_file_checkpoint made = checkpoint(original);
    CHECK(made.ignored.empty());
    for (const bool torch : {false, true}) {
      const std::string file = folder / (torch ? "model.ckpt" : "model.safetensors");
      write_checkpoint(made, file, torch);
      write_folder(model(file), folder / "back");
      const ts::package back = weights(folder / "back");
      REQUIRE(back.components.size() == original.components.size());
      for (const ts::component& part : original.components) {
        REQUIRE(back.find(part.name));
        CHECK(differences(contents_of(part.weights), contents_of(back.find(part.name)->weights)) == "");
        for (const char* key : {"block_out_channels", "cross_attention_dim", "attention_head_dim", "use_linear_projection", "num_hidden_layers",
                                "hidden_act", "scaling_factor", "in_channels"})
          if (part.config.find(key) && back.find(part.name)->config.find(key))
            CHECK(ts::write_json(*back.find(part.name)->config.find(key)) == ts::write_json(*part.config.find(key)));
      }
      const auto predicts = [](const ts::package& in) {
        const ts::json_value config = side_json(in, "scheduler/scheduler_config.json");
        const ts::json_value* type = config.find("prediction_type");
        return type ? *type->as_string() : "epsilon";
      };
      CHECK(predicts(back) == predicts(original));
    }
  }
}

TEST_CASE("checkpoint, folder, checkpoint: every tensor comes back bit by bit; what is dropped is listed") {
  for (const std::string& name : models) {
    INFO(name);
    const support::temp_folder folder;
    ts::single_file_checkpoint first = checkpoint(folder_of(name));
    const std::vector<std::string> extras = add_published_extras(first.tensors, name);
    for (const bool torch : {false, true}) {
      const std::string file = folder / (torch ? "model.ckpt" : "model.safetensors");
      write_checkpoint(first, file, torch);
      const ts::package opened = model(file);
      std::vector<std::string> listed;
      for (const ts::component& part : opened.components)
        for (const std::string& text : part.ignored) listed.push_back(text.substr(0, text.find(": ")));
      std::sort(listed.begin(), listed.end());
      CHECK(listed == extras);
      write_folder(opened, folder / "between");
      const ts::single_file_checkpoint again = checkpoint(weights(folder / "between"));
      CHECK(again.ignored.empty());
      contents wanted = contents_of(first.tensors);
      for (const std::string& extra : extras) wanted.erase(extra);
      CHECK(differences(wanted, contents_of(again.tensors)) == "");
    }
  }
}

TEST_CASE("a checkpoint that a trainer left, as it is on the disk, comes back") {
  const support::temp_folder folder;
  const std::string file = (support::data("sd1") / "sd1.ckpt").string();
  write_folder(model(file), folder / "between");
  const contents before = contents_of(weights(file).components[0].weights);
  const contents after = contents_of(checkpoint(weights(folder / "between")).tensors);
  for (const auto& [name, tensor] : before)
    if (after.find(name) == after.end()) {
      INFO(name);
      CHECK((name.substr(0, 10) == "model_ema." || !ts::why_ignored(name).empty()));
    } else {
      CHECK(after.at(name) == tensor);
    }
  for (const auto& [name, tensor] : after) CHECK(before.count(name) == 1);
}

TEST_CASE("published models get their published names and shapes back") {
  using namespace support;
  const std::string first = "conditioner.embedders.0.", second = "conditioner.embedders.1.";
  struct published {
    std::string name;
    parameters tensors;
    std::size_t kept;
  };
  const std::vector<published> all = {
      {"sd1", joined({ldm_unet(sd1_unet()), ldm_vae(), with_prefix("cond_stage_model.transformer.", clip_parameters(768, 12))}), 686 + 248 + 196},
      // without the block of 12 tensors, the projection and the scale that the network does not use
      {"sd2", joined({ldm_unet(sd2_unet()), ldm_vae(), with_prefix("cond_stage_model.model.", open_clip_parameters(1024, 24))}), 686 + 248 + 294 - 14},
      {"sdxl", joined({ldm_unet(sdxl_unet()), ldm_vae(), with_prefix(first + "transformer.", clip_parameters(768, 12)),
                       with_prefix(second + "model.", open_clip_parameters(1280, 32))}), 1680 + 248 + 196 + 390 - 1},
      {"refiner", joined({ldm_unet(refiner_unet()), ldm_vae(), with_prefix(first + "model.", open_clip_parameters(1280, 32))}), 1220 + 248 + 390 - 1}};
  const temp_folder folder;
  for (const published& one : all) {
    INFO(one.name);
    write_sparse(folder / "x.safetensors", one.tensors);
    const ts::catalog before = weights(folder / "x.safetensors").components[0].weights;
    const ts::catalog after = checkpoint(model(folder / "x.safetensors")).tensors;
    CHECK(after.size() == one.kept);
    for (const ts::catalog_entry& entry : after.entries()) {
      INFO(entry.name);
      REQUIRE(before.contains(entry.name));
      CHECK(before.find(entry.name)->tensor.shape() == entry.tensor.shape());
    }
  }
}

TEST_CASE("tiles and threads do not show in what is written") {
  const support::temp_folder folder;
  const ts::package original = folder_of("sdxl");
  std::map<std::string, std::string> first;
  for (const auto& [tile, threads] : {std::pair(std::size_t{1} << 20, 1u), std::pair(std::size_t{500}, 3u), std::pair(std::size_t{7000}, 8u)}) {
    ts::job run;
    run.tile_bytes = tile;
    run.threads = threads;
    write_checkpoint(checkpoint(original), folder / "model.safetensors", false, run);
    write_checkpoint(checkpoint(original), folder / "model.ckpt", true, run);
    write_folder(model(folder / "model.ckpt"), folder / "folder", run);
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path()))
      if (entry.is_regular_file()) files[entry.path().string()] = bytes_of(entry.path().string());
    if (first.empty()) first = files;
    CHECK(files.size() > 10);
    CHECK(files == first);
  }
}

TEST_CASE("text encoders take the form of their family: stacked, transposed, under their prefix") {
  const auto shape = [](const ts::catalog& tensors, const std::string& name) {
    return tensors.find(name) ? ts::to_string(tensors.find(name)->tensor.shape()) : "none";
  };
  const ts::package xl = folder_of("sdxl");
  const ts::catalog names = checkpoint(xl).tensors;
  const ts::catalog& second = xl.find("text_encoder_2")->weights;
  CHECK(names.contains("conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"));
  const std::size_t width = second.find("text_model.final_layer_norm.weight")->tensor.shape()[0];
  CHECK(shape(names, "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight") == ts::to_string({3 * width, width}));
  CHECK(shape(names, "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias") == ts::to_string({3 * width}));
  const auto there = contents_of(names);
  std::vector<std::byte> stacked;
  for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
    const auto bytes = got(ts::materialize(second.find("text_model.encoder.layers.1.self_attn." + std::string(part) + ".weight")->tensor, {}));
    stacked.insert(stacked.end(), bytes.begin(), bytes.end());
  }
  CHECK(std::get<2>(there.at("conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight")) == stacked);
  const ts::tensor_ref turned = got(ts::transposed(second.find("text_projection.weight")->tensor));
  CHECK(std::get<2>(there.at("conditioner.embedders.1.model.text_projection")) == got(ts::materialize(turned, {})));
  const ts::catalog vae = checkpoint(folder_of("sd1")).tensors;
  CHECK(vae.find("first_stage_model.encoder.mid.attn_1.q.weight")->tensor.shape().size() == 4);
  CHECK(checkpoint(folder_of("sdxl_refiner")).tensors.contains("conditioner.embedders.0.model.ln_final.weight"));
  CHECK(checkpoint(folder_of("sd2_v")).tensors.contains("cond_stage_model.model.ln_final.weight"));
}

TEST_CASE("what the scheduler knows survives in a single file") {
  const support::temp_folder folder;
  ts::package xl = folder_of("sdxl");
  change_scheduler(xl, "prediction_type", "v_prediction");
  CHECK(checkpoint(xl).tensors.contains("v_pred"));
  CHECK_FALSE(checkpoint(xl).tensors.contains("ztsnr"));
  change_scheduler(xl, "rescale_betas_zero_snr", true);
  ts::job run;
  const auto made = got(ts::make_checkpoint(xl, run));
  CHECK(made.tensors.find("v_pred")->tensor.shape() == ts::shape_type{0});
  REQUIRE_FALSE(run.notes.empty());
  CHECK(run.notes.back().text == "the empty tensors 'v_pred' and 'ztsnr' tell loaders of prediction_type v_prediction and rescale_betas_zero_snr");
  for (const bool torch : {false, true}) {
    write_checkpoint(made, folder / "x", torch);
    const ts::json_value config = side_json(model(folder / "x"), "scheduler/scheduler_config.json");
    CHECK(*config.find("prediction_type")->as_string() == "v_prediction");
    CHECK(*config.find("rescale_betas_zero_snr")->as_bool());
  }
  for (const char* says : {"epsilon", "v_prediction"})
    for (const bool torch : {false, true}) {
      ts::package two = folder_of("sd2_v");
      change_scheduler(two, "prediction_type", says);
      write_checkpoint(checkpoint(two), folder / "y", torch);
      CHECK(*side_json(model(folder / "y"), "scheduler/scheduler_config.json").find("prediction_type")->as_string() == says);
    }
}

TEST_CASE("components by themselves get the prefixes, too") {
  const auto only = [](const std::string& path) { return checkpoint(weights(path)).tensors; };
  const auto in = [](const std::string& name, const std::string& part) { return (support::data(name) / "diffusers" / part).string(); };
  for (const std::string& name : models) {
    INFO(name);
    const ts::catalog whole = checkpoint(folder_of(name)).tensors;
    const contents all = contents_of(whole);
    for (const std::string part : {"unet", "vae", "text_encoder", "text_encoder_2"}) {
      if (!std::filesystem::exists(in(name, part))) continue;
      INFO(part);
      ts::package one = folder_of(name);
      one.family.clear();
      one.components.erase(std::remove_if(one.components.begin(), one.components.end(), [&](const ts::component& c) { return c.name != part; }),
                           one.components.end());
      if (part == "unet" || part == "vae") {
        for (const ts::catalog& tensors : {only(in(name, part)), checkpoint(one).tensors})
          for (const auto& [key, tensor] : contents_of(tensors)) {
            REQUIRE(all.count(key) == 1);
            CHECK(all.at(key) == tensor);
          }
        CHECK(only(in(name, part)).size() == one.components[0].weights.size());
      } else {
        CHECK(checkpoint(one).tensors.size() > 0);
      }
    }
  }
  CHECK(only(in("sdxl", "text_encoder_2")).contains("conditioner.embedders.1.model.text_projection"));
}

TEST_CASE("a file that holds the components of a folder under their names becomes a checkpoint") {
  for (const std::string& name : models) {
    INFO(name);
    const ts::package folder = folder_of(name);
    ts::package joined;
    joined.source = "joined";
    joined.components.emplace_back();
    for (const ts::component& part : folder.components)
      for (const ts::catalog_entry& entry : part.weights.entries())
        fine(joined.components[0].weights.add(part.name + "." + entry.name, entry.tensor, entry.origin));
    CHECK(differences(contents_of(checkpoint(folder).tensors), contents_of(checkpoint(joined).tensors)) == "");
  }
}

TEST_CASE("a checkpoint stays one: names are the same, training leftovers are listed") {
  for (const std::string& name : models) {
    INFO(name);
    ts::package whole;
    whole.source = "whole";
    whole.components.emplace_back();
    whole.components[0].weights = checkpoint(folder_of(name)).tensors;
    contents wanted = contents_of(whole.components[0].weights);
    const auto extras = add_published_extras(whole.components[0].weights, name);
    const auto again = checkpoint(whole);
    CHECK(differences(wanted, contents_of(again.tensors)) == "");
    CHECK(again.ignored.size() == extras.size());
  }
}

TEST_CASE("names that no table knows are refused, all of them listed") {
  ts::package sd = folder_of("sd1");
  fine(sd.find("unet")->weights.add("down_blocks.0.extra.weight", zeros({1}), "x"));
  fine(sd.find("vae")->weights.add("encoder.extra", zeros({1}), "x"));
  fine(sd.find("text_encoder")->weights.add("visual.proj", zeros({1}), "x"));
  ts::job run;
  const auto refused = ts::make_checkpoint(sd, run);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message() ==
        "MIS " + sd.source + ": tensors have names that no known model of this kind has (found 3: 'text_encoder.visual.proj', "
        "'unet.down_blocks.0.extra.weight', 'vae.encoder.extra'); this is a variant that checkpoints have no names for");
  ts::package lacking = folder_of("sdxl");
  ts::catalog less;
  for (const ts::catalog_entry& entry : lacking.find("text_encoder_2")->weights.entries())
    if (entry.name != "text_model.encoder.layers.0.self_attn.k_proj.bias") fine(less.add(entry.name, entry.tensor, entry.origin));
  lacking.find("text_encoder_2")->weights = less;
  const auto missing = ts::make_checkpoint(lacking, run);
  REQUIRE_FALSE(missing);
  CHECK(missing.error().message() ==
        "MIS " + lacking.source + ": text_encoder_2: a projection to be stacked is missing (expected query, key and value for "
        "'conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias', found no self_attn.k_proj)");
}

TEST_CASE("components that checkpoints have no place for are listed; short names of newer releases become the classic ones") {
  ts::package sd = folder_of("sd1");
  ts::component checker;
  checker.name = "safety_checker";
  fine(checker.weights.add("concept_embeds", zeros({17, 768}), "x"));
  sd.components.push_back(checker);
  ts::catalog short_names;
  for (const ts::catalog_entry& entry : sd.find("text_encoder")->weights.entries())
    fine(short_names.add(entry.name.substr(std::string("text_model.").size()), entry.tensor, entry.origin));
  const auto wanted = contents_of(checkpoint(folder_of("sd1")).tensors);
  sd.find("text_encoder")->weights = short_names;
  const auto made = checkpoint(sd);
  CHECK(differences(wanted, contents_of(made.tensors)) == "");
  CHECK(made.ignored == std::vector<std::string>{"safety_checker.concept_embeds: checkpoints have no place for this component"});
  ts::package none;
  none.source = "none";
  none.components.push_back(checker);
  ts::job run;
  const auto refused = ts::make_checkpoint(none, run);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message() == "MIS none: there is no part of a checkpoint (expected a UNet, an autoencoder or a text encoder)");
}
