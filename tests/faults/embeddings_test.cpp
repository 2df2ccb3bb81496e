// SPDX-License-Identifier: MIT
//
// Textual Inversion embeddings that do not fit the model, whose tokens cannot be used, or that are no data: refused, and nothing is written.
#include <filesystem>
#include <string>

#include "../format/torch_bytes.hpp"
#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"

namespace fs = std::filesystem;
using namespace std::string_literals;

namespace {

std::string model(const std::string& name) { return support::data(name + "/diffusers").string(); }
std::string file(const std::string& name) { return support::data("embeddings/" + name).string(); }

/// merge-embedding must refuse with this code and message, and leave nothing.
void refused(const support::temp_folder& work, const std::string& base, const faults::strings& options, const std::string& code, const std::string& message) {
  faults::strings arguments{model(base), work / "out"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  faults::refused("merge-embedding", work.path(), arguments, code, message);
  CHECK_FALSE(fs::exists(work / "out"));
}

/// merge-embedding must succeed; the number of rows that the text encoder has then.
std::size_t rows_after(const support::temp_folder& work, const std::string& base, const faults::strings& options) {
  faults::strings arguments{model(base), work / "out", "--force", "--quiet"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  const auto run = programs::run("merge-embedding", arguments);
  INFO(run.err);
  REQUIRE(run.status == 0);
  const auto parts = faults::read_parts(work / "out/text_encoder/model.safetensors");
  return parts.header["text_model.embeddings.token_embedding.weight"]["shape"][0].get<std::size_t>();
}

/// A safetensors file with one f32 tensor of zeros.
std::string embedding(const support::temp_folder& work, const std::string& name, const std::string& key, const std::vector<std::size_t>& shape) {
  std::size_t n = 4;
  for (const std::size_t extent : shape) n *= extent;
  faults::safetensors_parts parts;
  faults::add_tensor(parts, key, "F32", shape, std::string(n, '\0'));
  faults::write_parts(work / name, parts);
  return work / name;
}

}  // namespace

TEST_CASE("LRA-14: vectors of another width are refused with the models that have them") {
  const support::temp_folder work;
  const std::string wide = embedding(work, "wide.safetensors", "emb_params", {2, 1024});
  refused(work, "sd1", {"--embedding", wide}, "MIS",
          wide + ": the embedding is for another model (expected vectors of width 64, found width 1024 (SD2)); use an embedding that was trained on a model of "
                 "this family");
  const std::string first = embedding(work, "first.safetensors", "emb_params", {768});
  refused(work, "sdxl", {"--embedding", first}, "MIS",
          first + ": the embedding is for another model (expected vectors of width 64 and 128, found width 768 (SD1, or SDXL's first text encoder)); use an "
                  "embedding that was trained on a model of this family");
  refused(work, "sd1", {"--embedding", file("sdxl.safetensors")}, "MIS",
          file("sdxl.safetensors") + ": the embedding is for another model (expected vectors of width 64, found width 64 and 128); use an embedding that was "
                                     "trained on a model of this family");
}

TEST_CASE("LRA-14: half of an SDXL embedding needs leave to take zeros for the rest") {
  const support::temp_folder work;
  for (const char* name : {"sdxl_half.safetensors", "a1111.pt"})
    refused(work, "sdxl", {"--embedding", file(name) + ":<cat>"}, "MIS",
            file(name) + ": token '<cat>': the embedding has vectors for one of the model's two text encoders only (expected vectors for text_encoder_2, too: "
                         "width 128, found none); pass the other half as well, or --zero-missing to take zeros for it");
  CHECK(rows_after(work, "sdxl", {"--embedding", file("sdxl_half.safetensors"), "--zero-missing"}) == 302);
  const support::temp_folder other;
  refused(other, "sdxl", {"--embedding", file("sdxl_uneven.safetensors")}, "MIS",
          file("sdxl_uneven.safetensors") + ": the embedding has different numbers of vectors for the two text encoders (expected 2, found 3)");
}

TEST_CASE("LRA-14: one dimension is one vector, two are a list, a third of one is a batch; anything else is refused") {
  const support::temp_folder work;
  CHECK(rows_after(work, "sd1", {"--embedding", embedding(work, "a.safetensors", "emb_params", {64}) + ":<a>"}) == 301);
  CHECK(rows_after(work, "sd1", {"--embedding", embedding(work, "b.safetensors", "emb_params", {1, 64}) + ":<a>"}) == 301);
  CHECK(rows_after(work, "sd1", {"--embedding", embedding(work, "c.safetensors", "emb_params", {3, 64}) + ":<a>"}) == 303);
  CHECK(rows_after(work, "sd1", {"--embedding", embedding(work, "d.safetensors", "emb_params", {1, 3, 64}) + ":<a>"}) == 303);
  CHECK(rows_after(work, "sd1", {"--embedding", file("style.ti.pt")}) == 302);
  const support::temp_folder other;
  for (const auto& [shape, shown] : std::vector<std::pair<std::vector<std::size_t>, std::string>>{{{3, 1, 64}, "[3, 1, 64]"}, {{}, "[]"}, {{0, 64}, "[0, 64]"}}) {
    const std::string name = embedding(other, "x.safetensors", "emb_params", shape);
    refused(other, "sd1", {"--embedding", name}, "MIS",
            name + ": tensor 'emb_params': an embedding has a shape that is no list of vectors (expected [d], [n, d] or [1, n, d], found " + shown + ")");
  }
}

TEST_CASE("LRA-15: tokens that the vocabulary has, empty ones, unprintable ones, tokens given twice") {
  const support::temp_folder work;
  const std::string cat = file("learned_embeds.bin");
  for (const char* token : {"horse</w>", "a", "<|endoftext|>"}) {
    const auto words = nlohmann::json::parse(programs::read_text(support::data("sd1/diffusers/tokenizer/vocab.json")));
    refused(work, "sd1", {"--embedding", cat + ":" + token}, "MIS",
            cat + ": the token '" + token + "' is in the vocabulary already (expected a new token, found tokenizer has it with the id " +
                words[token].dump() + "); name another one, such as '<" + token + ">'");
  }
  const std::string empty = embedding(work, "empty.safetensors", "", {64});
  refused(work, "sd1", {"--embedding", empty}, "MIS", empty + ": the embedding's token is empty (expected a word like <cat>); name another token");
  const auto unprintable = [&](const std::string& token, const std::string& shown) {
    refused(work, "sd1", {"--embedding", cat + ":" + token}, "MIS",
            cat + ": token " + shown + ": the embedding's token has characters that do not print (expected visible characters); name another token");
  };
  unprintable("<c\x1b[2Jat>", "'<c\\x1b[2Jat>'");
  unprintable("<c\nat>", "'<c\\x0aat>'");
  unprintable("<\xE2\x80\xAE" "tac>", "'<\\u{202e}tac>'");
  refused(work, "sd1", {"--embedding", cat + ":<\xFFx>"}, "MIS",
          cat + ": token '<\\xffx>': the embedding's token is no UTF-8 (expected UTF-8); name another token");
  refused(work, "sd1", {"--embedding", cat + ": x"}, "MIS",
          cat + ": token ' x': the embedding's token begins or ends with a space, which tokenizers drop (expected a word like <cat>); name another token");
  refused(work, "sd1", {"--embedding", cat + ":" + std::string(257, 'x')}, "MIS",
          cat + ": token '" + std::string(200, 'x') + "'…(257 bytes): the embedding's token is too long (expected at most 256 bytes); name another token");
  refused(work, "sd1", {"--embedding", cat, "--embedding", file("concept.safetensors") + ":<cat>"}, "MIS",
          file("concept.safetensors") + ": two embeddings have the same token '<cat>' (expected a token for each, found also '" + cat +
              "'); name another token for one of them");
}

TEST_CASE("LRA-15: thousands of vectors exceed a limit that can be raised") {
  const support::temp_folder work;
  const std::string many = embedding(work, "many.safetensors", "emb_params", {10'000, 64});
  refused(work, "sd1", {"--embedding", many + ":<cat>"}, "LIM",
          many + ": the embedding has too many vectors (expected at most 1024, found 10000); raise embedding_options::most_vectors (--max-vectors) if you trust it; "
                 "a prompt has 75 places");
  CHECK(rows_after(work, "sd1", {"--embedding", many + ":<cat>", "--max-vectors", "10000"}) == 10'300);
}

TEST_CASE("LRA-15: token numbers that are huge, negative, given twice or missing, when tokens are to be added") {
  const support::temp_folder work;
  fs::copy(model("sd1"), work / "base", fs::copy_options::recursive);
  const auto verdict = [&](const std::string& vocabulary, const std::string& code, const std::string& message) {
    programs::write_text(work / "base/tokenizer/vocab.json", vocabulary);
    faults::refused("merge-embedding", work.path(), {work / "base", work / "out", "--embedding", file("learned_embeds.bin")}, code, message);
  };
  const std::string at = work / "base/tokenizer/vocab.json";
  verdict("{\"a\": 4294967296}", "FMT", "tokenizer/vocab.json: byte offset 17 at '/a': the id of a token is out of range (expected 0 to 16777215, found 4294967296)");
  verdict("{\"a\": -1}", "FMT", "tokenizer/vocab.json: byte offset 9 at '/a': the id of a token is out of range (expected 0 to 16777215, found -1)");
  verdict("{\"a\": 1, \"a\": 2}", "FMT",
          "tokenizer/vocab.json: byte offset 12 at '/a': the key 'a' appears twice in one object (expected unique keys, found it at byte offsets 4 and 12)");
  verdict("{\"a\": 16777214}", "MIS",
          work / "base" + ": text_encoder: the tokenizer does not belong to the text encoder (expected about 300 tokens, the rows of its token embedding, found "
                          "16777215); pass the tokenizer of this model");
  verdict("{}", "UNS", "tokenizer/vocab.json: the tokenizer has no vocabulary of words and ids (expected a CLIP tokenizer, found no ids)");
}

TEST_CASE("LRA-16: hostile pickles are refused by name, and nothing runs") {
  using namespace torch_bytes;
  const support::temp_folder work;
  const std::string mark = work / "ran", name = work / "cat.pt";
  const std::string command = "touch " + mark;
  const std::string call = "cposix\nsystem\n(X" + le(command.size(), 4) + command + "tR";
  // The call in the place of the vectors, and beside vectors that are good.
  for (const std::string& body : {"}" + text("string_to_param") + "}" + text("*") + call + "ss", "}" + text("name") + call + "s" + text("emb_params") + "N" + "s"}) {
    programs::write_text(name, checkpoint(program(body), floats(6)));
    const auto run = programs::run("merge-embedding", {model("sd1"), work / "out", "--embedding", name});
    INFO(run.err);
    CHECK(run.status == faults::status_of("UNS"));
    CHECK(run.err.find("the pickle names 'posix.system', which no weight file needs (expected names of tensors and containers, found a way to run code); nothing "
                       "was run") != std::string::npos);
    CHECK_FALSE(fs::exists(mark));
    CHECK_FALSE(fs::exists(work / "out"));
  }
}

TEST_CASE("LRA-16: embeddings in images, and files that are none, are refused by name") {
  const support::temp_folder work;
  const auto image = [&](const std::string& name, const std::string& bytes, const std::string& kind) {
    programs::write_text(work / name, bytes + std::string(64, '\0'));
    refused(work, "sd1", {"--embedding", work / name}, "UNS",
            work / name + ": embeddings hidden in images are not read (expected a .pt, .bin or .safetensors file, found a " + kind + " image); export it as .pt");
  };
  image("cat.png", "\x89PNG\r\n\x1A\n", "PNG");
  image("cat.webp", "RIFF\x10\0\0\0WEBPVP8 "s, "WebP");
  image("cat.jxl", "\xFF\x0A\x01\x02", "JPEG XL");
  image("box.jxl", "\0\0\0\x0CJXL \r\n\x87\n"s, "JPEG XL");
  image("cat.avif", "\0\0\0\x1C" "ftypavif"s, "AVIF");
  image("cat.pt", "\x89PNG\r\n\x1A\n", "PNG");
  programs::write_text(work / "page.pt", "<!DOCTYPE html><html></html>");
  const auto run = programs::run("merge-embedding", {model("sd1"), work / "out", "--embedding", work / "page.pt"});
  CHECK(run.status == faults::status_of("UNS"));
  CHECK(run.err.find("the file holds no weights: it is a web page") != std::string::npos);
}
