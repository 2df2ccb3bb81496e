// SPDX-License-Identifier: MIT
//
// ONNX models that must be refused, and odd ones that must not: the wire format, the tensors, the graph, external files.
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "format/onnx/onnx_bytes.hpp"
#include "support/bounded_memory.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/onnx/read.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace fs = std::filesystem;
namespace ts = tensorsmith;
using support::bounded_memory;
using support::field;
using support::file_of;
using support::onnx_bytes;
using support::onnx_graph;
using support::onnx_integer;
using support::onnx_node;
using support::onnx_tensor;
using support::onnx_value;
using support::varint;

namespace {

ts::result<ts::onnx_model> read(std::string_view bytes, const ts::limits& bounds = {}) {
  const ts::onnx_file_opener none = [](const std::string& location) -> ts::result<std::shared_ptr<const ts::byte_source>> {
    return ts::failure{.code = ts::errc::io, .what = "no file " + location};
  };
  return ts::read_onnx(file_of(bytes, "m.onnx"), none, bounds);
}
std::string verdict(std::string_view bytes, const ts::limits& bounds = {}) {
  const auto model = read(bytes, bounds);
  return model ? "accepted" : model.error().message();
}
/// The verdict on a model with one tensor.
std::string tensor_verdict(const support::onnx_tensor_parts& tensor) { return verdict(onnx_bytes({.tensors = {onnx_tensor(tensor)}})); }

/// A model that is right: x → Identity → y, and a weight.
support::onnx_parts small() {
  return {.tensors = {onnx_tensor({.name = "w", .dims = {1}, .data = "1234"})},
          .nodes = {onnx_node({.name = "n", .inputs = {"x"}, .outputs = {"y"}})},
          .inputs = {onnx_value("x")},
          .outputs = {onnx_value("y")}};
}

/// A folder with a model that has one external tensor of four floats, and its data file of 64 bytes.
struct external_model {
  support::temp_folder folder;
  std::string verdict_on(std::vector<std::pair<std::string, std::string>> entries, std::string more = {}) const {
    const std::string path = folder / "m.onnx";
    std::ofstream(path, std::ios::binary) << onnx_bytes({.tensors = {onnx_tensor({.dims = {4}, .external = std::move(entries), .more = std::move(more)})}});
    const auto model = ts::read_onnx(path);
    std::string out = model ? "accepted" : model.error().message();
    for (std::size_t at; (at = out.find(folder.path().string())) != out.npos;) out.replace(at, folder.path().string().size(), "DIR");
    return out;
  }
  external_model() { std::ofstream(folder / "data", std::ios::binary) << std::string(64, 'd'); }
};

const std::string sheet = "FMT m.onnx: ";

}  // namespace

TEST_CASE("ONX-01: an empty file, a model without a graph") {
  CHECK(verdict("") == "FMT m.onnx: the model is empty (expected a graph and an operator set, found 0 bytes)");
  CHECK(verdict(field(1, 8) + field(8, field(2, 17))) == "FMT m.onnx: the model has no graph (expected a graph and an operator set)");
  CHECK(verdict(onnx_bytes(small())) == "accepted");
}

TEST_CASE("ONX-02: varints, field numbers and encodings that cannot be") {
  CHECK(verdict(std::string(11, '\xFF') + "\1") == "FMT m.onnx: byte offset 0: a number is longer than 64 bits");
  CHECK(verdict("\x08" + std::string(9, '\xFF') + "\x02") == "FMT m.onnx: byte offset 1: a number is longer than 64 bits");
  CHECK(verdict("\x08" + std::string(3, '\xFF')) == "FMT m.onnx: byte offset 1: a number ends past the end of its message");
  CHECK(verdict(std::string("\0\1", 2)) == "FMT m.onnx: byte offset 0: a field has a number that cannot be (expected 1 to 536870911, found 0)");
  CHECK(verdict(varint(std::uint64_t{1} << 32) + "\1") ==
        "FMT m.onnx: byte offset 0: a field has a number that cannot be (expected 1 to 536870911, found 536870912)");
  CHECK(verdict("\x0E\1") == "FMT m.onnx: byte offset 0: a field has an encoding that does not exist (expected 0 to 5, found 6)");
  CHECK(verdict("\x0F\1") == "FMT m.onnx: byte offset 0: a field has an encoding that does not exist (expected 0 to 5, found 7)");
  CHECK(verdict("\x0C") == "FMT m.onnx: byte offset 0: a group ends that did not begin");
  CHECK(verdict("\x0B\x14") == "FMT m.onnx: byte offset 1: a group ends that did not begin");
  CHECK(verdict("\x0D\1\2") == "FMT m.onnx: byte offset 0: a number ends past the end of its message");
}

TEST_CASE("ONX-03: lengths past the end, up to 2^64 - 1, in every message") {
  bounded_memory(0, [] {
    for (const std::uint64_t length : {std::uint64_t{1000}, std::uint64_t{1} << 31, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
      const std::string bad = varint(length) + "abc", shown = std::to_string(length);
      const auto ends = [&](const std::string& text) {
        CHECK(text.substr(0, 11) == sheet.substr(0, 11));
        CHECK(text.find("a field ends past the end of its message (expected at most 3 bytes, found " + shown + ")") != text.npos);
      };
      for (const char tag : {'\x12', '\x3A', '\x42', '\x72'}) ends(verdict(std::string(1, tag) + bad));           // the model
      for (const char tag : {'\x0A', '\x2A', '\x5A', '\x62'}) ends(verdict(field(7, std::string(1, tag) + bad)));  // the graph
      ends(verdict(field(7, field(1, "\x0A" + bad))));                                                           // a node
      ends(verdict(field(7, field(1, field(5, "\x32" + bad)))));                                                 // an attribute
      ends(verdict(field(7, field(5, "\x4A" + bad))));                                                           // a tensor
      ends(verdict(field(7, field(5, field(13, "\x0A" + bad)))));                                                // an entry of external_data
    }
  });
}

TEST_CASE("ONX-04: graphs inside graphs and groups inside groups, 100,000 deep") {
  std::string graph;
  for (int i = 0; i < 40; ++i) graph = field(1, onnx_node({.operation = "If", .attributes = {field(1, "g") + field(6, graph) + field(20, 5)}}));
  CHECK(verdict(onnx_bytes({.graph_more = graph})) ==
        "LIM m.onnx: graphs are nested too deeply (expected at most 32); raise limits::onnx_depth if you trust it");
  // 100,000 levels, each a length that goes to the end of the file
  std::string head;
  constexpr std::size_t levels = 100'000, each = 12;
  for (std::size_t i = 0; i < levels; ++i) {
    const std::uint64_t rest = (levels - i) * each;
    const auto padded = [](std::uint64_t value) {  // a varint of three bytes
      return std::string{static_cast<char>(value | 0x80), static_cast<char>((value >> 7) | 0x80), static_cast<char>((value >> 14) & 0x7F)};
    };
    head += "\x0A" + padded(rest - 4) + "\x2A" + padded(rest - 8) + "\x32" + padded(rest - 12);
  }
  bounded_memory(head.size(), [&] {
    CHECK(verdict(field(1, 8) + field(7, head)) ==
          "LIM m.onnx: graphs are nested too deeply (expected at most 32); raise limits::onnx_depth if you trust it");
  });
  bounded_memory(levels, [&] {
    CHECK(verdict(std::string(levels, '\x7B')) ==
          "UNS m.onnx: the file is no binary ONNX model (expected a ModelProto, found JSON)");
    CHECK(verdict(std::string(levels, '\x73')) ==
          "LIM m.onnx: byte offset 32: groups are nested too deeply (expected at most 32 levels); raise limits::onnx_depth if you trust it");
  });
}

TEST_CASE("ONX-05: millions of empty nodes, values and tensors") {
  for (const std::size_t count : {3'900'000, 10'000'000}) {
    std::string nodes;
    for (std::size_t i = 0; i < count; ++i) nodes += std::string("\x0A\0", 2);
    const std::string bytes = field(1, 8) + field(7, nodes);
    bounded_memory(bytes.size(), [&] { CHECK(verdict(bytes) == "FMT m.onnx: byte offset 7: a node has no operator"); });
  }
  std::string nodes;
  for (std::size_t i = 0; i < 600'000; ++i) nodes += std::string("\x0A\x03\x22\x01" "A", 5);
  const std::string many = field(1, 8) + field(7, nodes);
  bounded_memory(many.size(), [&] {
    const auto start = std::chrono::steady_clock::now();
    CHECK(verdict(many) == "LIM m.onnx: the model has too many nodes (expected at most 250000); raise limits::onnx_nodes if you trust it");
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  });
  std::string inputs;
  for (std::size_t i = 0; i < 1'100'000; ++i) inputs += std::string("\x0A\0", 2);
  const std::string wide = field(1, 8) + field(7, field(1, inputs + field(4, "Concat")));
  bounded_memory(wide.size(), [&] {
    CHECK(verdict(wide) == "LIM m.onnx: the model has too many values (expected at most 1000000); raise limits::onnx_values if you trust it");
  });
  std::string tensors;
  for (std::size_t i = 0; i < 70'000; ++i) tensors += field(5, onnx_tensor({.name = std::to_string(i), .dims = {0}}));
  const std::string crowd = field(1, 8) + field(7, tensors);
  bounded_memory(crowd.size(), [&] {
    CHECK(verdict(crowd) ==
          "LIM m.onnx: the model has too many tensors (expected at most 65536); raise limits::onnx_initializers if you trust it");
  });
}

TEST_CASE("ONX-06: extents that are negative, huge, too many, or overflow together") {
  CHECK(tensor_verdict({.dims = {-1}}) == "FMT m.onnx: tensor 'w': the tensor has a negative extent (expected 0 or more, found -1)");
  CHECK(tensor_verdict({.dims = {0, -1}}) == "FMT m.onnx: tensor 'w': the tensor has a negative extent (expected 0 or more, found -1)");
  CHECK(tensor_verdict({.dims = {std::int64_t{1} << 62}}) ==
        "LIM m.onnx: tensor 'w': the tensor has too many elements (expected fewer than 281474976710656, found 4611686018427387904); raise "
        "limits::elements if you trust it");
  for (const std::vector<std::int64_t>& dims : {std::vector<std::int64_t>{1 << 24, 1 << 24}, {1 << 30, 1 << 30, 1 << 30}, {0, 1 << 30, 1 << 30}})
    CHECK(tensor_verdict({.dims = dims}) ==
          "LIM m.onnx: tensor 'w': the tensor has too many elements (expected fewer than 281474976710656, found more); raise limits::elements if "
          "you trust it");
  CHECK(tensor_verdict({.dims = {0}}) == "accepted");
  CHECK(tensor_verdict({.more = field(1, std::string(10'000'000, '\1'))}) ==
        "LIM m.onnx: byte offset 28: a tensor has too many dimensions (expected at most 64); raise limits::rank if you trust it");
}

TEST_CASE("ONX-07: raw_data that is not as long as the shape says") {
  CHECK(tensor_verdict({.dims = {1'000'000}, .data = "1234"}) ==
        "FMT m.onnx: tensor 'w': the tensor's raw_data has not the bytes of its shape (expected 4000000 bytes for f32 [1000000], found 4)");
  CHECK(tensor_verdict({.dims = {2}, .data = "123456789"}) ==
        "FMT m.onnx: tensor 'w': the tensor's raw_data has not the bytes of its shape (expected 8 bytes for f32 [2], found 9)");
  CHECK(tensor_verdict({.dims = {2}, .data = "1234567"}) ==
        "FMT m.onnx: tensor 'w': the tensor's raw_data has not the bytes of its shape (expected 8 bytes for f32 [2], found 7)");
  CHECK(tensor_verdict({.dims = {2}, .data = "12345678"}) == "accepted");
}

TEST_CASE("ONX-08: elements in two places, in the wrong list, of texts, of empty tensors") {
  const std::string floats = field(4, "12345678"), ints = field(5, "\1\2");
  CHECK(tensor_verdict({.dims = {2}, .data = "12345678", .more = floats}) ==
        "FMT m.onnx: tensor 'w': the tensor has its elements in more than one place (expected one of raw_data, a typed list and an external file)");
  CHECK(tensor_verdict({.dims = {2}, .raw = false, .more = ints}) ==
        "FMT m.onnx: tensor 'w': the tensor has its elements in the list of another type (expected float_data, found int32_data)");
  CHECK(tensor_verdict({.dims = {2}, .raw = false, .more = floats + field(7, "\1\2")}) ==
        "FMT m.onnx: byte offset 32: a tensor has its elements in lists of two types");
  CHECK(tensor_verdict({.type = 8, .dims = {2}, .data = "ab"}) == "FMT m.onnx: tensor 'w': a tensor of texts has raw_data (expected string_data)");
  CHECK(tensor_verdict({.type = 8, .dims = {2}, .raw = false, .more = field(6, "a") + field(6, "")}) == "accepted");
  CHECK(tensor_verdict({.dims = {0}, .data = "1234"}) ==
        "FMT m.onnx: tensor 'w': the tensor's raw_data has not the bytes of its shape (expected 0 bytes for f32 [0], found 4)");
  CHECK(tensor_verdict({.dims = {0}, .raw = false, .more = floats}) ==
        "FMT m.onnx: tensor 'w': the tensor has not the elements of its shape (expected 0 for f32 [0], found 2)");
  CHECK(tensor_verdict({.dims = {2}, .raw = false}) == "FMT m.onnx: tensor 'w': the tensor has no elements (expected 2 for f32 [2], found 0)");
}

TEST_CASE("ONX-09: lists with one element too many or too few, with numbers that the type cannot hold") {
  const auto listed = [](std::int64_t type, std::uint32_t list, const std::string& numbers, std::int64_t count = 2) {
    return tensor_verdict({.type = type, .dims = {count}, .raw = false, .more = field(list, numbers)});
  };
  CHECK(listed(1, 4, "12345678") == "accepted");
  CHECK(listed(1, 4, "1234") == "FMT m.onnx: tensor 'w': the tensor has not the elements of its shape (expected 2 for f32 [2], found 1)");
  CHECK(listed(1, 4, "123456789012") == "FMT m.onnx: tensor 'w': the tensor has not the elements of its shape (expected 2 for f32 [2], found 3)");
  CHECK(listed(1, 4, "1234567") == "FMT m.onnx: byte offset 22: a list of numbers ends inside a number");
  CHECK(listed(3, 5, varint(127) + varint(static_cast<std::uint64_t>(-128))) == "accepted");
  CHECK(listed(3, 5, varint(1) + varint(128)) == "FMT m.onnx: tensor 'w': the tensor has an element that its type cannot hold (expected i8, found 128)");
  CHECK(listed(10, 5, varint(65535) + varint(0)) == "accepted");
  CHECK(listed(10, 5, varint(65536) + varint(0)) ==
        "FMT m.onnx: tensor 'w': the tensor has an element that its type cannot hold (expected f16, found 65536)");
  CHECK(listed(16, 5, varint(static_cast<std::uint64_t>(-1)) + varint(0)) ==
        "FMT m.onnx: tensor 'w': the tensor has an element that its type cannot hold (expected bf16, found -1)");
  CHECK(listed(9, 5, varint(2) + varint(0)) == "FMT m.onnx: tensor 'w': the tensor has an element that its type cannot hold (expected bool, found 2)");
  CHECK(listed(21, 5, varint(256), 2) == "FMT m.onnx: tensor 'w': the tensor has an element that its type cannot hold (expected u4, found 256)");
  CHECK(listed(12, 11, varint(std::uint64_t{1} << 32) + varint(0)) ==
        "FMT m.onnx: tensor 'w': the tensor has an element that its type cannot hold (expected u32, found 4294967296)");
}

TEST_CASE("ONX-10: element types that are missing, unknown, or newer than most libraries") {
  CHECK(tensor_verdict({.type = 0, .dims = {1}, .data = "1"}) == "FMT m.onnx: tensor 'w': the tensor has no element type");
  CHECK(tensor_verdict({.type = 99, .dims = {1}, .data = "1"}) ==
        "UNS m.onnx: tensor 'w': the element type of the tensor is not known (expected 1 to 26, found 99)");
  for (const std::int64_t type : {17, 18, 19, 20, 24}) CHECK(tensor_verdict({.type = type, .dims = {3}, .data = "123"}) == "accepted");
  for (const std::int64_t type : {21, 22, 23}) CHECK(tensor_verdict({.type = type, .dims = {3}, .data = "12"}) == "accepted");
  for (const std::int64_t type : {25, 26}) CHECK(tensor_verdict({.type = type, .dims = {5}, .data = "12"}) == "accepted");
}

TEST_CASE("ONX-11: an odd number of four-bit elements; the bits of the padding do not matter") {
  CHECK(tensor_verdict({.type = 22, .dims = {3}, .data = "\x21\xF3"}) == "accepted");
  CHECK(tensor_verdict({.type = 22, .dims = {3}, .data = "\x21"}) ==
        "FMT m.onnx: tensor 'w': the tensor's raw_data has not the bytes of its shape (expected 2 bytes for i4 [3], found 1)");
  CHECK(tensor_verdict({.type = 22, .dims = {3}, .raw = false, .more = field(5, varint(0x21) + varint(0xF3))}) == "accepted");
}

TEST_CASE("ONX-12: versions that are missing, zero, negative, unknown, given twice") {
  auto parts = small();
  parts.ir = 0;
  CHECK(verdict(onnx_bytes(parts)) == "FMT m.onnx: ir_version: the model has no version of the format (expected 1 or more, found 0)");
  parts.ir = 999;
  CHECK(verdict(onnx_bytes(parts)) ==
        "UNS m.onnx: ir_version: the model has a version of the format that is not known (expected at most 13, found 999)");
  parts.ir = 8;
  for (const auto& [version, shown] : {std::pair<std::uint64_t, std::string>{0, "0"}, {~std::uint64_t{0}, "-1"}}) {
    parts.opset = version;
    CHECK(verdict(onnx_bytes(parts)) == "FMT m.onnx: opset_import '': an operator set has no version (expected 1 or more, found " + shown + ")");
  }
  parts.opset = 1'000'000'000;
  CHECK(verdict(onnx_bytes(parts)) ==
        "UNS m.onnx: opset_import '': the model uses an operator set that is not known (expected at most 26, found 1000000000)");
  parts.opset = 17;
  parts.more = field(8, field(1, "ai.onnx") + field(2, 17));
  CHECK(verdict(onnx_bytes(parts)) == "FMT m.onnx: the operator set '' is imported twice");
  CHECK(verdict(field(1, 8) + field(7, onnx_graph(small()))) == "FMT m.onnx: opset_import: the model imports no operator set of ONNX");
}

TEST_CASE("ONX-13: cycles, values used before they are defined, outputs with one name") {
  const auto nodes = [](std::vector<std::string> all) { return verdict(onnx_bytes({.nodes = std::move(all), .inputs = {onnx_value("x")}})); };
  CHECK(nodes({onnx_node({.name = "a", .inputs = {"z"}, .outputs = {"y"}}), onnx_node({.name = "b", .inputs = {"y"}, .outputs = {"z"}})}) ==
        "FMT m.onnx: node 'a': the value 'z' is used before it is defined (found defined by node 'b'); sort the graph's nodes, each behind those whose outputs it "
        "reads (onnxruntime.transformers.onnx_model's topological_sort does)");
  CHECK(nodes({onnx_node({.name = "a", .inputs = {"y"}, .outputs = {"y"}})}) ==
        "FMT m.onnx: node 'a': the value 'y' is used before it is defined (found defined by node 'a')");
  CHECK(nodes({onnx_node({.name = "a", .inputs = {"q"}, .outputs = {"y"}})}) ==
        "FMT m.onnx: node 'a': the value 'q' is used before it is defined (found no definition)");
  CHECK(nodes({onnx_node({.name = "a", .inputs = {"x"}, .outputs = {"y"}}), onnx_node({.name = "b", .inputs = {"x"}, .outputs = {"y"}})}) ==
        "FMT m.onnx: node 'b': the value 'y' is defined twice (expected one definition, found also by node 'a')");
  CHECK(nodes({onnx_node({.name = "a", .inputs = {"x"}, .outputs = {"x"}})}) ==
        "FMT m.onnx: node 'a': the value 'x' is defined twice (expected one definition, found also an input)");
  CHECK(nodes({onnx_node({.name = "a", .inputs = {"x", ""}, .outputs = {"", "y"}}), onnx_node({.name = "b", .inputs = {"x"}, .outputs = {""}})}) ==
        "accepted");
}

TEST_CASE("ONX-14: initializers with one name, with the name of a node's output, without a name") {
  const std::string w = onnx_tensor({.name = "w", .dims = {1}, .data = "1234"});
  CHECK(verdict(onnx_bytes({.tensors = {w, w}})) == "FMT m.onnx: two initializers have the name 'w'");
  CHECK(verdict(onnx_bytes({.tensors = {w}, .nodes = {onnx_node({.name = "n", .inputs = {"w"}, .outputs = {"w"}})}})) ==
        "FMT m.onnx: node 'n': the value 'w' is defined twice (expected one definition, found also an initializer)");
  CHECK(tensor_verdict({.name = "", .dims = {1}, .data = "1234"}) == "FMT m.onnx: byte offset 13: an initializer has no name");
  CHECK(verdict(onnx_bytes({.tensors = {w}, .inputs = {onnx_value("w")}})) == "accepted");  // an input with a default
  CHECK(verdict(onnx_bytes({.inputs = {onnx_value("w"), onnx_value("w")}})) == "FMT m.onnx: two inputs have the name 'w'");
}

TEST_CASE("ONX-15: attributes of two types, of another type than they say, twice, of a function") {
  const auto attributes = [](std::vector<std::string> all) {
    return verdict(onnx_bytes({.nodes = {onnx_node({.name = "n", .outputs = {"y"}, .attributes = std::move(all)})}}));
  };
  CHECK(attributes({onnx_integer("a", 1), onnx_integer("b", 1)}) == "accepted");
  CHECK(attributes({onnx_integer("a", 1), onnx_integer("a", 2)}) == "FMT m.onnx: node 'n': a node has the attribute 'a' twice");
  CHECK(attributes({field(1, "a") + field(3, 1) + field(20, 7)}) ==
        "FMT m.onnx: node 'n', attribute 'a': an attribute has a value of another type than it declares");
  CHECK(attributes({field(1, "a") + field(3, 1) + field(4, "s") + field(20, 2)}) ==
        "FMT m.onnx: node 'n', attribute 'a': an attribute has values of two types");
  CHECK(attributes({field(1, "a") + field(20, 77)}) ==
        "FMT m.onnx: node 'n', attribute 'a': an attribute has a type that does not exist (expected 1 to 14, found 77)");
  CHECK(attributes({field(3, 1) + field(20, 2)}) == "FMT m.onnx: byte offset 28: an attribute has no name");
  CHECK(attributes({field(1, "a") + field(21, "other")}) ==
        "FMT m.onnx: byte offset 33: an attribute refers to one of a function, outside of functions");
}

TEST_CASE("ONX-16: models with functions of their own, whatever those call") {
  auto parts = small();
  const std::string function = field(1, "f") + field(4, "x") + field(5, "y") + field(7, onnx_node({.operation = "f", .domain = "own"})) + field(10, "own");
  parts.more = field(25, function) + field(25, function);
  CHECK(verdict(onnx_bytes(parts)) ==
        "UNS m.onnx: the model defines operators of its own (functions) (found 2); export it with inlined functions");
}

TEST_CASE("ONX-18: sparse initializers") {
  CHECK(verdict(onnx_bytes({.graph_more = field(15, field(1, onnx_tensor({.dims = {1}, .data = "1234"})) + field(3, ~std::uint64_t{0}))})) ==
        "UNS m.onnx: byte offset 13: the model has sparse initializers; export it with dense weights");
}

TEST_CASE("ONX-19: a model file that protobuf cannot hold") {
  const support::temp_folder folder;
  const std::string path = folder / "large.onnx";
  std::ofstream(path, std::ios::binary) << onnx_bytes(small());
  for (const std::uint64_t size : {std::uint64_t{1} << 31, std::uint64_t{1} << 33}) {
    std::filesystem::resize_file(path, size);
    const auto model = ts::read_onnx(path);
    REQUIRE(!model);
    CHECK(model.error().message() == "LIM " + path + ": the model file is larger than protobuf can hold (expected at most 2147483647 bytes, found " +
                                         std::to_string(size) + "); keep its weights in an external file");
  }
  std::filesystem::resize_file(path, (std::uint64_t{1} << 31) - 1);
  const auto model = ts::read_onnx(path);
  REQUIRE(!model);
  CHECK(model.error().code == ts::errc::malformed);  // zeros behind the model, and no limit
}

TEST_CASE("ONX-20: operators of other domains are counted, and never taken for ONNX's") {
  auto parts = small();
  for (const char* name : {"a", "b", "c"})
    parts.nodes.push_back(onnx_node({.operation = name[0] == 'c' ? "Other" : "MatMul", .domain = "own.ops", .inputs = {"x"}, .outputs = {name}}));
  const auto model = read(onnx_bytes(parts));
  REQUIRE(model);
  REQUIRE(model->foreign_operators.size() == 2);
  CHECK(model->foreign_operators[0].domain == "own.ops");
  CHECK(model->foreign_operators[0].name == "MatMul");
  CHECK(model->foreign_operators[0].count == 2);
  CHECK(model->foreign_operators[1].count == 1);
  CHECK(!model->is(model->nodes[1], "MatMul"));
  CHECK(model->is(model->nodes[0], "Identity"));
}

TEST_CASE("ONX-21: documentation of any size, names that are too long") {
  auto parts = small();
  parts.graph_more = field(10, std::string(1 << 20, 'd'));
  CHECK(verdict(onnx_bytes(parts)) == "accepted");
  CHECK(tensor_verdict({.name = std::string(65537, 'n'), .dims = {1}, .data = "1234"}) ==
        "LIM m.onnx: byte offset 27: the name of a tensor is too long (expected at most 65536 bytes, found 65537); raise limits::name_bytes if you "
        "trust it");
  CHECK(tensor_verdict({.name = "\xFF\n", .dims = {-1}}) ==
        "FMT m.onnx: tensor '\\xff\\x0a': the tensor has a negative extent (expected 0 or more, found -1)");
}

TEST_CASE("ONX-23: text, JSON and archives under the name of a model") {
  CHECK(verdict("ir_version: 8") == "UNS m.onnx: the file is no binary ONNX model (expected a ModelProto, found protobuf's text format)");
  CHECK(verdict("{\"irVersion\": 8}") == "UNS m.onnx: the file is no binary ONNX model (expected a ModelProto, found JSON)");
  CHECK(verdict("\x1F\x8B\x08\x00zzzz") == "UNS m.onnx: the file is no binary ONNX model (expected a ModelProto, found a gzip file)");
  CHECK(verdict("PK\3\4....") == "UNS m.onnx: the file is no binary ONNX model (expected a ModelProto, found a zip archive)");
}

TEST_CASE("ONX-24: every truncation and every changed byte of a model is refused with a sentence, or accepted") {
  auto parts = small();
  parts.nodes.push_back(onnx_node({.operation = "If", .name = "i", .inputs = {"y"}, .outputs = {"z"},
                                   .attributes = {field(1, "then_branch") + field(6, onnx_graph(small())) + field(20, 5), onnx_integer("k", 3)}}));
  parts.tensors.push_back(onnx_tensor({.name = "f16", .type = 10, .dims = {2}, .raw = false, .more = field(5, varint(1) + varint(65535))}));
  const std::string whole = onnx_bytes(parts);
  REQUIRE(verdict(whole) == "accepted");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    const auto cut = read(std::string_view(whole).substr(0, n));
    REQUIRE((cut || (!cut.error().what.empty() && cut.error().code != ts::errc::internal)));
    for (const unsigned flip : {1u, 0x80u, 0xFFu}) {
      std::string changed = whole;
      changed[n] = static_cast<char>(static_cast<unsigned char>(changed[n]) ^ flip);
      const auto model = read(changed);
      REQUIRE((model || (!model.error().what.empty() && model.error().code != ts::errc::internal)));
    }
  }
}

TEST_CASE("VAL-09: fields in any order, unpacked lists, unknown fields, messages in pieces") {
  const std::string tensor = field(9, "12345678") + field(200, "unknown") + field(8, "w") + varint(1 << 3) + varint(1) + field(2, 1) + field(1, 2);
  const std::string packed = field(8, "v") + field(2, 7) + field(1, varint(2) + varint(1)) + field(7, varint(5)) + field(7, 6);
  const std::string group = varint(99 << 3 | 3) + field(1, 7) + varint(98 << 3 | 3) + varint(98 << 3 | 4) + varint(99 << 3 | 4);
  const std::string bytes = field(8, field(2, 17)) + field(7, field(5, tensor)) + group + field(7, field(5, packed) + field(11, onnx_value("x"))) + field(300, 5) +
                            field(1, 3) + field(1, 8) + field(20, field(1, field(2, "training")));
  const auto model = read(bytes);
  INFO((model ? std::string() : model.error().message()));
  REQUIRE(model);
  CHECK(model->ir_version == 8);
  CHECK(model->graph_bodies.size() == 2);
  REQUIRE(model->initializers.size() == 2);
  CHECK(model->initializers[0].shape == ts::shape_type{1, 2});
  CHECK(model->initializers[1].shape == ts::shape_type{2, 1});
  const auto decoded = ts::materialize(model->initializers[1].tensor, {});
  REQUIRE(decoded);
  CHECK(std::string(reinterpret_cast<const char*>(decoded->data()), decoded->size()) == std::string("\5\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0", 16));
}

TEST_CASE("EXT-01, EXT-02, EXT-03, EXT-07: locations that leave the model's folder") {
  const external_model m;
  const auto location = [&](const std::string& text) { return m.verdict_on({{"location", text}}); };
  const auto refused = [](const std::string& text, const std::string& why) {
    return "PTH DIR/m.onnx: tensor 'w': the path '" + text + "' is refused: " + why + " (expected a path below the folder)";
  };
  CHECK(location("data") == "accepted");
  for (const std::string path : {"../../../etc/passwd", "a/../../x", "junk/../../s", "../mymodel_evil/x", "a/.."})
    CHECK(location(path) == refused(path, "it leaves its folder"));
  CHECK(location("./a//../..") == refused("./a//../..", "it has an empty part or '.'"));
  for (const std::string path : {"./data", "././data"}) CHECK(location(path) == "accepted");
  for (const std::string path : {"./", "./.", "./..", "./../data", ".//data", "././/etc/passwd", "./a/../../x", "a/./b", "data/.", "."})
    CHECK(location(path) == refused(path, "it has an empty part or '.'"));
  CHECK(location("./~/x") == refused("./~/x", "it is not relative to the model"));
  CHECK(location("/etc/passwd") == refused("/etc/passwd", "it is absolute"));
  CHECK(location("C:\\x") == refused("C:\\x", "it holds a control character or a backslash"));
  CHECK(location("\\\\h\\s") == refused("\\\\h\\s", "it holds a control character or a backslash"));
  CHECK(location("C:x") == refused("C:x", "it is not relative to the model"));
  CHECK(location("file:///x") == refused("file:///x", "it has an empty part or '.'"));
  CHECK(location("~/.ssh/id") == refused("~/.ssh/id", "it is not relative to the model"));
  CHECK(location("") == refused("", "it is empty"));
  CHECK(location("missing") ==
        "IO DIR/missing: cannot resolve the path: No such file or directory (errno 2); the model 'DIR/m.onnx' has tensor 'w' there");
}

TEST_CASE("EXT-04, EXT-05: links that lead out, and folders that are links") {
  const external_model m;
  const support::temp_folder elsewhere;
  std::ofstream(elsewhere / "secret", std::ios::binary) << std::string(64, 's');
  std::filesystem::create_symlink(elsewhere / "secret", m.folder / "link");
  std::filesystem::create_directory_symlink(elsewhere.path(), m.folder / "sub");
  for (const std::string path : {"link", "sub/secret"}) {
    const std::string text = m.verdict_on({{"location", path}});
    CHECK(text.substr(0, 4) == "PTH ");
    CHECK(text.find("DIR/" + path + ": the path is a symbolic link that leaves its folder; the model 'DIR/m.onnx' has tensor 'w' there") != text.npos);
  }
  std::filesystem::create_symlink("data", m.folder / "inside");
  CHECK(m.verdict_on({{"location", "inside"}}) == "accepted");
}

TEST_CASE("EXT-06: a hard link is a file like others") {
  const external_model m;
  std::filesystem::create_hard_link(m.folder / "data", m.folder / "twin");
  CHECK(m.verdict_on({{"location", "twin"}}) == "accepted");
}

TEST_CASE("EXT-08: a file that is exchanged for a link while models are opened is never read through the link") {
  const external_model m;
  const support::temp_folder elsewhere;
  std::ofstream(elsewhere / "secret", std::ios::binary) << std::string(64, 's');
  REQUIRE(m.verdict_on({{"location", "data"}}) == "accepted");
  const std::string place = m.folder / "data", link = m.folder / "link", file = m.folder / "file";
  fs::copy_file(place, file);
  std::atomic<bool> stop{false};
  std::thread racer([&] {
    std::error_code ignored;
    for (unsigned i = 0; !stop; ++i) {
      if (i % 2) fs::create_symlink(elsewhere / "secret", link, ignored), fs::rename(link, place, ignored);
      else fs::copy_file(file, m.folder / "next", ignored), fs::rename(m.folder / "next", place, ignored);
    }
  });
  std::size_t read = 0, secret = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto model = ts::read_onnx(m.folder / "m.onnx");
    const auto bytes = model ? ts::materialize(model->initializers[0].tensor, {}) : ts::result<std::vector<std::byte>>(ts::failure{});
    if (!bytes) continue;
    ++read;
    secret += (*bytes)[0] != std::byte{'d'};
  }
  stop = true;
  racer.join();
  CHECK(secret == 0);
  CHECK(read > 0);
}

TEST_CASE("EXT-09, EXT-10, EXT-11: offsets and lengths that are no numbers, wrap, or do not fit") {
  const external_model m;
  const auto with = [&](const std::string& key, const std::string& value) { return m.verdict_on({{"location", "data"}, {key, value}}); };
  for (const std::string key : {"offset", "length"})
    for (const std::string value : {"-1", "0x10", "1e3", " 5", "5 ", "+5", "", "9223372036854775808", "18446744073709551616"})
      CHECK(with(key, value) == "FMT DIR/m.onnx: tensor 'w': the " + key + " of external_data is no decimal number (expected 0 to 9223372036854775807, found '" +
                                    value + "')");
  CHECK(with("offset", "48") == "accepted");
  for (const std::string value : {"49", "65", "9223372036854775807"})
    CHECK(with("offset", value) == "FMT DIR/m.onnx: tensor 'w': the tensor ends past the end of the external file 'data' (expected 16 bytes at " + value +
                                       ", found a file of 64 bytes)");
  for (const std::string value : {"15", "17", "0"})
    CHECK(with("length", value) ==
          "FMT DIR/m.onnx: tensor 'w': the length of external_data is not that of the tensor (expected 16 bytes for f32 [4], found " + value + ")");
  CHECK(with("length", "16") == "accepted");
}

TEST_CASE("EXT-12, EXT-16: keys that appear twice, keys that nobody knows, checksums") {
  const external_model m;
  CHECK(m.verdict_on({{"location", "data"}, {"location", "data"}}) == "FMT DIR/m.onnx: tensor 'w': external_data has the key 'location' twice");
  const std::string path = m.folder / "m.onnx";
  CHECK(m.verdict_on({{"location", "data"}, {"__class__", "os"}, {"checksum", "12"}}) == "accepted");
  const auto model = ts::read_onnx(path);
  REQUIRE(model);
  REQUIRE(model->notes.size() == 2);
  CHECK(model->notes[0].text == "the key '__class__' of external_data is not known");
  CHECK(model->notes[1].text == "checksums of external data are not verified");
}

TEST_CASE("EXT-13: the model itself, folders and pipes as external files") {
  const external_model m;
  CHECK(m.verdict_on({{"location", "m.onnx"}}) ==
        "PTH DIR/m.onnx: the path 'm.onnx' is refused: it is the model itself; the model 'DIR/m.onnx' has tensor 'w' there (expected another file)");
  CHECK(m.verdict_on({{"location", "./m.onnx"}}).find("it is the model itself") != std::string::npos);
  std::filesystem::create_directory(m.folder / "folder");
  CHECK(m.verdict_on({{"location", "folder"}}) ==
        "PTH DIR/folder: the path is no regular file; the model 'DIR/m.onnx' has tensor 'w' there (expected a regular file, found a folder)");
  REQUIRE(::mkfifo((m.folder / "pipe").c_str(), 0600) == 0);
  CHECK(m.verdict_on({{"location", "pipe"}}) ==
        "PTH DIR/pipe: the path is no regular file; the model 'DIR/m.onnx' has tensor 'w' there (expected a regular file, found a named pipe)");
}

TEST_CASE("EXT-14: external tensors with data of their own, without a location, and the reverse") {
  const external_model m;
  CHECK(m.verdict_on({{"location", "data"}}, field(9, std::string(16, 'x'))) ==
        "FMT DIR/m.onnx: tensor 'w': the tensor has its elements in more than one place (expected one of raw_data, a typed list and an external file)");
  CHECK(m.verdict_on({{"offset", "0"}}) == "FMT DIR/m.onnx: tensor 'w': the tensor lies in an external file that is not named (expected a location)");
  CHECK(m.verdict_on({{"location", "data"}}, field(14, 0)) ==
        "FMT DIR/m.onnx: tensor 'w': the tensor names an external file and does not say that its elements lie there");
  CHECK(m.verdict_on({{"location", "data"}}, field(14, 7)) ==
        "FMT DIR/m.onnx: tensor 'w': the tensor has a data_location that does not exist (expected 0 or 1, found 7)");
}

TEST_CASE("EXT-15: 60,000 tensors in one range of one file cost no more than their descriptions") {
  const external_model m;
  support::onnx_parts parts;
  for (int i = 0; i < 60'000; ++i)
    parts.tensors.push_back(onnx_tensor({.name = "w" + std::to_string(i), .dims = {4}, .external = {{"location", "data"}, {"offset", "0"}}}));
  const std::string path = m.folder / "m.onnx", bytes = onnx_bytes(parts);
  std::ofstream(path, std::ios::binary) << bytes;
  bounded_memory(bytes.size(), [&] {
    const auto model = ts::read_onnx(path);
    REQUIRE(model);
    CHECK(model->external_files.size() == 1);
    CHECK(model->initializers.size() == 60'000);
  });
}

TEST_CASE("EXT-18: names with control characters, and names that differ from the file's") {
  const external_model m;
  CHECK(m.verdict_on({{"location", std::string("data\0../b", 9)}}).substr(0, 4) == "PTH ");
  for (const std::string& name : {std::string("data."), std::string("data "), std::string("DATA"), std::string(5000, 'd')})
    CHECK(m.verdict_on({{"location", name}}).substr(0, 4) != "acce");
}

TEST_CASE("EXT-19: a data file that becomes shorter or is replaced after the model was opened") {
  const external_model m;
  REQUIRE(m.verdict_on({{"location", "data"}}) == "accepted");
  const auto model = ts::read_onnx(m.folder / "m.onnx");
  REQUIRE(model);
  std::filesystem::resize_file(m.folder / "data", 8);
  const auto bytes = ts::materialize(model->initializers[0].tensor, {});
  REQUIRE(!bytes);
  CHECK(bytes.error().message() == "ITG " + (m.folder / "data") + ": the file became shorter while it was being read (expected 64 bytes, found 8 bytes); run again "
                                   "when it is complete");
  CHECK(!model->external_files[0].source->check_unchanged());
}
