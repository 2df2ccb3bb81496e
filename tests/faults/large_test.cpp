// SPDX-License-Identifier: MIT
//
// Sizes above 2^31 and 2^32: elements, rows, bytes, offsets. The files are sparse: almost all of them is holes.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "format/gguf_bytes.hpp"
#include "format/safetensors_build.hpp"
#include "format/torch_bytes.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/checkpoint/read.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;
using support::u64_bytes;

namespace {

constexpr std::uint64_t two_31 = std::uint64_t{1} << 31, two_32 = std::uint64_t{1} << 32;

/// A file of `size` bytes that is holes but for these pieces.
void write_sparse(const std::string& path, std::uint64_t size, const std::map<std::uint64_t, std::string>& pieces) {
  {
    std::ofstream file(path, std::ios::binary);
    for (const auto& [at, bytes] : pieces) file.seekp(static_cast<std::streamoff>(at)).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(file.good());
  }
  REQUIRE(::truncate(path.c_str(), static_cast<off_t>(size)) == 0);
}

/// A safetensors file of one tensor "w" that is zero but for these bytes.
std::string sparse_safetensors(const support::temp_folder& folder, const std::string& dtype, const std::string& shape, std::uint64_t bytes,
                               std::map<std::uint64_t, std::string> markers) {
  std::string header = "{" + support::entry("w", dtype, shape, "[0," + std::to_string(bytes) + "]") + "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  std::map<std::uint64_t, std::string> pieces{{0, u64_bytes(header.size()) + header}};
  for (auto& [at, text] : markers) pieces[8 + header.size() + at] = std::move(text);
  const std::string path = folder / "large.safetensors";
  write_sparse(path, 8 + header.size() + bytes, pieces);
  return path;
}

ts::tensor_ref only_tensor(const std::string& path, const ts::limits& bounds = {}) {
  ts::job run;
  run.limits = bounds;
  const auto file = ts::read_checkpoint_file(path, run);
  INFO((file ? "" : file.error().message()));
  REQUIRE(file);
  REQUIRE(file->tensors.size() == 1);
  return file->tensors.entries()[0].tensor;
}

/// Rows [first, first + count) of a tensor.
std::string rows(const ts::tensor_ref& tensor, std::size_t first, std::size_t count) {
  const auto cut = ts::sliced_rows(tensor, first, count);
  REQUIRE(cut);
  const auto bytes = ts::materialize(*cut, {});
  INFO((bytes ? "" : bytes.error().message()));
  REQUIRE(bytes);
  return {reinterpret_cast<const char*>(bytes->data()), bytes->size()};
}

/// Keeps nothing but the bytes that are not zero, by their offset, and counts.
class hole_sink : public ts::byte_sink {
 public:
  const std::string& name() const noexcept override { return name_; }
  ts::result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    written += bytes.size();
    static constexpr std::byte zeros[4096]{};
    for (std::size_t at = 0; at < bytes.size(); at += sizeof zeros) {
      const auto block = bytes.subspan(at, std::min(sizeof zeros, bytes.size() - at));
      if (std::memcmp(block.data(), zeros, block.size()) != 0) TENSORSMITH_CHECK(keep(offset + at, block));
    }
    return {};
  }
  std::map<std::uint64_t, unsigned char> kept;  // offset → byte
  std::atomic<std::uint64_t> written{0};

 protected:
  virtual ts::result<void> keep(std::uint64_t offset, std::span<const std::byte> block) {
    const std::scoped_lock lock(mutex_);
    for (std::size_t i = 0; i < block.size(); ++i)
      if (block[i] != std::byte{0}) kept[offset + i] = std::to_integer<unsigned char>(block[i]);
    return {};
  }

 private:
  std::mutex mutex_;
  std::string name_ = "holes";
};

/// Writes blocks that are not all zero into a file, which stays sparse.
class sparse_file_sink final : public hole_sink {
 public:
  sparse_file_sink(const std::string& path, std::uint64_t size) : file_(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600)) {
    REQUIRE(file_ >= 0);
    REQUIRE(::ftruncate(file_, static_cast<off_t>(size)) == 0);
  }
  ~sparse_file_sink() override { ::close(file_); }
  sparse_file_sink(const sparse_file_sink&) = delete;
  sparse_file_sink& operator=(const sparse_file_sink&) = delete;

 private:
  ts::result<void> keep(std::uint64_t offset, std::span<const std::byte> block) override {
    if (::pwrite(file_, block.data(), block.size(), static_cast<off_t>(offset)) == static_cast<ssize_t>(block.size())) return {};
    return ts::failure{.code = ts::errc::io, .what = "the test's own file could not be written"};
  }
  int file_;
};

void produce(const ts::tensor_ref& tensor, ts::byte_sink& sink, const ts::job& run = {}) {
  const ts::placement whole{tensor.source, {{&sink, 0}}, "w"};
  const auto done = ts::execute(std::span<const ts::placement>(&whole, 1), run);
  INFO((done ? "" : done.error().message()));
  REQUIRE(done);
}

}  // namespace

// The first test: what others leave in the heap would be reused and not be counted.
TEST_CASE("BIG-08: 20 GB are opened and converted within 64 MB of anonymous memory and the tiles") {
  const support::temp_folder folder;
  constexpr std::uint64_t rows_each = 16384, columns = 10240, bytes_each = rows_each * columns * 4, count = 30;  // 671 MB each
  std::string header = "{";
  for (std::uint64_t i = 0; i < count; ++i)
    header += (i ? "," : "") + support::entry("layers." + std::to_string(i), "F32", "[16384,10240]",
                                              "[" + std::to_string(i * bytes_each) + "," + std::to_string((i + 1) * bytes_each) + "]");
  header += "}";
  const std::string path = folder / "large.safetensors";
  write_sparse(path, 8 + header.size() + count * bytes_each, {{0, u64_bytes(header.size()) + header}});
  REQUIRE(std::filesystem::file_size(path) > 20'000'000'000);

  const std::uint64_t before = ts::os::memory_in_use().anonymous;
  const auto start = std::chrono::steady_clock::now();
  ts::job run;
  run.threads = 2;
  const auto model = ts::read_checkpoint_file(path, run);
  REQUIRE(model);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(1));
  std::vector<ts::placement> plain, turned;
  hole_sink sink;
  std::size_t turn = 0;
  for (const ts::catalog_entry& e : model->tensors.entries()) {  // as they are and cast; a few transposed, with and without a cast
    ts::tensor_ref tensor = e.tensor;
    const bool transpose = turn % 8 >= 6;
    if (turn % 2 == 1) tensor = *ts::cast(tensor, ts::dtype::f16);
    if (transpose) tensor = *ts::transposed(tensor);
    (transpose ? turned : plain).push_back({tensor.source, {{&sink, 0}}, e.name});
    ++turn;
  }
  std::uint64_t highest = 0;
  run.on_progress = [&](const ts::progress&) { highest = std::max(highest, ts::os::memory_in_use().anonymous); };
  const auto check = [&](const std::vector<ts::placement>& work, [[maybe_unused]] std::uint64_t tile_bytes) {
    highest = 0;
    REQUIRE(ts::execute(work, run));
    CHECK(sink.kept.empty());
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // their memory is not ours
    CHECK(highest <= before + 64'000'000 + run.threads * 3 * tile_bytes);  // a tile may be there three times in each thread
    WARN("anonymous memory: " << highest / 1000 << " kB, before " << before / 1000 << " kB");
#endif
  };
  check(plain, run.tile_bytes);
  check(turned, 16u << 20);  // a transpose works in bands of up to 16 MiB
  CHECK(sink.written == (count / 2) * bytes_each + (count / 2) * bytes_each / 2);
}

TEST_CASE("BIG-01, BIG-05: a tensor of 2^31 + 7 elements is copied and cast to its last element") {
  const support::temp_folder folder;
  const std::uint64_t count = two_31 + 7;
  // f16: 1.0 is 3C00, 2.0 is 4000, -1.0 is BC00, 0.5 is 3800.
  const std::string path = sparse_safetensors(folder, "F16", "[" + std::to_string(count) + "]", 2 * count,
                                              {{0, std::string("\x00\x3C", 2)},
                                               {2 * (two_31 - 1), std::string("\x00\x40\x00\xBC", 4)},
                                               {2 * (count - 1), std::string("\x00\x38", 2)}});
  const ts::tensor_ref tensor = only_tensor(path);
  REQUIRE(tensor.info().elements() == count);
  SECTION("cast") {  // one row of more than 2^31 columns
    const auto wide = ts::cast(tensor, ts::dtype::f32);
    REQUIRE(wide);
    hole_sink sink;
    produce(*wide, sink);
    CHECK(sink.written == 4 * count);
    // f32: 1.0 is 3F800000, 2.0 is 40000000, -1.0 is BF800000, 0.5 is 3F000000.
    CHECK(sink.kept == std::map<std::uint64_t, unsigned char>{{2, 0x80}, {3, 0x3F}, {4 * (two_31 - 1) + 3, 0x40}, {4 * two_31 + 2, 0x80},
                                                              {4 * two_31 + 3, 0xBF}, {4 * (count - 1) + 3, 0x3F}});
  }
  SECTION("copied into a torch archive, with ZIP64 fields and a checksum, and read from it") {
    ts::catalog tensors;
    REQUIRE(tensors.add("first", tensor, "w"));
    const auto small = ts::in_memory({"last", ts::dtype::u8, {3}}, {std::byte{7}, std::byte{8}, std::byte{9}});
    REQUIRE(tensors.add("last", small, "last"));
    const auto layout = ts::torch_layout::plan(tensors);
    REQUIRE(layout);
    REQUIRE(layout->file_bytes() > 2 * count);
    const std::string archive = folder / "large.pt";
    {
      sparse_file_sink sink(archive, layout->file_bytes());
      REQUIRE(layout->write(sink, {}));
    }
    ts::job run;
    const auto file = ts::read_checkpoint_file(archive, run);
    INFO((file ? "" : file.error().message()));
    REQUIRE(file);
    REQUIRE(file->tensors.size() == 2);
    hole_sink sink;
    produce(file->tensors.find("first")->tensor, sink);
    CHECK(sink.kept == std::map<std::uint64_t, unsigned char>{{1, 0x3C}, {2 * two_31 - 1, 0x40}, {2 * two_31 + 1, 0xBC}, {2 * count - 1, 0x38}});
    CHECK(rows(file->tensors.find("last")->tensor, 0, 3) == "\x07\x08\x09");  // it begins beyond 4 GiB
  }
}

TEST_CASE("BIG-02: more than 2^32 elements and rows") {
  const support::temp_folder folder;
  const std::uint64_t count = two_32 + 1;
  const std::map<std::uint64_t, std::string> markers{{0, "ab"}, {2 * (two_32 - 1), "cdef"}};
  SECTION("in one dimension") {
    const auto tensor = only_tensor(sparse_safetensors(folder, "F16", "[" + std::to_string(count) + "]", 2 * count, markers));
    CHECK(tensor.info().elements() == count);
    CHECK(rows(tensor, 0, 2) == std::string("ab\0\0", 4));
    CHECK(rows(tensor, two_32 - 2, 3) == std::string("\0\0cdef", 6));
  }
  SECTION("as rows") {
    const auto tensor = only_tensor(sparse_safetensors(folder, "U8", "[" + std::to_string(count) + ",2]", 2 * count, markers));
    CHECK(rows(tensor, 0, 2) == std::string("ab\0\0", 4));
    CHECK(rows(tensor, two_32 - 2, 3) == std::string("\0\0cdef", 6));
  }
  SECTION("as columns, transposed") {
    const auto tensor = only_tensor(sparse_safetensors(folder, "F16", "[1," + std::to_string(count) + "]", 2 * count, markers));
    const auto turned = ts::transposed(tensor);
    REQUIRE(turned);
    CHECK(turned->shape() == ts::shape_type{count, 1});
    CHECK(rows(*turned, two_32 - 2, 3) == std::string("\0\0cdef", 6));
  }
  SECTION("in a torch archive") {
    // The storage is a hole: its checksum would have to be computed over 8.6 GB, so it is wrong and not asked for.
    torch_bytes::tensor parts;
    parts.storage = "HalfStorage";
    parts.numel = static_cast<std::int64_t>(count);
    parts.size = {static_cast<std::int64_t>(count)};
    parts.stride = {1};
    const std::string pickle = torch_bytes::one(parts), version = "3\n";
    ts::zip_layout zip;
    zip.add("archive/data.pkl", pickle.size());
    zip.add("archive/data/0", 2 * count, 64);
    zip.add("archive/version", version.size());
    const std::string path = folder / "large.pt";
    {
      sparse_file_sink sink(path, zip.file_bytes());
      REQUIRE(zip.write_headers(sink, std::vector<std::uint32_t>{torch_bytes::crc(pickle), 0, torch_bytes::crc(version)}));
      const std::string marker = "cdef";
      REQUIRE(sink.write_at(zip.offset(0), std::as_bytes(std::span(pickle))));
      REQUIRE(sink.write_at(zip.offset(2), std::as_bytes(std::span(version))));
      REQUIRE(sink.write_at(zip.offset(1) + 2 * (two_32 - 1), std::as_bytes(std::span(marker))));
    }
    ts::limits unchecked;
    unchecked.check_crc = false;
    const auto again = only_tensor(path, unchecked);
    CHECK(again.info().elements() == count);
    CHECK(rows(again, two_32 - 2, 3) == std::string("\0\0cdef", 6));
  }
}

TEST_CASE("BIG-02: more than 2^32 elements in an array of NumPy, an archive of them, and a GGUF file") {
  const support::temp_folder folder;
  const std::uint64_t count = two_32 + 1;
  const auto check = [&](const std::string& path, std::uint64_t data, std::map<std::uint64_t, std::string> pieces, std::uint64_t size) {
    pieces[data + 2 * (two_32 - 1)] = "cdef";
    write_sparse(path, size, pieces);
    const ts::tensor_ref tensor = only_tensor(path);
    CHECK(tensor.info().elements() == count);
    CHECK(rows(tensor, two_32 - 2, 3) == std::string("\0\0cdef", 6));
  };
  std::string dictionary = "{'descr': '<f2', 'fortran_order': False, 'shape': (" + std::to_string(count) + ",), }";
  dictionary.append(128 - 10 - 1 - dictionary.size(), ' ');
  const std::string npy = support::npy_bytes(dictionary + "\n", "");
  REQUIRE(npy.size() == 128);
  SECTION("npy") { check(folder / "w.npy", npy.size(), {{0, npy}}, npy.size() + 2 * count); }
  SECTION("npz") {
    ts::zip_layout zip;
    zip.add("w.npy", npy.size() + 2 * count, 64);
    ts::limits unchecked;  // the checksum of 8.6 GB is not computed
    unchecked.check_crc = false;
    const std::string path = folder / "w.npz";
    {
      sparse_file_sink sink(path, zip.file_bytes());
      REQUIRE(zip.write_headers(sink, std::vector<std::uint32_t>{0}));
      REQUIRE(sink.write_at(zip.offset(0), std::as_bytes(std::span(npy))));
      const std::string marker = "cdef";
      REQUIRE(sink.write_at(zip.offset(0) + npy.size() + 2 * (two_32 - 1), std::as_bytes(std::span(marker))));
    }
    const ts::tensor_ref tensor = only_tensor(path, unchecked);
    CHECK(rows(tensor, two_32 - 2, 3) == std::string("\0\0cdef", 6));
  }
  SECTION("gguf") {
    std::string head = support::gguf_bytes({.tensors = {support::gguf_tensor_bytes("w", {count}, 1, 0)}});
    head.append((32 - head.size() % 32) % 32, '\0');
    check(folder / "w.gguf", head.size(), {{0, head}}, head.size() + (2 * count + 31) / 32 * 32);
  }
}

TEST_CASE("BIG-03: one call that moves more than the system does at once") {
  // 2^31 - 4096 bytes is the most that Linux reads or writes in one call. The buffer is one small piece of memory, mapped many times.
  const std::size_t piece = std::size_t{64} << 20, pieces = 34, size = piece * pieces;  // 2.28 GB
  REQUIRE(size > two_31);
  const int memory = ::memfd_create("buffer", 0);
  REQUIRE(memory >= 0);
  REQUIRE(::ftruncate(memory, static_cast<off_t>(piece)) == 0);
  void* base = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(base != MAP_FAILED);
  auto* bytes = static_cast<std::byte*>(base);
  for (std::size_t i = 0; i < pieces; ++i)
    REQUIRE(::mmap(bytes + i * piece, piece, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, 0) == bytes + i * piece);

  const support::temp_folder folder;
  const std::string path = folder / "large";
  write_sparse(path, size, {{size - 5, "after"}});
  const auto file = ts::open_file(path);
  REQUIRE(file);
  REQUIRE((*file)->read_at(0, {bytes, size}));
  CHECK(std::memcmp(bytes + size - 5, "after", 5) == 0);

  const auto null = ts::os::descriptor(::open("/dev/null", O_WRONLY));  // cuts one call at 2^31 - 4096 bytes as files do
  CHECK(::pwrite(null.get(), bytes, size, 0) < static_cast<ssize_t>(size));
  CHECK(ts::os::write_all(null, 0, {bytes, size}, "/dev/null"));
  ::munmap(base, size);
  ::close(memory);
}

TEST_CASE("BIG-04: a million tensors in a thousand files") {
  const support::temp_folder folder;
  constexpr std::size_t files = 1000, each = 1000;
  std::string index = "{\"metadata\":{\"total_size\":1000000},\"weight_map\":{";
  for (std::size_t k = 0; k < files; ++k) {
    const std::string name = "model-" + std::to_string(k) + ".safetensors";
    std::string header = "{";
    for (std::size_t i = 0; i < each; ++i) {
      const std::string tensor = "t." + std::to_string(k * each + i);
      header += (i ? "," : "") + support::entry(tensor, "U8", "[1]", "[" + std::to_string(i) + "," + std::to_string(i + 1) + "]");
      index += (k + i ? ",\"" : "\"") + tensor + "\":\"" + name + "\"";
    }
    header += "}";
    std::ofstream(folder / name, std::ios::binary) << u64_bytes(header.size()) << header << std::string(each, static_cast<char>(k % 251));
  }
  index += "}}";
  std::ofstream(folder / "model.safetensors.index.json") << index;
  const auto start = std::chrono::steady_clock::now();
  ts::job run;
  const auto model = ts::read_checkpoint_file(folder / "model.safetensors.index.json", run);
  INFO((model ? "" : model.error().message()));
  REQUIRE(model);
  // 1 s and 20 ms per MiB when nothing else runs and the code is optimized; ten times that shows a square all the same.
  const double metadata = static_cast<double>(index.size() + files * each * 60) / (1 << 20);
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 10 * (1 + 0.02 * metadata));
  CHECK(model->tensors.size() == files * each);
  CHECK(rows(model->tensors.find("t.999999")->tensor, 0, 1) == std::string(1, static_cast<char>(999 % 251)));
  const auto open = std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator{});
  CHECK(open <= 64);
}

TEST_CASE("BIG-07: an output that the disk cannot hold is refused before the work") {
  const support::temp_folder folder;
  ts::catalog tensors;
  // 2^47 bytes by repetition of one row: nothing is read before the space is asked for.
  const auto source = std::make_shared<ts::memory_source>("w", std::vector<std::byte>(4));
  for (int i = 0; i < 2; ++i)
    REQUIRE(tensors.add("w" + std::to_string(i), {ts::strided_tensor(source, 0, ts::dtype::f32, {std::size_t{1} << 44}, {0}, "w"), 0}, "w"));
  const std::string path = folder / "out.safetensors";
  const auto written = ts::write_safetensors(tensors, path, {}, {});
  REQUIRE_FALSE(written);
  CHECK(written.error().code == ts::errc::no_space);
  INFO(written.error().message());
  CHECK(written.error().expected.find("140737488355") == 0);
  CHECK_FALSE(written.error().found.empty());
  CHECK(std::filesystem::is_empty(folder.path()));
}
