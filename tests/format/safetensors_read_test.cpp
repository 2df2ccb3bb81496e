// SPDX-License-Identifier: MIT
#include "tensorsmith/format/safetensors/read.hpp"

#include "format/safetensors_build.hpp"
#include "support/catch.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;
using support::entry;
using support::safetensors_file;

TEST_CASE("a header is read into entries by offset") {
  const std::string json = "{" + entry("second", "BF16", "[2,3]", "[8,20]") + ",\"__metadata__\":{\"format\":\"pt\",\"title\":\"x\\n\"}," +
                           entry("first", "I64", "[]", "[0,8]") + "}";
  const auto header = ts::read_safetensors_header(*safetensors_file(json, 20));
  REQUIRE(header);
  REQUIRE(header->entries.size() == 2);
  CHECK(header->entries[0].name == "first");
  CHECK(header->entries[0].type == ts::dtype::i64);
  CHECK(header->entries[0].shape.empty());
  CHECK(header->entries[1].shape == ts::shape_type{2, 3});
  CHECK(header->entries[1].begin == 8);
  CHECK(header->entries[1].end == 20);
  CHECK(header->data_offset == 8 + json.size());
  CHECK(*header->find_metadata("format") == "pt");
  CHECK(*header->find_metadata("title") == "x\n");
  CHECK(header->find_metadata("none") == nullptr);
}

TEST_CASE("VAL-01: white space around the header's object") {
  CHECK(ts::read_safetensors_header(*safetensors_file("\r\n\t {" + entry("a", "U8", "[1]", "[0,1]") + "}\r\n\t ", 1)));
}

TEST_CASE("VAL-02: tensors that are not aligned") {
  std::string json = "{" + entry("a", "F64", "[1]", "[0,8]") + "}";
  while ((8 + json.size()) % 8 != 3) json += ' ';
  std::string bytes = support::u64_bytes(json.size()) + json + "ABCDEFGH";
  const auto tensors = ts::read_safetensors(support::as_file(bytes));
  REQUIRE(tensors);
  const auto data = ts::materialize(tensors->entries()[0].tensor, {});
  REQUIRE(data);
  CHECK(std::memcmp(data->data(), "ABCDEFGH", 8) == 0);
}

TEST_CASE("VAL-03: scalars and empty tensors") {
  const std::string json = "{" + entry("scalar", "F32", "[]", "[0,4]") + "," + entry("e1", "F32", "[0]", "[4,4]") + "," +
                           entry("e2", "F32", "[2,0]", "[4,4]") + "," + entry("after", "U8", "[1]", "[4,5]") + "," + entry("end", "U8", "[0]", "[5,5]") + "}";
  const auto tensors = ts::read_safetensors(safetensors_file(json, 5));
  REQUIRE(tensors);
  std::vector<std::string> names;
  for (const auto& e : tensors->entries()) {
    names.push_back(e.name);
    const auto bytes = ts::materialize(e.tensor, {});
    REQUIRE(bytes);
    CHECK(bytes->size() == e.tensor.info().bytes());
  }
  CHECK(names == std::vector<std::string>{"scalar", "e1", "e2", "after", "end"});
}

TEST_CASE("catalog entries know where they came from and where they lie") {
  const std::string json = "{" + entry("a.weight", "F16", "[2]", "[0,4]") + "}";
  const auto file = safetensors_file(json, 4);
  const auto tensors = ts::read_safetensors(file);
  REQUIRE(tensors);
  const ts::catalog_entry* e = tensors->find("a.weight");
  REQUIRE(e);
  CHECK(e->origin == "m.safetensors: 'a.weight'");
  const auto stored = e->tensor.source->stored();
  REQUIRE(stored);
  CHECK(stored->source == file);
  CHECK(stored->offset == 8 + json.size());
  CHECK(stored->length == 4);
}

TEST_CASE("every dtype of the format has a type and back") {
  for (const char* name : {"BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16",
                           "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"}) {
    const auto type = ts::safetensors_dtype_named(name);
    REQUIRE(type);
    CHECK(ts::safetensors_name(*type) == name);
  }
  CHECK(ts::safetensors_name(ts::dtype::i4).empty());
  CHECK(ts::safetensors_name(ts::dtype::c128).empty());
}
