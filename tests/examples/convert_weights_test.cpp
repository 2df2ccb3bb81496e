// SPDX-License-Identifier: MIT
//
// convert-weights from end to end: every form into every form, types, choice of tensors, shards, the report, the options.
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/run.hpp"
#include "faults/convert.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;
using faults::add_tensor;
using faults::converted;
using faults::read_parts;
using faults::safetensors_parts;
using faults::tensors_of;
using faults::write_parts;
using strings = std::vector<std::string>;

std::string le16(std::initializer_list<unsigned> values) {
  std::string out;
  for (const unsigned v : values) out += {static_cast<char>(v & 0xFF), static_cast<char>(v >> 8)};
  return out;
}

std::string floats(std::initializer_list<float> values) {
  std::string out;
  for (const float v : values) out.append(reinterpret_cast<const char*>(&v), sizeof v);
  return out;
}

/// A small file of training: weights, moving averages, a schedule, an integer.
std::string small_model(const support::temp_folder& work) {
  safetensors_parts file;
  file.header["__metadata__"] = {{"author", "someone"}};
  add_tensor(file, "model.a.weight", "F32", {2, 2}, floats({1, -2, 0.5f, 65504}));
  add_tensor(file, "model.b.weight", "F16", {2}, le16({0x3C00, 0x7C00}));
  add_tensor(file, "model_ema.aweight", "F32", {2, 2}, floats({1, 2, 3, 4}));
  add_tensor(file, "model_ema.decay", "F32", {1}, floats({0.5f}));
  add_tensor(file, "betas", "F32", {3}, floats({1, 2, 3}));
  add_tensor(file, "count", "I64", {1}, std::string("\x2A\0\0\0\0\0\0\0", 8));
  write_parts(work / "small.safetensors", file);
  return work / "small.safetensors";
}

/// The tensors of any file or folder, read by way of a conversion.
std::map<std::string, std::string> tensors_in(const support::temp_folder& work, const std::string& path) {
  converted({path, work / "as.safetensors", "--force", "--to", "safetensors"});
  auto out = tensors_of(work / "as.safetensors");
  fs::remove(work / "as.safetensors");
  return out;
}

void check_counts(const nlohmann::json& report) {
  const auto& counts = report["counts"];
  CHECK(counts["source"].get<int>() ==
        counts["written"].get<int>() + counts["dropped"].get<int>() + counts["pruned"].get<int>() + counts["ignored"].get<int>());
  for (const char* kind : {"dropped", "pruned", "ignored"}) {
    CAPTURE(kind);
    CHECK(report[kind].size() == counts[kind].get<std::size_t>());
    for (const auto& tensor : report[kind]) {
      CHECK_FALSE(tensor["name"].get<std::string>().empty());
      CHECK_FALSE(tensor["reason"].get<std::string>().empty());
    }
  }
  for (const auto& file : report["files"])
    if (report["status"] == "converted") CHECK(fs::file_size(file["path"].get<std::string>()) == file["bytes"].get<std::uint64_t>());
}

}  // namespace

TEST_CASE("what was written in one form and read again is the same, tensor for tensor") {
  const support::temp_folder work;
  const std::string source = small_model(work);
  const auto expected = tensors_of(source);
  for (const std::string name : {"out.safetensors", "out.pt", "out.pth", "out.bin", "out.ckpt", "out.npz"}) {
    CAPTURE(name);
    const auto report = converted({source, work / name});
    check_counts(report);
    CHECK(report["status"] == "converted");
    CHECK(report["container"] == "safetensors");
    CHECK(report["counts"]["written"] == 6);
    CHECK(report["tensors"] == 6);
    CHECK((tensors_in(work, work / name) == expected));
  }
  CHECK((read_text(work / "out.pt") == read_text(work / "out.ckpt")));
  converted({source, work / "named", "--to", "npz"});
  CHECK((read_text(work / "named") == read_text(work / "out.npz")));
}

TEST_CASE("the metadata of a safetensors file stays, and readers of transformers find their format") {
  const support::temp_folder work;
  converted({small_model(work), work / "out.safetensors"});
  const auto metadata = read_parts(work / "out.safetensors").header["__metadata__"];
  CHECK(metadata == nlohmann::json{{"author", "someone"}, {"format", "pt"}});
  const auto report = converted({work / "small.safetensors", work / "out.pt"});
  CHECK(report["notes"].dump().find("1 entry has no place in a torch file") != std::string::npos);
}

TEST_CASE("floating-point tensors are cast, others are not") {
  const support::temp_folder work;
  const std::string source = small_model(work);
  for (const auto& [dtype, spelling] : std::map<std::string, std::string>{{"f64", "F64"}, {"f32", "F32"}, {"f16", "F16"}, {"bf16", "BF16"}}) {
    CAPTURE(dtype);
    converted({source, work / "out.safetensors", "--dtype", dtype, "--force"});
    const safetensors_parts parts = read_parts(work / "out.safetensors");
    for (const auto& [name, info] : parts.header.items())
      if (name != "__metadata__") CHECK(info["dtype"] == (name == "count" ? "I64" : spelling));
  }
  converted({source, work / "half.safetensors", "--dtype", "f16"});
  const auto half = tensors_of(work / "half.safetensors");
  CHECK(half.at("model.a.weight") == "F16[2,2]" + le16({0x3C00, 0xC000, 0x3800, 0x7BFF}));
  CHECK(half.at("model.b.weight") == "F16[2]" + le16({0x3C00, 0x7C00}));  // an infinity of the source is none of ours
  converted({work / "half.safetensors", work / "wide.safetensors", "--dtype", "f32"});
  CHECK(tensors_of(work / "wide.safetensors").at("model.a.weight") == tensors_of(source).at("model.a.weight"));
}

TEST_CASE("values too large for the new type end the run, become infinite, or the largest finite value") {
  const support::temp_folder work;
  safetensors_parts file;
  add_tensor(file, "w", "F32", {3}, floats({1, 65520, -1e30f}));
  write_parts(work / "big.safetensors", file);
  const outcome refused = programs::run("convert-weights", {work / "big.safetensors", work / "out.safetensors", "--dtype", "f16"});
  CHECK(refused.status == 16);
  CHECK(refused.err.find("2 finite values do not fit into f16") != std::string::npos);
  CHECK(listing(work.path()) == strings{"big.safetensors"});
  const auto kept = converted({work / "big.safetensors", work / "out.safetensors", "--dtype", "f16", "--overflow", "keep"});
  CHECK(tensors_of(work / "out.safetensors").at("w") == "F16[3]" + le16({0x3C00, 0x7C00, 0xFC00}));
  CHECK(kept["warnings"] == nlohmann::json{"cast: 2 values were too large for f16 and became infinite (--overflow keep)"});
  const auto cut = converted({work / "big.safetensors", work / "out.safetensors", "--dtype", "f16", "--overflow", "saturate", "--force"});
  CHECK(tensors_of(work / "out.safetensors").at("w") == "F16[3]" + le16({0x3C00, 0x7BFF, 0xFBFF}));
  CHECK(cut["warnings"] == nlohmann::json{"cast: 2 values were too large for f16 and became the largest finite value (--overflow saturate)"});
}

TEST_CASE("what only training needs is pruned and listed") {
  const support::temp_folder work;
  const std::string source = small_model(work);
  const auto names = [&](const std::string& groups) {
    const auto report = converted({source, work / "out.safetensors", "--force", "--prune", groups});
    check_counts(report);
    std::set<std::string> out;
    for (const auto& tensor : report["pruned"]) out.insert(tensor["name"]);
    for (const auto& [name, bytes] : tensors_of(work / "out.safetensors")) CHECK_FALSE(out.contains(name));
    return out;
  };
  CHECK(names("ema") == std::set<std::string>{"model_ema.aweight", "model_ema.decay"});
  CHECK(names("schedule") == std::set<std::string>{"betas"});
  CHECK(names("optimizer").empty());
  CHECK(names("ema,schedule").size() == 3);
  CHECK(names("all").size() == 3);
}

TEST_CASE("patterns choose tensors, and one that matches nothing is an error") {
  const support::temp_folder work;
  const std::string source = small_model(work);
  auto report = converted({source, work / "out.safetensors", "--select", "model.*", "--select", "betas", "--drop", "*.b.*"});
  check_counts(report);
  CHECK(report["counts"]["written"] == 2);
  std::set<std::string> kept;
  for (const auto& [name, bytes] : tensors_of(work / "out.safetensors")) kept.insert(name);
  CHECK(kept == std::set<std::string>{"betas", "model.a.weight"});
  const auto refused = [&](const strings& more, const std::string& message) {
    strings all = {source, work / "no.safetensors"};
    all.insert(all.end(), more.begin(), more.end());
    faults::refused("convert-weights", work.path(), all, "USE", source + ": " + message);
  };
  const std::string advice = " nothing (expected a pattern that matches a tensor); list the names with inspect and correct it";
  refused({"--drop", "nothing*"}, "the pattern 'nothing*' drops" + advice);
  refused({"--select", "modle.*"}, "the pattern 'modle.*' selects" + advice);
  refused({"--drop", "*"}, "the patterns leave no tensor (expected a tensor that is selected and not dropped)");
}

TEST_CASE("shards of a chosen size, with their index") {
  const support::temp_folder work;
  const std::string source = made_model(work.path(), "sd1", "safetensors");
  const auto expected = tensors_of(source);
  const auto report = converted({source, work / "shards", "--to", "safetensors", "--shard-size", "2MB", "--verify-output"});
  check_counts(report);
  const auto index = nlohmann::json::parse(read_text(work / "shards/model.safetensors.index.json"));
  std::map<std::string, std::string> all;
  std::set<std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) files.insert(file);
  CHECK(files.size() > 3);
  CHECK(files.size() + 1 == listing(work / "shards").size());
  for (const std::string& file : files) {
    const auto part = tensors_of(work / ("shards/" + file));
    std::uint64_t bytes = 0;
    for (const auto& [name, value] : part) {
      CHECK(index["weight_map"][name] == file);
      bytes += value.size();
    }
    all.insert(part.begin(), part.end());
    CHECK((part.size() == 1 || read_parts(work / ("shards/" + file)).data.size() <= 2'000'000));
  }
  CHECK((all == expected));
  CHECK(index["metadata"]["total_size"] == report["bytes"]);
  CHECK((tensors_in(work, work / "shards") == expected));
  CHECK((tensors_in(work, work / "shards/model.safetensors.index.json") == expected));

  converted({source, work / "one", "--to", "safetensors", "--shard-size", "1GB"});
  CHECK(listing(work / "one") == strings{"model.safetensors"});
  converted({source, work / "file.safetensors", "--shard-size", "9500kB"});
  CHECK(fs::is_regular_file(work / "file.safetensors"));
  const outcome many = programs::run("convert-weights", {source, work / "many.safetensors", "--shard-size", "1MiB"});
  CHECK(many.status == 2);
  CHECK(many.err.find("OUTPUT is called like one file; name a folder, or raise --shard-size") != std::string::npos);
  CHECK_FALSE(fs::exists(work / "many.safetensors"));
}

TEST_CASE("a checkpoint becomes a folder and a checkpoint again, bit for bit") {
  const std::string family = GENERATE(as<std::string>{}, "sd1", "sd2", "sdxl", "sdxl-refiner");
  CAPTURE(family);
  const support::temp_folder work;
  const std::string checkpoint = made_model(work.path(), family, "safetensors"), folder = made_model(work.path(), family, "diffusers");
  const auto report = converted({checkpoint, work / "folder", "--to", "diffusers", "--tokenizer", folder});
  check_counts(report);
  CHECK(report["family"] == family);
  CHECK_FALSE(report["evidence"].empty());
  CHECK((tensors_in(work, work / "folder") == tensors_in(work, folder)));
  CHECK(fs::exists(work / "folder/model_index.json"));
  CHECK(fs::exists(work / "folder/scheduler/scheduler_config.json"));
  const auto back = converted({work / "folder", work / "back.safetensors", "--to", "checkpoint"});
  check_counts(back);
  const auto expected = tensors_of(checkpoint);
  const auto again = tensors_of(work / "back.safetensors");
  for (const auto& [name, bytes] : again) {
    CAPTURE(name);
    REQUIRE(expected.contains(name));
    CHECK((expected.at(name) == bytes));
  }
  for (const auto& [name, bytes] : expected) {
    CAPTURE(name);
    const auto listed = report["ignored"].dump().find('"' + name + '"') != std::string::npos;
    CHECK((again.contains(name) || listed));
  }
  converted({work / "folder", work / "back.ckpt", "--to", "checkpoint"});
  CHECK((tensors_in(work, work / "back.ckpt") == again));
}

TEST_CASE("a folder becomes a folder of another type, variant and shard size") {
  const support::temp_folder work;
  const std::string folder = made_model(work.path(), "sdxl", "diffusers");
  const auto report = converted({folder, work / "out", "--to", "diffusers", "--dtype", "f16", "--output-variant", "fp16", "--shard-size", "2MB"});
  check_counts(report);
  CHECK(report["dtypes"].size() == 1);
  CHECK(fs::exists(work / "out/unet/diffusion_pytorch_model.safetensors.index.fp16.json"));
  CHECK(fs::exists(work / "out/vae/diffusion_pytorch_model.fp16.safetensors"));
  CHECK(contents(work / "out/tokenizer") == contents(fs::path(folder) / "tokenizer"));
  converted({folder, work / "half.safetensors", "--dtype", "f16"});
  converted({work / "out", work / "variant.safetensors", "--variant", "fp16"});
  CHECK((tensors_of(work / "variant.safetensors") == tensors_of(work / "half.safetensors")));
  const auto one = converted({work / "out/vae", work / "vae", "--to", "diffusers", "--dtype", "f32"});
  CHECK(listing(work / "vae") == strings{"config.json", "diffusion_pytorch_model.safetensors"});
  check_counts(one);
}

TEST_CASE("a Lightning checkpoint stays one") {
  const support::temp_folder work;
  const std::string source = made_model(work.path(), "sd1", "ckpt");
  const auto report = converted({source, work / "out.ckpt", "--dtype", "f16"});
  CHECK(report["container"] == "torch");
  const auto seen = nlohmann::json::parse(programs::run("inspect", {work / "out.ckpt", "--json"}).out);
  CHECK(seen["nested"] == "state_dict");
  CHECK(seen["scalars"]["global_step"] == 470000);
}

TEST_CASE("threads, tiles and a second look do not change a byte") {
  const support::temp_folder work;
  const std::string source = made_model(work.path(), "sd2", "ckpt");
  std::string expected;
  for (const strings& more : {strings{"--threads", "1"}, strings{"--threads", "3", "--tile", "4K"}, strings{"--threads", "2", "--verify-output"}}) {
    strings all = {source, work / "out.safetensors", "--dtype", "bf16", "--force"};
    all.insert(all.end(), more.begin(), more.end());
    converted(all);
    if (expected.empty()) expected = read_text(work / "out.safetensors");
    CHECK((read_text(work / "out.safetensors") == expected));
  }
  CHECK(listing(work.path()) == strings{"out.safetensors", "sd2.ckpt"});
}

TEST_CASE("a plan writes nothing and says what a run writes") {
  const support::temp_folder work;
  const std::string source = made_model(work.path(), "sd1", "safetensors");
  const auto before = listing(work.path());
  const std::vector<strings> forms = {{work / "o.safetensors"}, {work / "o.pt"}, {work / "o.npz"}, {work / "o", "--to", "diffusers"},
                                      {work / "o.ckpt", "--to", "checkpoint"}, {work / "s", "--to", "safetensors", "--shard-size", "1MB"}};
  for (const strings& form : forms) {
    CAPTURE(form);
    strings all = {source};
    all.insert(all.end(), form.begin(), form.end());
    strings dry = all;
    dry.push_back("--dry-run");
    const auto plan = converted(dry);
    CHECK(plan["status"] == "planned");
    CHECK(listing(work.path()) == before);
    const auto done = converted(all);
    CHECK(plan["files"] == done["files"]);
    CHECK(plan["counts"] == done["counts"]);
    CHECK(plan["dtypes"] == done["dtypes"]);
    check_counts(done);
    const outcome again = programs::run("convert-weights", dry);
    CHECK(again.status == 13);  // the output is there now
    fs::remove_all(form[0]);
  }
}

TEST_CASE("IO-07: output that is the source, a name of it, or beside it in its folder") {
  const support::temp_folder work;
  const std::string source = small_model(work);
  const std::string bytes = read_text(source);
  const auto expected = tensors_of(source);
  SECTION("the source itself") {
    faults::refused("convert-weights", work.path(), {source, source}, "PTH",
                    source + ": the output file already exists; pass --force to replace it, or choose another path");
    converted({source, source, "--force"});
    CHECK((tensors_of(source) == expected));
  }
  SECTION("a hard link") {
    fs::create_hard_link(source, work / "link.safetensors");
    converted({source, work / "link.safetensors", "--force", "--dtype", "f32"});
    CHECK(read_text(source) == bytes);
    CHECK(fs::hard_link_count(source) == 1);
  }
  SECTION("a symbolic link") {
    fs::create_symlink(source, work / "link.safetensors");
    converted({source, work / "link.safetensors", "--force"});
    CHECK(fs::is_symlink(work / "link.safetensors"));
    CHECK((tensors_of(source) == expected));
  }
  SECTION("a folder") {
    const std::string folder = made_model(work.path(), "sd1", "diffusers");
    const auto before = contents(folder);
    const auto denied = [&](const strings& arguments, int status, const std::string& piece) {
      CAPTURE(arguments);
      const outcome run = programs::run("convert-weights", arguments);
      CAPTURE(run.err);
      CHECK(run.status == status);
      CHECK(run.err.find(piece) != std::string::npos);
      CHECK((contents(folder) == before));
    };
    denied({folder, folder, "--to", "diffusers", "--force"}, 2, "OUTPUT is SOURCE");
    denied({folder, work.path().string(), "--to", "diffusers", "--force"}, 2, "inside OUTPUT");
    denied({folder, folder + "/unet", "--to", "diffusers", "--force"}, 21, "the output would replace a file that is read");
    denied({folder, folder + "/unet/diffusion_pytorch_model.safetensors", "--force"}, 21, "the output would replace a file that is read");
    converted({folder, folder + "/new", "--to", "diffusers"});
    CHECK(fs::exists(fs::path(folder) / "new/unet/config.json"));
    fs::remove_all(fs::path(folder) / "new");
    CHECK((contents(folder) == before));
  }
  SECTION("shards") {
    converted({source, work / "shards", "--to", "safetensors", "--shard-size", "20B"});
    const auto before = contents(work / "shards");
    const std::string index = work / "shards/model.safetensors.index.json", shard = work / ("shards/" + listing(work / "shards")[0]);
    const outcome run = programs::run("convert-weights", {index, shard, "--force"});
    CHECK(run.status == 21);
    CHECK(run.err.find("the output would replace a file that is read") != std::string::npos);
    CHECK(programs::run("convert-weights", {index, work / "shards", "--to", "safetensors", "--shard-size", "1GB", "--force"}).status == 2);
    CHECK((contents(work / "shards") == before));
  }
}

TEST_CASE("an output that exists is kept") {
  const support::temp_folder work;
  const std::string source = small_model(work);
  for (const strings& form : {strings{work / "o.safetensors"}, strings{work / "o.pt"}, strings{work / "o.npz"}}) {
    write_text(form[0], "precious");
    faults::refused("convert-weights", work.path(), {source, form[0]}, "PTH",
                    form[0] + ": the output file already exists; pass --force to replace it, or choose another path");
    converted({source, form[0], "--force"});
    CHECK(read_text(form[0]) != "precious");
  }
  write_text(work / "folder/precious", "old");
  const outcome run = programs::run("convert-weights", {source, work / "folder", "--to", "safetensors", "--shard-size", "1GB"});
  CHECK(run.status == 13);
  CHECK(contents(work / "folder") == std::map<std::string, std::string>{{"precious", "old"}});
}

TEST_CASE("complex tensors are refused by name") {
  const support::temp_folder work;
  safetensors_parts file;
  add_tensor(file, "fft.weight", "C64", {1}, std::string(8, '\0'));
  add_tensor(file, "w", "F32", {1}, floats({1}));
  write_parts(work / "c.safetensors", file);
  faults::refused("convert-weights", work.path(), {work / "c.safetensors", work / "o.pt"}, "UNS",
                  work / "c.safetensors" + std::string(": tensor 'fft.weight': complex numbers are no weights of any network that is converted here "
                                                       "(expected real numbers, integers or booleans, found c64); leave the tensor out with --drop"));
  CHECK(converted({work / "c.safetensors", work / "o.pt", "--drop", "fft.*"})["counts"]["dropped"] == 1);
}

TEST_CASE("options that contradict each other are refused before anything is read") {
  const support::temp_folder work;
  const std::string source = small_model(work);
  const std::vector<std::pair<strings, std::string>> cases = {
      {{source, work / "out"}, "what to write is not said"},
      {{source, work / "out.xyz"}, "--to safetensors"},
      {{source, work / "o.pt", "--shard-size", "1GB"}, "--shard-size is for"},
      {{source, work / "o.safetensors", "--shard-size", "5G"}, "--shard-size"},
      {{source, work / "o.safetensors", "--shard-size", "5"}, "OUTPUT is called like one file"},
      {{source, work / "o.safetensors", "--ema"}, "--ema is for --to diffusers"},
      {{source, work / "o.safetensors", "--tokenizer", "x"}, "--tokenizer is for --to diffusers"},
      {{source, work / "o", "--to", "diffusers", "--ema", "--prune", "all"}, "drop one of the two"},
      {{source, work / "o.safetensors", "--dtype", "i8"}, "--dtype"},
      {{source, work / "o.safetensors", "--prune", "everything"}, "--prune"},
      {{source, work / "o.safetensors", "--overflow", "wrap"}, "--overflow"},
      {{source, work / "o.safetensors", "--memory", "1M"}, "--memory is below 8M"},
      {{source, work / "o.safetensors", "--variant", "fp16"}, "--variant"},
      {{source, work / "o.safetensors", "--key", "ema"}, "only a torch file has parts to choose from"},
      {{source, work / "o.safetensors", "--frobnicate"}, "--frobnicate"},
      {{source}, "OUTPUT"},
  };
  const auto before = faults::snapshot(work.path());
  for (const auto& [arguments, piece] : cases) {
    CAPTURE(arguments);
    const outcome run = programs::run("convert-weights", arguments);
    CAPTURE(run.err);
    CHECK(run.status == 2);
    CHECK(run.err.starts_with("convert-weights: USE "));
    CHECK(run.err.find(piece) != std::string::npos);
    CHECK(run.out.empty());
    CHECK((faults::snapshot(work.path()) == before));
  }
  const outcome run = programs::run("convert-weights", {source, work / "out", "--json"});
  const auto document = nlohmann::json::parse(run.out);
  CHECK(document["status"] == "failed");
  CHECK(document["error"]["code"] == "USE");
}

TEST_CASE("a summary for people, nothing for quiet ones, every option in the help") {
  const support::temp_folder work;
  const std::string source = small_model(work);
  const outcome text = programs::run("convert-weights", {source, work / "o.safetensors", "--prune", "all", "--drop", "count"});
  REQUIRE(text.status == 0);
  for (const char* piece : {"Converted ", " (safetensors) to ", "total: 2 tensors, 6 parameters, 20 B (f16 4 B, f32 16 B)",
                            "Dropped: 1 tensor (dropped by the pattern 'count')", "Pruned: 3 tensors (", "Wrote 1 file, ", "peak memory"})
    CHECK(text.out.find(piece) != std::string::npos);
  const outcome quiet = programs::run("convert-weights", {source, work / "q.pt", "--quiet"});
  CHECK(quiet.status == 0);
  CHECK(quiet.out.empty());
  CHECK(quiet.err.empty());
  const outcome full = programs::run("convert-weights", {source, work / "f.pt", "--json"}, {.stdout_path = "/dev/full"});
  CHECK(full.status == 17);
  const outcome help = programs::run("convert-weights", {"--help"});
  CHECK(help.status == 0);
  for (const char* option : {"--to", "--dtype", "--overflow", "--shard-size", "--prune", "--select", "--drop", "--variant", "--output-variant",
                             "--key", "--tokenizer", "--config", "--model", "--prediction-type", "--ema", "--verify-output", "--threads",
                             "--memory", "--dry-run", "--json", "--force", "--quiet", "--no-crc", "--max-header", "--max-pickle", "KiB"})
    CHECK(help.out.find(option) != std::string::npos);
}

TEST_CASE("a signal ends the run with 128 + its number and leaves nothing") {
  const support::temp_folder work;
  const std::string source = made_model(work.path(), "sdxl", "ckpt");
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    CAPTURE(number);
    bool interrupted = false;
    for (int attempt = 0; attempt < 40 && !interrupted; ++attempt) {
      fs::remove(work / "out.safetensors");
      const auto send = [&](pid_t child) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
        while (listing(work.path()).size() < 2 && std::chrono::steady_clock::now() < end) {
        }
        ::kill(child, number);
      };
      const strings slowly = {source, work / "out.safetensors", "--dtype", "bf16", "--threads", "1", "--tile", "4K", "--json"};
      const outcome run = programs::run("convert-weights", slowly, {.meanwhile = send});
      interrupted = run.status == 128 + number;
      if (!interrupted) continue;
      CHECK(run.err.find("convert-weights: CANC ") != std::string::npos);
      CHECK(nlohmann::json::parse(run.out)["error"]["exit_status"] == 128 + number);
      CHECK(listing(work.path()) == strings{"sdxl.ckpt"});
    }
    CHECK(interrupted);
  }
}
