// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/catalog.hpp"

#include "support/catch.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

TEST_CASE("a catalog keeps order, finds every name and refuses doubles", "[tensor]") {
  ts::catalog all;
  const auto name = [](int i) { return "layer." + std::to_string((i * 7919) % 10007); };
  for (int i = 0; i < 3000; ++i)
    REQUIRE(all.add(name(i), ts::in_memory({name(i), ts::dtype::u8, {3}}, std::vector<std::byte>(3)), "file"));
  REQUIRE(all.size() == 3000);
  for (int i = 0; i < 3000; ++i) {
    REQUIRE(all.find(name(i)));
    CHECK(all.find(name(i)) == &all.entries()[static_cast<std::size_t>(i)]);
  }
  CHECK(all.find("layer.") == nullptr);
  CHECK(all.bytes() == 9000);
  CHECK(all.parameters() == 9000);
  const auto again = all.add(name(17), {}, "other");
  REQUIRE_FALSE(again);
  CHECK(again.error().code == ts::errc::mismatch);
  CHECK(again.error().message() ==
        "MIS other: two tensors get the name " + ts::quoted(name(17)) + " (expected unique names, found also from file)");
}
