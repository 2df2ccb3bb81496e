// SPDX-License-Identifier: MIT
//
// Folders of ONNX graphs as others wrote them: every parameter is found, with the values of the model it was exported from; what is merged
// into them is what is merged into that model; the rest keeps its bytes.
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "format/onnx/onnx_bytes.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/arch/onnx_pipeline.hpp"
#include "tensorsmith/arch/recognize_adapter.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/format/diffusers/read.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/stacked.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;

namespace {

using contents = std::map<std::string, std::string>;

std::string data(const std::string& name) { return support::data("onnx/" + name).string(); }

std::string text_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
/// All files below a folder.
contents files_of(const fs::path& folder) {
  contents out;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) out[fs::relative(entry.path(), folder).string()] = text_of(entry.path());
  return out;
}
std::set<std::string> differing(const contents& a, const contents& b) {
  std::set<std::string> out;
  for (const auto& [name, text] : a)
    if (const auto at = b.find(name); at == b.end() || at->second != text) out.insert(name);
  for (const auto& [name, text] : b)
    if (a.count(name) == 0) out.insert(name);
  return out;
}

ts::onnx_pipeline opened(const std::string& folder) {
  ts::job run;
  auto pipeline = ts::open_onnx_pipeline(folder, run);
  INFO((pipeline ? std::string() : pipeline.error().message()));
  REQUIRE(pipeline);
  return std::move(*pipeline);
}
std::string refusal(const std::string& folder) {
  ts::job run;
  const auto pipeline = ts::open_onnx_pipeline(folder, run);
  return pipeline ? "accepted" : pipeline.error().message();
}
std::vector<std::byte> values(const ts::tensor_ref& tensor) {
  auto bytes = ts::materialize(tensor, {});
  REQUIRE(bytes);
  return std::move(*bytes);
}
/// The same tensors: names, types, shapes, elements.
void check_same(const ts::catalog& found, const ts::catalog& wanted) {
  CHECK(found.size() == wanted.size());
  for (const ts::catalog_entry& entry : wanted.entries()) {
    INFO(entry.name);
    const ts::catalog_entry* const here = found.find(entry.name);
    REQUIRE(here);
    CHECK(here->tensor.shape() == entry.tensor.shape());
    CHECK(here->tensor.type() == entry.tensor.type());
    CHECK(values(here->tensor) == values(entry.tensor));
  }
}
ts::package original() {
  ts::job run;
  auto model = ts::read_diffusers_folder(data("pipeline"), {}, run);
  REQUIRE(model);
  model->family = "sd1";
  return std::move(*model);
}
ts::merge_account merge(ts::package& model) {
  ts::job run;
  const std::string path = data("lora.safetensors");
  const auto file = ts::open_weights(path, {}, run);
  REQUIRE(file);
  auto adapter = ts::read_adapter(file->components[0].weights, path);
  REQUIRE(adapter);
  std::vector<ts::adapter_request> requests;
  requests.push_back({.source = std::move(*adapter), .unet = 0.75, .text_encoder = 0.5});
  auto account = ts::merge_adapters(model, requests, {}, run);
  INFO((account ? std::string() : account.error().message()));
  REQUIRE(account);
  return std::move(*account);
}
/// Replaces a parameter by one filled with `fill`; with `more` rows.
void fill(ts::package& model, const std::string& component, const std::string& name, unsigned char fill, std::size_t more = 0) {
  ts::catalog& weights = model.find(component)->weights;
  ts::tensor_info info = weights.find(name)->tensor.info();
  std::vector<std::byte> bytes = values(weights.find(name)->tensor);
  if (more == 0) bytes.assign(bytes.size(), std::byte{fill});
  bytes.resize(bytes.size() / info.shape[0] * (info.shape[0] + more), std::byte{fill});
  info.shape[0] += more;
  weights.replace(name, ts::in_memory({name, info.type, info.shape}, std::move(bytes)));
}
std::string write(const ts::onnx_pipeline& base, const ts::package& model, const std::string& output, const ts::onnx_pipeline_options& how = {.verify = true},
                  const std::vector<ts::changed_weight>& changed = {}) {
  ts::job run;
  const auto report = ts::write_onnx_pipeline(base, model, changed, output, how, run);
  return report ? "written" : report.error().message();
}

/// A pipeline of one text encoder with the given graph.
std::string folder_of(const support::temp_folder& folder, const support::onnx_parts& parts, const std::string& component = "text_encoder") {
  fs::create_directories(folder.path() / component);
  std::ofstream(folder.path() / component / "model.onnx", std::ios::binary) << support::onnx_bytes(parts);
  return folder.path().string();
}
std::string floats(std::size_t count, char fill = 'f') { return std::string(4 * count, fill); }

}  // namespace

TEST_CASE("every parameter is found in the exports of Optimum and of diffusers' script, with the values of the model") {
  const ts::package model = original();
  for (const char* const name : {"optimum", "script"}) {
    INFO(name);
    const ts::onnx_pipeline pipeline = opened(data(name));
    REQUIRE(pipeline.model.components.size() == 2);
    for (const char* const part : {"text_encoder", "unet"}) check_same(pipeline.model.find(part)->weights, model.find(part)->weights);
    for (const ts::onnx_component& c : pipeline.components) CHECK(c.parameters.unnamed.empty());
    CHECK(pipeline.model.family == "sd1");
  }
  const ts::onnx_pipeline optimum = opened(data("optimum"));
  CHECK(optimum.model.index.find("_class_name"));
  CHECK(optimum.model.find("unet")->config.find("block_out_channels"));
  REQUIRE(optimum.model.side_files.size() == 4);
  CHECK(optimum.model.side_files[3].path == "tokenizer/vocab.json");
}

TEST_CASE("parameters that an exporter stored once are found under all their names") {
  const ts::onnx_pipeline pipeline = opened(data("optimum_xl"));
  ts::job run;
  const auto encoder = ts::read_diffusers_component(data("encoder_xl"), "text_encoder_2", {}, run);
  REQUIRE(encoder);
  check_same(pipeline.model.find("text_encoder_2")->weights, encoder->weights);
  CHECK(pipeline.components[0].graph.initializers.size() < encoder->weights.size());
}

TEST_CASE("a folder that is written without changes has the bytes of its base") {
  for (const char* const name : {"optimum", "script", "optimum_xl"}) {
    const support::temp_folder folder;
    const ts::onnx_pipeline base = opened(data(name));
    REQUIRE(write(base, base.model, folder / "out") == "written");
    CHECK(differing(files_of(data(name)), files_of(folder.path() / "out")).empty());
  }
}

TEST_CASE("a LoRA merged into an export is the LoRA merged into the model, bit by bit") {
  ts::package model = original();
  const ts::merge_account wanted = merge(model);
  for (const char* const name : {"optimum", "script"}) {
    const support::temp_folder folder;
    const ts::onnx_pipeline base = opened(data(name));
    ts::package merged = base.model;
    const ts::merge_account account = merge(merged);
    CHECK(account.adapters[0].applied == account.adapters[0].modules.size());
    CHECK(account.weights.size() == wanted.weights.size());
    std::vector<ts::changed_weight> changed;
    for (const ts::merged_weight& w : account.weights) changed.push_back({w.component, w.name});
    REQUIRE(write(base, merged, folder / "out", {.verify = true}, changed) == "written");
    const ts::onnx_pipeline written = opened(folder / "out");
    for (const char* const part : {"text_encoder", "unet"}) check_same(written.model.find(part)->weights, model.find(part)->weights);
    const std::set<std::string> graphs = std::string(name) == "script" ? std::set<std::string>{"text_encoder/model.onnx", "unet/weights.pb", "unet/model.onnx"}
                                                                       : std::set<std::string>{"text_encoder/model.onnx", "unet/model.onnx"};
    for (const std::string& file : differing(files_of(data(name)), files_of(folder.path() / "out"))) CHECK(graphs.count(file) == 1);
    for (const ts::onnx_component& c : written.components)
      for (const ts::onnx_component& b : base.components)
        if (b.name == c.name) CHECK(b.graph.nodes.size() == c.graph.nodes.size());
    for (const ts::merged_weight& w : account.weights) CHECK(w.recipe->norms().change > 0);
  }
}

TEST_CASE("one of several parameters in one initializer changes alone") {
  const support::temp_folder folder;
  const ts::onnx_pipeline base = opened(data("optimum_xl"));
  ts::package model = base.model;
  const std::string changed = "text_model.encoder.layers.1.layer_norm1.weight", also = "text_model.encoder.layers.0.self_attn.k_proj.bias";
  fill(model, "text_encoder_2", changed, 0x40);
  fill(model, "text_encoder_2", also, 0x41);
  REQUIRE(write(base, model, folder / "out", {}, {{"text_encoder_2", changed}}) == "written");
  const ts::onnx_pipeline written = opened(folder / "out");
  check_same(written.model.find("text_encoder_2")->weights, model.find("text_encoder_2")->weights);
  CHECK(written.components[0].graph.initializers.size() == base.components[0].graph.initializers.size() + 2);
  CHECK(written.components[0].graph.nodes.size() == base.components[0].graph.nodes.size());
}

TEST_CASE("added tokens grow the embedding, and the pooled output is taken at the end marker") {
  for (const char* const name : {"optimum", "optimum_xl"}) {
    const support::temp_folder folder;
    const std::string part = name == std::string("optimum") ? "text_encoder" : "text_encoder_2";
    const ts::onnx_pipeline base = opened(data(name));
    ts::package model = base.model;
    fill(model, part, "text_model.embeddings.token_embedding.weight", 0x3F, 3);
    model.find(part)->config.set("vocab_size", 303);
    REQUIRE(write(base, model, folder / "out") == "written");
    const ts::onnx_pipeline written = opened(folder / "out");
    CHECK(written.model.find(part)->weights.find("text_model.embeddings.token_embedding.weight")->tensor.shape() == ts::shape_type{303, 16});
    check_same(written.model.find(part)->weights, model.find(part)->weights);
    CHECK(*written.model.find(part)->config.find("vocab_size")->as_integer() == 303);
    const ts::onnx_model& graph = written.components[0].graph;
    REQUIRE(graph.nodes.size() == base.components[0].graph.nodes.size() + 3);
    std::size_t pooled = 0;
    while (!graph.is(graph.nodes[pooled], "ArgMax")) ++pooled;
    CHECK(graph.input_of(graph.nodes[pooled], 0) == "/pooled_at_eos_0/Cast_output_0");
    CHECK(graph.operator_of(graph.nodes[pooled - 1]) == "Cast");
    CHECK(graph.operator_of(graph.nodes[pooled - 2]) == "Equal");
    const std::string bytes = text_of(folder.path() / "out" / part / "model.onnx");
    CHECK(bytes.find(support::field(2, 6) + support::field(9, std::string("\x2B\x01\0\0", 4))) != bytes.npos);  // 299, of i32
    // A second time there is nothing to repair.
    ts::package again = written.model;
    fill(again, part, "text_model.embeddings.token_embedding.weight", 0x3E, 1);
    REQUIRE(write(written, again, folder / "again") == "written");
    CHECK(opened(folder / "again").components[0].graph.nodes.size() == graph.nodes.size());
  }
}

TEST_CASE("a tensor that grows in an external file moves those behind it by whole pages") {
  const support::temp_folder folder;
  const auto external = [](const std::string& name, std::vector<std::int64_t> dims, int offset) {
    return support::onnx_tensor({.name = name, .dims = std::move(dims), .external = {{"location", "data.bin_"}, {"offset", std::to_string(offset)}, {"other", "x"}}});
  };
  const support::onnx_parts parts{
      .tensors = {external("text_model.final_layer_norm.weight", {4}, 0), external("text_model.embeddings.token_embedding.weight", {3, 4}, 32),
                  external("text_model.final_layer_norm.bias", {4}, 80)},
      .nodes = {support::onnx_node({.operation = "Gather", .name = "/text_model/embeddings/token_embedding/Gather",
                                    .inputs = {"text_model.embeddings.token_embedding.weight", "input_ids"}, .outputs = {"e"}}),
                support::onnx_node({.operation = "LayerNormalization", .name = "/text_model/final_layer_norm/LayerNormalization",
                                    .inputs = {"e", "text_model.final_layer_norm.weight", "text_model.final_layer_norm.bias"}, .outputs = {"y"}})},
      .inputs = {support::onnx_value("input_ids", 7)}};
  const std::string path = folder_of(folder, parts);
  std::string bytes(96, 'x');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i);
  std::ofstream(folder.path() / "text_encoder" / "data.bin_", std::ios::binary) << bytes;
  const ts::onnx_pipeline base = opened(path);
  ts::package model = base.model;
  fill(model, "text_encoder", "text_model.embeddings.token_embedding.weight", 0x3F, 2);
  const support::temp_folder out;
  REQUIRE(write(base, model, out / "out") == "written");
  const ts::onnx_pipeline written = opened(out / "out");
  check_same(written.model.find("text_encoder")->weights, model.find("text_encoder")->weights);
  const ts::onnx_model& graph = written.components[0].graph;
  CHECK(graph.initializers[0].offset == 0);
  CHECK(graph.initializers[1].offset == 32);
  CHECK(graph.initializers[2].offset == 80 + 4096);
  CHECK(graph.notes.size() == 3);  // the unknown key is still there
  CHECK(fs::file_size(out.path() / "out" / "text_encoder" / "data.bin_") == 96 + 4096);
}

TEST_CASE("external data in a safetensors file: changed in place, and beside it what grows") {
  const support::temp_folder folder, out;
  const auto external = [](const std::string& name, std::vector<std::int64_t> dims, int offset) {
    return support::onnx_tensor({.name = name, .dims = std::move(dims), .external = {{"location", "model.safetensors"}, {"offset", std::to_string(offset)}}});
  };
  const support::onnx_parts parts{
      .tensors = {external("text_model.embeddings.token_embedding.weight", {3, 4}, 8), external("text_model.final_layer_norm.weight", {4}, 56)},
      .nodes = {support::onnx_node({.operation = "Gather", .name = "g", .inputs = {"text_model.embeddings.token_embedding.weight", "input_ids"}, .outputs = {"e"}}),
                support::onnx_node({.operation = "LayerNormalization", .name = "n", .inputs = {"e", "text_model.final_layer_norm.weight"}, .outputs = {"y"}})},
      .inputs = {support::onnx_value("input_ids", 7)}};
  const std::string path = folder_of(folder, parts), container = std::string(8, 'h') + std::string(64, 'v');
  std::ofstream(folder.path() / "text_encoder" / "model.safetensors", std::ios::binary) << container;
  const ts::onnx_pipeline base = opened(path);
  ts::package model = base.model;
  fill(model, "text_encoder", "text_model.final_layer_norm.weight", 0x40);
  REQUIRE(write(base, model, out / "same") == "written");
  CHECK(text_of(out.path() / "same" / "text_encoder" / "model.safetensors") == container.substr(0, 56) + std::string(16, 0x40));
  CHECK(text_of(out.path() / "same" / "text_encoder" / "model.onnx") == text_of(folder.path() / "text_encoder" / "model.onnx"));
  fill(model, "text_encoder", "text_model.embeddings.token_embedding.weight", 0x3F, 1);
  REQUIRE(write(base, model, out / "grown") == "written");
  const ts::onnx_pipeline written = opened(out / "grown");
  check_same(written.model.find("text_encoder")->weights, model.find("text_encoder")->weights);
  CHECK(fs::file_size(out.path() / "grown" / "text_encoder" / "model.safetensors") == container.size());
  CHECK(fs::file_size(out.path() / "grown" / "text_encoder" / "model.onnx_data") == 64);
}

TEST_CASE("linear layers in every form: MatMul, Gemm, through Transpose and Cast, stored twice") {
  const support::temp_folder folder, out;
  const auto matrix = [](const std::string& name, std::vector<std::int64_t> dims) {
    std::string bytes;
    for (int i = 0; i < dims[0] * dims[1]; ++i) bytes += std::string{static_cast<char>(i), 0, 0, 0x3F};
    return support::onnx_tensor({.name = name, .dims = dims, .data = bytes});
  };
  const auto node = [](const std::string& op, const std::string& name, std::vector<std::string> in, const std::string& to, std::vector<std::string> attributes = {}) {
    return support::onnx_node({.operation = op, .name = name, .inputs = std::move(in), .outputs = {to}, .attributes = std::move(attributes)});
  };
  const std::string turn = support::field(1, "perm") + support::field(8, 1) + support::field(8, 0) + support::field(20, 7);
  const support::onnx_parts parts{
      .tensors = {matrix("onnx::MatMul_1", {2, 3}), matrix("unet.a.two.weight", {3, 2}), matrix("a.three.weight", {2, 3}), matrix("a.four.weight", {3, 2}),
                  matrix("a.four.copy", {2, 3}), support::onnx_tensor({.name = "table", .dims = {2, 2}, .data = floats(4)})},
      .nodes = {node("MatMul", "/a/one/MatMul", {"x", "onnx::MatMul_1"}, "1"),
                node("Gemm", "Gemm_7", {"x", "unet.a.two.weight"}, "2", {support::onnx_integer("transB", 1)}), node("Gemm", "/a/three/Gemm", {"x", "a.three.weight"}, "3"),
                node("Transpose", "t", {"a.four.weight"}, "t4", {turn}), node("Cast", "c", {"t4"}, "c4", {support::onnx_integer("to", 1)}),
                node("MatMul", "/a/four/MatMul", {"x", "c4"}, "4"), node("MatMul", "/a/four/MatMul_1", {"x", "a.four.copy"}, "5"), node("MatMul", "other", {"table", "x"}, "6")},
      .inputs = {support::onnx_value("x")}};
  const ts::onnx_pipeline base = opened(folder_of(folder, parts, "unet"));
  std::map<std::string, ts::shape_type> found;
  for (const auto& e : base.model.find("unet")->weights.entries()) found[e.name] = e.tensor.shape();
  const std::map<std::string, ts::shape_type> wanted{{"a.one.weight", {3, 2}}, {"a.two.weight", {3, 2}}, {"a.three.weight", {3, 2}}, {"a.four.weight", {3, 2}}};
  CHECK(found == wanted);
  REQUIRE(base.components[0].parameters.unnamed.size() == 1);
  CHECK(base.components[0].graph.initializers[base.components[0].parameters.unnamed[0]].name == "table");
  CHECK(base.components[0].parameters.find("a.four.weight")->uses.size() == 2);
  ts::package model = base.model;
  for (const auto& [name, shape] : wanted) {
    std::vector<std::byte> bytes(24);
    for (std::size_t i = 0; i < 6; ++i) bytes[4 * i] = static_cast<std::byte>(i + 1), bytes[4 * i + 3] = static_cast<std::byte>(name[2]);
    model.find("unet")->weights.replace(name, ts::in_memory({name, ts::dtype::f32, shape}, bytes));
  }
  REQUIRE(write(base, model, out / "out") == "written");
  const ts::onnx_pipeline written = opened(out / "out");
  check_same(written.model.find("unet")->weights, model.find("unet")->weights);
  const ts::onnx_model& graph = written.components[0].graph;
  const auto first_bytes = [&](std::size_t i) {
    std::string text;
    const auto bytes = values(graph.initializers[i].tensor);
    for (std::size_t k = 0; k < 6; ++k) text += static_cast<char>('0' + static_cast<int>(bytes[4 * k]));
    return text;
  };
  CHECK(first_bytes(0) == "135246");  // [in, out]
  CHECK(first_bytes(1) == "123456");
  CHECK(first_bytes(2) == "135246");
  CHECK(first_bytes(3) == "123456");
  CHECK(first_bytes(4) == "135246");
}

TEST_CASE("LRA-13: quantized and fused graphs are refused by what they hold") {
  const auto graph = [](const std::string& op, const std::string& domain) {
    return support::onnx_parts{.tensors = {support::onnx_tensor({.name = "a.weight", .dims = {2, 2}, .data = floats(4)})},
                               .nodes = {support::onnx_node({.operation = op, .name = "/a/" + op, .domain = domain, .inputs = {"x", "a.weight"}, .outputs = {"y"}}),
                                         support::onnx_node({.operation = op, .name = "/b/" + op, .domain = domain, .inputs = {"y", "a.weight"}, .outputs = {"z"}})},
                               .inputs = {support::onnx_value("x")}};
  };
  for (const auto& [op, domain] : {std::pair<std::string, std::string>{"DequantizeLinear", ""}, {"DynamicQuantizeLinear", ""}, {"QLinearMatMul", ""}, {"MatMulInteger", ""},
                                   {"MatMulNBits", "com.microsoft"}, {"QAttention", "com.microsoft"}}) {
    const support::temp_folder folder;
    const std::string path = folder_of(folder, graph(op, domain), "unet");
    CHECK(refusal(path) == "UNS " + path + "/unet/model.onnx: the graph is quantized: nothing can be merged into its weights (expected floating-point weights, found 2 of '" +
                               op + "'); merge into the model first and quantize afterwards");
  }
  for (const std::string op : {"Attention", "FusedMatMul"}) {
    const support::temp_folder folder;
    const std::string path = folder_of(folder, graph(op, "com.microsoft"), "unet");
    CHECK(refusal(path) == "UNS " + path + "/unet/model.onnx: an optimizer has fused the graph: its operators pack the weights of several layers (expected operators of "
                               "ONNX, found 2 of 'com.microsoft." + op + "'); merge into the export before it was optimized");
  }
  const support::temp_folder folder;
  CHECK(refusal(folder.path().string()) == "MIS " + folder.path().string() +
                                               ": the folder is no pipeline of ONNX graphs (expected unet/model.onnx or text_encoder/model.onnx, found a folder without them)");
  const std::string path = folder_of(folder, {.nodes = {support::onnx_node({.inputs = {"x"}, .outputs = {"y"}})}, .inputs = {support::onnx_value("x")}}, "unet");
  CHECK(refusal(path) == "UNS " + path + "/unet/model.onnx: no initializer of the graph can be matched with a parameter (expected initializers or nodes that are named "
                             "after modules); export the model again with a current exporter");
}

TEST_CASE("changes that have no place are refused, and nothing is left behind") {
  const support::temp_folder folder;
  const std::string path = data("optimum"), name = "conv_in.weight", out = folder / "out";
  const ts::onnx_pipeline base = opened(path);
  CHECK(write(base, base.model, out, {}, {{"vae", name}}) == "MIS " + path + ": tensor 'vae.conv_in.weight': a changed weight has no place in the ONNX folder (expected a "
                                                                            "parameter of one of its graphs)");
  const std::string place = path + "/unet/model.onnx: parameter 'conv_in.weight': ";
  ts::package model = base.model;
  model.find("unet")->weights.replace(name, *ts::cast(model.find("unet")->weights.find(name)->tensor, ts::dtype::f16));
  CHECK(write(base, model, out) == "USE " + place + "the graph computes with this parameter in another type (expected f32, found f16); keep the type, or convert the original "
                                                    "model anew");
  model = base.model;
  fill(model, "unet", name, 1, 1);
  CHECK(write(base, model, out) == "MIS " + place + "the changed parameter has another shape (expected [8, 4, 3, 3], found [9, 4, 3, 3])");
  fs::create_directory(out);
  CHECK(write(base, base.model, out) == "PTH " + out + ": the output folder already exists; pass --force to replace it, or choose another path");
  CHECK(write(base, base.model, out, {.dry_run = true}) == "written");
  CHECK(fs::is_empty(out));
  CHECK(write(base, base.model, out, {.force = true}) == "written");
  CHECK(fs::exists(folder.path() / "out" / "unet" / "model.onnx"));
  const ts::onnx_pipeline copied = opened(out);
  CHECK(write(copied, copied.model, out, {.force = true}).substr(0, 5) == "DENY ");
}

TEST_CASE("EXT-17: an output that is there already is replaced whole, never continued") {
  const support::temp_folder folder;
  const ts::onnx_pipeline base = opened(data("script"));
  ts::package model = base.model;
  fill(model, "unet", "conv_in.weight", 0x3F);
  REQUIRE(write(base, model, folder / "fresh") == "written");
  fs::create_directories(folder.path() / "out" / "unet");
  std::ofstream(folder.path() / "out" / "unet" / "weights.pb", std::ios::binary) << std::string(200'000, 'o');
  std::ofstream(folder.path() / "out" / "old") << "old";
  REQUIRE(write(base, model, folder / "out", {.force = true}) == "written");
  CHECK(differing(files_of(folder.path() / "fresh"), files_of(folder.path() / "out")).empty());
}

TEST_CASE("two parameters that a graph computes once cannot be told apart") {
  const support::temp_folder folder, out;
  const support::onnx_parts parts{
      .tensors = {support::onnx_tensor({.name = "shared", .type = 10, .dims = {2, 2}, .data = "12345678"})},
      .nodes = {support::onnx_node({.operation = "Cast", .name = "c", .inputs = {"shared"}, .outputs = {"wide"}, .attributes = {support::onnx_integer("to", 1)}}),
                support::onnx_node({.operation = "MatMul", .name = "/a/MatMul", .inputs = {"x", "wide"}, .outputs = {"1"}}),
                support::onnx_node({.operation = "MatMul", .name = "/b/MatMul", .inputs = {"x", "wide"}, .outputs = {"2"}})},
      .inputs = {support::onnx_value("x")}};
  const std::string path = folder_of(folder, parts, "unet");
  const ts::onnx_pipeline base = opened(path);
  REQUIRE(base.model.find("unet")->weights.size() == 2);
  ts::package model = base.model;
  fill(model, "unet", "a.weight", 1);
  CHECK(write(base, model, out / "out") == "UNS " + path + "/unet/model.onnx: parameter 'a.weight': the graph computes this parameter and 'b.weight' as one value (expected a "
                                               "value for each); export the model again without removing equal values");
}

TEST_CASE("names that ONNX Runtime's optimisations leave, and several layers under the name of the module around them") {
  const support::temp_folder folder;
  const auto matmul = [](const std::string& name, const std::string& weight) {
    return support::onnx_node({.operation = "MatMul", .name = name, .inputs = {"x", weight}, .outputs = {name + "_out"}});
  };
  const auto matrix = [](const std::string& name, char fill) { return support::onnx_tensor({.name = name, .dims = {2, 3}, .data = floats(6, fill)}); };
  const support::onnx_parts parts{
      .tensors = {matrix("onnx::MatMul_1", 'a'), matrix("onnx::MatMul_2", 'b'), matrix("onnx::MatMul_3", 'c'), matrix("onnx::MatMul_4", 'd'),
                  matrix("onnx::MatMul_5", 'd'), matrix("untold.weight", 'e')},
      .nodes = {support::onnx_node({.operation = "Gemm", .name = "/a/q_proj/MatMul/MatMulAddFusion", .inputs = {"x", "onnx::MatMul_1"}, .outputs = {"1"}}),
                matmul("/a/attn/MatMul_q", "onnx::MatMul_2"), matmul("/a/attn/MatMul_k", "onnx::MatMul_3"),  // two layers
                matmul("/a/twice/MatMul", "onnx::MatMul_4"), matmul("/a/twice/MatMul_1", "onnx::MatMul_5"),  // one layer, stored twice
                matmul("first", "untold.weight"), matmul("second", "untold.weight")},
      .inputs = {support::onnx_value("x")}};
  ts::job run;
  const auto base = ts::open_onnx_pipeline(folder_of(folder, parts, "unet"), run);
  REQUIRE(base);
  std::set<std::string> names;
  for (const auto& e : base->model.find("unet")->weights.entries()) names.insert(e.name);
  CHECK(names == std::set<std::string>{"a.q_proj.weight", "a.twice.weight", "untold.weight"});
  CHECK(base->components[0].parameters.find("a.twice.weight")->uses.size() == 2);
  std::vector<std::string> warnings;
  for (const ts::note& n : run.notes)
    if (n.severity == ts::note::level::warning) warnings.push_back(n.text);
  REQUIRE(warnings.size() == 2);
  CHECK(warnings[0] == "matrices that several nodes read which do not tell their layers are taken for one parameter each: 'untold.weight'");
  CHECK(warnings[1] == "floating-point initializers that cannot be matched with parameters stay as they are: 'onnx::MatMul_2' [2, 3], 'onnx::MatMul_3' [2, 3]");
}

TEST_CASE("a weight that a branch reads, too, is not changed for the main graph alone") {
  const support::temp_folder folder, out;
  const std::string branch = support::onnx_graph(
      {.nodes = {support::onnx_node({.operation = "MatMul", .name = "inner", .inputs = {"x", "a.weight"}, .outputs = {"z"}})}, .outputs = {support::onnx_value("z")}});
  const support::onnx_parts parts{
      .tensors = {support::onnx_tensor({.name = "a.weight", .dims = {2, 2}, .data = floats(4)}), support::onnx_tensor({.name = "b.weight", .dims = {2, 2}, .data = floats(4)})},
      .nodes = {support::onnx_node({.operation = "MatMul", .name = "/a/MatMul", .inputs = {"x", "a.weight"}, .outputs = {"1"}}),
                support::onnx_node({.operation = "MatMul", .name = "/b/MatMul", .inputs = {"x", "b.weight"}, .outputs = {"2"}}),
                support::onnx_node({.operation = "If", .name = "choice", .inputs = {"c"}, .outputs = {"3"},
                                    .attributes = {support::field(1, "then_branch") + support::field(6, branch) + support::field(20, 5)}})},
      .inputs = {support::onnx_value("x"), support::onnx_value("c", 9)}};
  const std::string path = folder_of(folder, parts, "unet");
  const ts::onnx_pipeline base = opened(path);
  ts::package model = base.model;
  fill(model, "unet", "b.weight", 1);
  CHECK(write(base, model, out / "b") == "written");
  fill(model, "unet", "a.weight", 1);
  CHECK(write(base, model, out / "a") == "UNS " + path + "/unet/model.onnx: parameter 'a.weight': the parameter is read inside a branch or a loop of the graph, too "
                                             "(expected readers in the main graph alone, found 'a.weight'); export the model again without control flow");
  CHECK_FALSE(fs::exists(out.path() / "a"));
}

TEST_CASE("the pooled output is found whatever the input of ids is called, and what may be one is told") {
  const auto nodes_after = [](std::vector<std::string> inputs, const std::string& pooled, std::string& warning) {
    const support::temp_folder folder, out;
    const support::onnx_parts parts{
        .tensors = {support::onnx_tensor({.name = "text_model.embeddings.token_embedding.weight", .dims = {4, 2}, .data = floats(8)})},
        .nodes = {support::onnx_node({.operation = "Gather", .name = "/text_model/embeddings/token_embedding/Gather",
                                      .inputs = {"text_model.embeddings.token_embedding.weight", "tokens"}, .outputs = {"1"}}),
                  support::onnx_node({.operation = "Cast", .name = "c", .inputs = {pooled}, .outputs = {"2"}, .attributes = {support::onnx_integer("to", 6)}}),
                  support::onnx_node({.operation = "ArgMax", .name = "largest", .inputs = {"2"}, .outputs = {"3"}})},
        .inputs = std::move(inputs)};
    const ts::onnx_pipeline base = opened(folder_of(folder, parts));
    ts::package model = base.model;
    fill(model, "text_encoder", "text_model.embeddings.token_embedding.weight", 1, 2);
    ts::job run;
    const auto report = ts::write_onnx_pipeline(base, model, {}, out / "out", {}, run);
    REQUIRE(report);
    for (const ts::note& n : run.notes)
      if (n.severity == ts::note::level::warning) warning = n.text;
    return opened(out / "out").components[0].graph.nodes.size();
  };
  std::string warning;
  CHECK(nodes_after({support::onnx_value("tokens", 7)}, "tokens", warning) == 6);
  CHECK(warning.empty());
  // Two inputs of integers: which are the ids is not known.
  CHECK(nodes_after({support::onnx_value("tokens", 7), support::onnx_value("mask", 7)}, "tokens", warning) == 3);
  CHECK(warning == "the node 'largest' may take the pooled output at the largest id, which an added token would be; it was left as it is");
}

TEST_CASE("onnx-web's second UNet gets the same weights as the first") {
  const support::temp_folder folder;
  fs::copy(data("script"), folder.path() / "base", fs::copy_options::recursive);
  fs::copy(folder.path() / "base" / "unet", folder.path() / "base" / "cnet");
  const ts::onnx_pipeline base = opened(folder / "base");
  CHECK(base.model.components.size() == 2);
  CHECK(base.components.size() == 3);
  ts::package model = base.model;
  merge(model);
  REQUIRE(write(base, model, folder / "out") == "written");
  for (const char* const file : {"model.onnx", "weights.pb"}) {
    CHECK(text_of(folder.path() / "out" / "cnet" / file) == text_of(folder.path() / "out" / "unet" / file));
    CHECK((file[0] == 'm' || text_of(folder.path() / "out" / "cnet" / file) != text_of(folder.path() / "base" / "cnet" / file)));
  }
}

TEST_CASE("weights beside a graph that nobody refers to are left out once the graph changes") {
  const support::temp_folder folder;
  fs::copy(data("optimum"), folder.path() / "base", fs::copy_options::recursive);
  for (const char* const name : {"model_fp16.onnx", "diffusion_pytorch_model.safetensors", "notes.txt"}) std::ofstream(folder.path() / "base" / "unet" / name) << name;
  fs::create_directories(folder.path() / "base" / "safety_checker");
  std::ofstream(folder.path() / "base" / "safety_checker" / "model.onnx") << "kept";
  const ts::onnx_pipeline base = opened(folder / "base");
  ts::package model = base.model;
  REQUIRE(write(base, model, folder / "same") == "written");
  CHECK(differing(files_of(folder.path() / "base"), files_of(folder.path() / "same")).empty());
  fill(model, "unet", "conv_in.bias", 0);
  ts::job run;
  REQUIRE(ts::write_onnx_pipeline(base, model, {}, folder / "out", {}, run));
  CHECK(differing(files_of(folder.path() / "base"), files_of(folder.path() / "out")) ==
        std::set<std::string>{"unet/diffusion_pytorch_model.safetensors", "unet/model.onnx", "unet/model_fp16.onnx"});
  std::size_t warnings = 0;
  for (const ts::note& n : run.notes) warnings += n.severity == ts::note::level::warning;
  CHECK(warnings == 2);
}
