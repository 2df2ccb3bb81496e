// SPDX-License-Identifier: MIT
#include "tensorsmith/io/descriptor_pool.hpp"

#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/io/file.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;

namespace {

void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

std::string all_of(const ts::byte_source& file) {
  std::string text(static_cast<std::size_t>(file.size()), '?');
  const auto read = file.read_at(0, std::as_writable_bytes(std::span(text)));
  return read ? text : read.error().message();
}

/// `count` files "0", "1", … that hold their name, opened with one pool.
std::vector<std::shared_ptr<const ts::byte_source>> open_many(const support::temp_folder& folder, unsigned count,
                                                              const std::shared_ptr<ts::descriptor_pool>& pool) {
  std::vector<std::shared_ptr<const ts::byte_source>> files;
  for (unsigned i = 0; i < count; ++i) {
    put(folder / std::to_string(i), std::to_string(i));
    auto file = ts::open_file_below(folder.path().string(), std::to_string(i), "index", false, pool);
    REQUIRE(file);
    files.push_back(std::move(file).value());
  }
  return files;
}

}  // namespace

TEST_CASE("many files of a pool are read with few descriptors (IO-10, BIG-04)") {
  const support::temp_folder folder;
  const std::size_t before = open_descriptors();
  const auto pool = std::make_shared<ts::descriptor_pool>(5);
  auto files = open_many(folder, 300, pool);
  CHECK(open_descriptors() == before + 5);
  for (int round = 0; round < 3; ++round)
    for (unsigned i = 0; i < files.size(); ++i) REQUIRE(all_of(*files[i]) == std::to_string(i));
  CHECK(pool->open_count() == 5);
  CHECK(open_descriptors() == before + 5);
  for (const auto& file : files) CHECK(file->check_unchanged());
  files.resize(2);
  CHECK(pool->open_count() <= 2);
  files.clear();
  CHECK(open_descriptors() == before);
}

TEST_CASE("a file that is opened again must be the same") {
  const support::temp_folder folder;
  const auto pool = std::make_shared<ts::descriptor_pool>(1);
  const auto files = open_many(folder, 4, pool);  // the last one is open
  const auto refused = [&](unsigned i) {
    char text[1];
    const auto read = files[i]->read_at(0, std::as_writable_bytes(std::span(text)));
    return read ? std::string("read") : read.error().message();
  };
  put(folder / "new", "0");
  fs::rename(folder / "new", folder / "0");
  CHECK(refused(0) == "ITG " + (folder / "0") + ": the file was replaced while it was in use (expected 1 bytes, found 1 bytes); run again when nothing else changes it");
  put(folder / "1", "11");
  CHECK(refused(1) == "ITG " + (folder / "1") + ": the file changed while it was being read (expected 1 bytes, found 2 bytes); run again when nothing else changes it");
  fs::rename(folder / "2", folder / "elsewhere");
  fs::create_symlink("elsewhere", folder / "2");  // the same file, but through a link
  CHECK(refused(2) == "IO " + (folder / "2") + ": cannot open the file: Too many levels of symbolic links (errno 40)");
  CHECK(refused(3) == "read");
  fs::remove(folder / "3");
  CHECK(refused(3) == "read");  // it is open
  fs::remove(folder / "2");
  REQUIRE(::mkfifo((folder / "2").c_str(), 0600) == 0);
  CHECK(refused(2).starts_with("ITG " + (folder / "2") + ": the file was replaced"));  // and does not wait
}

TEST_CASE("threads share a pool that is smaller than their number") {
  const support::temp_folder folder;
  const auto pool = std::make_shared<ts::descriptor_pool>(3);
  const auto files = open_many(folder, 40, pool);
  std::atomic<unsigned> wrong = 0;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (unsigned i = 0; i < 3000; ++i) {
        const unsigned k = (i * (t + 1) + t * 7) % 40;
        wrong += all_of(*files[k]) != std::to_string(k);
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(wrong == 0);
  CHECK(pool->open_count() <= 3 + 8);
}

TEST_CASE("a descriptor that was asked for stays open") {
  const support::temp_folder folder;
  const auto pool = std::make_shared<ts::descriptor_pool>(2);
  const auto files = open_many(folder, 10, pool);
  CHECK(files[4]->in_file());
  const int number = files[4]->descriptor();
  REQUIRE(number >= 0);
  for (int round = 0; round < 2; ++round)
    for (const auto& file : files) (void)all_of(*file);
  CHECK(files[4]->descriptor() == number);
  char text = 0;
  CHECK(::pread(number, &text, 1, 0) == 1);
  CHECK(text == '4');
}

TEST_CASE("outputs of a pool are complete, whichever of them were closed in between") {
  const support::temp_folder folder;
  const std::size_t before = open_descriptors();
  const auto pool = std::make_shared<ts::descriptor_pool>(4);
  std::vector<std::shared_ptr<ts::output_file>> files;
  for (unsigned i = 0; i < 50; ++i) {
    auto file = ts::output_file::create(folder / ("out" + std::to_string(i)), 200, {}, pool);
    REQUIRE(file);
    files.push_back(std::move(file).value());
  }
  CHECK(open_descriptors() == before + 4);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (unsigned part = 0; part < 5; ++part)
        for (unsigned i = 0; i < files.size(); ++i) {
          const std::string text(10, static_cast<char>('a' + (i + part + t) % 26));
          if (!files[i]->write_at((t * 5 + part) * 10, std::as_bytes(std::span(text)))) std::abort();
        }
    });
  for (std::thread& t : threads) t.join();
  for (const auto& file : files) {
    file->start_writeback();
    CHECK(file->sync());
    CHECK(file->close());
  }
  CHECK(files[0]->write_at(0, std::as_bytes(std::span("x", 1))).error().code == ts::errc::internal);
  for (unsigned i = 0; i < files.size(); ++i) {
    std::string text(200, '?');
    REQUIRE((*ts::open_file(folder / ("out" + std::to_string(i))))->read_at(0, std::as_writable_bytes(std::span(text))));
    std::string expected;
    for (unsigned k = 0; k < 20; ++k) expected += std::string(10, static_cast<char>('a' + (i + k % 5 + k / 5) % 26));
    CHECK(text == expected);
  }
  CHECK(open_descriptors() == before);
}

TEST_CASE("an output that another file took the place of is not written to") {
  const support::temp_folder folder;
  const auto pool = std::make_shared<ts::descriptor_pool>(1);
  const auto first = ts::output_file::create(folder / "first", 10, {}, pool);
  const auto second = ts::output_file::create(folder / "second", 10, {}, pool);  // closes the first
  REQUIRE((first && second));
  put(folder / "precious", "0123456789");
  fs::rename(folder / "precious", folder / "first");
  CHECK((*first)->write_at(0, std::as_bytes(std::span("x", 1))).error().what == "the file was replaced while it was in use");
  CHECK(all_of(**ts::open_file(folder / "first")) == "0123456789");
}

TEST_CASE("copies inside the kernel hold both files open") {
  const support::temp_folder folder;
  const auto pool = std::make_shared<ts::descriptor_pool>(1);
  const auto files = open_many(folder, 3, pool);
  const auto out = ts::output_file::create(folder / "out", 3, {}, pool);
  REQUIRE(out);
  for (unsigned i = 0; i < 3; ++i) {
    const auto done = (*out)->copy_from(*files[i], 0, i, 1);
    REQUIRE(done);
    const std::string text = std::to_string(i);
    if (!*done) REQUIRE((*out)->write_at(i, std::as_bytes(std::span(text))));
  }
  REQUIRE((*out)->sync());
  REQUIRE((*out)->close());
  CHECK(all_of(**ts::open_file(folder / "out")) == "012");
}

TEST_CASE("a folder that is replaced between two files is noticed (CON-05)") {
  const support::temp_folder folder;
  fs::create_directories(folder / "model");
  auto steady = ts::steady_folder::begin(folder / "model");
  REQUIRE(steady);
  put(folder / "model/a", "1");
  CHECK(steady->check());
  fs::rename(folder / "model", folder / "old");
  CHECK(steady->check().error().code == ts::errc::integrity);
  fs::create_directories(folder / "model");
  CHECK(steady->check().error().message() == "ITG " + (folder / "model") +
                                                 ": the folder was replaced while its files were being opened; run again when it is complete");
}
