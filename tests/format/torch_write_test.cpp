// SPDX-License-Identifier: MIT
//
// Checkpoints that we write: read back, shared storages, what surrounds the tensors, the same bytes for any tile size.
#include "tensorsmith/format/torch/write.hpp"

#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/io/file.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "torch_bytes.hpp"

namespace ts = tensorsmith;
using namespace torch_bytes;

namespace {

ts::tensor_ref made(ts::dtype type, ts::shape_type shape) {
  ts::tensor_info info{{}, type, std::move(shape)};
  std::vector<std::byte> bytes(info.bytes());
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + 3);
  return ts::in_memory(std::move(info), std::move(bytes));
}
std::vector<std::byte> written(const ts::catalog& tensors, const ts::torch_write_options& options = {}, const ts::job& run = {}) {
  const auto layout = ts::torch_layout::plan(tensors, options);
  REQUIRE(layout);
  std::vector<std::byte> bytes(layout.value().file_bytes());
  ts::memory_sink sink(bytes);
  REQUIRE(layout.value().write(sink, run));
  return bytes;
}
ts::result<ts::torch_checkpoint> read(std::vector<std::byte> bytes) {
  return ts::read_torch(std::make_shared<ts::memory_source>("out.pt", std::move(bytes)));
}

}  // namespace

TEST_CASE("every element type that torch has is read back") {
  ts::catalog tensors;
  for (const ts::dtype type :
       {ts::dtype::f64,     ts::dtype::f32,     ts::dtype::f16,         ts::dtype::bf16,        ts::dtype::i64,
        ts::dtype::i32,     ts::dtype::i16,     ts::dtype::i8,          ts::dtype::u8,          ts::dtype::boolean,
        ts::dtype::c64,     ts::dtype::c128,    ts::dtype::u16,         ts::dtype::u32,         ts::dtype::u64,
        ts::dtype::f8_e5m2, ts::dtype::f8_e4m3, ts::dtype::f8_e5m2fnuz, ts::dtype::f8_e4m3fnuz, ts::dtype::f8_e8m0})
    REQUIRE(tensors.add(std::string(ts::name_of(type)), made(type, {3, 5}), "test"));
  REQUIRE(tensors.add("scalar", made(ts::dtype::f32, {}), "test"));
  REQUIRE(tensors.add("empty", made(ts::dtype::f32, {0, 3}), "test"));
  const auto back = read(written(tensors));
  REQUIRE(back);
  REQUIRE(back.value().tensors.size() == tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto &a = tensors.entries()[i], &b = back.value().tensors.entries()[i];
    INFO(a.name);
    CHECK(a.name == b.name);
    CHECK(a.tensor.type() == b.tensor.type());
    CHECK(a.tensor.shape() == b.tensor.shape());
    CHECK(ts::materialize(a.tensor, {}).value() == ts::materialize(b.tensor, {}).value());
  }
}

TEST_CASE("a type of less than a byte is refused") {
  ts::catalog tensors;
  REQUIRE(tensors.add("q", made(ts::dtype::i4, {4}), "test"));
  auto layout = ts::torch_layout::plan(tensors);
  REQUIRE_FALSE(layout);
  CHECK(layout.error().message() ==
        "UNS 'q': torch has no storage for the element type (expected a type of whole bytes, found i4); cast it, or write "
        ".safetensors");
}

TEST_CASE("tied tensors share one storage") {
  ts::catalog tensors;
  const ts::tensor_ref shared = made(ts::dtype::f32, {1000});
  REQUIRE(tensors.add("a", shared, "test"));
  REQUIRE(tensors.add("b", shared, "test"));
  const auto bytes = written(tensors);
  CHECK(bytes.size() < 2 * 4000);
  const auto archive = ts::open_zip(std::make_shared<ts::memory_source>("out.pt", bytes));
  REQUIRE(archive);
  CHECK(archive.value().find("archive/data/0")->data_offset % 64 == 0);
  CHECK(archive.value().find("archive/data/1") == nullptr);
  CHECK(read(bytes).value().tensors.size() == 2);
}

TEST_CASE("a nested dict with values beside it") {
  ts::catalog tensors;
  for (int i = 0; i < 2345; ++i) REQUIRE(tensors.add("layer." + std::to_string(i), made(ts::dtype::u8, {2}), "test"));
  const auto back = read(written(tensors, {.nested = "state_dict",
                                           .scalars = {{"global_step", 470000},
                                                       {"big", std::int64_t{-1} << 40},
                                                       {"rate", 0.25},
                                                       {"note", "é"},
                                                       {"on", true},
                                                       {"none", nullptr}}}));
  REQUIRE(back);
  CHECK(back.value().selected == "state_dict");
  CHECK(back.value().tensors.size() == 2345);
  CHECK(back.value().scalars == std::vector<std::pair<std::string, ts::json_value>>{{"global_step", 470000},
                                                                                    {"big", std::int64_t{-1} << 40},
                                                                                    {"rate", 0.25},
                                                                                    {"note", "é"},
                                                                                    {"on", true},
                                                                                    {"none", nullptr}});
  CHECK_FALSE(ts::torch_layout::plan(tensors, {.scalars = {{"a", 1}}}));
  CHECK_FALSE(ts::torch_layout::plan(tensors, {.nested = "state_dict", .scalars = {{"a", ts::json_value::array{}}}}));
  ts::json_value holds_array, holds_numbers;
  holds_array.set("b", ts::json_value::array{});
  holds_numbers.set("b", 265);
  CHECK_FALSE(ts::torch_layout::plan(tensors, {.nested = "state_dict", .scalars = {{"a", holds_array}}}));
  CHECK(ts::torch_layout::plan(tensors, {.nested = "state_dict", .scalars = {{"a", holds_numbers}}}));
}

TEST_CASE("the bytes do not depend on threads and tiles") {
  ts::catalog tensors;
  REQUIRE(tensors.add("a", made(ts::dtype::f32, {333, 77}), "test"));
  REQUIRE(tensors.add("b", made(ts::dtype::f16, {50001}), "test"));
  const auto bytes = written(tensors);
  for (const unsigned threads : {1U, 2U, 5U})
    for (const std::size_t tile : {std::size_t{64}, std::size_t{4096}, std::size_t{1} << 20}) {
      ts::job run;
      run.threads = threads;
      run.tile_bytes = tile;
      CHECK(written(tensors, {}, run) == bytes);
    }
}

TEST_CASE("a file appears complete or not at all") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("a", made(ts::dtype::f32, {33}), "test"));
  const auto bytes = ts::write_torch(tensors, folder / "m.ckpt", {});
  REQUIRE(bytes);
  CHECK(ts::read_torch(ts::open_file(folder / "m.ckpt").value()));
  CHECK_FALSE(ts::write_torch(tensors, folder / "m.ckpt", {}));
  CHECK(ts::write_torch(tensors, folder / "m.ckpt", {}, {.force = true}));
  // a source whose checksum is wrong leaves nothing behind
  auto entries = checkpoint_entries(one({}));
  entries[2].crc32 = 1;
  const auto bad = ts::read_torch(source(zip(entries)));
  REQUIRE(bad);
  auto copy = ts::write_torch(bad.value().tensors, folder / "bad.ckpt", {});
  REQUIRE_FALSE(copy);
  CHECK(copy.error().code == ts::errc::integrity);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

namespace {

/// Gives other bytes each time it is asked.
class unsteady_recipe final : public ts::recipe {
 public:
  std::span<const ts::tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch&) const override {
    for (std::size_t i = 0; i < r.rows; ++i) std::memset(tiles[0].data + i * tiles[0].pitch, calls_, r.cols);
    ++calls_;
    return {};
  }

 private:
  ts::tensor_info info_{{}, ts::dtype::u8, {16}};
  mutable int calls_ = 0;
};
bool is_empty(const support::temp_folder& folder) { return std::filesystem::is_empty(folder.path()); }

}  // namespace

TEST_CASE("a written checkpoint can be verified before it appears") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("w", made(ts::dtype::f32, {100, 30}), "test"));
  REQUIRE(tensors.add("empty", made(ts::dtype::f32, {0}), "test"));
  ts::torch_write_options options;
  options.verify = true;
  const auto bytes = ts::write_torch(tensors, folder / "out.pt", {}, options);
  REQUIRE(bytes);
  CHECK(std::filesystem::file_size(folder / "out.pt") == bytes.value());
}

TEST_CASE("an output that differs from what was written into it does not appear") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("w", {std::make_shared<unsteady_recipe>(), 0}, "test"));
  ts::torch_write_options options;
  options.verify = true;
  const std::string path = folder / "out.pt";
  const auto bytes = ts::write_torch(tensors, path, {}, options);
  REQUIRE_FALSE(bytes);
  CHECK_THAT(bytes.error().message(), Contains("INT " + path + ": byte offset ") &&
                                          Contains(": the output does not hold what was written into it (expected byte 1, found 0); run again"));
  CHECK(is_empty(folder));
}

TEST_CASE("a source that changes while it is copied spoils the output") {
  const support::temp_folder in, out;
  ts::catalog tensors;
  REQUIRE(tensors.add("w", made(ts::dtype::u8, {4096}), "test"));
  REQUIRE(ts::write_torch(tensors, in / "in.pt", {}));
  const auto file = ts::open_file(in / "in.pt");
  REQUIRE(file);
  const auto c = ts::read_torch(file.value());
  REQUIRE(c);
  const auto layout = ts::torch_layout::plan(c.value().tensors);
  REQUIRE(layout);
  std::filesystem::last_write_time(in / "in.pt", std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  const auto bytes = ts::write_torch(c.value().tensors, out / "out.pt", {});
  REQUIRE_FALSE(bytes);
  CHECK(bytes.error().code == ts::errc::integrity);
  CHECK_THAT(bytes.error().message(), Contains("ITG " + (in / "in.pt") + ": the file changed while it was being read"));
  CHECK(is_empty(out));
}
