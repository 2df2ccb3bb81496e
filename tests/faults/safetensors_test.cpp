// SPDX-License-Identifier: MIT
//
// Safetensors files that must be refused: what is wrong is said, where, and what was expected; no declared number costs memory.
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "format/safetensors_build.hpp"
#include "support/bounded_memory.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/checkpoint/read.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/format/safetensors/write.hpp"

namespace ts = tensorsmith;
using support::bounded_memory;
using support::as_file;
using support::entry;
using support::safetensors_file;
using support::u64_bytes;
using namespace std::string_literals;

namespace {

std::string verdict(const support::source_ptr& file, const ts::limits& bounds = {}) {
  const auto header = ts::read_safetensors_header(*file, bounds);
  return header ? "accepted" : header.error().message();
}

/// The verdict on a header over 8 bytes of data.
std::string header_verdict(const std::string& header, std::size_t data = 8) { return verdict(safetensors_file(header, data)); }

}  // namespace

TEST_CASE("ST-01: files of 0 to 7 bytes") {
  for (std::size_t n = 0; n < 8; ++n)
    CHECK(verdict(as_file(std::string(n, '\0'))) ==
          "FMT m.safetensors: byte offset 0: the file is too short for a safetensors header (expected 8 length bytes, found " + std::to_string(n) + ")");
}

TEST_CASE("ST-02: header lengths of 2^32 to 2^64 are refused before anything is allocated") {
  bounded_memory(0, [] {
    for (const std::uint64_t length : {~std::uint64_t{0}, std::uint64_t{1} << 63, (std::uint64_t{1} << 63) - 1, std::uint64_t{1} << 32})
      CHECK(verdict(as_file(u64_bytes(length) + "{}")) ==
            "LIM m.safetensors: byte offset 0: the header is too long (expected at most 100000000 bytes, found " + std::to_string(length) +
                "); raise limits::safetensors_header_bytes (--max-header) if you trust it");
  });
}

TEST_CASE("ST-03: a header one byte over the limit") {
  const support::temp_folder folder;
  const std::string path = folder / "sparse.safetensors";
  std::ofstream(path, std::ios::binary) << u64_bytes(100'000'001) << "{}";
  REQUIRE(::truncate(path.c_str(), 100'000'001 + 8) == 0);
  bounded_memory(0, [&] {
    const auto header = ts::read_safetensors_header(**ts::open_file(path));
    REQUIRE_FALSE(header);
    CHECK(header.error().message() == "LIM " + path +
                                          ": byte offset 0: the header is too long (expected at most 100000000 bytes, found 100000001); raise "
                                          "limits::safetensors_header_bytes (--max-header) if you trust it");
  });
  // The writer refuses to make such a file, before it makes anything.
  ts::catalog tensors;
  std::vector<ts::catalog_entry> entries;
  const ts::tensor_ref empty{ts::stored_tensor(as_file(""), 0, ts::dtype::u8, {0}, "e"), 0};
  for (int i = 0; i < 1600; ++i) entries.push_back({std::to_string(i) + std::string(65'000, 'n'), empty, "e"});
  REQUIRE(tensors.add_all(std::move(entries)));
  const std::string out = folder / "out.safetensors";
  const auto written = ts::write_safetensors(tensors, out, {}, {});
  REQUIRE_FALSE(written);
  CHECK(written.error().message() ==
        "LIM the header of the output would be too long for other readers (expected at most 100000000 bytes, found " + std::to_string(104'086'896) +
            "); write several files (--shard-size), or raise limits::safetensors_header_bytes (--max-header)");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("ST-04: a header that ends past the end of the file") {
  CHECK(verdict(as_file(u64_bytes(3) + "{}")) ==
        "FMT m.safetensors: byte offset 0: the header ends past the end of the file (expected at most 2 bytes of header, found 3); download or copy it again");
  ts::limits all;
  all.safetensors_header_bytes = ~std::uint64_t{0};
  for (const std::uint64_t length : {~std::uint64_t{0}, ~std::uint64_t{0} - 6, ~std::uint64_t{0} - 7})
    CHECK(verdict(as_file(u64_bytes(length) + "{}"), all) ==
          "FMT m.safetensors: byte offset 0: the header ends past the end of the file (expected at most 2 bytes of header, found " +
              std::to_string(length) + "); download or copy it again");
}

TEST_CASE("ST-05: headers that hold nothing") {
  CHECK(verdict(as_file(u64_bytes(0))) == "FMT m.safetensors: byte offset 8: the header is empty (expected a JSON object)");
  CHECK(header_verdict("null", 0) == "FMT m.safetensors: byte offset 12: the header is no JSON object (expected an object, found null)");
  CHECK(header_verdict("[]", 0) == "FMT m.safetensors: byte offset 9: the header is no JSON object (expected an object, found an array)");
  CHECK(header_verdict("\"x\"", 0) == "FMT m.safetensors: byte offset 11: the header is no JSON object (expected an object, found the string 'x')");
  const auto empty = ts::read_safetensors(safetensors_file("{}", 0));
  REQUIRE(empty);
  CHECK(empty->empty());
  const support::temp_folder folder;
  const auto written = ts::write_safetensors(*empty, folder / "out.safetensors", {}, {});
  REQUIRE_FALSE(written);
  CHECK(written.error().message() == "MIS there are no tensors to write");
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("ST-06: bytes that are no UTF-8") {
  const std::pair<std::string, std::string> wrong[] = {
      {"\xFF", "11: invalid JSON: invalid UTF-8 in a string (found '\\xff')"},
      {"\xC0\x80", "11: invalid JSON: invalid UTF-8 in a string (found '\\xc0')"},
      {"\xED\xA0\x80", "12: invalid JSON: invalid UTF-8 in a string (found '\\xa0')"},
      {"\xF5\x80\x80\x80", "11: invalid JSON: invalid UTF-8 in a string (found '\\xf5')"}};
  for (const auto& [bad, message] : wrong)
    CHECK(header_verdict("{" + entry("a" + bad, "F32", "[2]", "[0,8]") + "}") == "FMT m.safetensors: byte offset " + message);
  CHECK(header_verdict("\xEF\xBB\xBF{}", 0) ==
        "FMT m.safetensors: byte offset 8: a byte order mark before JSON text (expected '{' or another value); save the file as UTF-8 without it");
}

TEST_CASE("ST-07, ST-08: bytes behind the JSON object") {
  const std::string good = "{" + entry("a", "F32", "[2]", "[0,8]") + "}";
  const std::string at = "FMT m.safetensors: byte offset 62: ";
  REQUIRE(8 + good.size() == 62);
  CHECK(header_verdict(good) == "accepted");
  CHECK(header_verdict(good + "\0{\"evil\":1}"s) == at + "a NUL byte in JSON text");
  CHECK(header_verdict(good + "}") == at + "invalid JSON: unexpected '}' (found '}')");
  CHECK(header_verdict(good + "x") == at + "invalid JSON: invalid literal (found 'x')");
  CHECK(header_verdict(good + "{}") == at + "invalid JSON: unexpected '{' (found '{')");
}

TEST_CASE("ST-09, ST-10, ST-11: names and fields that appear twice") {
  const std::string same = "{" + entry("a", "F16", "[2]", "[0,4]") + "," + entry("a", "BF16", "[2]", "[0,4]") + "}";
  CHECK(header_verdict(same, 4) ==
        "FMT m.safetensors: byte offset 67: the tensor 'a' appears twice in the header (expected unique names, found entries at "
        "byte offsets 14 and 67)");
  CHECK(header_verdict("{" + entry("a", "F32", "[1]", "[0,4]") + "," + entry("a", "F32", "[1]", "[4,8]") + "}") ==
        "FMT m.safetensors: byte offset 67: the tensor 'a' appears twice in the header (expected unique names, found entries at byte offsets 14 and 67)");
  CHECK(header_verdict("{" + entry("a", "F32", "[1]", "[0,4]") + "," + entry("\\u0061", "F32", "[1]", "[4,8]") + "}") ==
        "FMT m.safetensors: byte offset 72: the tensor 'a' appears twice in the header (expected unique names, found entries at byte offsets 14 and 72)");
  CHECK(header_verdict(R"({"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}})") ==
        "FMT m.safetensors: byte offset 47 at '/a/shape': the key 'shape' appears twice in one object (expected unique keys, found it at byte "
        "offsets 35 and 47)");
  CHECK(header_verdict(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8]}})") ==
        "FMT m.safetensors: byte offset 75 at '/a/data_offsets': the key 'data_offsets' appears twice in one object (expected unique keys, found it "
        "at byte offsets 54 and 75)");
  CHECK(header_verdict(R"({"__metadata__":{},"__metadata__":{}})", 0) ==
        "FMT m.safetensors: byte offset 41 at '/__metadata__': the key '__metadata__' appears twice (expected unique keys)");
  CHECK(header_verdict(R"({"__metadata__":{"a":"1","a":"2"}})", 0) ==
        "FMT m.safetensors: byte offset 36 at '/__metadata__/a': the key 'a' appears twice in one object (expected unique keys, found it at byte "
        "offsets 28 and 36)");
}

TEST_CASE("ST-12: a hole between two tensors") {
  const std::string header = "{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[3,5]") + "}";
  CHECK(header_verdict(header, 5) == "FMT m.safetensors: byte offset " + std::to_string(8 + header.size() + 2) +
                                         ": a hole of 1 bytes between the tensors 'a' and 'b' (expected it to begin at 2, found 3)");
}

TEST_CASE("ST-13: tensors that share their bytes") {
  std::string header = "{";
  for (int i = 0; i < 10'000; ++i) header += (i ? "," : "") + entry("t" + std::to_string(i), "U8", "[1048576]", "[0,1048576]");
  header += "}";
  bounded_memory(header.size() + (1u << 20), [&] {
    const std::string message = header_verdict(header, 1u << 20);
    CHECK(message == "FMT m.safetensors: byte offset " + std::to_string(8 + header.size()) +
                         ": the tensors 't0' and 't1' overlap (expected it to begin at 1048576, found 0)");
  });
}

TEST_CASE("ST-14: bytes that belong to no tensor") {
  const std::string late = "{" + entry("a", "U8", "[8]", "[8,16]") + "}";
  CHECK(header_verdict(late, 16) ==
        "FMT m.safetensors: byte offset 62: a hole of 8 bytes before the tensor 'a' (expected it to begin at 0, found 8)");
  const std::string good = "{" + entry("a", "U8", "[8]", "[0,8]") + "}";
  const std::string file = u64_bytes(good.size()) + good + std::string(8, 'd');
  const std::size_t end = file.size();
  for (const std::string& rest : {std::string(34, '\0'), "PK\x05\x06"s + std::string(18, '\0'), "<html></html>"s, "MZ\x90"s, "x"s})
    CHECK(verdict(as_file(file + rest)) == "FMT m.safetensors: byte offset " + std::to_string(end) + ": " + std::to_string(rest.size()) +
                                               " bytes behind the last tensor belong to no tensor (expected " + std::to_string(end) +
                                               " bytes, found " + std::to_string(end + rest.size()) + ")");
}

TEST_CASE("ST-15: a file that was cut off") {
  const std::string header = "{" + entry("a", "F32", "[4096]", "[0,16384]") + "}";
  const std::size_t whole = 8 + header.size() + 16384;
  for (const std::size_t cut : {1u, 4095u, 8192u, 16384u})
    CHECK(header_verdict(header, 16384 - cut) == "FMT m.safetensors: byte offset " + std::to_string(whole - cut) + ": the file is cut off (expected " +
                                                     std::to_string(whole) + " bytes, found " + std::to_string(whole - cut) + ", " +
                                                     std::to_string(cut) + " missing); download or copy it again");
}

TEST_CASE("ST-16: offsets that are no pair of natural numbers") {
  const std::string kind = ": data_offsets of the tensor 'a' has a value of the wrong kind (expected two non-negative integers, found ";
  const std::pair<std::string, std::string> wrong[] = {
      {"[8,0]", "60 at '/a': the tensor 'a' ends before it begins (expected begin ≤ end, found data_offsets [8, 0])"},
      {"[-1,8]", "58 at '/a/data_offsets/0'" + kind + "the negative integer -1)"},
      {"[-0,8]", "58 at '/a/data_offsets/0'" + kind + "the negative integer 0)"},
      {"[0,8.0]", "61 at '/a/data_offsets/1'" + kind + "a number that is no integer)"},
      {"[0,8e0]", "61 at '/a/data_offsets/1'" + kind + "a number that is no integer)"},
      {"[0,1e3]", "61 at '/a/data_offsets/1'" + kind + "a number that is no integer)"},
      {"[0,\"8\"]", "60 at '/a/data_offsets/1'" + kind + "the string '8')"},
      {"[0,null]", "61 at '/a/data_offsets/1'" + kind + "null)"},
      {"[0,true]", "61 at '/a/data_offsets/1'" + kind + "a boolean)"},
      {"[0,[8]]", "58 at '/a/data_offsets/1'" + kind + "an array)"},
      {"[0,{}]", "58 at '/a/data_offsets/1'" + kind + "an object)"},
      {"null", "58 at '/a/data_offsets'" + kind + "null)"},
      {"8", "56 at '/a/data_offsets'" + kind + "the integer 8)"},
      {"{}", "55 at '/a/data_offsets'" + kind + "an object)"},
      {"[0,18446744073709551616]",
       "78 at '/a/data_offsets/1': the integer is out of range (expected an integer of 64 bits, found '18446744073709551616')"},
      {"[00,8]", "57 at '/a/data_offsets/0': invalid JSON: unexpected number literal (found ',')"},
      {"[]", "56 at '/a/data_offsets': data_offsets has too few values (expected begin and end, found 0)"},
      {"[0]", "57 at '/a/data_offsets': data_offsets has too few values (expected begin and end, found 1)"},
      {"[0,8,8]", "61 at '/a/data_offsets/2': data_offsets has too many values (expected begin and end)"}};
  for (const auto& [offsets, message] : wrong)
    CHECK(header_verdict("{" + entry("a", "U8", "[8]", offsets) + "}") == "FMT m.safetensors: byte offset " + message);
  CHECK(header_verdict(R"({"a":{"dtype":"U8","shape":[8]}})") == "FMT m.safetensors: byte offset 39 at '/a': the tensor 'a' has no data_offsets");
}

TEST_CASE("ST-17: shapes whose size overflows") {
  const std::pair<std::string, std::string> wrong[] = {{"[2,18446744073709551614]", "82 [2, 18446744073709551614]"},
                                                       {"[2,9223372036854775807]", "81 [2, 9223372036854775807]"},
                                                       {"[4294967296,4294967296]", "81 [4294967296, 4294967296]"},
                                                       {"[8589934592,8589934592,0]", "83 [8589934592, 8589934592, 0]"}};
  for (const auto& [shape, found] : wrong)
    CHECK(header_verdict("{" + entry("a", "F32", shape, "[0,8]") + "}") ==
          "FMT m.safetensors: byte offset " + found.substr(0, 2) + " at '/a': the size of the tensor 'a' overflows 64 bits (found shape " +
              found.substr(3) + ")");
}

TEST_CASE("ST-18, ST-19: byte counts that differ from the shape's") {
  for (const std::size_t bytes : {0u, 7u, 9u, 16u})
    CHECK(header_verdict("{" + entry("a", "F32", "[2]", "[0," + std::to_string(bytes) + "]") + "}", bytes) ==
          "FMT m.safetensors: byte offset " + std::to_string(bytes > 9 ? 62 : 61) +
              " at '/a': the tensor 'a' has the wrong number of bytes (expected 8 bytes for F32 [2], found " + std::to_string(bytes) + ")");
  CHECK(header_verdict("{" + entry("a", "F4", "[3]", "[0,2]") + "}", 2) ==
        "FMT m.safetensors: byte offset 60 at '/a': the tensor 'a' does not fill whole bytes (expected a multiple of 8 bits, found 12 bits)");
  CHECK(header_verdict("{" + entry("a", "F6_E2M3", "[2]", "[0,2]") + "}", 2) ==
        "FMT m.safetensors: byte offset 65 at '/a': the tensor 'a' does not fill whole bytes (expected a multiple of 8 bits, found 12 bits)");
  CHECK(header_verdict("{" + entry("a", "F6_E3M2", "[4]", "[0,3]") + "}", 3) == "accepted");
}

TEST_CASE("ST-20: element types that do not exist") {
  for (const std::string type : {"F8_E9M9", "f16", "", "F32 "})
    for (const std::string shape : {"[2]", "[0]"})
      CHECK(header_verdict("{" + entry("a", type, shape, "[0,8]") + "}") ==
            "UNS m.safetensors: byte offset " + std::to_string(24 + type.size()) +
                " at '/a/dtype': the tensor 'a' has an unknown dtype (expected a dtype of safetensors, found '" + type + "')");
  CHECK(header_verdict(R"({"a":{"dtype":7,"shape":[8],"data_offsets":[0,8]}})") ==
        "FMT m.safetensors: byte offset 24 at '/a/dtype': dtype of the tensor 'a' has a value of the wrong kind (expected a string, found the integer 7)");
  CHECK(header_verdict(R"({"a":{"shape":[8],"data_offsets":[0,8]}})") == "FMT m.safetensors: byte offset 47 at '/a': the tensor 'a' has no dtype");
  CHECK(header_verdict(R"({"a":{"dtype":"U8","data_offsets":[0,8]}})") == "FMT m.safetensors: byte offset 48 at '/a': the tensor 'a' has no shape");
  CHECK(header_verdict(R"({"a":7})", 0) ==
        "FMT m.safetensors: byte offset 15 at '/a': the tensor 'a' is described by no object (expected an object, found the integer 7)");
  CHECK(header_verdict(R"({"a":[]})", 0) ==
        "FMT m.safetensors: byte offset 14 at '/a': the tensor 'a' is described by no object (expected an object, found an array)");
}

TEST_CASE("ST-21: ranks and extents over the limit") {
  const auto ones = [](std::size_t rank) {
    std::string shape = "[1";
    for (std::size_t i = 1; i < rank; ++i) shape += ",1";
    return "{" + entry("a", "U8", shape + "]", "[0,1]") + "}";
  };
  CHECK(header_verdict(ones(64), 1) == "accepted");
  for (const std::size_t rank : {65u, 1000000u})
    CHECK(header_verdict(ones(rank), 1) ==
          "LIM m.safetensors: byte offset 166 at '/a/shape/64': the tensor 'a' has too many dimensions (expected at most 64); raise limits::rank "
          "(--max-rank) if you trust it");
  CHECK(header_verdict("{" + entry("a", "U8", "[281474976710656]", "[0,281474976710656]") + "}") ==
        "LIM m.safetensors: byte offset 88 at '/a': the tensor 'a' is too large (expected fewer than 281474976710656 elements, found shape "
        "[281474976710656]); raise limits::elements (--max-elements) if you trust it");
  CHECK(header_verdict("{" + entry("a", "U8", "[0,281474976710656]", "[0,0]") + "}", 0) ==
        "LIM m.safetensors: byte offset 76 at '/a': the tensor 'a' is too large (expected fewer than 281474976710656 elements, found shape [0, "
        "281474976710656]); raise limits::elements (--max-elements) if you trust it");
}

TEST_CASE("ST-22: metadata that is no map of strings") {
  const std::string value = " at '/__metadata__/a': a '__metadata__' value is no string (expected a string, found ";
  const std::string object = " at '/__metadata__': '__metadata__' is no object (expected an object of strings, found ";
  const std::pair<std::string, std::string> wrong[] = {{R"({"a":1})", "31" + value + "the integer 1)"},
                                                       {R"({"a":{}})", "30" + value + "an object)"},
                                                       {R"({"a":[]})", "30" + value + "an array)"},
                                                       {R"({"a":null})", "33" + value + "null)"},
                                                       {R"({"a":true})", "33" + value + "a boolean)"},
                                                       {R"({"a":1.5})", "33" + value + "a number that is no integer)"},
                                                       {"[]", "25" + object + "an array)"},
                                                       {"1", "26" + object + "the integer 1)"},
                                                       {"\"x\"", "27" + object + "the string 'x')"},
                                                       {"null", "28" + object + "null)"}};
  for (const auto& [metadata, message] : wrong)
    CHECK(header_verdict("{\"__metadata__\":" + metadata + "}", 0) == "FMT m.safetensors: byte offset " + message);
  // A long text is legal, up to the limit for the header; it is held once.
  const std::string large = "{\"__metadata__\":{\"a\":\"" + std::string(90'000'000, 'x') + "\"}}";
  const auto file = safetensors_file(large, 0);
  bounded_memory(large.size(), [&] {
    const auto header = ts::read_safetensors_header(*file);
    REQUIRE(header);
    CHECK(header->metadata[0].second.size() == 90'000'000);
  });
}

TEST_CASE("ST-23: unknown fields of an entry are listed") {
  std::string deep = "1";
  for (int i = 0; i < 61; ++i) deep = "[" + deep + "]";
  const auto file = safetensors_file("{\"a\":{\"dtype\":\"U8\",\"strides\":" + deep + ",\"shape\":[8],\"note\":{\"x\":[{}, null, \"y\"]},\"data_offsets\":[0,8]}}", 8);
  const auto header = ts::read_safetensors_header(*file);
  REQUIRE(header);
  CHECK(header->ignored_fields == std::vector<std::string>{"'/a/strides'", "'/a/note'"});
  ts::job run;
  REQUIRE(ts::read_safetensors(file, run));
  REQUIRE(run.notes.size() == 1);
  CHECK(run.notes[0].text == "fields of the header that safetensors does not define were ignored: '/a/strides' '/a/note'");
}

TEST_CASE("ST-24: brackets a million deep, on a small stack") {
  const auto on_small_stack = [](std::string header) {
    struct work {
      std::string header, message;
    } todo{std::move(header), {}};
    const auto body = [](void* at) -> void* {
      auto* todo_here = static_cast<work*>(at);
      todo_here->message = header_verdict(todo_here->header, 0);
      return nullptr;
    };
    ::pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstacksize(&attributes, 256 << 10);
    ::pthread_t thread{};
    REQUIRE(::pthread_create(&thread, &attributes, body, &todo) == 0);
    ::pthread_join(thread, nullptr);
    ::pthread_attr_destroy(&attributes);
    return todo.message;
  };
  CHECK(on_small_stack("{\"a\":" + std::string(1'000'000, '[')) ==
        "FMT m.safetensors: byte offset 14 at '/a': the tensor 'a' is described by no object (expected an object, found an array)");
  std::string path = "/a/x";
  for (int i = 0; i < 62; ++i) path += "/0";
  CHECK(on_small_stack("{\"a\":{\"x\":" + std::string(1'000'000, '[')) ==
        "LIM m.safetensors: byte offset 81 at '" + path +
            "': JSON is nested too deeply (expected at most 64 levels); raise limits::json_depth (--max-json-depth) if you trust it");
}

/// Opens a file of `count` tensors in no order, within U3 and (ten times) U4.
void open_many(std::size_t count, const std::string& start_of_names) {
  std::string header = "{";
  header.reserve(count * (70 + start_of_names.size()));
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = (i * 7919) % count;  // not in order
    header += (i ? "," : "") + entry(start_of_names + std::to_string(at), "U8", "[1]", "[" + std::to_string(at) + "," + std::to_string(at + 1) + "]");
  }
  header += "}";
  const auto file = safetensors_file(header, count);
  const std::size_t header_bytes = header.size();
  header = {};
  const auto start = std::chrono::steady_clock::now();
  bounded_memory(header_bytes, [&] {
    const auto tensors = ts::read_safetensors(file);
    REQUIRE(tensors);
    CHECK(tensors->size() == count);
    CHECK(tensors->entries()[1].name == start_of_names + "1");
    CHECK(tensors->find(start_of_names + std::to_string(count - 1)) == &tensors->entries()[count - 1]);
  });
  // U4 is 1 s + 20 ms per MiB when nothing else runs and the code is optimized; ten times that shows a square all the same.
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 10 * (1 + 0.02 * static_cast<double>(header_bytes >> 20)));
  ts::limits few;
  few.tensors = 1000;
  const std::string refused = verdict(file, few);
  CHECK(refused.starts_with("LIM m.safetensors: byte offset "));
  CHECK(refused.ends_with(": the file has too many tensors (expected at most 1000); raise limits::tensors (--max-tensors) if you trust it"));
}

TEST_CASE("ST-25: 100,000 and 1,000,000 tiny tensors") {
  open_many(100'000, "t");
  open_many(1'000'000, "t");
}

TEST_CASE("ST-26: names that are made to be slow to compare or to look up") {
  // All names agree in 200 bytes, but for one that differs from the others in the first byte.
  std::string header = "{" + entry("a", "U8", "[1]", "[0,1]");
  const std::string same(200, 'b');
  constexpr std::size_t count = 100'000;
  for (std::size_t i = 1; i < count; ++i) {
    const std::size_t at = 1 + (i * 7919) % (count - 1);
    header += "," + entry(same + std::to_string(at), "U8", "[1]", "[" + std::to_string(at) + "," + std::to_string(at + 1) + "]");
  }
  header += "}";
  const auto file = safetensors_file(header, count);
  const auto start = std::chrono::steady_clock::now();
  const auto tensors = ts::read_safetensors(file);
  REQUIRE(tensors);
  for (const ts::catalog_entry& e : tensors->entries()) REQUIRE(tensors->find(e.name) == &e);
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 10 * (1 + 0.02 * static_cast<double>(header.size() >> 20)));
}

TEST_CASE("ST-27: strange names are loaded, bounded and printed safely") {
  const std::string names[] = {"", "../x", "\\u0000", "\\u001b[2J", "\xE2\x80\xAE", "<script>", "a/b"};
  std::string header = "{";
  for (std::size_t i = 0; i < std::size(names); ++i)
    header += (i ? "," : "") + entry(names[i], "U8", "[1]", "[" + std::to_string(i) + "," + std::to_string(i + 1) + "]");
  const auto tensors = ts::read_safetensors(safetensors_file(header + "}", std::size(names)));
  REQUIRE(tensors);
  CHECK(tensors->contains("\0"s));
  CHECK(tensors->contains("\x1b[2J"));
  const support::temp_folder folder;
  REQUIRE(ts::write_safetensors(*tensors, folder / "out.safetensors", {.verify = true}, {}));
  const auto back = ts::read_safetensors(*ts::open_file(folder / "out.safetensors"));
  REQUIRE(back);
  for (const ts::catalog_entry& e : tensors->entries()) CHECK(back->contains(e.name));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);

  CHECK(header_verdict("{" + entry(std::string(1 << 20, 'n'), "U8", "[8]", "[0,8]") + "}") ==
        "LIM m.safetensors: byte offset 1048587 at '/" + std::string(199, 'n') +
            "'…(1048577 bytes): a tensor name is too long (expected at most 65536 bytes, found 1048576); raise limits::name_bytes (--max-name) if "
            "you trust it");
  CHECK(header_verdict("{" + entry("\\u001b[2J\xE2\x80\xAE<script>", "U8", "[7]", "[0,8]") + "}") ==
        "FMT m.safetensors: byte offset 79 at '/\\x1b[2J\\u{202e}<script>': the tensor '\\x1b[2J\\u{202e}<script>' has the wrong number of bytes "
        "(expected 7 bytes for U8 [7], found 8)");
  CHECK(header_verdict("{" + entry("\\u0000", "U8", "[7]", "[0,8]") + "}") ==
        "FMT m.safetensors: byte offset 65 at '/\\x00': the tensor '\\x00' has the wrong number of bytes (expected 7 bytes for U8 [7], found 8)");
}

TEST_CASE("ST-28: broken escapes") {
  const std::pair<std::string, std::string> wrong[] = {
      {"\\ud800", "16: invalid JSON: invalid string: surrogate U+D800..U+DBFF must be followed by U+DC00..U+DFFF (found '\"')"},
      {"\\udc00", "15: invalid JSON: invalid string: surrogate U+DC00..U+DFFF must follow U+D800..U+DBFF (found '0')"},
      {"\\uZZZZ", "12: invalid JSON: invalid string: '\\u' must be followed by 4 hex digits (found 'Z')"},
      {"\\u12", "14: invalid JSON: invalid string: '\\u' must be followed by 4 hex digits (found '\"')"},
      {"\\x41", "11: invalid JSON: invalid string: forbidden character after backslash (found 'x')"}};
  for (const auto& [name, message] : wrong)
    CHECK(header_verdict("{" + entry(name, "U8", "[8]", "[0,8]") + "}") == "FMT m.safetensors: byte offset " + message);
}

TEST_CASE("ST-29: other formats under this name are recognized by content") {
  const auto found = [](const std::string& bytes) { return verdict(as_file(bytes)); };
  CHECK(found("\x80\x02}q\x01.padding") ==
        "UNS m.safetensors: byte offset 0: the file is no safetensors file (found a pickle, as old PyTorch writes it)");
  CHECK(found("PK\x03\x04\0\0\0\0\0\0\0\0archive"s) ==
        "UNS m.safetensors: byte offset 0: the file is no safetensors file (found a zip archive, as PyTorch writes it)");
  CHECK(found("<!DOCTYPE html><html>") == "UNS m.safetensors: byte offset 0: the file is no safetensors file (found a web page)");
  CHECK(found("version https://git-lfs.github.com/spec/v1\n") ==
        "UNS m.safetensors: byte offset 0: the file is no safetensors file (found a Git LFS pointer, not the file it stands for)");
  CHECK(ts::looks_like_safetensors(*safetensors_file("{" + entry("a", "U8", "[8]", "[0,8]") + "}", 8)));
  CHECK(ts::looks_like_safetensors(*safetensors_file("  {}", 0)));
  CHECK_FALSE(ts::looks_like_safetensors(*as_file("\x80\x02}q\x01.padding")));
  CHECK_FALSE(ts::looks_like_safetensors(*as_file("PK\x03\x04")));
  // Where any weights may be given, the contents decide, whatever the name's letters are: a pickle is read by the rules of pickles.
  const support::temp_folder folder;
  for (const char* name : {"x.safetensors", "x.SafeTensors", "X.SAFETENSORS", "x.ckpt"}) {
    const std::string path = folder / name;
    std::ofstream(path, std::ios::binary) << "\x80\x02" "cos\nsystem\nq\x01X\x02\0\0\0lsq\x02\x85q\x03Rq\x04."s;
    ts::job run;
    const auto read = ts::read_checkpoint_file(path, run);
    REQUIRE_FALSE(read);
    CHECK(read.error().message() ==
          "UNS " + path +
              ": opcode GLOBAL (0x63) at byte offset 2: the pickle names 'os.system', which no weight file needs (expected names of tensors and "
              "containers, found a way to run code); nothing was run; --allow-suspicious reads the weights all the same");
    std::ofstream(path, std::ios::binary) << u64_bytes(2) + "{}";
    const auto empty = ts::read_checkpoint_file(path, run);
    REQUIRE(empty);
    CHECK(empty->container == ts::weights_container::safetensors);
  }
}

TEST_CASE("ST-30: paths that are no regular files are refused at once") {
  const support::temp_folder folder;
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ::sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE((folder / "socket").size() < sizeof address.sun_path);
  (folder / "socket").copy(address.sun_path, (folder / "socket").size());
  REQUIRE(::bind(socket, reinterpret_cast<const ::sockaddr*>(&address), sizeof address) == 0);
  const std::pair<std::string, std::string> wrong[] = {{folder.path().string(), "a folder"},
                                                       {folder / "fifo", "a named pipe"},
                                                       {folder / "socket", "a socket"},
                                                       {"/dev/zero", "a device"},
                                                       {"/proc/self/mem", "a view into the kernel"}};
  for (const auto& [path, kind] : wrong) {
    ts::job run;
    const auto start = std::chrono::steady_clock::now();
    const auto read = ts::read_checkpoint_file(path, run);
    REQUIRE_FALSE(read);
    CHECK(read.error().message() == "PTH " + path + ": the path is no regular file (expected a regular file, found " + kind + ")");
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(1));
  }
  ::close(socket);
}

TEST_CASE("ST-31: every truncation and every changed byte of a small file is accepted or refused with a message") {
  const std::string good = u64_bytes(136) + "{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "BF16", "[2,2]", "[8,16]") + "}";
  std::string bytes = good;
  bytes.resize(8 + 136, ' ');
  bytes.append(16, 'd');
  REQUIRE(verdict(as_file(bytes)) == "accepted");
  for (std::size_t n = 0; n < bytes.size(); ++n) CHECK(verdict(as_file(bytes.substr(0, n))) != "accepted");
  std::size_t accepted = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (int change = 1; change < 256; ++change) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ change);
      const std::string message = verdict(as_file(changed));
      accepted += message == "accepted";
      const bool typed = message == "accepted" || message.starts_with("FMT ") || message.starts_with("LIM ") || message.starts_with("UNS ");
      if (!typed) FAIL(message);
    }
  CHECK(accepted >= 16 * 255);  // at least all changes of the data
}

TEST_CASE("ST-32: a header of 100 MB of spaces") {
  const auto file = safetensors_file(std::string(100'000'000, ' '), 0);
  const auto start = std::chrono::steady_clock::now();
  bounded_memory(100'000'000, [&] {
    CHECK(verdict(file) == "FMT m.safetensors: byte offset 100000008: invalid JSON: unexpected end of input (found the end of the text)");
  });
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 30);  // U4: 3 s, with nothing else running
}
