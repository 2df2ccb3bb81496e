// SPDX-License-Identifier: MIT
//
// merge-lora from end to end: into every form of a model; the account of every key; what is refused.
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/adapters.hpp"
#include "examples/run.hpp"
#include "faults/convert.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;
using faults::tensors_of;

const std::string folder_base = TENSORSMITH_TEST_DATA "/sd1/diffusers";

constexpr const char* query = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
constexpr const char* fc1 = "text_model.encoder.layers.0.mlp.fc1";

/// An adapter for one layer of the UNet and one of the text encoder, and one layer that no model has.
std::string adapter(const support::temp_folder& work, bool stray = false) {
  safetensors_parts file;
  add_pair(file, "lora_unet_" + underscored(query), shapes_of(folder_base, "unet")[std::string(query) + ".weight"], 1);
  add_pair(file, "lora_te_" + underscored(fc1), shapes_of(folder_base, "text_encoder")[std::string(fc1) + ".weight"], 3);
  if (stray) add_pair(file, "lora_unet_mid_block_attentions_7_proj_in", {4, 4}, 5);
  faults::write_parts(work / "lora.safetensors", file);
  return work / "lora.safetensors";
}

nlohmann::json merged(const strings& arguments) {
  auto report = report_of("merge-lora", arguments);
  keys_applied(report);
  return report;
}

/// A copy of the stored folder with one component less, and so on: paths of a run that must leave nothing.
void refuses(const support::temp_folder& work, const strings& arguments, const std::string& code, const std::string& message) {
  faults::refused("merge-lora", work.path(), arguments, code, message);
}

}  // namespace

TEST_CASE("a folder, a checkpoint and a torch file get the same weights, everything else stays") {
  const support::temp_folder work;
  const std::string lora = adapter(work);
  faults::converted({folder_base, work / "base.safetensors", "--to", "checkpoint"});
  faults::converted({work / "base.safetensors", work / "base.pt", "--to", "torch"});
  const auto report = merged({folder_base, work / "folder", "--lora", lora + ":0.8:0.5", "--report", work / "report.json", "--verify-output"});
  CHECK(report["form"] == "diffusers folder");
  CHECK(report["adapters"][0]["applied"] == 2);
  CHECK(report["adapters"][0]["strength"] == 0.8);
  CHECK(report["adapters"][0]["text_encoder_strength"] == 0.5);
  CHECK(report["adapters"][0]["keys"]["all"] == 6);
  CHECK(report["adapters"][0]["keys"]["applied"] == 6);
  REQUIRE(report["weights"].size() == 2);
  for (const auto& weight : report["weights"]) {
    CHECK(weight["change"].get<double>() > 0.01);
    CHECK(std::fabs(weight["ratio"].get<double>() - weight["change"].get<double>() / weight["weight"].get<double>()) < 1e-12);
  }
  CHECK(nlohmann::json::parse(read_text(work / "report.json"))["weights"] == report["weights"]);

  const auto before = tensors_of(folder_base + "/unet/diffusion_pytorch_model.safetensors");
  auto after = tensors_of(work / "folder/unet/diffusion_pytorch_model.safetensors");
  CHECK(after[std::string(query) + ".weight"] != before.at(std::string(query) + ".weight"));
  after[std::string(query) + ".weight"] = before.at(std::string(query) + ".weight");
  CHECK(after == before);

  CHECK(merged({work / "base.safetensors", work / "one.safetensors", "--lora", lora + ":0.8:0.5"})["form"] == "safetensors");
  CHECK(merged({work / "base.pt", work / "one.pt", "--lora", lora + ":0.8:0.5"})["form"] == "torch");
  faults::converted({work / "folder", work / "folder.safetensors", "--to", "checkpoint"});
  faults::converted({work / "one.pt", work / "torch.safetensors", "--to", "safetensors"});
  const auto one = tensors_of(work / "one.safetensors");
  CHECK(one == tensors_of(work / "folder.safetensors"));
  CHECK(one == tensors_of(work / "torch.safetensors"));
}

TEST_CASE("every layer of every family, in a folder and in a checkpoint; an adapter in a pickle is the same adapter") {
  const std::string family = GENERATE(as<std::string>{}, "sd1", "sd2", "sdxl", "sdxl-refiner");
  CAPTURE(family);
  const support::temp_folder work;
  const std::string base = made_model(work.path(), family, "diffusers"), file = made_model(work.path(), family, "safetensors");
  const std::string lora = kohya_adapter(work / "lora.safetensors", base, family);
  faults::converted({lora, work / "lora.pt", "--to", "torch"});
  const auto report = merged({base, work / "folder", "--lora", lora + ":0.7"});
  CHECK(report["adapters"][0]["not_found"] == 0);
  CHECK(report["adapters"][0]["ignored"] == 0);
  CHECK(report["weights"].size() == report["adapters"][0]["modules"].size());
  CHECK(keys_applied(report) == report["adapters"][0]["keys"]["all"].get<std::size_t>());
  const auto pickled = merged({base, work / "pickled", "--lora", (work / "lora.pt") + ":0.7"});
  CHECK(contents(work / "pickled") == contents(work / "folder"));
  CHECK(pickled["adapters"][0]["modules"] == report["adapters"][0]["modules"]);
  merged({file, work / "one.safetensors", "--lora", lora + ":0.7"});
  faults::converted({work / "folder", work / "folder.safetensors", "--to", "checkpoint"});
  const auto one = tensors_of(work / "one.safetensors"), from_folder = tensors_of(work / "folder.safetensors");
  for (const auto& [name, bytes] : from_folder) {
    CAPTURE(name);
    REQUIRE(one.count(name));
    CHECK((one.at(name) == bytes));
  }
}

TEST_CASE("an ONNX folder gets what the export of the merged model has, in every layout") {
  const std::string family = GENERATE(as<std::string>{}, "sd1", "sdxl");
  const std::string layout = GENERATE(as<std::string>{}, "optimum", "diffusers", "onnx-web");
  CAPTURE(family, layout);
  const support::temp_folder work;
  const std::string base = made_model(work.path(), family, "diffusers");
  const std::string lora = kohya_adapter(work / "lora.safetensors", base, family);
  report_of("sd-to-onnx", {base, work / "base-onnx", "--layout", layout});
  report_of("sd-to-onnx", {base, work / "expected", "--layout", layout, "--lora", lora + ":0.7:0.3"});
  const auto report = merged({work / "base-onnx", work / "out", "--lora", lora + ":0.7:0.3", "--verify-output"});
  CHECK(report["form"] == "ONNX folder");
  CHECK(report["family"] == family);
  CHECK(keys_applied(report) == report["adapters"][0]["keys"]["all"].get<std::size_t>());
  const auto expected = contents(work / "expected"), out = contents(work / "out");
  REQUIRE(listing(work / "expected") == listing(work / "out"));
  for (const auto& [name, bytes] : expected) {
    CAPTURE(name);
    REQUIRE(out.count(name));
    CHECK((out.at(name) == bytes));
  }
  refuses(work, {work / "base-onnx", work / "no", "--lora", lora + ":1", "--dtype", "f16"}, "USE",
          "--dtype f16 is not for an ONNX folder: its graphs fix the types they compute in; drop --dtype, or merge into the original model and convert with "
          "sd-to-onnx --dtype f16");
}

TEST_CASE("--dtype rounds a merged weight once, and casts all others") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "safetensors"), folder = made_model(work.path(), "sd1", "diffusers");
  const std::string lora = kohya_adapter(work / "lora.safetensors", folder, "sd1");
  for (const std::string type : {"f16", "bf16"}) {
    CAPTURE(type);
    merged({base, work / (type + ".safetensors"), "--lora", lora + ":0.9", "--dtype", type});
    merged({base, work / "f32.safetensors", "--lora", lora + ":0.9", "--force"});
    faults::converted({work / "f32.safetensors", work / (type + "-after.safetensors"), "--dtype", type});
    CHECK((tensors_of(work / (type + ".safetensors")) == tensors_of(work / (type + "-after.safetensors"))));
  }
  // From f16 the sum is rounded to f32 alone: not what merging in f16 and widening gives.
  faults::converted({base, work / "half.safetensors", "--dtype", "f16"});
  merged({work / "half.safetensors", work / "wide.safetensors", "--lora", lora + ":0.9", "--dtype", "f32"});
  merged({work / "half.safetensors", work / "narrow.safetensors", "--lora", lora + ":0.9"});
  faults::converted({work / "narrow.safetensors", work / "widened.safetensors", "--dtype", "f32"});
  faults::converted({work / "wide.safetensors", work / "wide-rounded.safetensors", "--dtype", "f16"});
  CHECK((tensors_of(work / "wide.safetensors") != tensors_of(work / "widened.safetensors")));
  CHECK((tensors_of(work / "wide-rounded.safetensors") == tensors_of(work / "narrow.safetensors")));
}

TEST_CASE("merged values that do not fit end the run, or are counted for their weight") {
  const support::temp_folder work;
  safetensors_parts file;
  add_pair(file, "lora_unet_" + underscored(query), shapes_of(folder_base, "unet")[std::string(query) + ".weight"], 1, 1e9F);
  faults::write_parts(work / "large.safetensors", file);
  const strings arguments = {folder_base, work / "out", "--lora", (work / "large.safetensors") + ":1"};
  const outcome run = programs::run("merge-lora", arguments);
  CHECK(run.status == faults::status_of("NUM"));
  CHECK(run.err.find("f16") != std::string::npos);
  CHECK(run.err.find(query) != std::string::npos);
  CHECK_FALSE(fs::exists(work / "out"));
  const outcome kept = programs::run("merge-lora", arguments + strings{"--overflow", "saturate", "--json"});
  REQUIRE(kept.status == 0);
  const auto report = nlohmann::json::parse(kept.out);
  REQUIRE(report["weights"].size() == 1);
  const auto count = report["weights"][0]["overflowed"].get<std::size_t>();
  CHECK(count > 100);
  CHECK(report["weights"][0]["dtype"] == "f16");
  CHECK(report["weights"][0]["nonfinite"] == 0);
  CHECK(kept.err == "merge-lora: warning: merge: " + std::to_string(count) +
                        " values were too large for the type of the weight and became the largest finite value (--overflow saturate)\n");
}

TEST_CASE("foreign tensors of a checkpoint stay") {
  const support::temp_folder work;
  const std::string lora = adapter(work);
  merged({TENSORSMITH_TEST_DATA "/sd1/sd1.ckpt", work / "out.ckpt", "--lora", lora + ":1"});
  faults::converted({TENSORSMITH_TEST_DATA "/sd1/sd1.ckpt", work / "before.safetensors", "--to", "safetensors"});
  faults::converted({work / "out.ckpt", work / "after.safetensors", "--to", "safetensors"});
  const auto before = tensors_of(work / "before.safetensors"), after = tensors_of(work / "after.safetensors");
  REQUIRE(before.size() == after.size());
  std::size_t changed = 0;
  for (const auto& [name, bytes] : before) {
    REQUIRE(after.count(name));
    changed += after.at(name) != bytes;
  }
  CHECK(changed == 2);
}

TEST_CASE("strength 0 gives the bits of the base; a stray module is listed, or refused with --strict") {
  const support::temp_folder work;
  const std::string lora = adapter(work, true);
  const auto report = merged({folder_base, work / "zero", "--lora", lora + ":0"});
  CHECK(report["adapters"][0]["ignored"] == 2);
  CHECK(report["adapters"][0]["not_found"] == 1);
  CHECK(report["adapters"][0]["keys"]["not_found"] == 3);
  CHECK(tensors_of(work / "zero/unet/diffusion_pytorch_model.safetensors") == tensors_of(folder_base + "/unet/diffusion_pytorch_model.safetensors"));
  const outcome strict = programs::run("merge-lora", {folder_base, work / "strict", "--lora", lora + ":1", "--strict"});
  CHECK(strict.status == faults::status_of("MIS"));
  CHECK(strict.err.find("'lora_unet_mid_block_attentions_7_proj_in'") != std::string::npos);
  CHECK_FALSE(fs::exists(work / "strict"));
}

TEST_CASE("the folder of one component stays one") {
  const support::temp_folder work;
  const std::string lora = adapter(work);
  const auto report = merged({folder_base + "/unet", work / "unet", "--lora", lora + ":0.8"});
  CHECK(report["adapters"][0]["applied"] == 1);
  CHECK(report["adapters"][0]["ignored"] == 1);  // the text encoder's
  CHECK(listing(work / "unet") == strings{"config.json", "diffusion_pytorch_model.safetensors"});
  merged({folder_base, work / "whole", "--lora", lora + ":0.8"});
  CHECK(tensors_of(work / "unet/diffusion_pytorch_model.safetensors") == tensors_of(work / "whole/unet/diffusion_pytorch_model.safetensors"));
}

TEST_CASE("a PEFT folder is an adapter; its configuration gives alpha") {
  const support::temp_folder work;
  safetensors_parts file;
  const auto shape = shapes_of(folder_base, "unet")[std::string(query) + ".weight"];
  add_tensor(file, "base_model.model." + std::string(query) + ".lora_A.weight", "F32", {4, shape[1]}, floats(4 * shape[1], 1));
  add_tensor(file, "base_model.model." + std::string(query) + ".lora_B.weight", "F32", {shape[0], 4}, floats(4 * shape[0], 2));
  fs::create_directories(work / "peft");
  faults::write_parts(work / "peft/adapter_model.safetensors", file);
  write_text(work / "peft/adapter_config.json", R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q"]})");
  const auto report = merged({folder_base, work / "out", "--lora", (work / "peft") + ":0.5"});
  CHECK(report["adapters"][0]["applied"] == 1);
  fs::remove(work / "peft/adapter_config.json");  // alpha 8 of rank 4 at 0.5 is alpha 4 at 1
  merged({folder_base, work / "plain", "--lora", (work / "peft") + ":1"});
  CHECK(tensors_of(work / "out/unet/diffusion_pytorch_model.safetensors") == tensors_of(work / "plain/unet/diffusion_pytorch_model.safetensors"));
}

TEST_CASE("embeddings that an adapter brings along are listed, or added when asked for") {
  const support::temp_folder work;
  safetensors_parts file = faults::read_parts(adapter(work));
  const std::size_t width = shapes_of(folder_base, "text_encoder")["text_model.embeddings.token_embedding.weight"][1];
  add_tensor(file, "bundle_emb.style.string_to_param.*", "F32", {2, width}, floats(2 * width, 9, 0.02F));
  faults::write_parts(work / "bundle.safetensors", file);
  const std::string lora = (work / "bundle.safetensors") + ":1";
  const outcome run = programs::run("merge-lora", {folder_base, work / "without", "--lora", lora, "--json"});
  REQUIRE(run.status == 0);
  CHECK(run.err == "merge-lora: warning: " + (work / "bundle.safetensors") + ": 1 embedding is left out; --bundled-embeddings adds it\n");
  auto report = nlohmann::json::parse(run.out);
  CHECK(report["adapters"][0]["keys"]["embeddings"] == 1);
  CHECK(keys_applied(report) == 6);
  CHECK(report["tokens"].empty());
  REQUIRE(report["embeddings_ignored"].size() == 1);
  CHECK(report["embeddings_ignored"][0]["what"] == "style");
  CHECK_FALSE(fs::exists(work / "without/tokenizer/added_tokens.json"));

  report = merged({folder_base, work / "with", "--lora", lora, "--bundled-embeddings"});
  REQUIRE(report["tokens"].size() == 2);
  CHECK(report["tokens"][0]["token"] == "style");
  CHECK(report["tokens"][1]["token"] == "style_1");
  CHECK(fs::exists(work / "with/tokenizer/added_tokens.json"));
  CHECK(report["embeddings_ignored"].empty());
}

TEST_CASE("LRA-05: a strength that is no finite number of a sensible size, and block weights that are none") {
  const support::temp_folder work;
  const std::string lora = adapter(work);
  for (const std::string bad : {"nan", "inf", "-inf", "1e38", "-10001", "1e999", "nan:1", "1:inf"}) {
    const std::string text = lora + ":" + bad;
    refuses(work, {folder_base, work / "out", "--lora", text}, "USE", "--lora '" + text + "': a strength is no number between -10000 and 10000");
  }
  for (const std::string bad : {"strong", "0x10", "1,5", " 1", "1e", "--1", ""}) {
    const std::string text = lora + ":" + bad;
    refuses(work, {folder_base, work / "out", "--lora", text}, "USE",
            "--lora '" + text + "': '" + bad + "' is no strength; pass FILE:STRENGTH or FILE:UNET:TEXT_ENCODER");
  }
  refuses(work, {folder_base, work / "out", "--lora", ":1"}, "USE", "--lora ':1' names no file; pass FILE:STRENGTH");
  for (const std::string bad : {"nan", "inf", "1e38", "x", ""})
    refuses(work, {folder_base, work / "out", "--lora", lora, "--block-weights", "1," + bad}, "USE",
            "--block-weights: '" + bad + "' is no number between -10000 and 10000");
}

TEST_CASE("LRA-06: an adapter of which nothing fits is an error; one that fits in part is merged, with the rest listed") {
  const support::temp_folder work;
  safetensors_parts none;
  add_pair(none, "lora_unet_nowhere_to_q", {8, 8}, 1);
  faults::write_parts(work / "none.safetensors", none);
  const outcome run = programs::run("merge-lora", {folder_base, work / "out", "--lora", (work / "none.safetensors") + ":1"});
  CHECK(run.status == faults::status_of("MIS"));
  CHECK(run.err.find("no module of the adapter belongs to a layer of the model") != std::string::npos);
  CHECK(run.err.find("'lora_unet_nowhere_to_q'") != std::string::npos);
  CHECK_FALSE(fs::exists(work / "out"));
  const auto report = merged({folder_base, work / "part", "--lora", adapter(work, true) + ":1"});
  CHECK(report["adapters"][0]["applied"] == 2);
  CHECK(report["adapters"][0]["not_found"] == 1);
}

TEST_CASE("what is refused: another family, no adapter, bases and outputs that cannot be") {
  const support::temp_folder work;
  safetensors_parts sdxl;
  add_pair(sdxl, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", {640, 2048}, 1);
  faults::write_parts(work / "sdxl.safetensors", sdxl);
  const outcome other = programs::run("merge-lora", {folder_base, work / "out", "--lora", (work / "sdxl.safetensors") + ":1"});
  CHECK(other.status == faults::status_of("MIS"));
  CHECK(other.err.find("the adapter is one for sdxl") != std::string::npos);
  const outcome model = programs::run("merge-lora", {folder_base, work / "out", "--lora", folder_base + "/vae/diffusion_pytorch_model.safetensors:1"});
  CHECK(model.status == faults::status_of("UNS"));
  CHECK(model.err.find("the file is no adapter") != std::string::npos);
  const std::string lora = adapter(work);
  CHECK(programs::run("merge-lora", {folder_base, work / "out", "--lora", lora + ":1", "--block-weights", "1,2,3"}).status == faults::status_of("USE"));
  faults::converted({made_model(work.path(), "sd1", "safetensors"), work / "base.npz"});
  refuses(work, {work / "base.npz", work / "out.npz", "--lora", lora + ":1"}, "UNS",
          (work / "base.npz") + ": a model in this container cannot be written again (expected a safetensors or torch file, a diffusers folder or an ONNX folder, "
                                "found npz); make a safetensors file of it with convert-weights first");
  write_text(work / "taken", "here");
  refuses(work, {folder_base, work / "taken", "--lora", lora + ":1"}, "PTH",
          (work / "taken") + ": the output already exists; pass --force to replace it, or choose another path");
  CHECK_FALSE(fs::exists(work / "out"));
}

TEST_CASE("nothing that is read is written over, and a report goes where it can") {
  const support::temp_folder work;
  const std::string lora = adapter(work), base = made_model(work.path(), "sd1", "safetensors");
  fs::create_directories(work / "empty");
  refuses(work, {base, lora, "--lora", lora + ":1", "--force"}, "USE", "OUTPUT would replace '" + lora + "', which is read; choose another OUTPUT");
  const strings merge = {base, work / "out.safetensors", "--lora", lora + ":1", "--report"};
  for (const std::string& report : {base, lora, work / "out.safetensors"})
    refuses(work, merge + strings{report}, "USE", "--report names a file that is read or written otherwise; choose another file");
  for (const std::string& report : {work / "empty", work / "none/report.json"})
    refuses(work, merge + strings{report}, "PTH", report + ": the report cannot be written here (expected a file in a folder that exists)");
  // BASE itself may be OUTPUT: it is replaced when all of it was read.
  merged(merge + strings{work / "report.json"});
  const std::string expected = read_text(work / "out.safetensors");
  merged({base, base, "--lora", lora + ":1", "--force"});
  CHECK((read_text(base) == expected));
}

TEST_CASE("a folder whose graphs refer to its weights in place stays both") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers");
  const std::string lora = kohya_adapter(work / "lora.safetensors", base, "sd1") + ":0.7";
  merged({base, work / "expected", "--lora", lora});
  report_of("sd-to-onnx", {base, base, "--weights", "in-place"});
  CHECK(merged({base, work / "out", "--lora", lora})["form"] == "ONNX folder");
  const std::string weights = "unet/diffusion_pytorch_model.safetensors", graph = "unet/model.onnx";
  CHECK((read_text(fs::path(work / "out") / weights) == read_text(fs::path(work / "expected") / weights)));
  CHECK((read_text(fs::path(work / "out") / graph) == read_text(fs::path(base) / graph)));
}

TEST_CASE("a dry run plans every form and writes nothing") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers"), file = made_model(work.path(), "sd1", "ckpt");
  const std::string lora = kohya_adapter(work / "lora.safetensors", base, "sd1") + ":0.7";
  report_of("sd-to-onnx", {base, work / "onnx"});
  for (const std::string& from : {base, file, work / "onnx"}) {
    CAPTURE(from);
    const auto before = faults::snapshot(work.path());
    const auto plan = merged({from, work / "out", "--lora", lora, "--dry-run"});
    CHECK(faults::snapshot(work.path()) == before);
    CHECK(plan["status"] == "planned");
    const auto done = merged({from, work / "out", "--lora", lora});
    CHECK(plan["files"] == done["files"]);
    CHECK(plan["adapters"] == done["adapters"]);
    fs::remove_all(work / "out");
  }
}

TEST_CASE("block weights act on their blocks alone") {
  const support::temp_folder work;
  const std::string lora = adapter(work);
  std::string list = "0";  // BASE, then IN01 … : the layer lies in the second input block
  for (int i = 1; i < 17; ++i) list += i == 1 ? ",1" : ",0";
  const auto report = merged({folder_base, work / "blocks", "--lora", lora + ":1", "--block-weights", list});
  CHECK(report["adapters"][0]["applied"] == 1);
  CHECK(report["adapters"][0]["ignored"] == 1);
  REQUIRE(report["weights"].size() == 1);
  CHECK(report["weights"][0]["name"] == std::string("unet.") + query + ".weight");

  // Two lists are one for each adapter: the second one leaves everything out.
  std::string nothing = "0";
  for (int i = 1; i < 17; ++i) nothing += ",0";
  const auto two = merged({folder_base, work / "two", "--lora", lora + ":1", "--lora", lora + ":1", "--block-weights", list, "--block-weights", nothing});
  CHECK(two["adapters"][0]["applied"] == 1);
  CHECK(two["adapters"][1]["applied"] == 0);
  CHECK(contents(work / "two") == contents(work / "blocks"));
  refuses(work, {folder_base, work / "no", "--lora", lora + ":1", "--block-weights", list, "--block-weights", nothing}, "USE",
          "--block-weights is given 2 times for 1 adapter; give it once for all, or once for each --lora");
}
