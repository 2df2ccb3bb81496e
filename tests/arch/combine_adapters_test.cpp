// SPDX-License-Identifier: MIT
//
// Two adapters into one: what the result changes is what both change together, in every mode that says so; the numbers of the modes that say
// otherwise; names, metadata, embeddings, and that every key of every file is accounted for.
//
// kohya-ss/sd-scripts (networks/merge_lora.py, svd_merge_lora.py, of February 2026) was run beside these on files of its own names: see the figures
// at the cases.
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "support/random_values.hpp"
#include "tensorsmith/arch/combine_adapters.hpp"

namespace ts = tensorsmith;

namespace {

using shape = ts::shape_type;
using doubles = std::vector<double>;

doubles random_values(std::size_t n, unsigned seed, double spread = 0.5) {
  doubles out = ::random_values<double>(n, seed, spread);
  for (double& x : out) x = static_cast<double>(static_cast<float>(x));
  return out;
}

ts::tensor_ref tensor_of(const std::string& name, const shape& extents, const doubles& values, ts::dtype type) {
  std::vector<std::byte> wide(8 * values.size()), bytes(ts::byte_count(type, values.size()));
  std::memcpy(wide.data(), values.data(), wide.size());
  ts::convert_elements(ts::dtype::f64, wide.data(), type, bytes.data(), values.size());
  return ts::in_memory({name, type, extents}, std::move(bytes));
}

doubles values_of(const ts::tensor_ref& tensor, const ts::job& run = {}) {
  const auto bytes = ts::materialize(tensor, run);
  INFO((bytes ? std::string() : bytes.error().message()));
  REQUIRE(bytes);
  doubles out(tensor.info().elements());
  ts::convert_elements(tensor.type(), bytes->data(), ts::dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}

/// An adapter file under construction.
struct file {
  explicit file(std::string path = "a.safetensors") : name(std::move(path)) {}
  ts::catalog tensors;
  std::string name;
  std::vector<std::pair<std::string, std::string>> metadata;
  unsigned seed = 1;

  file& add(const std::string& key, const shape& extents, const doubles& values, ts::dtype type = ts::dtype::f32) {
    REQUIRE(tensors.add(key, tensor_of(key, extents, values, type), name));
    return *this;
  }
  file& add(const std::string& key, const shape& extents, ts::dtype type = ts::dtype::f32) {
    seed = seed * 31 + static_cast<unsigned>(name[0]);
    return add(key, extents, random_values(ts::element_count(extents), seed), type);
  }
  file& pair(const std::string& module, std::size_t out, std::size_t in, std::size_t r, double alpha = 0, ts::dtype type = ts::dtype::f32) {
    add(module + ".lora_up.weight", {out, r}, type).add(module + ".lora_down.weight", {r, in}, type);
    if (alpha != 0) add(module + ".alpha", {}, doubles{alpha}, type);
    return *this;
  }
  file& conv(const std::string& module, std::size_t out, std::size_t in, std::size_t r, double alpha, bool core = false,
             ts::dtype type = ts::dtype::f32) {
    add(module + ".lora_up.weight", {out, r, 1, 1}, type);
    if (core) add(module + ".lora_mid.weight", {r, r, 3, 3}, type);
    add(module + ".lora_down.weight", core ? shape{r, in, 1, 1} : shape{r, in, 3, 3}, type);
    return add(module + ".alpha", {}, doubles{alpha}, type);
  }
};

ts::combine_source source_of(const file& f, double unet, double text_encoder) {
  ts::package whole;
  whole.source = f.name, whole.metadata = f.metadata;
  whole.components.emplace_back().weights = f.tensors;
  ts::job run;
  auto read = ts::read_adapter(whole, run);
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  ts::combine_source out{{.source = std::move(*read)}, f.metadata};
  out.request.unet = unet, out.request.text_encoder = text_encoder;
  return out;
}
ts::combine_source source_of(const file& f, double strength = 1) { return source_of(f, strength, strength); }

struct combined {
  std::vector<ts::combine_source> sources;
  ts::result<ts::combined_adapter> made;
  ts::job run;
};

combined combine(std::vector<ts::combine_source> sources, const ts::combine_options& how) {
  combined out{std::move(sources), ts::failure{}, {}};
  out.made = ts::combine_adapters(out.sources, how, out.run);
  return out;
}

/// As above, and it works: every module and every key has its place.
combined combined_ok(std::vector<ts::combine_source> sources, const ts::combine_options& how) {
  combined out = combine(std::move(sources), how);
  INFO((out.made ? std::string() : out.made.error().message()));
  REQUIRE(out.made);
  REQUIRE(out.made->sources.size() == out.sources.size());
  for (std::size_t i = 0; i < out.sources.size(); ++i) {
    const ts::adapter& from = out.sources[i].request.source;
    const ts::merged_adapter& account = out.made->sources[i];
    CHECK(account.modules.size() == from.modules.size());
    CHECK(account.applied + account.ignored == account.modules.size());
    for (const ts::merged_module& module : account.modules)
      CHECK(module.outcome == (module.reason.empty() ? ts::module_outcome::applied : ts::module_outcome::ignored));
    std::size_t keys = account.unknown.size();
    for (const ts::adapter_layer& module : from.modules) keys += module.parameters.size();
    for (const ts::textual_inversion& one : from.embeddings) keys += one.tensors.size();
    CHECK(keys == from.tensors->size());
  }
  return out;
}

std::string refusal(std::vector<ts::combine_source> sources, const ts::combine_options& how) {
  const combined out = combine(std::move(sources), how);
  return out.made ? "no refusal" : out.made.error().message();
}

/// What an adapter changes in a model with these weights, which are zero: ΔW by layer.
std::map<std::string, doubles> change_of(const std::vector<const ts::adapter_request*>& requests, const std::map<std::string, shape>& layers) {
  ts::package model;
  model.family = "sd1";
  ts::component unet, text;
  unet.name = "unet", text.name = "text_encoder";
  for (const auto& [name, extents] : layers) {
    ts::component& part = name.starts_with("text_model") ? text : unet;
    REQUIRE(part.weights.add(name, tensor_of(name, extents, doubles(ts::element_count(extents), 0.0), ts::dtype::f32), "base"));
  }
  model.components = {unet, text};
  std::vector<ts::adapter_request> all;
  for (const ts::adapter_request* one : requests) all.push_back(*one);
  const auto account = ts::merge_adapters(model, all, {}, {});
  INFO((account ? std::string() : account.error().message()));
  REQUIRE(account);
  std::map<std::string, doubles> out;
  for (const ts::component& part : model.components)
    for (const ts::catalog_entry& entry : part.weights.entries()) out[entry.name] = values_of(entry.tensor);
  return out;
}

/// The combined file, read again as any adapter.
ts::adapter_request reread(const ts::combined_adapter& made) {
  ts::catalog stored;
  for (const ts::catalog_entry& entry : made.tensors.entries())
    REQUIRE(stored.add(entry.name, tensor_of(entry.name, entry.tensor.shape(), values_of(entry.tensor), entry.tensor.type()), "combined"));
  ts::package whole;
  whole.source = "combined.safetensors", whole.metadata = made.metadata;
  whole.components.emplace_back().weights = std::move(stored);
  ts::job run;
  auto read = ts::read_adapter(whole, run);
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  CHECK(read->unknown.empty());
  return {.source = std::move(*read)};
}

double distance(const doubles& a, const doubles& b) {
  REQUIRE(a.size() == b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}
double norm(const doubles& a) { return distance(a, doubles(a.size(), 0.0)); }

doubles tensor(const ts::combined_adapter& made, const std::string& name) {
  const ts::catalog_entry* const entry = made.tensors.find(name);
  CAPTURE(name);
  REQUIRE(entry);
  return values_of(entry->tensor);
}
std::string text_of(const ts::combined_adapter& made, const std::string& key) {
  for (const auto& [name, value] : made.metadata)
    if (name == key) return value;
  return "(none)";
}

const std::string query = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", fc1 = "lora_te_text_model_encoder_layers_0_mlp_fc1",
                  conv1 = "lora_unet_mid_block_resnets_0_conv1", skip = "lora_unet_up_blocks_0_resnets_0_conv_shortcut";
const std::map<std::string, shape> layers = {{"mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight", {24, 16}},
                                             {"text_model.encoder.layers.0.mlp.fc1.weight", {40, 12}},
                                             {"mid_block.resnets.0.conv1.weight", {24, 16, 3, 3}},
                                             {"up_blocks.0.resnets.0.conv_shortcut.weight", {24, 16, 1, 1}}};

/// Merging the combination is merging the parts. `tolerance`: of the largest norm.
void check_exact(const std::vector<ts::combine_source>& sources, const ts::combined_adapter& made, double tolerance) {
  std::vector<const ts::adapter_request*> parts;
  for (const ts::combine_source& source : sources) parts.push_back(&source.request);
  const ts::adapter_request whole = reread(made);
  const auto expected = change_of(parts, layers), found = change_of({&whole}, layers);
  for (const auto& [name, values] : expected) {
    CAPTURE(name, norm(values));
    CHECK(distance(values, found.at(name)) <= tolerance * norm(values));
  }
}

}  // namespace

TEST_CASE("concat is exact: linear, 1×1, 3×3, Tucker, different ranks, alphas, strengths and dialects") {
  for (const ts::dtype type : {ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16}) {
    CAPTURE(ts::name_of(type));
    file a, b("b.safetensors");
    a.pair(query, 24, 16, 4, 2, type).pair(fc1, 40, 12, 3, 0, type).conv(conv1, 24, 16, 4, 1, false, type).pair(skip, 24, 16, 2, 5, type);
    b.pair("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", 24, 16, 6, 3, type).conv(conv1, 24, 16, 2, 2, true, type);
    b.add(skip + ".lora_up.weight", {24, 3, 1, 1}, type).add(skip + ".lora_down.weight", {3, 16, 1, 1}, type);
    const auto both = combined_ok({source_of(a, 0.8, 0.3), source_of(b, -0.4)}, {});
    const ts::combined_adapter& made = *both.made;
    CHECK(made.layers.size() == 4);
    CHECK(made.tensors.size() == 12);
    for (const ts::catalog_entry& entry : made.tensors.entries()) {
      CAPTURE(entry.name);
      CHECK(entry.tensor.type() == (entry.name.ends_with(".alpha") ? ts::dtype::f32 : type));
      CHECK(!entry.name.starts_with("lora_unet_middle_block"));
    }
    CHECK(made.tensors.find(query + ".lora_down.weight")->tensor.shape() == shape{10, 16});
    CHECK(made.tensors.find(conv1 + ".lora_down.weight")->tensor.shape() == shape{6, 16, 3, 3});
    CHECK(made.tensors.find(skip + ".lora_up.weight")->tensor.shape() == shape{24, 5});
    check_exact(both.sources, made, type == ts::dtype::f32 ? 1e-6 : type == ts::dtype::f16 ? 0x1p-11 : 0x1p-8);
    CHECK(text_of(made, "ss_network_dim") == "Dynamic");
    CHECK(text_of(made, "ss_network_alpha") == "Dynamic");
  }
}

TEST_CASE("concat: Tucker with Tucker stays Tucker, block by block") {
  file a, b("b.safetensors");
  a.conv(conv1, 24, 16, 4, 2, true);
  b.conv(conv1, 24, 16, 3, 3, true);
  const auto both = combined_ok({source_of(a, 0.5), source_of(b, 2)}, {});
  CHECK(both.made->tensors.find(conv1 + ".lora_mid.weight")->tensor.shape() == shape{7, 7, 3, 3});
  CHECK(both.made->layers[0].algorithm == "LoCon (Tucker)");
  check_exact(both.sources, *both.made, 1e-6);
}

TEST_CASE("concat: equal scales leave every bit of the factors as it is, in f16 too; a strength of one file alone is its alpha") {
  file a, b("b.safetensors");
  a.pair(query, 24, 16, 4, 2, ts::dtype::f16);
  b.pair(query, 24, 16, 8, 4, ts::dtype::f16);
  const auto both = combined_ok({source_of(a, 0.7), source_of(b, 0.7)}, {});
  const doubles up = tensor(*both.made, query + ".lora_up.weight"), down = tensor(*both.made, query + ".lora_down.weight");
  const doubles up_a = values_of(a.tensors.find(query + ".lora_up.weight")->tensor),
                up_b = values_of(b.tensors.find(query + ".lora_up.weight")->tensor);
  doubles stacked = values_of(a.tensors.find(query + ".lora_down.weight")->tensor);
  for (const double x : values_of(b.tensors.find(query + ".lora_down.weight")->tensor)) stacked.push_back(x);
  CHECK(down == stacked);
  for (std::size_t i = 0; i < 24; ++i)
    for (std::size_t k = 0; k < 12; ++k) CHECK(up[i * 12 + k] == (k < 4 ? up_a[i * 4 + k] : up_b[i * 8 + k - 4]));
  CHECK(tensor(*both.made, query + ".alpha")[0] == static_cast<double>(static_cast<float>(0.7 * 0.5 * 12)));
  CHECK(text_of(*both.made, "ss_network_dim") == "12");

  const auto one = combined_ok({source_of(a, -0.25)}, {});
  CHECK(tensor(*one.made, query + ".lora_up.weight") == up_a);
  CHECK(tensor(*one.made, query + ".alpha")[0] == -0.5);
}

TEST_CASE("concat: full differences, norms and biases are sums; strength 0 and alpha 0 leave a module out and say so") {
  const std::string norm_layer = "lora_unet_mid_block_resnets_0_norm1";
  file a, b("b.safetensors");
  a.add(conv1 + ".diff", {24, 16, 3, 3})
      .add(conv1 + ".diff_b", {24})
      .add(norm_layer + ".w_norm", {16})
      .add(norm_layer + ".b_norm", {16})
      .pair(query, 24, 16, 4, 0);
  b.add(conv1 + ".diff", {24, 16, 3, 3})
      .add(norm_layer + ".w_norm", {16})
      .pair(query, 24, 16, 4)
      .add(query + ".alpha", {}, doubles{0.0})
      .pair(fc1, 40, 12, 2, 1);
  const auto both = combined_ok({source_of(a, 0.5), source_of(b, 2, 0)}, {});
  const doubles da = values_of(a.tensors.find(conv1 + ".diff")->tensor), db = values_of(b.tensors.find(conv1 + ".diff")->tensor),
                sum = tensor(*both.made, conv1 + ".diff");
  for (std::size_t i = 0; i < sum.size(); ++i) CHECK(sum[i] == static_cast<double>(static_cast<float>(0.5 * da[i] + 2 * db[i])));
  CHECK(tensor(*both.made, conv1 + ".diff_b")[3] == 0.5 * values_of(a.tensors.find(conv1 + ".diff_b")->tensor)[3]);
  CHECK(tensor(*both.made, norm_layer + ".w_norm").size() == 16);
  CHECK(tensor(*both.made, norm_layer + ".b_norm").size() == 16);
  CHECK(both.made->tensors.find(query + ".lora_down.weight")->tensor.shape() == shape{4, 16});
  CHECK(!both.made->tensors.contains(fc1 + ".lora_up.weight"));
  std::map<std::string, std::string> reasons;
  for (const ts::merged_module& module : both.made->sources[1].modules) reasons[module.name] = module.reason;
  CHECK(reasons == std::map<std::string, std::string>{{conv1, ""}, {norm_layer, ""}, {query, "alpha is 0: no effect"}, {fc1, "strength 0"}});
  CHECK(both.made->sources[1].ignored == 2);
}

TEST_CASE("an alpha that is stored as an integer counts as in a merge into a model, in every mode") {
  // diffusers' convert_state_dict_to_kohya writes torch.tensor(len(weight)): i64, without dimensions.
  const auto whole = [](std::int64_t alpha, ts::dtype type) {
    file f("i.safetensors");
    std::vector<std::byte> bytes(ts::byte_count(type, 1));
    std::memcpy(bytes.data(), &alpha, bytes.size());
    f.pair(query, 24, 16, 4);
    REQUIRE(f.tensors.add(query + ".alpha", ts::in_memory({query + ".alpha", type, {}}, std::move(bytes)), f.name));
    return f;
  };
  file real("i.safetensors"), b("b.safetensors");  // of one name, so of the same factors
  real.pair(query, 24, 16, 4, 8), b.pair(query, 24, 16, 4, 8);
  for (const ts::dtype type : {ts::dtype::i64, ts::dtype::i32, ts::dtype::u8}) {
    CAPTURE(ts::name_of(type));
    for (const auto mode : {ts::combine_mode::concat, ts::combine_mode::svd, ts::combine_mode::lpl, ts::combine_mode::ljl, ts::combine_mode::kohya}) {
      CAPTURE(ts::name_of(mode));
      const auto both = combined_ok({source_of(whole(8, type), 0.5), source_of(b, 0.25)}, {.mode = mode, .rank = 8});
      const auto same = combined_ok({source_of(real, 0.5), source_of(b, 0.25)}, {.mode = mode, .rank = 8});
      for (const std::string parameter : {".lora_up.weight", ".lora_down.weight", ".alpha"})
        CHECK(tensor(*both.made, query + parameter) == tensor(*same.made, query + parameter));
      if (mode == ts::combine_mode::concat) check_exact(both.sources, *both.made, 1e-6);
    }
  }
  const auto none = combined_ok({source_of(whole(0, ts::dtype::i64)), source_of(b)}, {});
  CHECK(none.made->sources[0].modules[0].reason == "alpha is 0: no effect");
  CHECK(none.made->tensors.find(query + ".lora_down.weight")->tensor.shape() == shape{4, 16});
}

TEST_CASE("a bias difference has no alpha: of a module whose alpha is 0 it stays, as in a merge into a model") {
  std::map<std::string, shape> with_bias = layers;
  with_bias["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.bias"] = {24};
  file a, b("b.safetensors");
  a.pair(query, 24, 16, 4).add(query + ".alpha", {}, doubles{0.0}).add(query + ".diff_b", {24});
  b.pair(query, 24, 16, 4, 2).add(query + ".diff_b", {24});
  const doubles da = values_of(a.tensors.find(query + ".diff_b")->tensor), db = values_of(b.tensors.find(query + ".diff_b")->tensor);
  for (const auto mode : {ts::combine_mode::concat, ts::combine_mode::svd}) {
    CAPTURE(ts::name_of(mode));
    const auto both = combined_ok({source_of(a, 0.5), source_of(b, 0.25)}, {.mode = mode, .rank = 4});
    const doubles sum = tensor(*both.made, query + ".diff_b");
    REQUIRE(sum.size() == 24);
    for (std::size_t i = 0; i < sum.size(); ++i) CHECK(sum[i] == static_cast<double>(static_cast<float>(0.5 * da[i] + 0.25 * db[i])));
    CHECK(both.made->tensors.find(query + ".lora_down.weight")->tensor.shape() == shape{4, 16});
    CHECK(both.made->sources[0].modules[0].reason == "");
    CHECK(both.made->sources[0].applied == 1);
    CHECK(both.made->sources[0].ignored == 0);
    const ts::adapter_request whole = reread(*both.made);
    const auto expected = change_of({&both.sources[0].request, &both.sources[1].request}, with_bias), found = change_of({&whole}, with_bias);
    for (const auto& [name, values] : expected) {
      CAPTURE(name);
      CHECK(distance(values, found.at(name)) <= 3e-6 * norm(values));
    }
    CHECK(norm(found.at("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.bias")) > 0);

    const auto alone = combined_ok({source_of(a, 0.5)}, {.mode = mode, .rank = 4});
    CHECK(alone.made->tensors.size() == 1);
    CHECK(tensor(*alone.made, query + ".diff_b")[5] == 0.5 * da[5]);
    const auto off = combined_ok({source_of(a, 0), source_of(b, 0.25)}, {.mode = mode, .rank = 4});
    CHECK(tensor(*off.made, query + ".diff_b")[5] == 0.25 * db[5]);
    CHECK(off.made->sources[0].modules[0].reason == "strength 0");
  }
}

TEST_CASE("strength 0 skips a module, whatever its algorithm is, where the result is a sum of changes") {
  file a, b("b.safetensors");
  a.pair(query, 24, 16, 4, 2).pair(fc1, 40, 12, 2, 1);
  b.pair(query, 24, 16, 4, std::nan("")).add(query + ".dora_scale", {24, 1}).add(skip + ".oft_blocks", {3, 8, 8}).pair(fc1, 40, 12, 2, 1);
  for (const auto mode : {ts::combine_mode::concat, ts::combine_mode::svd}) {
    CAPTURE(ts::name_of(mode));
    const ts::combine_options how{.mode = mode, .rank = 4};
    const auto both = combined_ok({source_of(a), source_of(b, 0, 0.5)}, how);  // the UNet alone is at 0
    const auto same = combined_ok({source_of(a, 1, 0)}, how);
    for (const std::string parameter : {".lora_up.weight", ".lora_down.weight", ".alpha"})
      CHECK(tensor(*both.made, query + parameter) == tensor(*same.made, query + parameter));
    CHECK(both.made->tensors.find(fc1 + ".lora_down.weight")->tensor.shape() == shape{4, 12});
    std::map<std::string, std::string> reasons, algorithms;
    for (const ts::merged_module& module : both.made->sources[1].modules)
      reasons[module.name] = module.reason, algorithms[module.name] = module.algorithm;
    CHECK(reasons == std::map<std::string, std::string>{{query, "strength 0"}, {skip, "strength 0"}, {fc1, ""}});
    CHECK(algorithms == std::map<std::string, std::string>{{query, "DoRA of LoRA"}, {skip, "OFT"}, {fc1, "LoRA"}});
    CHECK(both.made->sources[1].applied == 1);
    CHECK(both.made->sources[1].ignored == 2);

    auto blocked = source_of(b);
    blocked.request.block_weight = [](std::string_view) { return 0.0; };
    CHECK(combined_ok({source_of(a), blocked}, how).made->sources[1].ignored == 2);
    CHECK(refusal({source_of(a), source_of(b, 0.5)}, how).find("depends on the weight of the model") != std::string::npos);
  }
  for (const auto mode : {ts::combine_mode::lpl, ts::combine_mode::ljl, ts::combine_mode::kohya})  // these use all pieces
    CHECK(refusal({source_of(a), source_of(b, 0)}, {.mode = mode}).find("depends on the weight of the model") != std::string::npos);

  file twice("t.safetensors");
  twice.pair(query, 24, 16, 4, 2).pair("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", 24, 16, 4, 2);
  CHECK(refusal({source_of(a), source_of(twice, 0)}, {}).find("two modules of one adapter change the same layer") != std::string::npos);
}

TEST_CASE("kohya's LoRA + LoRA: √ of the strengths' product and cross terms, as its script computes them") {
  // Golden: (1·2) and (3·5), strength 0.5 each: up 2, down 3.5, product 7; the exact sum would be 8.5.
  file a, b("b.safetensors");
  a.add(query + ".lora_up.weight", {1, 1}, doubles{1}).add(query + ".lora_down.weight", {1, 1}, doubles{2});
  b.add(query + ".lora_up.weight", {1, 1}, doubles{3}).add(query + ".lora_down.weight", {1, 1}, doubles{5});
  const auto both = combined_ok({source_of(a, 0.5), source_of(b, 0.5)}, {.mode = ts::combine_mode::kohya});
  CHECK(tensor(*both.made, query + ".lora_up.weight")[0] * tensor(*both.made, query + ".lora_down.weight")[0] == 7.0);
  CHECK(tensor(*both.made, query + ".alpha")[0] == 1.0);
  REQUIRE(both.run.notes.size() == 1);
  CHECK(both.run.notes[0].severity == ts::note::level::warning);
  CHECK(both.run.notes[0].text.find("cross terms") != std::string::npos);
  const auto lpl = combined_ok({source_of(a, 0.5), source_of(b, 0.5)}, {.mode = ts::combine_mode::lpl});
  CHECK(tensor(*lpl.made, query + ".lora_up.weight")[0] * tensor(*lpl.made, query + ".lora_down.weight")[0] == 7.0);
  const auto exact = combined_ok({source_of(a, 0.5), source_of(b, 0.5)}, {});
  const doubles u = tensor(*exact.made, query + ".lora_up.weight"), d = tensor(*exact.made, query + ".lora_down.weight");
  CHECK((u[0] * d[0] + u[1] * d[1]) * tensor(*exact.made, query + ".alpha")[0] / 2 == 8.5);

  // Alphas 4 and 1: the second file's factors times √(1/4), a negative strength in `down` alone; the result has the first alpha.
  file c("c.safetensors"), e("e.safetensors");
  c.add(query + ".lora_up.weight", {1, 1}, doubles{1}).add(query + ".lora_down.weight", {1, 1}, doubles{2}).add(query + ".alpha", {}, doubles{4});
  e.add(query + ".lora_up.weight", {1, 1}, doubles{3}).add(query + ".lora_down.weight", {1, 1}, doubles{5}).add(query + ".alpha", {}, doubles{1});
  const auto scaled = combined_ok({source_of(c, 0.5), source_of(e, -0.8)}, {.mode = ts::combine_mode::kohya});
  CHECK(std::fabs(tensor(*scaled.made, query + ".lora_up.weight")[0] - (0.5 + 0.4 * 3)) <= 1e-7);
  CHECK(std::fabs(tensor(*scaled.made, query + ".lora_down.weight")[0] - (1 - 0.4 * 5)) <= 1e-7);
  CHECK(tensor(*scaled.made, query + ".alpha")[0] == 4.0);
}

TEST_CASE("svd: the error is the tail of the singular values, by either way of computing it; ranks, shapes, alphas") {
  file a, b("b.safetensors");
  a.pair(query, 24, 16, 4, 2).conv(conv1, 24, 16, 6, 3).pair(fc1, 40, 12, 4, 2);
  b.pair(query, 24, 16, 4, 8).conv(conv1, 24, 16, 5, 1, true).pair(fc1, 40, 12, 12, 6);  // fc1's ranks reach its smaller side: the dense way
  const std::vector<ts::combine_source> sources{source_of(a, 0.9), source_of(b, 0.6)};
  const auto exact = combined_ok(sources, {});
  const ts::adapter_request whole = reread(*exact.made);
  const auto expected = change_of({&whole}, layers);
  for (const std::size_t rank : {std::size_t{1}, std::size_t{3}, std::size_t{7}}) {
    CAPTURE(rank);
    const auto both = combined_ok(sources, {.mode = ts::combine_mode::svd, .rank = rank, .conv_rank = 5});
    const ts::adapter_request small = reread(*both.made);
    const auto found = change_of({&small}, layers);
    CHECK(both.made->tensors.find(conv1 + ".lora_down.weight")->tensor.shape() == shape{5, 16, 3, 3});
    CHECK(tensor(*both.made, conv1 + ".alpha")[0] == 5);
    CHECK(tensor(*both.made, query + ".alpha")[0] == static_cast<double>(rank));
    CHECK(text_of(*both.made, "ss_network_args") == R"({"conv_dim": "5", "conv_alpha": "5"})");
    for (const auto& layer : both.made->layers) {
      CAPTURE(layer.name);
      REQUIRE(layer.svd);
      const std::string path = layer.name == query ? "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
                               : layer.name == fc1 ? "text_model.encoder.layers.0.mlp.fc1.weight" : "mid_block.resnets.0.conv1.weight";
      const doubles& want = expected.at(path);
      // The tail of the singular values, by Jacobi on the whole change.
      const std::size_t rows = layers.at(path)[0], cols = want.size() / rows;
      doubles columns(want), v(rows * rows), sigma(rows);
      ts::jacobi_svd({columns.data(), rows, cols}, {v.data(), rows, rows}, sigma.data());
      double tail = 0;
      for (std::size_t k = layer.rank; k < rows; ++k) tail += sigma[k] * sigma[k];
      CHECK(std::fabs(distance(want, found.at(path)) - std::sqrt(tail)) <= 2e-6 * norm(want));
      // What the recipe says once it has been computed.
      CHECK(std::fabs(layer.svd->kept().whole - norm(want)) <= 2e-6 * norm(want));
      CHECK(std::fabs(layer.svd->kept().lost - std::sqrt(tail)) <= 2e-6 * norm(want));
    }
  }
  // A rank that holds everything loses nothing, and is never larger than what is there.
  const auto all = combined_ok(sources, {.mode = ts::combine_mode::svd, .rank = 100});
  CHECK(all.made->tensors.find(query + ".lora_down.weight")->tensor.shape() == shape{8, 16});
  check_exact(sources, *all.made, 2e-6);
}

TEST_CASE("svd takes what has no factors: LoHa, LoKr and full differences, flattened convolutions too") {
  file a, b("b.safetensors");
  a.add(query + ".hada_w1_a", {24, 2})
      .add(query + ".hada_w1_b", {2, 16})
      .add(query + ".hada_w2_a", {24, 2})
      .add(query + ".hada_w2_b", {2, 16})
      .add(query + ".alpha", {}, doubles{1});
  a.add(conv1 + ".hada_w1_a", {24, 2}).add(conv1 + ".hada_w1_b", {2, 144}).add(conv1 + ".hada_w2_a", {24, 2}).add(conv1 + ".hada_w2_b", {2, 144});
  a.add(fc1 + ".diff", {40, 12});
  b.add(query + ".lokr_w1", {4, 2}).add(query + ".lokr_w2_a", {6, 2}).add(query + ".lokr_w2_b", {2, 8}).add(query + ".alpha", {}, doubles{3});
  b.conv(conv1, 24, 16, 3, 3).pair(fc1, 40, 12, 2, 1);
  const std::vector<ts::combine_source> sources{source_of(a, 0.7, 0.4), source_of(b, 1.1)};
  CHECK(refusal(sources, {}) == "UNS a.safetensors: module '" + fc1 +
                                    "': this kind of change has no factors that could be joined (expected LoRA and LoCon alone, found full); "
                                    "pass --mode svd --rank N to bring it to LoRA of that rank");
  const auto both = combined_ok(sources, {.mode = ts::combine_mode::svd, .rank = 100});
  CHECK(both.made->tensors.find(conv1 + ".lora_down.weight")->tensor.shape() == shape{24, 16, 3, 3});
  check_exact(sources, *both.made, 3e-6);
}

TEST_CASE("modules of different files meet by their layer: kohya's dialects, PEFT, diffusers; the first file's dialect names the result") {
  const std::string path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", ldm = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q";
  const auto peft = [&](const std::string& name) {
    file f(name);
    f.add("unet." + path + ".lora_B.weight", {24, 4}).add("unet." + path + ".lora_A.weight", {4, 16});
    return f;
  };
  file kohya, sgm("s.safetensors");
  kohya.pair(query, 24, 16, 4, 2);
  sgm.pair(ldm, 24, 16, 4, 2);
  const auto names = [](const combined& c) { return c.made->layers.at(0).name; };
  CHECK(names(combined_ok({source_of(kohya), source_of(peft("p.safetensors"))}, {})) == query);
  CHECK(names(combined_ok({source_of(peft("p.safetensors")), source_of(kohya)}, {})) == query);
  CHECK(names(combined_ok({source_of(sgm), source_of(kohya)}, {})) == ldm);
  CHECK(names(combined_ok({source_of(kohya), source_of(sgm)}, {})) == query);
  const auto mixed = combined_ok({source_of(peft("p.safetensors"), 0.5), source_of(peft("q.safetensors"), 0.25)}, {});
  CHECK(names(mixed) == query);
  check_exact(mixed.sources, *mixed.made, 1e-6);

  file twice;
  twice.pair(query, 24, 16, 4, 2).pair(ldm, 24, 16, 4, 2);
  CHECK(refusal({source_of(twice)}, {}).find("two modules of one adapter change the same layer") != std::string::npos);
}

TEST_CASE("metadata: what stays true of the base model is kept, what was true of one training is not") {
  file a("dir/a.safetensors"), b("b.safetensors");
  a.pair(query, 24, 16, 4, 2), b.pair(query, 24, 16, 4, 2);
  a.metadata = {{"ss_base_model_version", "sd_v1"}, {"ss_network_dim", "4"},         {"ss_tag_frequency", "{}"},
                {"sshs_model_hash", "0123"},        {"ss_sd_model_name", "one"},     {"modelspec.architecture", "stable-diffusion-v1/lora"},
                {"modelspec.title", "Line art"},    {"modelspec.hash_sha256", "0x1"}};
  b.metadata = {{"ss_base_model_version", "sd_v1"}, {"ss_sd_model_name", "two"}, {"ss_clip_skip", "2"}};
  const auto both = combined_ok({source_of(a, 0.5), source_of(b, 0.25, 1)}, {});
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"modelspec.architecture", "stable-diffusion-v1/lora"},
      {"modelspec.merged_from", "Line art, b.safetensors"},
      {"ss_base_model_version", "sd_v1"},
      {"ss_clip_skip", "2"},
      {"ss_network_alpha", "2"},
      {"ss_network_dim", "8"},
      {"ss_network_module", "networks.lora"},
      {"tensorsmith.mode", "concat"},
      {"tensorsmith.sources",
       R"([{"file": "a.safetensors", "strength": 0.5, "text_encoder_strength": 0.5}, {"file": "b.safetensors", "strength": 0.25, "text_encoder_strength": 1.0}])"}};
  CHECK(both.made->metadata == expected);
}

TEST_CASE("embeddings come along; of two with one name the first stays and the other is named") {
  file a, b("b.safetensors");
  a.pair(query, 24, 16, 4, 2).add("bundle_emb.cat.string_to_param.*", {2, 768}, ts::dtype::f16);
  b.pair(query, 24, 16, 4, 2)
      .add("bundle_emb.cat.string_to_param.*", {1, 768})
      .add("bundle_emb.dog.clip_l", {1, 768})
      .add("bundle_emb.dog.clip_g", {1, 1280});
  const auto both = combined_ok({source_of(a), source_of(b)}, {});
  CHECK(both.made->tensors.find("bundle_emb.cat.string_to_param.*")->tensor.shape() == shape{2, 768});
  CHECK(both.made->tensors.find("bundle_emb.cat.string_to_param.*")->tensor.type() == ts::dtype::f16);
  CHECK(both.made->tensors.contains("bundle_emb.dog.clip_l"));
  CHECK(both.made->tensors.contains("bundle_emb.dog.clip_g"));
  CHECK(both.made->embeddings == std::vector<std::string>{"cat", "cat of b.safetensors: an adapter before it brings one of that name", "dog"});
  CHECK(both.run.notes.size() == 1);
}

TEST_CASE("what cannot be combined is refused by name") {
  file a, b("b.safetensors");
  a.pair(query, 24, 16, 4, 2);
  b.pair(query, 24, 20, 4, 2);
  CHECK(refusal({source_of(a), source_of(b)}, {}) ==
        "MIS b.safetensors: module '" + query +
            "': the adapters change weights of different shapes (expected a weight [24, 16] as a.safetensors, found a weight [24, 20])");
  CHECK(refusal({source_of(a)}, {.mode = ts::combine_mode::svd}) == "USE the rank of the result is missing (expected --rank)");
  CHECK(refusal({source_of(a, 0), source_of(a, 0)}, {}) ==
        "MIS nothing is left of the adapters (expected a module with an effect, found strengths and alphas of 0)");

  const std::string key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
  file sd1("one.safetensors"), sdxl("xl.safetensors");
  sd1.pair(key, 24, 768, 2), sdxl.pair(key, 24, 2048, 2);
  CHECK(refusal({source_of(sd1), source_of(sdxl)}, {}) ==
        "MIS xl.safetensors: the adapters are for different models (expected one for sd1 as one.safetensors, found one for sdxl ('" + key +
            "' takes width 2048))");

  for (const std::string kind : {"dora_scale", "oft_blocks", "on_input", "a1"}) {
    CAPTURE(kind);
    file c("c.safetensors");
    if (kind == "dora_scale") c.pair(query, 24, 16, 4, 2).add(query + ".dora_scale", {24, 1});
    if (kind == "oft_blocks") c.add(query + ".oft_blocks", {3, 8, 8});
    if (kind == "on_input") c.add(query + ".weight", {16}).add(query + ".on_input", {}, doubles{1});
    if (kind == "a1")
      c.add(query + ".a1.weight", {16, 2}).add(query + ".a2.weight", {2, 16}).add(query + ".b1.weight", {24, 2}).add(query + ".b2.weight", {2, 16});
    const std::string text = refusal({source_of(a), source_of(c)}, {});
    CHECK(text.starts_with("UNS c.safetensors: module '" + query +
                           "': the change of this module depends on the weight of the model, so it cannot be combined without one"));
    CHECK(text.ends_with("; merge the adapters into a model instead"));
  }
  file nan("n.safetensors"), half("h.safetensors");
  nan.pair(query, 24, 16, 4, std::nan(""));
  CHECK(refusal({source_of(nan)}, {}) ==
        "NUM n.safetensors: module '" + query + "': alpha is no finite number (expected a finite number, found nan)");
  half.pair(fc1, 40, 12, 2).add(query + ".lora_down.weight", {4, 16});
  CHECK(refusal({source_of(half)}, {}).find("a pair of factors is not complete") != std::string::npos);
  file odd("o.safetensors");
  odd.add(query + ".lora_up.weight", {24, 4}).add(query + ".lora_down.weight", {3, 16});
  CHECK(refusal({source_of(odd)}, {}).find("the factors of the module do not fit together") != std::string::npos);

  file rank("r.safetensors"), other("x.safetensors");
  rank.pair(query, 24, 16, 6, 3), other.pair(fc1, 40, 12, 4, 2);
  for (const auto mode : {ts::combine_mode::lpl, ts::combine_mode::kohya})
    CHECK(refusal({source_of(a), source_of(rank)}, {.mode = mode})
              .find("needs the same rank in every file (expected rank 4 as a.safetensors, found 6)") != std::string::npos);
  for (const auto mode : {ts::combine_mode::lpl, ts::combine_mode::ljl})
    CHECK(refusal({source_of(a), source_of(other)}, {.mode = mode})
              .find("not every adapter changes this layer, which mode " + std::string(ts::name_of(mode)) + " asks for") != std::string::npos);
  ts::job tiny;
  tiny.memory_bytes = 1000;
  const std::vector<ts::combine_source> one{source_of(a)};
  const auto limited = ts::combine_adapters(one, {.mode = ts::combine_mode::svd, .rank = 2}, tiny);
  REQUIRE(!limited);
  CHECK(limited.error().code == ts::errc::limit);
  CHECK(limited.error().message().ends_with("; raise --memory"));
}

TEST_CASE("ljl joins at strength 1; lpl adds by strengths; cloneofsimo's numbers and metadata stay in both") {
  const auto numbered = [](const std::string& name, std::size_t r) {
    file f(name);
    for (std::size_t i = 0; i < 48; ++i)
      f.add("text_encoder:" + std::to_string(i) + ":up", {16, r}, ts::dtype::f16)
          .add("text_encoder:" + std::to_string(i) + ":down", {r, 16}, ts::dtype::f16);
    f.add("<" + name.substr(0, 1) + ">", {768});
    f.metadata = {{"text_encoder", R"(["CLIPAttention"])"}, {"<" + name.substr(0, 1) + ">", "<embed>"}};
    for (std::size_t i = 0; i < 48; ++i) f.metadata.emplace_back("text_encoder:" + std::to_string(i) + ":rank", std::to_string(r));
    return f;
  };
  const file a = numbered("a.safetensors", 4), b = numbered("b.safetensors", 4);
  const auto joined = combined_ok({source_of(a, 0.3), source_of(b, 0.9)}, {.mode = ts::combine_mode::ljl});
  CHECK(joined.made->tensors.size() == 98);
  CHECK(joined.made->tensors.find("text_encoder:2:up")->tensor.shape() == shape{16, 8});
  CHECK(joined.made->tensors.contains("<s0-0>"));
  CHECK(joined.made->tensors.find("<s1-0>")->tensor.shape() == shape{768});
  CHECK(text_of(*joined.made, "text_encoder:2:rank") == "8");
  CHECK(text_of(*joined.made, "text_encoder") == R"(["CLIPAttention"])");
  CHECK(text_of(*joined.made, "<s1-0>") == "<embed>");
  CHECK(text_of(*joined.made, "<a>") == "(none)");
  const doubles up = tensor(*joined.made, "text_encoder:2:up"), up_a = values_of(a.tensors.find("text_encoder:2:up")->tensor);
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t k = 0; k < 4; ++k) CHECK(up[i * 8 + k] == up_a[i * 4 + k]);
  const ts::adapter_request again = reread(*joined.made);
  CHECK(again.source.modules.size() == 48);
  CHECK(again.source.embeddings.size() == 2);

  const auto added = combined_ok({source_of(a, 0.5), source_of(b, 0.25)}, {.mode = ts::combine_mode::lpl});
  const doubles sum = tensor(*added.made, "text_encoder:1:down"), da = values_of(a.tensors.find("text_encoder:1:down")->tensor),
                db = values_of(b.tensors.find("text_encoder:1:down")->tensor);
  for (std::size_t i = 0; i < sum.size(); ++i) CHECK(std::fabs(sum[i] - (0.5 * da[i] + 0.25 * db[i])) <= 0x1p-12);
  CHECK(added.made->tensors.contains("<a>"));
  CHECK(added.made->tensors.contains("<b>"));

  // Beside another family, or in the exact modes, they get names.
  const auto named = combined_ok({source_of(a), source_of(b)}, {});
  CHECK(named.made->tensors.contains("lora_te_text_model_encoder_layers_0_self_attn_k_proj.lora_up.weight"));
  CHECK(named.made->tensors.contains("bundle_emb.<a>.string_to_param.*"));
}

TEST_CASE("lpl and ljl of cloneofsimo's .pt lists write the class lists that its loader asks for: those of the set that was counted") {
  const auto listed = [] {
    ts::job run;
    auto read = ts::open_adapter(support::data("adapters/cloneofsimo/cat.pt").string(), run);
    INFO((read ? std::string() : read.error().message()));
    REQUIRE(read);
    CHECK(read->modules.size() == 144 + 48);
    return ts::combine_source{{.source = std::move(*read)}, {}};
  };
  for (const auto mode : {ts::combine_mode::lpl, ts::combine_mode::ljl}) {
    CAPTURE(ts::name_of(mode));
    const auto both = combined_ok({listed(), listed()}, {.mode = mode});
    CHECK(both.made->tensors.contains("unet:143:up"));
    CHECK(text_of(*both.made, "unet") == R"(["CrossAttention", "Attention", "GEGLU"])");
    CHECK(text_of(*both.made, "text_encoder") == R"(["CLIPAttention"])");
    CHECK(text_of(*both.made, "unet:143:rank") == std::to_string(both.made->tensors.find("unet:143:down")->tensor.shape()[0]));
    const ts::adapter_request again = reread(*both.made);  // with the lists, the same layers
    REQUIRE(again.source.modules.size() == both.sources[0].request.source.modules.size());
    for (std::size_t i = 0; i < again.source.modules.size(); ++i) CHECK(again.source.modules[i].name == both.sources[0].request.source.modules[i].name);
  }
  const auto named = combined_ok({listed(), listed()}, {});
  CHECK(text_of(*named.made, "unet") == "(none)");

  // The extended set, without a text encoder. A list that one of the files has stays as it is.
  const auto extended = [](const std::string& name) {
    file f(name);
    const auto slots = ts::cloneofsimo_unet_slots({true, true, true}, false);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const std::string pair = "unet:" + std::to_string(i);
      f.add(pair + ":up", slots[i].convolution ? shape{8, 2, 1, 1} : shape{8, 2}).add(pair + ":down", slots[i].convolution ? shape{2, 8, 3, 3} : shape{2, 8});
    }
    return f;
  };
  file a = extended("a.safetensors"), b = extended("b.safetensors");
  const auto whole = combined_ok({source_of(a), source_of(b)}, {.mode = ts::combine_mode::ljl});
  CHECK(text_of(*whole.made, "unet") == R"(["CrossAttention", "Attention", "GEGLU", "ResnetBlock2D"])");
  CHECK(text_of(*whole.made, "text_encoder") == "(none)");
  CHECK(reread(*whole.made).source.modules.size() == whole.sources[0].request.source.modules.size());
  b.metadata = {{"unet", R"(["ResnetBlock2D", "GEGLU", "Attention"])"}};
  const auto kept = combined_ok({source_of(b), source_of(a)}, {.mode = ts::combine_mode::ljl});
  CHECK(text_of(*kept.made, "unet") == R"(["ResnetBlock2D", "GEGLU", "Attention"])");
}

TEST_CASE("values that do not fit the element type end the run, or saturate") {
  file a;
  a.add(query + ".lora_up.weight", {1, 1}, doubles{60000}, ts::dtype::f16).add(query + ".lora_down.weight", {1, 1}, doubles{1}, ts::dtype::f16);
  const auto sum = combined_ok({source_of(a), source_of(a)}, {.mode = ts::combine_mode::kohya});
  const auto bytes = ts::materialize(sum.made->tensors.find(query + ".lora_up.weight")->tensor, {});
  REQUIRE(!bytes);
  CHECK(bytes.error().code == ts::errc::numeric);
  const auto fits = combined_ok({source_of(a), source_of(a)}, {.mode = ts::combine_mode::kohya, .overflow = ts::cast_overflow::saturate});
  CHECK(tensor(*fits.made, query + ".lora_up.weight")[0] == 65504);
  file nan;
  nan.add(query + ".lora_up.weight", {2, 1}, doubles{std::nan(""), 1}).add(query + ".lora_down.weight", {1, 2}, doubles{1, 1});
  for (const auto mode : {ts::combine_mode::concat, ts::combine_mode::kohya}) {
    const auto joined = combined_ok({source_of(nan)}, {.mode = mode});
    const auto up = ts::materialize(joined.made->tensors.find(query + ".lora_up.weight")->tensor, {});
    REQUIRE(!up);
    CHECK(up.error().message() == "NUM tensor " + query + ".lora_up.weight: a factor of an adapter holds NaN or infinities (expected finite values)");
  }
  const auto svd = combined_ok({source_of(nan)}, {.mode = ts::combine_mode::svd, .rank = 1});
  const auto none = ts::materialize(svd.made->tensors.find(query + ".lora_up.weight")->tensor, {});
  REQUIRE(!none);
  CHECK(none.error().message().find("has no singular values") != std::string::npos);
}

TEST_CASE("threads and tiles change no bit of a combination") {
  file a, b("b.safetensors");
  a.pair(query, 24, 16, 4, 2).conv(conv1, 24, 16, 4, 1), b.pair(query, 24, 16, 6, 3).conv(conv1, 24, 16, 6, 1, true);
  for (const auto mode : {ts::combine_mode::concat, ts::combine_mode::svd}) {
    const auto both = combined_ok({source_of(a, 0.9), source_of(b, 0.7)}, {.mode = mode, .rank = 3});
    for (const ts::catalog_entry& entry : both.made->tensors.entries()) {
      std::vector<std::vector<std::byte>> outcomes;
      for (const unsigned threads : {1u, 3u})
        for (const std::size_t tile : {std::size_t{256}, std::size_t{1} << 20}) {
          std::vector<std::byte> bytes(entry.tensor.info().bytes());
          ts::memory_sink sink(bytes);
          ts::placement whole{entry.tensor.source, std::vector<ts::output_slot>(entry.tensor.source->outputs().size()), entry.name};
          whole.slots[entry.tensor.output] = {&sink, 0};
          ts::job run;
          run.threads = threads, run.tile_bytes = tile;
          REQUIRE(ts::execute({&whole, 1}, run));
          outcomes.push_back(std::move(bytes));
        }
      for (const auto& other : outcomes) CHECK(other == outcomes[0]);
    }
  }
}

TEST_CASE("hostile shapes are refused before memory is taken for them") {
  // A Tucker core whose product with its right factor would have 2·10^10 elements, of a file of 1 MB.
  file a, b("b.safetensors");
  a.add(conv1 + ".lora_up.weight", {1, 200000, 1, 1}).add(conv1 + ".lora_mid.weight", {200000, 1, 1, 1}).add(conv1 + ".lora_down.weight", {1, 100000, 1, 1});
  b.add(conv1 + ".lora_up.weight", {1, 1, 1, 1}).add(conv1 + ".lora_down.weight", {1, 100000, 1, 1});
  for (const auto mode : {ts::combine_mode::concat, ts::combine_mode::svd}) {
    const std::string text = refusal({source_of(a), source_of(b)}, {.mode = mode, .rank = 2});
    CHECK(text.starts_with("LIM "));
    CHECK(text.find("a layer needs more memory than the budget while it is computed") != std::string::npos);
  }
  // A difference that its own small file cannot hold, made by two long vectors: rank 1, so nothing of its size is ever made.
  file c, d("d.safetensors");
  c.pair(query, 300000, 300000, 1), d.pair(query, 300000, 300000, 1);
  const auto thin = combined_ok({source_of(c), source_of(d)}, {.mode = ts::combine_mode::svd, .rank = 1});
  CHECK(thin.made->largest_memory <= std::size_t{64} << 20);
  CHECK(norm(tensor(*thin.made, query + ".lora_down.weight")) > 0);
  // Empty and flat factors.
  file none, flat;
  none.add(query + ".lora_up.weight", {24, 0}, doubles{}).add(query + ".lora_down.weight", {0, 16}, doubles{});
  flat.add(query + ".lora_up.weight", {24}).add(query + ".lora_down.weight", {16});
  for (const file* odd : {&none, &flat})
    CHECK(refusal({source_of(*odd)}, {}).find("the factors of the module do not fit together (expected factors of one weight") != std::string::npos);
}
