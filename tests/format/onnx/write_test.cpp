// SPDX-License-Identifier: MIT
//
// What lies where in a written ONNX folder, read back with the onnx package's own classes and checked by its checker.
#include "tensorsmith/format/onnx/write.hpp"

#include <onnx/checker.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/graph/ops.hpp"
#include "tensorsmith/io/file.hpp"
#include "tensorsmith/target/ort.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;
using ts::dim;
using ts::dtype;
using ts::value_id;

namespace {

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return std::move(out).str();
}

/// Every file below a folder.
std::map<std::string, std::string> tree(const fs::path& root) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(root))
    if (entry.is_regular_file()) out[fs::relative(entry.path(), root).string()] = contents(entry.path());
  return out;
}

std::vector<std::byte> pattern(std::size_t count, std::size_t salt) {
  std::vector<std::byte> bytes(count * sizeof(float));
  for (std::size_t i = 0; i < count; ++i) {
    const auto x = static_cast<float>((i * 31 + salt) % 1009) / 1009.0F;
    std::memcpy(bytes.data() + i * sizeof x, &x, sizeof x);
  }
  return bytes;
}

/// Weights that lie one behind the other in a file, from byte 100 on: unaligned, as in real files.
class file_weights final : public ts::parameter_source {
 public:
  explicit file_weights(std::string path) : path_(std::move(path)) {}
  ts::result<ts::tensor_ref> take(std::string_view name, const ts::shape_type& shape) override {
    const std::size_t count = ts::element_count(shape);
    const auto bytes = pattern(count, name.size());
    std::ofstream out(path_, std::ios::binary | std::ios::app);
    if (at_ == 0) out << std::string(static_cast<std::size_t>(at_ = 100), '#');
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    out.close();
    parts_.push_back({std::string(name), shape, at_});
    at_ += bytes.size();
    return ts::in_memory({std::string(name), dtype::f32, shape}, bytes);
  }
  /// Replaces the tensors of a graph by stored ones of the finished file.
  void settle(ts::graph& g) const {
    const auto file = ts::open_file(path_);
    REQUIRE(file);
    for (ts::initializer& i : g.initializers)
      for (const part& p : parts_)
        if (g[i.value].name == p.name)
          i.data = ts::tensor_ref{ts::stored_tensor(*file, p.offset, dtype::f32, p.shape, p.name), 0};
  }

 private:
  struct part {
    std::string name;
    ts::shape_type shape;
    std::uint64_t offset;
  };
  std::string path_;
  std::vector<part> parts_;
  std::uint64_t at_ = 0;
};

/// x · W + b, normalized, with an inner dimension of 96: one large weight, three small tensors.
ts::graph small_model(ts::parameter_source& from) {
  ts::graph_builder b("small", from, dtype::f32);
  const value_id x = b.input("x", dtype::f32, {b.dynamic("batch_size"), b.dynamic("sequence_length"), dim(64)});
  const value_id y = b.emit("linear", {x, b.parameter("fc.weight", {96, 64}), b.parameter("fc.bias", {96})});
  b.output(b.emit("layer_norm", {y, b.parameter("norm.weight", {96}), b.parameter("norm.bias", {96})}), "y");
  auto done = b.finish();
  if (!done) FAIL(done.error().message());
  return std::move(done).value();
}

/// A bundle of one or two such components whose weights lie in `folder`/<name>/weights.bin.
ts::bundle make_bundle(const fs::path& folder, const std::vector<std::string>& names, bool keep = false) {
  ts::bundle out;
  out.source = folder.string();
  for (const std::string& name : names) {
    fs::create_directories(folder / name);
    const std::string path = (folder / name / "weights.bin").string();
    fs::remove(path);
    file_weights from(path);
    ts::bundle_component c{name, small_model(from), {}, {}, name};
    from.settle(c.model);
    c.config.set("_class_name", "Small");
    out.components.push_back(std::move(c));
  }
  out.index.set("_class_name", "SmallPipeline");
  out.side_files.push_back(
      {"scheduler/config.json", std::make_shared<ts::memory_source>("scheduler", std::vector<std::byte>(3, std::byte{'s'}))});
  ts::job run;
  auto lowered = ts::lower_to_ort(std::move(out), {17, keep}, run);
  if (!lowered) FAIL(lowered.error().message());
  return std::move(lowered).value();
}

onnx::ModelProto parsed(const std::string& bytes) {
  onnx::ModelProto m;
  REQUIRE(m.ParseFromString(bytes));
  return m;
}

const onnx::TensorProto& tensor(const onnx::ModelProto& m, const std::string& name) {
  for (const auto& t : m.graph().initializer())
    if (t.name() == name) return t;
  FAIL("no initializer " << name);
  return m.graph().initializer(0);
}

std::map<std::string, std::string> external(const onnx::TensorProto& t) {
  std::map<std::string, std::string> out;
  for (const auto& e : t.external_data()) out[e.key()] = e.value();
  return out;
}

std::string transposed_bytes() {  // fc.weight as [64, 96]
  const auto in = pattern(96 * 64, std::strlen("fc.weight"));
  std::string out(in.size(), '\0');
  for (std::size_t o = 0; o < 96; ++o)
    for (std::size_t i = 0; i < 64; ++i) std::memcpy(out.data() + (i * 96 + o) * 4, in.data() + (o * 64 + i) * 4, 4);
  return out;
}

}  // namespace

TEST_CASE("copy puts large weights into the data file at page offsets and small ones into the graph") {
  const support::temp_folder t;
  const ts::bundle models = make_bundle(t / "in", {"unet", "vae_decoder"});
  ts::job run;
  const auto planned = ts::plan_onnx_folder(models, t / "out", {}, run);
  REQUIRE(planned);
  CHECK_FALSE(fs::exists(t / "out"));
  const auto report = ts::write_onnx_folder(models, t / "out", {}, run);
  if (!report) FAIL(report.error().message());

  const auto files = tree(t / "out");
  REQUIRE(files.size() == 8);
  CHECK(files.at("unet/config.json") == "{\n  \"_class_name\": \"Small\"\n}\n");
  CHECK(files.at("scheduler/config.json") == "sss");
  const onnx::ModelProto m = parsed(files.at("unet/model.onnx"));
  onnx::checker::check_model(t / "out/unet/model.onnx");
  CHECK(m.ir_version() == 8);
  CHECK(m.producer_name() == "tensorsmith");
  CHECK(m.opset_import(0).version() == 17);
  CHECK(m.graph().name() == "unet");
  CHECK(m.graph().input(0).type().tensor_type().shape().dim(0).dim_param() == "batch_size");
  CHECK(m.graph().input(0).type().tensor_type().shape().dim(2).dim_value() == 64);
  const onnx::TensorProto& w = tensor(m, "fc.weight");
  CHECK(w.dims(0) == 64);
  CHECK(external(w) == std::map<std::string, std::string>{{"location", "model.onnx_data"}, {"offset", "0"}, {"length", "24576"}});
  CHECK(files.at("unet/model.onnx_data") == transposed_bytes());
  const auto bias = pattern(96, std::strlen("norm.bias"));
  CHECK(tensor(m, "norm.bias").raw_data() == std::string(reinterpret_cast<const char*>(bias.data()), bias.size()));

  std::uint64_t total = 0;
  for (const auto& [name, bytes] : files) total += bytes.size();
  CHECK(report->total_bytes == total);
  CHECK(planned->total_bytes == total);
  REQUIRE(report->components.size() == 2);
  const ts::component_report& c = report->components[0];
  CHECK(c.tensors == 4);
  CHECK(c.parameters == 96 * 64 + 3 * 96);
  CHECK(c.dtypes == std::vector<std::pair<std::string, std::uint64_t>>{{"f32", 4}});
  CHECK(c.weights == "copied");
  for (const auto& f : c.files) CHECK(files.at(f.path).size() == f.bytes);
}

TEST_CASE("the bytes do not depend on threads and tiles") {
  const support::temp_folder t;
  const ts::bundle models = make_bundle(t / "in", {"unet", "vae_decoder"});
  for (const auto mode : {ts::weights_mode::copy, ts::weights_mode::embed}) {
    std::map<std::string, std::string> first;
    int n = 0;
    for (const unsigned threads : {1U, 2U, 7U})
      for (const std::size_t tile : {std::size_t{512}, std::size_t{4} << 20}) {
        ts::job run;
        run.threads = threads;
        run.tile_bytes = tile;
        const std::string out = t / ("out" + std::to_string(static_cast<int>(mode)) + std::to_string(n++));
        REQUIRE(ts::write_onnx_folder(models, out, {.weights = mode}, run));
        if (first.empty()) first = tree(out);
        else CHECK((tree(out) == first));
      }
  }
}

TEST_CASE("embed streams the weights behind the structure, inside the one graph field") {
  const support::temp_folder t;
  const ts::bundle models = make_bundle(t / "in", {"unet"});
  ts::job run;
  const auto report = ts::write_onnx_folder(models, t / "out", {.weights = ts::weights_mode::embed}, run);
  if (!report) FAIL(report.error().message());
  const auto files = tree(t / "out");
  CHECK(files.count("unet/model.onnx_data") == 0);
  const onnx::ModelProto m = parsed(files.at("unet/model.onnx"));
  onnx::checker::check_model(m);
  CHECK(tensor(m, "fc.weight").raw_data() == transposed_bytes());
  CHECK(m.graph().node_size() == 3);
  CHECK(m.ByteSizeLong() == files.at("unet/model.onnx").size());
  CHECK(report->components[0].weights == "embedded");
}

TEST_CASE("embed refuses what would exceed 2 GiB before it writes") {
  const support::temp_folder t;
  std::ofstream(t / "huge") << "";
  fs::resize_file(t / "huge", std::uintmax_t{3} << 30);
  const auto file = ts::open_file(t / "huge");
  REQUIRE(file);
  ts::bundle models;
  models.opset = 17;
  ts::bundle_component c;
  c.name = "unet";
  const std::size_t side = std::size_t{1} << 15;
  const auto id = c.model.add({"w", dtype::f16, {dim(side), dim(side)}});
  const auto y = c.model.add({"y", dtype::f16, {dim(side), dim(side)}});
  c.model.initializers.push_back({id, ts::tensor_ref{ts::stored_tensor(*file, 0, dtype::f16, {side, side}, "w"), 0}});
  c.model.nodes.push_back({"Identity", "/Identity", "", "", {id}, {y}, {}});
  c.model.outputs = {y};
  models.components.push_back(std::move(c));
  ts::job run;
  const auto report = ts::write_onnx_folder(models, t / "out", {.weights = ts::weights_mode::embed}, run);
  REQUIRE_FALSE(report);
  CHECK(report.error().code == ts::errc::limit);
  CHECK(report.error().message().find("LIM the .onnx file of 'unet' would exceed what protobuf can hold "
                                      "(expected at most 2147483647 bytes, found 21474837") == 0);
  CHECK_FALSE(fs::exists(t / "out"));
  CHECK(ts::plan_onnx_folder(models, t / "out", {}, run)->total_bytes > std::uint64_t{2} << 30);
}

TEST_CASE("in place into the source folder adds graphs that point into the source files") {
  const support::temp_folder t;
  const ts::bundle models = make_bundle(t / "model", {"unet", "text_encoder"}, true);
  const auto before = tree(t / "model");
  ts::job run;
  const ts::onnx_write_options options{.weights = ts::weights_mode::in_place};
  const auto report = ts::write_onnx_folder(models, t / "model", options, run);
  if (!report) FAIL(report.error().message());
  auto files = tree(t / "model");
  for (const auto& [name, bytes] : before) CHECK(files.at(name) == bytes);
  const onnx::ModelProto m = parsed(files.at("unet/model.onnx"));
  onnx::checker::check_model(t / "model/unet/model.onnx");
  CHECK(external(tensor(m, "fc.weight")) ==
        std::map<std::string, std::string>{{"location", "weights.bin"}, {"offset", "100"}, {"length", "24576"}});
  CHECK(m.graph().node(0).op_type() == "Transpose");
  CHECK(report->linked_bytes == 0);
  CHECK(report->components[0].weights == "in place");
  CHECK(report->total_bytes < 8000);

  SECTION("a second run finds everything there") {
    REQUIRE(ts::write_onnx_folder(models, t / "model", options, run));
    CHECK((tree(t / "model") == files));
  }
  SECTION("the source's own configuration is kept") {
    std::ofstream(t / "model/unet/config.json") << "{}";
    REQUIRE(ts::write_onnx_folder(models, t / "model", options, run));
    CHECK(contents(t / "model/unet/config.json") == "{}");
  }
}

TEST_CASE("in place into another folder links the weight file under its own name") {
  const support::temp_folder t;
  ts::bundle models = make_bundle(t / "model", {"vae"}, true);
  models.components[0].name = "vae_decoder";
  ts::job run;
  const auto report = ts::write_onnx_folder(models, t / "out", {.weights = ts::weights_mode::in_place}, run);
  if (!report) FAIL(report.error().message());
  CHECK(contents(t / "out/vae_decoder/weights.bin") == contents(t / "model/vae/weights.bin"));
  CHECK(report->linked_bytes == fs::file_size(t / "model/vae/weights.bin"));
  const std::string how = report->components[0].weights;
  CHECK((how == "hard link" || how == "clone"));
  if (how == "hard link") {
    CHECK(fs::hard_link_count(t / "model/vae/weights.bin") == 2);
    REQUIRE(run.notes.size() == 1);
    CHECK(run.notes[0].subject == "vae_decoder/weights.bin");
  }
}

TEST_CASE("in place beside a symbolic link or a foreign file takes another name") {
  const support::temp_folder t;
  ts::bundle models = make_bundle(t / "model", {"unet"}, true);
  fs::create_directories(t / "cache");
  fs::rename(t / "model/unet/weights.bin", t / "cache/blob");
  fs::create_symlink(t / "cache/blob", t / "model/unet/weights.bin");
  ts::job run;
  const ts::onnx_write_options options{.weights = ts::weights_mode::in_place};
  REQUIRE(ts::write_onnx_folder(models, t / "model", options, run));
  const onnx::ModelProto m = parsed(contents(t / "model/unet/model.onnx"));
  CHECK(external(tensor(m, "fc.weight")).at("location") == "linked-weights.bin");
  CHECK(contents(t / "model/unet/linked-weights.bin") == contents(t / "cache/blob"));
  CHECK(fs::is_symlink(t / "model/unet/weights.bin"));
  const auto files = tree(t / "model");
  REQUIRE(ts::write_onnx_folder(models, t / "model", options, run));  // finds its own link again
  CHECK((tree(t / "model") == files));
}

TEST_CASE("in place names the tensor that cannot stay; small ones are held in the graph") {
  const support::temp_folder t;
  ts::bundle models = make_bundle(t / "model", {"unet"}, true);
  ts::graph& g = models.components[0].model;
  const auto replace = [&](const char* name, ts::tensor_ref by) {
    for (ts::initializer& i : g.initializers)
      if (g[i.value].name == name) i.data = by;
  };
  ts::job run;
  replace("fc.weight", ts::in_memory({"computed", dtype::f32, {96, 64}}, pattern(96 * 64, 9)));  // 24 KiB
  REQUIRE(ts::write_onnx_folder(models, t / "out", {.weights = ts::weights_mode::in_place}, run));
  const onnx::ModelProto m = parsed(contents(t / "out/unet/model.onnx"));
  CHECK(tensor(m, "fc.weight").raw_data().size() == 24576);

  replace("fc.weight", ts::in_memory({"computed", dtype::f32, {960, 64}}, pattern(960 * 64, 9)));
  const auto refused = ts::write_onnx_folder(models, t / "out2", {.weights = ts::weights_mode::in_place}, run);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message() ==
        "USE unet: tensor 'fc.weight': the weights cannot stay in place: the graph needs this tensor otherwise than it is stored "
        "(expected contiguous f32 [960, 64] in a file, found a tensor that is cast, reordered or computed on the way); "
        "use --weights copy, or --dtype keep if a cast is the reason");
  CHECK_FALSE(fs::exists(t / "out2"));
}

TEST_CASE("nothing is published over an existing folder, a changed source or after a cancellation") {
  const support::temp_folder t;
  const ts::bundle models = make_bundle(t / "in", {"unet"});
  ts::job run;
  fs::create_directories(t / "out");
  std::ofstream(t / "out/mine") << "mine";
  CHECK(ts::write_onnx_folder(models, t / "out", {}, run).error().code == ts::errc::path);
  CHECK(tree(t / "out") == std::map<std::string, std::string>{{"mine", "mine"}});
  REQUIRE(ts::write_onnx_folder(models, t / "out", {.force = true}, run));
  CHECK_FALSE(fs::exists(t / "out/mine"));

  std::atomic<bool> stop{true};
  ts::job cancelled;
  cancelled.cancel = &stop;
  CHECK(ts::write_onnx_folder(models, t / "out3", {}, cancelled).error().code == ts::errc::cancelled);
  CHECK(ts::write_onnx_folder(models, t / "out3", {.data_name = "../x"}, run).error().code == ts::errc::path);
  CHECK(ts::write_onnx_folder(models, t / "out3", {.data_name = "model.onnx"}, run).error().code == ts::errc::usage);

  std::ofstream(t / "in/unet/weights.bin", std::ios::app) << "more";
  CHECK(ts::write_onnx_folder(models, t / "out3", {.weights = ts::weights_mode::embed}, run).error().code == ts::errc::integrity);
  for (const auto& entry : fs::directory_iterator(t.path()))
    CHECK(entry.path().filename().string().find(".tmp") == std::string::npos);
  CHECK_FALSE(fs::exists(t / "out3"));
}

TEST_CASE("composites are refused, and newer element types raise the IR version") {
  ts::graph g;
  const auto x = g.add({"x", dtype::f32, {dim(2)}}), y = g.add({"y", dtype::f32, {dim(2)}});
  g.nodes = {{"silu", "/silu", "", "", {x}, {y}, {}}};
  g.inputs = {x}, g.outputs = {y};
  CHECK(ts::onnx_structure(g, "m", 17).error().code == ts::errc::internal);
  g.nodes[0].op = "Relu";
  CHECK(ts::onnx_structure(g, "m", 14)->ir_version() == 7);
  CHECK(ts::onnx_structure(g, "m", 19)->ir_version() == 9);
  CHECK(ts::onnx_structure(g, "m", 21)->ir_version() == 10);
  g[x].type = dtype::i4;
  const auto m = ts::onnx_structure(g, "m", 17);
  CHECK(m->ir_version() == 10);
  CHECK(m->graph().input(0).type().tensor_type().elem_type() == 22);
  g[x].type = dtype::f6_e2m3;
  CHECK(ts::onnx_structure(g, "m", 17).error().message() == "UNS value 'x': ONNX has no element type f6_e2m3; cast it first");
}
