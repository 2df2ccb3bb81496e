// SPDX-License-Identifier: MIT
//
// Safetensors files that must be refused: what is wrong is said, where, and what was expected; no declared number costs memory.
#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <fstream>

#include "format/safetensors_build.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/format/safetensors/write.hpp"

namespace ts = tensorsmith;
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

/// Runs `work` and checks that the peak memory grew by at most 64 MiB + 8 × the bytes that are present (U3).
template <class Work>
void bounded_memory([[maybe_unused]] std::uint64_t bytes_present, Work&& work) {
  const auto before = ts::os::memory_in_use();
  work();
  const auto after = ts::os::memory_in_use();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // their shadow memory is not ours
  CHECK(after.peak_resident <= std::max(before.peak_resident, before.resident + (64u << 20) + 8 * bytes_present));
#endif
  CHECK(after.peak_resident >= before.peak_resident);
}

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
    CHECK(header.error().code == ts::errc::limit);
    CHECK(header.error().expected == "at most 100000000 bytes");
  });
  // The writer refuses to make such a file.
  ts::limits few;
  few.safetensors_header_bytes = 50;
  ts::catalog tensors;
  REQUIRE(tensors.add(std::string(60, 'n'), {ts::stored_tensor(as_file("12345678"), 0, ts::dtype::f32, {2}, "n"), 0}, "n"));
  const auto plan = ts::plan_safetensors(tensors, {}, few);
  REQUIRE_FALSE(plan);
  CHECK(plan.error().code == ts::errc::limit);
}

TEST_CASE("ST-04: a header that ends past the end of the file") {
  CHECK(verdict(as_file(u64_bytes(3) + "{}")) ==
        "FMT m.safetensors: byte offset 0: the header ends past the end of the file (expected at most 2 bytes of header, found 3); download or copy it again");
  ts::limits all;
  all.safetensors_header_bytes = ~std::uint64_t{0};
  CHECK(verdict(as_file(u64_bytes(~std::uint64_t{0} - 6) + "{}"), all).starts_with("FMT m.safetensors: byte offset 0: the header ends past the end"));
}

TEST_CASE("ST-05: headers that hold nothing") {
  CHECK(verdict(as_file(u64_bytes(0))) == "FMT m.safetensors: byte offset 8: the header is empty (expected a JSON object)");
  CHECK(header_verdict("null", 0) == "FMT m.safetensors: byte offset 12: the header is no JSON object (expected an object, found null)");
  CHECK(header_verdict("[]", 0) == "FMT m.safetensors: byte offset 9: the header is no JSON object (expected an object, found an array)");
  CHECK(header_verdict("\"x\"", 0) == "FMT m.safetensors: byte offset 11: the header is no JSON object (expected an object, found the string 'x')");
  const auto empty = ts::read_safetensors(safetensors_file("{}", 0));
  REQUIRE(empty);
  CHECK(empty->empty());
  CHECK(ts::plan_safetensors(*empty).error().message() == "MIS there are no tensors to write");
}

TEST_CASE("ST-06: bytes that are no UTF-8") {
  for (const std::string bad : {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF5\x80\x80\x80"}) {
    const std::string message = header_verdict("{" + entry("a" + bad, "F32", "[2]", "[0,8]") + "}");
    CHECK(message.starts_with("FMT m.safetensors: byte offset 1"));
    CHECK(message.find("invalid UTF-8 in a string") != std::string::npos);
  }
  CHECK(header_verdict("\xEF\xBB\xBF{}", 0).starts_with("FMT m.safetensors: byte offset 8: a byte order mark before JSON text"));
}

TEST_CASE("ST-07, ST-08: bytes behind the JSON object") {
  const std::string good = "{" + entry("a", "F32", "[2]", "[0,8]") + "}";
  const std::string at = "FMT m.safetensors: byte offset " + std::to_string(8 + good.size());
  CHECK(header_verdict(good) == "accepted");
  CHECK(header_verdict(good + "\0{\"evil\":1}"s) == at + ": a NUL byte in JSON text");
  for (const std::string rest : {"}", "x", "{}"}) CHECK(header_verdict(good + rest).starts_with(at + ": invalid JSON: "));
}

TEST_CASE("ST-09, ST-10, ST-11: names and fields that appear twice") {
  const std::string same = "{" + entry("a", "F16", "[2]", "[0,4]") + "," + entry("a", "BF16", "[2]", "[0,4]") + "}";
  CHECK(header_verdict(same, 4) ==
        "FMT m.safetensors: byte offset 67: the tensor 'a' appears twice in the header (expected unique names, found entries at "
        "byte offsets 14 and 67)");
  for (const std::string second : {"a", "\\u0061"}) {
    const std::string message = header_verdict("{" + entry("a", "F32", "[1]", "[0,4]") + "," + entry(second, "F32", "[1]", "[4,8]") + "}");
    CHECK(message.starts_with("FMT m.safetensors: "));
    CHECK(message.find("the tensor 'a' appears twice in the header") != std::string::npos);
  }
  CHECK(header_verdict(R"({"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}})").find("the key 'shape' appears twice in one object") !=
        std::string::npos);
  CHECK(header_verdict(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8]}})").find("the key 'data_offsets' appears twice") !=
        std::string::npos);
  CHECK(header_verdict(R"({"__metadata__":{},"__metadata__":{}})", 0).find("the key '__metadata__' appears twice") != std::string::npos);
  CHECK(header_verdict(R"({"__metadata__":{"a":"1","a":"2"}})", 0).find("the key 'a' appears twice") != std::string::npos);
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
  CHECK(header_verdict(late, 16).find("a hole of 8 bytes before the tensor 'a' (expected it to begin at 0, found 8)") != std::string::npos);
  const std::string good = "{" + entry("a", "U8", "[8]", "[0,8]") + "}";
  const std::size_t end = 16 + good.size();
  CHECK(header_verdict(good, 8 + 34) == "FMT m.safetensors: byte offset " + std::to_string(end) +
                                            ": 34 bytes behind the last tensor belong to no tensor (expected " + std::to_string(end) + " bytes, found " +
                                            std::to_string(end + 34) + ")");
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
  const auto with = [](const std::string& offsets) { return header_verdict("{" + entry("a", "U8", "[8]", offsets) + "}"); };
  CHECK(with("[8,0]").find("at '/a': the tensor 'a' ends before it begins (expected begin ≤ end, found data_offsets [8, 0])") != std::string::npos);
  CHECK(with("[-1,8]").find("at '/a/data_offsets/0': data_offsets of the tensor 'a' has a value of the wrong kind (expected two "
                            "non-negative integers, found the negative integer -1)") != std::string::npos);
  for (const std::string offsets : {"[0,8.0]", "[0,8e0]", "[0,\"8\"]", "[0,null]", "[0,true]", "[0,[8]]", "[0,{}]", "null", "8", "{}"}) {
    const std::string message = with(offsets);
    CHECK(message.starts_with("FMT m.safetensors: byte offset "));
    CHECK(message.find("at '/a/data_offsets") != std::string::npos);
  }
  CHECK(with("[0,18446744073709551616]").find("at '/a/data_offsets/1': the integer is out of range") != std::string::npos);
  CHECK(with("[00,8]").find("FMT ") == 0);
  CHECK(with("[-0,8]").find("FMT ") == 0);
  CHECK(with("[]").find("data_offsets has too few values (expected begin and end, found 0)") != std::string::npos);
  CHECK(with("[0]").find("data_offsets has too few values (expected begin and end, found 1)") != std::string::npos);
  CHECK(with("[0,8,8]").find("at '/a/data_offsets/2': data_offsets has too many values (expected begin and end)") != std::string::npos);
  CHECK(header_verdict(R"({"a":{"dtype":"U8","shape":[8]}})").find("at '/a': the tensor 'a' has no data_offsets") != std::string::npos);
}

TEST_CASE("ST-17: shapes whose size overflows") {
  for (const std::string shape : {"[2,18446744073709551614]", "[2,9223372036854775807]", "[4294967296,4294967296]", "[8589934592,8589934592,0]"}) {
    const std::string message = header_verdict("{" + entry("a", "F32", shape, "[0,8]") + "}");
    CHECK(message.starts_with("FMT m.safetensors: "));
    CHECK(message.find("the size of the tensor 'a' overflows 64 bits (found shape [") != std::string::npos);
  }
}

TEST_CASE("ST-18, ST-19: byte counts that differ from the shape's") {
  CHECK(header_verdict("{" + entry("a", "F32", "[2]", "[0,7]") + "}", 7).find(
            "at '/a': the tensor 'a' has the wrong number of bytes (expected 8 bytes for F32 [2], found 7)") != std::string::npos);
  for (const std::size_t bytes : {0u, 7u, 9u, 16u}) {
    const std::string message = header_verdict("{" + entry("a", "F32", "[2]", "[0," + std::to_string(bytes) + "]") + "}", bytes);
    CHECK(message.find("(expected 8 bytes for F32 [2], found " + std::to_string(bytes) + ")") != std::string::npos);
  }
  CHECK(header_verdict("{" + entry("a", "F4", "[3]", "[0,2]") + "}", 2).find("the tensor 'a' does not fill whole bytes (expected a multiple of 8 bits, found 12 bits)") !=
        std::string::npos);
}

TEST_CASE("ST-20: element types that do not exist") {
  for (const std::string type : {"F8_E9M9", "f16", "", "F32 "})
    for (const std::string shape : {"[2]", "[0]"}) {
      const std::string message = header_verdict("{" + entry("a", type, shape, "[0,8]") + "}");
      CHECK(message.starts_with("UNS m.safetensors: "));
      CHECK(message.find("at '/a/dtype': the tensor 'a' has an unknown dtype (expected a dtype of safetensors, found '" + type + "')") != std::string::npos);
    }
  CHECK(header_verdict(R"({"a":{"dtype":7,"shape":[8],"data_offsets":[0,8]}})")
            .find("at '/a/dtype': dtype of the tensor 'a' has a value of the wrong kind (expected a string, found the integer 7)") != std::string::npos);
  CHECK(header_verdict(R"({"a":{"shape":[8],"data_offsets":[0,8]}})").find("the tensor 'a' has no dtype") != std::string::npos);
  CHECK(header_verdict(R"({"a":7})", 0).find("the tensor 'a' is described by no object (expected an object, found the integer 7)") != std::string::npos);
  CHECK(header_verdict(R"({"a":[]})", 0).find("the tensor 'a' is described by no object (expected an object, found an array)") != std::string::npos);
}

TEST_CASE("ST-21: ranks and extents over the limit") {
  for (const std::size_t rank : {65u, 1000000u}) {
    std::string shape = "[1";
    for (std::size_t i = 1; i < rank; ++i) shape += ",1";
    const std::string message = header_verdict("{" + entry("a", "U8", shape + "]", "[0,1]") + "}", 1);
    CHECK(message.find("at '/a/shape/64': the tensor 'a' has too many dimensions (expected at most 64); raise limits::rank (--max-rank) if you trust it") != std::string::npos);
    CHECK(message.starts_with("LIM "));
  }
  std::string most = "[1";
  for (int i = 1; i < 64; ++i) most += ",1";
  CHECK(header_verdict("{" + entry("a", "U8", most + "]", "[0,1]") + "}", 1) == "accepted");
  CHECK(header_verdict("{" + entry("a", "U8", "[281474976710656]", "[0,281474976710656]") + "}").starts_with("LIM "));
  CHECK(header_verdict("{" + entry("a", "U8", "[0,281474976710656]", "[0,0]") + "}", 0).starts_with("LIM "));
}

TEST_CASE("ST-22: metadata that is no map of strings") {
  const auto with = [](const std::string& metadata) { return header_verdict("{\"__metadata__\":" + metadata + "}", 0); };
  CHECK(with(R"({"a":1})") ==
        "FMT m.safetensors: byte offset 31 at '/__metadata__/a': a '__metadata__' value is no string (expected a string, found the integer 1)");
  for (const std::string bad : {R"({"a":{}})", R"({"a":[]})", R"({"a":null})", R"({"a":true})", R"({"a":1.5})"})
    CHECK(with(bad).find("at '/__metadata__/a': a '__metadata__' value is no string") != std::string::npos);
  for (const std::string bad : {"[]", "1", "\"x\"", "null"})
    CHECK(with(bad).find("at '/__metadata__': '__metadata__' is no object (expected an object of strings") != std::string::npos);
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
  const auto body = [](void* out) -> void* {
    *static_cast<std::string*>(out) = header_verdict("{\"a\":" + std::string(1'000'000, '['), 0);
    return nullptr;
  };
  std::string message;
  ::pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, 256 << 10);
  ::pthread_t thread{};
  REQUIRE(::pthread_create(&thread, &attributes, body, &message) == 0);
  ::pthread_join(thread, nullptr);
  ::pthread_attr_destroy(&attributes);
  CHECK(message.starts_with("FMT m.safetensors: byte offset 14 at '/a': the tensor 'a' is described by no object"));
  CHECK(header_verdict("{\"a\":{\"x\":" + std::string(1'000'000, '['), 0).find("JSON is nested too deeply (expected at most 64 levels)") != std::string::npos);
}

TEST_CASE("ST-25, VAL-04: very many tensors") {
  std::string header = "{";
  const std::size_t count = 200'000;
  header.reserve(count * 80);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = (i * 7919) % count;  // not in order
    header += (i ? "," : "") + entry("tensor." + std::to_string(at), "U8", "[1]", "[" + std::to_string(at) + "," + std::to_string(at + 1) + "]");
  }
  header += "}";
  const auto file = safetensors_file(header, count);
  const auto start = std::chrono::steady_clock::now();
  bounded_memory(header.size(), [&] {
    const auto tensors = ts::read_safetensors(file);
    REQUIRE(tensors);
    CHECK(tensors->size() == count);
    CHECK(tensors->entries()[1].name == "tensor.1");
  });
  // U4 is 1 s + 20 ms per MiB when nothing else runs and the code is optimized; ten times that shows a square all the same.
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 10 * (1 + 0.02 * static_cast<double>(header.size() >> 20)));
  ts::limits few;
  few.tensors = 1000;
  CHECK(verdict(file, few).find("the file has too many tensors (expected at most 1000); raise limits::tensors (--max-tensors) if you trust it") != std::string::npos);
  few.tensors = 2'000'000;
  few.safetensors_header_bytes = 1'000'000;
  CHECK(verdict(file, few).find("(--max-header)") != std::string::npos);
}

TEST_CASE("ST-27: strange names are loaded, bounded and printed safely") {
  for (const std::string name : {"", "../x", "\\u0000", "\\u001b[2J", "\xE2\x80\xAE", "<script>", "a/b"})
    CHECK(header_verdict("{" + entry(name, "U8", "[8]", "[0,8]") + "}") == "accepted");
  CHECK(header_verdict("{" + entry(std::string(1 << 20, 'n'), "U8", "[8]", "[0,8]") + "}").find(
            "a tensor name is too long (expected at most 65536 bytes, found 1048576); raise limits::name_bytes (--max-name) if you trust it") != std::string::npos);
  const std::string message = header_verdict("{" + entry("\\u001b[2J\xE2\x80\xAE", "U8", "[7]", "[0,8]") + "}");
  CHECK(message.find("the tensor '\\x1b[2J\\u{202e}' has the wrong number of bytes") != std::string::npos);
  CHECK(message.find('\x1b') == std::string::npos);
}

TEST_CASE("ST-28: broken escapes") {
  for (const std::string name : {"\\ud800", "\\udc00", "\\uZZZZ", "\\u12", "\\x41"})
    CHECK(header_verdict("{" + entry(name, "U8", "[8]", "[0,8]") + "}").find("invalid JSON: invalid string") != std::string::npos);
}

TEST_CASE("ST-29: other formats under this name are recognized by content") {
  const auto found = [](const std::string& bytes) { return verdict(as_file(bytes)); };
  CHECK(found("\x80\x02}q\x01.padding") ==
        "UNS m.safetensors: byte offset 0: the file is no safetensors file (found a pickle, as old PyTorch writes it)");
  CHECK(found("PK\x03\x04\0\0\0\0\0\0\0\0archive"s).find("found a zip archive, as PyTorch writes it") != std::string::npos);
  CHECK(found("<!DOCTYPE html><html>").find("found a web page") != std::string::npos);
  CHECK(found("version https://git-lfs.github.com/spec/v1\n").find("found a Git LFS pointer") != std::string::npos);
  CHECK(ts::looks_like_safetensors(*safetensors_file("{" + entry("a", "U8", "[8]", "[0,8]") + "}", 8)));
  CHECK(ts::looks_like_safetensors(*safetensors_file("  {}", 0)));
  CHECK_FALSE(ts::looks_like_safetensors(*as_file("\x80\x02}q\x01.padding")));
  CHECK_FALSE(ts::looks_like_safetensors(*as_file("PK\x03\x04")));
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

TEST_CASE("ST-32: a header of spaces") {
  CHECK(header_verdict(std::string(20'000'000, ' '), 0).find("invalid JSON: unexpected end of input") != std::string::npos);
}
