// SPDX-License-Identifier: MIT
#include "tensorsmith/pass/remove_unused.hpp"

#include "support/catch.hpp"

namespace ts = tensorsmith;
using ts::dtype;

TEST_CASE("remove_unused drops what no output needs and keeps the interface") {
  ts::graph g;
  const auto x = g.add({"x", dtype::f32, {ts::dim(2)}}), spare = g.add({"spare", dtype::f32, {ts::dim(2)}});
  const auto dead_weight = g.add({"dead.weight", dtype::f32, {}}), weight = g.add({"weight", dtype::f32, {}});
  const auto dead = g.add({"dead", dtype::f32, {ts::dim(2)}}), a = g.add({"a", dtype::f32, {ts::dim(1)}});
  const auto b = g.add({"b", dtype::f32, {ts::dim(1)}}), y = g.add({"y", dtype::f32, {ts::dim(1)}});
  g.inputs = {x, spare};
  g.outputs = {y};
  g.initializers = {{dead_weight, ts::constant{dtype::f32, {}, std::vector<std::byte>(4)}},
                    {weight, ts::constant{dtype::f32, {}, std::vector<std::byte>(4)}}};
  g.nodes = {{"Mul", "/Mul", "", "", {x, dead_weight}, {dead}, {}},
             {"Split", "/Split", "", "", {x}, {a, b}, {}},
             {"Clip", "/Clip", "", "", {a, ts::value_id::none, weight}, {y}, {}}};
  ts::remove_unused(g);

  REQUIRE(g.nodes.size() == 2);
  CHECK(g.nodes[0].op == "Split");
  CHECK(g[g.nodes[0].outputs[1]].name == "b");  // an unused second output still is one
  CHECK(g.nodes[1].inputs[1] == ts::value_id::none);
  CHECK(g[g.nodes[1].inputs[2]].name == "weight");
  REQUIRE(g.initializers.size() == 1);
  CHECK(g[g.initializers[0].value].name == "weight");
  REQUIRE(g.inputs.size() == 2);
  CHECK(g[g.inputs[1]].name == "spare");
  CHECK(g[g.outputs[0]].name == "y");
  CHECK(g.values.size() == 6);
}
