// SPDX-License-Identifier: MIT
#include "tensorsmith/format/checkpoint/open.hpp"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/format/safetensors/write_sharded.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;

namespace {

void write(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

/// Small f32 tensors; all elements of the k-th are `first + k`.
ts::catalog tensors(const std::vector<std::string>& names, float first = 1) {
  ts::catalog out;
  for (const std::string& name : names) {
    std::vector<std::byte> bytes(8);
    std::memcpy(bytes.data(), &first, 4);
    std::memcpy(bytes.data() + 4, &first, 4);
    first += 1;
    const auto added = out.add(name, ts::in_memory({name, ts::dtype::f32, {2}}, std::move(bytes)), "test");
    REQUIRE(added);
  }
  return out;
}

template <class T>
void fine(const ts::result<T>& done) {
  if (!done) FAIL(done.error().message());
}
void safetensors(const std::string& path, const std::vector<std::string>& names, float first = 1) {
  fs::create_directories(fs::path(path).parent_path());
  fine(ts::write_safetensors(tensors(names, first), path, {.metadata = {{"format", "pt"}}, .force = true, .verify = false}, {}));
}
void torch(const std::string& path, const std::vector<std::string>& names, float first = 1, const std::string& nested = {}) {
  fs::create_directories(fs::path(path).parent_path());
  ts::torch_write_options options;
  options.nested = nested;
  options.force = true;
  if (!nested.empty()) options.scalars = {{"global_step", 470000}, {"epoch", 3}};
  fine(ts::write_torch(tensors(names, first), path, {}, options));
}

struct opened {
  ts::job run;
  ts::package model;
};
opened open(const std::string& path, const ts::open_weights_options& options = {}) {
  opened out;
  auto model = ts::open_weights(path, options, out.run);
  if (!model) FAIL(model.error().message());
  out.model = std::move(*model);
  return out;
}
std::string refusal(const std::string& path, const ts::open_weights_options& options = {}) {
  ts::job run;
  const auto model = ts::open_weights(path, options, run);
  return model ? "accepted" : model.error().message();
}
std::string notes(const ts::job& run) {
  std::string out;
  for (const ts::note& n : run.notes) out += (n.severity == ts::note::level::warning ? "! " : "  ") + n.subject + ": " + n.text + "\n";
  return out;
}
float value(const ts::catalog& from, const std::string& name) {
  REQUIRE(from.find(name));
  const auto bytes = ts::materialize(from.find(name)->tensor, {});
  fine(bytes);
  float out = 0;
  std::memcpy(&out, bytes->data(), 4);
  return out;
}
const ts::catalog& only(const ts::package& model) {
  REQUIRE(model.components.size() == 1);
  CHECK(model.components[0].name.empty());
  return model.components[0].weights;
}

void pipeline(const support::temp_folder& folder) {
  write(folder / "model_index.json",
        R"({"_class_name": "P", "text_encoder": ["transformers", "CLIPTextModel"], "unet": ["diffusers", "UNet2DConditionModel"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "scheduler": ["diffusers", "DDIMScheduler"],
            "feature_extractor": [null, null], "image_processor": ["mine", "Processor"], "requires_safety_checker": true})");
  write(folder / "text_encoder/config.json", R"({"model_type": "clip_text_model"})");
  write(folder / "unet/config.json", R"({"_class_name": "UNet2DConditionModel"})");
  write(folder / "safety_checker/config.json", R"({"architectures": ["StableDiffusionSafetyChecker"]})");
  write(folder / "scheduler/scheduler_config.json", "{}");
  write(folder / "image_processor/preprocessor_config.json", "{}");
  safetensors(folder / "text_encoder/model.safetensors", {"text_model.a", "text_model.embeddings.position_ids"}, 10);
  safetensors(folder / "unet/diffusion_pytorch_model.safetensors", {"conv_in.weight"}, 20);
  torch(folder / "safety_checker/pytorch_model.bin", {"concept_embeds", "vision_model.embeddings.position_ids"}, 30);
}

}  // namespace

TEST_CASE("a file of any container opens as one component without a name; contents decide, not the extension") {
  const support::temp_folder folder;
  safetensors(folder / "a.ckpt", {"x", "y"});
  const auto one = open(folder / "a.ckpt").model;
  CHECK(one.container == "safetensors");
  CHECK(one.metadata == std::vector<std::pair<std::string, std::string>>{{"format", "pt"}});
  CHECK(value(only(one), "y") == 2);
  CHECK(one.nested.empty());
  torch(folder / "b.safetensors", {"x"}, 5, "state_dict");
  const auto two = open(folder / "b.safetensors").model;
  CHECK(two.container == "torch");
  CHECK(two.nested == "state_dict");
  CHECK(two.global_step == 470000);
  CHECK(two.scalars.size() == 2);
  CHECK(value(only(two), "x") == 5);
  CHECK(value(only(open(folder / "b.safetensors", {.variant = {}, .select = "state_dict", .prefer = {}}).model), "x") == 5);
  fine(ts::write_npz(tensors({"x", "y"}, 7), folder / "c.pt", {}));
  const auto three = open(folder / "c.pt").model;
  CHECK(three.container == "npz");
  CHECK(value(only(three), "y") == 8);
  const std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
  write(folder / "d.npy", std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size()) + '\0' + header + std::string("\0\0\x80\x3F", 4));
  const auto four = open(folder / "d.npy").model;
  CHECK(four.container == "npy");
  CHECK(value(only(four), "d") == 1);
}

TEST_CASE("a GGUF file opens with its metadata; quantized tensors are said to become f32") {
  const support::temp_folder folder;
  const auto number = [](std::uint64_t value, std::size_t bytes) {
    std::string out(bytes, '\0');
    for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<char>(value >> (8 * i));
    return out;
  };
  const auto text = [&](const std::string& value) { return number(value.size(), 8) + value; };
  std::string bytes = "GGUF" + number(3, 4) + number(1, 8) + number(1, 8);
  bytes += text("general.architecture") + number(8, 4) + text("sd1");
  bytes += text("q") + number(2, 4) + number(32, 8) + number(1, 8) + number(8, 4) + number(0, 8);  // Q8_0, [1, 32]
  bytes.resize((bytes.size() + 31) / 32 * 32);
  bytes += std::string("\x00\x3C", 2) + std::string(32, '\2');  // scale 1, all values 2
  bytes.resize((bytes.size() + 31) / 32 * 32);
  write(folder / "m.gguf", bytes);
  const auto [run, model] = open(folder / "m.gguf");
  CHECK(model.container == "gguf");
  CHECK(model.metadata == std::vector<std::pair<std::string, std::string>>{{"general.architecture", "sd1"}});
  CHECK(only(model).find("q")->tensor.type() == ts::dtype::f32);
  CHECK(value(only(model), "q") == 2);
  CHECK(notes(run) == "  " + (folder / "m.gguf") + ": 1 tensors of the type Q8_0 are read as f32\n");
}

TEST_CASE("an index stands for its shards, and our own sharded output opens again") {
  const support::temp_folder folder;
  const std::string out = folder / "out";
  ts::sharded_write_options options;
  options.max_shard_bytes = 16;
  options.metadata = {{"format", "pt"}};
  fine(ts::write_safetensors_sharded(tensors({"a", "b", "c", "d", "e"}), out, options, {}));
  CHECK(fs::exists(out + "/model-00003-of-00003.safetensors"));
  for (const std::string& path : {out, out + "/", out + "/model.safetensors.index.json"}) {
    const auto model = open(path).model;
    CHECK(only(model).size() == 5);
    CHECK(value(only(model), "e") == 5);
    CHECK(model.container == "safetensors");
    CHECK(model.metadata.size() == 1);
  }
  CHECK(notes(open(out).run) == "  " + out + ": weights are read from 'model.safetensors.index.json'\n");
  options.max_shard_bytes = 0;
  options.force = true;
  fine(ts::write_safetensors_sharded(tensors({"a"}), out, options, {}));
  CHECK(only(open(out).model).size() == 1);
  options.stem = "mine";
  options.max_shard_bytes = 8;
  fine(ts::write_safetensors_sharded(tensors({"a", "b"}), out, options, {}));
  CHECK(only(open(out).model).size() == 2);
}

TEST_CASE("transformers and component folders open as one component with its configuration") {
  const support::temp_folder folder;
  write(folder / "config.json", R"({"model_type": "bert"})");
  write(folder / "tokenizer.json", "{}");
  torch(folder / "pytorch_model.bin", {"encoder.w", "embeddings.position_ids"}, 3);
  const auto pickled = open(folder.path().string());
  CHECK(value(only(pickled.model), "encoder.w") == 3);  // names of other architectures stay as they are
  CHECK(pickled.model.components[0].config.find("model_type"));
  CHECK(only(pickled.model).contains("embeddings.position_ids"));
  CHECK(pickled.model.container == "torch");
  safetensors(folder / "model.safetensors", {"encoder.w"}, 4);
  safetensors(folder / "model.fp16.safetensors", {"encoder.w"}, 5);
  const auto both = open(folder.path().string());
  CHECK(value(only(both.model), "encoder.w") == 4);
  CHECK(notes(both.run) == "  " + folder.path().string() + ": weights are read from 'model.safetensors', not from 'pytorch_model.bin', 'model.fp16.safetensors'\n");
  CHECK(value(only(open(folder.path().string(), {.variant = "fp16", .select = {}, .prefer = {}}).model), "encoder.w") == 5);
  CHECK(value(only(open(folder.path().string(), {.variant = {}, .select = {}, .prefer = "torch"}).model), "encoder.w") == 3);
  CHECK(value(only(open(folder.path().string(), {.variant = {}, .select = {}, .prefer = "safetensors"}).model), "encoder.w") == 4);
  CHECK(refusal(folder.path().string(), {.variant = "bf16", .select = {}, .prefer = {}}) ==
        "MIS " + folder.path().string() + ": the folder has no variant 'bf16' (found 'fp16'); correct --variant, or leave it out");
}

TEST_CASE("folders without the usual names open if there is one file of weights") {
  const support::temp_folder folder;
  const std::string path = folder.path().string();
  CHECK(refusal(path) == "MIS " + path + ": the folder holds no weights (expected model_index.json of a pipeline, model.safetensors, pytorch_model.bin, an "
                         "index of shards, or one file of weights, found an empty folder)");
  write(folder / "readme.md", "hello");
  torch(folder / "optimizer.pt", {"m"});
  CHECK(refusal(path).find("found 2 other entries)") != std::string::npos);
  safetensors(folder / "dreamy-v3.safetensors", {"x"}, 6);
  CHECK(value(only(open(path).model), "x") == 6);
  torch(folder / "other.ckpt", {"x"});
  CHECK(refusal(path) == "USE " + path + ": the folder holds several files of weights (found 2: 'dreamy-v3.safetensors', 'other.ckpt'); pass the one to read");
}

TEST_CASE("folders that lack a part are refused with what to do") {
  const support::temp_folder folder;
  const std::string path = folder.path().string();
  safetensors(folder / "model-00001-of-00002.safetensors", {"x"});
  CHECK(refusal(path).find("found shards without their index); download the *.index.json into the same folder") != std::string::npos);
  fs::remove(folder / "model-00001-of-00002.safetensors");
  write(folder / "unet/config.json", "{}");
  CHECK(refusal(path).find("found the components 'unet' without model_index.json); download model_index.json, or pass one of the components' folders") !=
        std::string::npos);
  write(folder / "model_index.json", "{}");
  CHECK(refusal(folder / "model_index.json") ==
        "USE " + (folder / "model_index.json") + ": the file describes a model and holds no weights (expected a file of weights, an index of shards, or a "
        "folder); pass the folder '" + path + "'");
  CHECK(refusal(folder / "none").substr(0, 3) == "IO ");
}

TEST_CASE("a pipeline's folder gives all its models, also those that are not built here, and its side files") {
  const support::temp_folder folder;
  pipeline(folder);
  const auto [run, model] = open(folder.path().string());
  REQUIRE(model.components.size() == 3);
  CHECK(model.components[0].name == "text_encoder");
  CHECK(model.components[1].name == "unet");
  CHECK(model.components[2].name == "safety_checker");
  CHECK(model.components[0].ignored == std::vector<std::string>{"text_model.embeddings.position_ids: positions are counted, not read"});
  CHECK(model.components[2].weights.size() == 2);  // nothing is dropped where nothing is known
  CHECK(value(model.components[2].weights, "concept_embeds") == 30);
  CHECK(model.components[2].config.find("architectures"));
  std::vector<std::string> files;
  for (const auto& file : model.side_files) files.push_back(file.path);
  CHECK(files == std::vector<std::string>{"scheduler/scheduler_config.json", "image_processor/preprocessor_config.json"});
  CHECK(notes(run) ==
        "  text_encoder: weights are read from 'model.safetensors'\n"
        "  unet: weights are read from 'diffusion_pytorch_model.safetensors'\n"
        "  safety_checker: weights are read from 'pytorch_model.bin'\n");
}

TEST_CASE("a text encoder of another architecture keeps its names") {
  const support::temp_folder folder;
  pipeline(folder);
  write(folder / "text_encoder/config.json", R"({"model_type": "t5"})");
  safetensors(folder / "text_encoder/model.safetensors", {"encoder.block.0.w", "embeddings.position_ids"});
  const auto model = open(folder.path().string()).model;
  CHECK(model.find("text_encoder")->weights.contains("encoder.block.0.w"));
  CHECK(model.find("text_encoder")->weights.contains("embeddings.position_ids"));
}

TEST_CASE("IDX-08: of whole files, shards, pickles and variants one is read in the documented order, and it is said") {
  const support::temp_folder folder;
  pipeline(folder);
  const std::string path = folder.path().string(), unet = folder / "unet/";
  torch(unet + "diffusion_pytorch_model.bin", {"conv_in.weight"}, 21);
  torch(unet + "diffusion_pytorch_model.fp16.bin", {"conv_in.weight"}, 22);
  safetensors(unet + "shard-1-of-1.safetensors", {"conv_in.weight"}, 23);
  write(unet + "diffusion_pytorch_model.safetensors.index.json", R"({"weight_map": {"conv_in.weight": "shard-1-of-1.safetensors"}})");
  const auto read = [&](const ts::open_weights_options& options) {
    const auto [run, model] = open(path, options);
    return std::to_string(static_cast<int>(value(model.find("unet")->weights, "conv_in.weight"))) + "\n" + notes(run);
  };
  CHECK(read({}).find("20\n") == 0);
  CHECK(read({}).find("  unet: weights are read from 'diffusion_pytorch_model.safetensors', not from 'diffusion_pytorch_model.safetensors.index.json', "
                      "'diffusion_pytorch_model.bin', 'diffusion_pytorch_model.fp16.bin'\n") != std::string::npos);
  CHECK(read({.variant = {}, .select = {}, .prefer = "torch"}).find("21\n") == 0);
  const std::string variant = read({.variant = "fp16", .select = {}, .prefer = {}});
  CHECK(variant.find("22\n") == 0);
  CHECK(variant.find("! text_encoder: there is no variant 'fp16'; 'model.safetensors' is read instead\n") != std::string::npos);
  fs::remove(unet + "diffusion_pytorch_model.safetensors");
  CHECK(read({}).find("23\n") == 0);
  CHECK(refusal(path, {.variant = "non_ema", .select = {}, .prefer = {}}) ==
        "MIS " + path + ": the folder has no variant 'non_ema' (found 'fp16'); correct --variant, or leave it out");
  CHECK(refusal(path, {.variant = {}, .select = {}, .prefer = "pickle"}) == "USE unknown preference 'pickle' (expected safetensors or torch)");
}

TEST_CASE("VAL-08: a snapshot of the hub's cache, whose files are links into blobs, opens whole and by the file") {
  const support::temp_folder folder, elsewhere;
  pipeline(folder);
  const fs::path cache = folder.path() / "models--a--b", snapshot = cache / "snapshots" / "0123abcd";
  fs::create_directories(cache / "blobs");
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
    if (entry.is_regular_file()) files.push_back(fs::relative(entry.path(), folder.path()));
  std::size_t n = 0;
  for (const fs::path& file : files) {
    const std::string blob = "blob" + std::to_string(n++);
    fs::rename(folder.path() / file, cache / "blobs" / blob);
    fs::create_directories((snapshot / file).parent_path());
    fs::path up;
    for (auto part = file.begin(); part != file.end(); ++part) up /= "..";
    fs::create_symlink(up / ".." / "blobs" / blob, snapshot / file);
  }
  const auto model = open(snapshot.string()).model;
  CHECK(model.components.size() == 3);
  CHECK(value(model.find("unet")->weights, "conv_in.weight") == 20);
  CHECK(value(only(open((snapshot / "unet").string()).model), "conv_in.weight") == 20);
  CHECK(value(only(open((snapshot / "unet/diffusion_pytorch_model.safetensors").string()).model), "conv_in.weight") == 20);
  // Shards through their index, too.
  safetensors((cache / "blobs/shard").string(), {"s"}, 40);
  write((cache / "blobs/index").string(), R"({"weight_map": {"s": "model-00001-of-00001.safetensors"}})");
  const fs::path sharded = cache / "snapshots/4567cdef";
  fs::create_directories(sharded);
  fs::create_symlink("../../blobs/shard", sharded / "model-00001-of-00001.safetensors");
  fs::create_symlink("../../blobs/index", sharded / "model.safetensors.index.json");
  CHECK(value(only(open(sharded.string()).model), "s") == 40);
  CHECK(value(only(open((sharded / "model.safetensors.index.json").string()).model), "s") == 40);
  // A link that leaves the cache is not followed.
  safetensors(elsewhere / "x", {"conv_in.weight"}, 50);
  fs::remove(snapshot / "unet/diffusion_pytorch_model.safetensors");
  fs::create_symlink(elsewhere / "x", snapshot / "unet/diffusion_pytorch_model.safetensors");
  CHECK(refusal(snapshot.string()).substr(0, 4) == "PTH ");
  CHECK(refusal((snapshot / "unet").string()).find("the path is a symbolic link that leaves its folder") != std::string::npos);
}

TEST_CASE("ZIP-21: files that are no weights are called what they are") {
  const support::temp_folder folder;
  const auto said = [&](const std::string& name, std::string bytes) {
    write(folder / name, bytes);
    const std::string message = refusal(folder / name);
    CHECK(message.substr(0, 4) == "UNS ");
    return message.substr(message.find(": byte offset 0: ") + 17);
  };
  const auto known = [](const std::string& what, const std::string& found, const std::string& advice) {
    return "the file holds no weights: it is " + what + " (expected a safetensors, torch, npy, npz or GGUF file, found " + found + "); " + advice;
  };
  const std::string again = "download the file itself (the address of the file, not of the page about it)";
  CHECK(said("model.safetensors", "<!DOCTYPE html>\n<html>") == known("a web page", "22 bytes that start with 3c 21 44 4f 43 54 59 50", again));
  CHECK(said("model.ckpt", "\n\n  <HTML><body>").find("it is a web page") != std::string::npos);
  CHECK(said("model.ckpt", "<?xml version=\"1.0\"?><Error/>").find("it is an XML document, as servers answer with errors") != std::string::npos);
  CHECK(said("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
            .find("it is a pointer of Git LFS, not the file it stands for (expected a safetensors, torch, npy, npz or GGUF file, found 63 bytes that start "
                  "with 76 65 72 73 69 6f 6e 20); run 'git lfs pull' in the repository, or download the file from the site") != std::string::npos);
  const std::string unpack = "; unpack it and pass the file of weights inside";
  CHECK(said("a.pt", std::string("7z\xBC\xAF\x27\x1C\0\4", 8) + "...").find("it is a 7z archive (expected a safetensors, torch, npy, npz or GGUF file, found "
                                                                            "11 bytes that start with 37 7a bc af 27 1c 00 04)" + unpack) != std::string::npos);
  CHECK(said("a.pt", std::string("\x1F\x8B\x08\0", 4) + "xxxxx").find("it is a gzip file") != std::string::npos);
  CHECK(said("a.pt", "Rar!\x1A\x07\x01zzzz").find("it is a RAR archive") != std::string::npos);
  CHECK(said("a.pt", "\x28\xB5\x2F\xFDzzzzzz").find("it is a Zstandard file") != std::string::npos);
  CHECK(said("a.h5", "\x89HDF\r\n\x1A\nzzzz").find("it is an HDF5 file (Keras)") != std::string::npos);
  CHECK(said("model.onnx", std::string("\x08\x08\x12\x07pytorch", 11)).find("it is an ONNX model") != std::string::npos);
  CHECK(said("model.msgpack", "zzzz").find("it is a Flax checkpoint") != std::string::npos);
  CHECK(said("image.safetensors", "\x89PNG\r\n\x1A\n....").find("it is a PNG image") != std::string::npos);
  CHECK(said("a.bin", "{\"a\": 1}").find("it is a JSON document") != std::string::npos);
  CHECK(said("model.safetensors", std::string(1000, '\0')).find("it is a file that starts with zeros only, as unfinished downloads do") != std::string::npos);
  CHECK(said("a.txt", "hello, this is text") == "the file is of no format that holds weights (expected a safetensors, torch, npy, npz or GGUF file, found 19 "
                                                "bytes that start with 68 65 6c 6c 6f 2c 20 74)");
  write(folder / "empty.ckpt", "");
  CHECK(refusal(folder / "empty.ckpt") == "FMT " + (folder / "empty.ckpt") + ": the file is empty (expected a file of weights, found 0 bytes); download it again");
}

TEST_CASE("options that cannot apply are refused") {
  const support::temp_folder folder;
  safetensors(folder / "a", {"x"});
  CHECK(refusal(folder / "a", {.variant = {}, .select = "model", .prefer = {}}) ==
        "USE " + (folder / "a") + ": only a torch file has parts to choose from (expected a torch file, found a safetensors file)");
  CHECK(refusal(folder / "a", {.variant = "fp16", .select = {}, .prefer = {}}) == "USE " + (folder / "a") + ": only folders have variants (found a file); leave out --variant");
  CHECK(refusal(folder.path().string(), {.variant = {}, .select = "model", .prefer = {}}) ==
        "USE " + folder.path().string() + ": only a torch file has parts to choose from (expected a torch file, found a folder)");
}
