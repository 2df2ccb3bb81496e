// SPDX-License-Identifier: MIT
#include "tensorsmith/format/safetensors/write_sharded.hpp"

#include <chrono>
#include <map>

#include "format/safetensors_build.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/safetensors/sharded.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

ts::tensor_ref values(ts::dtype type, ts::shape_type shape, unsigned seed) {
  ts::tensor_info info{"v", type, std::move(shape)};
  std::vector<std::byte> bytes(info.bytes());
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>((i * 31 + seed) % 251);
  return ts::in_memory(std::move(info), std::move(bytes));
}

/// Tensors of these sizes in bytes, named t0, t1, …
ts::catalog sized(const std::vector<std::size_t>& bytes) {
  ts::catalog out;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    REQUIRE(out.add("t" + std::to_string(i), values(ts::dtype::u8, {bytes[i]}, static_cast<unsigned>(i)), "test"));
  return out;
}

std::string text_of(const std::string& path) { return *ts::read_text_file(path, 1u << 30); }

std::size_t files_in(const std::filesystem::path& path) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path), {}));
}

void same_tensors(const ts::catalog& read, const ts::catalog& wanted) {
  REQUIRE(read.size() == wanted.size());
  for (const ts::catalog_entry& e : wanted.entries()) {
    const ts::catalog_entry* there = read.find(e.name);
    REQUIRE(there);
    CHECK(there->tensor.type() == e.tensor.type());
    CHECK(there->tensor.shape() == e.tensor.shape());
    CHECK(*ts::materialize(there->tensor, {}) == *ts::materialize(e.tensor, {}));
  }
}

/// A tensor whose second reading differs from the first: what a comparison before publishing is for.
class fickle final : public ts::recipe {
 public:
  std::span<const ts::tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  ts::result<void> do_prepare(const ts::job&) override {
    ++passes_;
    return {};
  }
  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch&) const override {
    for (std::size_t i = 0; i < r.cols; ++i) tiles[0].data[i] = static_cast<std::byte>(passes_ == 2 && r.col + i == 70 ? 1 : 0);
    return {};
  }

 private:
  ts::tensor_info info_{"fickle", ts::dtype::u8, {100}};
  int passes_ = 0;
};

}  // namespace

TEST_CASE("shards are filled in order; a tensor above the size lies alone", "[format]") {
  const auto plan = [](const std::vector<std::size_t>& sizes, std::uint64_t most) { return ts::plan_shards(sized(sizes), most); };
  using shards = std::vector<std::vector<std::size_t>>;
  CHECK(plan({6, 6, 2, 6, 2, 2}, 10) == shards{{0}, {1, 2}, {3, 4, 5}});
  CHECK(plan({4, 50, 4, 4}, 10) == shards{{0}, {1}, {2, 3}});
  CHECK(plan({50, 4}, 10) == shards{{0}, {1}});
  CHECK(plan({5, 5, 0, 0}, 10) == shards{{0, 1, 2, 3}});
  CHECK(plan({11, 0, 1}, 10) == shards{{0}, {1, 2}});
  CHECK(plan({1, 2, 3}, 0) == shards{{0, 1, 2}});
  CHECK(plan({1, 2}, ~std::uint64_t{0}) == shards{{0, 1}});
  CHECK(plan({}, 10).empty());
}

TEST_CASE("files and indexes have the names that transformers and diffusers look for", "[format]") {
  CHECK(ts::shard_file_name("model", "", 0, 1) == "model.safetensors");
  CHECK(ts::shard_file_name("model", "", 1, 3) == "model-00002-of-00003.safetensors");
  CHECK(ts::shard_file_name("diffusion_pytorch_model", "fp16", 0, 2) == "diffusion_pytorch_model.fp16-00001-of-00002.safetensors");
  CHECK(ts::shard_file_name("diffusion_pytorch_model", "fp16", 0, 1) == "diffusion_pytorch_model.fp16.safetensors");
  CHECK(ts::shard_file_name("model", "", 99'999, 123'456) == "model-100000-of-123456.safetensors");
  CHECK(ts::shard_index_name("model", "") == "model.safetensors.index.json");
  CHECK(ts::shard_index_name("diffusion_pytorch_model", "fp16") == "diffusion_pytorch_model.safetensors.index.fp16.json");
}

TEST_CASE("a sharded model has an index that our reader joins, and the same bytes again", "[format]") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("z.weight", values(ts::dtype::f32, {100, 10}, 1), "test"));
  REQUIRE(tensors.add("a.weight", values(ts::dtype::f16, {300}, 2), "test"));
  REQUIRE(tensors.add("ü \"quoted\"", values(ts::dtype::i64, {3}, 3), "test"));
  REQUIRE(tensors.add("empty", values(ts::dtype::f32, {0, 4}, 4), "test"));
  for (const bool verify : {false, true}) {
    const std::string path = folder / (verify ? "verified" : "plain");
    const auto written = ts::write_safetensors_sharded(tensors, path, {.max_shard_bytes = 1000, .metadata = {{"format", "pt"}}, .verify = verify}, {});
    INFO((written ? std::string() : written.error().message()));
    REQUIRE(written);
    CHECK(written->index == "model.safetensors.index.json");
    CHECK(written->tensors == 4);
    REQUIRE(written->files.size() == 2);
    CHECK(written->files[1].path == "model-00002-of-00002.safetensors");
    CHECK(written->files[1].tensors == 3);
    CHECK(text_of(path + "/model.safetensors.index.json") ==
          "{\n  \"metadata\": {\n    \"total_size\": 4624\n  },\n  \"weight_map\": {\n"
          "    \"a.weight\": \"model-00002-of-00002.safetensors\",\n"
          "    \"empty\": \"model-00002-of-00002.safetensors\",\n"
          "    \"z.weight\": \"model-00001-of-00002.safetensors\",\n"
          "    \"ü \\\"quoted\\\"\": \"model-00002-of-00002.safetensors\"\n  }\n}\n");
    std::uint64_t bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(path)) bytes += entry.file_size();
    CHECK(written->bytes == bytes);
    ts::job run;
    const auto read = ts::read_sharded_safetensors(path + "/model.safetensors.index.json", run);
    INFO((read ? std::string() : read.error().message()));
    REQUIRE(read);
    CHECK(run.notes.empty());
    same_tensors(*read, tensors);
  }
  for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"})
    CHECK(text_of((folder / "plain/") + name) == text_of((folder / "verified/") + name));
}

TEST_CASE("one shard is a plain file without an index, the same as write_safetensors makes", "[format]") {
  const support::temp_folder folder;
  const ts::catalog tensors = sized({10, 20, 30});
  const auto written = ts::write_safetensors_sharded(tensors, folder / "out", {.stem = "diffusion_pytorch_model", .variant = "fp16", .max_shard_bytes = 60}, {});
  REQUIRE(written);
  CHECK(written->index.empty());
  CHECK(files_in(folder / "out") == 1);
  REQUIRE(ts::write_safetensors(tensors, folder / "single", {}, {}));
  CHECK(text_of(folder / "out/diffusion_pytorch_model.fp16.safetensors") == text_of(folder / "single"));
}

TEST_CASE("sharded writing refuses what it cannot do before it writes", "[format]") {
  const support::temp_folder folder;
  const auto none = ts::write_safetensors_sharded({}, folder / "none", {}, {});
  REQUIRE_FALSE(none);
  CHECK(none.error().message() == "MIS there are no tensors to write");
  const auto many = ts::write_safetensors_sharded(sized(std::vector<std::size_t>(10'001, 1)), folder / "many", {.max_shard_bytes = 1}, {});
  REQUIRE_FALSE(many);
  CHECK(many.error().message() == "USE the shard size would make too many files (expected at most 10000 files, found 10001 of at most 1 bytes); choose a larger --shard-size");
  const ts::catalog tensors = sized({10, 20});
  REQUIRE(ts::write_safetensors_sharded(tensors, folder / "out", {.max_shard_bytes = 10}, {}));
  const auto again = ts::write_safetensors_sharded(tensors, folder / "out", {.max_shard_bytes = 10}, {});
  REQUIRE_FALSE(again);
  CHECK(again.error().code == ts::errc::path);
  REQUIRE(ts::write_safetensors_sharded(tensors, folder / "out", {.max_shard_bytes = 0, .force = true}, {}));
  CHECK(files_in(folder / "out") == 1);
  const auto source = ts::write_safetensors_sharded(tensors, folder / "out", {.force = true, .sources = {folder / "out/model.safetensors"}}, {});
  REQUIRE_FALSE(source);
  CHECK(source.error().code == ts::errc::denied);
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a recipe that gives other bytes the second time is found before anything is published", "[format]") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("steady", values(ts::dtype::u8, {50}, 1), "test"));
  REQUIRE(tensors.add("fickle", {std::make_shared<fickle>(), 0}, "test"));
  const auto refused = ts::write_safetensors_sharded(tensors, folder / "out", {.max_shard_bytes = 100, .verify = true}, {});
  REQUIRE_FALSE(refused);
  const auto plan = ts::plan_sharded_safetensors(tensors, {.max_shard_bytes = 100});
  REQUIRE(plan);
  CHECK(refused.error().message() == "INT " + (folder / "out/model-00002-of-00002.safetensors") + ": byte offset " +
                                         std::to_string(plan->files[1].offsets[0] + 70) +
                                         ": the output does not hold what was written into it (expected byte 1, found 0); run again; if it comes back, "
                                         "check this machine's memory and disk");
  CHECK(files_in(folder.path()) == 0);
  ts::catalog one;
  REQUIRE(one.add("fickle", {std::make_shared<fickle>(), 0}, "test"));
  const auto single = ts::write_safetensors(one, folder / "out.safetensors", {.verify = true}, {});
  REQUIRE_FALSE(single);
  CHECK(single.error().code == ts::errc::internal);
  CHECK(files_in(folder.path()) == 0);
}

TEST_CASE("BIG-04: 100,000 tensors in 1,000 shards", "[format]") {
  const support::temp_folder folder;
  ts::catalog tensors;
  std::vector<ts::catalog_entry> entries;
  for (std::size_t i = 0; i < 100'000; ++i) entries.push_back({"tensor." + std::to_string((i * 7919) % 100'000), values(ts::dtype::u8, {1}, static_cast<unsigned>(i)), "test"});
  REQUIRE(tensors.add_all(std::move(entries)));
  const auto start = std::chrono::steady_clock::now();
  const auto plan = ts::plan_sharded_safetensors(tensors, {.max_shard_bytes = 100});
  REQUIRE(plan);
  CHECK(plan->files.size() == 1000);
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 10);
  std::size_t most_open = 0;
  ts::job run;
  run.on_progress = [&](const ts::progress&) { most_open = std::max(most_open, files_in("/proc/self/fd")); };
  const auto written = ts::write_safetensors_sharded(tensors, folder / "out", {.max_shard_bytes = 100}, run);
  INFO((written ? std::string() : written.error().message()));
  REQUIRE(written);
  CHECK(most_open > 0);
  CHECK(most_open <= 64);
  const auto read = ts::read_sharded_safetensors(folder / "out/model.safetensors.index.json", run);
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  CHECK(read->size() == 100'000);
}
