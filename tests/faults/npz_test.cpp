// SPDX-License-Identifier: MIT
//
// NumPy files that must be refused: arrays (.npy) and archives of them (.npz). Nothing is unpickled, no declared size costs memory.
#include <chrono>
#include <filesystem>

#include "format/numpy_bytes.hpp"
#include "support/bounded_memory.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/numpy/npy.hpp"
#include "tensorsmith/format/numpy/npz.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/io/os.hpp"

namespace ts = tensorsmith;
using support::bounded_memory;
using support::file_of;
using support::little;
using support::npy_bytes;
using support::zip_bytes;
using namespace std::string_literals;

namespace {

std::string verdict(std::string_view bytes, const ts::limits& bounds = {}) {
  const auto read = ts::read_npy(file_of(bytes, "a.npy"), bounds);
  return read ? "accepted" : read.error().message();
}
/// The verdict on a dictionary over 24 bytes of data.
std::string dictionary_verdict(const std::string& dictionary) { return verdict(npy_bytes(dictionary, std::string(24, '\1'))); }
std::string shape_verdict(const std::string& shape, std::size_t data = 24) { return verdict(npy_bytes("<f4", shape, std::string(data, '\1'))); }

std::string zip_verdict(std::string_view bytes, const ts::limits& bounds = {}) {
  const auto read = ts::read_npz(file_of(bytes, "a.npz"), bounds);
  return read ? "accepted" : read.error().message();
}

/// Reads everything of an archive that was accepted; the first failure's message, or "read".
std::string use(const ts::npz_contents& read) {
  for (const ts::catalog_entry& e : read.tensors.entries())
    if (const auto bytes = ts::materialize(e.tensor, {}); !bytes) return bytes.error().message();
  return "read";
}

const std::string small_npy = npy_bytes("<i2", "(2, 3)", "abcdefghijkl");

}  // namespace

TEST_CASE("NPZ-01: arrays too short for a header, other magic bytes, other versions") {
  CHECK(verdict("") == "FMT a.npy: byte offset 0: the array does not start as a NumPy array (expected \\x93NUMPY, found nothing)");
  for (std::size_t n = 1; n < 6; ++n)
    CHECK(verdict(small_npy.substr(0, n))
              .starts_with("FMT a.npy: byte offset 0: the array does not start as a NumPy array (expected \\x93NUMPY, found '\\x93"));
  for (std::size_t n = 8; n < 10; ++n)
    CHECK(verdict(small_npy.substr(0, n)) ==
          "FMT a.npy: byte offset 0: the array is too short for a header (expected 10 bytes, found " + std::to_string(n) + ")");
  CHECK(verdict("\x93NUMPY\2\0abc"s) == "FMT a.npy: byte offset 0: the array is too short for a header (expected 12 bytes, found 11)");
  CHECK(verdict("\x92NUMPY" + small_npy.substr(6)).find("found '\\x92NUMPY'") != std::string::npos);
  for (const auto& [version, shown] : {std::pair{"\0\0"s, "0.0"s}, {"\4\0"s, "4.0"s}, {"\1\1"s, "1.1"s}, {"\xFF\xFF"s, "255.255"s}})
    CHECK(verdict("\x93NUMPY" + version + small_npy.substr(8)) ==
          "UNS a.npy: byte offset 6: the array has an unknown version of the format (expected 1.0, 2.0 or 3.0, found " + shown + ")");
}

TEST_CASE("NPZ-02: header lengths past the end and over the limit, before anything is allocated") {
  CHECK(verdict("\x93NUMPY\1\0\x03\0{}"s) ==
        "FMT a.npy: byte offset 8: the header ends past the end of the array (expected at most 2 bytes, found 3); "
        "copy or download it again");
  bounded_memory(0, [] {
    CHECK(verdict("\x93NUMPY\2\0\xFF\xFF\xFF\xFF{}"s) ==
          "LIM a.npy: byte offset 8: the header is too long (expected at most 1048576 bytes, found 4294967295); raise limits::npy_header_bytes "
          "(--max-npy-header) if you trust it");
  });
  ts::limits all;
  all.npy_header_bytes = ~std::uint64_t{0};
  CHECK(verdict("\x93NUMPY\3\0\xFF\xFF\xFF\xFF{}"s, all).starts_with("FMT a.npy: byte offset 8: the header ends past the end of the array"));
}

TEST_CASE("NPZ-03: dictionaries that are none, lack a key, have one twice or another one") {
  const std::string keys = "(expected 'descr', 'fortran_order' and 'shape')";
  CHECK(dictionary_verdict("") == "FMT a.npy: byte offset 10: the header is no dictionary (expected '{', found the end of the header)");
  CHECK(dictionary_verdict("[]") == "FMT a.npy: byte offset 10: the header is no dictionary (expected '{', found '[]')");
  CHECK(dictionary_verdict("{}") == "FMT a.npy: byte offset 12: the header has no 'descr' " + keys);
  CHECK(dictionary_verdict("{'descr': '<f4', 'shape': (2, 3)}") == "FMT a.npy: byte offset 43: the header has no 'fortran_order' " + keys);
  CHECK(dictionary_verdict("{'descr': '<f4', 'fortran_order': False}") == "FMT a.npy: byte offset 50: the header has no 'shape' " + keys);
  CHECK(dictionary_verdict("{'descr': '<f4', 'descr': '<f4'}") ==
        "FMT a.npy: byte offset 27: the header has a key twice (expected 'descr', 'fortran_order' and 'shape', once each, found 'descr')");
  CHECK(dictionary_verdict("{'evil': 1}") ==
        "FMT a.npy: byte offset 11: the header has an unknown key (expected 'descr', 'fortran_order' and 'shape', once each, found 'evil')");
  CHECK(dictionary_verdict("{'descr' '<f4'}") == "FMT a.npy: byte offset 19: a key has no value (expected ':', found ''<f4'}')");
  CHECK(dictionary_verdict("{'descr': '<f4' 'shape': ()}") ==
        "FMT a.npy: byte offset 26: the header's dictionary is damaged (expected ',' or '}', found ''shape': ()}')");
  CHECK(dictionary_verdict("{'descr': '<f4") ==
        "FMT a.npy: byte offset 24: a string of the header does not end (expected a closing quote, no escapes, found the "
        "end of the header)");
  CHECK(dictionary_verdict("{'des\\x63r': '<f4'}").find("a string of the header does not end (expected a closing quote, no escapes") !=
        std::string::npos);
  CHECK(
      dictionary_verdict("{'descr': __import__('os').system('true')}").starts_with("FMT a.npy: byte offset 20: the header's dictionary is damaged"));
  const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}";
  CHECK(dictionary_verdict(good) == "accepted");
  CHECK(dictionary_verdict(good + "x") == "FMT a.npy: byte offset 67: the header goes on behind its dictionary (expected spaces, found 'x')");
  CHECK(dictionary_verdict(good + "\0"s) == "FMT a.npy: byte offset 67: the header goes on behind its dictionary (expected spaces, found '\\x00')");
  CHECK(dictionary_verdict("{'descr': '<f4', 'fortran_order': 1, 'shape': (2, 3)}") ==
        "FMT a.npy: byte offset 44: 'fortran_order' has a value of the wrong kind (expected True or False, found '1, 'shape': ')");
}

TEST_CASE("NPZ-04: element types that NumPy has and we do not, and types without a byte order") {
  const auto with = [](const std::string& descr) { return verdict(npy_bytes(descr, "(2,)", "12345678")); };
  CHECK(with("|f4") == "FMT a.npy: byte offset 20: the array's type has no byte order (expected '<' or '>' before f4, found '|f4')");
  for (const std::string descr : {"f4", "", "<", "<f1", "<f3", "<f04", "<f4 ", "<c32", "<g", "<b2", "<i16", "<x4"})
    CHECK(with(descr).starts_with(
        "UNS a.npy: byte offset 20: the array has an unsupported type (expected booleans, integers, f2, f4, f8, c8 or c16, found '" + descr + "')"));
  CHECK(with("|O").starts_with("UNS a.npy: byte offset 20: the array holds pickled Python objects, which are never loaded"));
  CHECK(verdict(npy_bytes("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "1234"))
            .starts_with("UNS a.npy: byte offset 20: the array has a structured type"));
}

TEST_CASE("NPZ-05: shapes that are none, overflow, or are too large") {
  const std::string at = "FMT a.npy: byte offset ", kind = "'shape' has a value of the wrong kind (expected a tuple";
  CHECK(shape_verdict("6") == at + "60: " + kind + " of integers, found '6, }\\x0a')");
  CHECK(shape_verdict("[2, 3]") == at + "60: " + kind + " of integers, found '[2, 3], }\\x0a')");
  CHECK(shape_verdict("(6)") == at + "63: " + kind + ": (n,), found an integer in parentheses)");
  CHECK(shape_verdict("(2 3)") == at + "63: 'shape' is damaged (expected ',' or ')', found '3), }\\x0a')");
  for (const std::string bad : {"-1", "1.5", "1e3", "0x10", "03", "'2'", "True", "(2,)", ","}) {
    const std::string message = shape_verdict("(" + bad + ", 3)");
    INFO(bad << ": " << message);
    CHECK((message.find("'shape' holds something that is no extent (expected a non-negative integer") != std::string::npos ||
           message.find("'shape' is damaged") != std::string::npos));
  }
  CHECK(shape_verdict("(2, 18446744073709551616)") == at + "64: an extent overflows 64 bits (expected less than 2^64, found '18446744073709551616')");
  for (const std::string shape : {"(2, 9223372036854775808)", "(4294967296, 4294967296)", "(8589934592, 8589934592, 0)", "(4611686018427387904, 1)"})
    CHECK(shape_verdict(shape).find("the size of the array overflows 64 bits (found shape [") != std::string::npos);
  CHECK(shape_verdict("(281474976710656,)").find("LIM a.npy: byte offset ") == 0);
  CHECK(shape_verdict("(281474976710656,)")
            .find("the array is too large (expected fewer than 281474976710656 elements, found shape [281474976710656]); raise "
                  "limits::elements (--max-elements) if you trust it") != std::string::npos);
  std::string many = "(";
  for (int i = 0; i < 65; ++i) many += "1, ";
  CHECK(shape_verdict(many + ")", 4) ==
        "LIM a.npy: byte offset 253: the array has too many dimensions (expected at most 64); raise limits::rank (--max-rank) if you trust it");
}

TEST_CASE("NPZ-06: data shorter or longer than the shape says") {
  const auto with = [](std::size_t bytes) {
    return verdict(npy_bytes("{'descr':'<f4','fortran_order':False,'shape':(2,3)}", std::string(bytes, 'x')));
  };
  CHECK(with(24) == "accepted");
  CHECK(with(23) == "FMT a.npy: byte offset 84: the array is cut off (expected 24 bytes for f32 [2, 3], found 23); copy or download it again");
  CHECK(with(0) == "FMT a.npy: byte offset 61: the array is cut off (expected 24 bytes for f32 [2, 3], found 0); copy or download it again");
  CHECK(with(25) == "FMT a.npy: byte offset 85: 1 bytes behind the array belong to nothing (expected 24 bytes for f32 [2, 3], found 25)");
  CHECK(verdict(small_npy + small_npy).find(std::to_string(small_npy.size()) + " bytes behind the array belong to nothing") != std::string::npos);
}

TEST_CASE("NPZ-07: every truncation of an array and of an archive is a typed error") {
  for (std::size_t n = 0; n < small_npy.size(); ++n) {
    const auto read = ts::read_npy(file_of(small_npy.substr(0, n), "a.npy"));
    REQUIRE_FALSE(read);
    CHECK(read.error().code == ts::errc::malformed);
  }
  for (const bool deflated : {false, true}) {
    const std::string archive = zip_bytes({{"x.npy", small_npy, deflated}, {"y.npy", small_npy, deflated}});
    CHECK(zip_verdict(archive) == "accepted");
    for (std::size_t n = 0; n < archive.size(); ++n) {
      const auto read = ts::read_npz(file_of(archive.substr(0, n), "a.npz"));
      REQUIRE_FALSE(read);
      CHECK(read.error().code == ts::errc::malformed);
    }
  }
}

TEST_CASE("NPZ-08: every change of one byte of an array is a typed error or another array of the same size") {
  std::size_t accepted = 0;
  for (std::size_t at = 0; at + 12 < small_npy.size(); ++at)
    for (int change = 1; change < 256; ++change) {
      std::string bytes = small_npy;
      bytes[at] = static_cast<char>(bytes[at] ^ change);
      const auto read = ts::read_npy(file_of(bytes, "a.npy"));
      if (!read) {
        CHECK((read.error().code == ts::errc::malformed || read.error().code == ts::errc::unsupported || read.error().code == ts::errc::limit));
        continue;
      }
      ++accepted;
      const auto data = ts::materialize(read->entries()[0].tensor, {});
      REQUIRE(data);
      REQUIRE(data->size() == 12);
    }
  CHECK(accepted > 5);    // '<u2', '<f2', '>i2', other white space
  CHECK(accepted < 200);
}

TEST_CASE("NPZ-09: every change of one byte of an archive is a typed error, or gives the right bytes") {
  for (const bool deflated : {false, true}) {
    const std::string archive = zip_bytes({{"x.npy", small_npy, deflated}});
    const auto original = ts::read_npz(file_of(archive, "a.npz"));
    REQUIRE(original);
    std::size_t same = 0, damaged = 0;
    for (std::size_t at = 0; at < archive.size(); ++at)
      for (const int change : {1, 2, 4, 8, 16, 32, 64, 128, 255}) {
        std::string bytes = archive;
        bytes[at] = static_cast<char>(bytes[at] ^ change);
        const auto read = ts::read_npz(file_of(bytes, "a.npz"));
        if (!read) {
          CHECK(read.error().code != ts::errc::internal);
          continue;
        }
        if (read->tensors.empty()) continue;  // the name ends otherwise: listed as ignored
        const auto data = ts::materialize(read->tensors.entries()[0].tensor, {});
        if (!data) {
          CHECK((data.error().code == ts::errc::integrity || data.error().code == ts::errc::malformed));
          ++damaged;
          continue;
        }
        ++same;  // times, versions, attributes
        CHECK(*data == *ts::materialize(original->tensors.entries()[0].tensor, {}));
      }
    CHECK(same > 50);
    CHECK(damaged > 50);
  }
}

TEST_CASE("NPZ-10: deflate bombs stop at their declared size, before memory is spent") {
  const std::string bomb = zip_bytes({{"bomb.npy", npy_bytes("|u1", "(80000000,)", std::string(80'000'000, '\0')), true}});
  const std::string liar = zip_bytes({{"bomb.npy", npy_bytes("|u1", "(80000000,)", "x"), true, 0, 79'999'999}});
  const std::string below = zip_bytes({{"bomb.npy", npy_bytes("|u1", "(60000000,)", std::string(60'000'000, '\0')), true}});
  bounded_memory(bomb.size(), [&] {
    CHECK(zip_verdict(bomb).starts_with("LIM a.npz: zip entry 'bomb.npy': the deflated entry expands too much (expected at most 100 times, found "));
    CHECK(zip_verdict(liar).starts_with(
        "FMT a.npz: zip entry 'bomb.npy': the deflated entry cannot be as large as declared (expected at most 1032 times "));
    CHECK(zip_verdict(below) == "accepted");  // opening inflates its first bytes only
  });
  // Declared smaller than what comes out: the header is believed as far as the declared size goes.
  const std::string less = zip_bytes({{"x.npy", npy_bytes("|u1", "(10,)", std::string(1000, 'x')), true, 0, -990}});
  const auto read = ts::read_npz(file_of(less, "a.npz"));
  REQUIRE(read);
  CHECK(use(*read).find("zip entry 'x.npy': the entry inflates to more than it declares (expected ") != std::string::npos);
  const std::string more = zip_bytes({{"x.npy", npy_bytes("|u1", "(1000,)", std::string(10, 'x')), true, 0, 990}});
  const auto longer = ts::read_npz(file_of(more, "a.npz"));
  REQUIRE(longer);
  CHECK(use(*longer).starts_with("FMT a.npz: zip entry 'x.npy': the deflated data does not have the declared size (expected "));
}

TEST_CASE("NPZ-11: two arrays of one name, names that leave their folder") {
  CHECK(zip_verdict(zip_bytes({{"x.npy", small_npy}, {"x.npy", small_npy}})) == "FMT a.npz: zip entry 'x.npy': two entries have the same name");
  for (const std::string name : {"../x.npy", "/x.npy", "a/../../x.npy", "C:\\x.npy", "a//x.npy"})
    CHECK(zip_verdict(zip_bytes({{name, small_npy}})).starts_with("PTH a.npz: zip entry " + ts::quoted(name) + ": the entry's name "));
  CHECK(zip_verdict(zip_bytes({{"a/b/x.npy", small_npy}})) == "accepted");
}

TEST_CASE("NPZ-12: wrong checksums are found before anything is published") {
  const support::temp_folder folder;
  for (const bool deflated : {false, true}) {
    const auto read = ts::read_npz(file_of(zip_bytes({{"y.npy", small_npy, deflated}, {"x.npy", small_npy, deflated, 1}}), "a.npz"));
    REQUIRE(read);
    const auto written = ts::write_npz(read->tensors, folder / "out.npz", {});
    REQUIRE_FALSE(written);
    CHECK(written.error().code == ts::errc::integrity);
    CHECK(written.error().message().starts_with("ITG a.npz: zip entry 'x.npy': the contents do not match their checksum (expected CRC-32 0x"));
    CHECK(std::filesystem::is_empty(folder.path()));
  }
  ts::limits no_crc;
  no_crc.check_crc = false;
  const auto read = ts::read_npz(file_of(zip_bytes({{"x.npy", small_npy, true, 1}, {"y.npy", small_npy, false, 1}}), "a.npz"), no_crc);
  REQUIRE(read);
  CHECK(use(*read) == "read");
}

TEST_CASE("NPZ-13: pickled objects inside an archive are refused by name and never executed") {
  const support::temp_folder folder;
  // What numpy.load(allow_pickle=True) would run.
  const std::string pickle = npy_bytes("|O", "()", "cposix\nsystem\n(S'touch " + (folder / "executed") + "'\ntR.");
  CHECK(zip_verdict(zip_bytes({{"good.npy", small_npy}, {"evil.npy", pickle}})) ==
        "UNS a.npz: zip entry 'evil.npy', byte offset 20: the array holds pickled Python objects, which are never loaded (expected booleans, "
        "integers, f2, "
        "f4, f8, c8 or c16, found '|O'); save numbers: array.astype('f4')");
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("NPZ-14: entries that are no arrays are listed; those that only pretend are errors") {
  const auto read =
      ts::read_npz(file_of(zip_bytes({{"x.npy", small_npy}, {"folder/", ""}, {"data.pkl", "cposix\nsystem\n."}, {"x.NPY", "no"}}), "a.npz"));
  REQUIRE(read);
  CHECK(read->tensors.size() == 1);
  CHECK(read->ignored ==
        std::vector<std::string>{"'folder/': a folder", "'data.pkl': its name does not end in .npy", "'x.NPY': its name does not end in .npy"});
  CHECK(zip_verdict(zip_bytes({{"x.npy", "hello"}})) ==
        "FMT a.npz: zip entry 'x.npy', byte offset 0: the array does not start as a NumPy array (expected \\x93NUMPY, found 'hello')");
  CHECK(zip_verdict(zip_bytes({{"x.npy", ""}})) ==
        "FMT a.npz: zip entry 'x.npy', byte offset 0: the array does not start as a NumPy array (expected \\x93NUMPY, found nothing)");
  CHECK(zip_verdict(zip_bytes({{"x.npy", small_npy.substr(0, small_npy.size() - 1)}})) ==
        "FMT a.npz: zip entry 'x.npy', byte offset 81: the array is cut off (expected 12 bytes for i16 [2, 3], found 11); copy or download it again");
}

TEST_CASE("NPZ-15: damaged deflate data in a header") {
  std::string archive = zip_bytes({{"x.npy", small_npy, true}});
  archive[30 + 5] = '\xFF';  // the first byte of the stream: a reserved kind of block
  CHECK(zip_verdict(archive) ==
        "FMT a.npz: zip entry 'x.npy': the deflated data is damaged (expected a complete deflate stream, found invalid block type)");
}

TEST_CASE("NPZ-16: bytes before and behind the archive") {
  const std::string archive = zip_bytes({{"x.npy", small_npy}});
  CHECK_FALSE(ts::looks_like_npz(*file_of("#!/bin/sh\n" + archive, "a.npz")));
  CHECK(zip_verdict(archive + "x").find("does not end with its end record") != std::string::npos);
  CHECK_FALSE(zip_verdict("x" + archive) == "accepted");
}

TEST_CASE("NPZ-17: 60,000 arrays, and one more than the limit") {
  std::vector<support::zip_part> parts;
  for (int i = 0; i < 60'000; ++i) parts.push_back({"t" + std::to_string(i) + ".npy", small_npy});
  const std::string archive = zip_bytes(parts);
  const auto start = std::chrono::steady_clock::now();
  CHECK(zip_verdict(archive) == "accepted");
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));  // U4; generous for a busy machine and sanitizers
  ts::limits few;
  few.tensors = 59'999;
  CHECK(zip_verdict(archive, few) ==
        "LIM a.npz: zip entry 't59999.npy': the file has too many tensors (expected at most 59999); raise limits::tensors (--max-tensors) if you "
        "trust it");
}
