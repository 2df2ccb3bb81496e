// SPDX-License-Identifier: MIT
//
// merge_lora in chains: on folders, on single files with stacked projections, on graphs; strengths, orders, accounts and refusals.
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "support/random_values.hpp"
#include "tensorsmith/stage/build.hpp"
#include "tensorsmith/stage/lower_to.hpp"
#include "tensorsmith/stage/merge_lora.hpp"
#include "tensorsmith/tensor.hpp"

namespace ts = tensorsmith;
using namespace ts::tags;

namespace {

using floats = std::vector<float>;

std::string why(const auto& chain) { return chain ? std::string() : chain.error().message(); }

ts::tensor_ref tensor_of(std::string name, ts::shape_type shape, const floats& values) {
  std::vector<std::byte> bytes(4 * values.size());
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return ts::in_memory({std::move(name), ts::dtype::f32, std::move(shape)}, std::move(bytes));
}

ts::package model_of(const std::string& data) {
  auto opened = ts::open<diffusers_folder>(support::data(data).string());
  INFO(why(opened));
  REQUIRE(opened);
  return std::move(opened).take().value();
}

/// The model as one file with the original names.
ts::package single_file(const ts::package& model) {
  ts::job run;
  ts::package named = model;
  auto recognised = ts::recognize_stable_diffusion(named, {}, run);
  INFO((recognised ? std::string() : recognised.error().message()));
  REQUIRE(recognised);
  auto tensors = ts::checkpoint_catalog(*recognised, run);
  INFO((tensors ? std::string() : tensors.error().message()));
  REQUIRE(tensors);
  ts::package out;
  out.source = "model.safetensors";
  std::vector<ts::catalog_entry> entries;
  for (const ts::catalog_entry& e : tensors->entries()) {  // as a reader would give them: stored, with names that tell where
    auto bytes = ts::materialize(e.tensor, run);
    REQUIRE(bytes);
    const ts::tensor_info info{"model.safetensors: '" + e.name + "'", e.tensor.type(), e.tensor.shape()};
    const auto source = ts::in_memory(info, std::move(*bytes));
    entries.push_back({e.name, source, info.name});
  }
  REQUIRE(out.components.emplace_back().weights.add_all(std::move(entries)));
  return out;
}

ts::chain<ts::package> flow(const ts::package& in) { return {in, std::make_shared<ts::job>()}; }

std::string underscored(std::string path) {
  std::replace(path.begin(), path.end(), '.', '_');
  return path;
}

/// Adds LoRA factors for a layer; `dora`: a magnitude of each row (1) or column (2).
void add_lora(std::vector<ts::catalog_entry>& out, const std::string& module, const ts::shape_type& weight, unsigned seed, int dora = 0, float spread = 0.3f) {
  const std::size_t rows = weight[0], cols = ts::element_count(weight) / rows, r = 2;
  ts::shape_type down = weight;
  down[0] = r;
  ts::shape_type up = weight.size() == 4 ? ts::shape_type{rows, r, 1, 1} : ts::shape_type{rows, r};
  const auto add = [&](const std::string& parameter, ts::shape_type shape, const floats& values) {
    out.push_back({module + parameter, tensor_of("a: '" + module + parameter + "'", std::move(shape), values), "a.safetensors"});
  };
  add(".lora_up.weight", up, random_values<float>(rows * r, seed, spread));
  add(".lora_down.weight", down, random_values<float>(r * cols, seed + 1, spread));
  add(".alpha", {}, {1});
  if (dora == 0) return;
  floats magnitude = random_values<float>(dora == 1 ? rows : cols, seed + 2, 0.2f);
  for (float& x : magnitude) x = std::fabs(x) + 0.5f;
  add(".dora_scale", dora == 1 ? ts::shape_type{rows, 1} : ts::shape_type{1, cols}, magnitude);
}

ts::package adapter_of(std::vector<ts::catalog_entry> entries, std::string file = "style.safetensors") {
  ts::package out;
  out.source = std::move(file);
  out.container = "safetensors";
  REQUIRE(out.components.emplace_back().weights.add_all(std::move(entries)));
  return out;
}

/// LoRA for every projection of the model's encoders and UNet under kohya's names.
ts::package style(const ts::package& model, unsigned seed = 1, const std::function<int(const std::string&)>& dora = {}) {
  std::vector<ts::catalog_entry> out;
  const bool two = model.find("text_encoder") && model.find("text_encoder_2");
  for (const ts::component& part : model.components) {
    if (part.name != "unet" && !part.name.starts_with("text_encoder")) continue;
    const std::string prefix = part.name == "unet" ? "lora_unet_" : !two ? "lora_te_" : part.name == "text_encoder" ? "lora_te1_" : "lora_te2_";
    for (const ts::catalog_entry& e : part.weights.entries()) {
      const bool wanted = e.name.ends_with("_proj.weight") || e.name.ends_with(".to_q.weight") || e.name.ends_with(".to_k.weight") ||
                          e.name.ends_with(".to_out.0.weight") || e.name.ends_with("conv1.weight") || e.name.ends_with("text_projection.weight");
      if (!wanted) continue;
      const std::string path = e.name.substr(0, e.name.size() - 7);
      add_lora(out, prefix + underscored(path), e.tensor.shape(), seed += 3, dora ? dora(path) : 0);
    }
  }
  return adapter_of(std::move(out));
}

using contents = std::map<std::string, std::vector<std::byte>>;

contents bytes_of(const ts::catalog& weights, const ts::job& run = {}) {
  contents out;
  for (const ts::catalog_entry& e : weights.entries()) {
    std::vector<std::byte> bytes(e.tensor.info().bytes());
    ts::memory_sink sink(bytes);
    ts::placement whole{e.tensor.source, std::vector<ts::output_slot>(e.tensor.source->outputs().size()), e.name};
    whole.slots[e.tensor.output] = {&sink, 0};
    const auto done = ts::execute({&whole, 1}, run);
    INFO((done ? std::string() : done.error().message()));
    REQUIRE(done);
    out[e.name] = std::move(bytes);
  }
  return out;
}
contents bytes_of(const ts::package& model, const ts::job& run = {}) {
  contents out;
  for (const ts::component& part : model.components)
    for (auto& [name, bytes] : bytes_of(part.weights, run)) out[part.name + "/" + name] = bytes;
  return out;
}

std::size_t differing(const contents& a, const contents& b) {
  REQUIRE(a.size() == b.size());
  std::size_t count = 0;
  for (const auto& [name, bytes] : a) count += b.at(name) != bytes;
  return count;
}

}  // namespace

TEST_CASE("merge_lora merges into a folder's components and tells what it did", "[stage]") {
  const ts::package base = model_of("sd1/diffusers");
  const auto account = std::make_shared<ts::merge_account>();
  const auto merged = flow(base) | ts::merge_lora(style(base), {.strength = 0.8f, .account = account});
  INFO(why(merged));
  REQUIRE(merged);
  REQUIRE(account->adapters.size() == 1);
  const ts::merged_adapter& adapter = account->adapters[0];
  CHECK(adapter.applied == adapter.modules.size());
  CHECK(adapter.applied > 20);
  CHECK(adapter.not_found + adapter.ignored == 0);
  CHECK(account->weights.size() == adapter.applied);
  CHECK(differing(bytes_of(base), bytes_of(merged.value())) == adapter.applied);
  for (const ts::merged_weight& weight : account->weights) {
    CHECK(weight.norms().change > 0);
    CHECK(weight.norms().weight > 0);
    CHECK(weight.counts() == ts::merged_counts{});
  }
  bool said = false;
  const std::string count = std::to_string(adapter.applied);
  for (const ts::note& n : merged.notes()) said = said || n.text == count + " of " + count + " modules merged, weights changed: " + count;
  CHECK(said);
}

TEST_CASE("a single file keeps its names, and has the bits of the folder: slices of stacked projections, with DoRA norms of the slice", "[stage]") {
  for (const char* data : {"sd1/diffusers", "sd2_v/diffusers", "sdxl/diffusers", "sdxl_refiner/diffusers"}) {
    INFO(data);
    const ts::package base = model_of(data), file = single_file(base);
    // Magnitudes of rows for queries, of columns for values: both are those of the slice, not of the stacked matrix. Keys: LoRA alone.
    const ts::package adapter = style(base, 7, [](const std::string& path) { return path.ends_with("q_proj") ? 1 : path.ends_with("v_proj") ? 2 : 0; });
    const auto folder_account = std::make_shared<ts::merge_account>(), file_account = std::make_shared<ts::merge_account>();
    const auto folder = flow(base) | ts::merge_lora(adapter, {.strength = 0.7, .account = folder_account});
    INFO(why(folder));
    REQUIRE(folder);
    const auto merged = flow(file) | ts::merge_lora(adapter, {.strength = 0.7, .account = file_account});
    INFO(why(merged));
    REQUIRE(merged);
    REQUIRE(merged->components.size() == 1);
    CHECK(merged->components[0].name.empty());
    std::vector<std::string> names, before;
    for (const auto& e : merged->components[0].weights.entries()) names.push_back(e.name);
    for (const auto& e : file.components[0].weights.entries()) before.push_back(e.name);
    CHECK(names == before);
    CHECK(folder_account->adapters[0].applied == folder_account->adapters[0].modules.size());
    CHECK(file_account->adapters[0].applied == folder_account->adapters[0].applied);

    ts::package wanted = folder.value();
    wanted.source = "m";
    const contents expected = bytes_of(single_file(wanted));
    for (const unsigned threads : {1u, 3u})
      for (const std::size_t tile : {std::size_t{512}, std::size_t{1} << 20}) {
        ts::job run;
        run.threads = threads, run.tile_bytes = tile;
        CHECK(differing(expected, bytes_of(merged.value(), run)) == 0);
      }
    CHECK(differing(expected, bytes_of(file)) > 10);
    for (std::size_t i = 0; i < file_account->weights.size(); ++i) {
      CHECK(file_account->weights[i].name == folder_account->weights[i].name);
      CHECK(file_account->weights[i].norms().change == folder_account->weights[i].norms().change);
    }
  }
}

TEST_CASE("one slice of a stacked projection may be changed alone, and written in another type", "[stage]") {
  const ts::package base = model_of("sd2_v/diffusers"), file = single_file(base);
  const std::string layer = "text_model.encoder.layers.0.self_attn.v_proj";
  std::vector<ts::catalog_entry> entries;
  add_lora(entries, "lora_te_" + underscored(layer), base.find("text_encoder")->weights.find(layer + ".weight")->tensor.shape(), 3);
  const ts::package adapter = adapter_of(entries);
  const auto merged = flow(file) | ts::merge_lora(adapter);
  INFO(why(merged));
  REQUIRE(merged);
  const contents before = bytes_of(file), after = bytes_of(merged.value());
  CHECK(differing(before, after) == 1);
  for (const auto& [name, bytes] : after) {
    if (bytes == before.at(name)) continue;
    CHECK(name.ends_with("attn.in_proj_weight"));
    const std::size_t third = bytes.size() / 3;
    CHECK(std::memcmp(bytes.data(), before.at(name).data(), 2 * third) == 0);
    CHECK(std::memcmp(bytes.data() + 2 * third, before.at(name).data() + 2 * third, third) != 0);
  }
  const ts::dtype stored = base.find("text_encoder")->weights.find(layer + ".weight")->tensor.type();
  const ts::dtype other = stored == ts::dtype::f32 ? ts::dtype::f16 : ts::dtype::f32;
  const auto cast = flow(file) | ts::merge_lora(adapter, {.to = other});
  INFO(why(cast));
  REQUIRE(cast);
  for (const ts::catalog_entry& e : cast->components[0].weights.entries())
    CHECK((e.tensor.type() == other) == e.name.ends_with("transformer.resblocks.0.attn.in_proj_weight"));
}

TEST_CASE("LRA-11: strength 0 leaves every bit; merging and unmerging comes back within the rounding; the order of adapters counts where it must", "[stage]") {
  for (const char* data : {"sd1/diffusers", "sd2_v/diffusers"}) {
    INFO(data);
    const ts::package base = model_of(data);
    const ts::package plain = style(base, 5), dora = style(base, 90, [](const std::string&) { return 1; });
    const contents before = bytes_of(base);
    const auto account = std::make_shared<ts::merge_account>();
    const auto nothing = flow(base) | ts::merge_lora(dora, {.strength = 0, .account = account});
    REQUIRE(nothing);
    CHECK(differing(before, bytes_of(nothing.value())) == 0);
    CHECK(account->weights.empty());
    CHECK(account->adapters[0].ignored == account->adapters[0].modules.size());
    CHECK(account->adapters[0].modules[0].reason == "strength 0");
    CHECK(differing(bytes_of(single_file(base)), bytes_of((flow(single_file(base)) | ts::merge_lora(dora, {.strength = 0})).value())) == 0);

    // As files would hold them: rounded after the first merge.
    const auto added = flow(base) | ts::merge_lora(plain, {.strength = 0.75});
    REQUIRE(added);
    ts::package rounded = added.value();
    for (ts::component& part : rounded.components)
      for (std::size_t i = 0; i < part.weights.size(); ++i) {
        const ts::catalog_entry e = part.weights.entries()[i];
        auto bytes = ts::materialize(e.tensor, {});
        REQUIRE(bytes);
        part.weights.replace(e.name, ts::in_memory(e.tensor.info(), std::move(*bytes)));
      }
    const auto removed = flow(rounded) | ts::merge_lora(plain, {.strength = -0.75});
    REQUIRE(removed);
    const auto values = [](const ts::tensor_ref& t) { return *ts::floats_of(t, {}); };
    for (const ts::component& part : removed->components)
      for (const ts::catalog_entry& e : part.weights.entries()) {
        if (!ts::is_floating(e.tensor.type())) continue;
        const floats now = values(e.tensor), was = values(base.find(part.name)->weights.find(e.name)->tensor),
                     between = values(rounded.find(part.name)->weights.find(e.name)->tensor);
        const float unit = e.tensor.type() == ts::dtype::f16 ? 0x1p-11f : e.tensor.type() == ts::dtype::bf16 ? 0x1p-8f : 0x1p-24f;
        std::size_t far = 0;  // two roundings, of the merged and of the unmerged value; f32 sums add a few units
        for (std::size_t k = 0; k < now.size(); ++k)
          far += std::fabs(now[k] - was[k]) > 8 * unit * (std::fabs(between[k]) + std::fabs(was[k])) + 0x1p-22f;
        CHECK(far == 0);
      }

    // A, B and B, A: LoRA alone commutes but for the rounding of sums; DoRA sees what was there before it.
    const auto both = [&](const ts::package& a, const ts::package& b) {
      const auto out = flow(base) | ts::merge_lora(a) | ts::merge_lora(b);
      REQUIRE(out);
      return bytes_of(out.value());
    };
    CHECK(differing(both(plain, dora), both(dora, plain)) > 10);
    CHECK(differing(both(plain, dora), both(plain, dora)) == 0);
  }
}

TEST_CASE("adapters one after the other are rounded together", "[stage]") {
  for (const bool as_file : {false, true}) {
    const ts::package folder = model_of("sd2_v/diffusers"), base = as_file ? single_file(folder) : folder;
    const ts::package a = style(folder, 5), b = style(folder, 60);
    const auto chained = flow(base) | ts::merge_lora(a, {.strength = 0.5}) | ts::merge_lora(b, {.strength = 0.25});
    INFO(why(chained));
    REQUIRE(chained);
    ts::job run;
    ts::package model = base;
    if (as_file) model = *ts::recognize_stable_diffusion(base, {}, run);
    std::vector<ts::adapter_request> requests;
    for (const auto& [file, strength] : {std::pair(&a, 0.5), std::pair(&b, 0.25)}) {
      requests.push_back({.source = ts::read_adapter(*file, run).value()});
      requests.back().unet = requests.back().text_encoder = strength;
    }
    REQUIRE(ts::merge_adapters(model, requests, {}, run));
    if (as_file) {
      const contents one = bytes_of(*ts::recognize_stable_diffusion(chained.value(), {}, run)), other = bytes_of(model);
      CHECK(differing(one, other) == 0);
    } else {
      CHECK(differing(bytes_of(chained.value()), bytes_of(model)) == 0);
    }
  }
}

TEST_CASE("merging into graphs gives the weights that merging before build gives", "[stage]") {
  for (const char* data : {"sd1/diffusers", "sd2_v/diffusers", "sdxl/diffusers", "sdxl_refiner/diffusers"}) {
    INFO(data);
    const ts::package base = model_of(data);
    const ts::package adapter = style(base, 11, [](const std::string& path) { return path.ends_with("to_q") ? 1 : 0; });
    const auto account = std::make_shared<ts::merge_account>();
    const auto early = flow(base) | ts::merge_lora(adapter, {.strength = 0.6, .text_encoder = 0.3}) | ts::build<stable_diffusion>();
    const auto late = flow(base) | ts::build<stable_diffusion>() | ts::merge_lora(adapter, {.strength = 0.6, .text_encoder = 0.3, .account = account});
    INFO(why(early) << why(late));
    REQUIRE(early);
    REQUIRE(late);
    CHECK(account->adapters[0].applied == account->adapters[0].modules.size());
    const auto initializers = [](const ts::bundle& in) {
      contents out;
      for (const ts::bundle_component& part : in.components)
        for (const ts::initializer& init : part.model.initializers)
          if (const auto* tensor = std::get_if<ts::tensor_ref>(&init.data)) {
            auto bytes = ts::materialize(*tensor, {});
            REQUIRE(bytes);
            CHECK(tensor->type() == part.model[init.value].type);
            out[part.name + "/" + part.model[init.value].name] = std::move(*bytes);
          }
      return out;
    };
    CHECK(differing(initializers(early.value()), initializers(late.value())) == 0);
    const auto plain = flow(base) | ts::build<stable_diffusion>();
    REQUIRE(plain);
    CHECK(differing(initializers(plain.value()), initializers(late.value())) == account->weights.size());
    for (const ts::merged_weight& w : account->weights) CHECK(w.norms().change > 0);
  }
}

TEST_CASE("graphs in f16 of weights in f32 get merged weights that are rounded once", "[stage]") {
  ts::package base = model_of("sd1/diffusers");
  for (ts::component& part : base.components) REQUIRE(ts::cast_floats(part.weights, ts::dtype::f32));
  const ts::package adapter = style(base, 11);
  ts::build_stage half = ts::build<stable_diffusion>();
  half.building.dtype = ts::dtype::f16;
  const auto early = flow(base) | ts::merge_lora(adapter, {.to = ts::dtype::f16}) | half;
  const auto late = flow(base) | half | ts::merge_lora(adapter);
  REQUIRE(early);
  REQUIRE(late);
  for (std::size_t i = 0; i < late->components.size(); ++i)
    for (std::size_t k = 0; k < late->components[i].model.initializers.size(); ++k) {
      const auto* one = std::get_if<ts::tensor_ref>(&early->components[i].model.initializers[k].data);
      const auto* other = std::get_if<ts::tensor_ref>(&late->components[i].model.initializers[k].data);
      REQUIRE((one == nullptr) == (other == nullptr));
      if (one) CHECK(*ts::materialize(*one, {}) == *ts::materialize(*other, {}));
    }
}

TEST_CASE("merge_lora refuses what cannot be merged, and says what was left out", "[stage]") {
  const ts::package base = model_of("sd1/diffusers");
  const auto lowered = flow(base) | ts::build<stable_diffusion>() | ts::lower_to<ort>() | ts::merge_lora(style(base));
  REQUIRE_FALSE(lowered);
  CHECK(lowered.error().code == ts::errc::usage);
  CHECK(lowered.error().what == "merge_lora came after lower_to: the weights are laid out for the target already");
  const auto typed = flow(base) | ts::build<stable_diffusion>() | ts::merge_lora(style(base), {.to = ts::dtype::bf16});
  REQUIRE_FALSE(typed);
  CHECK(typed.error().message() ==
        "USE " + base.source + ": merged weights of graphs have the type that their graph computes in (expected no type for merge_lora, found bf16); put "
        "merge_lora or a cast before build");

  const auto missing = flow(base) | ts::merge_lora(ts::open<safetensors_file>(support::data("nothing.safetensors").string()));
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == ts::errc::io);
  const auto other = flow(base) | ts::merge_lora(style(model_of("sdxl/diffusers")));
  REQUIRE_FALSE(other);
  CHECK(other.error().code == ts::errc::mismatch);
  const auto infinite = flow(base) | ts::merge_lora(style(base), {.strength = std::numeric_limits<double>::infinity()});
  REQUIRE_FALSE(infinite);
  CHECK(infinite.error().message() == "USE style.safetensors: a strength is no finite number (expected a number such as 0.8)");

  std::vector<ts::catalog_entry> entries;
  add_lora(entries, "lora_unet_mid_block_resnets_0_conv1", base.find("unet")->weights.find("mid_block.resnets.0.conv1.weight")->tensor.shape(), 1);
  for (const char* module : {"lora_te3_block_0_q", "lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_unet_nowhere", "lora_unet_nowhere_else"})
    add_lora(entries, module, {4, 4}, 2);
  const ts::package partial = adapter_of(entries);
  const auto merged = flow(base) | ts::merge_lora(partial);
  INFO(why(merged));
  REQUIRE(merged);
  std::vector<std::string> texts;
  for (const ts::note& n : merged.notes())
    if (n.subject == "style.safetensors") texts.push_back((n.severity == ts::note::level::warning ? "warning: " : "") + n.text);
  CHECK(texts == std::vector<std::string>{
                     "1 of 5 modules merged, weights changed: 1",
                     "warning: 1 module was not applied: it belongs to the third text encoder of Stable Diffusion 3 or Flux, which is not supported: 'lora_te3_block_0_q'",
                     "warning: 2 modules were not applied: the model has no such layer: 'lora_unet_nowhere', …",
                     "warning: 1 module was not applied: the model has one text encoder: 'lora_te2_text_model_encoder_layers_0_mlp_fc1'"});
  const auto strict = flow(base) | ts::merge_lora(partial, {.strict = true});
  REQUIRE_FALSE(strict);
  CHECK(strict.error().what == "parts of the adapter do not belong to the model");

  // What is no weight is said, too.
  const auto vector = tensor_of("a: 'e'", {768}, floats(768, 0.5f));
  std::vector<ts::catalog_entry> bundled(entries.begin(), entries.begin() + 3);
  bundled.push_back({"bundle_emb.cat.string_to_param.*", vector, "a.safetensors"});
  const auto beside = flow(base) | ts::merge_lora(adapter_of(bundled));
  INFO(why(beside));
  REQUIRE(beside);
  CHECK(beside.notes().back().text == "embeddings in the adapter that merge_lora does not merge, but merge_embedding: 1");

  // Text encoders that are not there are no reason to fail.
  ts::package unet = base;
  unet.components = {*base.find("unet")};
  const auto some = flow(unet) | ts::merge_lora(style(base), {.strict = true});
  INFO(why(some));
  REQUIRE(some);
  ts::package encoder = base;
  encoder.components = {*base.find("text_encoder")};
  entries.clear();
  add_lora(entries, "lora_unet_mid_block_resnets_0_conv1", {4, 4, 3, 3}, 1);
  const auto none = flow(encoder) | ts::merge_lora(adapter_of(entries));
  REQUIRE_FALSE(none);
  CHECK(none.error().message() ==
        "MIS style.safetensors: no module of the adapter belongs to a layer of the model (expected an adapter for this model, found "
        "'lora_unet_mid_block_resnets_0_conv1'); the reason for the first one: no UNet is converted");
}

TEST_CASE("values that do not fit are found when the weights are written, and named", "[stage]") {
  ts::package base = model_of("sd1/diffusers");
  for (ts::component& part : base.components) REQUIRE(ts::cast_floats(part.weights, ts::dtype::f16));
  const ts::shape_type shape = base.find("unet")->weights.find("mid_block.resnets.0.conv1.weight")->tensor.shape();
  std::vector<ts::catalog_entry> entries;
  add_lora(entries, "lora_unet_mid_block_resnets_0_conv1", shape, 1, 0, 1000);
  const auto account = std::make_shared<ts::merge_account>();
  const auto refused = flow(base) | ts::merge_lora(adapter_of(entries));
  REQUIRE(refused);
  const auto written = ts::materialize(refused->find("unet")->weights.find("mid_block.resnets.0.conv1.weight")->tensor, {});
  REQUIRE_FALSE(written);
  CHECK(written.error().code == ts::errc::numeric);
  CHECK(written.error().place == "layer 'unet.mid_block.resnets.0.conv1.weight'");
  const auto kept = flow(base) | ts::merge_lora(adapter_of(entries), {.overflow = ts::cast_overflow::saturate, .account = account});
  REQUIRE(kept);
  REQUIRE(ts::materialize(kept->find("unet")->weights.find("mid_block.resnets.0.conv1.weight")->tensor, {}));
  CHECK(account->weights[0].counts().overflowed > 0);
  CHECK(written.error().what == std::to_string(account->weights[0].counts().overflowed) + " merged values do not fit into f16");
}
