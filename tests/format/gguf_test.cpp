// SPDX-License-Identifier: MIT
#include <map>

#include "format/gguf_bytes.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/gguf/read.hpp"
#include "tensorsmith/format/numpy/npz.hpp"
#include "tensorsmith/io/file.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;
using support::file_of;
using support::gguf_bytes;
using support::gguf_pair;
using support::gguf_parts;
using support::gguf_tensor_bytes;
using support::little;
using ts::dtype;

namespace {

std::shared_ptr<const ts::byte_source> data_file(const std::string& name) {
  auto file = ts::open_file(support::data("gguf/" + name).string(), name);
  REQUIRE(file);
  return *file;
}

std::vector<std::byte> bytes_of(const ts::tensor_ref& tensor, std::size_t tile_bytes = 1u << 20) {
  std::vector<std::byte> bytes(tensor.info().bytes());
  ts::memory_sink sink(bytes);
  ts::placement whole{tensor.source, {{&sink, 0}}, "t"};
  ts::job run;
  run.threads = 2;
  run.tile_bytes = tile_bytes;
  const auto done = ts::execute(std::span(&whole, 1), run);
  if (!done) FAIL(done.error().message());
  return bytes;
}

}  // namespace

TEST_CASE("a file of gguf-py: shapes, bytes, and quantized tensors as gguf-py decodes them", "[format]") {
  const auto file = data_file("tiny.gguf");
  CHECK(ts::looks_like_gguf(*file));
  const auto read = ts::read_gguf(file);
  const auto expected = ts::read_npz(data_file("expected.npz"));
  REQUIRE(read);
  REQUIRE(expected);
  CHECK(read->version == 3);
  CHECK(read->alignment == 32);
  REQUIRE(read->tensors.size() == expected->tensors.size());
  REQUIRE(read->stored_types.size() == read->tensors.size());
  const std::map<std::string, std::string> types(read->stored_types.begin(), read->stored_types.end());
  CHECK(types.at("quantized.Q8_0") == "Q8_0");
  CHECK(types.at("quantized.Q4_0") == "Q4_0");
  CHECK(types.at("quantized.BF16") == "BF16");
  CHECK(types.at("direct.float64") == "F64");
  for (const ts::catalog_entry& wanted : expected->tensors.entries()) {
    INFO(wanted.name);
    const ts::catalog_entry* got = read->tensors.find(wanted.name);
    REQUIRE(got);
    CHECK(got->tensor.shape() == wanted.tensor.shape());
    const auto same_type = ts::cast(got->tensor, wanted.tensor.type());  // BF16 is recorded as f32
    REQUIRE(same_type);
    for (const std::size_t tile : {std::size_t{1} << 20, std::size_t{512}, std::size_t{1}})
      CHECK(bytes_of(*same_type, tile) == bytes_of(wanted.tensor));
  }
  CHECK(read->tensors.find("quantized.Q8_0")->tensor.type() == dtype::f32);
  CHECK(read->tensors.find("quantized.BF16")->tensor.type() == dtype::bf16);
}

TEST_CASE("views of quantized tensors", "[format]") {
  const auto read = ts::read_gguf(data_file("tiny.gguf"));
  REQUIRE(read);
  for (const std::string name : {"quantized.Q8_0", "quantized.Q4_0"}) {
    const ts::tensor_ref& tensor = read->tensors.find(name)->tensor;
    const auto all = bytes_of(tensor);
    const auto rows = ts::sliced_rows(tensor, 1, 3);
    REQUIRE(rows);
    CHECK(bytes_of(*rows) == std::vector<std::byte>(all.begin() + 4 * 96, all.begin() + 4 * 4 * 96));
    const auto flat = ts::reshaped(tensor, {480});
    REQUIRE(flat);
    CHECK(bytes_of(*flat) == all);
    CHECK(bytes_of(*ts::sliced_rows(*flat, 64, 32)) == std::vector<std::byte>(all.begin() + 4 * 64, all.begin() + 4 * 96));
    CHECK_FALSE(ts::sliced_rows(*flat, 16, 32));
    const auto turned = ts::transposed(tensor);
    REQUIRE(turned);
    CHECK(bytes_of(*ts::transposed(*turned)) == all);
    const auto turned_bytes = bytes_of(*turned, 4096);
    CHECK(std::memcmp(turned_bytes.data() + 4 * (7 * 5 + 2), all.data() + 4 * (2 * 96 + 7), 4) == 0);
  }
}

TEST_CASE("metadata as text", "[format]") {
  const auto read = ts::read_gguf(data_file("tiny.gguf"));
  REQUIRE(read);
  const std::map<std::string, std::string> metadata(read->metadata.begin(), read->metadata.end());
  CHECK(metadata.at("general.architecture") == "tiny");
  CHECK(metadata.at("t.u8") == "200");
  CHECK(metadata.at("t.i8") == "-100");
  CHECK(metadata.at("t.u16") == "60000");
  CHECK(metadata.at("t.i16") == "-30000");
  CHECK(metadata.at("t.u32") == "4000000000");
  CHECK(metadata.at("t.i32") == "-2000000000");
  CHECK(metadata.at("t.f32") == "0.25");
  CHECK(metadata.at("t.bool") == "true");
  CHECK(metadata.at("t.string") == "größe");
  CHECK(metadata.at("t.u64") == "9223372036854775808");
  CHECK(metadata.at("t.i64") == "-4611686018427387904");
  CHECK(metadata.at("t.f64") == "0.1");
  CHECK(metadata.at("t.short") == "[1, 2, 3]");
  CHECK(metadata.at("t.long") == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, …(100 values)]");
  CHECK(metadata.at("t.words") == "[a, bc, ]");
}

TEST_CASE("versions 2 and 3, other alignments, scalars, empty tensors, no tensors", "[format]") {
  for (const std::uint32_t version : {2u, 3u})
    for (const std::uint64_t alignment : {std::uint64_t{1}, std::uint64_t{8}, std::uint64_t{32}, std::uint64_t{4096}}) {
      gguf_parts p{.pairs = {gguf_pair("general.alignment", 4, little(alignment, 4))}, .version = version, .alignment = alignment};
      const std::uint64_t second = (4 + alignment - 1) / alignment * alignment;
      p.tensors = {gguf_tensor_bytes("scalar", {}, 0, 0), gguf_tensor_bytes("bytes", {3, 2}, 24, second), gguf_tensor_bytes("none", {0, 7}, 0, 0)};
      p.data = std::string(second, '\1') + "abcdef";
      const auto read = ts::read_gguf(file_of(gguf_bytes(p), "m.gguf"));
      INFO(version << ", " << alignment);
      REQUIRE(read);
      CHECK(read->alignment == alignment);
      CHECK(read->version == version);
      CHECK(read->tensors.find("scalar")->tensor.shape().empty());
      CHECK(read->tensors.find("bytes")->tensor.shape() == ts::shape_type{2, 3});
      CHECK(std::string(reinterpret_cast<const char*>(bytes_of(read->tensors.find("bytes")->tensor).data()), 6) == "abcdef");
      CHECK(read->tensors.find("none")->tensor.info().bytes() == 0);
    }
  const auto empty = ts::read_gguf(file_of(gguf_bytes({}), "m.gguf"));
  REQUIRE(empty);
  CHECK(empty->tensors.empty());
}

TEST_CASE("NUM-03: dequantized blocks follow the formula, zero scales give zeros", "[format]") {
  std::string q8, q4;
  for (const std::uint16_t scale : {std::uint16_t{0x3800}, std::uint16_t{0}, std::uint16_t{0x8001}, std::uint16_t{0xFBFF}}) {
    q8 += little(scale, 2);
    q4 += little(scale, 2);
    for (int i = 0; i < 32; ++i) q8 += static_cast<char>(i * 9 - 128);
    for (int i = 0; i < 16; ++i) q4 += static_cast<char>(i * 17);
  }
  for (const bool eight : {true, false}) {
    gguf_parts p{.tensors = {gguf_tensor_bytes("w", {64, 2}, eight ? 8 : 2, 0)}, .data = eight ? q8 : q4};
    const auto read = ts::read_gguf(file_of(gguf_bytes(p), "m.gguf"));
    REQUIRE(read);
    const auto bytes = bytes_of(read->tensors.entries()[0].tensor);
    const float scales[] = {0.5f, 0.0f, -5.9604645e-08f, -65504.0f};
    for (std::size_t i = 0; i < 128; ++i) {
      const std::size_t j = i % 32;
      const int code = eight ? static_cast<std::int8_t>(static_cast<int>(j) * 9 - 128) : static_cast<int>(j % 16) - 8;
      CHECK(ts::detail::load_as<float>(bytes.data() + 4 * i) == static_cast<float>(code) * scales[i / 32]);
    }
  }
}
