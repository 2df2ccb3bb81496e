// SPDX-License-Identifier: MIT
//
// Files that torch.save and pickle.dump wrote, in every container there ever was: each tensor is compared, bit by bit, with the
// .safetensors file that the same run of Python wrote beside it.
#include <memory>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/io/file.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;

namespace {

std::shared_ptr<const ts::byte_source> opened(const std::string& name) {
  auto file = ts::open_file(support::data("torch/" + name).string(), name);
  if (!file) FAIL(file.error().message());
  return std::move(file).value();
}
std::string bytes_of(const ts::tensor_ref& tensor) {
  const auto bytes = ts::materialize(tensor, {});
  if (!bytes) FAIL(bytes.error().message());
  return {reinterpret_cast<const char*>(bytes.value().data()), bytes.value().size()};
}
ts::torch_checkpoint read(const std::string& name) {
  auto c = ts::read_torch(opened(name));
  if (!c) FAIL(c.error().message());
  return std::move(c).value();
}
/// Reads `name` and compares all of its tensors with those of `twin`.safetensors.
ts::torch_checkpoint compared(const std::string& name, const std::string& twin) {
  ts::torch_checkpoint c = read(name);
  const auto source = opened(twin + ".safetensors");
  auto header = ts::read_safetensors_header(*source, {});
  REQUIRE(header);
  const auto expected = ts::safetensors_catalog(source, std::move(header).value());
  REQUIRE(expected);
  CHECK(c.tensors.size() == expected.value().size());
  for (const ts::catalog_entry& e : expected.value().entries()) {
    INFO(name << ": " << e.name);
    const ts::catalog_entry* const found = c.tensors.find(e.name);
    REQUIRE(found != nullptr);
    CHECK(found->tensor.type() == e.tensor.type());
    CHECK(found->tensor.shape() == e.tensor.shape());
    CHECK(bytes_of(found->tensor) == bytes_of(e.tensor));
  }
  return c;
}
std::vector<std::string> texts(const ts::torch_checkpoint& c) {
  std::vector<std::string> out;
  for (const ts::note& n : c.notes) out.push_back(n.text);
  return out;
}
const ts::json_value* scalar(const ts::torch_checkpoint& c, const std::string& name) {
  for (const auto& [key, value] : c.scalars)
    if (key == name) return &value;
  return nullptr;
}

}  // namespace

TEST_CASE("a legacy stream: every element type, views, shared storages") {
  compared("legacy.4.pt", "legacy");
  const auto c = compared("legacy.pt", "legacy");
  CHECK(c.tensors.size() == 22);
  CHECK(texts(c) == std::vector<std::string>{"5 tensors lie in a range of bytes that another one uses too, first 'transposed' beside 'f16'; each is "
                                             "read as a tensor of its own."});
}

TEST_CASE("a Lightning run with foreign classes and numpy values, in both containers") {
  for (const std::string name : {"lightning.ckpt", "lightning_legacy.ckpt"}) {
    const auto c = compared(name, "lightning");
    CHECK(c.selected == "state_dict");
    REQUIRE(scalar(c, "global_step"));
    CHECK(*scalar(c, "global_step") == ts::json_value(470000));
    REQUIRE(scalar(c, "ema_decay"));
    CHECK(*scalar(c, "ema_decay") == ts::json_value(0.5));
    REQUIRE(scalar(c, "flag"));
    CHECK(*scalar(c, "flag") == ts::json_value(true));
    std::vector<std::string> left;
    for (const auto& part : c.ignored) left.push_back(part.text());
    CHECK(left == std::vector<std::string>{"callbacks: a dict, 1 tensor, classes lightning_fake.callbacks.ModelCheckpoint",
                                           "optimizer_states: a list, 1 tensor", "lr_schedulers: a list",
                                           "hyper_parameters: an object of 'lightning_fake.config.AttributeDict', classes "
                                           "lightning_fake.config.AttributeDict",
                                           "config: an object of 'lightning_fake.config.Node', classes lightning_fake.config.Node",
                                           "loops: a dict"});
  }
}

TEST_CASE("a whole pickled module, in both containers") {
  for (const std::string name : {"module.pt", "module_legacy.pt"}) {
    const auto c = compared(name, "module");
    CHECK(c.tensors.contains("table.left"));
    CHECK(c.tensors.contains("body.1.num_batches_tracked"));
    CHECK_FALSE(c.tensors.contains("gone"));
  }
}

TEST_CASE("pickles of numpy arrays, protocols 2 to 5") {
  for (const std::string protocol : {"2", "3", "4", "5"}) {
    const auto c = compared("arrays." + protocol + ".pkl", "arrays");
    REQUIRE(scalar(c, "step"));
    CHECK(*scalar(c, "step") == ts::json_value(12));
    REQUIRE(scalar(c, "name"));
    CHECK(*scalar(c, "name") == ts::json_value("model"));
    REQUIRE(c.ignored.size() == 2);  // arrays of strings and of Python objects
    CHECK(c.ignored[0].path == "words");
    CHECK(c.ignored[1].path == "objects");
  }
}

TEST_CASE("pickles of tensors, whose storages are packed into bytes") {
  for (const std::string name : {"tensors.2.pkl", "tensors.4.pkl"}) compared(name, "legacy");
}

TEST_CASE("a tar file of torch 0.1") {
  const auto c = compared("tar.pt", "tar");
  REQUIRE(scalar(c, "epoch"));
  CHECK(*scalar(c, "epoch") == ts::json_value(4));
}

TEST_CASE("a zip with big-endian storages") {
  auto c = read("big_endian.pt");
  CHECK(texts(c) == std::vector<std::string>{"The storages are big-endian: their bytes are swapped as they are read."});
  compared("big_endian.pt", "big_endian");
}

TEST_CASE("files and memory give the same") {
  for (const std::string name : {"legacy.pt", "lightning.ckpt", "arrays.5.pkl", "tar.pt", "big_endian.pt"}) {
    const auto file = opened(name);
    std::vector<std::byte> bytes(file->size());
    REQUIRE(file->read_at(0, bytes));
    const auto a = read(name);
    const auto b = ts::read_torch(std::make_shared<ts::memory_source>(name, std::move(bytes)));
    REQUIRE(b);
    REQUIRE(a.tensors.size() == b.value().tensors.size());
    for (const auto& e : a.tensors.entries()) CHECK(bytes_of(e.tensor) == bytes_of(b.value().tensors.find(e.name)->tensor));
  }
}
