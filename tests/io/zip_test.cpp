// SPDX-License-Identifier: MIT
//
// Zip archives: what must be accepted, contents, checksums, and the archives we write.
#include "tensorsmith/io/zip.hpp"

#include <string>
#include <vector>

#include "../format/torch_bytes.hpp"
#include "support/catch.hpp"
#include "tensorsmith/io/zip_write.hpp"

namespace ts = tensorsmith;
using namespace torch_bytes;

namespace {

std::string contents(const ts::zip_archive& archive, const std::string& name) {
  const ts::zip_entry* e = archive.find(name);
  REQUIRE(e != nullptr);
  const auto bytes = ts::read_entry(archive, *e, 1u << 20, "--max-pickle");
  REQUIRE(bytes);
  return {reinterpret_cast<const char*>(bytes.value().data()), bytes.value().size()};
}

}  // namespace

TEST_CASE("stored and deflated entries are found by name and read") {
  const std::string long_text(300000, 'x');
  const auto archive = ts::open_zip(
      source(zip({{.name = "b", .data = "two"},
                  {.name = "a/c", .data = deflated(long_text), .method = 8, .size = long_text.size(), .crc32 = crc(long_text)},
                  {.name = "d/", .data = ""},
                  {.name = "empty", .data = ""}})));
  REQUIRE(archive);
  CHECK(archive.value().entries().size() == 4);
  CHECK(contents(archive.value(), "b") == "two");
  CHECK(contents(archive.value(), "a/c") == long_text);
  CHECK(contents(archive.value(), "empty").empty());
  CHECK(archive.value().find("c") == nullptr);
  CHECK(archive.value().find("zzz") == nullptr);
  CHECK(archive.value().find("d/")->is_folder());
}

TEST_CASE("ZIP64, data descriptors, padding fields and an archive comment are accepted") {
  const std::string padding = "FB" + le(5, 2) + "ZZZZZ";
  const std::string wide = le(1, 2) + le(16, 2) + le(3, 8) + le(3, 8);
  const auto archive = ts::open_zip(source(zip(
      {{.name = "a", .data = "one", .flags = 0x0800, .local_extra = padding, .descriptor = true},
       {.name = "b", .data = "two", .size = 0xFFFFFFFF, .compressed = 0xFFFFFFFF, .central_extra = wide, .local_extra = wide}},
      {.zip64 = true, .comment = "a comment"})));
  REQUIRE(archive);
  CHECK(contents(archive.value(), "a") == "one");
  CHECK(contents(archive.value(), "b") == "two");
}

TEST_CASE("an empty archive has no entries") {
  const auto archive = ts::open_zip(source(zip({})));
  REQUIRE(archive);
  CHECK(archive.value().entries().empty());
}

TEST_CASE("the checksum of a stored entry is compared if asked for; the answer is kept") {
  const std::string bytes = zip({{.name = "a", .data = "one", .crc32 = 7}});
  const auto archive = ts::open_zip(source(bytes));
  REQUIRE(archive);
  const ts::entry_bytes opened = ts::open_entry(archive.value(), archive.value().entries()[0]);
  REQUIRE(opened.check);
  for (int i = 0; i < 2; ++i) {
    auto verdict = opened.check->verify({});
    REQUIRE_FALSE(verdict);
    CHECK(verdict.error().message() ==
          "ITG m.ckpt: zip entry 'a': the contents do not match their checksum (expected CRC-32 0x00000007, found 0x7a6c86f1); "
          "the file is damaged, or was written without checksums: --no-crc reads it as it is");
  }
  ts::limits lax;
  lax.check_crc = false;
  const auto trusted = ts::open_zip(source(bytes), lax);
  REQUIRE(trusted);
  CHECK(ts::open_entry(trusted.value(), trusted.value().entries()[0]).check == nullptr);
  CHECK(contents(trusted.value(), "a") == "one");
}

TEST_CASE("a deflated entry can be read at any offset") {
  std::string text;
  for (int i = 0; i < 50000; ++i) text += std::to_string(i) + " ";
  const auto archive =
      ts::open_zip(source(zip({{.name = "a", .data = deflated(text), .method = 8, .size = text.size(), .crc32 = crc(text)}})));
  REQUIRE(archive);
  const ts::entry_bytes opened = ts::open_entry(archive.value(), archive.value().entries()[0]);
  CHECK(opened.source->size() == text.size());
  std::string part(1000, '\0');
  REQUIRE(opened.source->read_at(opened.offset + 123456, std::as_writable_bytes(std::span(part))));
  CHECK(part == text.substr(123456, 1000));
  CHECK_FALSE(opened.source->read_at(text.size() - 10, std::as_writable_bytes(std::span(part))));
}

TEST_CASE("an archive that we write is read back; contents arrive in any order") {
  ts::zip_layout layout;
  const std::string a(1000, 'a'), b = "hello, zip";
  layout.add("x/a", a.size(), 64);
  layout.add("x/b", b.size());
  layout.add("x/none", 0, 64);
  CHECK(layout.offset(0) % 64 == 0);
  CHECK(layout.offset(2) % 64 == 0);
  std::vector<std::byte> bytes(layout.file_bytes());
  ts::memory_sink sink(bytes);
  ts::crc_sink first(sink, layout.offset(0), layout.size(0)), second(sink, layout.offset(1), layout.size(1));
  const auto part = [](const std::string& s, std::size_t at, std::size_t n) {
    return std::as_bytes(std::span(s).subspan(at, n));
  };
  REQUIRE(first.write_at(700, part(a, 700, 300)));
  CHECK_FALSE(first.crc());  // a gap
  REQUIRE(first.write_at(0, part(a, 0, 1)));
  REQUIRE(first.write_at(1, part(a, 1, 699)));
  REQUIRE(second.write_at(0, part(b, 0, b.size())));
  CHECK_FALSE(second.write_at(b.size(), part(b, 0, 1)));
  const std::vector<std::uint32_t> crcs{first.crc().value(), second.crc().value(), 0};
  CHECK(crcs[0] == crc(a));
  REQUIRE(layout.write_headers(sink, crcs));
  const auto archive = ts::open_zip(std::make_shared<ts::memory_source>("m", bytes));
  REQUIRE(archive);
  CHECK(contents(archive.value(), "x/a") == a);
  CHECK(contents(archive.value(), "x/b") == b);
  CHECK(contents(archive.value(), "x/none").empty());
  CHECK(archive.value().find("x/a")->data_offset == layout.offset(0));
}

TEST_CASE("an archive beyond 4 GiB gets ZIP64 records") {
  ts::zip_layout layout;
  layout.add("big", 5'000'000'000, 64);
  layout.add("behind", 3);
  CHECK(layout.offset(0) % 64 == 0);
  CHECK(layout.offset(1) > 5'000'000'000);
  // Only headers are written; the contents are holes.
  struct sparse_file final : ts::byte_source, ts::byte_sink {
    std::uint64_t bytes = 0;
    std::string label = "sparse";
    std::vector<std::pair<std::uint64_t, std::string>> pieces;
    std::uint64_t size() const noexcept override { return bytes; }
    const std::string& name() const noexcept override { return label; }
    ts::result<void> write_at(std::uint64_t at, std::span<const std::byte> data) override {
      pieces.emplace_back(at, std::string(reinterpret_cast<const char*>(data.data()), data.size()));
      return {};
    }
    ts::result<void> read_at(std::uint64_t at, std::span<std::byte> out) const override {
      std::memset(out.data(), 0, out.size());
      for (const auto& [start, data] : pieces)
        for (std::size_t i = 0; i < data.size(); ++i)
          if (start + i >= at && start + i < at + out.size()) out[start + i - at] = static_cast<std::byte>(data[i]);
      return {};
    }
  };
  auto file = std::make_shared<sparse_file>();
  file->bytes = layout.file_bytes();
  REQUIRE(layout.write_headers(*file, std::vector<std::uint32_t>{1, 2}));
  const auto archive = ts::open_zip(std::shared_ptr<const ts::byte_source>(file));
  REQUIRE(archive);
  CHECK(archive.value().find("big")->size == 5'000'000'000);
  CHECK(archive.value().find("big")->data_offset == layout.offset(0));
  CHECK(archive.value().find("behind")->data_offset == layout.offset(1));
}
