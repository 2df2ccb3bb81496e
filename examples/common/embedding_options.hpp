// SPDX-License-Identifier: MIT
//
// common/embedding_options.hpp: --embedding and what belongs to it: the embeddings of a command line, opened and ready to be added.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "adapter_options.hpp"
#include "command_line.hpp"
#include "report.hpp"
#include "tensorsmith/arch/merge_embedding.hpp"

namespace examples {

struct embedding_options {
  std::vector<std::string> embeddings;  // FILE[:TOKEN[:STRENGTH]]
  std::string rule = "diffusers";
  bool onnx_web_aliases = false, zero_missing = false;
  std::size_t most_vectors = ts::embedding_options{}.most_vectors;
};

/// FILE[:TOKEN[:STRENGTH]]. FILE may hold colons where the whole of it exists, and may be two files with a comma between: those of SDXL's encoders.
struct embedding_argument {
  std::vector<std::string> files;
  std::string token;  // empty: what the file says
  double strength = 1;
};

namespace detail {

/// The files that `text` names: itself, or the two sides of a comma; nothing if they do not exist.
inline std::vector<std::string> embedding_files(const std::string& text) {
  if (ts::os::exists(text)) return {text};
  for (std::size_t comma = text.find(','); comma != std::string::npos; comma = text.find(',', comma + 1))
    if (std::vector<std::string> two{text.substr(0, comma), text.substr(comma + 1)}; ts::os::exists(two[0]) && ts::os::exists(two[1])) return two;
  return {};
}

}  // namespace detail

/// @fails usage (a strength that is no finite number), path (no such file)
inline ts::result<embedding_argument> parse_embedding(const std::string& text) {
  embedding_argument out;
  if (out.files = detail::embedding_files(text); !out.files.empty()) return out;
  const std::size_t last = text.rfind(':');
  const std::size_t before = last == std::string::npos || last == 0 ? std::string::npos : text.rfind(':', last - 1);
  if (last != std::string::npos)
    if (out.files = detail::embedding_files(text.substr(0, last)); !out.files.empty()) return out.token = text.substr(last + 1), out;
  if (before != std::string::npos)
    if (out.files = detail::embedding_files(text.substr(0, before)); !out.files.empty()) {
      const auto strength = number_of(std::string_view(text).substr(last + 1));
      if (!strength || !is_strength(*strength))
        return usage_error("--embedding " + ts::quoted(text) + ": the strength is no number between -10000 and 10000");
      out.token = text.substr(before + 1, last - before - 1), out.strength = *strength;
      return out;
    }
  return ts::failure{.code = ts::errc::path, .what = "an embedding's file does not exist",
                     .file = text.substr(0, before != std::string::npos ? before : last),
                     .place = "--embedding", .expected = "FILE[:TOKEN[:STRENGTH]], or FILE,FILE_2 for SDXL's two encoders",
                     .found = ts::quoted(text)};
}

/// The files of --embedding. @fails as parse_embedding
inline ts::result<std::vector<std::string>> files_of(const embedding_options& o) {
  std::vector<std::string> out;
  for (const std::string& text : o.embeddings) {
    TENSORSMITH_TRY(const embedding_argument argument, parse_embedding(text));
    out.insert(out.end(), argument.files.begin(), argument.files.end());
  }
  return out;
}

inline ts::token_rule rule_of(const embedding_options& o) {
  return o.rule == "onnx-web" ? ts::token_rule::onnx_web : o.rule == "kohya" ? ts::token_rule::kohya : ts::token_rule::diffusers;
}

/// The options that say how embeddings are added. `group`: their heading in --help.
inline void add_embedding_rules(CLI::App& app, embedding_options& o, const std::string& group = "Options") {
  app.add_option("--rule", o.rule,
                 "tokens of several vectors: T, T_1, … as diffusers; T, T-all (their sum), T-0, … as onnx-web; T, T1, … as kohya")
      ->check(CLI::IsMember({"diffusers", "onnx-web", "kohya"}))->capture_default_str()->group(group);
  app.add_flag("--onnx-web-aliases", o.onnx_web_aliases, "add onnx-web's T-0, … and T-all to the tokens of the rule")->group(group);
  app.add_flag("--zero-missing", o.zero_missing,
               "an embedding for one of SDXL's encoders gets zeros for the other, instead of being refused")->group(group);
  app.add_option("--max-vectors", o.most_vectors, "most vectors of one embedding")->capture_default_str()->group(group);
}

inline CLI::Option* add_embedding_option(CLI::App& app, embedding_options& o, const std::string& help) {
  return app.add_option("--embedding", o.embeddings, help)->allow_extra_args(false)->type_name("FILE[,FILE_2][:TOKEN[:STRENGTH]]");
}

namespace detail {

/// Two files of one embedding, the second one for the second encoder. @fails as the readers, mismatch
inline ts::result<ts::textual_inversion> paired(const embedding_argument& a, ts::job& run) {
  std::vector<ts::textual_inversion> halves[2];
  for (std::size_t i = 0; i < 2; ++i) {
    TENSORSMITH_TRY(const ts::package file, ts::open_weights(a.files[i], {}, run));
    TENSORSMITH_TRY(halves[i], ts::read_textual_inversions(file));
    if (halves[i].size() != 1 || halves[i][0].parts.size() != 1)
      return ts::failure{.code = ts::errc::mismatch, .what = "a pair of files is one embedding, each file for one encoder", .file = a.files[i],
                         .expected = "one embedding with vectors for one encoder", .found = counted(halves[i].size(), "embedding"),
                         .advice = "pass the files one by one"};
  }
  auto& [first, second] = halves;
  ts::textual_inversion out = std::move(first[0]);
  out.parts[0].encoder = "text_encoder";
  out.parts.push_back(std::move(second[0].parts[0]));
  out.parts[1].encoder = "text_encoder_2";
  out.tensors.insert(out.tensors.end(), second[0].tensors.begin(), second[0].tensors.end());
  if (second[0].name != out.name) out.notes.push_back("its second file calls it " + ts::quoted(second[0].name));
  return out;
}

}  // namespace detail

/// Opens the embeddings of --embedding. @fails usage, and as open_textual_inversion
inline ts::result<std::vector<ts::embedding_request>> open_embeddings(const embedding_options& o, ts::job& run) {
  std::vector<ts::embedding_request> out;
  for (const std::string& text : o.embeddings) {
    TENSORSMITH_TRY(const embedding_argument argument, parse_embedding(text));
    std::vector<ts::textual_inversion> found;
    if (argument.files.size() == 1) {
      TENSORSMITH_TRY(found, ts::open_textual_inversion(argument.files[0], run));
    } else {
      TENSORSMITH_TRY(ts::textual_inversion both, detail::paired(argument, run));
      found.push_back(std::move(both));
    }
    if (!argument.token.empty() && found.size() > 1)
      return usage_error("--embedding " + ts::quoted(text) + " names one token, and the file holds " +
                        counted(found.size(), "embedding"), "leave out the token");
    for (ts::textual_inversion& one : found) out.push_back({std::move(one), argument.token, argument.strength});
  }
  return out;
}

inline ts::embedding_options how_of(const embedding_options& o, std::optional<ts::dtype> to, ts::cast_overflow overflow) {
  ts::embedding_options out;
  out.rule = rule_of(o), out.onnx_web_aliases = o.onnx_web_aliases, out.zero_missing = o.zero_missing, out.most_vectors = o.most_vectors;
  out.to = to, out.overflow = overflow;
  return out;
}

}  // namespace examples
