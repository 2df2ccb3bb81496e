// SPDX-License-Identifier: MIT
//
// Adapters that are damaged, incomplete, contradictory or for another model: merge-lora merges all of it or refuses it, and says why.
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "examples/adapters.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"

using faults::add_tensor;
using faults::safetensors_parts;
using programs::add_pair;
using programs::floats;
using programs::operator+;
using strings = std::vector<std::string>;
using shape = std::vector<std::size_t>;
namespace fs = std::filesystem;

namespace {

const std::string base = support::data("sd1/diffusers").string();
const std::string query = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";  // [32, 32]
const std::string convolution = "lora_unet_mid_block_resnets_0_conv1";                          // [32, 32, 3, 3]
const std::string point = "lora_unet_mid_block_attentions_0_proj_in";                           // [32, 32, 1, 1]

std::string number(float value) { return {reinterpret_cast<const char*>(&value), sizeof value}; }

void add(safetensors_parts& file, const std::string& name, const shape& extents, unsigned seed) {
  add_tensor(file, name, "F32", extents, floats(programs::elements(extents), seed));
}

/// A folder for one merge: adapters are written into it, merges end in it.
struct place {
  support::temp_folder work;

  std::string write(const safetensors_parts& file, const std::string& name = "a.safetensors") const {
    faults::write_parts(work / name, file);
    return work / name;
  }
  /// merge-lora must refuse the adapter with exactly this message behind its path, and leave the folder as it was.
  void refused(const safetensors_parts& file, const std::string& code, const std::string& message, const strings& more = {}) const {
    const std::string path = write(file);
    faults::refused("merge-lora", work.path(), strings{base, work / "refused", "--lora", path + ":1"} + more, code, path + message);
  }
  /// merge-lora must merge it; the first adapter's report.
  nlohmann::json merged(const safetensors_parts& file, const strings& more = {}) const {
    const auto report = programs::report_of("merge-lora", strings{base, work / "out", "--lora", write(file) + ":1", "--force"} + more);
    (void)programs::keys_applied(report);
    return report["adapters"][0];
  }
  std::map<std::string, std::string> weights(const std::string& folder = "out") const {
    return faults::tensors_of((work / folder) + "/unet/diffusion_pytorch_model.safetensors");
  }
};

const std::map<std::string, std::string>& stored() {
  static const auto tensors = faults::tensors_of(base + "/unet/diffusion_pytorch_model.safetensors");
  return tensors;
}

std::string name_of_weight(const std::string& module) {
  return module == query ? "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" : module == point ? "mid_block.attentions.0.proj_in.weight" : "mid_block.resnets.0.conv1.weight";
}

/// The numbers of an f16 tensor as faults::tensors_of gives it.
std::vector<double> halves(const std::string& tensor) {
  const std::string bytes = tensor.substr(tensor.find(']') + 1);
  std::vector<double> out;
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + i, 2);
    const int exponent = bits >> 10 & 31;
    const double fraction = (bits & 1023) / 1024.0;
    const double size = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
    out.push_back(bits & 0x8000 ? -size : size);
  }
  return out;
}

double farthest(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(a[i] - b[i]));
  return worst;
}

}  // namespace

TEST_CASE("LRA-01: an adapter for another family is refused with the shapes of its modules and both families") {
  const place at;
  safetensors_parts file;
  const std::string block = "lora_unet_mid_block_attentions_0_transformer_blocks_0_";
  for (const char* layer : {"attn2_to_k", "attn2_to_v", "attn1_to_k", "attn1_to_v", "attn1_to_out_0", "attn1_to_q"})
    add_pair(file, block + layer, {1280, layer[4] == '2' ? std::size_t{2048} : std::size_t{1280}}, 1);
  const std::string path = at.write(file);
  const auto found = [&](const std::string& layer, const std::string& width) {
    return "module '" + block + layer + "': the adapter's shapes do not fit the layer: expected factors of a weight [32, " + (layer[4] == '2' ? "64" : "32") +
           "], found lora_up [1280, 4], lora_down [4, " + width + "]";
  };
  faults::refused("merge-lora", at.work.path(), {base, at.work / "out", "--lora", path + ":1"}, "MIS",
                  path + ": module '" + block + "attn1_to_k': the adapter's shapes do not fit the layer (expected factors of a weight [32, 32], found lora_up [1280, 4], lora_down [4, 1280]; " +
                      found("attn1_to_out_0", "1280") + "; " + found("attn1_to_q", "1280") + "; " + found("attn1_to_v", "1280") + "; and 2 more modules); the adapter is one for sdxl ('" + block +
                      "attn2_to_k' takes width 2048), the model is sd1");
}

TEST_CASE("LRA-02: half a pair of factors, and a core without a pair") {
  const place at;
  for (const std::string half : {"lora_up", "lora_down", "lora_mid"}) {
    safetensors_parts beside, alone;
    add_pair(beside, point, {32, 32, 1, 1}, 1);
    for (safetensors_parts* file : {&beside, &alone}) add(*file, query + "." + half + ".weight", half == "lora_mid" ? shape{4, 4, 3, 3} : shape{32, 4}, 3);
    at.refused(beside, "MIS", ": module '" + query + "': a pair of factors is not complete (expected lora_down and lora_up, found " + half + ")");
    at.refused(alone, "MIS",
               ": module '" + query + "': no module of the adapter has a complete set of parameters (expected lora_down and lora_up, or those of LoHa, LoKr, …, found " + half + ")");
  }
  safetensors_parts peft;
  add(peft, "unet.conv_out.lora_A.weight", {4, 32}, 1);
  at.refused(peft, "MIS", ": module 'unet.conv_out': no module of the adapter has a complete set of parameters (expected lora_down and lora_up, or those of LoHa, LoKr, …, found lora_down)");
}

TEST_CASE("LRA-03: factors of different ranks, and of rank 0") {
  const place at;
  const auto pair = [&](const std::string& module, const shape& up, const shape& down) {
    safetensors_parts file;
    add(file, module + ".lora_up.weight", up, 1), add(file, module + ".lora_down.weight", down, 2);
    return file;
  };
  at.refused(pair(query, {32, 4}, {8, 32}), "MIS",
             ": module '" + query + "': the adapter's shapes do not fit the layer (expected factors of a weight [32, 32], found lora_up [32, 4], lora_down [8, 32])");
  at.refused(pair(query, {32, 0}, {0, 32}), "MIS",
             ": module '" + query + "': the adapter's shapes do not fit the layer (expected factors of a weight [32, 32], found lora_up [32, 0], lora_down [0, 32])");
  at.refused(pair(convolution, {32, 4, 1, 1}, {4, 32, 1, 1}), "MIS",
             ": module '" + convolution + "': the adapter's shapes do not fit the layer (expected factors of a weight [32, 32, 3, 3], found lora_up [32, 4, 1, 1], lora_down [4, 32, 1, 1])");
}

TEST_CASE("LRA-04: alpha that is NaN, infinite, 0, negative, huge, an integer, one element, missing") {
  const place at;
  const auto with = [](const std::string& dtype, const shape& extents, const std::string& bytes) {
    safetensors_parts file;
    add(file, query + ".lora_up.weight", {32, 4}, 1), add(file, query + ".lora_down.weight", {4, 32}, 2);
    if (!dtype.empty()) add_tensor(file, query + ".alpha", dtype, extents, bytes);
    return file;
  };
  const std::string weight = name_of_weight(query);
  at.refused(with("F32", {}, number(std::nanf(""))), "NUM", ": module '" + query + "': alpha is no finite number (expected a finite number, found nan)");
  at.refused(with("F32", {}, number(std::numeric_limits<float>::infinity())), "NUM", ": module '" + query + "': alpha is no finite number (expected a finite number, found inf)");
  at.refused(with("F32", {2}, number(1) + number(2)), "MIS", ": module '" + query + "': a parameter is no single number (expected one element, found alpha [2])");

  CHECK(at.merged(with("F32", {}, number(4)))["applied"] == 1);
  const std::string rank = at.weights().at(weight);
  CHECK(rank != stored().at(weight));
  CHECK(at.merged(with("", {}, ""))["applied"] == 1);  // missing: as if it were the rank
  CHECK(at.weights().at(weight) == rank);
  CHECK(at.merged(with("F32", {1}, number(4)))["applied"] == 1);
  CHECK(at.weights().at(weight) == rank);
  CHECK(at.merged(with("I64", {}, std::string("\4\0\0\0\0\0\0\0", 8)))["applied"] == 1);
  CHECK(at.weights().at(weight) == rank);

  const auto none = at.merged(with("F32", {}, number(0)));
  CHECK(none["applied"] == 0);
  CHECK(none["ignored"] == 1);
  CHECK(none["modules"][0]["reason"] == "alpha is 0: no effect");
  CHECK(at.weights() == stored());

  CHECK(at.merged(with("F32", {}, number(-4)))["applied"] == 1);
  const auto up = halves(rank), down = halves(at.weights().at(weight)), middle = halves(stored().at(weight));
  double worst = 0;
  for (std::size_t i = 0; i < up.size(); ++i) worst = std::max(worst, std::fabs(up[i] + down[i] - 2 * middle[i]));
  CHECK(worst <= 0.01);

  safetensors_parts huge = with("F32", {}, number(1e38F));
  const std::string path = at.write(huge, "huge.safetensors");
  const programs::outcome run = programs::run("merge-lora", {base, at.work / "huge", "--lora", path + ":1"});
  CHECK(run.status == faults::status_of("NUM"));
  CHECK(run.err.find("unet." + weight) != std::string::npos);
  CHECK_FALSE(fs::exists(at.work / "huge"));
}

TEST_CASE("LRA-07: one layer under the names of two tools") {
  const place at;
  safetensors_parts two, same;
  add_pair(two, query, {32, 32}, 1);
  add(two, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", {4, 32}, 5);
  add(two, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight", {32, 4}, 6);
  at.refused(two, "MIS",
             ": module 'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q': two modules of one adapter change the same layer (expected one module a layer, found also '" + query + "')");
  for (const char* name : {"lora_A.weight", "lora_A.default.weight", "lora.down.weight"}) add(same, std::string("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.") + name, {4, 32}, 5);
  add(same, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight", {32, 4}, 6);
  at.refused(same, "MIS",
             ": tensor 'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight': a module has the same parameter twice (expected one lora_down, found also "
             "'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight')");
}

TEST_CASE("LRA-08: what stands beside the factors is applied or refused, never left out") {
  const place at;
  const auto fill = [](const std::string& kind) {
    safetensors_parts file;
    const std::string m = convolution + ".";
    if (kind == "core") add(file, m + "lora_up.weight", {32, 4, 1, 1}, 1), add(file, m + "lora_down.weight", {4, 32, 1, 1}, 2), add(file, m + "lora_mid.weight", {4, 4, 3, 3}, 3);
    if (kind == "magnitude" || kind == "plain") add(file, m + "lora_up.weight", {32, 4, 1, 1}, 1), add(file, m + "lora_down.weight", {4, 32, 3, 3}, 2);
    if (kind == "magnitude") add(file, m + "dora_scale", {32, 1, 1, 1}, 3);
    if (kind == "LoHa")
      for (const char* n : {"hada_w1_a", "hada_w2_a"}) add(file, m + n, {32, 4}, 4), add(file, m + (n[6] == '1' ? "hada_w1_b" : "hada_w2_b"), {4, 288}, 5);
    if (kind == "LoKr") add(file, m + "lokr_w1", {4, 4}, 6), add(file, m + "lokr_w2", {8, 8, 3, 3}, 7);
    if (kind == "biases") add(file, m + "diff", {32, 32, 3, 3}, 8), add(file, m + "diff_b", {32}, 9);
    if (kind == "sparse") {
      add_tensor(file, m + "bias_indices", "I16", {2, 1}, std::string("\1\0\2\0", 4));
      add_tensor(file, m + "bias_values", "F32", {1}, number(1));
      add_tensor(file, m + "bias_size", "I16", {2}, std::string("\40\0\40\1", 4));
      add(file, m + "diff", {32, 32, 3, 3}, 8);
    }
    return file;
  };
  std::map<std::string, std::string> results;
  for (const std::string kind : {"plain", "core", "magnitude", "LoHa", "LoKr", "biases", "sparse"}) {
    CAPTURE(kind);
    const auto adapter = at.merged(fill(kind));
    CHECK(adapter["applied"] == 1);
    CHECK(adapter["unknown"].empty());
    results[kind] = at.weights().at(name_of_weight(convolution));
    CHECK(results[kind] != stored().at(name_of_weight(convolution)));
    if (kind == "biases") CHECK(at.weights().at("mid_block.resnets.0.conv1.bias") != stored().at("mid_block.resnets.0.conv1.bias"));
  }
  CHECK(results["magnitude"] != results["plain"]);
  CHECK(results["core"] != results["plain"]);
  CHECK(results["sparse"] != results["biases"]);

  safetensors_parts mixed = fill("plain");
  add(mixed, convolution + ".diff", {32, 32, 3, 3}, 8);
  at.refused(mixed, "MIS", ": module '" + convolution + "': a module mixes the parameters of two algorithms (expected those of one, found lora_up, lora_down, diff)");
  safetensors_parts unknown = fill("plain");
  add(unknown, convolution + ".oft_r", {4, 4}, 9);  // PEFT's rotations
  CHECK(at.merged(unknown)["unknown"] == nlohmann::json::array({convolution + ".oft_r"}));
  at.refused(unknown, "MIS",
             ": parts of the adapter do not belong to the model (expected a layer for each of 1 modules, found unknown tensor '" + convolution + ".oft_r'); drop --strict to merge the rest",
             {"--strict"});
}

TEST_CASE("LRA-09: two dimensions for a 1×1 convolution, four for a linear layer, by one rule") {
  const place at;
  for (const std::string& module : {point, query}) {
    std::vector<std::string> results;
    for (const bool four : {false, true}) {
      safetensors_parts file;
      add(file, module + ".lora_up.weight", four ? shape{32, 4, 1, 1} : shape{32, 4}, 1), add(file, module + ".lora_down.weight", four ? shape{4, 32, 1, 1} : shape{4, 32}, 2);
      CHECK(at.merged(file)["applied"] == 1);
      results.push_back(at.weights().at(name_of_weight(module)));
    }
    CHECK(results[0] == results[1]);
    CHECK(results[0] != stored().at(name_of_weight(module)));
  }
}

TEST_CASE("LRA-11: strength 0 leaves every bit, taking out leaves at most the rounding, the order of differences does not matter") {
  const place at;
  safetensors_parts a, b;
  add_pair(a, query, {32, 32}, 1), add_pair(a, convolution, {32, 32, 3, 3}, 3);
  add_pair(b, query, {32, 32}, 5), add_pair(b, convolution, {32, 32, 3, 3}, 7);
  const std::string first = at.write(a, "first.safetensors"), second = at.write(b, "second.safetensors");
  const auto merge = [&](const std::string& from, const std::string& to, const strings& loras) {
    strings arguments{from, at.work / to};
    for (const std::string& lora : loras) arguments = arguments + strings{"--lora", lora};
    (void)programs::report_of("merge-lora", arguments);
  };
  merge(base, "none", {first + ":0"});
  CHECK(at.weights("none") == stored());
  merge(base, "in", {first + ":1"});
  merge(at.work / "in", "back", {first + ":-1"});
  merge(base, "ab", {first + ":0.7", second + ":0.4"});
  merge(base, "ba", {second + ":0.4", first + ":0.7"});
  for (const std::string& module : {query, convolution}) {
    const std::string name = name_of_weight(module);
    const auto before = halves(stored().at(name));
    CHECK(at.weights("in").at(name) != stored().at(name));
    double largest = 0;
    for (const auto& [weights, _] : {std::pair(before, 0), std::pair(halves(at.weights("in").at(name)), 0)})
      for (const double x : weights) largest = std::max(largest, std::fabs(x));
    const double ulp = std::ldexp(1.0, std::ilogb(largest) - 10);  // of f16: half of it is lost each way
    CHECK(farthest(halves(at.weights("back").at(name)), before) <= ulp);
    CHECK(farthest(halves(at.weights("ab").at(name)), halves(at.weights("ba").at(name))) <= ulp);
  }
}

TEST_CASE("LRA-13: an adapter on a weight that is no floating-point number") {
  const place at;
  fs::copy(base, at.work / "quantized", fs::copy_options::recursive);
  const std::string path = (at.work / "quantized") + "/unet/diffusion_pytorch_model.safetensors";
  const auto parts = faults::read_parts(path);
  safetensors_parts other;
  for (const auto& [name, info] : parts.header.items()) {
    if (name == "__metadata__") continue;
    const auto first = info["data_offsets"][0].get<std::size_t>(), last = info["data_offsets"][1].get<std::size_t>();
    const auto extents = info["shape"].get<shape>();
    if (name == name_of_weight(query)) add_tensor(other, name, "I8", extents, std::string(programs::elements(extents), '\1'));
    else add_tensor(other, name, info["dtype"].get<std::string>(), extents, parts.data.substr(first, last - first));
  }
  faults::write_parts(path, other);
  safetensors_parts file;
  add_pair(file, query, {32, 32}, 1);
  const std::string lora = at.write(file);
  const programs::outcome run = programs::run("merge-lora", {at.work / "quantized", at.work / "out", "--lora", lora + ":1"});
  CHECK(run.status == faults::status_of("UNS"));
  CHECK(run.err.find("an adapter cannot be merged into a weight of this type (expected a floating-point type, found i8); convert the model first") != std::string::npos);
  CHECK(run.err.find(name_of_weight(query)) != std::string::npos);
  CHECK_FALSE(fs::exists(at.work / "out"));
}

TEST_CASE("LRA-17: ten megabytes of metadata with markup are neither shown nor carried over") {
  const place at;
  safetensors_parts file;
  std::string tags = "<script>alert(1)</script>\x1b[31m";
  while (tags.size() < 10'000'000) tags += tags;
  file.header["__metadata__"] = {{"ss_tag_frequency", tags}, {"ss_output_name", "<b>cat</b>"}, {"ss_base_model_version", "sd_v1"}};
  add_pair(file, query, {32, 32}, 1);
  const std::string path = at.write(file);
  const auto begin = std::chrono::steady_clock::now();
  const programs::outcome run = programs::run("merge-lora", {base, at.work / "out", "--lora", path + ":1"});
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
  CHECK(run.status == 0);
  CHECK((run.out + run.err).find("<script>") == std::string::npos);
  CHECK((run.out + run.err).size() < 10'000);
  CHECK(faults::read_parts((at.work / "out") + "/unet/diffusion_pytorch_model.safetensors").header.dump().find("<script>") == std::string::npos);
  const programs::outcome shown = programs::run("inspect", {path});
  CHECK(shown.status == 0);
  CHECK(shown.out.size() < 100'000);
  CHECK(shown.out.find('\x1b') == std::string::npos);
}
