// SPDX-License-Identifier: MIT
//
// GGUF files that must be refused. What other readers of the format got wrong, each with its row: sizes that wrap, counts that are
// believed, asserts in place of checks, extents of zero.
#include <chrono>

#include "format/gguf_bytes.hpp"
#include "support/bounded_memory.hpp"
#include "support/catch.hpp"
#include "tensorsmith/format/gguf/read.hpp"
#include "tensorsmith/io/os.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;
using support::bounded_memory;
using support::file_of;
using support::gguf_array;
using support::gguf_bytes;
using support::gguf_pair;
using support::gguf_parts;
using support::gguf_string;
using support::gguf_tensor_bytes;
using support::little;

namespace {

std::string verdict(std::string_view bytes, const ts::limits& bounds = {}) {
  const auto read = ts::read_gguf(file_of(bytes, "m.gguf"), bounds);
  return read ? "accepted" : read.error().message();
}
/// The verdict on one tensor, called "w", over `data` bytes.
std::string tensor_verdict(const std::vector<std::uint64_t>& dims, std::uint32_t type, std::uint64_t offset, std::size_t data) {
  return verdict(gguf_bytes({.tensors = {gguf_tensor_bytes("w", dims, type, offset)}, .data = std::string(data, '\1')}));
}
std::string pair_verdict(const std::string& pair) { return verdict(gguf_bytes({.pairs = {pair}})); }

constexpr std::uint64_t huge = ~std::uint64_t{0};

const gguf_parts small{
    .pairs = {gguf_pair("k", 8, gguf_string("v")), gguf_pair("n", 9, gguf_array(8, 2, gguf_string("a") + gguf_string("b"))), gguf_pair("b", 7, "\1")},
    .tensors = {gguf_tensor_bytes("w", {2, 3}, 0, 0), gguf_tensor_bytes("q", {32}, 8, 32)},
    .data = std::string(32 + 34, '\x11')};

}  // namespace

TEST_CASE("GGUF-01: files too short for a header, other magic bytes") {
  const std::string bytes = gguf_bytes({});
  CHECK(verdict(bytes) == "accepted");
  for (std::size_t n = 0; n < 24; ++n)
    CHECK(verdict(bytes.substr(0, n)) ==
          "FMT m.gguf: byte offset 0: the file is too short for a GGUF header (expected 24 bytes, found " + std::to_string(n) + ")");
  CHECK(verdict("GGML" + bytes.substr(4)) == "FMT m.gguf: byte offset 0: the file does not start as a GGUF file (expected GGUF, found 'GGML')");
}

TEST_CASE("GGUF-02: versions 0, 1, 4 and big-endian files") {
  for (const std::uint32_t version : {0u, 1u, 4u, 0x00010003u})
    CHECK(verdict(gguf_bytes({.version = version})) ==
          "UNS m.gguf: byte offset 4: the file has an unsupported version of GGUF (expected 2 or 3, found " + std::to_string(version) + ")");
  for (const std::uint32_t version : {0x02000000u, 0x03000000u})
    CHECK(verdict(gguf_bytes({.version = version})) ==
          "UNS m.gguf: byte offset 4: the file is a big-endian GGUF file (expected a little-endian one); convert it "
          "with gguf-py on a little-endian machine");
}

TEST_CASE("GGUF-03: counts that the file has no room for, before anything is allocated") {
  bounded_memory(0, [] {
    for (const std::uint64_t count : {huge, huge / 2, std::uint64_t{1} << 62, std::uint64_t{2}}) {
      const std::string shown = std::to_string(count);
      CHECK(verdict("GGUF" + little(3, 4) + little(0, 8) + little(count, 8) + std::string(13, '\0')) ==
            "FMT m.gguf: byte offset 16: the file has no room for its key-value pairs (expected at most 1, found " + shown + ")");
      CHECK(verdict("GGUF" + little(3, 4) + little(count, 8) + little(0, 8) + std::string(24, '\0')) ==
            "FMT m.gguf: byte offset 8: the file has no room for its tensors (expected at most 1, found " + shown + ")");
    }
  });
  ts::limits few;
  few.tensors = 2;
  CHECK(verdict(gguf_bytes(small), few) ==
        "LIM m.gguf: byte offset 16: the file has too many key-value pairs (expected at most 2, found 3); raise limits::tensors "
        "(--max-tensors) if you trust it");
  few.tensors = 1;
  CHECK(verdict(gguf_bytes({.tensors = small.tensors, .data = small.data}), few) ==
        "LIM m.gguf: byte offset 8: the file has too many tensors (expected at most 1, found 2); raise limits::tensors (--max-tensors) if you trust "
        "it");
}

TEST_CASE("GGUF-04: strings and arrays that end past the file, with lengths that wrap") {
  const std::string advice = "; download or copy it again";
  for (const std::uint64_t length : {huge, huge - 7, huge / 2, std::uint64_t{1000}}) {
    const std::string shown = std::to_string(length);
    CHECK(verdict("GGUF" + little(3, 4) + little(0, 8) + little(1, 8) + little(length, 8) + std::string(13, 'k')) ==
          "FMT m.gguf: byte offset 32: a key ends past the end of the file (expected " + shown + " bytes, found 13)" + advice);
    CHECK(pair_verdict(gguf_pair("k", 8, little(length, 8) + "abc")) ==
          "FMT m.gguf: byte offset 45: a string ends past the end of the file (expected " + shown + " bytes, found 3)" + advice);
    CHECK(pair_verdict(gguf_pair("k", 9, gguf_array(4, length, "12345678"))) ==
          "FMT m.gguf: byte offset 41: the array 'k' ends past the end of the file (expected at most 2 values, found " + shown + ")" + advice);
    CHECK(pair_verdict(gguf_pair("k", 9, gguf_array(8, length, little(0, 8)))) ==
          "FMT m.gguf: byte offset 41: the array 'k' ends past the end of the file (expected at most 1 values, found " + shown + ")" + advice);
    CHECK(verdict(gguf_bytes({.tensors = {little(length, 8) + std::string(24, 'w')}})).find("the name of a tensor ends past the end of the file") !=
          std::string::npos);
  }
  std::string strings;
  for (int i = 0; i < 20; ++i) strings += gguf_string("s");
  CHECK(pair_verdict(gguf_pair("k", 9, gguf_array(8, 21, strings + little(9, 8)))) ==
        "FMT m.gguf: byte offset 237: a string ends past the end of the file (expected 9 bytes, found 0)" + advice);
}

TEST_CASE("GGUF-05: values of unknown types, nested arrays, booleans of 2") {
  CHECK(pair_verdict(gguf_pair("k", 13, "12345678")) ==
        "FMT m.gguf: byte offset 33: the value of 'k' has an unknown type (expected 0 to 12, found 13)");
  CHECK(pair_verdict(gguf_pair("k", 0xFFFFFFFF, "12345678")) ==
        "FMT m.gguf: byte offset 33: the value of 'k' has an unknown type (expected 0 to 12, found 4294967295)");
  CHECK(pair_verdict(gguf_pair("k", 9, gguf_array(13, 1, "12345678"))) ==
        "FMT m.gguf: byte offset 37: the array 'k' has elements of an unknown type (expected 0 to 12, found 13)");
  std::string nested = gguf_array(0, 1, "x");
  for (int i = 0; i < 100'000; ++i) nested = little(9, 4) + little(1, 8) + (i % 1000 == 0 ? nested : "");
  CHECK(pair_verdict(gguf_pair("k", 9, nested)) ==
        "UNS m.gguf: byte offset 37: the value of 'k' is an array of arrays (expected an array of numbers or strings)");
  CHECK(pair_verdict(gguf_pair("k", 7, "\2")) == "FMT m.gguf: byte offset 37: the boolean 'k' is neither 0 nor 1 (expected 0 or 1, found 2)");
}

TEST_CASE("GGUF-06: keys and tensors that appear twice, names that are no UTF-8 or too long") {
  CHECK(verdict(gguf_bytes({.pairs = {gguf_pair("k", 0, "1"), gguf_pair("j", 0, "1"), gguf_pair("k", 1, "2")}})) ==
        "FMT m.gguf: byte offset 52: the key 'k' appears twice (expected unique keys, found also at byte offset 24)");
  const std::string a = gguf_tensor_bytes("a", {8}, 0, 0), again = gguf_tensor_bytes("a", {8}, 0, 32);
  CHECK(verdict(gguf_bytes({.tensors = {a, again}, .data = std::string(64, 'x')})) ==
        "FMT m.gguf: byte offset 57: the tensor 'a' appears twice (expected unique names, found also at byte offset 24)");
  CHECK(pair_verdict(gguf_pair("k\xFF", 0, "1")) == "FMT m.gguf: byte offset 33: a key is no UTF-8 text (found 'k\\xff')");
  CHECK(verdict(gguf_bytes({.tensors = {gguf_tensor_bytes("\xC0\x80", {8}, 0, 0)}, .data = std::string(32, 'x')})) ==
        "FMT m.gguf: byte offset 32: the name of a tensor is no UTF-8 text (found '\\xc0\\x80')");
  CHECK(pair_verdict(gguf_pair(std::string(65537, 'k'), 0, "1")) ==
        "LIM m.gguf: byte offset 24: a key is too long (expected at most 65536 bytes, found 65537); raise limits::name_bytes (--max-name) if you "
        "trust it");
}

TEST_CASE("GGUF-07: alignments that are zero, no power of two, of another type, or huge") {
  const auto with = [](std::uint32_t type, std::string value) { return pair_verdict(gguf_pair("general.alignment", type, value)); };
  for (const std::uint32_t value : {0u, 3u, 48u, 0xFFFFFFFFu})
    CHECK(with(4, little(value, 4)) ==
          "FMT m.gguf: byte offset 53: 'general.alignment' is no power of two (expected a power of two, found " + std::to_string(value) + ")");
  CHECK(with(10, little(32, 8)) ==
        "FMT m.gguf: byte offset 49: 'general.alignment' has a value of the wrong type (expected type 4 (u32), found type 10)");
  CHECK(with(4, little(1u << 31, 4)) == "accepted");
  CHECK(verdict(gguf_bytes({.pairs = {gguf_pair("general.alignment", 4, little(1u << 31, 4))}, .tensors = {gguf_tensor_bytes("w", {1}, 0, 0)}})) ==
        "FMT m.gguf: byte offset 90: the file is cut off (expected data from byte 2147483648 on, found 90 bytes); download or copy it again");
}

TEST_CASE("GGUF-08: sizes that overflow at every step, also beside an extent of zero") {
  constexpr std::uint64_t half = std::uint64_t{1} << 63, big = std::uint64_t{1} << 40;
  for (const auto& dims :
       std::vector<std::vector<std::uint64_t>>{{half, 2}, {2, half}, {huge, huge}, {big, big}, {big, big, 0}, {1u << 22, 1u << 22, 1u << 22, 2}})
    CHECK(tensor_verdict(dims, 0, 0, 32).starts_with("FMT m.gguf: byte offset 37: the size of the tensor 'w' overflows 64 bits (found shape ["));
  for (const auto& dims : std::vector<std::vector<std::uint64_t>>{{half}, {std::uint64_t{1} << 48}, {big, 256}, {half, 0}, {0, half}})
    CHECK(tensor_verdict(dims, 0, 0, 32)
              .starts_with("LIM m.gguf: byte offset 37: the tensor 'w' is too large (expected fewer than 281474976710656 elements, found "));
  CHECK(tensor_verdict({half, 2}, 8, 0, 34).find("overflows 64 bits") != std::string::npos);  // block types, CVE-2025-53630
  CHECK(tensor_verdict({std::uint64_t{1} << 47}, 8, 0, 34).find("ends past the end of the file") != std::string::npos);
}

TEST_CASE("GGUF-09: extents of zero, no extents, five and a million dimensions") {
  CHECK(tensor_verdict({0}, 0, 0, 0).starts_with("FMT m.gguf: byte offset 24: the file is cut off") == false);
  for (const auto& dims : std::vector<std::vector<std::uint64_t>>{{0}, {0, 5}, {5, 0}, {0, 0, 0, 0}}) {
    const auto read = ts::read_gguf(
        file_of(gguf_bytes({.tensors = {gguf_tensor_bytes("w", dims, 8, 0), gguf_tensor_bytes("v", {1}, 0, 0)}, .data = "1234"}), "m.gguf"));
    if (dims[0] != 0) {
      REQUIRE_FALSE(read);  // 5 columns are no whole block
      continue;
    }
    REQUIRE(read);
    const auto bytes = ts::materialize(read->tensors.find("w")->tensor, {});
    REQUIRE(bytes);
    CHECK(bytes->empty());
  }
  CHECK(tensor_verdict({}, 0, 0, 4) == "accepted");
  CHECK(tensor_verdict({1, 1, 1, 1, 1}, 0, 0, 4) ==
        "UNS m.gguf: byte offset 33: the tensor 'w' has too many dimensions (expected at most 4, found 5)");
  CHECK(verdict(gguf_bytes({.tensors = {gguf_string("w") + little(1'000'000, 4) + std::string(100, '\1')}})) ==
        "UNS m.gguf: byte offset 33: the tensor 'w' has too many dimensions (expected at most 4, found 1000000)");
}

TEST_CASE("GGUF-10: tensor types that are not read, by name, and numbers that are no type") {
  for (const auto& [type, name] :
       std::vector<std::pair<std::uint32_t, std::string>>{{3, "Q4_1"}, {6, "Q5_0"}, {12, "Q4_K"}, {14, "Q6_K"}, {16, "IQ2_XXS"}, {39, "MXFP4"}})
    CHECK(
        tensor_verdict({256}, type, 0, 256) ==
        "UNS m.gguf: byte offset 45: the tensor 'w' has an unsupported type (expected F32, F16, BF16, F64, I8, I16, I32, I64, Q8_0 or Q4_0, found " +
            name + "); convert the file to one of these with llama-quantize");
  CHECK(tensor_verdict({256}, 1000, 0, 256) ==
        "UNS m.gguf: byte offset 45: the tensor 'w' has an unsupported type (expected F32, F16, BF16, F64, I8, I16, I32, I64, Q8_0 or Q4_0, found "
        "type 1000)");
}

TEST_CASE("GGUF-11: quantized tensors whose rows are no whole blocks") {
  for (const std::uint64_t columns : {std::uint64_t{1}, std::uint64_t{31}, std::uint64_t{33}, std::uint64_t{4544 + 16}}) {
    CHECK(tensor_verdict({columns, 32}, 8, 0, 1000) ==
          "FMT m.gguf: byte offset 37: the tensor 'w' has rows that are no whole blocks of Q8_0 (expected a multiple of 32 "
          "columns, found " +
              std::to_string(columns) + ")");
    CHECK(tensor_verdict({columns}, 2, 0, 1000).find("no whole blocks of Q4_0") != std::string::npos);
  }
  CHECK(tensor_verdict({}, 8, 0, 34).find("no whole blocks of Q8_0") != std::string::npos);
}

TEST_CASE("GGUF-12: offsets that are not aligned, overlap, leave holes, or lie past the end") {
  const auto two = [](std::uint64_t first, std::uint64_t second, std::size_t data) {
    return verdict(
        gguf_bytes({.tensors = {gguf_tensor_bytes("a", {10}, 0, first), gguf_tensor_bytes("b", {2}, 0, second)}, .data = std::string(data, 'x')}));
  };
  CHECK(two(0, 64, 72) == "accepted");
  CHECK(two(32, 0, 72) == "accepted");  // any order
  CHECK(two(0, 40, 72) == "FMT m.gguf: byte offset 82: the tensor 'b' is not aligned (expected a multiple of 32, found 40)");
  CHECK(two(0, 32, 72) == "FMT m.gguf: byte offset 57: the tensors 'a' and 'b' overlap (expected an offset of at least 40, found 32)");
  CHECK(two(0, 0, 72) == "FMT m.gguf: byte offset 24: the tensors 'b' and 'a' overlap (expected an offset of at least 8, found 0)");
  CHECK(two(0, 96, 104) == "FMT m.gguf: byte offset 57: a hole of 32 bytes lies before the tensor 'b' (expected offset 64, found 96)");
  CHECK(two(32, 96, 104) == "FMT m.gguf: byte offset 24: a hole of 32 bytes lies before the tensor 'a' (expected offset 0, found 32)");
  CHECK(two(0, 64, 71) ==
        "FMT m.gguf: byte offset 57: the tensor 'b' ends past the end of the file (expected 8 bytes at offset 64 of the data, found 71 bytes of "
        "data); download or copy it again");
  CHECK(two(0, huge - 31, 72).find("a hole of ") != std::string::npos);
  CHECK(tensor_verdict({1u << 20}, 0, 0, 100) ==
        "FMT m.gguf: byte offset 24: the tensor 'w' ends past the end of the file (expected 4194304 bytes at offset 0 of the "
        "data, found 100 bytes of data); download or copy it again");
}

TEST_CASE("GGUF-13: bytes behind the last tensor, beyond its padding") {
  const std::string bytes = gguf_bytes({.tensors = {gguf_tensor_bytes("w", {1}, 0, 0)}, .data = "1234"});
  for (std::size_t more = 0; more <= 28; ++more) CHECK(verdict(bytes + std::string(more, '\0')) == "accepted");
  CHECK(verdict(bytes + std::string(29, '\0')) ==
        "FMT m.gguf: byte offset 96: 1 bytes behind the last tensor belong to no tensor (expected at most 96 bytes, found 97)");
  CHECK(verdict(gguf_bytes({}) + "PK\3\4 and an archive") ==
        "FMT m.gguf: byte offset 32: 11 bytes behind the last tensor belong to no tensor (expected at most 32 bytes, found 43)");
}

TEST_CASE("GGUF-14: every truncation is a typed error") {
  const std::string bytes = gguf_bytes(small);
  CHECK(verdict(bytes) == "accepted");
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    const auto read = ts::read_gguf(file_of(bytes.substr(0, n), "m.gguf"));
    REQUIRE_FALSE(read);
    CHECK(read.error().code == ts::errc::malformed);
  }
}

TEST_CASE("GGUF-15: every change of one byte is a typed error or a file whose tensors can be read") {
  const std::string bytes = gguf_bytes(small);
  std::size_t accepted = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (int change = 1; change < 256; ++change) {
      std::string other = bytes;
      other[at] = static_cast<char>(other[at] ^ change);
      const auto read = ts::read_gguf(file_of(other, "m.gguf"));
      if (!read) {
        if (const ts::errc code = read.error().code; code != ts::errc::malformed && code != ts::errc::unsupported && code != ts::errc::limit)
          FAIL(read.error().message());
        continue;
      }
      ++accepted;
      if (change != 1 && change != 128) continue;
      for (const ts::catalog_entry& e : read->tensors.entries()) REQUIRE(ts::materialize(e.tensor, {}));
    }
  CHECK(accepted > 1000);  // names, values, data
}

TEST_CASE("GGUF-16: a million values and a hundred thousand pairs stay within time and memory; longer metadata is refused") {
  std::string strings;
  for (int i = 0; i < 1'000'000; ++i) strings += gguf_string("t");
  std::vector<std::string> pairs{gguf_pair("tokens", 9, gguf_array(8, 1'000'000, strings))};
  for (int i = 0; i < 100'000; ++i) pairs.push_back(gguf_pair("k" + std::to_string(i), 0, "1"));
  const std::string bytes = gguf_bytes({.pairs = pairs});
  const auto file = file_of(bytes, "m.gguf");
  const auto start = std::chrono::steady_clock::now();
  bounded_memory(bytes.size(), [&] {
    const auto read = ts::read_gguf(file);
    REQUIRE(read);
    CHECK(read->metadata.size() == 100'001);
    CHECK(read->metadata[0].second.size() < 200);
  });
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));  // U4; generous for a busy machine and sanitizers
  ts::limits little_metadata;
  little_metadata.gguf_metadata_bytes = 1'000'000;
  CHECK(verdict(bytes, little_metadata)
            .find("the metadata is too long (expected at most 1000000 bytes, found at least 10000") != std::string::npos);
  CHECK(verdict(bytes, little_metadata).starts_with("LIM m.gguf: byte offset "));
  CHECK(verdict(bytes, little_metadata).ends_with("raise limits::gguf_metadata_bytes (--max-gguf-metadata) if you trust it"));
}
