// SPDX-License-Identifier: MIT
//
// merge-embedding from end to end: into every form of a model; tokens, ids and rows; what is refused.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/adapters.hpp"
#include "examples/run.hpp"
#include "faults/convert.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;
using faults::tensors_of;

constexpr const char* table = "text_model.embeddings.token_embedding.weight";

std::vector<std::size_t> table_shape(const std::string& base, const std::string& encoder = "text_encoder") { return shapes_of(base, encoder)[table]; }

/// The bytes of a component's table of token embeddings, f32.
std::string table_bytes(const std::string& folder, const std::string& encoder = "text_encoder") {
  const auto parts = faults::read_parts(fs::path(folder) / encoder / "model.safetensors");
  const auto& range = parts.header[table]["data_offsets"];
  return parts.data.substr(range[0].get<std::size_t>(), range[1].get<std::size_t>() - range[0].get<std::size_t>());
}

strings tokens_in(const nlohmann::json& report, const std::string& encoder = "text_encoder") {
  strings out;
  for (const auto& token : report["tokens"])
    if (token["encoder"] == encoder) out.push_back(token["token"]);
  return out;
}

}  // namespace

TEST_CASE("a folder gets rows, tokens and a larger vocabulary; everything else stays") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers");
  const auto shape = table_shape(base);
  const std::string cat = learned_embeds(work / "cat.safetensors", "<cat>", 2, shape[1]);
  const auto report = report_of("merge-embedding", {base, work / "out", "--embedding", cat, "--verify-output"});
  CHECK(report["form"] == "diffusers folder");
  CHECK(tokens_in(report) == strings{"<cat>", "<cat>_1"});
  CHECK(report["tokens"][0]["id"] == shape[0]);
  CHECK(report["tokens"][1]["id"] == shape[0] + 1);
  CHECK(table_bytes(work / "out") == table_bytes(base) + floats(2 * shape[1], 7, 0.02F));
  CHECK(nlohmann::json::parse(read_text(work / "out/text_encoder/config.json"))["vocab_size"] == shape[0] + 2);
  const auto added = nlohmann::json::parse(read_text(work / "out/tokenizer/added_tokens.json"));
  CHECK(added == nlohmann::json{{"<cat>", shape[0]}, {"<cat>_1", shape[0] + 1}});
  auto before = contents(base), after = contents(work / "out");
  for (const std::string name : {"text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer_config.json"}) before.erase(name), after.erase(name);
  after.erase("tokenizer/added_tokens.json");
  CHECK((after == before));
}

TEST_CASE("tokens by rule, a token and a strength of the command line, several embeddings") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers");
  const std::size_t width = table_shape(base)[1];
  const std::string cat = learned_embeds(work / "cat.safetensors", "<cat>", 2, width), dog = learned_embeds(work / "dog.safetensors", "<dog>", 0, width, 8);
  CHECK(tokens_in(report_of("merge-embedding", {base, work / "kohya", "--embedding", cat + ":puss", "--rule", "kohya"})) == strings{"puss", "puss1"});
  CHECK(tokens_in(report_of("merge-embedding", {base, work / "web", "--embedding", cat + ":puss", "--rule", "onnx-web"})) ==
        strings{"<cat>", "puss", "puss-all", "puss-0", "puss-1"});
  const auto two = report_of("merge-embedding", {base, work / "two", "--embedding", cat, "--embedding", dog + "::0.5"});
  CHECK(tokens_in(two) == strings{"<cat>", "<cat>_1", "<dog>"});
  const auto full = report_of("merge-embedding", {base, work / "full", "--embedding", cat, "--embedding", dog});
  CHECK(two["tokens"][2]["norm"].get<double>() == full["tokens"][2]["norm"].get<double>() / 2);
  fs::copy_file(cat, work / "a:b.safetensors");
  CHECK(tokens_in(report_of("merge-embedding", {base, work / "colon", "--embedding", (work / "a:b.safetensors") + ":<x>:2"})) == strings{"<x>", "<x>_1"});
}

TEST_CASE("a checkpoint keeps its form; its metadata tells the tokens, and the export of it knows them") {
  const std::string form = GENERATE(as<std::string>{}, "safetensors", "ckpt");
  const support::temp_folder work;
  const std::string folder = made_model(work.path(), "sd1", "diffusers"), base = made_model(work.path(), "sd1", form);
  const std::string cat = learned_embeds(work / "cat.safetensors", "<cat>", 2, table_shape(folder)[1]);
  const std::string out = work / ("out." + form);
  report_of("merge-embedding", {folder, work / "folder", "--embedding", cat});
  const auto report = report_of("merge-embedding", {base, out, "--embedding", cat});
  CHECK(report["form"] == (form == "ckpt" ? "torch" : "safetensors"));
  report_of("sd-to-onnx", {out, work / "one-onnx", "--tokenizer", folder + "/tokenizer"});
  report_of("sd-to-onnx", {work / "folder", work / "folder-onnx"});
  CHECK((model_files(work / "one-onnx") == model_files(work / "folder-onnx")));
  CHECK(read_text(work / "one-onnx/tokenizer/added_tokens.json") == read_text(work / "folder-onnx/tokenizer/added_tokens.json"));
}

TEST_CASE("SDXL: one file with both halves, or a pair of files; half an embedding is refused, or completed with zeros") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sdxl", "diffusers");
  const std::size_t first = table_shape(base)[1], second = table_shape(base, "text_encoder_2")[1];
  REQUIRE(first != second);
  safetensors_parts both;
  add_tensor(both, "clip_l", "F32", {2, first}, floats(2 * first, 1, 0.02F));
  add_tensor(both, "clip_g", "F32", {2, second}, floats(2 * second, 2, 0.02F));
  faults::write_parts(work / "style.safetensors", both);
  const auto report = report_of("merge-embedding", {base, work / "both", "--embedding", work / "style.safetensors"});
  CHECK(tokens_in(report, "text_encoder") == strings{"style", "style_1"});
  CHECK(tokens_in(report, "text_encoder_2") == strings{"style", "style_1"});
  CHECK(nlohmann::json::parse(read_text(work / "both/text_encoder_2/config.json"))["eos_token_id"] != 2);

  const std::string one = learned_embeds(work / "learned_embeds.safetensors", "style", 2, first, 1);
  const std::string two = learned_embeds(work / "learned_embeds_2.safetensors", "style", 2, second, 2);
  report_of("merge-embedding", {base, work / "pair", "--embedding", one + "," + two});
  CHECK((contents(work / "pair") == contents(work / "both")));
  report_of("merge-embedding", {base, work / "beside", "--embedding", one});  // the second half lies beside it
  CHECK((contents(work / "beside") == contents(work / "both")));
  fs::copy_file(one, work / "style_l.safetensors");
  const std::string left = work / "style_l.safetensors";
  const outcome half = programs::run("merge-embedding", {base, work / "half", "--embedding", left});
  CHECK(half.status == faults::status_of("MIS"));
  CHECK_FALSE(fs::exists(work / "half"));
  report_of("merge-embedding", {base, work / "zeros", "--embedding", left, "--zero-missing"});
  const std::string swapped = two + "," + one;
  CHECK(programs::run("merge-embedding", {base, work / "swapped", "--embedding", swapped}).status == faults::status_of("MIS"));
}

TEST_CASE("an ONNX folder gets what the export of the changed model has") {
  const std::string family = GENERATE(as<std::string>{}, "sd1", "sdxl");
  const std::string layout = GENERATE(as<std::string>{}, "optimum", "onnx-web");
  CAPTURE(family, layout);
  const support::temp_folder work;
  const std::string base = made_model(work.path(), family, "diffusers");
  safetensors_parts file;
  const std::size_t first = table_shape(base)[1];
  if (family == "sd1") {
    add_tensor(file, "emb_params", "F32", {2, first}, floats(2 * first, 1, 0.02F));
  } else {
    const std::size_t second = table_shape(base, "text_encoder_2")[1];
    add_tensor(file, "clip_l", "F32", {2, first}, floats(2 * first, 1, 0.02F));
    add_tensor(file, "clip_g", "F32", {2, second}, floats(2 * second, 2, 0.02F));
  }
  faults::write_parts(work / "style.safetensors", file);
  report_of("sd-to-onnx", {base, work / "base-onnx", "--layout", layout});
  report_of("sd-to-onnx", {base, work / "expected", "--layout", layout, "--embedding", work / "style.safetensors"});
  const auto report = report_of("merge-embedding", {work / "base-onnx", work / "out", "--embedding", work / "style.safetensors", "--verify-output"});
  CHECK(report["form"] == "ONNX folder");
  CHECK(tokens_in(report) == strings{"style", "style_1"});
  CHECK(read_text(work / "out/tokenizer/added_tokens.json") == read_text(work / "expected/tokenizer/added_tokens.json"));
  CHECK(read_text(work / "out/unet/model.onnx") == read_text(work / "base-onnx/unet/model.onnx"));
}

TEST_CASE("what is refused: widths, tokens that are there, files that are not, embeddings that are none") {
  const support::temp_folder work;
  const std::string base = made_model(work.path(), "sd1", "diffusers");
  const std::size_t width = table_shape(base)[1];
  const std::string cat = learned_embeds(work / "cat.safetensors", "<cat>", 2, width), wide = learned_embeds(work / "wide.safetensors", "<wide>", 1, 2 * width);
  const auto refused = [&](const strings& arguments, const std::string& code) {
    CAPTURE(arguments);
    const outcome run = programs::run("merge-embedding", arguments);
    INFO(run.err);
    CHECK(run.status == faults::status_of(code));
    CHECK_FALSE(fs::exists(work / "out"));
  };
  refused({base, work / "out", "--embedding", wide}, "MIS");
  refused({base, work / "out", "--embedding", cat, "--embedding", cat}, "MIS");
  refused({base, work / "out", "--embedding", work / "none.safetensors"}, "PTH");
  refused({base, work / "out", "--embedding", base + "/unet/diffusion_pytorch_model.safetensors"}, "UNS");
  refused({base, work / "out", "--embedding", cat + ":x:nan"}, "USE");
  refused({base, work / "out", "--embedding", cat + ":x:much"}, "USE");
  refused({base, base, "--embedding", cat, "--force"}, "USE");
  refused({base, work / "out"}, "USE");
  report_of("merge-embedding", {base, work / "once", "--embedding", cat});
  refused({work / "once", work / "out", "--embedding", cat}, "MIS");
}
