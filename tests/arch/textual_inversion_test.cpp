// SPDX-License-Identifier: MIT
//
// Textual Inversion in every form that trainers save it, from files that their libraries wrote.
#include <cstring>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/textual_inversion.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

std::string file(const std::string& name) { return support::data("embeddings/" + name).string(); }

std::vector<ts::textual_inversion> read(const std::string& name) {
  ts::job run;
  auto found = ts::open_textual_inversion(file(name), run);
  INFO((found ? std::string() : found.error().message()));
  REQUIRE(found);
  return std::move(*found);
}

std::string refusal(const std::string& path) {
  ts::job run;
  const auto found = ts::open_textual_inversion(path, run);
  return found ? "accepted" : found.error().message();
}

/// What tests/data/make/embeddings.py puts there.
double element(std::size_t i, std::size_t j, std::size_t seed) { return (static_cast<double>((64 * i + 5 * j + seed) % 33) - 16) / 32; }

/// True if the rows of a part are vectors `from`, `from` + 1, … of the formula.
bool holds(const ts::embedding_vectors& part, std::size_t from, std::size_t seed) {
  const auto bytes = ts::materialize(part.rows, {});
  REQUIRE(bytes);
  std::vector<double> values(part.count * part.width);
  ts::convert_elements(part.rows.type(), bytes->data(), ts::dtype::f64, reinterpret_cast<std::byte*>(values.data()), values.size());
  for (std::size_t i = 0; i < part.count; ++i)
    for (std::size_t j = 0; j < part.width; ++j)
      if (values[i * part.width + j] != element(from + i, j, seed)) return false;
  return true;
}

void check_one(const std::string& name, const std::string& format, const std::string& token, std::size_t count) {
  INFO(name);
  const auto found = read(name);
  REQUIRE(found.size() == 1);
  CHECK(found[0].format == format);
  CHECK(found[0].name == token);
  CHECK(found[0].file == file(name));
  CHECK(found[0].tensors.size() == 1);
  REQUIRE(found[0].parts.size() == 1);
  CHECK(found[0].parts[0].encoder.empty());
  CHECK(found[0].parts[0].count == count);
  CHECK(found[0].parts[0].width == 64);
  CHECK(found[0].parts[0].rows.shape() == ts::shape_type{count, 64});
  CHECK(holds(found[0].parts[0], 0, 0));
}

/// A file of these shapes, as if it had been opened.
ts::package package_of(const std::vector<std::pair<std::string, ts::tensor_info>>& tensors, std::string container = "safetensors") {
  ts::package out;
  out.source = "folder/word.safetensors";
  out.container = std::move(container);
  ts::component& whole = out.components.emplace_back();
  for (const auto& [name, info] : tensors)
    REQUIRE(whole.weights.add(name, ts::in_memory(info, std::vector<std::byte>(info.bytes())), name));
  return out;
}
std::string refusal_of(const std::vector<std::pair<std::string, ts::tensor_info>>& tensors) {
  const auto found = ts::read_textual_inversions(package_of(tensors));
  return found ? "accepted" : found.error().message();
}
ts::tensor_info of(ts::shape_type shape, ts::dtype type = ts::dtype::f32) { return {"", type, std::move(shape)}; }

}  // namespace

TEST_CASE("every form of one list of vectors is read", "[arch]") {
  check_one("a1111.pt", "A1111", "a1111", 2);
  check_one("a1111_legacy.pt", "A1111", "a1111_legacy", 2);
  check_one("a1111_parameter.pt", "A1111", "a1111_parameter", 2);
  check_one("a1111_nested.pt", "A1111", "a1111_nested", 2);
  check_one("kohya.pt", "kohya", "kohya", 3);
  check_one("kohya.safetensors", "kohya", "kohya", 3);
  check_one("transposed.pt", "kohya", "transposed", 3);
  check_one("concept.safetensors", "diffusers", "<cat-toy>", 1);
  check_one("concept_f16.safetensors", "diffusers", "<cat-toy>", 2);
  check_one("learned_embeds.bin", "diffusers", "<cat>", 1);
  check_one("bare.pt", "bare tensor", "bare", 2);
  check_one("batch.pt", "bare tensor", "batch", 2);
}

TEST_CASE("an A1111 file tells its name, its steps and its model; the file's name is the trigger word", "[arch]") {
  for (const char* name : {"a1111.pt", "a1111_parameter.pt"}) {
    INFO(name);
    CHECK(read(name)[0].notes == std::vector<std::string>{"the file calls it 'cat-in-training'", "it was trained for 499 steps",
                                                          "it was trained on 'v1-5-pruned-emaonly'"});
  }
}

TEST_CASE("the halves of an SDXL embedding belong to their encoders", "[arch]") {
  for (const char* name : {"sdxl.safetensors", "sdxl.pt", "pair", "bundled_sdxl.safetensors"}) {
    INFO(name);
    const auto found = read(name);
    REQUIRE(found.size() == 1);
    CHECK(found[0].name == (std::string(name) == "pair" ? "<cat>" : std::string(name) == "bundled_sdxl.safetensors" ? "cat" : "sdxl"));
    REQUIRE(found[0].parts.size() == 2);
    CHECK(found[0].tensors.size() == 2);
    for (const ts::embedding_vectors& part : found[0].parts) {
      CHECK(part.encoder == (part.width == 64 ? "text_encoder" : "text_encoder_2"));
      CHECK(part.count == (std::string(name) == "pair" ? 1 : 2));
      CHECK(holds(part, 0, part.width == 64 ? 0 : 7));
    }
  }
  const auto half = read("pair/learned_embeds_2.safetensors");
  REQUIRE(half[0].parts.size() == 1);
  CHECK(half[0].parts[0].encoder == "text_encoder_2");
}

TEST_CASE("several tokens of one file are several embeddings, also beside the modules of a LoRA", "[arch]") {
  for (const char* name : {"style.ti.pt", "cloneofsimo.safetensors"}) {
    INFO(name);
    const auto found = read(name);
    REQUIRE(found.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(found[i].name == (i == 0 ? "<s1>" : "<s2>"));
      CHECK(found[i].format == "cloneofsimo");
      CHECK(holds(found[i].parts[0], i, 0));
    }
  }
  const auto bundled = read("bundled.safetensors");
  REQUIRE(bundled.size() == 2);
  CHECK(bundled[0].name == "cat");
  CHECK(bundled[0].tensors == std::vector<std::string>{"bundle_emb.cat.string_to_param.*"});
  CHECK(holds(bundled[0].parts[0], 0, 0));
  CHECK(bundled[1].name == "dog");
  CHECK(bundled[1].parts[0].count == 1);
  CHECK(holds(bundled[1].parts[0], 0, 9));

  ts::job run;
  const auto adapter = ts::open_weights(file("concept.safetensors"), {}, run);
  REQUIRE(adapter);
  CHECK(ts::read_bundled_embeddings(*adapter)->empty());
}

TEST_CASE("tensors that are no vectors are named and nothing is guessed", "[arch]") {
  CHECK(refusal_of({{"emb_params", of({2, 3, 64})}}) ==
        "MIS folder/word.safetensors: tensor 'emb_params': an embedding has a shape that is no list of vectors (expected [d], [n, d] or [1, n, d], found "
        "[2, 3, 64])");
  CHECK(refusal_of({{"emb_params", of({})}}).find("MIS folder/word.safetensors: tensor 'emb_params': an embedding has a shape") == 0);
  CHECK(refusal_of({{"emb_params", of({0, 64})}}).find("MIS ") == 0);
  CHECK(refusal_of({{"emb_params", of({2, 64}, ts::dtype::i64)}}) ==
        "UNS folder/word.safetensors: tensor 'emb_params': an embedding is of a type that cannot be computed with (expected a floating-point type, found i64)");
  CHECK(refusal_of({{"string_to_param.*", of({2, 64})}, {"string_to_param.+", of({2, 64})}}) ==
        "MIS folder/word.safetensors: tensor 'string_to_param.+': the embedding has several lists of vectors (expected one entry in string_to_param, found also "
        "'string_to_param.*')");
  CHECK(refusal_of({{"lora_unet_x.lora_up.weight", of({8, 4})}, {"lora_unet_x.lora_down.weight", of({4, 8})}}) ==
        "UNS folder/word.safetensors: the file holds no Textual Inversion embedding (expected string_to_param, emb_params, clip_l and clip_g, or one tensor "
        "named as its token, found 2 tensors: 'lora_unet_x.lora_up.weight', 'lora_unet_x.lora_down.weight')");
  CHECK(refusal_of({}).find("found no tensors)") != std::string::npos);
  CHECK(refusal_of({{"bundle_emb.cat.other", of({2, 64})}}) ==
        "UNS folder/word.safetensors: tensor 'bundle_emb.cat.other': an embedding inside the adapter has a form that is not known (expected "
        "bundle_emb.NAME.string_to_param.*, .emb_params, .clip_l or .clip_g, found 'bundle_emb.cat.other')");
  CHECK(refusal_of({{"bundle_emb.cat.emb_params", of({64})}, {"bundle_emb.cat.string_to_param.*", of({64})}}).find("vectors for one text encoder twice") !=
        std::string::npos);
}

TEST_CASE("what else lies in a file is counted", "[arch]") {
  const auto found = ts::read_textual_inversions(package_of({{"clip_l", of({2, 64})}, {"clip_g", of({2, 128})}, {"moments", of({3})}}));
  REQUIRE(found);
  REQUIRE(found->size() == 1);
  CHECK((*found)[0].name == "word");
  CHECK((*found)[0].notes == std::vector<std::string>{"1 other tensor of the file is no list of vectors and was ignored"});
}

TEST_CASE("folders hold learned_embeds, and nothing else is picked", "[arch]") {
  const support::temp_folder work;
  CHECK(refusal(work.path().string()) == "MIS " + work.path().string() +
                                             ": the folder holds no embedding (expected learned_embeds.safetensors or learned_embeds.bin, found neither); "
                                             "pass the file itself");
  std::filesystem::copy_file(file("pair/learned_embeds.safetensors"), work / "learned_embeds-steps-500.safetensors");
  std::filesystem::copy_file(file("pair/learned_embeds_2.safetensors"), work / "learned_embeds_2-steps-500.safetensors");
  ts::job run;
  const auto found = ts::open_textual_inversion(work / "learned_embeds-steps-500.safetensors", run);
  REQUIRE(found);
  REQUIRE(found->size() == 1);
  CHECK((*found)[0].parts.size() == 2);
  REQUIRE(run.notes.size() == 1);
  CHECK(run.notes[0].text == "the second text encoder's vectors are taken from '" + (work / "learned_embeds_2-steps-500.safetensors") + "'");
  std::filesystem::remove(work / "learned_embeds_2-steps-500.safetensors");
  std::filesystem::copy_file(file("concept.safetensors"), work / "learned_embeds_2-steps-500.safetensors");
  CHECK(refusal(work / "learned_embeds-steps-500.safetensors") == "MIS " + (work / "learned_embeds_2-steps-500.safetensors") +
        ": the two halves of an embedding are for different tokens (expected '<cat>', found '<cat-toy>')");
}
