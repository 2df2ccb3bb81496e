// SPDX-License-Identifier: MIT
//
// merge-checkpoints from end to end: every form as the base and as the other, exact ends, the same bytes for any threads, the report.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/run.hpp"
#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"

namespace {

using namespace programs;
using faults::tensors_of;
using strings = std::vector<std::string>;

/// A tiny model; other seeds give other weights.
std::string model(const support::temp_folder& work, const std::string& name, const std::string& form, unsigned seed, const std::string& dtype = "f32") {
  const outcome made = programs::run("make-tiny-sd", {work / name, "--family", "sd1", "--form", form, "--seed", std::to_string(seed), "--dtype", dtype});
  INFO(made.err);
  REQUIRE(made.status == 0);
  return work / name;
}

nlohmann::json blended(strings arguments) {
  CAPTURE(arguments);
  arguments.push_back("--json");
  const outcome run = programs::run("merge-checkpoints", arguments);
  INFO(run.err);
  REQUIRE(run.status == 0);
  return nlohmann::json::parse(run.out);
}

std::map<std::string, std::string> unet_of(const std::string& folder) { return tensors_of(folder + "/unet/diffusion_pytorch_model.safetensors"); }

std::vector<float> floats_of(const std::string& tensor) {
  const std::string bytes = tensor.substr(tensor.find(']') + 1);
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
  return out;
}

}  // namespace

TEST_CASE("the base's form is written, whatever form the other has, with the same weights") {
  const support::temp_folder work;
  const std::string a_folder = model(work, "a", "diffusers", 1), a_file = model(work, "a.safetensors", "safetensors", 1), a_torch = model(work, "a.ckpt", "ckpt", 1);
  const std::string b_folder = model(work, "b", "diffusers", 2), b_file = model(work, "b.safetensors", "safetensors", 2), b_torch = model(work, "b.ckpt", "ckpt", 2);
  const auto report = blended({a_folder, work / "one", "--model", b_torch, "--ratio", "0.3", "--verify-output", "--report", work / "report.json"});
  CHECK(report["form"] == "diffusers folder");
  CHECK(report["family"] == "sd1");
  CHECK(report["mode"] == "weighted-sum");
  CHECK(report["models"] == nlohmann::json{a_folder, b_torch});
  CHECK(report["blended"].get<std::size_t>() == report["tensors"].size());
  CHECK(report["blended"] == report["written"]);
  for (const auto& tensor : report["tensors"]) CHECK(std::fabs(tensor["ratio"].get<double>() - 0.3) < 1e-12);
  CHECK(nlohmann::json::parse(read_text(work / "report.json"))["tensors"] == report["tensors"]);

  const auto a = unet_of(a_folder), b = unet_of(b_folder), out = unet_of(work / "one");
  REQUIRE(a.size() == out.size());
  std::size_t wrong = 0, different = 0;
  for (const auto& [name, tensor] : a) {
    const auto x = floats_of(tensor), y = floats_of(b.at(name)), z = floats_of(out.at(name));
    REQUIRE(x.size() == z.size());
    different += out.at(name) != tensor;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double p = 0.7 * static_cast<double>(x[i]), q = 0.3 * static_cast<double>(y[i]);
      wrong += !(std::fabs(static_cast<double>(z[i]) - (p + q)) <= 4 * 0x1p-24 * (std::fabs(p) + std::fabs(q)));
    }
  }
  CHECK(wrong == 0);
  CHECK(different > a.size() / 2);

  CHECK(blended({a_file, work / "one.safetensors", "--model", b_folder, "--ratio", "0.3"})["form"] == "safetensors");
  CHECK(blended({a_torch, work / "one.ckpt", "--model", b_file, "--ratio", "0.3"})["form"] == "torch");
  faults::converted({work / "one", work / "folder.safetensors", "--to", "checkpoint"});
  faults::converted({work / "one.ckpt", work / "torch.safetensors", "--to", "safetensors"});
  const auto file = tensors_of(work / "one.safetensors"), folder = tensors_of(work / "folder.safetensors"), torch = tensors_of(work / "torch.safetensors");
  std::size_t compared = 0;
  for (const auto& [name, tensor] : folder)
    if (const auto at = file.find(name); at != file.end()) {
      ++compared;
      CHECK(at->second == tensor);
      CHECK(torch.at(name) == tensor);
    }
  CHECK(compared >= report["blended"].get<std::size_t>());
  CHECK(file.size() == tensors_of(a_file).size());
}

TEST_CASE("ratios 0 and 1 give the bytes of one of them; threads and tiles change nothing") {
  const support::temp_folder work;
  const std::string a = model(work, "a.safetensors", "safetensors", 1, "f16"), b = model(work, "b.safetensors", "safetensors", 2, "f16");
  for (const char* mode : {"weighted-sum", "slerp"}) {
    CHECK(blended({a, work / "zero.safetensors", "--model", b, "--ratio", "0", "--mode", mode, "--force"})["kept"].get<std::size_t>() > 300);
    CHECK(tensors_of(work / "zero.safetensors") == tensors_of(a));
    CHECK(blended({a, work / "all.safetensors", "--model", b, "--ratio", "1", "--mode", mode, "--force"})["taken"].get<std::size_t>() > 300);
    CHECK(tensors_of(work / "all.safetensors") == tensors_of(b));
  }
  for (const strings& mode : {strings{"--mode", "slerp"}, strings{"--mode", "add-difference", "--model", a}, strings{"--mode", "weighted-sum"}}) {
    strings arguments{a, work / "once.safetensors", "--model", b, "--ratio", "0.37", "--force"};
    arguments.insert(arguments.end(), mode.begin(), mode.end());
    blended(arguments);
    const std::string once = read_text(work / "once.safetensors");
    for (const strings& how : {strings{"--threads", "1", "--tile", "4K"}, strings{"--threads", "5", "--tile", "1M"}}) {
      strings other = arguments;
      other.insert(other.end(), how.begin(), how.end());
      blended(other);
      CHECK(read_text(work / "once.safetensors") == once);
    }
  }
}

TEST_CASE("weights of several models, parts with ratios of their own, types") {
  const support::temp_folder work;
  const std::string a = model(work, "a", "diffusers", 1), b = model(work, "b", "diffusers", 2), c = model(work, "c", "diffusers", 3);
  blended({a, work / "rest", "--model", b, "--model", c, "--ratio", "0.25,0.5"});
  blended({a, work / "all", "--model", b, "--model", c, "--ratio", "0.25,0.25,0.5"});
  blended({a, work / "parts", "--model", b, "--model", c, "--ratio", "1,1,2", "--normalize"});
  CHECK(unet_of(work / "rest") == unet_of(work / "all"));
  CHECK(unet_of(work / "rest") == unet_of(work / "parts"));

  std::string list = "0";
  for (int i = 1; i < 26; ++i) list += i == 13 ? ",0.5" : ",0";  // MID
  const auto report = blended({a, work / "mid", "--model", b, "--ratio", "1", "--block-weights", list, "--text-encoder-ratio", "1", "--vae", "other"});
  for (const auto& tensor : report["tensors"]) {
    const std::string name = tensor["name"];
    CAPTURE(name);
    const bool unet = name.starts_with("unet."), middle = name.starts_with("unet.mid_block.");
    CHECK(tensor["status"] == (middle ? "blended" : unet ? "kept" : "taken"));
  }
  CHECK(tensors_of(work / "mid/text_encoder/model.safetensors") == tensors_of(b + "/text_encoder/model.safetensors"));
  CHECK(tensors_of(work / "mid/vae/diffusion_pytorch_model.safetensors") == tensors_of(b + "/vae/diffusion_pytorch_model.safetensors"));

  blended({a, work / "half", "--model", b, "--ratio", "0.5", "--dtype", "f16", "--vae", "base"});
  for (const auto& [name, tensor] : unet_of(work / "half")) CHECK(tensor.starts_with("F16"));
  for (const auto& [name, tensor] : tensors_of(work / "half/vae/diffusion_pytorch_model.safetensors")) CHECK(tensor.starts_with("F16"));
  const outcome text = programs::run("merge-checkpoints", {a, work / "dry", "--model", b, "--dry-run"});
  CHECK(text.status == 0);
  CHECK(text.out.find("Plan: " + a + " (sd1) + " + b + " by weighted-sum, ratio 0.5") == 0);
  CHECK_FALSE(fs::exists(work / "dry"));
}

TEST_CASE("a finished ONNX folder as the base gets what the export of the blended folder has") {
  const support::temp_folder work;
  const std::string a = model(work, "a", "diffusers", 1), b = model(work, "b.safetensors", "safetensors", 2);
  const auto onnx = [&](const std::string& from, const std::string& to) {
    const outcome run = programs::run("sd-to-onnx", {from, to, "--quiet"});
    INFO(run.err);
    REQUIRE(run.status == 0);
  };
  onnx(a, work / "a-onnx");
  const outcome run = programs::run("merge-checkpoints", {work / "a-onnx", work / "out-onnx", "--model", b, "--ratio", "0.3", "--json"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(run.out);
  CHECK(report["form"] == "ONNX folder");
  CHECK(run.err.find("the graphs of its autoencoder are kept as they are") != std::string::npos);
  blended({a, work / "out", "--model", b, "--ratio", "0.3", "--vae", "base"});
  onnx(work / "out", work / "expected-onnx");
  for (const char* part : {"unet", "text_encoder", "vae_decoder"})
    for (const char* file : {"model.onnx", "model.onnx_data"})
      CHECK(read_text(fs::path(work / "out-onnx") / part / file) == read_text(fs::path(work / "expected-onnx") / part / file));
  // And as the other model: it has no autoencoder that could be blended.
  const outcome missing = programs::run("merge-checkpoints", {a, work / "no", "--model", work / "a-onnx"});
  CHECK(missing.status == faults::status_of("MIS"));
  CHECK(missing.err.find("of 'vae'); pass --allow-missing to keep the base's") != std::string::npos);
  CHECK(blended({a, work / "same", "--model", work / "a-onnx", "--vae", "base"})["blended"].get<std::size_t>() > 100);
  CHECK(unet_of(work / "same") == unet_of(a));
}
