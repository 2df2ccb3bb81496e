// SPDX-License-Identifier: MIT
//
// Indexes of shards that are wrong, or lead elsewhere; folders with several files of the same weights.
#include <sys/resource.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"

namespace fs = std::filesystem;
using faults::converted;
using faults::refused;

namespace {

/// Two shards with the tensors a, b and c, in a folder of their own.
struct model {
  support::temp_folder work;
  std::string folder = work / "model", index = folder + "/model.safetensors.index.json", out = work / "out.safetensors";
  nlohmann::json map = {{"a", "1.safetensors"}, {"b", "1.safetensors"}, {"c", "2.safetensors"}};

  model() {
    fs::create_directories(folder);
    faults::safetensors_parts one, two;
    faults::add_tensor(one, "a", "U8", {4}, "aaaa");
    faults::add_tensor(one, "b", "U8", {4}, "bbbb");
    faults::add_tensor(two, "c", "F32", {2}, "cccccccc");
    faults::write_parts(folder + "/1.safetensors", one);
    faults::write_parts(folder + "/2.safetensors", two);
  }
  void write(const nlohmann::json& metadata = {{"total_size", 16}}) const {
    programs::write_text(index, nlohmann::json{{"metadata", metadata}, {"weight_map", map}}.dump());
  }
  void refuses(const std::string& code, const std::string& message) const {
    write();
    refused("convert-weights", work.path(), {index, out}, code, message);
  }
  /// Where the value of "a" ends in the index: values are read before they are judged.
  std::string place_of_a() const {
    const std::string text = programs::read_text(index), value = map["a"].dump();
    return "byte offset " + std::to_string(text.find("\"a\":") + 4 + value.size());
  }
};

const std::map<std::string, std::string> all = {{"a", "U8[4]aaaa"}, {"b", "U8[4]bbbb"}, {"c", "F32[2]cccccccc"}};

}  // namespace

TEST_CASE("IDX-01, IDX-02: file names that lead out of the folder") {
  model m;
  programs::write_text(m.work / "outside.safetensors", programs::read_text(m.folder + "/1.safetensors"));
  fs::create_directories(m.folder + "/sub");
  fs::copy_file(m.folder + "/1.safetensors", m.folder + "/sub/1.safetensors");
  const std::pair<const char*, const char*> cases[] = {{"../outside.safetensors", "it leaves its folder"},
                                                       {"../../o/x.safetensors", "it leaves its folder"},
                                                       {"sub/../1.safetensors", "it lies in another folder"},
                                                       {"/etc/passwd", "it is absolute"},
                                                       {".", "it has an empty part or '.'"},
                                                       {"./1.safetensors", "it has an empty part or '.'"},
                                                       {"", "it is empty"},
                                                       {"sub/1.safetensors", "it lies in another folder"}};
  for (const auto& [name, why] : cases) {
    m.map["a"] = name;
    m.write();
    m.refuses("PTH", m.index + ": " + m.place_of_a() + " at '/weight_map/a': the path '" + name + "' is refused: " + why +
                         " (expected the name of a file in the same folder)");
  }
}

TEST_CASE("IDX-03: a shard that is a link out of the folder") {
  model m;
  fs::rename(m.folder + "/1.safetensors", m.work / "elsewhere");
  fs::create_symlink(m.work / "elsewhere", m.folder + "/1.safetensors");
  const std::string real = fs::canonical(m.work.path()).string();
  m.refuses("PTH", m.folder + "/1.safetensors: the path is a symbolic link that leaves its folder (expected a file below '" + real +
                       "/model', found '" + real + "/elsewhere'); copy the file into the folder");
  fs::remove(m.folder + "/1.safetensors");
  fs::rename(m.work / "elsewhere", m.folder + "/inside");
  fs::create_symlink("inside", m.folder + "/1.safetensors");
  m.write();
  converted({m.index, m.out});
  CHECK(faults::tensors_of(m.out) == all);
}

TEST_CASE("IDX-04: all missing shards are named before work begins") {
  model m;
  fs::create_directory(m.folder + "/4.safetensors");
  m.map["x"] = "3.safetensors";
  m.map["y"] = "4.safetensors";
  m.refuses("MIS", m.index + ": /weight_map: files that the index names are missing (expected 4 files, found missing 2: '3.safetensors', "
                             "'4.safetensors'); download the missing files into the same folder");
}

TEST_CASE("IDX-05: tensors that only the index or only the files have") {
  model m;
  const std::string end = "); the index and its files are of different models; download them together";
  m.map["d"] = "2.safetensors";
  m.refuses("MIS", m.index + ": /weight_map: tensors of the index are not in the files it names (found 1: '2.safetensors: d'" + end);
  for (int i = 0; i < 30; ++i) m.map["many." + std::to_string(i)] = "2.safetensors";
  m.refuses("MIS", m.index + ": /weight_map: tensors of the index are not in the files it names (found 31: '2.safetensors: d', '2.safetensors: many.0', "
                             "'2.safetensors: many.1', '2.safetensors: many.10', '2.safetensors: many.11', '2.safetensors: many.12', '2.safetensors: "
                             "many.13', '2.safetensors: many.14', '2.safetensors: many.15', '2.safetensors: many.16', …" + end);
  m.map = {{"a", "1.safetensors"}, {"c", "2.safetensors"}};
  m.refuses("MIS", m.index + ": /weight_map: tensors of the files are not listed for them in the index (found 1: '1.safetensors: b'" + end);
  faults::safetensors_parts two;  // a is in both files, with other bytes
  faults::add_tensor(two, "c", "F32", {2}, "cccccccc");
  faults::add_tensor(two, "a", "U8", {4}, "AAAA");
  faults::write_parts(m.folder + "/2.safetensors", two);
  m.map["b"] = "1.safetensors";
  m.refuses("MIS", m.index + ": /weight_map: tensors of the files are not listed for them in the index (found 1: '2.safetensors: a'" + end);
}

TEST_CASE("IDX-06: wrong totals are noted, wrong values and very many files refused") {
  model m;
  m.write({{"total_size", 17}});
  const auto report = converted({m.index, m.out});
  CHECK(report["notes"].dump().find("metadata.total_size says 17 bytes, the tensors have 16") != std::string::npos);
  const auto refuses = [&](const std::string& text, const std::string& code, const std::string& message) {
    programs::write_text(m.index, text);
    refused("convert-weights", m.work.path(), {m.index, m.work / "other.safetensors"}, code, m.index + message);
  };
  refuses(R"({"weight_map":{"a":1}})", "FMT", ": byte offset 21 at '/weight_map/a': a value of weight_map is no file name (expected a string, found an integer)");
  refuses(R"({"weight_map":{"a":null}})", "FMT", ": byte offset 23 at '/weight_map/a': a value of weight_map is no file name (expected a string, found null)");
  refuses(R"({"weight_map":[]})", "FMT", ": byte offset 15 at '/weight_map': weight_map is no object (expected an object, found an array)");
  refuses("{}", "FMT", ": the index has no weight_map (expected \"weight_map\": {tensor name: file name})");
  refuses(R"({"weight_map":{"a":"1.safetensors","a":"2.safetensors"}})", "FMT",
          ": byte offset 38 at '/weight_map/a': the key 'a' appears twice in one object (expected unique keys, found it at byte offsets 18 and 38)");
  std::string many = "{\"weight_map\":{";
  for (int i = 0; i < 1'000'000; ++i) many += (i ? ",\"" : "\"") + std::to_string(i) + "\":\"" + std::to_string((i * 7919LL) % 1'000'000) + "\"";
  programs::write_text(m.index, many + "}}");
  const auto run = programs::run("convert-weights", {m.index, m.work / "other.safetensors"});
  CHECK(run.status == faults::status_of("LIM"));
  CHECK(run.err.find("the index names too many files (expected at most 10000)") != std::string::npos);
}

TEST_CASE("IDX-07: one shard cut off stops the conversion before anything is written") {
  model m;
  faults::safetensors_parts large;
  faults::add_tensor(large, "c", "F32", {2'000'000}, std::string(8'000'000, 'c'));
  faults::write_parts(m.folder + "/2.safetensors", large);
  const auto size = fs::file_size(m.folder + "/2.safetensors");
  fs::resize_file(m.folder + "/2.safetensors", size - 5'000'000);
  m.refuses("FMT", m.folder + "/2.safetensors: byte offset " + std::to_string(size - 5'000'000) + ": the file is cut off (expected " +
                       std::to_string(size) + " bytes, found " + std::to_string(size - 5'000'000) + ", 5000000 missing); download or copy it again");
}

TEST_CASE("IDX-08: of several files with the same weights the documented one is read, and it is said") {
  model m;
  const auto single = [&](const std::string& name, const std::string& bytes) {
    faults::safetensors_parts parts;
    faults::add_tensor(parts, "a", "U8", {4}, bytes);
    faults::write_parts(m.folder + "/" + name, parts);
  };
  m.write();
  single("model.fp16.safetensors", "half");
  single("model.safetensors", "full");
  single("pytorch_model.bin", "pick");  // contents decide what it is; its name says which of the files it is
  const auto found = [&](const faults::strings& options) {
    faults::strings arguments = {m.folder, m.out, "--force"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const auto report = converted(arguments);
    return std::pair(faults::tensors_of(m.out)["a"], report["notes"].dump());
  };
  CHECK(found({}).first == "U8[4]full");
  CHECK(found({}).second.find("weights are read from 'model.safetensors', not from 'model.safetensors.index.json', 'pytorch_model.bin', "
                              "'model.fp16.safetensors'") != std::string::npos);
  CHECK(found({"--variant", "fp16"}).first == "U8[4]half");
  CHECK(found({"--prefer", "torch"}).first == "U8[4]pick");
  fs::remove(m.folder + "/model.safetensors");
  CHECK(found({}).first == "U8[4]aaaa");
  refused("convert-weights", m.work.path(), {m.folder, m.work / "none.safetensors", "--variant", "fp32"}, "MIS",
          m.folder + ": the folder has no variant 'fp32' (found 'fp16'); correct --variant, or leave it out");
}
