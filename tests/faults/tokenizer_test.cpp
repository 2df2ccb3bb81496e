// SPDX-License-Identifier: MIT
//
// Files of tokenizers: copied byte by byte, whatever they hold, within a limit; nothing in them is run.
#include <filesystem>
#include <string>

#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"

namespace fs = std::filesystem;

TEST_CASE("TOK-05, TOK-06: odd vocabularies and merges are copied byte by byte") {
  const support::temp_folder work;
  const std::string folder = work / "model";
  REQUIRE(programs::run("make-tiny-sd", {folder, "--family", "sd1", "--form", "diffusers"}).status == 0);
  std::string many = "{";
  for (int i = 0; i < 1'000'000; ++i) many += (i ? ",\"t" : "\"t") + std::to_string(i) + "\":" + std::to_string(i);
  const std::string vocabularies[] = {R"({"a":0,"b":7})", R"({"a":0,"b":0,"a":1})", "{\"\xFF\":4294967295,\"b\":-1}", "",
                                      "{\"a\":" + std::string(100'000, '['), many + "}"};
  const std::string merges[] = {"#version: 0.2\r\na b\r\n", "\xEF\xBB\xBF" "a b\n", "a b", "",
                                std::string(1000, 'a') + " " + std::string(1000, 'b') + "\n"};
  for (const std::string& vocabulary : vocabularies)
    for (const std::string& merge : merges) {
      if (&vocabulary != vocabularies && &merge != merges) continue;  // each with one good partner
      programs::write_text(folder + "/tokenizer/vocab.json", vocabulary);
      programs::write_text(folder + "/tokenizer/merges.txt", merge);
      const auto run = programs::run("sd-to-onnx", {folder, work / "out", "--components", "text_encoder", "--force", "--quiet"});
      INFO(run.err);
      REQUIRE(run.status == 0);
      CHECK(programs::read_text(work / "out/tokenizer/vocab.json") == vocabulary);
      CHECK(programs::read_text(work / "out/tokenizer/merges.txt") == merge);
    }
  fs::remove_all(work / "out");
  programs::write_text(folder + "/tokenizer/vocab.json", "");
  fs::resize_file(folder + "/tokenizer/vocab.json", (256u << 20) + 1);
  faults::refused("sd-to-onnx", work.path(), {folder, work / "out"}, "LIM",
                  folder + "/tokenizer/vocab.json: the file is too long for a side file (expected at most 268435456 bytes, found 268435457); raise "
                           "limits::tokenizer_bytes (--max-tokenizer) if you trust it");
}
