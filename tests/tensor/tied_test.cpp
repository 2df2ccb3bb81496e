// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/tied.hpp"

#include "support/catch.hpp"
#include "support/names.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;
using support::names;

namespace {

std::shared_ptr<const ts::byte_source> storage(std::size_t bytes, unsigned seed = 1) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>((i * 13 + seed) % 97);
  return std::make_shared<ts::memory_source>("file", std::move(out));
}

ts::tensor_ref at(const std::shared_ptr<const ts::byte_source>& file, std::uint64_t offset, ts::dtype type, ts::shape_type shape) {
  return {ts::stored_tensor(file, offset, type, std::move(shape), "t"), 0};
}

ts::package file_of(std::vector<std::pair<std::string, ts::tensor_ref>> tensors) {
  ts::package out;
  ts::component part;
  for (auto& [name, tensor] : tensors) REQUIRE(part.weights.add(name, std::move(tensor), "file: " + name));
  out.components.push_back(std::move(part));
  return out;
}

}  // namespace

TEST_CASE("tensors of the same bytes, type and shape are tied, also through the same casts", "[tensor]") {
  const auto file = storage(4000), other = storage(4000);
  const ts::tensor_ref a = at(file, 0, ts::dtype::f32, {10, 10});
  const auto wide = [](const ts::tensor_ref& t) { return *ts::cast(t, ts::dtype::f64); };
  const ts::package in = file_of({{"lm_head", at(file, 0, ts::dtype::f32, {10, 10})},
                                  {"embed", a},
                                  {"flat", at(file, 0, ts::dtype::f32, {100})},
                                  {"elsewhere", at(file, 400, ts::dtype::f32, {10, 10})},
                                  {"other_file", at(other, 0, ts::dtype::f32, {10, 10})},
                                  {"as_int", at(file, 0, ts::dtype::i32, {10, 10})},
                                  {"wide_b", wide(a)},
                                  {"wide_a", wide(at(file, 0, ts::dtype::f32, {10, 10}))},
                                  {"half", *ts::cast(a, ts::dtype::f16)},
                                  {"transposed", *ts::transposed(a)},
                                  {"empty_1", at(file, 0, ts::dtype::f32, {0})},
                                  {"empty_2", at(file, 0, ts::dtype::f32, {0})}});
  CHECK(ts::find_tied(in.components[0].weights) == std::vector<ts::tied_tensors>{{1, 0}, {7, 6}});
}

TEST_CASE("the SHA-256 of a tensor is that of its bytes, however they lie", "[tensor]") {
  const auto file = storage(600 * 700 * 4 + 8);
  const ts::tensor_ref plain = at(file, 8, ts::dtype::f32, {600, 700});
  for (const ts::tensor_ref& t : {plain, *ts::transposed(plain), *ts::cast(plain, ts::dtype::bf16), *ts::cast(*ts::transposed(plain), ts::dtype::f64),
                                  at(file, 0, ts::dtype::f32, {0, 3}), at(file, 0, ts::dtype::f4_e2m1, {2, 3, 5})}) {
    ts::sha256 hash;
    hash.update(*ts::materialize(t, {}));
    const auto digest = hash.finish();
    for (const std::size_t tile : {std::size_t{4096}, std::size_t{1} << 20}) {
      ts::job run;
      run.tile_bytes = tile;
      const auto found = ts::sha256_of(t, run);
      INFO((found ? std::string() : found.error().message()));
      REQUIRE(found);
      CHECK(*found == digest);
    }
  }
}

TEST_CASE("dedupe keeps the first name and records the others", "[tensor]") {
  const auto file = storage(4000);
  ts::package in = file_of({{"z.weight", at(file, 0, ts::dtype::f32, {10, 10})},
                            {"b.weight", at(file, 0, ts::dtype::f32, {10, 10})},
                            {"a.bias", at(file, 400, ts::dtype::f32, {10})},
                            {"m.weight", at(file, 0, ts::dtype::f32, {10, 10})}});
  in.metadata = {{"format", "pt"}, {"z.weight", "said by the user"}};
  const auto removed = ts::dedupe(in, {}, {});
  REQUIRE(removed);
  CHECK(*removed == 2);
  CHECK(names(in) == std::vector<std::string>{"b.weight", "a.bias"});
  CHECK(in.metadata == std::vector<std::pair<std::string, std::string>>{{"format", "pt"}, {"z.weight", "said by the user"}, {"m.weight", "b.weight"}});
  CHECK(in.components[0].ignored == std::vector<std::string>{"z.weight: the same tensor as 'b.weight'", "m.weight: the same tensor as 'b.weight'"});
  REQUIRE(ts::dedupe(in, {}, {}));
  CHECK(names(in).size() == 2);
}

TEST_CASE("copies with equal contents are found on request", "[tensor]") {
  const auto one = storage(100'000), same = storage(100'000), different = storage(100'000, 2);
  const auto file = [&] {
    return file_of({{"c", at(one, 0, ts::dtype::f32, {25'000})},
                    {"a", at(same, 0, ts::dtype::f32, {25'000})},
                    {"b", at(one, 0, ts::dtype::f32, {25'000})},
                    {"x", at(different, 0, ts::dtype::f32, {25'000})},
                    {"shaped", at(one, 0, ts::dtype::f32, {250, 100})},
                    {"small_1", at(one, 0, ts::dtype::u8, {10})},
                    {"small_2", at(same, 0, ts::dtype::u8, {10})},
                    {"small_3", at(one, 0, ts::dtype::u8, {10})}});
  };
  ts::package stored = file();
  CHECK(*ts::dedupe(stored, {}, {}) == 2);
  CHECK(stored.metadata == std::vector<std::pair<std::string, std::string>>{{"c", "b"}, {"small_3", "small_1"}});
  ts::package equal = file();
  CHECK(*ts::dedupe(equal, {.by_content = true}, {}) == 3);
  CHECK(equal.metadata == std::vector<std::pair<std::string, std::string>>{{"b", "a"}, {"c", "a"}, {"small_3", "small_1"}});
  CHECK(names(equal) == std::vector<std::string>{"a", "x", "shaped", "small_1", "small_2"});
  ts::package all = file();
  CHECK(*ts::dedupe(all, {.by_content = true, .smallest_bytes = 0}, {}) == 4);
}
