// SPDX-License-Identifier: MIT
#include "tensorsmith/core/json_value.hpp"

#include "support/catch.hpp"

namespace ts = tensorsmith;

TEST_CASE("objects keep the order of their keys and find members by name", "[core]") {
  ts::json_value config;
  config.set("b", 1);
  config.set("a", "text");
  config.set("b", 2.5);
  REQUIRE(config.as_object());
  CHECK(config.as_object()->size() == 2);
  CHECK(config.as_object()->front().first == "b");
  REQUIRE(config.find("b"));
  CHECK(*config.find("b")->as_double() == 2.5);
  CHECK(*config.find("a")->as_string() == "text");
  CHECK(config.find("c") == nullptr);
  CHECK(config.kind() == "an object");
  CHECK(ts::json_value(3).kind() == "an integer");
  CHECK(ts::json_value(true).as_bool());
  CHECK(ts::json_value().is_null());
}
