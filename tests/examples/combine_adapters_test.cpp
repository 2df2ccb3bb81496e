// SPDX-License-Identifier: MIT
//
// merge-lora with adapters alone: the combination changes a model as its parts do, in every container; the command lines of docs/merging.md; upl and
// upl-ckpt-v2; refusals that leave nothing behind.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "examples/adapters.hpp"
#include "examples/run.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;

/// Two adapters for one tiny model, all layers of both, with different alphas; the second brings an embedding of two vectors.
struct files {
  files() {
    made_model(work.path(), "sd1", "diffusers");
    base = work / "sd1.diffusers";
    kohya_adapter(work / "style.safetensors", base, "sd1", 1);
    kohya_adapter(work / "second.safetensors", base, "sd1", 900);
    width = shapes_of(base, "text_encoder")["text_model.embeddings.token_embedding.weight"][1];
    safetensors_parts second = faults::read_parts(work / "second.safetensors");
    add_tensor(second, "bundle_emb.cat.string_to_param.*", "F32", {2, width}, floats(2 * width, 3, 0.02F));
    second.header["__metadata__"] = {{"ss_base_model_version", "sd_v1"}, {"ss_tag_frequency", "{}"}};
    faults::write_parts(work / "second.safetensors", second);
  }
  std::string at(const std::string& name) const { return work / name; }

  support::temp_folder work;
  std::string base;
  std::size_t width = 0;
};

/// The values of an F32 tensor as faults::tensors_of gives it: type and shape stand before the bytes.
std::vector<float> values_of(const std::string& tensor) {
  REQUIRE(tensor.starts_with("F32["));
  const std::string bytes = tensor.substr(tensor.find(']') + 1);
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
  return out;
}

/// How far two f32 models are from each other, in units of how far the first is from `before`.
double relative_distance(const std::string& one, const std::string& other, const std::string& before) {
  const auto a = faults::tensors_of(one), b = faults::tensors_of(other), c = faults::tensors_of(before);
  REQUIRE(a.size() == b.size());
  double apart = 0, changed = 0;
  for (const auto& [name, bytes] : a) {
    REQUIRE(b.count(name));
    REQUIRE(c.count(name));
    const auto x = values_of(bytes), y = values_of(b.at(name)), z = values_of(c.at(name));
    REQUIRE(x.size() == y.size());
    REQUIRE(x.size() == z.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      apart += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
      changed += std::pow(static_cast<double>(x[i]) - static_cast<double>(z[i]), 2);
    }
  }
  return std::sqrt(apart / changed);
}

}  // namespace

TEST_CASE("a combination changes a model as its parts together do; concat exactly, svd at full rank too, less at a lower one") {
  const files f;
  const std::string unet = "/unet/diffusion_pytorch_model.safetensors";
  report_of("merge-lora", {f.base, f.at("plain"), "--lora", f.at("style.safetensors") + ":0", "--dtype", "f32"});
  report_of("merge-lora", {f.base, f.at("parts"), "--lora", f.at("style.safetensors") + ":0.8", "--lora", f.at("second.safetensors") + ":-0.4:0.3",
                           "--dtype", "f32"});
  const auto combine = [&](const std::string& name, const strings& more) {
    return report_of(
        "merge-lora",
        strings{f.at("style.safetensors") + ":0.8", f.at(name), "--lora", f.at("second.safetensors") + ":-0.4:0.3", "--verify-output"} + more);
  };
  const auto merged_distance = [&](const std::string& name) {
    report_of("merge-lora", {f.base, f.at(name + ".model"), "--lora", f.at(name) + ":1", "--dtype", "f32", "--strict"});
    return relative_distance(f.at("parts") + unet, f.at(name + ".model") + unet, f.at("plain") + unet);
  };
  const auto report = combine("concat.safetensors", {"--report", f.at("report.json")});
  CHECK(report["mode"] == "concat");
  CHECK(report["status"] == "combined");
  REQUIRE(report["adapters"].size() == 2);
  for (const auto& adapter : report["adapters"]) {
    const auto& keys = adapter["keys"];
    CHECK(keys["all"] == keys["applied"].get<std::size_t>() + keys["embeddings"].get<std::size_t>());
    CHECK(adapter["not_found"] == 0);
  }
  CHECK(report["embeddings"] == nlohmann::json{"cat"});
  CHECK(nlohmann::json::parse(read_text(f.at("report.json")))["layers"] == report["layers"]);
  for (const auto& layer : report["layers"]) CHECK(layer["rank"] == 8);
  CHECK(merged_distance("concat.safetensors") <= 1e-5);  // sums with weights several times their size, in f32

  const auto metadata = faults::read_parts(f.at("concat.safetensors")).header["__metadata__"];
  CHECK(metadata["ss_network_dim"] == "8");
  CHECK(metadata["ss_base_model_version"] == "sd_v1");
  CHECK(metadata["modelspec.merged_from"] == "style.safetensors, second.safetensors");
  CHECK(!metadata.contains("ss_tag_frequency"));
  CHECK(metadata["format"] == "pt");

  // The same with every adapter in --lora; BASE is the output then.
  report_of("merge-lora", {f.at("same.safetensors"), "--mode", "concat", "--lora", f.at("style.safetensors") + ":0.8", "--lora",
                           f.at("second.safetensors") + ":-0.4:0.3"});
  CHECK((read_text(f.at("same.safetensors")) == read_text(f.at("concat.safetensors"))));

  const auto full = combine("full.safetensors", {"--mode", "svd", "--rank", "64"});
  CHECK(merged_distance("full.safetensors") <= 1e-5);
  const auto low = combine("low.safetensors", {"--mode", "svd", "--rank", "5", "--conv-rank", "3"});
  double lost = 0, whole = 0;
  for (const auto& layer : low["layers"]) {
    CHECK(layer["rank"] == (layer["algorithm"] == "LoCon" ? 3 : 5));
    if (layer["name"].get<std::string>().starts_with("lora_unet_"))
      lost += std::pow(layer["lost"].get<double>(), 2), whole += std::pow(layer["change"].get<double>(), 2);
  }
  const double distance = merged_distance("low.safetensors");
  CHECK(distance > 0.05);
  CHECK(std::fabs(distance - std::sqrt(lost / whole)) <= 1e-4);
}

TEST_CASE("containers and types: a torch file, f16, a plan that writes nothing") {
  const files f;
  const strings command{f.at("style.safetensors") + ":0.5", f.at("both.safetensors"), "--lora", f.at("second.safetensors") + ":0.5"};
  const auto plan = report_of("merge-lora", command + strings{"--dry-run"});
  CHECK(plan["status"] == "planned");
  CHECK(!fs::exists(f.at("both.safetensors")));
  report_of("merge-lora", command);
  CHECK(plan["files"][0]["bytes"] == fs::file_size(f.at("both.safetensors")));
  strings torch(command);
  torch[1] = f.at("both.pt");
  CHECK(report_of("merge-lora", torch)["form"] == "torch");
  faults::converted({f.at("both.pt"), f.at("back.safetensors"), "--to", "safetensors"});
  CHECK((faults::tensors_of(f.at("back.safetensors")) == faults::tensors_of(f.at("both.safetensors"))));
  strings half(command);
  half[1] = f.at("half.safetensors");
  report_of("merge-lora", half + strings{"--dtype", "f16"});
  const auto header = faults::read_parts(f.at("half.safetensors")).header;
  for (const auto& [name, info] : header.items()) {
    if (name == "__metadata__" || name.starts_with("bundle_emb.")) continue;
    CHECK(info["dtype"] == (name.ends_with(".alpha") ? "F32" : "F16"));
  }
  // lpl of a file with itself, half and half, is the file.
  report_of("merge-lora", {f.at("self.safetensors"), "--mode", "lpl", "--lora", f.at("style.safetensors") + ":0.5", "--lora",
                           f.at("style.safetensors") + ":0.5"});
  CHECK((faults::tensors_of(f.at("self.safetensors")) == faults::tensors_of(f.at("style.safetensors"))));
}

TEST_CASE("every command line of 'Two adapters into one' runs as it stands there") {
  const fs::path root = fs::absolute(support::data()).parent_path().parent_path(), before = fs::current_path();
  const std::string document = read_text(root / "docs/merging.md");
  const std::size_t begin = document.find("## Two adapters into one"), end = document.find("## The numbers");
  REQUIRE(begin != std::string::npos);
  REQUIRE(end != std::string::npos);
  const std::string text = document.substr(begin, end - begin), mark = "`merge-lora style.";
  const files f;
  fs::current_path(f.work.path());
  std::size_t run = 0;
  for (std::size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at + 1), ++run) {
    const std::string line = text.substr(at + 1, text.find('`', at + 1) - at - 1);
    strings words{""};
    for (const char c : line)
      if (c == ' ') words.emplace_back();
      else words.back() += c;
    words.erase(words.begin());
    CAPTURE(line);
    report_of("merge-lora", words + strings{"--force"});
    CHECK(fs::exists("both.safetensors"));
  }
  CHECK(run == 5);
  fs::current_path(before);
}

TEST_CASE("upl: a folder with the adapter and its tokens; upl-ckpt-v2: a checkpoint in f16 and the tokens beside it") {
  const files f;
  const strings lora{"--lora", f.at("second.safetensors") + ":0.8"};
  report_of("merge-lora", strings{f.base, f.at("upl"), "--mode", "upl"} + lora);
  report_of("merge-lora", strings{f.base, f.at("same"), "--bundled-embeddings"} + lora);
  CHECK((contents(f.at("upl")) == contents(f.at("same"))));

  const auto report = report_of("merge-lora", strings{f.base, f.at("merged.ckpt"), "--mode", "upl-ckpt-v2"} + lora);
  CHECK(report["files"].size() == 2);
  report_of("merge-lora", strings{f.base, f.at("plain"), "--dtype", "f16"} + lora);
  faults::converted({f.at("plain"), f.at("plain.safetensors"), "--to", "checkpoint"});
  faults::converted({f.at("merged.ckpt"), f.at("merged.safetensors"), "--to", "safetensors"});
  CHECK((faults::tensors_of(f.at("merged.safetensors")) == faults::tensors_of(f.at("plain.safetensors"))));
  const auto added = report_of("merge-embedding", {f.base, f.at("with"), "--embedding", f.at("merged.pt")});
  REQUIRE(added["tokens"].size() == 2);
  CHECK(added["tokens"][0]["token"] == "merged");
  faults::converted({f.at("merged.pt"), f.at("tokens.safetensors"), "--to", "safetensors"});
  const nlohmann::json beside{{"name", "merged"}, {"string_to_token/*", 265}};  // as in the web UI's own files
  CHECK(report_of("inspect", {f.at("merged.pt")})["scalars"] == beside);
  const auto vectors = faults::tensors_of(f.at("tokens.safetensors"));
  REQUIRE(vectors.size() == 1);
  CHECK((vectors.begin()->second == faults::tensors_of(f.at("second.safetensors")).at("bundle_emb.cat.string_to_param.*")));
}

TEST_CASE("command lines that do not fit together are refused, and nothing is left behind") {
  const files f;
  const std::string style = f.at("style.safetensors"), second = f.at("second.safetensors"), out = f.at("out.safetensors");
  const auto refused = [&](const strings& arguments) {
    const auto before = listing(f.work.path());
    const outcome run = programs::run("merge-lora", arguments);
    CHECK(listing(f.work.path()) == before);
    return std::to_string(run.status) + " " + run.err;
  };
  CHECK(refused({style, out, "--lora", second, "--rank", "4"}) == "2 merge-lora: USE --rank is for --mode svd; pass --mode svd, or drop --rank\n");
  CHECK(refused({style, out, "--lora", second, "--mode", "svd"}) == "2 merge-lora: USE --mode svd needs the rank of the result; pass --rank N\n");
  CHECK(refused({style, out, "--lora", second, "--mode", "merge"}) ==
        "2 merge-lora: USE --mode merge merges into a model, and BASE is an adapter; pass a model as BASE, or --mode concat\n");
  CHECK(refused({style, out, "--lora", second, "--mode", "upl"}) ==
        "2 merge-lora: USE --mode upl merges into a model, and BASE is an adapter; pass a model as BASE, or --mode concat\n");
  CHECK(refused({f.base, out}) == "2 merge-lora: USE --lora is missing; pass --lora FILE:STRENGTH\n");
  CHECK(refused({f.base, "--lora", second}) == "2 merge-lora: USE OUTPUT is missing; pass BASE OUTPUT\n");
  CHECK(refused({out, "--mode", "concat"}) == "2 merge-lora: USE there is no adapter to combine; pass --lora FILE:STRENGTH\n");
  CHECK(refused({style, f.base, "--lora", second}).find("the output already exists") != std::string::npos);
  for (const std::string& read : {style, second})
    CHECK(refused({style, read, "--lora", second, "--force"}).find("OUTPUT would replace") != std::string::npos);
  CHECK(refused({f.base, out, "--lora", second, "--mode", "concat"}).starts_with("1"));
  CHECK(refused({f.base, f.at("folder"), "--lora", second, "--mode", "upl-ckpt-v2"}) ==
        "2 merge-lora: USE --mode upl-ckpt-v2 writes a .ckpt file, and OUTPUT is none; pass OUTPUT.ckpt\n");
  CHECK(refused({style + ":0", out, "--lora", second + ":0"}).find("nothing is left of the adapters") != std::string::npos);
}
