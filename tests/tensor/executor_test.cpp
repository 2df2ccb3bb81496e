// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/executor.hpp"

#include <atomic>
#include <chrono>
#include <thread>

#include "support/catch.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/stacked.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;

namespace {

std::vector<std::byte> counting(std::size_t floats) {
  std::vector<std::byte> bytes(floats * 4);
  for (std::size_t i = 0; i < floats; ++i) ts::detail::store_as(bytes.data() + 4 * i, static_cast<float>(i) * 0.25f);
  return bytes;
}

/// Doubles its input and counts the rows' sums: two outputs from one pass; the second has one element a row.
class doubled_with_sums final : public ts::recipe {
 public:
  explicit doubled_with_sums(ts::tensor_ref in) : in_(std::move(in)) {
    infos_[0] = in_.info();
    infos_[1] = {"sums", ts::dtype::f32, {in_.shape()[0], 1}};
  }
  std::span<const ts::tensor_info> outputs() const noexcept override { return infos_; }
  ts::region grain() const override { return {0, 1, 0, in_.shape()[1]}; }
  ts::region output_region(std::size_t k, ts::region r) const override { return k == 0 ? r : ts::region{r.row, r.rows, 0, 1}; }
  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch& work) const override {
    TENSORSMITH_TRY(const ts::view in, in_.source->load(r, work));
    for (std::size_t i = 0; i < r.rows; ++i) {
      float sum = 0;
      for (std::size_t c = 0; c < r.cols; ++c) {
        const float x = ts::detail::load_as<float>(in.data + i * in.pitch + 4 * c);
        sum += x;
        ts::detail::store_as(tiles[0].data + i * tiles[0].pitch + 4 * c, 2 * x);
      }
      ts::detail::store_as(tiles[1].data + i * tiles[1].pitch, sum);
    }
    return {};
  }

 private:
  ts::tensor_ref in_;
  ts::tensor_info infos_[2];
};

/// Fails on one row, counts what is prepared and released.
class failing final : public ts::recipe {
 public:
  failing(std::size_t bad_row, std::string what, std::atomic<int>& balance)
      : bad_row_(bad_row), what_(std::move(what)), balance_(balance) {}
  std::span<const ts::tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  ts::result<void> do_prepare(const ts::job&) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
    return ++balance_, ts::result<void>{};
  }
  int delay_ms = 0;
  void do_release() noexcept override { --balance_; }
  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch&) const override {
    if (r.row <= bad_row_ && bad_row_ < r.row + r.rows) return ts::failure{.code = ts::errc::numeric, .what = what_};
    std::memset(tiles[0].data, 1, tiles[0].pitch * r.rows);
    return {};
  }

 private:
  ts::tensor_info info_{"failing", ts::dtype::u8, {64, 16}};
  std::size_t bad_row_;
  std::string what_;
  std::atomic<int>& balance_;
};

/// Prepares for a while, and gives ones only while it is prepared. Fails in the first `failures` calls.
class prepared_ones final : public ts::recipe {
 public:
  explicit prepared_ones(int failures = 0) : failures_(failures) {}
  std::span<const ts::tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  ts::result<void> do_prepare(const ts::job&) override {
    ++prepared;
    if (failures_-- > 0) return ts::failure{.code = ts::errc::numeric, .what = "not yet"};
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    value_ = 1;
    return {};
  }
  void do_release() noexcept override { ++released, value_ = 0; }
  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch&) const override {
    std::memset(tiles[0].data, value_, tiles[0].pitch * r.rows);
    return {};
  }
  int prepared = 0, released = 0;

 private:
  ts::tensor_info info_{"ones", ts::dtype::u8, {64, 16}};
  int failures_, value_ = 0;
};

}  // namespace

TEST_CASE("placements and recipes that share a recipe prepare it once and release it behind the last of them", "[tensor]") {
  for (int repeat = 0; repeat < 20; ++repeat) {
    const auto shared = std::make_shared<prepared_ones>();
    const ts::tensor_ref ones{shared, 0};
    const ts::tensor_ref stack = *ts::stacked_rows({ones, *ts::transposed(*ts::transposed(ones)), ones});
    std::vector<std::byte> out(5 * 1024);
    ts::memory_sink sink(out);
    const std::vector<ts::placement> all = {{shared, {{&sink, 0}}, "a"}, {stack.source, {{&sink, 1024}}, "b"}, {shared, {{&sink, 4096}}, "c"}};
    ts::job run;
    run.threads = 4, run.tile_bytes = 64;
    REQUIRE(ts::execute(all, run));
    CHECK(out == std::vector<std::byte>(out.size(), std::byte{1}));
    CHECK(shared->prepared == shared->released);
    CHECK(shared->prepared >= 1);
    CHECK(shared->prepared <= 3);
  }
  prepared_ones alone;
  ts::job run;
  REQUIRE(alone.prepare(run));
  REQUIRE(alone.prepare(run));
  alone.release();
  CHECK(alone.released == 0);
  alone.release();
  CHECK(alone.prepared == 1);
  CHECK(alone.released == 1);
}

TEST_CASE("a recipe over several prepares all or none of them", "[tensor]") {
  const auto good = std::make_shared<prepared_ones>();
  const auto bad = std::make_shared<prepared_ones>(1);
  const ts::tensor_ref stack = *ts::stacked_rows({ts::tensor_ref{good, 0}, ts::tensor_ref{bad, 0}});
  ts::job run;
  REQUIRE(good->prepare(run));  // another user
  CHECK_FALSE(stack.source->prepare(run));
  CHECK(good->released == 0);
  REQUIRE(stack.source->prepare(run));  // nothing is left of the failure
  stack.source->release();
  CHECK(good->released == 0);
  good->release();
  CHECK(good->prepared == 1);
  CHECK(good->released == 1);
  CHECK(bad->prepared == 2);
  CHECK(bad->released == 1);
}

TEST_CASE("bytes out do not depend on threads or tile size", "[tensor]") {
  const ts::tensor_ref matrix = ts::in_memory({"m", ts::dtype::f32, {130, 70}}, counting(130 * 70));
  const ts::tensor_ref vector = ts::in_memory({"v", ts::dtype::f32, {1001}}, counting(1001));
  const ts::tensor_ref empty = ts::in_memory({"e", ts::dtype::f32, {0, 4}}, {});
  std::vector<std::byte> first;
  for (const unsigned threads : {1u, 2u, 7u})
    for (const std::size_t tile : {std::size_t{64}, std::size_t{4096}, std::size_t{4} << 20}) {
      ts::job run;
      run.threads = threads;
      run.tile_bytes = tile;
      std::vector<std::byte> out(130 * 70 * 4 + 130 * 70 * 2 + 1001 * 2 + 130 * 70 * 4 + 130 * 4);
      ts::memory_sink sink(out);
      const auto sums = std::make_shared<doubled_with_sums>(matrix);
      const std::size_t second = 130 * 70 * 4, third = second + 130 * 70 * 2, fourth = third + 1001 * 2;
      const std::vector<ts::placement> all = {
          {ts::transposed(matrix)->source, {{&sink, 0}}, "t"},
          {ts::cast(matrix, ts::dtype::f16)->source, {{&sink, second}}, "c"},
          {ts::cast(vector, ts::dtype::bf16)->source, {{&sink, third}}, "v"},
          {sums, {{&sink, fourth}, {&sink, fourth + 130 * 70 * 4}}, "s"},
          {empty.source, {{&sink, 0}}, "e"}};
      REQUIRE(ts::execute(all, run));
      if (first.empty()) first = out;
      CHECK(out == first);
    }
  CHECK(ts::detail::load_as<float>(first.data() + 4 * (2 * 130 + 3)) == 0.25f * (3 * 70 + 2));  // transposed [70, 130]
  CHECK(ts::detail::load_as<float>(first.data() + first.size() - 4 * 129) == 0.25f * (70 * 70 + 69 * 70 / 2));  // row 1
}

TEST_CASE("an output without a sink is discarded", "[tensor]") {
  const auto sums = std::make_shared<doubled_with_sums>(ts::in_memory({"m", ts::dtype::f32, {4, 8}}, counting(32)));
  const auto bytes = ts::materialize({sums, 1}, ts::job{});
  REQUIRE(bytes);
  REQUIRE(bytes->size() == 16);
  CHECK(ts::detail::load_as<float>(bytes->data()) == 7.0f);  // 0.25 · (0 + … + 7)
}

TEST_CASE("the first error in order wins, whatever the threads do, and what was prepared is released", "[tensor]") {
  for (const unsigned threads : {1u, 4u})
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::atomic<int> balance{0};
      std::vector<std::byte> out(3 * 1024);
      ts::memory_sink sink(out);
      const std::vector<ts::placement> all = {
          {std::make_shared<failing>(1000, "none", balance), {{&sink, 0}}, "a"},
          {std::make_shared<failing>(40, "first", balance), {{&sink, 1024}}, "b"},
          {std::make_shared<failing>(0, "second", balance), {{&sink, 2048}}, "c"}};
      ts::job run;
      run.threads = threads;
      run.tile_bytes = 32;
      const auto outcome = ts::execute(all, run);
      REQUIRE_FALSE(outcome);
      CHECK(outcome.error().what == "first");
      CHECK(balance == 0);
    }
}

TEST_CASE("a later error met while an earlier placement is still being prepared does not hide the earlier one", "[tensor]") {
  std::atomic<int> balance{0};
  std::vector<std::byte> out(2 * 1024);
  ts::memory_sink sink(out);
  const auto slow = std::make_shared<failing>(40, "first", balance);
  slow->delay_ms = 50;
  const std::vector<ts::placement> all = {{slow, {{&sink, 0}}, "a"},
                                          {std::make_shared<failing>(0, "second", balance), {{&sink, 1024}}, "b"}};
  ts::job run;
  run.threads = 2;
  run.tile_bytes = 32;
  const auto outcome = ts::execute(all, run);
  REQUIRE_FALSE(outcome);
  CHECK(outcome.error().what == "first");
  CHECK(balance == 0);
}

TEST_CASE("a run can be cancelled from its own progress callback", "[tensor]") {
  const ts::tensor_ref matrix = ts::in_memory({"m", ts::dtype::f32, {512, 64}}, counting(512 * 64));
  std::vector<std::byte> out(512 * 64 * 2);
  ts::memory_sink sink(out);
  const ts::placement one{ts::cast(matrix, ts::dtype::f16)->source, {{&sink, 0}}, "m"};
  std::atomic<bool> stop{false};
  std::uint64_t seen = 0;
  ts::job run;
  run.threads = 2;
  run.tile_bytes = 256;
  run.cancel = &stop;
  run.on_progress = [&](const ts::progress& p) {
    CHECK(p.total_bytes == out.size());
    CHECK(p.done_bytes > seen);
    seen = p.done_bytes;
    stop = p.done_bytes * 4 > p.total_bytes;
  };
  const auto outcome = ts::execute(std::span<const ts::placement>(&one, 1), run);
  REQUIRE_FALSE(outcome);
  CHECK(outcome.error().code == ts::errc::cancelled);
  CHECK(seen < out.size());
}

TEST_CASE("progress ends at the total", "[tensor]") {
  const ts::tensor_ref matrix = ts::in_memory({"m", ts::dtype::f32, {512, 64}}, counting(512 * 64));
  std::vector<std::byte> out(512 * 64 * 4);
  ts::memory_sink sink(out);
  const ts::placement one{matrix.source, {{&sink, 0}}, "m"};
  ts::job run;
  run.threads = 1;
  run.tile_bytes = 4096;
  std::uint64_t last = 0, calls = 0;
  run.on_progress = [&](const ts::progress& p) { last = p.done_bytes, ++calls; };
  REQUIRE(ts::execute(std::span<const ts::placement>(&one, 1), run));
  CHECK(last == out.size());
  CHECK(calls == 32);
}

TEST_CASE("a source that ends too early is an error, not zeros", "[tensor]") {
  auto source = std::make_shared<ts::memory_source>("short.bin", std::vector<std::byte>(100));
  class truncated final : public ts::byte_source {
   public:
    explicit truncated(std::shared_ptr<ts::memory_source> inner) : inner_(std::move(inner)) {}
    std::uint64_t size() const noexcept override { return inner_->size(); }
    const std::string& name() const noexcept override { return inner_->name(); }
    ts::result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override { return inner_->read_at(offset, out); }

   private:
    std::shared_ptr<ts::memory_source> inner_;
  };
  const ts::tensor_ref tensor{ts::stored_tensor(std::make_shared<truncated>(source), 40, ts::dtype::f32, {16}, "w"), 0};
  const auto bytes = ts::materialize(tensor, ts::job{});
  REQUIRE_FALSE(bytes);
  CHECK(bytes.error().message() == "FMT short.bin: byte offset 40: read past the end (expected 64 bytes, found 60)");
}
