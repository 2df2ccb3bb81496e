// SPDX-License-Identifier: MIT
//
// merge_embedding in a chain: on the weights of folders and single files, and on graphs, with the same result.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/graph/verify.hpp"
#include "tensorsmith/stage/build.hpp"
#include "tensorsmith/stage/cast.hpp"
#include "tensorsmith/stage/lower_to.hpp"
#include "tensorsmith/stage/merge_embedding.hpp"
#include "tensorsmith/stage/readers.hpp"
#include "tensorsmith/stage/write_weights.hpp"

namespace ts = tensorsmith;
using namespace ts::tags;

namespace {

std::string model(const std::string& name) { return support::data(name).string(); }
std::string embedding(const std::string& name) { return support::data("embeddings/" + name).string(); }

template <class T>
const T& good(const ts::chain<T>& c) {
  INFO((c ? std::string() : c.error().message()));
  REQUIRE(c);
  return c.value();
}

/// Side files, configurations and the token embeddings' bytes of a bundle.
std::map<std::string, std::string> contents(const ts::bundle& in) {
  std::map<std::string, std::string> out;
  for (const ts::side_file& file : in.side_files) out[file.path] = ts::read_text(*file.bytes, 1 << 24).value();
  for (const ts::bundle_component& part : in.components) {
    out[part.name + "/config.json"] = ts::write_json(part.config);
    for (const ts::initializer& one : part.model.initializers) {
      const ts::value& edge = part.model[one.value];
      const auto* tensor = std::get_if<ts::tensor_ref>(&one.data);
      if (!tensor || edge.name != "text_model.embeddings.token_embedding.weight") continue;
      CHECK(edge.shape == ts::dims(tensor->shape().begin(), tensor->shape().end()));
      const auto bytes = ts::materialize(*tensor, {});
      REQUIRE(bytes);
      out[part.name] = ts::to_string(tensor->shape()) + std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size());
    }
  }
  return out;
}

}  // namespace

TEST_CASE("an embedding merged into weights or into their graphs gives the same pipeline", "[stage]") {
  const auto account = std::make_shared<ts::embedding_account>();
  const auto before = ts::open<diffusers_folder>(model("sd1/diffusers")) | ts::merge_embedding(ts::open<torch_file>(embedding("a1111.pt")), "<cat>") |
                      ts::build<sd15>(ts::interface::optimum);
  const auto behind = ts::open<diffusers_folder>(model("sd1/diffusers")) | ts::build<sd15>(ts::interface::optimum) |
                      ts::merge_embedding(ts::open<torch_file>(embedding("a1111.pt")), "<cat>", {.account = account});
  auto expected = contents(good(before)), found = contents(good(behind));
  CHECK(found.size() == expected.size());
  for (const auto& [name, text] : expected) {
    INFO(name);
    CHECK(found[name] == text);
  }
  CHECK(expected["text_encoder"].substr(0, 9) == "[302, 64]");
  CHECK(expected["tokenizer/added_tokens.json"] == "{\n  \"<cat>\": 300,\n  \"<cat>_1\": 301\n}\n");
  REQUIRE(account->tokens.size() == 2);
  CHECK(account->tokens[1].token == "<cat>_1");
  CHECK(account->tokens[1].id == 301);
  for (const ts::bundle_component& part : behind->components) CHECK(ts::verify(part.model));
  bool said = false;
  for (const ts::note& note : behind.notes()) said = said || (note.subject == "text_encoder" && note.text == "'<cat>' has the id 300");
  CHECK(said);
}

TEST_CASE("graphs that were lowered take an embedding, too", "[stage]") {
  const auto lowered = ts::open<diffusers_folder>(model("sd1/diffusers")) | ts::build<sd15>(ts::interface::optimum) | ts::lower_to<ort_cpu>() |
                       ts::merge_embedding(ts::open<safetensors_file>(embedding("concept.safetensors")));
  auto found = contents(good(lowered));
  CHECK(found["text_encoder"].substr(0, 9) == "[301, 64]");
  CHECK(found["tokenizer/added_tokens.json"] == "{\n  \"<cat-toy>\": 300\n}\n");
  for (const ts::bundle_component& part : lowered->components) CHECK(ts::verify(part.model));
}

TEST_CASE("a single file stays a single file, and its metadata carry the tokens to build and to later readers", "[stage]") {
  const support::temp_folder work;
  const std::string one = work / "one.safetensors";
  good(ts::open<torch_file>(model("sd1/sd1.ckpt")) | ts::merge_embedding(ts::open<torch_file>(embedding("kohya.pt")), "<cat>", {.strength = 0.5}) |
       ts::write<safetensors_file>(one));
  ts::open_options opening;
  opening.tokenizer_dir = model("sd1/diffusers/tokenizer");
  const auto same = ts::open<safetensors_file>(one) | ts::merge_embedding(ts::open<torch_file>(embedding("learned_embeds.bin")));  // "<cat>", too
  REQUIRE_FALSE(same);
  CHECK(same.error().message().find("the token '<cat>' is in the vocabulary already (expected a new token, found the file's metadata has it with the id 300)") !=
        std::string::npos);
  const auto again = ts::open<safetensors_file>(one) | ts::merge_embedding(ts::open<torch_file>(embedding("learned_embeds.bin")), "<dog>") |
                     ts::build<sd15>(ts::interface::optimum, opening);
  auto found = contents(good(again));
  CHECK(found["text_encoder"].substr(0, 9) == "[304, 64]");
  CHECK(found["tokenizer/added_tokens.json"] == "{\n  \"<cat>\": 300,\n  \"<cat>_1\": 301,\n  \"<cat>_2\": 302,\n  \"<dog>\": 303\n}\n");
}

TEST_CASE("the two files of an SDXL embedding go into both graphs", "[stage]") {
  ts::job run;
  const auto built = ts::open<diffusers_folder>(model("sdxl/diffusers")) | ts::build<sdxl>(ts::interface::optimum) |
                     ts::merge_embedding(ts::open_textual_inversion(embedding("pair"), run), "<cat>");
  auto found = contents(good(built));
  CHECK(found["text_encoder"].substr(0, 9) == "[301, 64]");
  CHECK(found["text_encoder_2"].substr(0, 10) == "[301, 128]");
  CHECK(found["tokenizer_2/added_tokens.json"] == "{\n  \"<cat>\": 300\n}\n");
}

TEST_CASE("what cannot be merged stops the chain", "[stage]") {
  const auto refusal = [](const auto& chain) { return chain ? std::string("accepted") : chain.error().message(); };
  const auto folder = [] { return ts::open<diffusers_folder>(model("sd1/diffusers")); };
  CHECK(refusal(folder() | ts::merge_embedding(ts::open<torch_file>("absent.pt"))) == ts::open<torch_file>("absent.pt").error().message());
  CHECK(refusal(folder() | ts::merge_embedding(ts::open<torch_file>(embedding("style.ti.pt")), "<cat>")) ==
        "USE " + embedding("style.ti.pt") + ": one token is given for a file of several embeddings (expected no token, found 2 embeddings); leave out the token");
  CHECK(refusal(folder() | ts::build<sd15>() | ts::merge_embedding(ts::open<torch_file>(embedding("a1111.pt")), "<cat>", {.how = {.to = ts::dtype::f16}}))
            .substr(0, 4) == "USE ");
  CHECK(refusal(ts::open<diffusers_folder>(model("sdxl/diffusers")) | ts::merge_embedding(ts::open<torch_file>(embedding("a1111.pt")), "<cat>")).substr(0, 4) ==
        "MIS ");
}
