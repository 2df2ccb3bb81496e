// SPDX-License-Identifier: MIT
#include "tensorsmith/graph/builder.hpp"

#include "arch/counting_source.hpp"
#include "support/catch.hpp"
#include "tensorsmith/graph/nn.hpp"
#include "tensorsmith/graph/verify.hpp"

namespace {

namespace ts = tensorsmith;
using arch_test::counting_source;
using arch_test::hollow;
using ts::dim;
using ts::dtype;

/// x → linear → add, output "y".
ts::graph small() {
  counting_source source;
  ts::graph_builder b("small", source, dtype::f32);
  const ts::value_id x = b.input("x", dtype::f32, {b.dynamic("n"), dim(4)});
  const ts::value_id y = ts::nn::linear(b, "fc", x, 4, 4);
  b.output(ts::ops::add(b, y, x), "y");
  auto out = b.finish();
  if (!out) FAIL(out.error().message());
  return std::move(*out);
}
std::string complaint(const ts::graph& g) {
  const auto checked = ts::verify(g);
  return checked ? "sound" : checked.error().message();
}

}  // namespace

TEST_CASE("names come from the modules and are unique", "[graph][builder]") {
  counting_source source;
  ts::graph_builder b("g", source, dtype::f32);
  ts::value_id x = b.input("x", dtype::f32, {b.dynamic("n"), dim(4)});
  {
    const ts::graph_builder::scope outer(b, "blocks.0");
    x = ts::nn::linear(b, "fc", x, 4, 4);
    x = ts::ops::silu(b, ts::ops::silu(b, x));
  }
  b.output(x, "y");
  const auto g = b.finish();
  REQUIRE(g);
  CHECK(g->nodes[0].name == "/blocks.0/fc/linear");
  CHECK(g->nodes[0].module == "blocks.0.fc");
  CHECK(g->nodes[1].name == "/blocks.0/silu");
  CHECK(g->nodes[2].name == "/blocks.0/silu_1");
  CHECK((*g)[g->nodes[1].outputs[0]].name == "/blocks.0/silu_output_0");
  CHECK((*g)[g->outputs[0]].name == "y");
  CHECK((*g)[g->initializers[0].value].name == "blocks.0.fc.weight");
  CHECK(complaint(*g) == "sound");
}

TEST_CASE("values with a name of their own are output through Identity", "[graph][builder]") {
  counting_source source;
  ts::graph_builder b("g", source, dtype::f32);
  const ts::value_id x = b.input("x", dtype::f32, {dim(2)});
  const ts::value_id y = ts::ops::silu(b, x);
  b.output(x, "same");
  b.output(y, "first");
  b.output(y, "second");
  const auto g = b.finish();
  REQUIRE(g);
  CHECK(g->nodes.size() == 3);
  CHECK(complaint(*g) == "sound");
  SECTION("a taken name is our mistake") {
    ts::graph_builder c("g", source, dtype::f32);
    const ts::value_id z = c.input("z", dtype::f32, {dim(2)});
    c.output(ts::ops::silu(c, z), "z");
    CHECK_FALSE(c.finish());
  }
}

TEST_CASE("parameters are taken once and in the compute type; equal constants are one value", "[graph][builder]") {
  counting_source source(dtype::bf16);
  ts::graph_builder b("g", source, dtype::f16);
  const ts::value_id x = b.input("x", dtype::f16, {b.dynamic("n"), dim(4)});
  const ts::value_id y = ts::nn::linear(b, "fc", ts::nn::linear(b, "fc", x, 4, 4), 4, 4);
  const ts::value_id doubled = ts::ops::mul(b, y, b.number(2));
  b.output(ts::ops::mul(b, doubled, b.number(2)), "y");
  const auto g = b.finish();
  if (!g) FAIL(g.error().message());
  CHECK(g->initializers.size() == 3);
  CHECK(std::get<ts::tensor_ref>(g->initializers[0].data).type() == dtype::f16);
  CHECK(std::get<ts::constant>(g->initializers[2].data).bytes == std::vector<std::byte>{std::byte{0x00}, std::byte{0x40}});
  CHECK(complaint(*g) == "sound");
}

TEST_CASE("the first failure is kept", "[graph][builder]") {
  ts::catalog nothing;
  ts::catalog_parameters parameters(nothing, "unet", "model.safetensors");
  ts::graph_builder b("g", parameters, dtype::f32);
  const ts::value_id x = b.input("x", dtype::f32, {dim(2), dim(4)});
  ts::value_id y = ts::nn::linear(b, "first", x, 4, 4);
  y = ts::nn::linear(b, "second", y, 4, 4);
  CHECK(b.failed());
  b.output(y, "y");
  const auto g = b.finish();
  REQUIRE_FALSE(g);
  CHECK(g.error().place == "tensor 'first.weight'");
}

TEST_CASE("a catalog answers for parameters", "[graph][parameters]") {
  ts::catalog weights;
  REQUIRE(weights.add("conv", hollow("conv", dtype::f32, {8, 4, 1, 1}), "f: conv"));
  REQUIRE(weights.add("matrix", hollow("matrix", dtype::f32, {8, 4}), "f: matrix"));
  REQUIRE(weights.add("line", hollow("line", dtype::f32, {8, 4, 1}), "f: line"));
  REQUIRE(weights.add("rest", hollow("rest", dtype::f32, {1}), "f: rest"));
  ts::catalog_parameters parameters(weights, "vae", "f");
  CHECK(parameters.take("conv", {8, 4})->shape() == ts::shape_type{8, 4});
  CHECK(parameters.take("matrix", {8, 4, 1, 1})->shape() == ts::shape_type{8, 4, 1, 1});
  CHECK(parameters.take("line", {8, 4})->shape() == ts::shape_type{8, 4});
  REQUIRE(parameters.leftovers().size() == 1);
  CHECK(parameters.leftovers()[0]->name == "rest");
  CHECK_FALSE(parameters.take("matrix", {4, 8}));
  CHECK_FALSE(parameters.take("rest", {1, 1}));
  CHECK_FALSE(parameters.take("conv", {8, 4, 1, 2}));
  CHECK(parameters.shape_of("matrix") == ts::shape_type{8, 4});
  CHECK_FALSE(parameters.shape_of("none"));
}

TEST_CASE("verify finds what is wrong with a graph", "[graph][verify]") {
  ts::graph g = small();
  CHECK(complaint(g) == "sound");
  SECTION("order") {
    std::swap(g.nodes[0], g.nodes[1]);
    CHECK(complaint(g) == "MIS node '/Add': it reads '/fc/linear_output_0' before that is defined");
  }
  SECTION("a value with two producers") {
    g.nodes[1].outputs = g.nodes[0].outputs;
    CHECK(complaint(g).find("it is defined twice") != std::string::npos);
  }
  SECTION("names") {
    g.nodes[1].name = g.nodes[0].name;
    CHECK(complaint(g) == "MIS node '/fc/linear': the name is empty or not unique");
  }
  SECTION("value names") {
    g.values[1].name = g.values[0].name;
    CHECK(complaint(g) == "MIS value 'x': the name is empty or not unique");
  }
  SECTION("shape") {
    g[g.outputs[0]].shape[1] = dim(5);
    CHECK(complaint(g) == "MIS node '/Add': value 'y' has another type or shape (expected f32 [n, 4], found f32 [n, 5])");
  }
  SECTION("type") {
    g[g.outputs[0]].type = dtype::f16;
    CHECK(complaint(g).find("expected f32 [n, 4], found f16 [n, 4]") != std::string::npos);
  }
  SECTION("arity") {
    g.nodes[1].inputs.pop_back();
    CHECK(complaint(g).find("wrong number of inputs") != std::string::npos);
  }
  SECTION("unknown operator") {
    g.nodes[1].op = "Frobnicate";
    CHECK(complaint(g).find("UNS node '/Add'") == 0);
  }
  SECTION("operators of other domains are checked for order only") {
    g.nodes[1].op = "FusedThing";
    g.nodes[1].domain = "com.microsoft";
    CHECK(complaint(g) == "sound");
  }
  SECTION("dangling ids") {
    g.nodes[1].inputs[0] = static_cast<ts::value_id>(1000);
    CHECK(complaint(g).find("a value that does not exist") != std::string::npos);
  }
  SECTION("outputs") {
    g.outputs.push_back(g.outputs[0]);
    CHECK(complaint(g).find("a value is output twice") != std::string::npos);
    g.outputs.clear();
    CHECK(complaint(g).find("it has no outputs") != std::string::npos);
  }
  SECTION("initializers") {
    g.initializers[0].data = hollow("w", dtype::f32, {4, 5});
    CHECK(complaint(g).find("MIS initializer 'fc.weight'") == 0);
    g.initializers[0].data = ts::constant{dtype::f32, {4, 4}, {}};
    CHECK(complaint(g).find("its bytes do not make up its shape") != std::string::npos);
  }
  SECTION("symbols") {
    g.symbols.clear();
    CHECK(complaint(g) == "MIS input 'x': the graph does not declare symbol 'n'");
  }
}
