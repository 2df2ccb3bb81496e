// SPDX-License-Identifier: MIT
//
// Embeddings merged into pipelines: rows and their rounding, tokens by rule, configurations, the tokenizers' files byte for byte.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/merge_embedding.hpp"
#include "tensorsmith/arch/stable_diffusion_build.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/format/safetensors/write.hpp"

namespace ts = tensorsmith;

namespace {

using doubles = std::vector<double>;

ts::tensor_ref tensor_of(ts::shape_type shape, const doubles& values, ts::dtype type) {
  std::vector<std::byte> bytes(ts::byte_count(type, values.size()));
  ts::convert_elements(ts::dtype::f64, reinterpret_cast<const std::byte*>(values.data()), type, bytes.data(), values.size());
  return ts::in_memory({"", type, std::move(shape)}, std::move(bytes));
}
doubles values_of(const ts::tensor_ref& tensor) {
  const auto bytes = ts::materialize(tensor, {});
  REQUIRE(bytes);
  doubles out(tensor.info().elements());
  ts::convert_elements(tensor.type(), bytes->data(), ts::dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}
doubles counted(std::size_t n, double first = 0) {
  doubles out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = first + static_cast<double>(i);
  return out;
}

/// The JSON of a vocabulary of `words` tokens, the end marker last.
std::string vocabulary(std::size_t words) {
  std::string out = "{";
  for (std::size_t i = 0; i + 1 < words; ++i) out += "\"w" + std::to_string(i) + "\": " + std::to_string(i) + ", ";
  return out + "\"<|endoftext|>\": " + std::to_string(words - 1) + "}";
}
ts::side_file side(const std::string& path, const std::string& text) { return {path, ts::detail::text_source(path, text)}; }
std::string text_of(const ts::package& model, const std::string& path) {
  for (const ts::side_file& file : model.side_files)
    if (file.path == path) return ts::read_text(*file.bytes, 1 << 20).value();
  return "absent";
}

struct shape {
  std::size_t rows = 10, width = 4;
};

/// A pipeline of nothing but token embeddings and tokenizers of `words` words each (0: none).
ts::package pipeline(std::vector<shape> encoders = {{}}, std::size_t words = 10, ts::dtype type = ts::dtype::f32) {
  ts::package out;
  out.source = "model";
  out.family = encoders.size() == 2 ? "sdxl" : "sd1";
  for (std::size_t e = 0; e < encoders.size(); ++e) {
    ts::component part;
    part.name = e == 0 ? "text_encoder" : "text_encoder_2";
    part.config.set("eos_token_id", 2);
    part.config.set("vocab_size", static_cast<std::int64_t>(encoders[e].rows));
    const auto [rows, width] = encoders[e];
    REQUIRE(part.weights.add("text_model.embeddings.token_embedding.weight", tensor_of({rows, width}, counted(rows * width), type), "model"));
    out.components.push_back(std::move(part));
    if (words != 0) out.side_files.push_back(side(e == 0 ? "tokenizer/vocab.json" : "tokenizer_2/vocab.json", vocabulary(words)));
  }
  return out;
}

ts::textual_inversion vectors(std::size_t count, std::size_t width, double first, std::string name = "<cat>", std::string format = "kohya",
                              ts::dtype type = ts::dtype::f32) {
  ts::textual_inversion out;
  out.file = "folder/cat.pt";
  out.name = std::move(name);
  out.format = std::move(format);
  out.parts.push_back({width, count, tensor_of({count, width}, counted(count * width, first), type), ""});
  return out;
}
ts::textual_inversion pair_of(std::size_t count, std::size_t left, std::size_t right) {
  ts::textual_inversion out = vectors(count, left, 100, "<cat>", "SDXL");
  out.parts[0].encoder = "text_encoder";
  out.parts.push_back({right, count, tensor_of({count, right}, counted(count * right, 200), ts::dtype::f32), "text_encoder_2"});
  return out;
}

struct outcome {
  ts::embedding_account account;
  ts::job run;
};
outcome merged(ts::package& model, const std::vector<ts::embedding_request>& requests, const ts::embedding_options& how = {}) {
  outcome out;
  auto account = ts::merge_embeddings(model, requests, how, out.run);
  INFO((account ? std::string() : account.error().message()));
  REQUIRE(account);
  out.account = std::move(*account);
  return out;
}
std::string refusal(ts::package model, const std::vector<ts::embedding_request>& requests, const ts::embedding_options& how = {}) {
  ts::job run;
  const auto account = ts::merge_embeddings(model, requests, how, run);
  return account ? "accepted" : account.error().message();
}
std::string tokens_of(const ts::embedding_account& account) {
  std::string out;
  for (const ts::added_token& t : account.tokens) out += (out.empty() ? "" : " ") + t.token + "=" + std::to_string(t.id) + "/" + std::to_string(t.vectors);
  return out;
}
ts::tensor_ref matrix(const ts::package& model, const char* encoder = "text_encoder") {
  return model.find(encoder)->weights.find("text_model.embeddings.token_embedding.weight")->tensor;
}
doubles row(const ts::package& model, std::size_t i, const char* encoder = "text_encoder") {
  const ts::tensor_ref all = matrix(model, encoder);
  const doubles values = values_of(all);
  const std::size_t width = all.shape()[1];
  return {values.begin() + static_cast<std::ptrdiff_t>(i * width), values.begin() + static_cast<std::ptrdiff_t>((i + 1) * width)};
}
const ts::json_value& config(const ts::package& model, const char* key, const char* encoder = "text_encoder") {
  return *model.find(encoder)->config.find(key);
}
bool warned(const outcome& out, const std::string& text) {
  for (const ts::note& n : out.run.notes)
    if (n.severity == ts::note::level::warning && n.text.find(text) != std::string::npos) return true;
  return false;
}

}  // namespace

TEST_CASE("every vector gets a row behind the vocabulary, the rows before stay", "[arch]") {
  ts::package model = pipeline();
  const outcome out = merged(model, {{vectors(2, 4, 100), "", 1}});
  CHECK(tokens_of(out.account) == "<cat>=10/1 <cat>_1=11/1");
  CHECK(out.account.has_tokenizer);
  REQUIRE(out.account.weights.size() == 1);
  CHECK(out.account.weights[0].component == "text_encoder");
  CHECK(out.account.tokens[0].norm == std::sqrt(100.0 * 100 + 101 * 101 + 102 * 102 + 103 * 103));
  REQUIRE(matrix(model).shape() == ts::shape_type{12, 4});
  doubles expected = counted(40);
  for (const double x : counted(8, 100)) expected.push_back(x);
  CHECK(values_of(matrix(model)) == expected);
  CHECK(config(model, "vocab_size") == ts::json_value(12));
  CHECK(config(model, "eos_token_id") == ts::json_value(9));
  CHECK(text_of(model, "tokenizer/added_tokens.json") == "{\n  \"<cat>\": 10,\n  \"<cat>_1\": 11\n}\n");
  CHECK(text_of(model, "tokenizer/vocab.json") == vocabulary(10));
  CHECK(model.side_files.size() == 2);
}

TEST_CASE("tokens follow the rule of the tool", "[arch]") {
  const auto tokens = [](const ts::textual_inversion& source, ts::token_rule rule, const std::string& token, bool aliases = false) {
    ts::package model = pipeline();
    return tokens_of(merged(model, {{source, token, 1}}, {.rule = rule, .onnx_web_aliases = aliases}).account);
  };
  using rule = ts::token_rule;
  const auto three = vectors(3, 4, 1), concept_file = vectors(1, 4, 1, "<toy>", "diffusers"), long_concept = vectors(2, 4, 1, "<toy>", "diffusers");
  CHECK(tokens(three, rule::diffusers, "") == "<cat>=10/1 <cat>_1=11/1 <cat>_2=12/1");
  CHECK(tokens(three, rule::diffusers, "<dog>") == "<dog>=10/1 <dog>_1=11/1 <dog>_2=12/1");
  CHECK(tokens(three, rule::kohya, "") == "<cat>=10/1 <cat>1=11/1 <cat>2=12/1");
  CHECK(tokens(three, rule::onnx_web, "tom") == "tom=10/3 tom-all=11/3 tom-0=12/1 tom-1=13/1 tom-2=14/1");
  CHECK(tokens(concept_file, rule::onnx_web, "") == "<toy>=10/1 cat=11/1");
  CHECK(tokens(concept_file, rule::onnx_web, "tom") == "<toy>=10/1 tom=11/1");
  CHECK(tokens(long_concept, rule::onnx_web, "") == "<toy>=10/2 cat=11/2 cat-all=12/2 cat-0=13/1 cat-1=14/1");
  CHECK(tokens(vectors(2, 4, 1), rule::diffusers, "", true) == "<cat>=10/1 <cat>_1=11/1 <cat>-all=12/2 <cat>-0=13/1 <cat>-1=14/1");
}

TEST_CASE("onnx-web's base token is the sum of the vectors, equal tokens are added, the strength multiplies", "[arch]") {
  ts::package model = pipeline();
  ts::textual_inversion other = vectors(1, 4, 1000);
  const outcome out = merged(model, {{vectors(2, 4, 100), "tom", 0.5}, {other, "tom", 2}}, {.rule = ts::token_rule::onnx_web});
  CHECK(tokens_of(out.account) == "tom=10/3 tom-all=11/3 tom-0=12/2 tom-1=13/1");
  const doubles sum{0.5 * 204 + 2 * 1000, 0.5 * 206 + 2 * 1001, 0.5 * 208 + 2 * 1002, 0.5 * 210 + 2 * 1003};
  CHECK(row(model, 10) == sum);
  CHECK(row(model, 11) == sum);
  CHECK(row(model, 12) == doubles{50 + 2000, 50.5 + 2002, 51 + 2004, 51.5 + 2006});
  CHECK(row(model, 13) == doubles{52, 52.5, 53, 53.5});
  CHECK(refusal(pipeline(), {{vectors(2, 4, 100), "<tom>", 1}, {other, "<tom>", 1}}) ==
        "MIS folder/cat.pt: two embeddings have the same token '<tom>' (expected a token for each, found also 'folder/cat.pt'); name another token for one of them");
}

TEST_CASE("rows are rounded once, to the type that is written", "[arch]") {
  // 1 + 2^-11 + 2^-26 lies above the middle between two f16; rounded to f32 first it would be the middle itself, and then 1.
  const double tricky = 1 + std::ldexp(1.0, -11) + std::ldexp(1.0, -26);
  ts::textual_inversion source = vectors(1, 4, 0);
  source.parts[0].rows = tensor_of({1, 4}, {tricky, -tricky, 0.1, 65504}, ts::dtype::f64);
  ts::package model = pipeline({{}}, 10, ts::dtype::f16);
  merged(model, {{source, "", 1}});
  CHECK(matrix(model).type() == ts::dtype::f16);
  CHECK(row(model, 10)[0] == 1 + std::ldexp(1.0, -10));
  CHECK(row(model, 10)[1] == -1 - std::ldexp(1.0, -10));
  CHECK(row(model, 3) == doubles{12, 13, 14, 15});

  ts::package wide = pipeline({{}}, 10, ts::dtype::f32);
  merged(wide, {{source, "", 1}}, {.to = ts::dtype::f16});
  CHECK(matrix(wide).type() == ts::dtype::f16);
  CHECK(row(wide, 10) == row(model, 10));
  CHECK(row(wide, 3) == doubles{12, 13, 14, 15});

  ts::package half = pipeline({{}}, 10, ts::dtype::f16);
  CHECK(refusal(half, {{source, "", 2}}).substr(0, 4) == "NUM ");
  merged(half, {{source, "", 2}}, {.overflow = ts::cast_overflow::saturate});
  CHECK(row(half, 10)[3] == 65504);
}

TEST_CASE("both text encoders of SDXL get the same ids", "[arch]") {
  ts::package model = pipeline({{10, 4}, {10, 6}});
  const outcome out = merged(model, {{pair_of(2, 4, 6), "", 1}});
  CHECK(tokens_of(out.account) == "<cat>=10/1 <cat>=10/1 <cat>_1=11/1 <cat>_1=11/1");
  CHECK(out.account.tokens[0].encoder == "text_encoder");
  CHECK(out.account.tokens[1].encoder == "text_encoder_2");
  CHECK(row(model, 11) == counted(4, 104));
  CHECK(row(model, 11, "text_encoder_2") == counted(6, 206));
  for (const char* folder : {"tokenizer", "tokenizer_2"})
    CHECK(text_of(model, std::string(folder) + "/added_tokens.json") == "{\n  \"<cat>\": 10,\n  \"<cat>_1\": 11\n}\n");
  CHECK(config(model, "eos_token_id", "text_encoder_2") == ts::json_value(9));

  SECTION("two files under one token are one embedding") {
    ts::package other = pipeline({{10, 4}, {10, 6}});
    const outcome both = merged(other, {{vectors(1, 4, 1), "<x>", 1}, {vectors(1, 6, 2), "<x>", 1}});
    CHECK(tokens_of(both.account) == "<x>=10/1 <x>=10/1");
    CHECK(row(other, 10, "text_encoder_2") == counted(6, 2));
  }
  SECTION("encoders of one width take them in order") {
    ts::package other = pipeline({{10, 4}, {10, 4}});
    ts::textual_inversion same = pair_of(1, 4, 4);
    merged(other, {{same, "", 1}});
    CHECK(row(other, 10, "text_encoder_2") == counted(4, 200));
  }
  SECTION("a half alone needs leave") {
    ts::package other = pipeline({{10, 4}, {10, 6}});
    const outcome zeros = merged(other, {{vectors(2, 4, 1), "", 1}}, {.zero_missing = true});
    CHECK(row(other, 10, "text_encoder_2") == doubles(6, 0.0));
    CHECK(zeros.account.tokens[1].vectors == 0);
    CHECK(warned(zeros, "it has no vectors for text_encoder_2: its tokens get zeros there"));
  }
  SECTION("a model without the first encoder takes the second half") {
    ts::package refiner = pipeline({{10, 4}, {10, 6}});
    refiner.components.erase(refiner.components.begin());
    refiner.side_files.erase(refiner.side_files.begin());
    refiner.family = "sdxl-refiner";
    const outcome half = merged(refiner, {{pair_of(2, 4, 6), "", 1}});
    REQUIRE(half.account.ignored.size() == 1);
    CHECK(half.account.ignored[0].what == "vectors for text_encoder");
    CHECK(half.account.ignored[0].reason == "the model has no text_encoder");
  }
}

TEST_CASE("tokenizer and token embedding may disagree in size", "[arch]") {
  SECTION("more tokens than rows: zeros between") {
    ts::package model = pipeline({{10, 4}}, 12);
    const outcome out = merged(model, {{vectors(1, 4, 100), "", 1}});
    CHECK(tokens_of(out.account) == "<cat>=12/1");
    REQUIRE(matrix(model).shape() == ts::shape_type{13, 4});
    CHECK(row(model, 9) == counted(4, 36));
    CHECK(row(model, 11) == doubles(4, 0.0));
    CHECK(row(model, 12) == counted(4, 100));
    CHECK(warned(out, "its token embedding has 2 rows less than the tokenizer has tokens; they get zeros"));
    CHECK(config(model, "eos_token_id") == ts::json_value(11));
  }
  SECTION("spare rows are taken first") {
    ts::package model = pipeline({{16, 4}}, 10);
    const outcome out = merged(model, {{vectors(2, 4, 100), "", 1}});
    CHECK(tokens_of(out.account) == "<cat>=10/1 <cat>_1=11/1");
    REQUIRE(matrix(model).shape() == ts::shape_type{16, 4});
    CHECK(row(model, 9) == counted(4, 36));
    CHECK(row(model, 10) == counted(4, 100));
    CHECK(row(model, 11) == counted(4, 104));
    CHECK(row(model, 12) == counted(4, 48));
    CHECK(config(model, "vocab_size") == ts::json_value(16));
  }
  SECTION("a tokenizer of another model") {
    CHECK(refusal(pipeline({{10, 4}}, 5000), {{vectors(1, 4, 1), "", 1}}) ==
          "MIS model: text_encoder: the tokenizer does not belong to the text encoder (expected about 10 tokens, the rows of its token embedding, found 5000); "
          "pass the tokenizer of this model");
  }
  SECTION("tokens that were added before, to one of two tokenizers") {
    ts::package model = pipeline({{12, 4}, {12, 6}});
    model.side_files.push_back(side("tokenizer/added_tokens.json", "{\"<old>\": 10, \"<older>\": 11}"));
    const outcome out = merged(model, {{pair_of(1, 4, 6), "", 1}});
    CHECK(tokens_of(out.account) == "<cat>=12/1 <cat>=12/1");
    CHECK(text_of(model, "tokenizer/added_tokens.json") == "{\n  \"<cat>\": 12,\n  \"<old>\": 10,\n  \"<older>\": 11\n}\n");
    CHECK(text_of(model, "tokenizer_2/added_tokens.json") == "{\n  \"<cat>\": 12\n}\n");
    CHECK(warned(out, "it knows 2 tokens less than the other tokenizer; the new ids leave a gap"));
  }
}

TEST_CASE("the tokenizers' files change in one place only", "[arch]") {
  const std::string pretty =
      "{\n  \"add_prefix_space\": false,\n  \"added_tokens_decoder\": {\n    \"9\": {\n      \"content\": \"<|endoftext|>\",\n      \"special\": true\n    }\n  },\n"
      "  \"model_max_length\": 1000000000000000019884624838656\n}";
  const std::string pretty_after =
      "{\n  \"add_prefix_space\": false,\n  \"added_tokens_decoder\": {\n    \"9\": {\n      \"content\": \"<|endoftext|>\",\n      \"special\": true\n    },\n"
      "    \"10\": {\n      \"content\": \"<ca\\\"t>\",\n      \"lstrip\": false,\n      \"normalized\": true,\n      \"rstrip\": false,\n      \"single_word\": false,\n"
      "      \"special\": false\n    }\n  },\n  \"model_max_length\": 1000000000000000019884624838656\n}";
  const std::string fast = "{\"added_tokens\":[{\"id\":9,\"content\":\"<|endoftext|>\"}], \"model\": {\"vocab\": {\"a\": 0, \"<|endoftext|>\": 9}}}";
  const std::string fast_after = "{\"added_tokens\":[{\"id\":9,\"content\":\"<|endoftext|>\"}, {\"id\": 10, \"content\": \"<ca\\\"t>\", \"single_word\": false, "
                                 "\"lstrip\": false, \"rstrip\": false, \"normalized\": true, \"special\": false}], \"model\": {\"vocab\": {\"a\": 0, "
                                 "\"<|endoftext|>\": 9}}}";
  ts::package model = pipeline();
  const std::string old = "{\"content_is_kept\":  [1,2] ,\"tokenizer_class\":\"CLIPTokenizer\"}";
  SECTION("lists that exist grow, in their own layout") {
    model.side_files.push_back(side("tokenizer/tokenizer_config.json", pretty));
    model.side_files.push_back(side("tokenizer/tokenizer.json", fast));
    model.side_files.push_back(side("tokenizer/special_tokens_map.json", "{ }"));
    merged(model, {{vectors(1, 4, 1, "<ca\"t>"), "", 1}});
    CHECK(text_of(model, "tokenizer/tokenizer_config.json") == pretty_after);
    CHECK(text_of(model, "tokenizer/tokenizer.json") == fast_after);
    CHECK(text_of(model, "tokenizer/special_tokens_map.json") == "{ }");
    CHECK(text_of(model, "tokenizer/added_tokens.json") == "{\n  \"<ca\\\"t>\": 10\n}\n");
  }
  SECTION("old configurations have no such list and stay") {
    model.side_files.push_back(side("tokenizer/tokenizer_config.json", old));
    merged(model, {{vectors(1, 4, 1), "", 1}});
    CHECK(text_of(model, "tokenizer/tokenizer_config.json") == old);
  }
  SECTION("empty lists") {
    model.side_files.push_back(side("tokenizer/tokenizer_config.json", "{\"added_tokens_decoder\": {}}"));
    model.side_files.push_back(side("tokenizer/tokenizer.json", "{\n \"added_tokens\": [\n ]\n}"));
    merged(model, {{vectors(2, 4, 1), "", 1}});
    const auto decoder = ts::parse_json(text_of(model, "tokenizer/tokenizer_config.json"), "a");
    REQUIRE(decoder);
    CHECK(decoder->find("added_tokens_decoder")->as_object()->size() == 2);
    const auto list = ts::parse_json(text_of(model, "tokenizer/tokenizer.json"), "b");
    REQUIRE(list);
    REQUIRE(list->find("added_tokens")->as_array()->size() == 2);
    CHECK(*(*list->find("added_tokens")->as_array())[1].find("content") == ts::json_value("<cat>_1"));
  }
  SECTION("a tokenizer that is tokenizer.json alone") {
    model.side_files.clear();
    model.side_files.push_back(side("tokenizer/tokenizer.json", fast));
    CHECK(tokens_of(merged(model, {{vectors(1, 4, 1), "", 1}}).account) == "<cat>=10/1");
  }
  SECTION("tokens that only the list of the configuration names count") {
    model.side_files.push_back(side("tokenizer/tokenizer_config.json", "{\"added_tokens_decoder\": {\"10\": {\"content\": \"<old>\"}}}"));
    CHECK(tokens_of(merged(model, {{vectors(1, 4, 1), "", 1}}).account) == "<cat>=11/1");
    CHECK(text_of(model, "tokenizer/added_tokens.json") == "{\n  \"<cat>\": 11,\n  \"<old>\": 10\n}\n");
  }
}

TEST_CASE("LRA-15: a token that a single file was given before is known, without tokenizer files too", "[arch]") {
  ts::package model = pipeline({{}}, 0);
  CHECK(tokens_of(merged(model, {{vectors(1, 4, 100), "", 1}}).account) == "<cat>=10/1");
  CHECK(refusal(model, {{vectors(1, 4, 200), "", 1}}) ==
        "MIS folder/cat.pt: the token '<cat>' is in the vocabulary already (expected a new token, found the file's metadata has it with the id 10); name another one, such as "
        "'<<cat>>'");
  ts::embedding_options how;
  how.rule = ts::token_rule::onnx_web;
  const outcome out = merged(model, {{vectors(1, 4, 200), "", 1}}, how);  // its other tokens are new
  REQUIRE(out.account.ignored.size() == 1);
  CHECK(out.account.ignored[0].reason == "in the vocabulary already: the file's metadata has it with the id 10");
}

TEST_CASE("a second merge goes on behind the first", "[arch]") {
  ts::package model = pipeline();
  merged(model, {{vectors(2, 4, 100), "", 1}});
  const outcome out = merged(model, {{vectors(1, 4, 200), "<dog>", 1}});
  CHECK(tokens_of(out.account) == "<dog>=12/1");
  CHECK(row(model, 11) == counted(4, 104));
  CHECK(row(model, 12) == counted(4, 200));
  CHECK(config(model, "vocab_size") == ts::json_value(13));
  CHECK(config(model, "eos_token_id") == ts::json_value(9));
  CHECK(text_of(model, "tokenizer/added_tokens.json") == "{\n  \"<cat>\": 10,\n  \"<cat>_1\": 11,\n  \"<dog>\": 12\n}\n");
  REQUIRE(model.metadata.size() == 1);
  CHECK(model.metadata[0].second == "{\"<cat>\": 10, \"<cat>_1\": 11, \"<dog>\": 12}");
  CHECK(refusal(model, {{vectors(1, 4, 200), "<dog>", 1}}) ==
        "MIS folder/cat.pt: the token '<dog>' is in the vocabulary already (expected a new token, found tokenizer has it with the id 12); name another one, such as "
        "'<<dog>>'");
}

TEST_CASE("onnx-web's rule leaves tokens that exist alone, and needs one that is new", "[arch]") {
  ts::package model = pipeline();
  const outcome out = merged(model, {{vectors(1, 4, 100), "w3", 1}}, {.rule = ts::token_rule::onnx_web});
  CHECK(tokens_of(out.account) == "w3-all=10/1 w3-0=11/1");
  REQUIRE(out.account.ignored.size() == 1);
  CHECK(out.account.ignored[0].what == "token 'w3'");
  CHECK(out.account.ignored[0].reason == "in the vocabulary already: tokenizer has it with the id 3");
  CHECK(row(model, 3) == counted(4, 12));
  CHECK(refusal(model, {{vectors(1, 4, 100), "w3", 1}}, {.rule = ts::token_rule::onnx_web}) ==
        "MIS folder/cat.pt: none of the embedding's tokens is new to the tokenizer (expected a token that is not in the vocabulary, found 'w3'); name another token");
}

TEST_CASE("tokens that prompts meet by accident are warned of", "[arch]") {
  ts::package model = pipeline();
  const outcome out = merged(model, {{vectors(1, 4, 1), "cat", 1}, {vectors(1, 4, 1), "<Dog>", 1}, {vectors(1, 4, 1), "catnip", 1}});
  CHECK(warned(out, "it is found inside longer words, too; '<cat>' would not be"));
  CHECK(warned(out, "some tokenizers tell capitals from small letters and others do not; small letters work with all"));
  CHECK(warned(out, "the token 'catnip' begins with it"));
  ts::package other = pipeline();
  CHECK(warned(merged(other, {{vectors(76, 4, 1), "<x>", 1}}), "its 76 vectors do not fit into a prompt, which has 75 places"));
}

TEST_CASE("a configuration with the end marker's own id stays, and one without names it for nobody", "[arch]") {
  ts::package model = pipeline();
  model.find("text_encoder")->config.set("eos_token_id", 7);
  merged(model, {{vectors(1, 4, 1), "", 1}});
  CHECK(config(model, "eos_token_id") == ts::json_value(7));
  ts::package large = pipeline({{49408, 1}}, 0);
  large.side_files.clear();
  const outcome out = merged(large, {{vectors(1, 1, 1), "", 1}});
  CHECK(config(large, "eos_token_id") == ts::json_value(49407));
  CHECK(config(large, "vocab_size") == ts::json_value(49409));
  CHECK(tokens_of(out.account) == "<cat>=49408/1");
  CHECK_FALSE(out.account.has_tokenizer);
  CHECK(warned(out, "the model comes without its files; '<cat>' has the id 49408"));
  CHECK(large.side_files.empty());
}

TEST_CASE("graphs pool at the end marker, wherever the new tokens lie", "[arch]") {
  ts::job run;
  auto model = ts::open_stable_diffusion(support::data("sdxl/diffusers").string(), {}, run);
  REQUIRE(model);
  auto embeddings = ts::open_textual_inversion(support::data("embeddings/sdxl.safetensors").string(), run);
  REQUIRE(embeddings);
  const std::vector<ts::embedding_request> requests{{(*embeddings)[0], "<cat>", 1}};
  REQUIRE(ts::merge_embeddings(*model, requests, {}, run));
  const auto graphs = ts::build_stable_diffusion(*model, {}, run);
  INFO((graphs ? std::string() : graphs.error().message()));
  REQUIRE(graphs);
  std::size_t pools = 0;
  for (const ts::bundle_component& part : graphs->components)
    for (const ts::node& n : part.model.nodes)
      if (n.op == "pool_at_token") {
        ++pools;
        CHECK(n.integer("token", 0) == 299);
      }
  CHECK(pools == 2);
}

TEST_CASE("a single file names its new tokens in its metadata, and tokenizers that come later get them", "[arch]") {
  const support::temp_folder work;
  const std::string original = support::data("sd1/sd1.ckpt").string(), tokenizer = support::data("sd1/diffusers/tokenizer").string();
  ts::job run;
  auto source = ts::open_weights(original, {}, run);
  REQUIRE(source);
  auto model = ts::recognize_stable_diffusion(*source, {}, run);
  INFO((model ? std::string() : model.error().message()));
  REQUIRE(model);
  CHECK(model->metadata.empty());
  auto embeddings = ts::open_textual_inversion(support::data("embeddings/kohya.pt").string(), run);
  REQUIRE(embeddings);
  const std::vector<ts::embedding_request> requests{{(*embeddings)[0], "<cat>", 1}};
  const auto account = ts::merge_embeddings(*model, requests, {}, run);
  REQUIRE(account);
  CHECK(tokens_of(*account) == "<cat>=300/1 <cat>_1=301/1 <cat>_2=302/1");
  auto tensors = ts::update_checkpoint(source->components[0].weights, *model, account->weights, run);
  INFO((tensors ? std::string() : tensors.error().message()));
  REQUIRE(tensors);
  const std::string grown = work / "grown.safetensors";
  ts::safetensors_write_options how;
  how.metadata = model->metadata;
  REQUIRE(ts::write_safetensors(*tensors, grown, how, run));

  ts::open_options opening;
  opening.tokenizer_dir = tokenizer;
  auto again = ts::open_stable_diffusion(grown, opening, run);
  INFO((again ? std::string() : again.error().message()));
  REQUIRE(again);
  CHECK(config(*again, "vocab_size") == ts::json_value(303));
  CHECK(config(*again, "eos_token_id") == ts::json_value(299));
  CHECK(text_of(*again, "tokenizer/added_tokens.json") == "{\n  \"<cat>\": 300,\n  \"<cat>_1\": 301,\n  \"<cat>_2\": 302\n}\n");
  CHECK(values_of(matrix(*again)) == values_of(matrix(*model)));
  const std::vector<ts::embedding_request> more{{(*embeddings)[0], "<dog>", 1}};
  CHECK(tokens_of(*ts::merge_embeddings(*again, more, {}, run)) == "<dog>=303/1 <dog>_1=304/1 <dog>_2=305/1");

  SECTION("without a tokenizer the ids go on behind the rows") {
    auto bare = ts::open_stable_diffusion(grown, {}, run);
    REQUIRE(bare);
    CHECK(text_of(*bare, "tokenizer/added_tokens.json") == "absent");
    REQUIRE(ts::merge_embeddings(*bare, more, {}, run));
    CHECK(bare->metadata[0].second == "{\"<cat>\": 300, \"<cat>_1\": 301, \"<cat>_2\": 302, \"<dog>\": 303, \"<dog>_1\": 304, \"<dog>_2\": 305}");
  }
  SECTION("a tokenizer with other tokens there is refused") {
    std::filesystem::copy(tokenizer, work / "other");
    std::ofstream(work / "other/added_tokens.json") << "{\"<bird>\": 300}";
    opening.tokenizer_dir = work / "other";
    const auto refused = ts::open_stable_diffusion(grown, opening, run);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message() == "MIS " + grown + ": token '<cat>': the tokenizer does not fit the tokens that were added to the file (expected the id "
                                       "300, found '<bird>' there); pass --tokenizer DIR with the tokenizer of the original model");
  }
  SECTION("metadata that name rows which are not there") {
    how.metadata = {{std::string(ts::added_tokens_key), "{\"<cat>\": 303}"}};
    how.force = true;
    REQUIRE(ts::write_safetensors(*tensors, grown, how, run));
    CHECK(ts::open_stable_diffusion(grown, {}, run).error().message() ==
          "MIS " + grown + ": token '<cat>': the file's metadata name a token that its text encoder has no row for (expected an id below 303, found 303)");
    how.metadata[0].second = "{\"<cat>\": -1}";
    REQUIRE(ts::write_safetensors(*tensors, grown, how, run));
    CHECK(ts::open_stable_diffusion(grown, {}, run).error().message() ==
          "FMT " + grown + ": metadata 'tensorsmith.added_tokens', byte offset 13 at '/<cat>': the id of a token is out of range (expected 0 to 16777215, found -1)");
    how.metadata[0].second = "{";
    REQUIRE(ts::write_safetensors(*tensors, grown, how, run));
    CHECK(ts::open_stable_diffusion(grown, {}, run).error().code == ts::errc::malformed);
  }
}
