// SPDX-License-Identifier: MIT
//
// Models with tensors and nodes changed: what ONNX's own classes then find, and that everything else keeps its bytes.
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
