// SPDX-License-Identifier: MIT
#include "tensorsmith/io/file.hpp"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "support/catch.hpp"
#include "support/paths.hpp"

namespace ts = tensorsmith;

namespace {

void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string get(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string refused(const std::string& path) {
  const auto opened = ts::open_file(path);
  return opened ? "opened" : std::string(ts::code_name(opened.error().code)) + " " + opened.error().found;
}

}  // namespace

TEST_CASE("a file is read at any offset and not past its end") {
  const support::temp_folder folder;
  put(folder / "a", "0123456789");
  const auto file = ts::open_file(folder / "a");
  REQUIRE(file);
  CHECK((*file)->size() == 10);
  CHECK((*file)->name() == folder / "a");
  CHECK((*file)->descriptor() >= 0);
  char text[4] = {};
  REQUIRE((*file)->read_at(3, std::as_writable_bytes(std::span(text))));
  CHECK(std::string(text, 4) == "3456");
  CHECK((*file)->read_at(10, {}));
  const auto past = (*file)->read_at(8, std::as_writable_bytes(std::span(text)));
  REQUIRE_FALSE(past);
  CHECK(past.error().message() == "FMT " + (folder / "a") + ": byte offset 8: the data ends past the end of the file (expected 4 bytes, found 2)");
  CHECK_FALSE((*file)->read_at(~std::uint64_t{0}, std::as_writable_bytes(std::span(text))));
}

TEST_CASE("paths that are no regular files are refused at once (ST-30)") {
  const support::temp_folder folder;
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ::sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = folder / "socket";
  REQUIRE(path.size() < sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  REQUIRE(::bind(socket, reinterpret_cast<const ::sockaddr*>(&address), sizeof address) == 0);

  CHECK(refused(folder.path().string()) == "PTH a folder");
  CHECK(refused(folder / "fifo") == "PTH a named pipe");
  CHECK(refused(path) == "PTH a socket");
  CHECK(refused("/dev/zero") == "PTH a device");
  CHECK(refused("/proc/self/mem") == "PTH a view into the kernel");
  ::close(socket);
  const auto missing = ts::open_file(folder / "none");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().message() == "IO " + (folder / "none") + ": cannot find the file: No such file or directory (errno 2)");
}

TEST_CASE("a file that becomes shorter or changes is noticed (IO-05)") {
  const support::temp_folder folder;
  put(folder / "a", std::string(10'000, 'x'));
  const auto file = ts::open_file(folder / "a");
  REQUIRE(file);
  CHECK((*file)->check_unchanged());
  REQUIRE(::truncate((folder / "a").c_str(), 100) == 0);
  std::vector<std::byte> bytes(200);
  const auto read = (*file)->read_at(0, bytes);
  REQUIRE_FALSE(read);
  CHECK(read.error().message() == "ITG " + (folder / "a") +
                                      ": the file became shorter while it was being read (expected 10000 bytes, found 100 "
                                      "bytes); run again when it is complete");
  const auto unchanged = (*file)->check_unchanged();
  REQUIRE_FALSE(unchanged);
  CHECK(unchanged.error().code == ts::errc::integrity);
}

TEST_CASE("text files have a longest length") {
  const support::temp_folder folder;
  put(folder / "a", "hello");
  CHECK(*ts::read_text_file(folder / "a", 5) == "hello");
  const auto longer = ts::read_text_file(folder / "a", 4);
  REQUIRE_FALSE(longer);
  CHECK(longer.error().message() == "LIM " + (folder / "a") + ": the file is too long (expected at most 4 bytes, found 5)");
}

TEST_CASE("a file named by another file may not lead out of its folder (IDX-03, VAL-08)") {
  const support::temp_folder folder;
  std::filesystem::create_directories(folder.path() / "repo/snapshots/abc/unet");
  std::filesystem::create_directories(folder.path() / "repo/blobs");
  put(folder / "repo/blobs/123", "weights");
  put(folder / "outside", "secret");
  const std::string unet = folder / "repo/snapshots/abc/unet";
  std::filesystem::create_symlink("../../../blobs/123", unet + "/linked");
  std::filesystem::create_symlink("../../../../outside", unet + "/escapes");
  put(unet + "/plain", "x");
  CHECK(ts::open_file_below(unet, "plain", "index.json"));
  CHECK(ts::open_file_below(unet, "linked", "index.json"));
  const auto escaped = ts::open_file_below(unet, "escapes", "index.json");
  REQUIRE_FALSE(escaped);
  CHECK(escaped.error().code == ts::errc::path);
  CHECK(escaped.error().what == "the path is a symbolic link that leaves its folder");
  CHECK(ts::open_file_below(unet, "../../../../outside", "index.json").error().code == ts::errc::path);
}

TEST_CASE("an output file has its size from the start and takes writes from all threads") {
  const support::temp_folder folder;
  const auto file = ts::output_file::create(folder / "out", 4000);
  REQUIRE(file);
  CHECK(std::filesystem::file_size(folder / "out") == 4000);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      const std::string text(1000, static_cast<char>('a' + t));
      if (!(*file)->write_at(t * 1000, std::as_bytes(std::span(text)))) std::abort();
    });
  for (auto& t : threads) t.join();
  CHECK((*file)->sync());
  CHECK((*file)->close());
  CHECK(get(folder / "out") == std::string(1000, 'a') + std::string(1000, 'b') + std::string(1000, 'c') + std::string(1000, 'd'));
  const auto twice = ts::output_file::create(folder / "out", 1);
  REQUIRE_FALSE(twice);
  CHECK(twice.error().code == ts::errc::io);
  CHECK(get(folder / "out").size() == 4000);
}

TEST_CASE("writing past the planned end is an internal error") {
  const support::temp_folder folder;
  const auto file = ts::output_file::create(folder / "out", 4);
  REQUIRE(file);
  const std::string text = "hello";
  CHECK((*file)->write_at(0, std::as_bytes(std::span(text))).error().code == ts::errc::internal);
  CHECK((*file)->write_at(~std::uint64_t{0}, std::as_bytes(std::span(text))).error().code == ts::errc::internal);
}

TEST_CASE("ranges are copied between files in the kernel") {
  const support::temp_folder folder;
  std::string text(3'000'000, 'x');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7919 >> 5);
  put(folder / "in", text);
  const auto source = ts::open_file(folder / "in");
  const auto file = ts::output_file::create(folder / "out", 2'000'003);
  REQUIRE((source && file));
  const auto done = (*file)->copy_from(**source, 17, 3, 2'000'000);
  REQUIRE(done);
  if (*done) CHECK(get(folder / "out") == std::string(3, '\0') + text.substr(17, 2'000'000));
  const ts::memory_source memory("memory", std::vector<std::byte>(10));
  CHECK(*(*file)->copy_from(memory, 0, 0, 10) == false);
}

TEST_CASE("more bytes than the disk has are refused before the work, and nothing stays (IO-01, BIG-07)") {
  const support::temp_folder folder;
  const auto file = ts::output_file::create(folder / "out", std::uint64_t{1} << 42);
  REQUIRE_FALSE(file);
  CHECK(file.error().code == ts::errc::no_space);
  CHECK(file.error().expected == "4398046511104 bytes");
  CHECK(file.error().found.find(" bytes free") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(folder / "out"));
}

TEST_CASE("a file size limit is an error, not the end of the process (IO-09)") {
  const support::temp_folder folder;
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const ::rlimit few{4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &few);
    const auto file = ts::output_file::create(folder / "out", 5000);
    ::_exit(file || file.error().code != ts::errc::no_space || ts::os::exists(folder / "out") ? 1 : 0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("the process's memory can be read") {
  const ts::os::memory_use use = ts::os::memory_in_use();
  CHECK(use.anonymous > 0);
  CHECK(use.peak_resident >= use.resident);
}
