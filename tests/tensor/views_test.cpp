// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/views.hpp"

#include <numeric>

#include "support/catch.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

/// Bytes that are only reachable through read_at, as a file's are.
class file_like final : public ts::byte_source {
 public:
  explicit file_like(std::vector<std::byte> bytes) : bytes_("file", std::move(bytes)) {}
  std::uint64_t size() const noexcept override { return bytes_.size(); }
  const std::string& name() const noexcept override { return bytes_.name(); }
  ts::result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override { return bytes_.read_at(offset, out); }

 private:
  ts::memory_source bytes_;
};

template <class T>
std::vector<std::byte> numbers(std::size_t count) {
  std::vector<std::byte> out(count * sizeof(T));
  for (std::size_t i = 0; i < count; ++i) ts::detail::store_as(out.data() + i * sizeof(T), static_cast<T>(i));
  return out;
}

template <class T>
std::vector<T> values(const ts::tensor_ref& tensor, std::size_t tile_bytes) {
  ts::job run;
  run.tile_bytes = tile_bytes;
  run.threads = 1;
  std::vector<std::byte> bytes(tensor.info().bytes());
  ts::memory_sink sink(bytes);
  const ts::placement one{tensor.source, {{&sink, 0}}, "t"};
  REQUIRE(ts::execute(std::span<const ts::placement>(&one, 1), run));
  std::vector<T> out(tensor.info().elements());
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

/// What torch would make of (storage, offset, size, stride): element by element.
std::vector<std::uint16_t> by_definition(std::size_t offset, const ts::shape_type& shape, const std::vector<std::size_t>& strides) {
  std::vector<std::uint16_t> out;
  for (std::size_t n = 0; n < ts::element_count(shape); ++n) {
    std::size_t rest = n, at = offset;
    for (std::size_t d = shape.size(); d-- > 0;) {
      at += rest % shape[d] * strides[d];
      rest /= shape[d];
    }
    out.push_back(static_cast<std::uint16_t>(at));
  }
  return out;
}

}  // namespace

TEST_CASE("strided tensors read as torch reads them", "[tensor]") {
  struct layout { std::size_t offset; ts::shape_type shape; std::vector<std::size_t> strides; };
  const std::vector<layout> cases = {
      {0, {6, 5}, {5, 1}},          {3, {6, 5}, {5, 1}},           {0, {5, 6}, {1, 5}},       {7, {4, 9}, {1, 20}},
      {0, {3, 2, 4}, {8, 4, 1}},    {0, {3, 2, 4}, {8, 1, 2}},     {1, {2, 3, 4}, {1, 2, 6}}, {0, {4, 3, 2, 2}, {12, 1, 6, 3}},
      {0, {7}, {3}},                {5, {4, 3}, {0, 1}},           {5, {4, 3}, {10, 0}},      {0, {}, {}},
      {2, {1, 8}, {99, 1}},         {0, {0, 3}, {3, 1}},           {4, {5, 1, 3}, {30, 7, 2}}, {0, {300, 200}, {1, 300}}};
  for (const layout& c : cases)
    for (const std::size_t tile : {std::size_t{8}, std::size_t{256}, std::size_t{1} << 20}) {
      INFO(ts::to_string(c.shape) << " strides " << ts::to_string(c.strides) << " tile " << tile);
      for (const bool resident : {false, true}) {
        std::shared_ptr<const ts::byte_source> source;
        if (resident) source = std::make_shared<ts::memory_source>("memory", numbers<std::uint16_t>(60000));
        else source = std::make_shared<file_like>(numbers<std::uint16_t>(60000));
        const ts::tensor_ref tensor{ts::strided_tensor(source, c.offset * 2, ts::dtype::u16, c.shape, c.strides, "t"), 0};
        CHECK(values<std::uint16_t>(tensor, tile) == by_definition(c.offset, c.shape, c.strides));
      }
    }
}

TEST_CASE("views of stored tensors fold into strides", "[tensor]") {
  const auto source = std::make_shared<file_like>(numbers<std::uint16_t>(120));
  const ts::tensor_ref stored{ts::stored_tensor(source, 0, ts::dtype::u16, {10, 12}, "t"), 0};
  const auto turned = ts::transposed(stored);
  REQUIRE(turned);
  CHECK(turned->shape() == ts::shape_type{12, 10});
  CHECK_FALSE(turned->source->stored());
  const auto back = ts::transposed(*turned);
  REQUIRE(back);
  CHECK(back->source->stored());  // twice transposed is what was stored, so it can be copied as it lies

  const auto rows = ts::sliced_rows(stored, 4, 3);
  REQUIRE(rows);
  REQUIRE(rows->source->stored());
  CHECK(rows->source->stored()->offset == 4 * 12 * 2);
  CHECK(rows->source->stored()->length == 3 * 12 * 2);
  CHECK(values<std::uint16_t>(*rows, 32) == by_definition(48, {3, 12}, {12, 1}));
  CHECK(values<std::uint16_t>(*ts::sliced_rows(*turned, 4, 3), 32) == by_definition(4, {3, 10}, {1, 12}));

  const auto conv = ts::reshaped(stored, {10, 12, 1, 1});
  REQUIRE(conv);
  CHECK(conv->shape() == ts::shape_type{10, 12, 1, 1});
  CHECK(conv->source->stored());
  REQUIRE(ts::reshaped(*turned, {12, 10, 1, 1}));
  CHECK(values<std::uint16_t>(*ts::reshaped(*turned, {12, 1, 10}), 64) == by_definition(0, {12, 10}, {1, 12}));
  CHECK(ts::reshaped(stored, {11, 12}).error().code == ts::errc::mismatch);
  CHECK(ts::reshaped(*turned, {10, 12}).error().what == "this tensor cannot be reshaped without a copy");
  CHECK(ts::sliced_rows(stored, 8, 3).error().code == ts::errc::mismatch);
  CHECK(ts::transposed(*conv).error().what == "only a matrix can be transposed");
}

TEST_CASE("views of computed tensors give the same bytes as views of stored ones", "[tensor]") {
  /// Hides the strides of what it wraps, as a merge or a random tensor would.
  class opaque final : public ts::recipe {
   public:
    explicit opaque(ts::tensor_ref in) : in_(std::move(in)), info_(in_.info()) {}
    std::span<const ts::tensor_info> outputs() const noexcept override { return {&info_, 1}; }
    ts::result<void> produce(ts::region r, std::span<const ts::tile> t, ts::scratch& w) const override { return in_.source->produce(r, t, w); }

   private:
    ts::tensor_ref in_;
    ts::tensor_info info_;
  };
  const ts::tensor_ref stored = ts::in_memory({"t", ts::dtype::f32, {37, 83}}, numbers<float>(37 * 83));
  const ts::tensor_ref computed{std::make_shared<opaque>(stored), 0};
  for (const std::size_t tile : {std::size_t{16}, std::size_t{512}, std::size_t{1} << 20}) {
    CHECK(values<float>(*ts::transposed(computed), tile) == values<float>(*ts::transposed(stored), tile));
    CHECK(values<float>(*ts::sliced_rows(computed, 5, 11), tile) == values<float>(*ts::sliced_rows(stored, 5, 11), tile));
    CHECK(values<float>(*ts::reshaped(computed, {37, 83, 1}), tile) == values<float>(stored, tile));
    const auto half = ts::cast(*ts::transposed(computed), ts::dtype::f16);
    const auto other = ts::transposed(*ts::cast(stored, ts::dtype::f16));
    CHECK(values<std::uint16_t>(*half, tile) == values<std::uint16_t>(*other, tile));
  }
}

TEST_CASE("casting refuses what it does not know", "[tensor]") {
  const ts::tensor_ref ids = ts::in_memory({"ids", ts::dtype::i64, {2}}, std::vector<std::byte>(16));
  const auto outcome = ts::cast(ids, ts::dtype::f16);
  REQUIRE_FALSE(outcome);
  CHECK(outcome.error().message() ==
        "UNS tensor 'ids': this conversion of element types does not exist (expected f64, f32, f16, bf16, or one of them and an 8-bit float, "
        "found i64 to f16)");
  CHECK(ts::cast(ids, ts::dtype::i64)->source == ids.source);
}
