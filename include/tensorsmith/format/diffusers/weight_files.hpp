// SPDX-License-Identifier: MIT
//
// tensorsmith/format/diffusers/weight_files.hpp: which of the weight files of a component folder to read.
//
// Published folders hold the same weights several times: in f32 and f16, as safetensors and pickles, whole and in shards. The order
// of preference is fixed, and what was chosen is told.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "tensorsmith/core/error.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A file that holds, or indexes, all weights of a component.
struct weight_file {
  std::string name;
  std::string variant;   ///< "fp16", "non_ema", … or empty
  bool pickle = false;   ///< .bin
  bool sharded = false;  ///< an index of shards
};

namespace detail {

inline bool take_suffix(std::string_view& text, std::string_view suffix) noexcept {
  if (text.size() < suffix.size() || text.substr(text.size() - suffix.size()) != suffix) return false;
  text.remove_suffix(suffix.size());
  return true;
}

/// "-00001-of-00003" at the end of a name.
inline bool is_shard(std::string_view stem) noexcept { return stem.find("-of-") != std::string_view::npos; }

}  // namespace detail

/// Reads a file's name: `diffusion_pytorch_model.fp16.safetensors`, `model.safetensors.index.json`,
/// `pytorch_model.bin.index.fp16.json`, … True if it is one that holds or indexes a component's weights.
inline bool read_weight_file_name(std::string_view name, weight_file& out) {
  out = weight_file{std::string(name), {}, false, false};
  std::string_view rest = name;
  const auto take_stem = [&](std::string_view text) {
    for (const std::string_view stem : {"diffusion_pytorch_model", "pytorch_model", "model"}) {
      if (text.substr(0, stem.size()) != stem) continue;
      text.remove_prefix(stem.size());
      if (text.empty()) return true;
      if (text[0] != '.' || detail::is_shard(text)) return false;
      if (out.variant.empty()) return out.variant = std::string(text.substr(1)), true;
      return false;
    }
    return false;
  };
  if (detail::take_suffix(rest, ".json")) {
    const auto at = rest.find(".index");
    if (at == std::string_view::npos) return false;
    const std::string_view tail = rest.substr(at + 6);
    if (!tail.empty() && tail[0] != '.') return false;
    if (!tail.empty()) out.variant = std::string(tail.substr(1));
    out.sharded = true;
    rest = rest.substr(0, at);
  }
  if (detail::take_suffix(rest, ".bin")) out.pickle = true;
  else if (!detail::take_suffix(rest, ".safetensors")) return false;
  return take_stem(rest);
}

/// All weight files among these names, best first: the variant asked for, plain files, the variant fp16, other variants by name;
/// among them safetensors before pickles (the other way round if `prefer_pickle`), whole files before shards.
inline std::vector<weight_file> rank_weight_files(const std::vector<std::string>& names, const std::string& variant, bool prefer_pickle) {
  std::vector<weight_file> out;
  weight_file file;
  for (const std::string& name : names)
    if (read_weight_file_name(name, file)) out.push_back(file);
  const auto key = [&](const weight_file& f) {
    const int rank = !variant.empty() && f.variant == variant ? 0 : f.variant.empty() ? 1 : f.variant == "fp16" ? 2 : 3;
    return std::tuple(rank, f.variant, f.pickle != prefer_pickle, f.sharded, f.name);
  };
  std::sort(out.begin(), out.end(), [&](const weight_file& a, const weight_file& b) { return key(a) < key(b); });
  return out;
}

TENSORSMITH_END_NAMESPACE
