// SPDX-License-Identifier: MIT
#include "tensorsmith/tensor/fuse.hpp"

#include "support/catch.hpp"
#include "support/names.hpp"
#include "tensorsmith/tensor/cast.hpp"

namespace ts = tensorsmith;
using support::names;

namespace {

ts::tensor_ref matrix(std::size_t rows, std::size_t cols, float first) {
  ts::tensor_info info{"m", ts::dtype::f32, {rows, cols}};
  std::vector<float> values(rows * cols);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i);
  const auto bytes = std::as_bytes(std::span(values));
  return ts::in_memory(std::move(info), {bytes.begin(), bytes.end()});
}

ts::package attention() {
  ts::package out;
  out.source = "m";
  ts::component part;
  const auto add = [&](const std::string& name, ts::tensor_ref t) { REQUIRE(part.weights.add(name, std::move(t), "m: " + name)); };
  add("b.0.to_q.weight", matrix(2, 3, 0));
  add("b.0.norm", matrix(1, 3, 50));
  add("b.0.to_k.weight", matrix(4, 3, 6));
  add("b.0.to_v.weight", matrix(2, 3, 18));
  add("b.1.to_k.weight", matrix(1, 3, 103));
  add("b.1.to_q.weight", matrix(1, 3, 100));
  add("b.1.to_v.weight", matrix(1, 3, 106));
  out.components.push_back(std::move(part));
  return out;
}

std::vector<std::byte> bytes(const ts::package& in, const std::string& name) {
  const ts::catalog_entry* e = in.components[0].weights.find(name);
  REQUIRE(e);
  return *ts::materialize(e->tensor, {});
}

}  // namespace

TEST_CASE("matching tensors are fused, and split again into what they were", "[tensor]") {
  ts::package in = attention();
  const ts::package before = in;
  const auto fused = ts::fuse_rows(in, {"*.to_q.weight", "*.to_k.weight", "*.to_v.weight"}, "$1.to_qkv.weight");
  INFO((fused ? std::string() : fused.error().message()));
  REQUIRE(fused);
  CHECK(*fused == 2);
  CHECK(names(in) == std::vector<std::string>{"b.0.to_qkv.weight", "b.0.norm", "b.1.to_qkv.weight"});
  CHECK(in.components[0].weights.find("b.0.to_qkv.weight")->tensor.shape() == ts::shape_type{8, 3});
  CHECK(bytes(in, "b.0.to_qkv.weight") == *ts::materialize(matrix(8, 3, 0), {}));
  CHECK(bytes(in, "b.1.to_qkv.weight") == *ts::materialize(matrix(3, 3, 100), {}));

  ts::package one = in;
  REQUIRE(ts::split_rows(one, "b.1.to_qkv.*", {"q.$1", "k.$1", "v.$1"}));
  CHECK(names(one) == std::vector<std::string>{"b.0.to_qkv.weight", "b.0.norm", "q.weight", "k.weight", "v.weight"});
  CHECK(bytes(one, "k.weight") == bytes(before, "b.1.to_k.weight"));
  REQUIRE(ts::split_rows(one, "b.0.to_qkv.weight", {"b.0.to_q.weight", "b.0.to_k.weight", "b.0.to_v.weight"}, {2, 4, 2}));
  for (const char* name : {"b.0.to_q.weight", "b.0.to_k.weight", "b.0.to_v.weight"}) CHECK(bytes(one, name) == bytes(before, name));
}

TEST_CASE("fusing and splitting work on casts as well", "[tensor]") {
  ts::package in = attention();
  const ts::package plain = in;
  for (const auto& e : plain.components[0].weights.entries()) in.components[0].weights.replace(e.name, *ts::cast(e.tensor, ts::dtype::f16));
  const ts::package before = in;
  REQUIRE(ts::fuse_rows(in, {"b.0.to_q.weight", "b.0.to_v.weight"}, "qv"));
  REQUIRE(ts::split_rows(in, "qv", {"q", "v"}));
  CHECK(bytes(in, "q") == bytes(before, "b.0.to_q.weight"));
  CHECK(bytes(in, "v") == bytes(before, "b.0.to_v.weight"));
}

TEST_CASE("what cannot be fused or split is refused by name, and nothing changes", "[tensor]") {
  const auto refused_fuse = [](const std::vector<std::string>& parts, const std::string& whole) {
    ts::package in = attention();
    const auto done = ts::fuse_rows(in, parts, whole);
    REQUIRE_FALSE(done);
    CHECK(names(in) == names(attention()));
    return done.error().message();
  };
  CHECK(refused_fuse({"*.query", "*.key"}, "$1.qk") ==
        "USE m: the pattern '*.query' fuses nothing (expected a pattern that matches a tensor); list the names with inspect and correct it");
  CHECK(refused_fuse({"*.norm", "*.bias"}, "$1.both") == "MIS m: b.0.norm: a tensor to be fused with 'b.0.norm' is missing (expected 'b.0.bias')");
  CHECK(refused_fuse({"b.0.to_q.weight"}, "x") == "USE fusing needs two tensors or more (found 1)");
  CHECK(refused_fuse({"b.0.norm", "b.0.norm"}, "x") == "MIS m: b.0.norm: the tensor 'b.0.norm' would be fused twice");
  CHECK(refused_fuse({"b.0.norm", "*.norm"}, "x") == "USE the name '*.norm' asks for a wildcard that 'b.0.norm' lacks");
  CHECK(refused_fuse({"b.0.to_q.weight", "b.0.to_k.weight"}, "b.0.norm").find("two tensors get the name 'b.0.norm'") != std::string::npos);
  const auto refused_split = [](const std::string& whole, const std::vector<std::string>& parts, const std::vector<std::size_t>& rows) {
    ts::package in = attention();
    const auto done = ts::split_rows(in, whole, parts, rows);
    REQUIRE_FALSE(done);
    CHECK(names(in) == names(attention()));
    return done.error().message();
  };
  CHECK(refused_split("b.0.to_k.weight", {"a", "b", "c"}, {}) ==
        "MIS m: b.0.to_k.weight: the tensor 'b.0.to_k.weight' cannot be split evenly (expected a first dimension that 3 divides, found [4, 3])");
  CHECK(refused_split("b.0.to_k.weight", {"a", "b"}, {1, 2}) ==
        "MIS m: b.0.to_k.weight: the rows of the parts are not those of the tensor 'b.0.to_k.weight' (expected 3 rows, found [4, 3])");
  CHECK(refused_split("b.0.to_k.weight", {"a", "b"}, {~std::size_t{0}, 5}).starts_with("MIS "));
  CHECK(refused_split("b.0.to_k.weight", {"a", "b"}, {4}).starts_with("USE splitting needs a name and a number of rows for each part"));
  CHECK(refused_split("b.9", {"a", "b"}, {}).starts_with("USE m: the pattern 'b.9' splits nothing"));
}
