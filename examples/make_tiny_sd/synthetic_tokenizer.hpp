// SPDX-License-Identifier: MIT
//
// make_tiny_sd/synthetic_tokenizer.hpp: files of a CLIP tokenizer whose vocabulary is made up but consistent.
//
// As in CLIP: 256 byte letters, the same at the end of a word, one token a merge, and the two markers last, so that the end
// marker has the largest id.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/pipeline_files.hpp"
#include "tensorsmith/core/json_value.hpp"

namespace make_tiny_sd {

namespace ts = tensorsmith;

/// A file to write: path below the model's folder, contents.
struct text_file {
  std::string path;
  ts::json_value json;    // written as JSON if not null,
  std::string text{};     // else this
};

namespace detail {

inline std::string utf8(unsigned point) {
  if (point < 0x80) return {static_cast<char>(point)};
  return {static_cast<char>(0xC0 | (point >> 6)), static_cast<char>(0x80 | (point & 0x3F))};
}

/// The 256 letters in the order of CLIP's vocabulary: printable bytes stand for themselves and come first, the others
/// take the code points from 256 on.
inline std::vector<std::string> byte_letters() {
  const auto printable = [](unsigned b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  std::vector<std::string> letters;
  for (unsigned b = 0; b < 256; ++b)
    if (printable(b)) letters.push_back(utf8(b));
  for (unsigned b = 0, next = 256; b < 256; ++b)
    if (!printable(b)) letters.push_back(utf8(next++));
  return letters;
}

/// `count` merges: all words of two letters, then of three, then of four, each in both places of a word. Every left side
/// is a letter or made by an earlier merge.
inline std::vector<std::pair<std::string, std::string>> made_up_merges(std::size_t count) {
  constexpr std::string_view letters = "etaoinshrdlucmfwypvbgkjqxz";
  std::vector<std::pair<std::string, std::string>> merges;
  std::vector<std::string> stems;
  for (const char c : letters) stems.emplace_back(1, c);
  while (merges.size() < count) {
    std::vector<std::string> longer;
    for (const std::string& stem : stems)
      for (const char c : letters) {
        for (const char* end : {"", "</w>"}) {
          if (merges.size() == count) return merges;
          merges.emplace_back(stem, c + std::string(end));
        }
        longer.push_back(stem + c);
      }
    stems = std::move(longer);
  }
  return merges;
}

}  // namespace detail

/// The four files of a tokenizer with `vocabulary` ids in `folder`. @pre vocabulary >= 514
inline std::vector<text_file> synthetic_tokenizer(const std::string& folder, std::size_t vocabulary, std::string_view pad) {
  const std::vector<std::string> letters = detail::byte_letters();
  const auto merges = detail::made_up_merges(vocabulary - 2 * letters.size() - 2);
  ts::json_value::object ids;
  std::int64_t next = 0;
  for (const std::string& letter : letters) ids.emplace_back(letter, next++);
  for (const std::string& letter : letters) ids.emplace_back(letter + "</w>", next++);
  std::string merge_lines = "#version: 0.2\n";
  for (const auto& [left, right] : merges) {
    ids.emplace_back(left + right, next++);
    merge_lines += left + ' ' + right + '\n';
  }
  ids.emplace_back("<|startoftext|>", next++);
  ids.emplace_back("<|endoftext|>", next++);

  std::vector<text_file> files;
  files.push_back({folder + "/vocab.json", ts::json_value(std::move(ids))});
  files.push_back({folder + "/merges.txt", {}, std::move(merge_lines)});
  files.push_back({folder + "/tokenizer_config.json", ts::make_tokenizer_config(pad)});
  files.push_back({folder + "/special_tokens_map.json", ts::make_special_tokens_map(pad)});
  return files;
}

}  // namespace make_tiny_sd
