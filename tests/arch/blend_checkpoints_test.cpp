// SPDX-License-Identifier: MIT
//
// Blends of whole models: every tensor accounted for, shares by block and part, what is missing, surplus, of another family or no number.
#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/arch/blend_checkpoints.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
using doubles = std::vector<double>;
using fate = ts::blended_tensor::fate;

namespace {

template <class T>
T got(ts::result<T> result) {
  if (!result) FAIL(result.error().message());
  return std::move(result).value();
}

ts::tensor_ref tensor_of(const std::string& name, const doubles& v, ts::shape_type shape, ts::dtype type = ts::dtype::f16) {
  std::vector<std::byte> bytes(ts::byte_count(type, v.size()));
  ts::convert_elements(ts::dtype::f64, reinterpret_cast<const std::byte*>(v.data()), type, bytes.data(), v.size());
  return ts::in_memory({name, type, std::move(shape)}, std::move(bytes));
}

doubles values_of(const ts::tensor_ref& tensor) {
  const auto bytes = got(ts::materialize(tensor, {}));
  doubles out(tensor.info().elements());
  ts::convert_elements(tensor.type(), bytes.data(), ts::dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}
double first_value(const ts::package& model, const std::string& component, const std::string& name) {
  return values_of(model.find(component)->weights.find(name)->tensor)[0];
}

const char* const unet_names[] = {"conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight", "down_blocks.3.resnets.1.conv1.weight",
                                  "mid_block.resnets.0.conv1.weight", "up_blocks.0.resnets.0.conv1.weight", "up_blocks.3.attentions.2.proj_in.weight", "conv_out.weight"};

/// A package with a handful of tensors, all elements of which are `value`.
ts::package model_of(const std::string& file, double value, const std::string& family = "sd1") {
  ts::package out;
  out.source = file, out.family = family;
  const auto add = [&](const std::string& name, std::initializer_list<const char*> names, std::size_t count = 0) {
    ts::component part;
    part.name = name;
    const auto one = [&](const std::string& tensor) { REQUIRE(part.weights.add(tensor, tensor_of(tensor, doubles(12, value), {3, 4}), file + ": '" + tensor + "'")); };
    for (const char* tensor : names) one(tensor);
    for (std::size_t i = 0; i < count; ++i) one(unet_names[i]);
    out.components.push_back(std::move(part));
  };
  add("text_encoder", {"text_model.final_layer_norm.weight"});
  add("unet", {}, std::size(unet_names));
  add("vae", {"decoder.conv_in.weight", "encoder.conv_in.weight"});
  return out;
}

ts::package without(ts::package in, const std::string& component, const std::string& name) {
  ts::component& part = *in.find(component);
  ts::catalog left;
  for (const ts::catalog_entry& entry : part.weights.entries())
    if (entry.name != name) REQUIRE(left.add(entry.name, entry.tensor, entry.origin));
  part.weights = std::move(left);
  return in;
}

ts::result<ts::blend_account> try_blend(ts::package& base, std::vector<ts::package> others, const ts::blend_options& how) {
  std::vector<ts::blend_source> sources;
  for (ts::package& other : others) sources.push_back({std::move(other)});
  ts::job run;
  return ts::blend_packages(base, sources, how, run);
}
ts::blend_account blend(ts::package& base, std::vector<ts::package> others, const ts::blend_options& how) { return got(try_blend(base, std::move(others), how)); }
std::string refusal(std::vector<ts::package> others, const ts::blend_options& how, ts::package base = model_of("a.pt", 1)) {
  const auto out = try_blend(base, std::move(others), how);
  REQUIRE_FALSE(out);
  return out.error().message();
}

const ts::blended_tensor& row(const ts::blend_account& account, const std::string& component, const std::string& name) {
  for (const ts::blended_tensor& one : account.tensors)
    if (one.component == component && one.name == name) return one;
  FAIL(component << "." << name << " is not in the account");
  throw 0;
}

double ulp(double x) { return std::ldexp(1.0, std::max(-14, x == 0 ? -14 : std::ilogb(x)) - 10); }

}  // namespace

TEST_CASE("a folder and a checkpoint with the original names are blended tensor by tensor, and written back under either's names") {
  ts::job run;
  const std::string folder = TENSORSMITH_TEST_DATA "/sd1/diffusers", file = TENSORSMITH_TEST_DATA "/sd1/sd1.ckpt";
  // The checkpoint's tensors with other values: another model under other names.
  ts::package other = got(ts::open_weights(file, {}, run));
  for (const ts::catalog_entry& entry : other.components[0].weights.entries()) {
    if (!ts::is_floating(entry.tensor.type())) continue;
    doubles v = values_of(entry.tensor);
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = 0.7 * v[i] + 0.01 * std::sin(static_cast<double>(i));
    const ts::tensor_ref changed = tensor_of(entry.name, v, entry.tensor.shape(), entry.tensor.type());
    other.components[0].weights.replace(entry.name, changed);
  }
  const ts::package file_package = other;
  const ts::package b = got(ts::recognize_stable_diffusion(other, {}, run));
  for (const ts::blend_mode mode : {ts::blend_mode::weighted_sum, ts::blend_mode::add_difference, ts::blend_mode::slerp}) {
    ts::package a = got(ts::open_stable_diffusion(folder, {}, run));
    const ts::package before = a;
    std::vector<ts::package> others{b};
    if (mode == ts::blend_mode::add_difference) others.push_back(before);
    const ts::blend_account account = blend(a, others, {.mode = mode, .ratio = 0.3});
    std::size_t tensors = 0, wrong = 0;
    for (const ts::component& part : before.components)
      for (const ts::catalog_entry& entry : part.weights.entries()) {
        ++tensors;
        const doubles x = values_of(entry.tensor), y = values_of(b.find(part.name)->weights.find(entry.name)->tensor), z = values_of(a.find(part.name)->weights.find(entry.name)->tensor);
        double dot = 0, xx = 0, yy = 0;
        for (std::size_t i = 0; i < x.size(); ++i) dot += x[i] * y[i], xx += x[i] * x[i], yy += y[i] * y[i];
        double wa = 0.7, wb = 0.3;
        if (const double cosine = xx * yy > 0 ? dot / std::sqrt(xx * yy) : 1; mode == ts::blend_mode::slerp && std::fabs(cosine) < 0.9995)
          wa = std::sin(0.7 * std::acos(cosine)) / std::sin(std::acos(cosine)), wb = std::sin(0.3 * std::acos(cosine)) / std::sin(std::acos(cosine));
        for (std::size_t i = 0; i < x.size(); ++i) {
          const double exact = mode == ts::blend_mode::add_difference ? x[i] + 0.3 * (y[i] - x[i]) : wa * x[i] + wb * y[i];
          const double bound = entry.tensor.type() == ts::dtype::f16 ? ulp(exact) : 8 * 0x1p-24 * (std::fabs(x[i]) + std::fabs(y[i]));
          wrong += !(std::fabs(z[i] - exact) <= bound);
        }
      }
    CHECK(wrong == 0);
    CHECK(account.tensors.size() == tensors);
    CHECK(account.blended == tensors);
    CHECK(account.changed.size() == tensors);
    CHECK(account.left_out.empty());
  }
  // The other way round: the file is the base and keeps its names.
  ts::package base = b;
  const ts::blend_account account = blend(base, {got(ts::open_stable_diffusion(folder, {}, run))}, {.ratio = 0.25});
  const ts::catalog updated = got(ts::update_checkpoint(file_package.components[0].weights, base, account.changed, run));
  CHECK(updated.size() == file_package.components[0].weights.size());
  std::size_t changed = 0;
  for (const ts::catalog_entry& entry : updated.entries())
    changed += got(ts::materialize(entry.tensor, run)) != got(ts::materialize(file_package.components[0].weights.find(entry.name)->tensor, run));
  CHECK(changed > account.blended * 9 / 10);
}

TEST_CASE("shares of 0 and 1 copy every tensor") {
  for (const ts::blend_mode mode : {ts::blend_mode::weighted_sum, ts::blend_mode::slerp}) {
    ts::package a = model_of("a.pt", 1);
    const ts::package b = model_of("b.pt", 2);
    const ts::blend_account none = blend(a, {b}, {.mode = mode, .ratio = 0});
    CHECK(none.kept == none.tensors.size());
    CHECK(none.changed.empty());
    CHECK(row(none, "unet", "conv_in.weight").reason == "ratio 0");
    const ts::blend_account all = blend(a, {b}, {.mode = mode, .ratio = 1});
    CHECK(all.taken == all.tensors.size());
    for (const ts::component& part : a.components)
      for (const ts::catalog_entry& entry : part.weights.entries()) CHECK(entry.tensor.source == b.find(part.name)->weights.find(entry.name)->tensor.source);
  }
}

TEST_CASE("several models with weights, normalized on request; a model without a tensor leaves its share to the base") {
  ts::package a = model_of("a.pt", 1);
  const ts::blend_account account = blend(a, {model_of("b.pt", 2), without(model_of("c.pt", 4), "unet", "conv_out.weight")},
                                          {.weights = {0.5, 0.25, 0.25}, .allow_missing = true});
  CHECK(first_value(a, "unet", "conv_in.weight") == 2);
  CHECK(first_value(a, "unet", "conv_out.weight") == 1.25);
  CHECK(row(account, "unet", "conv_out.weight").reason == "c.pt has no such tensor");
  CHECK(row(account, "unet", "conv_out.weight").ratio == 0.25);
  a = model_of("a.pt", 1);
  blend(a, {model_of("b.pt", 2), model_of("c.pt", 4)}, {.weights = {2, 1, 1}, .normalize = true});
  CHECK(first_value(a, "unet", "conv_in.weight") == 2);
  CHECK(refusal({model_of("b.pt", 2), model_of("c.pt", 4)}, {.weights = {0.5, 0.5, 0.2}}) ==
        "USE the weights of the models do not sum to 1 (found 1.2); correct them, or pass --normalize");
  CHECK(refusal({model_of("b.pt", 2)}, {.weights = {0.5, 0.3, 0.2}}) == "USE the number of weights is not that of the models (expected 2, the base's first, found 3)");
  CHECK(refusal({model_of("b.pt", 2), model_of("c.pt", 4)}, {.weights = {1.5, 0.5, -1}}) == "USE a weight of a model is negative or no number");
  CHECK(refusal({model_of("b.pt", 2), model_of("c.pt", 4)}, {.weights = {0, 0, 0}, .normalize = true}) ==
        "USE the weights of the models do not sum to 1 (found 0); correct them, or pass --normalize");
  CHECK(refusal({model_of("b.pt", 2), model_of("c.pt", 4)}, {.ratio = 0.5}) ==
        "USE a weighted sum of several models needs a weight for each (expected 3 weights, the base's first)");
}

TEST_CASE("ratios out of range and wrong numbers of models") {
  const ts::package b = model_of("b.pt", 2);
  CHECK(refusal({b}, {.ratio = 1.5}) == "USE the ratio is out of range (expected 0 to 1, found 1.5)");
  CHECK(refusal({b}, {.mode = ts::blend_mode::slerp, .ratio = std::nan("")}) == "USE the ratio is out of range (expected 0 to 1, found nan)");
  CHECK(refusal({b, b}, {.mode = ts::blend_mode::add_difference, .ratio = 1e38}) == "USE the ratio is out of range (expected -10000 to 10000, found 1e+38)");
  CHECK(refusal({b}, {.mode = ts::blend_mode::add_difference}) == "USE add-difference takes another number of models (expected two beside the base, B and C, found 1)");
  CHECK(refusal({b, b}, {.mode = ts::blend_mode::slerp}) == "USE slerp takes another number of models (expected one beside the base, found 2)");
  CHECK(refusal({}, {}) == "USE weighted-sum takes another number of models (expected one or more beside the base, found 0)");
  CHECK(refusal({b}, {.text_encoder = -1}) == "USE the ratio of the text encoders is out of range (expected 0 to 1, found -1)");
  CHECK(refusal({b}, {.mode = ts::blend_mode::slerp, .weights = {0.5, 0.5}}) == "USE a weight for every model is for weighted sums (expected one ratio)");
  doubles list(26, 1.0);
  list[1] = 3;  // IN00
  CHECK(refusal({b}, {.ratio = 0.5, .blocks = got(ts::block_weights::from(list))}) ==
        "USE the ratio of 'unet.conv_in.weight' is out of range (expected 0 to 1, found 1.5)");
}

TEST_CASE("block weights are factors of the ratio; what is beside the blocks goes with the first and the last, everything else with BASE") {
  doubles list(26, 0.0);
  list[0] = 0.25, list[1] = 0.5, list[2] = 1, list[13] = 0.75, list[14] = 0.125, list[25] = 0.625;  // BASE, IN00, IN01, MID, OUT00, OUT11
  ts::package a = model_of("a.pt", 0);
  const ts::blend_account account = blend(a, {model_of("b.pt", 1)}, {.ratio = 1, .blocks = got(ts::block_weights::from(list))});
  CHECK(first_value(a, "unet", "conv_in.weight") == 0.5);
  CHECK(first_value(a, "unet", "time_embedding.linear_1.weight") == 0.5);
  CHECK(first_value(a, "unet", "down_blocks.0.resnets.0.conv1.weight") == 1);
  CHECK(row(account, "unet", "down_blocks.0.resnets.0.conv1.weight").status == fate::taken);
  CHECK(row(account, "unet", "down_blocks.3.resnets.1.conv1.weight").status == fate::kept);
  CHECK(first_value(a, "unet", "mid_block.resnets.0.conv1.weight") == 0.75);
  CHECK(first_value(a, "unet", "up_blocks.0.resnets.0.conv1.weight") == 0.125);
  CHECK(first_value(a, "unet", "up_blocks.3.attentions.2.proj_in.weight") == 0.625);
  CHECK(first_value(a, "unet", "conv_out.weight") == 0.625);
  CHECK(first_value(a, "text_encoder", "text_model.final_layer_norm.weight") == 0.25);
  CHECK(first_value(a, "vae", "decoder.conv_in.weight") == 0.25);

  a = model_of("a.pt", 0);
  blend(a, {model_of("b.pt", 1)}, {.ratio = 0.5, .blocks = got(ts::block_weights::from(list)), .text_encoder = 0.875});
  CHECK(first_value(a, "unet", "mid_block.resnets.0.conv1.weight") == 0.375);
  CHECK(first_value(a, "text_encoder", "text_model.final_layer_norm.weight") == 0.875);

  a = model_of("a.pt", 0);  // of several models all shares shrink
  blend(a, {model_of("b.pt", 1), model_of("c.pt", 2)}, {.weights = {0, 0.5, 0.5}, .blocks = got(ts::block_weights::from(list))});
  CHECK(first_value(a, "unet", "conv_in.weight") == 0.75);
  CHECK(first_value(a, "unet", "down_blocks.3.resnets.1.conv1.weight") == 0);
}

TEST_CASE("the autoencoder: blended, the base's, or another's") {
  const auto vae = [](ts::blend_vae policy, ts::blend_mode mode = ts::blend_mode::weighted_sum) {
    ts::package a = model_of("a.pt", 0);
    std::vector<ts::package> others{model_of("b.pt", 1)};
    if (mode == ts::blend_mode::add_difference) others.push_back(without(model_of("c.pt", 0.5), "vae", "encoder.conv_in.weight"));
    const ts::blend_account account = blend(a, others, {.mode = mode, .ratio = 0.5, .vae = policy, .allow_missing = policy == ts::blend_vae::blend});
    return std::pair(first_value(a, "vae", "encoder.conv_in.weight"), row(account, "vae", "encoder.conv_in.weight").reason);
  };
  CHECK(vae(ts::blend_vae::blend) == std::pair(0.5, std::string()));
  CHECK(vae(ts::blend_vae::base) == std::pair(0.0, std::string("the base's autoencoder is kept")));
  CHECK(vae(ts::blend_vae::other) == std::pair(1.0, std::string("the autoencoder is b.pt's")));
  CHECK(vae(ts::blend_vae::other, ts::blend_mode::add_difference) == std::pair(1.0, std::string("the autoencoder is b.pt's")));
  CHECK(vae(ts::blend_vae::base, ts::blend_mode::add_difference).first == 0.0);
  CHECK(vae(ts::blend_vae::blend, ts::blend_mode::add_difference) == std::pair(0.0, std::string("c.pt has no such tensor")));

  // As two components on one side.
  ts::package split = model_of("onnx", 0);
  ts::component vae_part = std::move(split.components.back());
  split.components.pop_back();
  for (const auto& [name, tensor] : {std::pair("vae_decoder", "decoder.conv_in.weight"), std::pair("vae_encoder", "encoder.conv_in.weight")}) {
    ts::component half;
    half.name = name;
    REQUIRE(half.weights.add(tensor, vae_part.weights.find(tensor)->tensor, "onnx"));
    split.components.push_back(std::move(half));
  }
  ts::package a = split, whole = model_of("b.pt", 1);
  CHECK(blend(a, {model_of("b.pt", 1)}, {}).blended == whole.find("unet")->weights.size() + 3);
  CHECK(first_value(a, "vae_encoder", "encoder.conv_in.weight") == 0.5);
  blend(whole, {split}, {});
  CHECK(first_value(whole, "vae", "decoder.conv_in.weight") == 0.5);
}

TEST_CASE("missing and surplus tensors are refused by name, or listed") {
  const ts::package b = model_of("b.pt", 2), less = without(without(model_of("b.pt", 2), "unet", "conv_in.weight"), "unet", "conv_out.weight");
  CHECK(refusal({less}, {}) == "MIS b.pt: the model lacks 2 tensors of the base (found without 'unet.conv_in.weight', 'unet.conv_out.weight'); pass --allow-missing to keep the base's");
  ts::package no_vae = b;
  no_vae.components.pop_back();
  CHECK(refusal({no_vae}, {}) == "MIS b.pt: the model lacks 2 tensors of the base (found without all 2 of 'vae'); pass --allow-missing to keep the base's");
  CHECK(refusal({b, less}, {.mode = ts::blend_mode::add_difference}).starts_with("MIS b.pt: the model lacks 2 tensors"));
  CHECK(refusal({b}, {}, less) == "MIS b.pt: the model has 2 tensors that the base lacks (found 'unet.conv_in.weight', 'unet.conv_out.weight'); pass --allow-missing to leave them out");

  ts::package a = model_of("a.pt", 1);
  const ts::blend_account kept = blend(a, {less}, {.allow_missing = true});
  CHECK(first_value(a, "unet", "conv_in.weight") == 1);
  CHECK(row(kept, "unet", "conv_in.weight").status == fate::kept);
  CHECK(row(kept, "unet", "conv_in.weight").reason == "b.pt has no such tensor");
  CHECK(kept.blended + kept.kept + kept.taken == kept.tensors.size());
  a = less;
  const ts::blend_account more = blend(a, {b}, {.allow_extra = true});
  CHECK(more.left_out == std::vector<std::string>{"b.pt: unet.conv_in.weight: the base has no such tensor", "b.pt: unet.conv_out.weight: the base has no such tensor"});
  ts::package stranger;
  stranger.source = "x.pt";
  ts::component part;
  part.name = "unet";
  REQUIRE(part.weights.add("other", tensor_of("other", doubles(12, 1), {3, 4}), "x.pt: 'other'"));
  stranger.components.push_back(std::move(part));
  CHECK(refusal({stranger}, {.allow_missing = true, .allow_extra = true}) == "MIS x.pt: the models have no tensor in common (expected tensors of a.pt)");
}

TEST_CASE("other families, shapes and kinds of tensors") {
  CHECK(refusal({model_of("xl.pt", 1, "sdxl")}, {}) == "MIS xl.pt: models of different families cannot be blended (expected sd1, as a.pt is, found sdxl)");
  ts::package wide = model_of("b.pt", 2);
  wide.find("unet")->weights.replace("conv_out.weight", tensor_of("conv_out.weight", doubles(15, 1), {3, 5}));
  CHECK(refusal({wide}, {}) == "MIS b.pt: 'conv_out.weight': tensors of different shapes cannot be blended (expected [3, 4], found [3, 5])");

  ts::package a = model_of("a.pt", 1), b = model_of("b.pt", 2);
  const auto integers = [](double x) { return ts::in_memory({"ids", ts::dtype::i64, {1}}, std::vector<std::byte>(8, static_cast<std::byte>(x))); };
  REQUIRE(a.find("unet")->weights.add("ids", integers(1), "a.pt: 'ids'"));
  REQUIRE(b.find("unet")->weights.add("ids", integers(1), "b.pt: 'ids'"));
  ts::package equal = a;
  CHECK(row(blend(equal, {b}, {.strict = true}), "unet", "ids").reason == "not a floating-point tensor");
  b.find("unet")->weights.replace("ids", integers(2));
  CHECK(refusal({b}, {.strict = true}, a) ==
        "MIS b.pt: 'ids': a tensor that cannot be blended differs from the base's (expected i64 [1] with the base's values, found i64 [1]); drop --strict to keep the base's");
  std::vector<ts::blend_source> sources{{b}};
  ts::job run;
  ts::package differs = a;
  const ts::blend_account account = got(ts::blend_packages(differs, sources, {}, run));
  CHECK(row(account, "unet", "ids").reason == "not a floating-point tensor, and it differs in b.pt");
  REQUIRE(run.notes.size() == 1);
  CHECK(run.notes[0].text == "it cannot be blended and differs in b.pt; the base's is kept");

  ts::package v = model_of("v.pt", 1), e = model_of("e.pt", 1);
  v.findings.push_back({"prediction_type", "v_prediction", "told"});
  e.findings.push_back({"prediction_type", "epsilon", "told"});
  CHECK(refusal({e}, {.strict = true}, v) == "MIS e.pt: the models predict different things (expected v_prediction, found epsilon); drop --strict to blend them all the same");
  CHECK(try_blend(v, {e}, {}));
}

TEST_CASE("an inpainting base takes the four channels of ordinary models") {
  ts::package a = model_of("a.pt", 1), b = model_of("b.pt", 2), c = model_of("c.pt", 1);
  a.find("unet")->weights.replace("conv_in.weight", tensor_of("conv_in.weight", doubles(18, 1), {2, 9, 1, 1}));
  for (ts::package* other : {&b, &c}) other->find("unet")->weights.replace("conv_in.weight", tensor_of("conv_in.weight", doubles(8, other == &b ? 2 : 1), {2, 4, 1, 1}));
  const ts::blend_account account = blend(a, {b, c}, {.mode = ts::blend_mode::add_difference, .ratio = 1});
  CHECK(values_of(a.find("unet")->weights.find("conv_in.weight")->tensor) == doubles{2, 2, 2, 2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1});
  CHECK(row(account, "unet", "conv_in.weight").reason == "only the input channels that all models have are blended");
  CHECK(refusal({a}, {}, b).find("make the model with more input channels (inpainting) the base") != std::string::npos);
}

TEST_CASE("the base's types, or one that is asked for; tied tensors stay tied") {
  ts::package a = model_of("a.pt", 1), b = model_of("b.pt", 2);
  b.find("unet")->weights.replace("conv_in.weight", tensor_of("conv_in.weight", doubles(12, 2), {3, 4}, ts::dtype::f32));
  ts::package same = a;
  blend(same, {b}, {.ratio = 1});
  CHECK(same.find("unet")->weights.find("conv_in.weight")->tensor.type() == ts::dtype::f16);
  ts::package wide = a;
  blend(wide, {b}, {.to = ts::dtype::f32});
  CHECK(wide.find("unet")->weights.find("conv_in.weight")->tensor.type() == ts::dtype::f32);

  for (ts::package* one : {&a, &b}) {
    ts::catalog& weights = one->find("text_encoder")->weights;
    const ts::tensor_ref tensor = weights.entries()[0].tensor;
    REQUIRE(weights.add("tied.weight", tensor, one->source));
  }
  ts::package tied = a;
  CHECK(blend(tied, {b}, {}).tensors.size() == a.find("unet")->weights.size() + 4);
  CHECK(tied.find("text_encoder")->weights.entries()[0].tensor.source == tied.find("text_encoder")->weights.entries()[1].tensor.source);
  b.find("text_encoder")->weights.replace("tied.weight", tensor_of("t", doubles(12, 7), {3, 4}));
  tied = a;
  blend(tied, {b}, {});
  CHECK(first_value(tied, "text_encoder", "tied.weight") == 4);
  CHECK(first_value(tied, "text_encoder", "text_model.final_layer_norm.weight") == 1.5);
}
