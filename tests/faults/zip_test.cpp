// SPDX-License-Identifier: MIT
//
// Damaged and hostile zip containers of torch checkpoints: each is refused with one sentence that names what is wrong.
#include <ctime>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../format/torch_bytes.hpp"
#include "support/catch.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;
using namespace torch_bytes;

namespace {

/// "CODE message" of reading a file and all of its tensors, or "ok".
std::string verdict(const std::string& bytes, const ts::limits& bounds = {}) {
  const auto c = ts::read_torch(source(bytes), bounds);
  if (!c) return c.error().message();
  for (const auto& e : c.value().tensors.entries()) {
    const auto data = ts::materialize(e.tensor, {});
    if (!data) return data.error().message();
  }
  return "ok";
}
std::vector<entry> good() { return checkpoint_entries(one({})); }
/// The archive of good() with one entry changed.
template <class Change>
std::string changed(std::size_t index, Change change, const end_record& end = {}) {
  auto entries = good();
  change(entries[index]);
  return zip(entries, end);
}

/// A source that is nothing but the end of an archive of ten million entries; counts what is read from it.
class end_only final : public ts::byte_source {
 public:
  explicit end_only(std::string end) : end_(std::move(end)) {}
  std::uint64_t size() const noexcept override { return front + end_.size(); }
  const std::string& name() const noexcept override { return name_; }
  ts::result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override {
    read += out.size();
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::uint64_t at = offset + i;
      out[i] = static_cast<std::byte>(at < 4 ? "PK\3\4"[at] : at < front ? '\0' : end_[static_cast<std::size_t>(at - front)]);
    }
    return {};
  }
  static constexpr std::uint64_t count = 10001000, directory = count * 60, start = count * 45, front = start + directory;
  mutable std::uint64_t read = 0;

 private:
  std::string end_, name_ = "m.ckpt";
};

}  // namespace

TEST_CASE("ZIP-01: a file cut short has no end record") {
  const std::string whole = zip([] {
    auto e = good();
    e[2].data += std::string(4000, '\0');
    return e;
  }());
  CHECK(verdict(whole) == "ok");
  for (const std::size_t cut : {std::size_t{1}, std::size_t{22}, std::size_t{1000}, whole.size() / 2}) {
    const std::string message = verdict(whole.substr(0, whole.size() - cut));
    CHECK_THAT(message, Contains("FMT m.ckpt: "));
    if (cut > 1)
      CHECK_THAT(message, Contains("the zip archive has no end record") && Contains("is the download incomplete?"));
    else
      CHECK_THAT(message, Contains("no end record"));
  }
  CHECK(verdict(whole.substr(0, whole.size() - 22)) ==
        "FMT m.ckpt: the zip archive has no end record (expected PK\\5\\6 in the last 64 KiB, found none); is the download incomplete?");
}

TEST_CASE("ZIP-02: end record beyond the file") {
  CHECK_THAT(verdict(zip(good(), {.offset = 0xFFFFFFF0})),
             Contains("FMT") && Contains("does not end where its end record begins"));
  CHECK_THAT(verdict(zip(good(), {.size = 0xFFFFFFF0})), Contains("FMT") && Contains("does not end where its end record begins"));
  CHECK_THAT(verdict(zip(good(), {.size = 0xFFFFFF00, .offset = 0xFFFFFF00})), Contains("FMT"));
  CHECK_THAT(verdict(zip(good(), {.size = 10})), Contains("FMT"));
  CHECK(verdict(zip(good(), {.offset = 0xFFFFFFF0})) ==
        "FMT m.ckpt: byte offset 651: the central directory does not end where its end record begins (expected byte 651, found offset "
        "4294967280 and 246 bytes)");
}

TEST_CASE("ZIP-03: counts are not trusted") {
  CHECK_THAT(verdict(zip(good(), {.count = 65535})), Contains("FMT") && Contains("65535") && Contains("counts"));
  CHECK_THAT(verdict(zip(good(), {.count = 3})), Contains("FMT") && Contains("expected 3, found 4"));
  CHECK_THAT(verdict(zip(good(), {.zip64 = true, .count64 = std::uint64_t{1} << 63})),
             Contains("FMT") && Contains("9223372036854775808"));
  CHECK(verdict(zip(good(), {.zip64 = true})) == "ok");
  CHECK(verdict(zip(good(), {.count = 65535})) ==
        "FMT m.ckpt: byte offset 651: the end record counts more entries than the directory has room for (expected 65535 entries, found "
        "246 bytes)");
  CHECK(verdict(zip(good(), {.count = 3})) == "FMT m.ckpt: the end record counts other entries than the central directory has (expected 3, found 4)");
  CHECK(verdict(zip(good(), {.zip64 = true, .count64 = std::uint64_t{1} << 63})) ==
        "FMT m.ckpt: the end record counts other entries than the central directory has (expected 9223372036854775808, found 4)");
}

TEST_CASE("ZIP-04: damaged ZIP64 extra fields") {
  const auto with = [](const std::string& extra) {
    return changed(2, [&](entry& e) {
      e.size = e.compressed = 0xFFFFFFFF;
      e.central_extra = extra;
      e.descriptor = true;
    });
  };
  CHECK_THAT(verdict(with("")), Contains("FMT") && Contains("ZIP64 extra field that is not there"));
  CHECK_THAT(verdict(with(le(1, 2) + le(0, 2))), Contains("FMT") && Contains("impossible size"));
  CHECK_THAT(verdict(with(le(1, 2) + le(7, 2) + std::string(7, '\0'))),
             Contains("FMT") && Contains("too short (expected 8 bytes, found 7)"));
  CHECK_THAT(verdict(with(le(1, 2) + le(65535, 2))), Contains("FMT") && Contains("an extra field reaches past its record"));
  CHECK_THAT(verdict(with(le(1, 2) + le(8, 2) + le(24, 8))),
             Contains("FMT") && Contains("too short (expected 16 bytes, found 8)"));
  CHECK_THAT(verdict(with(le(1, 2) + le(16, 2) + le(24, 8) + le(std::uint64_t{1} << 40, 8))), Contains("FMT"));
  CHECK_THAT(verdict(with(le(1, 2) + le(16, 2) + le(24, 8) + le(24, 8) + le(1, 2) + le(16, 2) + le(24, 8) + le(24, 8))),
             Contains("FMT") && Contains("two ZIP64"));
  CHECK(verdict(with(le(1, 2) + le(16, 2) + le(24, 8) + le(24, 8))) == "ok");
  CHECK(verdict(with(le(1, 2) + le(7, 2) + std::string(7, '\0'))) ==
        "FMT m.ckpt: zip entry 'archive/data/0': the ZIP64 extra field is too short (expected 8 bytes, found 7)");
  CHECK(verdict(with(le(1, 2) + le(65535, 2))) ==
        "FMT m.ckpt: zip entry 'archive/data/0': an extra field reaches past its record (expected 0 bytes at most, found 65535)");
}

TEST_CASE("ZIP-05: two names for one entry") {
  CHECK_THAT(
      verdict(changed(0, [](entry& e) { e.local_name = "archive/evil.pkl"; })),
      Contains("FMT m.ckpt: zip entry 'archive/data.pkl': the local header has another name") && Contains("'archive/evil.pkl'"));
  CHECK_THAT(verdict(changed(0, [](entry& e) { e.local_name = "a"; })), Contains("FMT") && Contains("another name"));
  CHECK(verdict(changed(0, [](entry& e) { e.local_name = "archive/evil.pkl"; })) ==
        "FMT m.ckpt: zip entry 'archive/data.pkl': the local header has another name than the central directory (expected "
        "'archive/data.pkl', found 'archive/evil.pkl', 16 bytes)");
}

TEST_CASE("ZIP-06: the local header contradicts the directory") {
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.local_size = 23; })),
             Contains("FMT m.ckpt: zip entry 'archive/data/0': the local header contradicts"));
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.local_compressed = 0; })), Contains("FMT") && Contains("contradicts"));
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.local_crc = 5; })),
             Contains("FMT") && Contains("contradicts") && Contains("0x00000005"));
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.local_method = 8; })), Contains("FMT") && Contains("another method"));
  CHECK(verdict(changed(2, [](entry& e) { e.local_size = 23; })) ==
        "FMT m.ckpt: zip entry 'archive/data/0': the local header contradicts the central directory (expected CRC 0x91e79017, 24 and 24 "
        "bytes, found CRC 0x91e79017, 24 and 23 bytes)");
  CHECK(verdict(changed(2, [](entry& e) { e.local_method = 8; })) ==
        "FMT m.ckpt: zip entry 'archive/data/0': the local header has another method than the central directory (expected 0, found 8)");
}

TEST_CASE("ZIP-07, ZIP-24: flags that change the meaning of the data") {
  for (const int flag : {0x1, 0x20, 0x40, 0x2000, 0x10}) {
    CHECK_THAT(verdict(changed(2, [&](entry& e) { e.flags = flag; })),
               Contains("UNS m.ckpt: zip entry 'archive/data/0'") && Contains("flags 0x"));
    CHECK_THAT(verdict(changed(2, [&](entry& e) { e.local_flags = flag; })), Contains("UNS") && Contains("flags 0x"));
  }
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.flags = 1; })), Contains("the entry is encrypted"));  // ZIP-24
  CHECK(verdict(changed(2, [](entry& e) { e.flags = 0x2000; })) ==
        "UNS m.ckpt: zip entry 'archive/data/0': the headers of the archive are masked (expected no flags but 0x080e, found flags 0x2000)");
}

TEST_CASE("ZIP-08: wrong checksums") {
  CHECK_THAT(verdict(changed(0, [](entry& e) { e.crc32 = 1; })),
             Contains("ITG m.ckpt: zip entry 'archive/data.pkl': the contents do not match their checksum (expected CRC-32 "
                      "0x00000001, found 0x") &&
                 Contains("--no-crc"));
  const std::string storage = changed(2, [](entry& e) { e.crc32 = 1; });
  CHECK_THAT(verdict(storage), Contains("ITG m.ckpt: zip entry 'archive/data/0'"));
  ts::limits lax;
  lax.check_crc = false;
  CHECK(verdict(storage, lax) == "ok");
  CHECK(verdict(changed(2, [](entry& e) { e.crc32 = 1; })) ==
        "ITG m.ckpt: zip entry 'archive/data/0': the contents do not match their checksum (expected CRC-32 0x00000001, found 0x91e79017); "
        "the file is damaged, or was written without checksums: --no-crc reads it as it is");
}

TEST_CASE("ZIP-09: decompression bombs stop at the declared size or before") {
  const std::string zeros(200u << 20, '\0'), packed = deflated(zeros);
  const std::uint32_t sum = crc(zeros);
  const auto bomb = [&](std::size_t index, std::uint64_t size) {
    return changed(index, [&](entry& e) {
      e.data = packed;
      e.method = 8;
      e.size = size;
      e.crc32 = sum;
    });
  };
  CHECK_THAT(verdict(bomb(0, zeros.size())),
             Contains("LIM") && Contains("expands too much (expected at most 100 times") && Contains("--max-expansion"));
  CHECK_THAT(verdict(bomb(2, zeros.size())), Contains("LIM") && Contains("zip entry 'archive/data/0'"));
  CHECK_THAT(verdict(bomb(2, std::uint64_t{4} << 30)), Contains("FMT"));
  CHECK_THAT(verdict(bomb(0, 1000)), Contains("FMT m.ckpt: zip entry 'archive/data.pkl': the entry inflates to more than it "
                                              "declares (expected 1000 bytes, found more)"));
  CHECK_THAT(verdict(bomb(2, 24)), Contains("FMT") && Contains("inflates to more than it declares"));
  CHECK_THAT(verdict(changed(0,
                             [&](entry& e) {
                               e.data = deflated(e.data);
                               e.method = 8;
                               e.size = 1000;
                             })),
             Contains("FMT") && Contains("does not have the declared size"));
  CHECK_THAT(verdict(changed(0,
                             [&](entry& e) {
                               e.data = "\xff\xff" + e.data;
                               e.method = 8;
                               e.size = 100;
                             })),
             Contains("FMT") && Contains("the deflated data is damaged"));
  CHECK_THAT(verdict(changed(0,
                             [&](entry& e) {
                               e.data = deflated(e.data);
                               e.size = e.data.size() * 2;
                               e.data.resize(e.data.size() / 2);
                               e.method = 8;
                             })),
             Contains("FMT"));
  CHECK(verdict(bomb(2, zeros.size())) ==
        "LIM m.ckpt: zip entry 'archive/data/0': the deflated entry expands too much (expected at most 100 times, found 209715200 bytes from " +
            std::to_string(packed.size()) + "); raise it with --max-expansion");
  CHECK(verdict(bomb(2, 24)) ==
        "FMT m.ckpt: zip entry 'archive/data/0': the entry inflates to more than it declares (expected 24 bytes, found more)");
}

TEST_CASE("ZIP-10: overlapping entries") {
  auto entries = good();
  entries.push_back({.name = "archive/data/1", .data = floats(6)});
  const std::string bytes = zip(entries);
  const std::size_t second = bytes.rfind("PK\x03\x04");
  // the last entry's directory record points at a local header hidden inside the previous entry's data
  const std::string inner =
      "PK\x03\x04" + le(20, 2) + le(0, 4) + le(0, 4) + le(crc(""), 4) + le(0, 8) + le(14, 2) + le(0, 2) + "archive/data/1";
  auto nested = good();
  nested[2].data = inner;
  const std::size_t at = zip(nested).find(inner);
  nested.push_back({.name = "archive/data/1", .data = "", .offset = at});
  CHECK_THAT(verdict(zip(nested)), Contains("FMT") && Contains("overlaps 'archive/data/0'"));
  CHECK(second != bytes.npos);
  CHECK(verdict(zip(nested)) ==
        "FMT m.ckpt: zip entry 'archive/data/1': the entry overlaps 'archive/data/0' (expected a start at or after byte 378, found byte 334)");
}

TEST_CASE("ZIP-11: other compression methods") {
  for (const int method : {1, 9, 12, 14, 93, 99})
    CHECK_THAT(verdict(changed(2, [&](entry& e) { e.method = method; })),
               Contains("UNS") && Contains("method " + std::to_string(method)));
  CHECK(verdict(changed(2, [](entry& e) { e.method = 93; })) ==
        "UNS m.ckpt: zip entry 'archive/data/0': the entry is compressed in an unsupported way (expected method 0 (stored) or 8 "
        "(deflated), found method 93)");
}

TEST_CASE("ZIP-12: ambiguous archives") {
  auto twice = good();
  twice.push_back({.name = "other/data.pkl", .data = one({})});
  CHECK_THAT(verdict(zip(twice)),
             Contains("FMT m.ckpt: zip entry 'other/data.pkl': the archive is ambiguous") && Contains("'archive/data.pkl'"));
  auto same = good();
  same.push_back(same[0]);
  CHECK_THAT(verdict(zip(same)), Contains("FMT") && Contains("two entries have the same name"));
  auto backup = good();
  backup.insert(backup.begin(), {.name = "archive/data.pkl.bak", .data = "no pickle"});
  CHECK(verdict(zip(backup)) == "ok");
  auto only = good();
  only[0].name = "archive/data.pkl.bak";
  CHECK_THAT(verdict(zip(only)), Contains("UNS") && Contains("no torch checkpoint"));
  auto elsewhere = good();
  elsewhere.insert(elsewhere.begin(), {.name = "first/x", .data = ""});
  CHECK_THAT(verdict(zip(elsewhere)), Contains("FMT") && Contains("two top folders"));
  CHECK(verdict(zip(twice)) ==
        "FMT m.ckpt: zip entry 'other/data.pkl': the archive is ambiguous: it has two checkpoints (expected one data.pkl, found also "
        "'archive/data.pkl')");
  CHECK(verdict(zip(same)) == "FMT m.ckpt: zip entry 'archive/data.pkl': two entries have the same name");
  CHECK(verdict(zip(only)) ==
        "UNS m.ckpt: the zip archive is no torch checkpoint (expected an entry <folder>/data.pkl, found 'archive/data.pkl.bak', "
        "'archive/byteorder', 'archive/data/0', 'archive/version')");
}

TEST_CASE("ZIP-13: names that are no relative paths") {
  for (const std::string name : {"../../e", "/abs", "C:\\x", "a\\b", ".", "a/./b", "a/../b", "a//b"}) {
    auto entries = good();
    entries.push_back({.name = name, .data = ""});
    CHECK_THAT(verdict(zip(entries)), Contains("PTH m.ckpt: zip entry "));
  }
  auto null = good();
  null.push_back({.name = "a\0b"_s, .data = ""});
  CHECK_THAT(verdict(zip(null)), Contains("PTH") && Contains("'a\\x00b'"));
  CHECK(verdict(zip(null)) ==
        "PTH m.ckpt: zip entry 'a\\x00b': the entry's name is no relative path (expected a relative path with '/', found 'a\\x00b')");
}

TEST_CASE("ZIP-14: an archive starts at byte 0 and ends with its end record") {
  CHECK_THAT(verdict(zip(good(), {.prefix = "MZ polyglot"})), Contains("FMT") && Contains("expected byte 0, found byte 11"));
  CHECK_THAT(verdict(zip(good(), {.prefix = "PK\x03\x04 polyglot"})), Contains("FMT"));
  CHECK_THAT(verdict("PK\x03\x04" + zip(good())), Contains("FMT"));
  CHECK_THAT(verdict(zip(good(), {.suffix = "trailing"})), Contains("FMT") && Contains("does not end with its end record"));
  const std::string whole = zip(good());
  CHECK_THAT(verdict(whole + whole), Contains("FMT"));
  const std::string inner = whole.substr(whole.size() - 22);
  CHECK_THAT(verdict(zip(good(), {.comment = inner})), Contains("FMT") && Contains("more than one end record"));
  CHECK_THAT(verdict(zip(good(), {.comment = std::string(65535 - 22, ' ') + inner})), Contains("FMT"));
  CHECK_THAT(verdict(zip(good(), {.comment = inner + std::string(65535 - 22, ' ')})), Contains("FMT"));
  CHECK(verdict(zip(good(), {.comment = std::string(65535, ' ')})) == "ok");
  CHECK(verdict(zip(good(), {.prefix = "MZ polyglot"})) ==
        "FMT m.ckpt: the zip archive does not start at the first byte of the file (expected byte 0, found byte 11)");
  CHECK(verdict(zip(good(), {.suffix = "trailing"})) ==
        "FMT m.ckpt: byte offset 651: the zip archive does not end with its end record (expected a file of 673 bytes, found 681)");
  CHECK(verdict(zip(good(), {.comment = inner})) ==
        "FMT m.ckpt: byte offset 673: the zip archive has more than one end record (expected one, found 2)");
}

TEST_CASE("ZIP-15: archives over several disks") {
  CHECK_THAT(verdict(zip(good(), {.disk = 2})), Contains("UNS") && Contains("several disks"));
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.disk = 1; })), Contains("UNS") && Contains("another disk"));
  CHECK(verdict(zip(good(), {.disk = 2})) == "UNS m.ckpt: byte offset 651: the zip archive is split over several disks (expected disk 0, found 2)");
}

TEST_CASE("ZIP-16: a million entries") {
  const std::string pickle = one({});
  const auto archive = [&](std::uint32_t count) {  // put together without a list of entries, which would be larger than the archive
    std::string out, directory;
    const auto add = [&](const std::string& name, const std::string& data) {
      const std::string fixed = le(0, 4) + le(0, 4) + le(crc(data), 4) + le(data.size(), 4) + le(data.size(), 4) + le(name.size(), 2) + le(0, 2);
      directory += "PK\x01\x02" + le(20, 2) + le(20, 2) + fixed + le(0, 10) + le(out.size(), 4) + name;
      out += "PK\x03\x04" + le(20, 2) + fixed + name + data;
    };
    for (const entry& e : good()) add(e.name, e.data);
    for (std::uint32_t i = 4; i < count; ++i) add("archive/data/" + std::to_string(i), "");
    const std::uint64_t start = out.size(), record = start + directory.size();
    out += directory + le(0x06064B50, 4) + le(44, 8) + le(45, 2) + le(45, 2) + le(0, 8) + le(count, 8) + le(count, 8) +
           le(directory.size(), 8) + le(start, 8) + le(0x07064B50, 4) + le(0, 4) + le(record, 8) + le(1, 4) + le(0x06054B50, 4) + le(0, 4) +
           le(0xFFFFFFFF, 4) + le(~std::uint64_t{0}, 8) + le(0, 2);
    return out;
  };
  const auto file = source(archive(1000000));
  const std::clock_t start = std::clock();
  const auto c = ts::read_torch(file);
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  if (!c) FAIL(c.error().message());
  CHECK(c.value().tensors.size() == 1);
  CHECK(seconds < 15);  // linear, 1 s without sanitizers
  const auto refused = [&](const ts::limits& bounds) {
    const auto answer = ts::read_torch(file, bounds);
    return answer ? "ok" : answer.error().message();
  };
  ts::limits tight;
  tight.zip_entries = 999999;
  CHECK(refused(tight) == "LIM m.ckpt: byte offset 113777950: the zip archive has too many entries (expected 999999 at most, found 1000000); "
          "raise it with --max-zip-entries");
  tight = {};
  tight.zip_directory_bytes = 1000;
  CHECK(refused(tight) == "LIM m.ckpt: byte offset 113778091: the central directory is too large (expected 1000 bytes at most, found 64888896); "
          "raise it with --max-zip-directory");
}

TEST_CASE("ZIP-16: ten million entries") {
  // Their directory alone is larger than what is read of one: refused by its size, with nothing but the end of the file read.
  const auto file = std::make_shared<end_only>(le(0x06064B50, 4) + le(44, 8) + le(45, 2) + le(45, 2) + le(0, 8) + le(end_only::count, 8) +
                                               le(end_only::count, 8) + le(end_only::directory, 8) + le(end_only::start, 8) + le(0x07064B50, 4) +
                                               le(0, 4) + le(end_only::front, 8) + le(1, 4) + le(0x06054B50, 4) + le(0, 4) + le(0xFFFFFFFF, 4) +
                                               le(~std::uint64_t{0}, 8) + le(0, 2));
  const auto c = ts::read_torch(file);
  REQUIRE_FALSE(c);
  CHECK(c.error().message() == "LIM m.ckpt: byte offset 1050105076: the central directory is too large (expected 268435456 bytes at most, found "
          "600060000); raise it with --max-zip-directory");
  CHECK(file->read < 100000);
}

TEST_CASE("ZIP-17: sizes that the file cannot have") {
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.size = e.compressed = 2'200'000'000; })),
             Contains("FMT") && Contains("reaches past") && Contains("2200000000 bytes"));
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.size = 2'200'000'000; })),
             Contains("FMT") && Contains("the stored entry has two sizes (expected 2200000000 bytes, found 24)"));
  CHECK(verdict(changed(2, [](entry& e) { e.size = e.compressed = 2'200'000'000; })) ==
        "FMT m.ckpt: zip entry 'archive/data/0': the entry reaches past the entries' part of the file (expected an end at or before byte "
        "405, found offset 290 and 2200000000 bytes)");
}

TEST_CASE("ZIP-18: byte order") {
  const auto order = [](const std::string& text) { return verdict(changed(1, [&](entry& e) { e.data = text; })); };
  CHECK(order("little") == "ok");
  const auto swapped = ts::read_torch(source(changed(1, [](entry& e) { e.data = "big"; })));
  REQUIRE(swapped);
  const auto bytes = ts::materialize(swapped.value().tensors.entries()[0].tensor, {});
  REQUIRE(bytes);
  CHECK(bytes.value()[7] == std::byte{0});  // 1.0f with its bytes in reverse
  CHECK(bytes.value()[4] == std::byte{0x3f});
  CHECK(swapped.value().notes[0].text == "The storages are big-endian: their bytes are swapped as they are read.");
  auto untyped = checkpoint_entries(program("}" + text("w") + global("torch._utils", "_rebuild_tensor_v3") + "(" +
                                            storage({.storage = "UntypedStorage", .module = "torch.storage", .numel = 24}) + integer(0) +
                                            tuple({3}) + tuple({1}) + "\x89N" + global("torch", "uint16") + "tRs"));
  CHECK(verdict(zip(untyped)) == "ok");
  untyped[1].data = "big";
  CHECK(verdict(zip(untyped)) ==
        "UNS m.ckpt: zip entry 'archive/data.pkl', byte offset 166, tensor 'w': the tensor lies in an untyped storage of a big-endian "
        "file (expected a typed storage, found u16); save the file again on a little-endian machine");
  CHECK_THAT(order("middle"), Contains("FMT") && Contains("'middle'"));
  CHECK_THAT(order(std::string(1u << 20, 'l')), Contains("FMT") && Contains("1048576 bytes"));
  auto without = good();
  without.erase(without.begin() + 1);
  const auto c = ts::read_torch(source(zip(without)));
  REQUIRE(c);
  REQUIRE(c.value().notes.size() == 1);
  CHECK_THAT(c.value().notes[0].text, Contains("does not name its byte order"));
  CHECK(order("middle") == "FMT m.ckpt: zip entry 'archive/byteorder': the byte order is unknown (expected 'little' or 'big', found 'middle')");
}

TEST_CASE("the version of the format") {
  const auto version = [](const std::string& text) { return verdict(changed(3, [&](entry& e) { e.data = text; })); };
  CHECK(version("3") == "ok");
  CHECK(version("10\n") == "ok");
  CHECK_THAT(version("11\n"), Contains("UNS") && Contains("'11'"));
  CHECK_THAT(version("three"), Contains("FMT") && Contains("'three'"));
}

TEST_CASE("ZIP-19: TorchScript archives") {
  for (const std::string name : {"archive/constants.pkl", "archive/code/__torch__.py"}) {
    auto entries = good();
    entries.push_back({.name = name, .data = ""});
    CHECK_THAT(verdict(zip(entries)), Contains("UNS") && Contains("TorchScript program, not a state dict"));
  }
  CHECK(verdict(zip([] {
          auto entries = good();
          entries.push_back({.name = "archive/code/__torch__.py", .data = ""});
          return entries;
        }())) ==
        "UNS m.ckpt: zip entry 'archive/code/__torch__.py': the file is a TorchScript program, not a state dict (expected a checkpoint of "
        "torch.save, found a program of torch.jit.save); save the state_dict of the model with torch.save");
}

TEST_CASE("ZIP-20: storages of another length than the pickle says") {
  CHECK_THAT(verdict(changed(2, [](entry& e) { e.data = floats(5); })),
             Contains("FMT") &&
                 Contains("storage '0' is shorter than declared (expected 24 bytes (6 elements of f32), found 20 bytes)"));
  const auto c = ts::read_torch(source(changed(2, [](entry& e) { e.data = floats(8); })));
  REQUIRE(c);
  REQUIRE(c.value().notes.size() == 1);
  CHECK_THAT(c.value().notes[0].text, Contains("8 bytes behind the declared end"));
  auto missing = good();
  missing.erase(missing.begin() + 2);
  CHECK_THAT(verdict(zip(missing)), Contains("FMT m.ckpt: zip entry 'archive/data/0': the storage is missing"));
  CHECK(verdict(changed(2, [](entry& e) { e.data = floats(5); })) ==
        "FMT m.ckpt: zip entry 'archive/data.pkl', byte offset 188, tensor 'w': storage '0' is shorter than declared (expected 24 bytes "
        "(6 elements of f32), found 20 bytes); is the download incomplete?");
}

TEST_CASE("ZIP-21: other archives under the name of a checkpoint") {
  for (const std::string& head : {"7z\xbc\xaf\x27\x1c"_s, "\x1f\x8b\x08\0"_s, "Rar!\x1a\x07"_s, "{}"_s, ""_s})
    CHECK_THAT(verdict(head), Contains("UNS m.ckpt: byte offset 0: the file is no torch checkpoint"));
  CHECK_THAT(verdict("7z\xbc\xaf\x27\x1c"), Contains("first bytes 37 7a bc af 27 1c"));
  CHECK_THAT(verdict(zip({{.name = "m.ckpt", .data = zip(good())}})), Contains("UNS") && Contains("no torch checkpoint"));
  CHECK(verdict("7z\xbc\xaf\x27\x1c") ==
        "UNS m.ckpt: byte offset 0: the file is no torch checkpoint (expected a zip archive, a legacy stream, a tar file or a pickle, "
        "found first bytes 37 7a bc af 27 1c)");
}

TEST_CASE("ZIP-22: folders, empty names, duplicates") {
  auto folders = good();
  folders.push_back({.name = "archive/data/", .data = ""});
  CHECK(verdict(zip(folders)) == "ok");
  auto empty = good();
  empty.push_back({.name = "", .data = ""});
  CHECK_THAT(verdict(zip(empty)), Contains("FMT") && Contains("an entry has no name"));
  auto twice = good();
  twice.push_back({.name = "archive/data/0", .data = floats(6)});
  CHECK_THAT(verdict(zip(twice)), Contains("FMT") && Contains("two entries have the same name"));
  CHECK(verdict(zip(twice)) == "FMT m.ckpt: zip entry 'archive/data/0': two entries have the same name");
}

TEST_CASE("ZIP-25: every truncation and every flipped bit") {
  const std::string whole = zip(good());
  for (std::size_t n = 0; n < whole.size(); ++n) CHECK(verdict(whole.substr(0, n)) != "ok");
  const auto expected = [&] {
    const auto c = ts::read_torch(source(whole));
    return ts::materialize(c.value().tensors.entries()[0].tensor, {}).value();
  }();
  std::size_t accepted = 0;
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    const auto c = ts::read_torch(source(damaged));
    if (!c) continue;
    const auto data = ts::materialize(c.value().tensors.entries()[0].tensor, {});
    if (!data) continue;
    ++accepted;
    CHECK(data.value() == expected);  // a date, an attribute: fields that mean nothing
  }
  CHECK(accepted > 0);
}
