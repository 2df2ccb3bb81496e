// SPDX-License-Identifier: MIT
#include "tensorsmith/graph/shapes.hpp"

#include <cstring>

#include "support/catch.hpp"
#include "tensorsmith/graph/element_code.hpp"

namespace {

namespace ts = tensorsmith;
using ts::dim;
using ts::dims;
using ts::dtype;
using ints = std::vector<std::int64_t>;

const dim b(ts::symbol{"b", 1}), h(ts::symbol{"h", 8}), w(ts::symbol{"w", 8}), s(ts::symbol{"s", 1});

/// A graph of values without nodes; `infer` types one node over them.
struct workbench {
  ts::graph g;
  ts::value_id f32(dims shape) { return g.add({"v" + std::to_string(g.values.size()), dtype::f32, std::move(shape)}); }
  ts::value_id of(dtype type, dims shape) { return g.add({"v" + std::to_string(g.values.size()), type, std::move(shape)}); }
  ts::value_id list(const ints& values) {
    ts::constant c{dtype::i64, {values.size()}, std::vector<std::byte>(values.size() * 8)};
    if (!values.empty()) std::memcpy(c.bytes.data(), values.data(), c.bytes.size());
    const ts::value_id id = of(dtype::i64, {dim(values.size())});
    g.initializers.push_back({id, std::move(c)});
    return id;
  }
  ts::value_id floats(const std::vector<float>& values) {
    ts::constant c{dtype::f32, {values.size()}, std::vector<std::byte>(values.size() * 4)};
    std::memcpy(c.bytes.data(), values.data(), c.bytes.size());
    const ts::value_id id = of(dtype::f32, {dim(values.size())});
    g.initializers.push_back({id, std::move(c)});
    return id;
  }
  std::string infer(const char* op, std::vector<ts::value_id> inputs, std::vector<ts::attribute> attributes = {}, std::size_t outputs = 1) {
    ts::node n{op, "/node", "", "", std::move(inputs), std::vector<ts::value_id>(outputs, ts::value_id::none), std::move(attributes)};
    ts::type_inference types(g);
    const auto out = types.infer(n);
    if (!out) return out.error().message();
    std::string text;
    for (const ts::value_type& t : *out) text += (text.empty() ? "" : "; ") + ts::to_string(t);
    return text;
  }
};

}  // namespace

TEST_CASE("elementwise operators broadcast equal expressions and 1", "[graph][shapes]") {
  workbench k;
  CHECK(k.infer("Add", {k.f32({b, 1, 5}), k.f32({3, 1})}) == "f32 [b, 3, 5]");
  CHECK(k.infer("Mul", {k.f32({b, s}), k.f32({})}) == "f32 [b, s]");
  CHECK(k.infer("Add", {k.f32({b, 2}), k.f32({b, 3})}) == "MIS node '/node': shapes cannot be broadcast (expected equal extents or 1, found [b, 2] and [b, 3])");
  CHECK(k.infer("Add", {k.f32({b}), k.f32({s})}).find("MIS") == 0);
  CHECK(k.infer("Add", {k.f32({2}), k.of(dtype::f16, {2})}).find("different element types") != std::string::npos);
  CHECK(k.infer("Equal", {k.f32({b}), k.f32({1})}) == "bool [b]");
  CHECK(k.infer("Where", {k.of(dtype::boolean, {b, 1}), k.f32({4}), k.f32({})}) == "f32 [b, 4]");
  CHECK(k.infer("Pow", {k.of(dtype::f16, {b}), k.f32({})}) == "f16 [b]");
  CHECK(k.infer("Sigmoid", {k.of(dtype::i64, {b})}).find("needs floating-point elements") != std::string::npos);
  CHECK(k.infer("Cast", {k.f32({b})}, {{"to", std::int64_t{10}}}) == "f16 [b]");
  CHECK(k.infer("Cast", {k.f32({b})}, {{"to", std::int64_t{99}}}).find("names no element type") != std::string::npos);
}

TEST_CASE("products and convolutions", "[graph][shapes]") {
  workbench k;
  CHECK(k.infer("MatMul", {k.f32({b, s, 8}), k.f32({8, 16})}) == "f32 [b, s, 16]");
  CHECK(k.infer("MatMul", {k.f32({b, 4, s, 8}), k.f32({b, 4, 8, s})}) == "f32 [b, 4, s, s]");
  CHECK(k.infer("MatMul", {k.f32({b, 8}), k.f32({9, 16})}).find("inner extents of a product differ (expected 8, found 9)") != std::string::npos);
  CHECK(k.infer("Gemm", {k.f32({b, 8}), k.f32({16, 8}), k.f32({16})}, {{"transB", std::int64_t{1}}}) == "f32 [b, 16]");
  CHECK(k.infer("linear", {k.f32({b, s, 8}), k.f32({16, 8}), k.f32({16})}) == "f32 [b, s, 16]");
  CHECK(k.infer("linear", {k.f32({b, s, 8}), k.f32({16, 9})}).find("the weight does not fit the last axis") != std::string::npos);
  const auto conv = [&](dims x, dims weight, ints strides, ints pads) {
    return k.infer("Conv", {k.f32(x), k.f32(weight)}, {{"strides", strides}, {"pads", pads}});
  };
  CHECK(conv({b, 4, h, w}, {320, 4, 3, 3}, {1, 1}, {1, 1, 1, 1}) == "f32 [b, 320, h, w]");
  CHECK(conv({b, 4, h, w}, {4, 4, 3, 3}, {2, 2}, {1, 1, 1, 1}) == "f32 [b, 4, h / 2, w / 2]");
  CHECK(conv({b, 4, h + dim(1), w + dim(1)}, {4, 4, 3, 3}, {2, 2}, {0, 0, 0, 0}) == "f32 [b, 4, h / 2, w / 2]");
  CHECK(conv({b, 4, s, 8}, {4, 4, 3, 3}, {2, 2}, {1, 1, 1, 1}) == "MIS node '/node': the extent cannot be divided by the stride (expected a multiple of 2, found s)");
  CHECK(conv({b, 5, h, w}, {4, 4, 3, 3}, {1, 1}, {1, 1, 1, 1}).find("the weight does not fit the channels") != std::string::npos);
  CHECK(conv({b, 4, 2, 2}, {4, 4, 3, 3}, {1, 1}, {0, 0, 0, 0}).find("the input is smaller than the kernel") != std::string::npos);
}

TEST_CASE("reshapes keep the number of elements, also of symbols", "[graph][shapes]") {
  workbench k;
  CHECK(k.infer("Reshape", {k.f32({b, s, 320}), k.list({0, -1, 8, 40})}) == "f32 [b, s, 8, 40]");
  CHECK(k.infer("Reshape", {k.f32({b, s, 8, 40}), k.list({0, 0, 320})}) == "f32 [b, s, 320]");
  CHECK(k.infer("Reshape", {k.f32({b, 6}), k.list({-1})}) == "f32 [b * 6]");
  CHECK(k.infer("Reshape", {k.f32({b * dim(6), 256}), k.list({-1, 1536})}) == "f32 [b, 1536]");
  CHECK(k.infer("Reshape", {k.f32({b, 320, h, w}), k.list({0, 320, -1})}) == "f32 [b, 320, h * w]");
  CHECK(k.infer("Reshape", {k.f32({b, 6}), k.list({0, 7})}).find("must keep the number of elements") != std::string::npos);
  CHECK(k.infer("Reshape", {k.f32({6}), k.list({4, -1})}).find("do not divide") != std::string::npos);
  CHECK(k.infer("Reshape", {k.f32({6}), k.list({-1, -1})}).find("second open") != std::string::npos);
  CHECK(k.infer("Reshape", {k.f32({6}), k.of(dtype::i64, {1})}).find("must be known") != std::string::npos);
}

TEST_CASE("operators that move elements", "[graph][shapes]") {
  workbench k;
  CHECK(k.infer("Transpose", {k.f32({b, s, 8, 40})}, {{"perm", ints{0, 2, 1, 3}}}) == "f32 [b, 8, s, 40]");
  CHECK(k.infer("Transpose", {k.f32({b, s})}, {{"perm", ints{0, 0}}}).find("no permutation") != std::string::npos);
  CHECK(k.infer("Concat", {k.f32({b, 4, h}), k.f32({b, 5, h})}, {{"axis", std::int64_t{1}}}) == "f32 [b, 9, h]");
  CHECK(k.infer("Concat", {k.f32({b, 4, h}), k.f32({b, 5, w})}, {{"axis", std::int64_t{1}}}).find("beside the joined axis differ") != std::string::npos);
  CHECK(k.infer("Gather", {k.f32({49408, 768}), k.of(dtype::i64, {b, s})}) == "f32 [b, s, 768]");
  CHECK(k.infer("Slice", {k.f32({b, 8, h}), k.list({0}), k.list({4}), k.list({1})}) == "f32 [b, 4, h]");
  CHECK(k.infer("Slice", {k.f32({b, 8, h}), k.list({-1}), k.list({INT64_MAX}), k.list({1})}) == "f32 [b, 1, h]");
  CHECK(k.infer("Slice", {k.f32({s}), k.list({1}), k.list({INT64_MAX})}) == "f32 [s - 1]");
  CHECK(k.infer("Slice", {k.f32({s}), k.list({0}), k.list({5})}).find("cannot be told") != std::string::npos);
  CHECK(k.infer("Split", {k.f32({b, 8}), k.list({3, 5})}, {{"axis", std::int64_t{-1}}}, 2) == "f32 [b, 3]; f32 [b, 5]");
  CHECK(k.infer("Split", {k.f32({b, 8})}, {{"axis", std::int64_t{1}}}, 2) == "f32 [b, 4]; f32 [b, 4]");
  CHECK(k.infer("Split", {k.f32({b, 8}), k.list({3, 4})}, {{"axis", std::int64_t{1}}}, 2).find("do not make up the whole") != std::string::npos);
  CHECK(k.infer("Unsqueeze", {k.f32({b, 4}), k.list({2, 3})}) == "f32 [b, 4, 1, 1]");
  CHECK(k.infer("Squeeze", {k.f32({b, 1, 4}), k.list({1})}) == "f32 [b, 4]");
  CHECK(k.infer("Squeeze", {k.f32({b, 1, 4}), k.list({2})}).find("only extents of 1") != std::string::npos);
  CHECK(k.infer("Pad", {k.f32({b, 3, h, w}), k.list({0, 0, 0, 0, 0, 0, 1, 1})}) == "f32 [b, 3, h + 1, w + 1]");
  const ts::value_id none = ts::value_id::none;
  CHECK(k.infer("Resize", {k.f32({b, 3, h, w}), none, k.floats({1, 1, 2, 2})}) == "f32 [b, 3, h * 2, w * 2]");
  CHECK(k.infer("Expand", {k.f32({1, 4}), k.list({3, 1})}) == "f32 [3, 4]");
  CHECK(k.infer("ArgMax", {k.of(dtype::i32, {b, s})}, {{"axis", std::int64_t{-1}}, {"keepdims", std::int64_t{0}}}) == "i64 [b]");
  CHECK(k.infer("ReduceMean", {k.f32({b, s, 8})}, {{"axes", ints{-1}}}) == "f32 [b, s, 1]");
  CHECK(k.infer("ReduceMean", {k.f32({b, s, 8}), k.list({1})}, {{"keepdims", std::int64_t{0}}}) == "f32 [b, 8]");
  CHECK(k.infer("Softmax", {k.f32({b, s})}, {{"axis", std::int64_t{-1}}}) == "f32 [b, s]");
  CHECK(k.infer("Trilu", {k.f32({s, s})}) == "f32 [s, s]");
}

TEST_CASE("composites", "[graph][shapes]") {
  workbench k;
  const std::vector<ts::attribute> heads{{"num_heads", std::int64_t{8}}};
  CHECK(k.infer("attention", {k.f32({b, h * w, 320}), k.f32({b, s, 320}), k.f32({b, s, 320})}, heads) == "f32 [b, h * w, 320]");
  CHECK(k.infer("attention", {k.f32({b, s, 321}), k.f32({b, s, 321}), k.f32({b, s, 321})}, heads).find("does not divide into the heads") != std::string::npos);
  CHECK(k.infer("attention", {k.f32({b, s, 320}), k.f32({b, s, 320}), k.f32({b, 77, 320})}, heads).find("do not fit together") != std::string::npos);
  CHECK(k.infer("group_norm", {k.f32({b, 64, h, w}), k.f32({64}), k.f32({64})}, {{"num_groups", std::int64_t{32}}}) == "f32 [b, 64, h, w]");
  CHECK(k.infer("group_norm", {k.f32({b, 48, h, w}), k.f32({48}), k.f32({48})}, {{"num_groups", std::int64_t{32}}}).find("do not divide into the groups") != std::string::npos);
  CHECK(k.infer("layer_norm", {k.f32({b, s, 8}), k.f32({8}), k.f32({8})}) == "f32 [b, s, 8]");
  CHECK(k.infer("layer_norm", {k.f32({b, s, 8}), k.f32({9}), k.f32({8})}).find("input 1 has the wrong shape (expected [8], found [9])") != std::string::npos);
  CHECK(k.infer("geglu", {k.f32({b, s, 8})}) == "f32 [b, s, 4]");
  CHECK(k.infer("geglu", {k.f32({b, s, 7})}).find("no two halves") != std::string::npos);
  CHECK(k.infer("upsample_nearest", {k.f32({b, 4, h, w})}, {{"scale", std::int64_t{2}}}) == "f32 [b, 4, h * 2, w * 2]");
  CHECK(k.infer("timestep_embedding", {k.of(dtype::i64, {})}, {{"dim", std::int64_t{320}}}) == "f32 [1, 320]");
  CHECK(k.infer("timestep_embedding", {k.of(dtype::f16, {b})}, {{"dim", std::int64_t{320}}}) == "f32 [b, 320]");
  CHECK(k.infer("image_to_tokens", {k.f32({b, 4, h, w})}) == "f32 [b, h * w, 4]");
  CHECK(k.infer("tokens_to_image", {k.f32({b, h * w, 4}), k.f32({b, 4, h, w})}) == "f32 [b, 4, h, w]");
  CHECK(k.infer("tokens_to_image", {k.f32({b, h, 4}), k.f32({b, 4, h, w})}).find("wrong shape") != std::string::npos);
  CHECK(k.infer("pool_at_token", {k.f32({b, s, 8}), k.of(dtype::i32, {b, s})}) == "f32 [b, 8]");
  CHECK(k.infer("pad_bottom_right", {k.f32({b, 4, h, w})}, {{"amount", std::int64_t{1}}}) == "f32 [b, 4, h + 1, w + 1]");
}

TEST_CASE("shapes are followed through the operators that compute with them", "[graph][shapes]") {
  workbench k;
  ts::type_inference types(k.g);
  const auto emit = [&](const char* op, std::vector<ts::value_id> inputs, std::vector<ts::attribute> attributes = {}) {
    ts::node n{op, op, "", "", std::move(inputs), {}, std::move(attributes)};
    auto out = types.infer(n);
    if (!out) FAIL(out.error().message());
    const ts::value_id id = k.of((*out)[0].type, (*out)[0].shape);
    types.learn(n, id);
    return id;
  };
  const ts::value_id image = k.f32({b, 320, h, w});
  const ts::value_id shape = emit("Shape", {image});
  const ts::value_id rows = emit("Gather", {shape, k.list({2})}), batch = emit("Slice", {shape, k.list({0}), k.list({1})});
  const ts::value_id half = emit("Div", {rows, k.list({2})});
  const ts::value_id target = emit("Concat", {batch, k.list({320, 2}), half, k.list({-1})}, {{"axis", std::int64_t{0}}});
  CHECK(ts::to_string(k.g[emit("Reshape", {image, target})].shape) == "[b, 320, 2, h / 2, w]");
  const ts::value_id table = k.f32({77, 768}), ids = k.of(dtype::i64, {b, s});
  const ts::value_id length = emit("Gather", {emit("Shape", {ids}), k.list({1})});
  CHECK(ts::to_string(k.g[emit("Slice", {table, k.list({0}), length, k.list({0})})].shape) == "[s, 768]");
  CHECK(ts::to_string(k.g[emit("Expand", {k.f32({b}), batch})].shape) == "[b]");
  CHECK(ts::to_string(k.g[emit("Expand", {k.f32({dim(ts::symbol{"steps", 1})}), batch})].shape) == "[b]");
}

TEST_CASE("unknown operators and wrong arity are refused", "[graph][shapes]") {
  workbench k;
  CHECK(k.infer("Frobnicate", {k.f32({b})}) == "UNS node '/node': no rule types the outputs of this operator (found 'Frobnicate')");
  CHECK(k.infer("Add", {k.f32({b})}) == "MIS node '/node': wrong number of inputs (expected 2 to 2, found 1)");
  CHECK(k.infer("Add", {k.f32({b}), ts::value_id::none}) == "MIS node '/node': input 1 is required");
}

TEST_CASE("element codes go both ways", "[graph]") {
  for (const dtype t : {dtype::f32, dtype::f16, dtype::i64, dtype::i4, dtype::boolean}) CHECK(ts::dtype_of_element_code(*ts::element_code(t)) == t);
  CHECK(ts::element_code(dtype::f16) == 10);
  CHECK_FALSE(ts::element_code(dtype::f6_e2m3));
  CHECK_FALSE(ts::dtype_of_element_code(8));
}
