// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/stacked.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>

#include "support/catch.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;

namespace {

ts::tensor_ref counting(const ts::shape_type& shape, std::uint16_t first, ts::dtype type = ts::dtype::f16) {
  std::vector<std::byte> bytes(ts::element_count(shape) * 2);
  for (std::size_t i = 0; 2 * i < bytes.size(); ++i) {
    const auto value = static_cast<std::uint16_t>(first + i);
    std::memcpy(bytes.data() + 2 * i, &value, 2);
  }
  return ts::in_memory({"t" + std::to_string(first), type, shape}, std::move(bytes));
}

std::vector<std::byte> produced(const ts::tensor_ref& tensor, std::size_t tile_bytes, unsigned threads = 1) {
  ts::job run;
  run.tile_bytes = tile_bytes;
  run.threads = threads;
  std::vector<std::byte> bytes(tensor.info().bytes());
  ts::memory_sink sink(bytes);
  ts::placement one{tensor.source, std::vector<ts::output_slot>(tensor.source->outputs().size()), "t"};
  one.slots[tensor.output] = {&sink, 0};
  const auto done = ts::execute(std::span<const ts::placement>(&one, 1), run);
  if (!done) FAIL(done.error().message());
  return bytes;
}

std::vector<std::byte> one_after_the_other(const std::vector<ts::tensor_ref>& parts) {
  std::vector<std::byte> out;
  for (const ts::tensor_ref& part : parts) {
    const auto bytes = produced(part, 1u << 20);
    out.insert(out.end(), bytes.begin(), bytes.end());
  }
  return out;
}

std::string refusal(std::vector<ts::tensor_ref> parts) {
  const auto out = ts::stacked_rows(std::move(parts));
  return out ? "accepted" : out.error().message();
}

/// Hands on another recipe, but only in blocks, and counts what is asked of it.
class blocked_recipe final : public ts::recipe {
 public:
  blocked_recipe(ts::recipe_ptr inner, std::size_t rows, std::size_t cols) : inner_(std::move(inner)), grain_{0, rows, 0, cols} {}
  std::span<const ts::tensor_info> outputs() const noexcept override { return inner_->outputs(); }
  ts::region grain() const override { return grain_; }
  std::size_t prepared_bytes() const noexcept override { return 7; }
  ts::result<void> do_prepare(const ts::job&) override { return ++prepared, ts::result<void>(); }
  void do_release() noexcept override { ++released; }
  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch& work) const override {
    const ts::plane all = ts::plane_of(outputs()[0].shape);
    const auto fits = [](std::size_t at, std::size_t count, std::size_t step, std::size_t whole) {
      return at % step == 0 && (count % step == 0 || at + count == whole);
    };
    if (!fits(r.row, r.rows, grain_.rows, all.rows) || !fits(r.col, r.cols, grain_.cols, all.cols))
      return ts::failure{.code = ts::errc::internal, .what = "the grain was not kept"};
    return inner_->produce(r, tiles, work);
  }
  int prepared = 0, released = 0;

 private:
  ts::recipe_ptr inner_;
  ts::region grain_;
};

/// Three outputs of different lengths: rows 0, 1, 2, … of a matrix dealt out in turn.
class dealt_recipe final : public ts::recipe {
 public:
  dealt_recipe(std::size_t rows, std::size_t cols) {
    for (std::size_t k = 0; k < 3; ++k) infos_.push_back({"dealt " + std::to_string(k), ts::dtype::f16, {rows * (k + 1), cols}});
  }
  std::span<const ts::tensor_info> outputs() const noexcept override { return infos_; }
  ts::region output_region(std::size_t k, ts::region r) const override { return {r.row * (k + 1), r.rows * (k + 1), r.col, r.cols}; }
  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch&) const override {
    ++calls;
    for (std::size_t k = 0; k < 3; ++k) {
      const ts::region part = output_region(k, r);
      for (std::size_t i = 0; i < part.rows; ++i)
        for (std::size_t j = 0; j < part.cols; ++j) {
          const auto value = static_cast<std::uint16_t>(10000 * k + 100 * (part.row + i) + part.col + j);
          std::memcpy(tiles[k].data + i * tiles[k].pitch + 2 * j, &value, 2);
        }
    }
    return {};
  }
  mutable std::atomic<int> calls{0};

 private:
  std::vector<ts::tensor_info> infos_;
};

}  // namespace

TEST_CASE("stacked tensors are their parts one after the other, in tiles of any size") {
  for (const ts::shape_type& tail : {ts::shape_type{}, ts::shape_type{5}, ts::shape_type{3, 2}, ts::shape_type{4, 3, 3}}) {
    std::vector<ts::tensor_ref> parts;
    std::uint16_t first = 0;
    for (const std::size_t rows : {3u, 1u, 0u, 4u}) {
      ts::shape_type shape{rows};
      shape.insert(shape.end(), tail.begin(), tail.end());
      parts.push_back(counting(shape, first));
      first = static_cast<std::uint16_t>(first + 1000);
    }
    const auto wanted = one_after_the_other(parts);
    const auto stack = ts::stacked_rows(parts);
    REQUIRE(stack);
    ts::shape_type shape{8};
    shape.insert(shape.end(), tail.begin(), tail.end());
    CHECK(stack->shape() == shape);
    CHECK(stack->type() == ts::dtype::f16);
    for (const std::size_t tile : {1u, 2u, 6u, 20u, 64u, 4096u})
      for (const unsigned threads : {1u, 3u}) CHECK(produced(*stack, tile, threads) == wanted);
  }
}

TEST_CASE("parts with blocks of their own are asked for whole blocks only") {
  for (const std::size_t rows : {1u, 2u, 3u, 8u, 100u})
    for (const std::size_t cols : {1u, 4u, 7u}) {
      const auto q = std::make_shared<blocked_recipe>(counting({7, 7}, 0).source, rows, cols);
      const auto k = std::make_shared<blocked_recipe>(counting({4, 7}, 500).source, 2, 1);
      const std::vector<ts::tensor_ref> parts = {{q, 0}, counting({5, 7}, 900), {k, 0}, {q, 0}};
      const auto stack = ts::stacked_rows(parts);
      REQUIRE(stack);
      CHECK(stack->source->prepared_bytes() == 14);  // q is there once
      const auto bytes = produced(*stack, 14, 2);
      CHECK(q->prepared == 1);
      CHECK(q->released == 1);
      CHECK(bytes == one_after_the_other(parts));
    }
}

TEST_CASE("a stack of vectors keeps the blocks of its parts, too") {
  for (const std::size_t block : {1u, 3u, 4u, 64u}) {
    const auto a = std::make_shared<blocked_recipe>(counting({10}, 0).source, 1, block);
    const std::vector<ts::tensor_ref> parts = {{a, 0}, counting({3}, 500), {a, 0}};
    const auto stack = ts::stacked_rows(parts);
    REQUIRE(stack);
    for (const std::size_t tile : {2u, 6u, 14u, 100u}) CHECK(produced(*stack, tile) == one_after_the_other(parts));
  }
}

TEST_CASE("stacking what was sliced gives back the stored tensor") {
  const ts::tensor_ref whole = counting({9, 4}, 0);
  std::vector<ts::tensor_ref> thirds;
  for (std::size_t k = 0; k < 3; ++k) {
    const auto third = ts::sliced_rows(whole, 3 * k, 3);
    REQUIRE(third);
    thirds.push_back(*third);
  }
  const auto stack = ts::stacked_rows(thirds);
  REQUIRE(stack);
  const auto stored = stack->source->stored(), original = whole.source->stored();
  REQUIRE(stored);
  CHECK(stored->source == original->source);
  CHECK(stored->offset == original->offset);
  CHECK(stored->length == original->length);
  CHECK(produced(*stack, 8) == produced(whole, 8));
  std::swap(thirds[0], thirds[1]);
  CHECK_FALSE(ts::stacked_rows(thirds)->source->stored());
  const auto one = ts::stacked_rows({whole});
  REQUIRE(one);
  CHECK(one->source == whole.source);
}

TEST_CASE("transposed and converted tensors can be stacked") {
  std::vector<ts::tensor_ref> parts;
  for (std::uint16_t k = 0; k < 3; ++k) {
    const auto turned = ts::transposed(counting({6, 4}, static_cast<std::uint16_t>(15360 + 100 * k)));  // near 1.0 in f16
    REQUIRE(turned);
    const auto wide = ts::cast(*turned, ts::dtype::f32);
    REQUIRE(wide);
    parts.push_back(*wide);
  }
  const auto stack = ts::stacked_rows(parts);
  REQUIRE(stack);
  CHECK(stack->shape() == ts::shape_type{12, 6});
  for (const std::size_t tile : {4u, 24u, 100u, 4096u}) CHECK(produced(*stack, tile) == one_after_the_other(parts));
}

TEST_CASE("outputs of a recipe that has several can be stacked") {
  const auto dealt = std::make_shared<dealt_recipe>(2, 3);
  const std::vector<ts::tensor_ref> parts = {{dealt, 2}, {dealt, 0}, counting({1, 3}, 500), {dealt, 1}, {dealt, 0}};
  const auto stack = ts::stacked_rows(parts);
  REQUIRE(stack);
  CHECK(stack->shape() == ts::shape_type{15, 3});
  CHECK(stack->source->prepared_bytes() == (6 + 2 + 4) * 3 * 2);
  const auto bytes = produced(*stack, 6, 2);
  CHECK(bytes == one_after_the_other(parts));
}

TEST_CASE("packed elements stack where rows end at whole bytes") {
  const auto packed = [](const ts::shape_type& shape) {
    std::vector<std::byte> bytes(ts::byte_count(ts::dtype::u4, ts::element_count(shape)));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(17 * i + 3);
    return ts::in_memory({"packed", ts::dtype::u4, shape}, std::move(bytes));
  };
  const std::vector<ts::tensor_ref> parts = {packed({3, 6}), packed({2, 6})};
  const auto stack = ts::stacked_rows(parts);
  REQUIRE(stack);
  for (const std::size_t tile : {1u, 3u, 100u}) CHECK(produced(*stack, tile) == one_after_the_other(parts));
  CHECK(refusal({packed({3}), packed({2})}) ==
        "MIS tensor 'packed': packed elements cannot be stacked where they do not end at a whole byte (expected rows of whole bytes, found 12 bits)");
}

TEST_CASE("what does not fit is not stacked") {
  CHECK(refusal({}) == "MIS there is nothing to stack (expected at least one tensor, found none)");
  CHECK(refusal({counting({}, 1)}) == "MIS tensor 't1': a single value cannot be stacked (expected at least one dimension, found [])");
  CHECK(refusal({counting({2, 3}, 1), counting({2, 4}, 2)}) ==
        "MIS tensor 't2': tensors of different shapes cannot be stacked (expected [2, 3] but for the first dimension, found [2, 4])");
  CHECK(refusal({counting({2, 3}, 1), counting({2, 3, 1}, 2)}) ==
        "MIS tensor 't2': tensors of different shapes cannot be stacked (expected [2, 3] but for the first dimension, found [2, 3, 1])");
  CHECK(refusal({counting({2, 3}, 1), counting({2, 3}, 2, ts::dtype::bf16)}) ==
        "MIS tensor 't2': tensors of different types cannot be stacked (expected f16, found bf16)");
}
