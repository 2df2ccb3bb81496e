// SPDX-License-Identifier: MIT
#include "tensorsmith/format/safetensors/write.hpp"

#include "format/safetensors_build.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/tied.hpp"

namespace ts = tensorsmith;

namespace {

ts::tensor_ref values(ts::dtype type, ts::shape_type shape, unsigned seed = 1) {
  ts::tensor_info info{"v", type, std::move(shape)};
  std::vector<std::byte> bytes(info.bytes());
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>((i * 31 + seed) % 61);
  return ts::in_memory(std::move(info), std::move(bytes));
}

std::string bytes_of(const std::string& path) { return *ts::read_text_file(path, 1u << 30); }

}  // namespace

TEST_CASE("the header has the bytes that the reference writer makes") {
  // safetensors 0.8 (Python, save_file) wrote this header for the same tensors.
  ts::catalog tensors;
  const auto add = [&](const char* name, ts::dtype type, ts::shape_type shape) { REQUIRE(tensors.add(name, values(type, std::move(shape)), "test")); };
  add("b.w", ts::dtype::f32, {3, 5});
  add("a.w", ts::dtype::f16, {7});
  add("é\n", ts::dtype::i64, {5});
  add("z", ts::dtype::boolean, {});
  add("bf", ts::dtype::bf16, {2, 3});
  add("empty", ts::dtype::f32, {2, 0});
  add("u8", ts::dtype::u8, {3});
  add("s", ts::dtype::f64, {});
  add("f8", ts::dtype::f8_e4m3, {3});
  const auto plan = ts::plan_safetensors(tensors, {{"format", "pt"}});
  REQUIRE(plan);
  const std::string json =
      "{\"__metadata__\":{\"format\":\"pt\"},\"é\\n\":{\"dtype\":\"I64\",\"shape\":[5],\"data_offsets\":[0,40]},\"s\":{\"dtype\":\"F64\","
      "\"shape\":[],\"data_offsets\":[40,48]},\"b.w\":{\"dtype\":\"F32\",\"shape\":[3,5],\"data_offsets\":[48,108]},\"empty\":{\"dtype\":"
      "\"F32\",\"shape\":[2,0],\"data_offsets\":[108,108]},\"bf\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[108,120]},\"a.w\":{"
      "\"dtype\":\"F16\",\"shape\":[7],\"data_offsets\":[120,134]},\"f8\":{\"dtype\":\"F8_E4M3\",\"shape\":[3],\"data_offsets\":[134,137]},"
      "\"u8\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[137,140]},\"z\":{\"dtype\":\"BOOL\",\"shape\":[],\"data_offsets\":[140,141]}}"
      "      ";
  CHECK(plan->header == support::u64_bytes(568) + json);
  CHECK(plan->size == 8 + 568 + 141);
}

TEST_CASE("files of the reference library are written again byte by byte, with every element type", "[format]") {
  const support::temp_folder folder;
  const std::string original = support::data("safetensors/every_dtype.safetensors").string();
  ts::job run;
  const auto file = ts::open_file(original);
  REQUIRE(file);
  const auto tensors = ts::read_safetensors(*file, run);
  INFO((tensors ? std::string() : tensors.error().message()));
  REQUIRE(tensors);
  REQUIRE(tensors->size() == 20);
  for (const ts::catalog_entry& e : tensors->entries()) {
    CHECK(e.name == ts::safetensors_name(e.tensor.type()));
    CHECK(e.tensor.shape() == ts::shape_type{2, 4});
  }
  REQUIRE(ts::write_safetensors(*tensors, folder / "copy", {.metadata = {{"format", "pt"}}, .verify = true}, {}));
  CHECK(bytes_of(folder / "copy") == bytes_of(original));
}

TEST_CASE("tied weights are written as the reference library's save_model does", "[format]") {
  const support::temp_folder folder;
  const std::string original = support::data("safetensors/tied.safetensors").string();
  const auto tensors = ts::read_safetensors(*ts::open_file(original));
  REQUIRE(tensors);
  REQUIRE(tensors->size() == 3);
  ts::package model;
  model.components.emplace_back();
  model.metadata = {{"format", "pt"}};
  ts::catalog& weights = model.components[0].weights;
  REQUIRE(weights.add("head.weight", tensors->find("embed.weight")->tensor, "test"));
  for (const ts::catalog_entry& e : tensors->entries()) REQUIRE(weights.add(e.name, e.tensor, e.origin));
  CHECK(*ts::dedupe(model, {}, {}) == 1);
  REQUIRE(ts::write_safetensors(weights, folder / "copy", {.metadata = model.metadata}, {}));
  CHECK(bytes_of(folder / "copy") == bytes_of(original));
}

TEST_CASE("a key that is given twice is no metadata", "[format]") {
  ts::catalog tensors;
  REQUIRE(tensors.add("a", values(ts::dtype::f32, {2}), "test"));
  const auto plan = ts::plan_safetensors(tensors, {{"a", "1"}, {"a", "2"}});
  REQUIRE_FALSE(plan);
  CHECK(plan.error().message() == "MIS the key 'a' appears twice in the metadata (expected unique keys)");
}

TEST_CASE("what is written reads back, with the same bytes for any number of threads and tile size") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("large", values(ts::dtype::f32, {700, 333}), "test"));
  REQUIRE(tensors.add("half", *ts::cast(values(ts::dtype::f32, {1000, 77}, 2), ts::dtype::f16), "test"));
  REQUIRE(tensors.add("empty", values(ts::dtype::f32, {0, 4}), "test"));
  REQUIRE(tensors.add("byte", values(ts::dtype::u8, {3}), "test"));
  std::string first;
  for (const unsigned threads : {1u, 2u, 7u})
    for (const std::size_t tile : {std::size_t{64} << 10, std::size_t{4} << 20}) {
      ts::job run;
      run.threads = threads;
      run.tile_bytes = tile;
      const auto written = ts::write_safetensors(tensors, folder / "out.safetensors", {.metadata = {{"k", "v"}}, .force = true}, run);
      REQUIRE(written);
      CHECK(written->tensors == 4);
      const std::string bytes = bytes_of(folder / "out.safetensors");
      CHECK(bytes.size() == written->bytes);
      if (first.empty()) first = bytes;
      CHECK(bytes == first);
    }
  const auto back = ts::read_safetensors(*ts::open_file(folder / "out.safetensors"));
  REQUIRE(back);
  for (const ts::catalog_entry& e : tensors.entries()) {
    const ts::catalog_entry* same = back->find(e.name);
    REQUIRE(same);
    CHECK(same->tensor.shape() == e.tensor.shape());
    CHECK(same->tensor.type() == e.tensor.type());
    CHECK(*ts::materialize(same->tensor, {}) == *ts::materialize(e.tensor, {}));
  }
}

TEST_CASE("a copy of a file has its bytes, also onto itself with force (IO-07)") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("a", values(ts::dtype::f32, {300, 1000}), "test"));
  REQUIRE(tensors.add("b", values(ts::dtype::f16, {17}), "test"));
  REQUIRE(ts::write_safetensors(tensors, folder / "a.safetensors", {}, {}));
  const auto opened = ts::read_safetensors(*ts::open_file(folder / "a.safetensors"));
  REQUIRE(opened);
  REQUIRE(ts::write_safetensors(*opened, folder / "b.safetensors", {}, {}));
  CHECK(bytes_of(folder / "a.safetensors") == bytes_of(folder / "b.safetensors"));
  const auto refused = ts::write_safetensors(*opened, folder / "a.safetensors", {}, {});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ts::errc::path);
  REQUIRE(ts::write_safetensors(*opened, folder / "a.safetensors", {.force = true}, {}));
  CHECK(bytes_of(folder / "a.safetensors") == bytes_of(folder / "b.safetensors"));
}

TEST_CASE("a tensor under two names is written twice") {
  const support::temp_folder folder;
  const ts::tensor_ref shared = values(ts::dtype::f32, {10});
  ts::catalog tensors;
  REQUIRE(tensors.add("a", shared, "test"));
  REQUIRE(tensors.add("b", shared, "test"));
  REQUIRE(ts::write_safetensors(tensors, folder / "x", {}, {}));
  const auto back = ts::read_safetensors(*ts::open_file(folder / "x"));
  REQUIRE(back);
  CHECK(*ts::materialize(back->find("a")->tensor, {}) == *ts::materialize(back->find("b")->tensor, {}));
}

TEST_CASE("a source that is cut off while it is copied fails the run, and nothing is published") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("a", values(ts::dtype::f32, {1000, 1000}), "test"));
  REQUIRE(ts::write_safetensors(tensors, folder / "a.safetensors", {}, {}));
  const auto opened = ts::read_safetensors(*ts::open_file(folder / "a.safetensors"));
  REQUIRE(opened);
  std::filesystem::resize_file(folder / "a.safetensors", 2'000'000);
  const auto written = ts::write_safetensors(*opened, folder / "b.safetensors", {}, {});
  REQUIRE_FALSE(written);
  CHECK(written.error().code == ts::errc::integrity);
  CHECK_FALSE(std::filesystem::exists(folder / "b.safetensors"));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("cancelling leaves nothing") {
  const support::temp_folder folder;
  ts::catalog tensors;
  REQUIRE(tensors.add("a", values(ts::dtype::f32, {1000, 1000}), "test"));
  const std::atomic<bool> stop{true};
  ts::job run;
  run.cancel = &stop;
  const auto written = ts::write_safetensors(tensors, folder / "a.safetensors", {}, run);
  REQUIRE_FALSE(written);
  CHECK(written.error().code == ts::errc::cancelled);
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("what safetensors cannot hold is refused by name") {
  ts::catalog tensors;
  REQUIRE(tensors.add("q", values(ts::dtype::i4, {8}), "test"));
  const auto plan = ts::plan_safetensors(tensors);
  REQUIRE_FALSE(plan);
  CHECK(plan.error().message() == "UNS tensor 'q': safetensors has no element type i4; cast it first");
  ts::catalog reserved;
  REQUIRE(reserved.add("__metadata__", values(ts::dtype::f32, {8}), "test"));
  CHECK(ts::plan_safetensors(reserved).error().code == ts::errc::mismatch);
}
