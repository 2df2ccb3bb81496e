// SPDX-License-Identifier: MIT
#include "tensorsmith/pass/expose_stored_weights.hpp"

#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;
using ts::dtype;

namespace {

ts::tensor_ref stored(dtype type) { return ts::in_memory({"w", type, {2, 3}}, std::vector<std::byte>(ts::byte_count(type, 6))); }

}  // namespace

TEST_CASE("expose_stored_weights moves a cast behind the stored bytes and leaves the rest") {
  ts::graph g;
  const ts::dims shape{ts::dim(2), ts::dim(3)};
  const auto a = g.add({"a.weight", dtype::f32, shape}), b = g.add({"b.weight", dtype::f32, shape});
  const auto y = g.add({"y", dtype::f32, shape});
  auto narrow = ts::cast(stored(dtype::f16), dtype::f32);
  REQUIRE(narrow);
  g.initializers = {{a, *narrow}, {b, stored(dtype::f32)}};
  g.nodes = {{"Add", "/Add", "", "", {a, b}, {y}, {}}};
  g.outputs = {y};
  ts::expose_stored_weights(g);

  REQUIRE(g.nodes.size() == 2);
  CHECK(g.nodes[0].op == "Cast");
  CHECK(g.nodes[0].integer("to", 0) == 1);
  CHECK(g.nodes[0].outputs[0] == a);
  REQUIRE(g.initializers.size() == 2);
  const ts::initializer& exposed = g.initializers[0];
  CHECK(g[exposed.value].name == "a.weight");  // the parameter's name stays with the stored bytes
  CHECK(g[exposed.value].type == dtype::f16);
  CHECK(g[a].name != "a.weight");
  CHECK(std::get<ts::tensor_ref>(exposed.data).source->stored());
  CHECK(g.initializers[1].value == b);
}

TEST_CASE("expose_stored_weights leaves casts that may overflow where they are checked") {
  ts::graph g;
  const auto a = g.add({"a.weight", dtype::f16, {ts::dim(2), ts::dim(3)}});
  const auto narrow = ts::cast(stored(dtype::f32), dtype::f16);
  REQUIRE(narrow);
  g.initializers = {{a, *narrow}};
  ts::expose_stored_weights(g);
  CHECK(g.nodes.empty());
  CHECK(g[a].name == "a.weight");
}
