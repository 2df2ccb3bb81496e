// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/tokenizer_files.hpp: finds the tokenizer files that a single-file checkpoint does not hold.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/pipeline_files.hpp"
#include "tensorsmith/format/diffusers/read.hpp"
#include "tensorsmith/io/json.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::string_view tokenizer_file_names[] = {"added_tokens.json",   "merges.txt",            "special_tokens_map.json",
                                                            "tokenizer.json", "tokenizer_config.json", "vocab.json"};

/// True if the folder itself holds a vocabulary.
inline bool holds_vocabulary(const std::string& folder) {
  return os::is_regular_file(join_path(folder, "tokenizer.json")) ||
         (os::is_regular_file(join_path(folder, "vocab.json")) && os::is_regular_file(join_path(folder, "merges.txt")));
}

inline std::shared_ptr<const byte_source> text_source(const std::string& name, const std::string& text) {
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return std::make_shared<memory_source>(name, std::vector<std::byte>(data, data + text.size()));
}

inline side_file json_side_file(const std::string& path, const json_value& value) {
  return {path, text_source(path, write_json(value) + "\n")};
}

/// A configuration of a tokenizer with another padding token; the standard one if the folder has none.
inline result<json_value> padded_config(const std::string& folder, const std::string& name, json_value standard, std::string_view pad,
                                        bool change, const limits& bounds) {
  if (!os::is_regular_file(join_path(folder, name))) return standard;
  TENSORSMITH_TRY(json_value config, read_config(folder, name, bounds));
  if (change) config.set("pad_token", pad);
  return config;
}

/// Adds the tokenizer files of `folder` as `name/…`. `change_pad`: the folder is of a tokenizer with another padding token.
inline result<void> add_tokenizer(std::vector<side_file>& out, const std::string& folder, const std::string& name, std::string_view pad,
                                  bool change_pad, job& run) {
  for (const std::string_view file : tokenizer_file_names) {
    const std::string from = join_path(folder, file), to = join_path(name, file);
    const bool config = file == "tokenizer_config.json", map = file == "special_tokens_map.json";
    if ((config || map) && (change_pad || !os::is_regular_file(from))) {
      TENSORSMITH_TRY(const json_value value,
                      padded_config(folder, std::string(file), config ? make_tokenizer_config(pad) : make_special_tokens_map(pad), pad,
                                    change_pad, run.limits));
      out.push_back(json_side_file(to, value));
    } else if (os::is_regular_file(from)) {
      TENSORSMITH_TRY(auto bytes, open_file_below(folder, std::string(file), folder));
      if (bytes->size() > run.limits.tokenizer_bytes)
        return failure{.code = errc::limit, .what = "the tokenizer's file is too long", .file = from,
                       .expected = "at most " + std::to_string(run.limits.tokenizer_bytes) + " bytes",
                       .found = std::to_string(bytes->size()), .advice = "raise limits::tokenizer_bytes (--max-tokenizer) if you trust it"};
      out.push_back({to, std::move(bytes)});
    }
  }
  return {};
}

}  // namespace detail

/// The tokenizers of a pipeline, as side files: from `given` (vocab.json and merges.txt, or tokenizer/ and tokenizer_2/ in it), else from
/// `neighbour`, the folder of the model. What is missing is a warning.
/// @fails mismatch (`given` holds none), malformed, limit, path, io
inline result<void> add_tokenizers(std::vector<side_file>& out, sd_family family, const pipeline_parts& parts, const std::string& given,
                                   const std::string& neighbour, job& run) {
  const std::string& root = given.empty() ? neighbour : given;
  const bool flat = !given.empty() && detail::holds_vocabulary(given);
  const std::string first = flat ? given : join_path(root, "tokenizer"), second = flat ? given : join_path(root, "tokenizer_2");
  const bool has_first = detail::holds_vocabulary(first), has_second = detail::holds_vocabulary(second);
  if (!given.empty() && !has_first && !has_second)
    return failure{.code = errc::mismatch, .what = "the folder holds no tokenizer", .file = given,
                   .expected = "vocab.json and merges.txt, or the folder tokenizer with them", .found = "neither"};
  const bool wanted[] = {parts.text_encoder, parts.text_encoder_2};
  for (const bool two : {false, true}) {
    if (!wanted[two]) continue;
    const std::string name = two ? "tokenizer_2" : "tokenizer";
    if (!has_first && !has_second) {
      run.warn(name, "no vocabulary was found; pass --tokenizer DIR with vocab.json and merges.txt, without which the pipeline cannot read prompts");
      continue;
    }
    const bool own = two ? has_second : has_first;
    const bool other_pad = flat ? two : !own;
    if (!own) run.info(name, "taken from " + quoted(two ? first : second) + " with the padding token " + quoted(pad_token(family, two)));
    TENSORSMITH_CHECK(detail::add_tokenizer(out, own == two ? second : first, name, pad_token(family, two), other_pad, run));
  }
  return {};
}

TENSORSMITH_END_NAMESPACE
