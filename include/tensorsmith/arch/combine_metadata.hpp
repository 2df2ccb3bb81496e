// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/combine_metadata.hpp: what a combined adapter says about itself: what stays true of its sources, and what it was made of.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/io/json.hpp"
#include "tensorsmith/io/path.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// String pairs of a file.
using text_pairs = std::vector<std::pair<std::string, std::string>>;

/// What the metadata of a combination are made from.
struct combination_facts {
  struct source {
    std::string file;
    double unet = 1, text_encoder = 1;
    text_pairs metadata;
  };
  std::string mode;
  std::vector<source> sources;
  std::set<std::size_t> ranks;
  std::set<double> alphas;
  std::size_t conv_rank = 0;   ///< 0: none of its own
  bool numbered = false;       ///< cloneofsimo's names
  std::vector<std::pair<std::string, std::size_t>> numbers{};  ///< "unet:3" and its rank
  std::vector<std::string> tokens{};
  /// "unet" and the classes whose layers its numbers count; none: the part has no numbers
  std::vector<std::pair<std::string, std::vector<std::string>>> classes{};
};

namespace detail {

inline std::string shortest_text(double value) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, value);
  return std::string(digits, end.ptr);
}

inline const std::string* text_of(const text_pairs& pairs, std::string_view key) noexcept {
  for (const auto& [known, value] : pairs)
    if (known == key) return &value;
  return nullptr;
}

/// Keys that stay true of a combination if the sources agree on them: about the base model, not about one training.
inline constexpr std::string_view lasting_keys[] = {"ss_base_model_version",
                                                    "ss_v2",
                                                    "ss_sd_model_name",
                                                    "ss_sd_model_hash",
                                                    "ss_new_sd_model_hash",
                                                    "ss_vae_name",
                                                    "ss_vae_hash",
                                                    "ss_new_vae_hash",
                                                    "ss_clip_skip",
                                                    "modelspec.sai_model_spec",
                                                    "modelspec.architecture",
                                                    "modelspec.implementation",
                                                    "modelspec.prediction_type",
                                                    "modelspec.resolution",
                                                    "modelspec.encoder_layer"};

}  // namespace detail

/// The metadata of a combined adapter. Kept where all sources that have any agree: what describes the base model. New: ss_network_module,
/// ss_network_dim and ss_network_alpha ("Dynamic" if modules differ), ss_network_args (conv_dim, conv_alpha) where the convolutions got a rank of
/// their own, modelspec.merged_from (titles or file names), tensorsmith.mode and tensorsmith.sources (JSON: file name and strengths). Dropped:
/// everything about one training, and hashes of what is no longer there. With cloneofsimo's names: its class lists (those of the last file that has
/// them, as its tool does; its loader takes no file without them, so where no source has any, the classes that were counted) and ranks.
inline text_pairs combined_metadata(const combination_facts& facts) {
  std::map<std::string, std::string> out;
  for (const std::string_view key : detail::lasting_keys) {
    std::optional<std::string> value;
    bool same = true;
    for (const auto& source : facts.sources)
      if (const std::string* own = detail::text_of(source.metadata, key)) {
        same = same && (!value || *value == *own);
        value = *own;
      }
    if (value && same) out.emplace(key, *value);
  }
  json_value::array sources;
  std::string merged_from;
  for (const auto& source : facts.sources) {
    const std::string file(file_name(without_trailing_slashes(source.file)));
    const std::string* const title = detail::text_of(source.metadata, "modelspec.title");
    merged_from += (merged_from.empty() ? "" : ", ") + (title ? *title : file);
    json_value one;
    one.set("file", file);
    one.set("strength", source.unet);
    one.set("text_encoder_strength", source.text_encoder);
    sources.push_back(std::move(one));
  }
  out["modelspec.merged_from"] = merged_from;
  out["tensorsmith.mode"] = facts.mode;
  out["tensorsmith.sources"] = write_json(json_value(std::move(sources)), 0);
  if (facts.numbered) {
    for (const auto& source : facts.sources)
      for (const std::string_view key : {"unet", "text_encoder"})
        if (const std::string* own = detail::text_of(source.metadata, key)) out[std::string(key)] = *own;
    for (const auto& [part, names] : facts.classes)
      if (!names.empty()) out.try_emplace(part, write_json(json_value(json_value::array(names.begin(), names.end())), 0));
    for (const auto& [name, rank] : facts.numbers) out[name + ":rank"] = std::to_string(rank);
    for (const std::string& token : facts.tokens) out[token] = "<embed>";
  } else {
    out["ss_network_module"] = "networks.lora";
    if (!facts.ranks.empty()) {
      out["ss_network_dim"] = facts.ranks.size() == 1 ? std::to_string(*facts.ranks.begin()) : "Dynamic";
      out["ss_network_alpha"] = facts.alphas.size() == 1 ? detail::shortest_text(*facts.alphas.begin()) : "Dynamic";
    }
    if (facts.conv_rank != 0) {
      json_value conv;
      conv.set("conv_dim", std::to_string(facts.conv_rank));
      conv.set("conv_alpha", std::to_string(facts.conv_rank));
      out["ss_network_args"] = write_json(conv, 0);
    }
  }
  return {out.begin(), out.end()};
}

TENSORSMITH_END_NAMESPACE
