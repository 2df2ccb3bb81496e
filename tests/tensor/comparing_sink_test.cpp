// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/comparing_sink.hpp"

#include <vector>

#include "support/catch.hpp"

namespace ts = tensorsmith;

namespace {

/// A file that is not in memory: reads go through read_at.
class distant final : public ts::byte_source {
 public:
  explicit distant(std::vector<std::byte> bytes) : inner_("out.bin", std::move(bytes)) {}
  std::uint64_t size() const noexcept override { return inner_.size(); }
  const std::string& name() const noexcept override { return inner_.name(); }
  ts::result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override { return inner_.read_at(offset, out); }

 private:
  ts::memory_source inner_;
};

std::vector<std::byte> pattern(std::size_t count) {
  std::vector<std::byte> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::byte>(i * 7 + i / 256);
  return out;
}

}  // namespace

TEST_CASE("a comparing sink accepts what is there and names the first byte that differs", "[tensor]") {
  const std::size_t count = 700'001;  // several blocks, the last one short
  const std::vector<std::byte> good = pattern(count);
  std::vector<std::byte> bad = good;
  const std::size_t wrong = 600'123;
  bad[wrong] ^= std::byte{1};
  for (const bool resident : {false, true}) {
    const auto source = [&](const std::vector<std::byte>& bytes) -> std::shared_ptr<const ts::byte_source> {
      if (resident) return std::make_shared<ts::memory_source>("out.bin", bytes);
      return std::make_shared<distant>(bytes);
    };
    ts::comparing_sink same(source(good));
    CHECK(same.name() == "out.bin");
    REQUIRE(same.write_at(0, good));
    REQUIRE(same.write_at(5, std::span(good).subspan(5, 1000)));
    REQUIRE(same.write_at(count, {}));

    ts::comparing_sink other(source(bad));
    REQUIRE(other.write_at(0, std::span(good).first(wrong)));
    REQUIRE(other.write_at(wrong + 1, std::span(good).subspan(wrong + 1)));
    const auto refused = other.write_at(100, std::span(good).subspan(100));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message() == "INT out.bin: byte offset 600123: the output does not hold what was written into it (expected byte " +
                                           std::to_string(std::to_integer<int>(good[wrong])) + ", found " +
                                           std::to_string(std::to_integer<int>(bad[wrong])) +
                                           "); run again; if it comes back, check this machine's memory and disk");

    const auto longer = same.write_at(count - 1, std::span(good).first(2));
    REQUIRE_FALSE(longer);
    CHECK(longer.error().message() == "INT out.bin: byte offset 700000: the output that was written is too short (expected 2 bytes, found 1)");
    CHECK_FALSE(same.write_at(~std::uint64_t{0}, std::span(good).first(2)));
  }
}
