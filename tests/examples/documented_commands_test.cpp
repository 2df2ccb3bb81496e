// SPDX-License-Identifier: MIT
//
// The command lines about merging that README.md and docs/merging.md show, run as they stand there on small files of those names.
#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "examples/adapters.hpp"
#include "examples/run.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;

/// The words of a command line, quotes as a shell reads them.
strings words_of(const std::string& line) {
  strings out;
  bool quoted = false, open = false;
  for (const char c : line) {
    if (c == '\'') {
      quoted = !quoted;
    } else if (c == ' ' && !quoted) {
      open = false;
      continue;
    }
    if (!open) out.emplace_back(), open = true;
    if (c != '\'') out.back() += c;
  }
  return out;
}

/// The code spans of a document, in its tables too, that start one of the programs with its arguments: no placeholders.
std::vector<strings> commands_of(const fs::path& document, const std::string& from, const std::string& to) {
  std::string text = read_text(document);
  const std::size_t begin = text.find(from), end = text.find(to, begin);
  REQUIRE(begin != std::string::npos);
  REQUIRE(end != std::string::npos);
  text = text.substr(begin, end - begin);
  std::vector<strings> out;
  for (std::size_t at = text.find('`'); at != std::string::npos; at = text.find('`', at + 1)) {
    const std::size_t close = text.find('`', at + 1);
    REQUIRE(close != std::string::npos);
    const std::string line = text.substr(at + 1, close - at - 1);
    at = close;
    const strings words = words_of(line);
    if (words.size() < 3 || line.find("…") != std::string::npos || line.find("FILE") != std::string::npos || line.find("OUTPUT") != std::string::npos) continue;
    for (const char* program : {"merge-lora", "merge-embedding", "sd-to-onnx", "convert-weights"})
      if (words[0] == program) out.push_back(words);
  }
  return out;
}

/// The files that the documents name, in the current folder.
void make_files() {
  const fs::path here = fs::current_path();
  made_model(here, "sd1", "diffusers");
  fs::rename("sd1.diffusers", "stable-diffusion-v1-5");
  fs::rename(made_model(here, "sd1", "safetensors"), "v1-5.safetensors");
  made_model(here, "sdxl", "diffusers");
  fs::rename("sdxl.diffusers", "sdxl");
  fs::rename(made_model(here, "sdxl", "safetensors"), "sdxl.safetensors");
  report_of("sd-to-onnx", {"stable-diffusion-v1-5", "sd15-onnx"});
  kohya_adapter(here / "style.safetensors", "stable-diffusion-v1-5", "sd1", 1);
  kohya_adapter(here / "second.safetensors", "stable-diffusion-v1-5", "sd1", 900);
  kohya_adapter(here / "xl.safetensors", "sdxl", "sdxl", 1);
  const std::size_t width = shapes_of("stable-diffusion-v1-5", "text_encoder")["text_model.embeddings.token_embedding.weight"][1];
  learned_embeds(here / "learned_embeds.safetensors", "<cat>", 2, width);
  learned_embeds(here / "cat.safetensors", "<cat>", 2, width);
  faults::converted({"cat.safetensors", "cat.pt", "--to", "torch"});
  safetensors_parts bundle = faults::read_parts("style.safetensors");
  add_tensor(bundle, "<s1>", "F32", {width}, floats(width, 3, 0.02F));
  bundle.header["__metadata__"] = {{"<s1>", "<embed>"}};
  faults::write_parts(here / "lora.safetensors", bundle);
}

}  // namespace

TEST_CASE("every command line about merging in README.md and docs/merging.md runs") {
  const fs::path root = fs::absolute(support::data()).parent_path().parent_path(), before = fs::current_path();
  auto commands = commands_of(root / "README.md", "## Merging adapters", "## How fast");
  const std::size_t in_readme = commands.size();
  for (strings& command : commands_of(root / "docs/merging.md", "## Command lines of other tools", "## The numbers")) commands.push_back(std::move(command));
  CHECK(in_readme >= 8);
  CHECK(commands.size() >= in_readme + 11);
  const support::temp_folder work;
  fs::current_path(work.path());
  make_files();
  for (strings& command : commands) {
    CAPTURE(command);
    const std::string program = command.front();
    command.erase(command.begin());
    command.push_back("--force");
    const outcome run = programs::run(program, command);
    INFO(run.err);
    CHECK(run.status == 0);
    CHECK((fs::exists(command[1]) || std::count(command.begin(), command.end(), "--dry-run") == 1));
  }
  fs::current_path(before);
}

TEST_CASE("upl and upl-ckpt-v2 of lora_add: a folder with adapter and tokens; a checkpoint of it") {
  const fs::path before = fs::current_path();
  const support::temp_folder work;
  fs::current_path(work.path());
  make_files();
  const auto upl = report_of("merge-lora", {"stable-diffusion-v1-5", "merged", "--lora", "lora.safetensors:0.8", "--bundled-embeddings"});
  CHECK(upl["adapters"][0]["not_found"] == 0);
  REQUIRE(upl["tokens"].size() == 1);
  CHECK(upl["tokens"][0]["token"] == "<s1>");
  CHECK(keys_applied(upl) + 1 == upl["adapters"][0]["keys"]["all"].get<std::size_t>());

  report_of("merge-lora", {"stable-diffusion-v1-5", "plain", "--lora", "lora.safetensors:0.8"});
  faults::converted({"plain", "merged.ckpt", "--to", "checkpoint", "--dtype", "f16"});
  faults::converted({"merged.ckpt", "ckpt.safetensors", "--to", "safetensors"});
  report_of("merge-lora", {"v1-5.safetensors", "direct.safetensors", "--lora", "lora.safetensors:0.8", "--dtype", "f16"});
  const auto direct = faults::tensors_of("direct.safetensors");
  for (const auto& [name, bytes] : faults::tensors_of("ckpt.safetensors")) {
    CAPTURE(name);
    REQUIRE(direct.count(name));
    CHECK((direct.at(name) == bytes));
  }
  fs::current_path(before);
}
