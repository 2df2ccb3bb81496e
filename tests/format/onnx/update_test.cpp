// SPDX-License-Identifier: MIT
//
// Models with tensors and nodes changed: what ONNX's own classes then find, and that everything else keeps its bytes.
#include <onnx/checker.h>
#include <onnx/shape_inference/implementation.h>

#include <map>

#include "format/onnx/onnx_bytes.hpp"
#include "format/onnx/onnx_files.hpp"
#include "support/catch.hpp"
#include "tensorsmith/format/onnx/model_proto.hpp"
#include "tensorsmith/format/onnx/nodes.hpp"
#include "tensorsmith/format/onnx/read.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
using support::field;
using support::onnx_node;
using support::onnx_tensor;
using support::onnx_value;

namespace {

using texts = std::map<std::string, std::string>;

ts::onnx_model read(const std::string& bytes, const texts& beside = {}) {
  const ts::onnx_file_opener open = [&](const std::string& location) -> ts::result<std::shared_ptr<const ts::byte_source>> {
    if (const auto at = beside.find(location); at != beside.end()) return support::file_of(at->second, at->first);
    return ts::failure{.code = ts::errc::io, .what = "no file " + location};
  };
  auto model = ts::read_onnx(support::file_of(bytes, "m.onnx"), open);
  INFO((model ? std::string() : model.error().message()));
  REQUIRE(model);
  return std::move(*model);
}
texts written(const ts::onnx_model& model, const ts::onnx_update& update) {
  const auto files = ts::plan_onnx_update(model, update);
  REQUIRE(files);
  texts out;
  for (const ts::planned_file& file : *files) out[file.name] = support::bytes_of(file);
  return out;
}
onnx::ModelProto parsed(const std::string& bytes) {
  onnx::ModelProto out;
  REQUIRE(out.ParseFromString(bytes));
  return out;
}
ts::tensor_ref tensor(const std::string& bytes, ts::shape_type shape, ts::dtype type = ts::dtype::f32) {
  std::vector<std::byte> raw(bytes.size());
  std::copy_n(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), raw.begin());
  return ts::in_memory({"new", type, std::move(shape)}, std::move(raw));
}

/// A ValueInfoProto of a tensor of floats with these dimensions; `of_type` and `more`: further fields of its type and of itself.
std::string declared(const std::string& name, const std::vector<std::uint64_t>& dims, const std::string& of_type = {}, const std::string& more = {}) {
  std::string shape;
  for (const std::uint64_t d : dims) shape += field(1, field(1, d));
  return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)) + of_type) + more;
}
/// What ONNX's checker and a strict inference of shapes say.
std::string checked(const std::string& bytes) {
  try {
    onnx::ModelProto model = parsed(bytes);
    onnx::checker::check_model(model);
    onnx::shape_inference::InferShapes(model, onnx::OpSchemaRegistry::Instance(), {true, 1, false});
    return "right";
  } catch (const std::exception& error) {
    return error.what();
  }
}

const std::string unknown = field(200, "kept by everybody"), training = field(20, field(1, field(2, "initialization"))), notes = field(14, field(1, "k") + field(2, "v"));

support::onnx_parts small() {
  return {.tensors = {onnx_tensor({.name = "a", .dims = {2}, .data = "aaaabbbb", .more = field(12, "documented") + unknown}),
                      onnx_tensor({.name = "b", .dims = {2}, .raw = false, .more = field(4, "ccccdddd")}), onnx_tensor({.name = "c", .dims = {1}, .data = "eeee"})},
          .nodes = {onnx_node({.operation = "Add", .name = "n1", .inputs = {"x", "a"}, .outputs = {"p"}}) + unknown,
                    onnx_node({.operation = "Add", .name = "n2", .inputs = {"p", "a"}, .outputs = {"y"}, .attributes = {support::onnx_integer("k", 7)}})},
          .inputs = {onnx_value("x")},
          .outputs = {onnx_value("y")},
          .graph_more = unknown,
          .more = training + notes + unknown};
}

}  // namespace

TEST_CASE("elements of the same shape change in their place") {
  const std::string before = support::onnx_bytes(small());
  const ts::onnx_model model = read(before);
  ts::onnx_update update;
  update.tensors.push_back({0, tensor("11112222", {2})});
  std::string wanted = before;
  wanted.replace(wanted.find("aaaabbbb"), 8, "11112222");
  CHECK(written(model, update).at("m.onnx") == wanted);
  CHECK(written(model, {}).at("m.onnx") == before);
}

TEST_CASE("ONX-22: shapes, typed lists, new tensors and nodes; what nobody knows keeps its bytes") {
  const std::string before = support::onnx_bytes(small());
  const ts::onnx_model model = read(before);
  ts::onnx_update update;
  update.tensors.push_back({0, tensor("111122223333", {3, 1})});
  update.tensors.push_back({1, tensor("44445555", {2})});
  update.additions.push_back({"d", tensor("77778888", {2}), {1, 2}, 0});
  update.inputs.push_back({1, 1, "d"});
  const ts::onnx_new_node::scalar one{7, -5};
  update.nodes.push_back({1, ts::onnx_node_bytes({.operation = "Constant", .name = "new", .inputs = {}, .outputs = {"k"}, .integers = {}, .constant = &one})});
  update.nodes.push_back({1, ts::onnx_node_bytes({.operation = "Cast", .name = "cast", .inputs = {"k"}, .outputs = {"k2"}, .integers = {{"to", 6}}})});
  const std::string after = written(model, update).at("m.onnx");
  for (const std::string& kept : {unknown, training, notes}) CHECK(after.find(kept) != after.npos);
  const onnx::ModelProto found = parsed(after);
  onnx::ModelProto wanted = parsed(before);
  onnx::GraphProto& g = *wanted.mutable_graph();
  onnx::TensorProto& a = *g.mutable_initializer(0);
  a.clear_dims(), a.add_dims(3), a.add_dims(1), a.set_raw_data("111122223333");
  g.mutable_initializer(1)->clear_float_data(), g.mutable_initializer(1)->set_raw_data("44445555");
  onnx::TensorProto& d = *g.add_initializer();
  d.set_name("d"), d.set_data_type(1), d.add_dims(1), d.add_dims(2), d.set_raw_data("77778888");
  g.mutable_node(1)->set_input(1, "d");
  REQUIRE(found.graph().node_size() == 4);
  CHECK(found.graph().node(1).op_type() == "Constant");
  CHECK(found.graph().node(1).attribute(0).t().raw_data() == std::string("\xFB\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8));
  CHECK(found.graph().node(2).attribute(0).i() == 6);
  onnx::ModelProto rest = found;
  rest.mutable_graph()->mutable_node()->DeleteSubrange(1, 2);
  CHECK(rest.SerializeAsString() == wanted.SerializeAsString());
  const ts::onnx_model again = read(after);
  CHECK(again.initializers.size() == 4);
}

TEST_CASE("external files keep their layout, move by pages behind what grows, and get a new file where they cannot") {
  const auto external = [](const std::string& name, int offset, const std::string& file = "data") {
    return onnx_tensor({.name = name, .dims = {2}, .external = {{"location", file}, {"offset", std::to_string(offset)}, {"checksum", "abc"}}});
  };
  const std::string bytes = support::onnx_bytes({.tensors = {external("a", 0), external("b", 8), external("c", 24), external("d", 24), external("e", 4, "w.ckpt")}});
  const texts beside{{"data", "aaaaAAAAbbbbBBBB--------ccccCCCC~~~~"}, {"w.ckpt", "PK--eeeeEEEE"}};
  const ts::onnx_model model = read(bytes, beside);
  CHECK(written(model, {}) == texts{{"m.onnx", bytes}, {"data", beside.at("data")}, {"w.ckpt", beside.at("w.ckpt")}});

  ts::onnx_update update;
  update.tensors.push_back({1, tensor("11112222", {2})});
  CHECK(written(model, update) == texts{{"m.onnx", bytes}, {"data", "aaaaAAAA11112222--------ccccCCCC~~~~"}, {"w.ckpt", beside.at("w.ckpt")}});

  update.tensors[0].tensor = tensor("111122223333", {3});
  texts files = written(model, update);
  CHECK(files.at("data") == "aaaaAAAA111122223333" + std::string(4092, '\0') + "--------ccccCCCC~~~~");
  ts::onnx_model again = read(files.at("m.onnx"), files);
  CHECK(again.initializers[0].offset == 0);
  CHECK(again.initializers[1].shape == ts::shape_type{3});
  CHECK(again.initializers[2].offset == 24 + 4096);
  CHECK(again.initializers[3].offset == 24 + 4096);

  // c and d share a range, e lies in a zip archive, which has checksums
  update.tensors = {{2, tensor("33334444", {2})}, {4, tensor("55556666", {2})}};
  files = written(model, update);
  CHECK(files.at("data") == beside.at("data"));
  CHECK(files.at("w.ckpt") == beside.at("w.ckpt"));
  CHECK(files.at("m.onnx_data") == "33334444" + std::string(4088, '\0') + "55556666");
  again = read(files.at("m.onnx"), files);
  CHECK(again.external_files.size() == 2);  // nothing lies in the archive any more
  CHECK(again.initializers[3].offset == 24);
  const onnx::TensorProto moved = parsed(files.at("m.onnx")).graph().initializer(2);
  REQUIRE(moved.external_data_size() == 3);  // its checksum is gone, those of others are kept
  CHECK(parsed(files.at("m.onnx")).graph().initializer(3).external_data_size() == 3);
}

TEST_CASE("what was empty gets a place of its own, wherever its offset lies") {
  const std::string bytes = support::onnx_bytes({.tensors = {onnx_tensor({.name = "a", .dims = {2}, .external = {{"location", "data"}}}),
                                                             onnx_tensor({.name = "none", .dims = {0}, .external = {{"location", "data"}, {"offset", "4"}}}),
                                                             onnx_tensor({.name = "still", .dims = {0, 2}, .external = {{"location", "data"}, {"offset", "4"}}})}});
  const texts beside{{"data", "aaaaAAAA"}};
  const ts::onnx_model model = read(bytes, beside);
  ts::onnx_update update;
  update.tensors = {{0, tensor("11112222", {2})}, {1, tensor("3333", {1})}, {2, tensor("", {0, 3})}};
  const texts files = written(model, update);
  CHECK(files.at("data") == "11112222");
  CHECK(files.at("m.onnx_data") == "3333");
  const ts::onnx_model again = read(files.at("m.onnx"), files);
  CHECK(again.initializers[1].shape == ts::shape_type{1});
  CHECK(again.initializers[2].shape == ts::shape_type{0, 3});
}

TEST_CASE("a file that nodes refer to keeps its layout whatever grows") {
  const std::string in_node = field(1, "value") +
      field(5, onnx_tensor({.name = "v", .dims = {2}, .external = {{"location", "data"}, {"offset", "8"}}})) + field(20, 4);
  const std::string bytes = support::onnx_bytes({.tensors = {onnx_tensor({.name = "a", .dims = {2}, .external = {{"location", "data"}}})},
                                                 .nodes = {onnx_node({.operation = "Constant", .name = "c", .outputs = {"k"}, .attributes = {in_node}})}});
  const texts beside{{"data", "aaaaAAAAvvvvVVVV"}};
  const ts::onnx_model model = read(bytes, beside);
  REQUIRE(model.external_uses.size() == 1);
  ts::onnx_update update;
  update.tensors.push_back({0, tensor("111122223333", {3})});
  const texts files = written(model, update);
  CHECK(files.at("data") == beside.at("data"));
  CHECK(files.at("m.onnx_data") == "111122223333");
  update.tensors[0].tensor = tensor("11112222", {2});
  CHECK(written(model, update).at("data") == "11112222vvvvVVVV");
}

namespace {

/// A table of rows, read through nodes that pass it on, and everything declared: as an exporter writes that keeps initializers as inputs.
support::onnx_parts lookup() {
  const auto values = [](const std::string& v) { return field(13, v); };
  return {.tensors = {onnx_tensor({.name = "table", .dims = {2, 1}, .data = "aaaabbbb"}), onnx_tensor({.name = "other", .dims = {1}, .data = "cccc"}),
                      onnx_tensor({.name = "row", .type = 7, .dims = {1}, .data = std::string(8, '\0')})},
          .nodes = {onnx_node({.operation = "Identity", .name = "n1", .inputs = {"table"}, .outputs = {"same"}}),
                    onnx_node({.operation = "Cast", .name = "n2", .inputs = {"same"}, .outputs = {"cast"}, .attributes = {support::onnx_integer("to", 1)}}),
                    onnx_node({.operation = "Transpose", .name = "n3", .inputs = {"cast"}, .outputs = {"turned"}}),
                    onnx_node({.operation = "Gather", .name = "n4", .inputs = {"turned", "row"}, .outputs = {"found"}, .attributes = {support::onnx_integer("axis", 1)}}),
                    onnx_node({.operation = "Identity", .name = "n5", .inputs = {"other"}, .outputs = {"more"}}),
                    onnx_node({.operation = "Add", .name = "n6", .inputs = {"found", "more"}, .outputs = {"y"}})},
          .inputs = {declared("table", {2, 1}, field(6, "WEIGHTS"), field(3, "all rows") + unknown), declared("other", {1})},
          .outputs = {declared("y", {1, 1})},
          .graph_more = values(declared("found", {1, 1})) + values(declared("same", {2, 1})) + values(declared("more", {1}, {}, unknown)) +
                        values(declared("cast", {2, 1})) + values(declared("turned", {1, 2})) + values(declared("table", {2, 1}))};
}

}  // namespace

TEST_CASE("a table that gets more rows has them wherever the graph declares it") {
  const std::string before = support::onnx_bytes(lookup());
  REQUIRE(checked(before) == "right");
  const ts::onnx_model model = read(before);
  ts::onnx_update update;
  update.tensors.push_back({0, tensor("111122223333", {3, 1})});
  const std::string after = written(model, update).at("m.onnx");
  CHECK(checked(after) == "right");

  support::onnx_parts wanted = lookup();
  wanted.tensors[0] = onnx_tensor({.name = "table", .dims = {3, 1}, .data = "111122223333"});
  wanted.inputs[0] = declared("table", {3, 1}, field(6, "WEIGHTS"), field(3, "all rows") + unknown);
  wanted.graph_more = field(13, declared("found", {1, 1})) + field(13, declared("more", {1}, {}, unknown));
  CHECK(parsed(after).SerializeAsString() == parsed(support::onnx_bytes(wanted)).SerializeAsString());
  CHECK(after.find(field(13, declared("more", {1}, {}, unknown))) != after.npos);

  // The checks above see such contradictions: with the old declarations the same model is refused.
  support::onnx_parts stale = wanted;
  stale.inputs[0] = lookup().inputs[0];
  CHECK(checked(support::onnx_bytes(stale)) != "right");
  stale = wanted;
  stale.graph_more = lookup().graph_more;
  CHECK(checked(support::onnx_bytes(stale)) != "right");
}

TEST_CASE("declarations keep their bytes where no shape changes") {
  const std::string before = support::onnx_bytes(lookup());
  const ts::onnx_model model = read(before);
  const auto with_rows = [&](std::string wanted) { return wanted.replace(wanted.find("aaaabbbb"), 8, "11112222"); };
  ts::onnx_update update;
  update.tensors.push_back({0, tensor("11112222", {2, 1})});
  CHECK(written(model, update).at("m.onnx") == with_rows(before));
  update.tensors[0] = {0, tensor("11112222", {1, 2}), true};  // its elements, under the shape that it has
  CHECK(written(model, update).at("m.onnx") == with_rows(before));
}

TEST_CASE("a node that reads a larger table from now on has no old shape declared for what it makes of it") {
  support::onnx_parts parts = lookup();
  const std::string before = support::onnx_bytes(parts);
  const ts::onnx_model model = read(before);
  ts::onnx_update update;
  update.additions.push_back({"larger", tensor("111122223333", {3, 1}), {3, 1}, 0});
  update.inputs.push_back({0, 0, "larger"});
  const std::string after = written(model, update).at("m.onnx");
  CHECK(checked(after) == "right");
  const onnx::GraphProto graph = parsed(after).graph();
  REQUIRE(graph.value_info_size() == 3);
  CHECK(graph.value_info(0).name() == "found");
  CHECK(graph.value_info(1).name() == "more");
  CHECK(graph.value_info(2).name() == "table");  // still there, with its two rows
  CHECK(graph.input(0).type().tensor_type().shape().dim(0).dim_value() == 2);
}

TEST_CASE("declarations in a graph that a writer split are found; what is none of a tensor is replaced") {
  const std::string table = field(1, "table");
  const std::string tail = field(11, table) + field(13, field(2, field(1, field(1, 1))) + table);  // without a type; the name last
  const std::string before = support::onnx_bytes({.tensors = {onnx_tensor({.name = "table", .dims = {2}, .data = "aaaabbbb"})}}) + field(7, tail);
  const ts::onnx_model model = read(before);
  REQUIRE(model.graph_bodies.size() == 2);
  ts::onnx_update update;
  update.tensors.push_back({0, tensor("1111", {})});  // a scalar has a shape, without dimensions
  const onnx::GraphProto graph = parsed(written(model, update).at("m.onnx")).graph();
  CHECK(graph.value_info_size() == 0);
  REQUIRE(graph.input_size() == 1);
  CHECK(graph.input(0).name() == "table");
  CHECK(graph.input(0).type().tensor_type().elem_type() == 1);
  CHECK(graph.input(0).type().tensor_type().has_shape());
  CHECK(graph.input(0).type().tensor_type().shape().dim_size() == 0);
}

TEST_CASE("an initializer that is added to a model before IR version 4 is an input of its graph too") {
  for (const std::uint64_t ir : {3U, 4U}) {
    INFO(ir);
    support::onnx_parts parts = lookup();
    parts.ir = ir, parts.opset = 8;
    parts.inputs.push_back(field(1, "row") + field(2, field(1, field(1, 7) + field(2, field(1, field(1, 1))))));
    const std::string before = support::onnx_bytes(parts);
    ts::onnx_update update;
    update.additions.push_back({"added", tensor("7777", {1}), {1}, 1});
    update.inputs.push_back({4, 0, "added"});
    const std::string after = written(read(before), update).at("m.onnx");
    const onnx::GraphProto graph = parsed(after).graph();
    CHECK(graph.initializer(3).name() == "added");
    REQUIRE(graph.input_size() == (ir < 4 ? 4 : 3));
    if (ir < 4) CHECK(graph.input(3).SerializeAsString() == declared("added", {1}));
    onnx::checker::check_model(parsed(after));  // throws if it is wrong
    (void)read(after);
  }
}

TEST_CASE("a location that begins with ./ is the file that it means, and is written as such") {
  const std::string bytes = support::onnx_bytes({.tensors = {onnx_tensor({.name = "a", .dims = {2}, .external = {{"location", "./data"}}}),
                                                             onnx_tensor({.name = "b", .dims = {2}, .external = {{"location", "data"}, {"offset", "8"}}}),
                                                             onnx_tensor({.name = "c", .dims = {1}, .external = {{"location", "././m.onnx_data"}}})}});
  const texts beside{{"data", "aaaaAAAAbbbbBBBB"}, {"m.onnx_data", "cccc"}};
  const ts::onnx_model model = read(bytes, beside);
  REQUIRE(model.external_files.size() == 2);
  CHECK(model.external_files[0].location == "data");
  CHECK(model.external_files[1].location == "m.onnx_data");
  ts::onnx_update update;
  update.tensors.push_back({0, tensor("11112222", {2})});
  CHECK(written(model, update) == texts{{"m.onnx", bytes}, {"data", "11112222bbbbBBBB"}, {"m.onnx_data", "cccc"}});

  update.tensors[0].tensor = tensor("111122223333", {3});
  update.additions.push_back({"d", tensor("dddd", {1}), {1}, 2});  // its new file takes no name that is there
  const texts files = written(model, update);
  CHECK(files.at("m.onnx_data") == "cccc");
  CHECK(files.at("m.onnx_data-2") == "dddd");
  const onnx::GraphProto graph = parsed(files.at("m.onnx")).graph();
  CHECK(graph.initializer(0).external_data(0).value() == "data");
  CHECK(graph.initializer(2).external_data(0).value() == "././m.onnx_data");
  CHECK(read(files.at("m.onnx"), files).initializers[1].offset == 8 + 4096);
}
