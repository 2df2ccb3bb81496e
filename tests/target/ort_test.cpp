// SPDX-License-Identifier: MIT
//
// What the lowering for ONNX Runtime makes of graphs; that the results compute the right numbers is tests/runtime/lowering.py's
// part.
#include "tensorsmith/target/ort.hpp"

#include <cstring>
#include <memory>
#include <set>

#include "support/catch.hpp"
#include "tensorsmith/graph/ops.hpp"
#include "tensorsmith/graph/verify.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
using ts::dim;
using ts::dtype;
using ts::value_id;

namespace {

/// Weights 0, 1, 2, …; `scattered` ones are stored the other way round, [in, out].
class counting final : public ts::parameter_source {
 public:
  explicit counting(bool scattered = false) : scattered_(scattered) {}
  ts::result<ts::tensor_ref> take(std::string_view name, const ts::shape_type& shape) override {
    std::vector<float> numbers(ts::element_count(shape));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
    std::vector<std::byte> bytes(numbers.size() * sizeof(float));
    std::memcpy(bytes.data(), numbers.data(), bytes.size());
    if (!scattered_ || shape.size() != 2) return ts::in_memory({std::string(name), dtype::f32, shape}, std::move(bytes));
    return ts::transposed(ts::in_memory({std::string(name), dtype::f32, {shape[1], shape[0]}}, std::move(bytes)));
  }

 private:
  bool scattered_;
};

template <class F>
ts::graph built(ts::parameter_source& from, F&& make, dtype compute = dtype::f32) {
  ts::graph_builder b("model", from, compute);
  b.output(make(b), "y");
  auto done = b.finish();
  if (!done) FAIL(done.error().message());
  return std::move(done).value();
}

ts::graph lowered(ts::graph g, ts::ort_options options = {}) {
  const auto done = ts::lower_to_ort(g, options);
  if (!done) FAIL(done.error().message());
  const auto fine = ts::verify(g);
  if (!fine) FAIL(fine.error().message());
  return g;
}

std::vector<std::string> ops(const ts::graph& g) {
  std::vector<std::string> out;
  for (const ts::node& n : g.nodes) out.push_back(n.op);
  return out;
}

value_id linear(ts::graph_builder& b, const char* module, value_id x, std::size_t in, std::size_t out) {
  const ts::graph_builder::scope inside(b, module);
  return b.emit("linear", {x, b.parameter("weight", {out, in})});
}

const ts::initializer* weight(const ts::graph& g, std::string_view name) {
  for (const ts::initializer& i : g.initializers)
    if (g[i.value].name == name) return &i;
  return nullptr;
}

using names = std::vector<std::string>;

}  // namespace

TEST_CASE("a linear weight is turned to [in, out] by its recipe and keeps its name") {
  counting from;
  const ts::graph g = lowered(built(from, [](ts::graph_builder& b) {
    return linear(b, "proj", b.input("x", dtype::f32, {b.dynamic("batch"), dim(4), dim(3)}), 3, 2);
  }));
  CHECK(ops(g) == names{"MatMul"});
  CHECK(g.nodes[0].name == "/proj/MatMul");
  CHECK(g.nodes[0].module == "proj");
  const ts::initializer* w = weight(g, "proj.weight");
  REQUIRE(w);
  CHECK(g[w->value].shape == ts::dims{dim(3), dim(2)});
  const auto bytes = ts::materialize(std::get<ts::tensor_ref>(w->data), {});
  REQUIRE(bytes);
  float numbers[6];
  std::memcpy(numbers, bytes->data(), sizeof numbers);
  CHECK(std::vector<float>(numbers, numbers + 6) == std::vector<float>{0, 3, 1, 4, 2, 5});
}

TEST_CASE("kept weights get a Transpose node, unless they are stored as MatMul needs them") {
  const auto make = [](ts::graph_builder& b) {
    return linear(b, "proj", b.input("x", dtype::f32, {dim(1), dim(4), dim(3)}), 3, 2);
  };
  counting as_stored, other_way(true);
  CHECK(ops(lowered(built(as_stored, make), {17, true})) == names{"Transpose", "MatMul"});
  const ts::graph direct = lowered(built(other_way, make), {17, true});
  CHECK(ops(direct) == names{"MatMul"});
  CHECK(std::get<ts::tensor_ref>(weight(direct, "proj.weight")->data).source->stored());
}

TEST_CASE("a weight that also serves as a table stays; one that serves two linears is turned once") {
  counting from;
  const ts::graph tied = lowered(built(from, [](ts::graph_builder& b) {
    const value_id ids = b.input("ids", dtype::i64, {dim(1), dim(4)});
    const value_id table = b.parameter("weight", {5, 3});
    return b.emit("linear", {ts::ops::gather(b, table, ids), table});
  }));
  CHECK(ops(tied) == names{"Gather", "MatMul"});
  CHECK(weight(tied, "weight"));
  CHECK(weight(tied, "weight.transposed"));
  for (const bool keep : {false, true}) {
    const ts::graph twice = lowered(built(from, [](ts::graph_builder& b) {
      const value_id x = b.input("x", dtype::f32, {dim(1), dim(4), dim(3)});
      return linear(b, "square", linear(b, "square", x, 3, 3), 3, 3);
    }), {17, keep});
    CHECK(ops(twice) == (keep ? names{"Transpose", "MatMul", "MatMul"} : names{"MatMul", "MatMul"}));
  }
}

TEST_CASE("dynamic images and sequences need no run-time shapes, but for tokens_to_image and a causal mask") {
  counting from;
  const auto image = [](ts::graph_builder& b) {
    return b.input("x", dtype::f32, {b.dynamic("n"), dim(8), b.dynamic("h"), b.dynamic("w")});
  };
  const auto shapes_in = [](const ts::graph& g) {
    std::size_t n = 0;
    for (const ts::node& m : g.nodes) n += m.op == "Shape";
    return n;
  };
  CHECK(shapes_in(lowered(built(from, [&](ts::graph_builder& b) {
          return b.emit("group_norm", {image(b), b.parameter("weight", {8}), b.parameter("bias", {8})},
                        {{"num_groups", std::int64_t{4}}});
        }))) == 0);
  CHECK(shapes_in(lowered(built(from, [&](ts::graph_builder& b) {
    const value_id x = ts::ops::image_to_tokens(b, image(b));
    return ts::ops::attention(b, x, x, x, {2, false, false, 0});
  }))) == 0);
  CHECK(shapes_in(lowered(built(from, [&](ts::graph_builder& b) {  // one for all blocks of this size
    const value_id x = image(b);
    const value_id again = ts::ops::tokens_to_image(b, ts::ops::image_to_tokens(b, x), x);
    return ts::ops::tokens_to_image(b, ts::ops::image_to_tokens(b, again), x);
  }))) == 1);
  CHECK(shapes_in(lowered(built(from, [&](ts::graph_builder& b) {  // one mask for all layers
    value_id x = b.input("x", dtype::f32, {b.dynamic("n"), b.dynamic("s"), dim(8)});
    for (int layer = 0; layer < 3; ++layer) x = ts::ops::attention(b, x, x, x, {2, true, false, 77});
    return x;
  }))) == 1);
}

TEST_CASE("forms follow the operator set") {
  counting from;
  const auto norm = [](ts::graph_builder& b) {
    return b.emit("layer_norm",
                  {b.input("x", dtype::f32, {dim(1), dim(8)}), b.parameter("weight", {8}), b.parameter("bias", {8})});
  };
  CHECK(ops(lowered(built(from, norm), {17})) == names{"LayerNormalization"});
  CHECK(ops(lowered(built(from, norm), {16})).size() == 9);
  const auto gelu = [](ts::graph_builder& b) { return b.emit("gelu", {b.input("x", dtype::f32, {dim(1), dim(8)})}); };
  CHECK(ops(lowered(built(from, gelu), {19})) == names{"Div", "Erf", "Add", "Mul", "Mul"});
  CHECK(ops(lowered(built(from, gelu), {20})) == names{"Gelu"});
}

TEST_CASE("upcast attention computes scores and softmax in f32, the rest in f16") {
  counting from;
  const ts::graph g = lowered(built(from, [](ts::graph_builder& b) {
    const value_id x = b.input("x", dtype::f16, {dim(1), dim(4), dim(8)});
    return ts::ops::attention(b, x, x, x, {2, false, true, 0});
  }, dtype::f16));
  for (const ts::node& n : g.nodes)
    if (n.op == "Softmax") CHECK(g[n.outputs[0]].type == dtype::f32);
  CHECK(g[g.outputs[0]].type == dtype::f16);
}

TEST_CASE("equal constants are held once") {
  counting from;
  const ts::graph g = lowered(built(from, [](ts::graph_builder& b) {
    value_id x = b.input("x", dtype::f32, {dim(1), dim(4), dim(8)});
    for (int k = 0; k < 4; ++k) x = b.emit("gelu", {ts::ops::attention(b, x, x, x, {2, false, false, 0})});
    return x;
  }));
  std::set<std::vector<std::byte>> distinct;
  for (const ts::initializer& i : g.initializers) distinct.insert(std::get<ts::constant>(i.data).bytes);
  CHECK(distinct.size() == g.initializers.size());
}

TEST_CASE("what cannot be lowered is refused by name") {
  counting from;
  ts::graph g = built(from, [](ts::graph_builder& b) { return b.emit("silu", {b.input("x", dtype::f32, {dim(1)})}); });
  CHECK(ts::lower_to_ort(g, {13}).error().message() ==
        "USE the ONNX operator set is not supported (expected 14 to 21, found 13); pass --opset with a number in that range");
  CHECK(ts::lower_to_ort(g, {22}).error().code == ts::errc::usage);
  g.nodes[0].op = "warp";
  CHECK(ts::lower_to_ort(g, {17}).error().message() == "UNS node '/silu': ONNX Runtime's lowering has no operator 'warp'");
}

TEST_CASE("a bundle is lowered whole and says for which operator set") {
  counting from;
  ts::bundle models;
  models.components.push_back(
      {"unet",
       built(from, [](ts::graph_builder& b) { return b.emit("silu", {b.input("x", dtype::f32, {dim(1)})}); }),
       {},
       {},
       {}});
  ts::job run;
  const auto done = ts::lower(ts::tags::ort_cuda{}, std::move(models), {18}, run);
  REQUIRE(done);
  CHECK(done->opset == 18);
  CHECK(ops(done->components[0].model) == names{"Sigmoid", "Mul"});
}
