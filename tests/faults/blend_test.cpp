// SPDX-License-Identifier: MIT
//
// Blends of models that do not fit together, or hold what cannot be blended: refused by name, and nothing is left behind.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"

namespace {

using faults::refused;
using faults::strings;

std::string model(const support::temp_folder& work, const std::string& name, const std::string& family, unsigned seed) {
  REQUIRE(programs::run("make-tiny-sd", {work / name, "--family", family, "--form", "safetensors", "--dtype", "f16", "--seed", std::to_string(seed)}).status == 0);
  return work / name;
}

/// A copy of a file with one tensor left out, renamed, or with other bytes.
struct edited {
  explicit edited(const std::string& path) : parts(faults::read_parts(path)) {}
  std::string write(const std::string& path) {
    faults::safetensors_parts out;
    for (const auto& [name, info] : parts.header.items()) {
      if (name == "__metadata__") {
        out.header[name] = info;
        continue;
      }
      const auto first = info["data_offsets"][0].get<std::size_t>(), last = info["data_offsets"][1].get<std::size_t>();
      faults::add_tensor(out, name, info["dtype"], info["shape"].get<std::vector<std::size_t>>(), parts.data.substr(first, last - first));
    }
    faults::write_parts(path, out);
    return path;
  }
  char* bytes(const std::string& name) { return parts.data.data() + parts.header[name]["data_offsets"][0].get<std::size_t>(); }
  faults::safetensors_parts parts;
};

const std::string weight = "model.diffusion_model.input_blocks.1.1.proj_in.weight", bias = "model.diffusion_model.out.2.bias";

}  // namespace

TEST_CASE("LRA-12: models of other families and shapes") {
  const support::temp_folder work;
  const std::string a = model(work, "a.safetensors", "sd1", 1), xl = model(work, "xl.safetensors", "sdxl", 1);
  refused("merge-checkpoints", work.path(), {a, work / "out.safetensors", "--model", xl}, "MIS",
          xl + ": models of different families cannot be blended (expected sd1, as " + a + " is, found sdxl)");
  edited other(a);
  auto& shape = other.parts.header[bias]["shape"];
  const std::string was = shape.dump();
  shape = nlohmann::json{2, 2};
  REQUIRE(was == "[4]");
  refused("merge-checkpoints", work.path(), {a, work / "out.safetensors", "--model", other.write(work / "b.safetensors")}, "MIS",
          (work / "b.safetensors") + ": '" + bias + "': tensors of different shapes cannot be blended (expected [4], found [2, 2])");
}

TEST_CASE("LRA-12: tensors that one model lacks") {
  const support::temp_folder work;
  const std::string a = model(work, "a.safetensors", "sd1", 1), b = model(work, "b.safetensors", "sd1", 2);
  edited less(b);
  less.parts.header.erase(bias);
  const std::string short_one = less.write(work / "less.safetensors");
  refused("merge-checkpoints", work.path(), {a, work / "out.safetensors", "--model", short_one}, "MIS",
          short_one + ": the model lacks 1 tensor of the base (found without 'unet.conv_out.bias'); pass --allow-missing to keep the base's");
  refused("merge-checkpoints", work.path(), {short_one, work / "out.safetensors", "--model", b}, "MIS",
          b + ": the model has 1 tensor that the base lacks (found 'unet.conv_out.bias'); pass --allow-missing to leave them out");
  const auto run = programs::run("merge-checkpoints", {a, work / "out.safetensors", "--model", short_one, "--allow-missing", "--json"});
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(run.out);
  CHECK(report["kept"] == 1);
  CHECK(faults::tensors_of(work / "out.safetensors").at(bias) == faults::tensors_of(a).at(bias));
}

TEST_CASE("LRA-12: NaN and infinite weights, and sums that do not fit") {
  const support::temp_folder work;
  const std::string a = model(work, "a.safetensors", "sd1", 1), b = model(work, "b.safetensors", "sd1", 2);
  edited damaged(b);
  const std::uint16_t nan = 0x7E01, infinity = 0xFC00;
  std::memcpy(damaged.bytes(weight) + 2 * 5, &nan, 2);
  std::memcpy(damaged.bytes(weight) + 2 * 9, &infinity, 2);
  const std::string bad = damaged.write(work / "bad.safetensors");
  for (const char* mode : {"weighted-sum", "slerp"})
    refused("merge-checkpoints", work.path(), {a, work / "out.safetensors", "--model", bad, "--mode", mode}, "NUM",
            bad + ": '" + weight + "': 2 weights are not finite (expected finite numbers, found NaN at [0, 5, 0, 0]); repair the model, or blend them as they are with --nonfinite keep");
  const auto kept = programs::run("merge-checkpoints", {a, work / "out.safetensors", "--model", bad, "--nonfinite", "keep", "--json"});
  REQUIRE(kept.status == 0);
  CHECK(nlohmann::json::parse(kept.out)["nonfinite"] == 2);
  CHECK(kept.err == "merge-checkpoints: warning: blend: 2 values are infinite or NaN (--nonfinite keep)\n");
  programs::fs::remove(work / "out.safetensors");

  edited large(b);
  const std::uint16_t most = 0x7BFF, least = 0xFBFF;
  std::memcpy(large.bytes(bias), &most, 2);
  const std::string plus = large.write(work / "plus.safetensors");
  std::memcpy(large.bytes(bias), &least, 2);
  const std::string minus = large.write(work / "minus.safetensors");
  const strings arguments{a, work / "out.safetensors", "--mode", "add-difference", "--model", plus, "--model", minus, "--ratio", "1"};
  const auto before = faults::snapshot(work.path());
  const auto too_large = programs::run("merge-checkpoints", arguments);
  CHECK(too_large.status == faults::status_of("NUM"));
  CHECK(too_large.err.find("a finite value does not fit into f16 (expected at most 65504 in magnitude, found 13100") != std::string::npos);
  CHECK(faults::snapshot(work.path()) == before);
}

TEST_CASE("LRA-12: ratios that are no shares, and those that sum to something else") {
  const support::temp_folder work;
  const std::string a = model(work, "a.safetensors", "sd1", 1), b = model(work, "b.safetensors", "sd1", 2), out = work / "out.safetensors";
  const auto usage = [&](strings more, const std::string& message) {
    strings arguments{a, out, "--model", b};
    arguments.insert(arguments.end(), more.begin(), more.end());
    refused("merge-checkpoints", work.path(), arguments, "USE", message);
  };
  usage({"--ratio", "1.5"}, "the ratio is out of range (expected 0 to 1, found 1.5)");
  usage({"--ratio", "-0.5"}, "the ratio is out of range (expected 0 to 1, found -0.5)");
  for (const char* text : {"nan", "inf", "1e38", "1e999", "half", "", "0.5,", "0x1"})
    usage({"--ratio", text}, "--ratio: " + std::string(text == std::string("0.5,") ? "''" : "'" + std::string(text) + "'") + " is no number between -10000 and 10000");
  usage({"--ratio", "0.5,0.6"}, "the weights of the models do not sum to 1 (found 1.1); correct them, or pass --normalize");
  usage({"--ratio", "0.5,0.3,0.2"}, "--ratio has 3 numbers for 1 model beside BASE; pass one for every --model, or one more, BASE's in front");
  usage({"--ratio", "0.7,0.6", "--model", b},
        "the shares of --ratio sum to more than 1, so that nothing is left of BASE; correct --ratio, or pass one number more, BASE's in front, and --normalize");
  usage({"--mode", "add-difference"}, "add-difference takes another number of models (expected two beside the base, B and C, found 1)");
  usage({"--mode", "slerp", "--model", b}, "slerp takes another number of models (expected one beside the base, found 2)");
  usage({"--mode", "slerp", "--ratio", "0.5,0.5"}, "--ratio takes one number with --mode slerp");
  refused("merge-checkpoints", work.path(), {a, b, "--model", b, "--force"}, "USE", "OUTPUT would replace '" + b + "', which is read; choose another OUTPUT");
  usage({"--text-encoder-ratio", "2"}, "the ratio of the text encoders is out of range (expected 0 to 1, found 2)");
  usage({"--block-weights", "1,2,3"}, "a list of block weights has the wrong length (expected 17 or 26 numbers for SD1 and SD2, 12 or 20 for SDXL, found 3)");
}

TEST_CASE("LRA-12: a ratio of 0 gives the base's bytes, 1 the other's, whatever they hold") {
  const support::temp_folder work;
  const std::string a = model(work, "a.safetensors", "sd1", 1);
  edited odd(model(work, "b.safetensors", "sd1", 2));
  const std::uint16_t bits[] = {0x7E01, 0xFC00, 0x8000, 0x0001};  // NaN, −infinity, −0, the smallest number
  std::memcpy(odd.bytes(bias), bits, sizeof bits);
  const std::string b = odd.write(work / "odd.safetensors");
  for (const char* mode : {"weighted-sum", "slerp"}) {
    REQUIRE(programs::run("merge-checkpoints", {a, work / "zero.safetensors", "--model", b, "--ratio", "0", "--mode", mode, "--force", "--quiet"}).status == 0);
    CHECK(faults::tensors_of(work / "zero.safetensors") == faults::tensors_of(a));
    REQUIRE(programs::run("merge-checkpoints", {a, work / "one.safetensors", "--model", b, "--ratio", "1", "--mode", mode, "--force", "--quiet"}).status == 0);
    CHECK(faults::tensors_of(work / "one.safetensors") == faults::tensors_of(b));
  }
}
