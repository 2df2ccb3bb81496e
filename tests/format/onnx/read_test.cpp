// SPDX-License-Identifier: MIT
//
// What read_onnx finds in models, compared with what ONNX's own classes find; tensors of every element type.
#include <chrono>
#include <filesystem>
#include <fstream>

#include "format/onnx/onnx_bytes.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/onnx/model_proto.hpp"
#include "tensorsmith/format/onnx/nodes.hpp"
#include "tensorsmith/format/onnx/read.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;
using support::field;
using support::onnx_tensor;

namespace {

std::string text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
std::string elements(const ts::tensor_ref& tensor) {
  const auto bytes = ts::materialize(tensor, {});
  REQUIRE(bytes);
  return {reinterpret_cast<const char*>(bytes->data()), bytes->size()};
}
ts::result<ts::onnx_model> read(const std::string& bytes) {
  return ts::read_onnx(support::file_of(bytes, "m.onnx"), [](const std::string&) -> ts::result<std::shared_ptr<const ts::byte_source>> { return ts::failure{}; });
}

}  // namespace

TEST_CASE("exports of Optimum and diffusers' script are read as ONNX's own classes read them") {
  for (const char* const name : {"optimum/unet", "optimum/text_encoder", "script/unet", "script/text_encoder", "optimum_xl/text_encoder_2"}) {
    INFO(name);
    const std::string path = support::data("onnx/" + std::string(name) + "/model.onnx").string();
    onnx::ModelProto wanted;
    REQUIRE(wanted.ParseFromString(text_of(path)));
    const auto model = ts::read_onnx(path);
    REQUIRE(model);
    CHECK(model->ir_version == wanted.ir_version());
    CHECK(model->producer == wanted.producer_name());
    CHECK(model->opset == wanted.opset_import(0).version());
    const onnx::GraphProto& graph = wanted.graph();
    REQUIRE(model->initializers.size() == static_cast<std::size_t>(graph.initializer_size()));
    for (int i = 0; i < graph.initializer_size(); ++i) {
      const onnx::TensorProto& t = graph.initializer(i);
      const ts::onnx_initializer& found = model->initializers[static_cast<std::size_t>(i)];
      CHECK(found.name == t.name());
      CHECK(found.element_type == t.data_type());
      CHECK(std::equal(found.shape.begin(), found.shape.end(), t.dims().begin(), t.dims().end(), [](std::size_t a, std::int64_t b) { return a == static_cast<std::size_t>(b); }));
      if (t.data_location() != onnx::TensorProto::EXTERNAL) CHECK(elements(found.tensor) == t.raw_data());
      else CHECK(found.payload == ts::onnx_payload::external);
    }
    REQUIRE(model->nodes.size() == static_cast<std::size_t>(graph.node_size()));
    ts::detail::wire_reader wire(model->file);
    for (int n = 0; n < graph.node_size(); ++n) {
      const onnx::NodeProto& node = graph.node(n);
      const ts::onnx_node& found = model->nodes[static_cast<std::size_t>(n)];
      CHECK(model->name_of(found) == node.name());
      CHECK(model->operator_of(found) == node.op_type());
      REQUIRE(found.inputs == static_cast<std::size_t>(node.input_size()));
      REQUIRE(found.outputs == static_cast<std::size_t>(node.output_size()));
      for (int i = 0; i < node.input_size(); ++i) CHECK(model->input_of(found, static_cast<std::size_t>(i)) == node.input(i));
      for (int i = 0; i < node.output_size(); ++i) CHECK(model->output_of(found, static_cast<std::size_t>(i)) == node.output(i));
      const auto attributes = ts::onnx_attributes(found, wire);
      REQUIRE(attributes);
      REQUIRE(attributes->size() == static_cast<std::size_t>(node.attribute_size()));
      for (int a = 0; a < node.attribute_size(); ++a) {
        CHECK((*attributes)[static_cast<std::size_t>(a)].name == node.attribute(a).name());
        CHECK((*attributes)[static_cast<std::size_t>(a)].integer == node.attribute(a).i());
        CHECK((*attributes)[static_cast<std::size_t>(a)].number == node.attribute(a).f());
      }
    }
    REQUIRE(model->inputs.size() == static_cast<std::size_t>(graph.input_size()));
    for (int i = 0; i < graph.input_size(); ++i) {
      CHECK(model->inputs[static_cast<std::size_t>(i)].name == graph.input(i).name());
      CHECK(model->inputs[static_cast<std::size_t>(i)].element_type == graph.input(i).type().tensor_type().elem_type());
    }
  }
}

TEST_CASE("typed lists give the elements that raw_data would") {
  const auto tensor = [](std::int64_t type, std::int64_t count, std::uint32_t list, const std::string& numbers) {
    const auto model = read(support::onnx_bytes({.tensors = {onnx_tensor({.type = type, .dims = {count}, .raw = false, .more = field(list, numbers)})}}));
    INFO((model ? std::string() : model.error().message()));
    REQUIRE(model);
    return elements(model->initializers[0].tensor);
  };
  const auto v = [](std::int64_t value) { return support::varint(static_cast<std::uint64_t>(value)); };
  CHECK(tensor(1, 2, 4, "12345678") == "12345678");
  CHECK(tensor(11, 1, 10, "12345678") == "12345678");
  CHECK(tensor(14, 1, 4, "12345678") == "12345678");
  CHECK(tensor(6, 2, 5, v(-2) + v(3)) == std::string("\xFE\xFF\xFF\xFF\3\0\0\0", 8));
  CHECK(tensor(7, 1, 7, v(-2)) == std::string("\xFE\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8));
  CHECK(tensor(10, 2, 5, v(0x3C00) + v(0xBC00)) == std::string("\0\x3C\0\xBC", 4));
  CHECK(tensor(16, 1, 5, v(0x3F80)) == "\x80\x3F");
  CHECK(tensor(3, 2, 5, v(-1) + v(5)) == "\xFF\5");
  CHECK(tensor(9, 2, 5, v(1) + v(0)) == std::string("\1\0", 2));
  CHECK(tensor(17, 1, 5, v(0x7E)) == "\x7E");
  CHECK(tensor(22, 3, 5, v(0x21) + v(0x03)) == "\x21\x03");
  CHECK(tensor(12, 1, 11, v(0xFFFFFFFF)) == "\xFF\xFF\xFF\xFF");
  CHECK(tensor(13, 1, 11, v(-1)) == "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF");
  const auto pieces = read(support::onnx_bytes(
      {.tensors = {onnx_tensor({.dims = {3}, .raw = false, .more = field(4, "1234") + std::string("\x25", 1) + "abcd" + field(4, "5678")})}}));
  REQUIRE(pieces);
  CHECK(elements(pieces->initializers[0].tensor) == "1234abcd5678");
}

TEST_CASE("a model of nearly 2 GB is opened in milliseconds, without its payload in memory") {
  const support::temp_folder folder;
  const std::string path = folder / "large.onnx";
  constexpr std::uint64_t payload = 2'000'000'000;
  const std::string head = field(2, 1) + field(8, "w") + field(1, payload / 4);
  std::string prefix = std::string("\x4A", 1) + support::varint(payload);
  const std::string tensor_head = std::string("\x2A", 1) + support::varint(head.size() + prefix.size() + payload);
  const std::string tail = field(8, field(1, "") + field(2, 17)) + field(1, 8);
  const std::string start = std::string("\x3A", 1) + support::varint(tensor_head.size() + head.size() + prefix.size() + payload) + tensor_head + head + prefix;
  std::ofstream(path, std::ios::binary) << start;
  std::filesystem::resize_file(path, start.size() + payload);  // a hole
  std::ofstream(path, std::ios::binary | std::ios::app) << tail;
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const auto model = ts::read_onnx(path);
    best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
    INFO((model ? std::string() : model.error().message()));
    REQUIRE(model);
    REQUIRE(model->initializers.size() == 1);
    CHECK(model->initializers[0].tensor.info().bytes() == payload);
    CHECK(model->initializers[0].tensor.source->stored());
  }
  CHECK(best < 50);
}
