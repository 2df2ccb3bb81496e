// SPDX-License-Identifier: MIT
//
// Checkpoints of torch.save, byte by byte: tensors, views, what is chosen and what is left out.
#include "tensorsmith/format/torch/read.hpp"

#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/io/file.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "torch_bytes.hpp"

namespace ts = tensorsmith;
using namespace torch_bytes;

namespace {

std::vector<float> values(const ts::torch_checkpoint& c, const std::string& name) {
  const ts::catalog_entry* e = c.tensors.find(name);
  REQUIRE(e != nullptr);
  REQUIRE(e->tensor.type() == ts::dtype::f32);
  const auto bytes = ts::materialize(e->tensor, {});
  REQUIRE(bytes);
  std::vector<float> out(bytes.value().size() / 4);
  if (!out.empty()) std::memcpy(out.data(), bytes.value().data(), bytes.value().size());
  return out;
}
ts::torch_checkpoint read(const std::string& bytes, std::string_view select = {}) {
  auto c = ts::read_torch(source(bytes), {}, select);
  if (!c) FAIL(c.error().message());
  return std::move(c).value();
}
std::string pair(const std::string& key, const std::string& v) { return text(key) + v + "s"; }

}  // namespace

TEST_CASE("the smallest checkpoint: 138 bytes of pickle, one tensor") {
  // {"w": float32[2, 3]}, as torch.save writes it without memo
  const std::string pickle =
      "\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
      "X\x01\0\0\0"
      "0X\x03\0\0\0cpuK\x06tQK\0K\x02K\x03\x86K\x03K\x01\x86\x89"
      "ccollections\nOrderedDict\n)RtRs."_s;
  REQUIRE(pickle.size() == 138);
  const auto c = read(zip({{.name = "archive/data.pkl", .data = pickle},
                           {.name = "archive/data/0", .data = floats(6)},
                           {.name = "archive/version", .data = "3\n"}}));
  REQUIRE(c.tensors.size() == 1);
  CHECK(c.tensors.find("w")->tensor.shape() == ts::shape_type{2, 3});
  CHECK(c.tensors.find("w")->origin == "m.ckpt: w");
  CHECK(values(c, "w") == std::vector<float>{0, 1, 2, 3, 4, 5});
  REQUIRE(c.notes.size() == 1);
  CHECK(c.notes[0].text.find("byte order") != std::string::npos);
}

TEST_CASE("views are what torch makes of them") {
  const std::string pickle = program("}" + pair("transposed", value({.numel = 24, .size = {3, 2}, .stride = {1, 3}})) +
                                     pair("column", value({.numel = 24, .offset = 1, .size = {4}, .stride = {3}})) +
                                     pair("middle", value({.numel = 24, .offset = 6, .size = {2, 3}, .stride = {3, 1}})) +
                                     pair("repeated", value({.numel = 24, .offset = 2, .size = {3, 2}, .stride = {0, 1}})) +
                                     pair("scalar", value({.numel = 24, .offset = 23, .size = {}, .stride = {}})) +
                                     pair("empty", value({.numel = 24, .offset = 0, .size = {2, 0}, .stride = {1, 1}})) +
                                     pair("permuted", value({.numel = 24, .size = {4, 2, 3}, .stride = {1, 12, 4}})) +
                                     pair("steps", value({.numel = 24, .offset = 1, .size = {2, 3}, .stride = {12, 2}})));
  const auto c = read(checkpoint(pickle, floats(24)));
  CHECK(values(c, "transposed") == std::vector<float>{0, 3, 1, 4, 2, 5});
  CHECK(values(c, "column") == std::vector<float>{1, 4, 7, 10});
  CHECK(values(c, "middle") == std::vector<float>{6, 7, 8, 9, 10, 11});
  CHECK(values(c, "repeated") == std::vector<float>{2, 3, 2, 3, 2, 3});
  CHECK(values(c, "scalar") == std::vector<float>{23});
  CHECK(values(c, "empty").empty());
  CHECK(values(c, "permuted") ==
        std::vector<float>{0, 4, 8, 12, 16, 20, 1, 5, 9, 13, 17, 21, 2, 6, 10, 14, 18, 22, 3, 7, 11, 15, 19, 23});
  CHECK(values(c, "steps") == std::vector<float>{1, 3, 5, 13, 15, 17});
}

TEST_CASE("a deflated storage is read all the same") {
  auto entries = checkpoint_entries(one({}));
  entries[2].data = deflated(floats(6));
  entries[2].method = 8;
  entries[2].size = 24;
  entries[2].crc32 = crc(floats(6));
  const auto c = read(zip(entries));
  CHECK(values(c, "w") == std::vector<float>{0, 1, 2, 3, 4, 5});
  REQUIRE(c.notes.size() == 1);
  CHECK(c.notes[0].text == "The storage is compressed: it needs 24 bytes of memory while it is read.");
}

TEST_CASE("the same object twice stays one tensor; an own object over the same storage is another one") {
  const auto c = read(checkpoint(program("}" + text("a") + value({}) + "q\x07s" + text("b") + "h\x07s" + pair("c", value({})))));
  CHECK(c.tensors.find("a")->tensor.source == c.tensors.find("b")->tensor.source);
  CHECK(c.tensors.find("a")->tensor.source != c.tensors.find("c")->tensor.source);
  CHECK(values(c, "c") == values(c, "a"));
}

TEST_CASE("parameters, subclasses and typeless storages are unwrapped") {
  const std::string hooks = global("collections", "OrderedDict") + ")R";
  const std::string v3 = global("torch._utils", "_rebuild_tensor_v3") + "(" +
                         storage({.storage = "UntypedStorage", .module = "torch.storage", .numel = 24}) + integer(4) +
                         tuple({2, 2}) + tuple({2, 1}) + "\x89" + hooks;
  const auto entries = [](const std::string& pickle) {
    auto all = checkpoint_entries(pickle);
    all.push_back({.name = "archive/data/f", .data = floats(6)});
    return all;
  };
  const auto c = read(zip(entries(
      program("}" + pair("p", global("torch._utils", "_rebuild_parameter") + "(" + value({.key = "f"}) + "\x88" + hooks + "tR") +
              pair("old", global("torch.nn.parameter", "Parameter") + value({.key = "f"}) + "\x88\x86\x81") +
              pair("first", global("torch._utils", "_rebuild_tensor") + "(" + storage({.key = "f"}) + integer(0) + tuple({6}) +
                                tuple({1}) + "tR") +
              pair("ancient",
                   global("torch", "FloatTensor") + ")R(" + storage({.key = "f"}) + integer(2) + tuple({2}) + tuple({1}) + "tb") +
              pair("sub", global("torch._tensor", "_rebuild_from_type_v2") + "(" + global("torch._utils", "_rebuild_tensor_v2") +
                              global("my", "Class") + "(" + storage({.key = "f"}) + integer(1) + tuple({1}) + tuple({1}) +
                              "\x89" + hooks + "t}tR") +
              pair("u16", v3 + global("torch", "uint16") + "tR") + pair("f8", v3 + global("torch", "float8_e4m3fn") + "tR")))));
  CHECK(values(c, "p") == std::vector<float>{0, 1, 2, 3, 4, 5});
  CHECK(values(c, "old") == values(c, "p"));
  CHECK(values(c, "first") == values(c, "p"));
  CHECK(values(c, "ancient") == std::vector<float>{2, 3});
  CHECK(values(c, "sub") == std::vector<float>{1});
  const auto raw = [&](const std::string& name) {
    const auto bytes = ts::materialize(c.tensors.find(name)->tensor, {});
    REQUIRE(bytes);
    return std::string(reinterpret_cast<const char*>(bytes.value().data()), bytes.value().size());
  };
  CHECK(c.tensors.find("u16")->tensor.type() == ts::dtype::u16);
  CHECK(raw("u16") == floats(6).substr(8, 8));
  CHECK(c.tensors.find("f8")->tensor.type() == ts::dtype::f8_e4m3);
  CHECK(raw("f8") == floats(6).substr(4, 4));
}

TEST_CASE("a Lightning checkpoint gives its state_dict; the rest is listed") {
  const std::string numpy_int = global("numpy.core.multiarray", "scalar") + "(" + global("numpy", "dtype") + "(" + text("i8") +
                                "\x89\x88tR(K\x03" + text("<") + "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"_s +
                                global("_codecs", "encode") + text("*\0\0\0\0\0\0\0"_s) + text("latin1") + "\x86R" + "tR";
  const std::string state = global("collections", "OrderedDict") + ")R" + pair("w", value({})) + "}" + text("_metadata") + "}sb";
  const auto c = read(checkpoint(program(
      "}" + pair("epoch", integer(11)) + pair("global_step", numpy_int) + pair("version", text("1.4.2")) +
      pair("rate", "G?\xe0\0\0\0\0\0\0"_s) + pair("state_dict", state) + text("callbacks") + "}" +
      global("pytorch_lightning.callbacks", "ModelCheckpoint") + "}" + pair("best", value({.size = {}, .stride = {}})) + "ss" +
      pair("optimizer_states", "]") + pair("hparams", global("my.config", "Hparams") + ")\x81}" + pair("a", "N") + "b"))));
  CHECK(c.selected == "state_dict");
  CHECK(values(c, "w") == std::vector<float>{0, 1, 2, 3, 4, 5});
  CHECK(c.tensors.find("w")->origin == "m.ckpt: state_dict/w");
  REQUIRE(c.scalars.size() == 4);
  CHECK(c.scalars[0] == std::pair<std::string, ts::json_value>("epoch", 11));
  CHECK(c.scalars[1] == std::pair<std::string, ts::json_value>("global_step", 42));
  CHECK(c.scalars[2] == std::pair<std::string, ts::json_value>("version", "1.4.2"));
  CHECK(c.scalars[3] == std::pair<std::string, ts::json_value>("rate", 0.5));
  REQUIRE(c.ignored.size() == 3);
  CHECK(c.ignored[0].text() == "callbacks: a dict, 1 tensor, classes pytorch_lightning.callbacks.ModelCheckpoint");
  CHECK(c.ignored[1].text() == "optimizer_states: a list");
  CHECK(c.ignored[2].text() == "hparams: an object of 'my.config.Hparams', classes my.config.Hparams");
}

TEST_CASE("which dict holds the weights") {
  const std::string dict = "}" + pair("w", value({}));
  const std::string other = "}" + pair("v", value({.size = {3}, .stride = {1}}));
  SECTION("the first of model, net, params, … that holds tensors") {
    const auto c =
        read(checkpoint(program("}" + pair("ema", other) + pair("net", dict) + pair("model", "}" + pair("width", integer(3))))));
    CHECK(c.selected == "net");
    CHECK(c.tensors.contains("w"));
    REQUIRE(c.ignored.size() == 2);
    CHECK(c.ignored[0].text() == "ema: a dict, 1 tensor");
  }
  SECTION("state_dict inside state_dict") {
    CHECK(read(checkpoint(program("}" + pair("state_dict", "}" + pair("state_dict", dict))))).selected ==
          "state_dict/state_dict");
  }
  SECTION("the caller's choice") {
    const std::string bytes = checkpoint(program("}" + pair("ema", other) + pair("state_dict", dict)));
    CHECK(read(bytes, "ema").tensors.contains("v"));
    auto none = ts::read_torch(source(bytes), {}, "exam");
    REQUIRE_FALSE(none);
    CHECK(none.error().message() ==
          "USE m.ckpt: zip entry 'archive/data.pkl', byte offset 2: there is no 'exam' to select (expected one of 'ema', "
          "'state_dict', found 'exam')");
  }
  SECTION("nested dicts and lists without a wrapper are joined by dots") {
    const auto c = read(checkpoint(
        program("}" + pair("unet", "}" + pair("a", value({}))) + pair("list", "]" + value({}) + "a" + value({}) + "a"))));
    CHECK(c.selected.empty());
    CHECK(c.tensors.contains("unet.a"));
    CHECK(c.tensors.contains("list.1"));
  }
  SECTION("a whole pickled module gives the names of its state_dict") {
    const auto module = [](const std::string& parameters, const std::string& modules) {
      return global("net", "Module") + ")\x81}" + pair("_parameters", "}" + parameters) +
             pair("_buffers", "}" + pair("gone", value({})) + pair("kept", value({}))) +
             pair("_non_persistent_buffers_set", global("builtins", "set") + "(]" + text("gone") + "atR") +
             pair("_modules", "}" + modules) + "b";
    };
    const auto c = read(
        checkpoint(program(module(pair("w", value({})) + pair("bias", "N"), pair("sub", module(pair("v", value({})), ""))))));
    std::vector<std::string> names;
    for (const auto& e : c.tensors.entries()) names.push_back(e.name);
    CHECK(names == std::vector<std::string>{"w", "kept", "sub.v", "sub.kept"});
  }
}

TEST_CASE("containers are told by content") {
  const auto kind = [](const std::string& bytes) { return ts::torch_container_of(std::as_bytes(std::span(bytes))); };
  CHECK(kind(checkpoint(one({}))) == ts::torch_container::zip);
  CHECK(kind("\x80\x02\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19\x2E...") == ts::torch_container::legacy);
  CHECK(kind(std::string(257, '\0') + "ustar\0"_s) == ts::torch_container::tar);
  CHECK(kind("\x80\x04N.") == ts::torch_container::pickle);
  CHECK(kind("GGUF") == ts::torch_container::none);
  CHECK(kind("") == ts::torch_container::none);
}

TEST_CASE("a Stable Diffusion checkpoint of torch.save") {
  const auto file = ts::open_file(support::data("sd1/sd1.ckpt").string());
  REQUIRE(file);
  const auto c = ts::read_torch(file.value());
  REQUIRE(c);
  CHECK(c.value().selected == "state_dict");
  CHECK(c.value().tensors.contains("model.diffusion_model.out.0.bias"));
  CHECK(c.value().scalars.size() == 3);
  for (const auto& e : c.value().tensors.entries()) {
    INFO(e.name);
    CHECK(ts::materialize(e.tensor, {}));
  }
}
