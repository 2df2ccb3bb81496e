// SPDX-License-Identifier: MIT
#include "tensorsmith/format/safetensors/sharded.hpp"

#include <fstream>

#include "format/safetensors_build.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"

namespace ts = tensorsmith;
using support::entry;

namespace {

/// A model of two shards with tensors a, b and c, and a way to write its index.
struct model {
  support::temp_folder folder;
  std::string index = folder / "model.safetensors.index.json";

  model() {
    shard("1.safetensors", "{" + entry("a", "U8", "[4]", "[0,4]") + "," + entry("b", "U8", "[4]", "[4,8]") + "}", 8);
    shard("2.safetensors", "{" + entry("c", "F32", "[2]", "[0,8]") + "}", 8);
  }
  void shard(const std::string& name, const std::string& header, std::size_t data) const {
    std::ofstream(folder / name, std::ios::binary) << support::u64_bytes(header.size()) << header << std::string(data, 'd');
  }
  ts::result<ts::catalog> open(const std::string& map, const std::string& metadata = R"({"total_size":16})", ts::job run = {}) const {
    std::ofstream(index) << R"({"metadata":)" << metadata << R"(,"weight_map":)" << map << "}";
    return ts::read_sharded_safetensors(index, run);
  }
};

const std::string good = R"({"c":"2.safetensors","a":"1.safetensors","b":"1.safetensors"})";

}  // namespace

TEST_CASE("shards are joined in the order of their names") {
  const model m;
  const auto tensors = m.open(good);
  REQUIRE(tensors);
  std::vector<std::string> names;
  for (const auto& e : tensors->entries()) names.push_back(e.name);
  CHECK(names == std::vector<std::string>{"a", "b", "c"});
  CHECK(tensors->find("c")->origin == (m.folder / "2.safetensors") + ": 'c'");
}

TEST_CASE("IDX-01, IDX-02: file names that leave the folder") {
  const model m;
  for (const std::string bad : {"../1.safetensors", "../../o/x.safetensors", "/etc/passwd", ".", "", "sub/1.safetensors", "a\\\\b"}) {
    const auto tensors = m.open(R"({"a":")" + bad + R"("})");
    REQUIRE_FALSE(tensors);
    CHECK(tensors.error().code == ts::errc::path);
    CHECK(tensors.error().file == m.index);
    CHECK(tensors.error().place.find("at '/weight_map/a'") != std::string::npos);
  }
}

TEST_CASE("IDX-03: a shard that is a link out of the folder") {
  const model m;
  std::filesystem::create_symlink("/etc/passwd", m.folder / "3.safetensors");
  const auto tensors = m.open(R"({"a":"3.safetensors"})");
  REQUIRE_FALSE(tensors);
  CHECK(tensors.error().code == ts::errc::path);
}

TEST_CASE("IDX-04: all missing shards are listed before any is opened") {
  const model m;
  std::filesystem::create_directory(m.folder / "4.safetensors");
  const auto tensors = m.open(R"({"a":"1.safetensors","x":"3.safetensors","y":"4.safetensors"})");
  REQUIRE_FALSE(tensors);
  CHECK(tensors.error().message() == "MIS " + m.index +
                                         ": /weight_map: files that the index names are missing (expected 3 files, found missing 2: '3.safetensors', "
                                         "'4.safetensors'); download the missing files into the same folder");
}

TEST_CASE("IDX-05: index and shards that disagree") {
  const model m;
  const auto absent = m.open(R"({"c":"2.safetensors","a":"1.safetensors","b":"1.safetensors","d":"2.safetensors"})");
  REQUIRE_FALSE(absent);
  CHECK(absent.error().message() == "MIS " + m.index +
                                        ": /weight_map: tensors of the index are not in the files it names (found 1: '2.safetensors: d'); the index and "
                                        "its files are of different models; download them together");
  const auto unlisted = m.open(R"({"c":"2.safetensors","a":"1.safetensors"})");
  REQUIRE_FALSE(unlisted);
  CHECK(unlisted.error().what == "tensors of the files are not listed for them in the index");
  CHECK(unlisted.error().found == "1: '1.safetensors: b'");
  m.shard("2.safetensors", "{" + entry("c", "F32", "[1]", "[0,4]") + "," + entry("a", "F32", "[1]", "[4,8]") + "}", 8);
  const auto twice = m.open(good);
  REQUIRE_FALSE(twice);
  CHECK(twice.error().found == "1: '2.safetensors: a'");
}

TEST_CASE("IDX-06: damaged indexes") {
  const model m;
  const auto code = [&](const std::string& map) {
    const auto tensors = m.open(map);
    return tensors ? "accepted" : std::string(ts::code_name(tensors.error().code));
  };
  CHECK(code(R"({"a":1})") == "FMT");
  CHECK(code(R"({"a":null})") == "FMT");
  CHECK(code(R"({"a":["1.safetensors"]})") == "FMT");
  CHECK(code(R"({"a":{}})") == "FMT");
  CHECK(code("[]") == "FMT");
  CHECK(code("{}") == "FMT");
  CHECK(code(R"({"a":"1.safetensors","a":"1.safetensors"})") == "FMT");
  CHECK(code(good) == "accepted");
  std::string many = "{";
  for (int i = 0; i < 20'000; ++i) many += (i ? ",\"" : "\"") + std::to_string(i) + "\":\"" + std::to_string((i * 7919) % 20'000) + "\"";
  CHECK(code(many + "}") == "LIM");
  std::ofstream(m.index) << R"({"metadata":{}})";
  ts::job run;
  const auto none = ts::read_sharded_safetensors(m.index, run);
  REQUIRE_FALSE(none);
  CHECK(none.error().message() == "FMT " + m.index + ": the index has no weight_map (expected \"weight_map\": {tensor name: file name})");
}

TEST_CASE("IDX-06: a wrong total size is noted") {
  const model m;
  std::ofstream(m.index) << R"({"metadata":{"total_size":17,"other":[1,{"a":null}]},"weight_map":)" << good << "}";
  ts::job run;
  REQUIRE(ts::read_sharded_safetensors(m.index, run));
  REQUIRE(run.notes.size() == 1);
  CHECK(run.notes[0].text == "metadata.total_size says 17 bytes, the tensors have 16");
}

TEST_CASE("IDX-07: a shard that was cut off fails when it is opened") {
  const model m;
  std::filesystem::resize_file(m.folder / "2.safetensors", std::filesystem::file_size(m.folder / "2.safetensors") - 5);
  const auto tensors = m.open(good);
  REQUIRE_FALSE(tensors);
  CHECK(tensors.error().code == ts::errc::malformed);
  CHECK(tensors.error().file == m.folder / "2.safetensors");
  CHECK(tensors.error().what == "the file is cut off");
}
