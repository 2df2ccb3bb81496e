// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/cloneofsimo.hpp: which layers the numbered pairs of a file of cloneofsimo/lora belong to.
//
// Include this to read such files. Nothing in them names a layer: the number counts the layers of the diffusers model in the order in which
// PyTorch registers them, over the classes that the metadata list. Source of the order: lora_diffusion/lora.py and the models of diffusers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/tensor/info.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The classes of a UNet whose layers an adapter changes.
struct cloneofsimo_classes {
  bool attention = true;  ///< CrossAttention, or Attention: one layer under the names of two versions of diffusers
  bool geglu = true;      ///< GEGLU: ff.net.0.proj
  bool resnets = false;   ///< ResnetBlock2D: the extended set
};

/// A layer that a pair may belong to.
struct cloneofsimo_slot {
  std::string module;        ///< "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
  bool convolution = false;  ///< has factors of four dimensions
};

/// The shapes of a pair.
struct cloneofsimo_pair {
  shape_type up, down;
};

/// Reads a list of class names. Their order carries no meaning. @fails unsupported (classes that are not known)
inline result<cloneofsimo_classes> cloneofsimo_unet_classes(std::span<const std::string> names, const std::string& file) {
  cloneofsimo_classes out{false, false, false};
  for (const std::string& name : names) {
    if (name == "CrossAttention" || name == "Attention") out.attention = true;
    else if (name == "GEGLU") out.geglu = true;
    else if (name == "ResnetBlock2D") out.resnets = true;
    else
      return failure{.code = errc::unsupported, .what = "the adapter numbers the layers of a class that is not known", .file = file,
                     .place = "metadata 'unet'",
                     .expected = "CrossAttention, Attention, GEGLU, ResnetBlock2D", .found = quoted(name)};
  }
  return out;
}

/// The class list of a part with these layers ("unet.down_blocks.…"), for the metadata of a file: the default set, or the extended one, which alone
/// reaches into resnets. Of files that have no list, which are read as one of the two. Empty: no layers of the part.
inline std::vector<std::string> cloneofsimo_class_list(std::string_view part, std::span<const std::string> modules) {
  bool any = false, resnets = false;
  for (const std::string& module : modules) {
    if (!module.starts_with(part) || module.size() == part.size() || module[part.size()] != '.') continue;
    any = true;
    resnets = resnets || module.find(".resnets.") != std::string::npos;
  }
  if (!any) return {};
  if (part == "text_encoder") return {"CLIPAttention"};
  std::vector<std::string> out{"CrossAttention", "Attention", "GEGLU"};
  if (resnets) out.push_back("ResnetBlock2D");
  return out;
}

/// The UNet's layers in the order of their numbers. SD1 and SD2 have the same. The middle block comes last, attentions come before resnets.
/// `feed_forward_between`: between the two attentions, as diffusers before 0.15 registered it; else behind them.
inline std::vector<cloneofsimo_slot> cloneofsimo_unet_slots(const cloneofsimo_classes& classes, bool feed_forward_between) {
  struct block {
    std::string_view name;
    std::size_t attentions, resnets, shortcuts;  // shortcuts: of the first resnets
  };
  constexpr block blocks[] = {{"down_blocks.0", 2, 2, 0}, {"down_blocks.1", 2, 2, 1}, {"down_blocks.2", 2, 2, 1}, {"down_blocks.3", 0, 2, 0},
                              {"up_blocks.0", 0, 3, 3},   {"up_blocks.1", 3, 3, 3},   {"up_blocks.2", 3, 3, 3},   {"up_blocks.3", 3, 3, 3},
                              {"mid_block", 1, 2, 0}};
  std::vector<cloneofsimo_slot> out;
  for (const block& b : blocks) {
    for (std::size_t j = 0; j < b.attentions; ++j) {
      const std::string path = std::string(b.name) + ".attentions." + std::to_string(j) + ".transformer_blocks.0.";
      const auto attention = [&](const char* name) {
        if (!classes.attention) return;
        for (const char* layer : {"to_q", "to_k", "to_v", "to_out.0"}) out.push_back({path + name + '.' + layer});
      };
      attention("attn1");
      if (classes.geglu && feed_forward_between) out.push_back({path + "ff.net.0.proj"});
      attention("attn2");
      if (classes.geglu && !feed_forward_between) out.push_back({path + "ff.net.0.proj"});
    }
    for (std::size_t j = 0; classes.resnets && j < b.resnets; ++j) {
      const std::string path = std::string(b.name) + ".resnets." + std::to_string(j) + '.';
      for (const auto& [layer, convolution] : {std::pair{"conv1", true}, std::pair{"time_emb_proj", false}, std::pair{"conv2", true}})
        out.push_back({path + layer, convolution});
      if (j < b.shortcuts) out.push_back({path + "conv_shortcut", true});
    }
  }
  return out;
}

/// A text encoder's layers in the order of their numbers: CLIPAttention registers k, v, q, out.
inline std::vector<cloneofsimo_slot> cloneofsimo_text_slots(std::size_t layers) {
  std::vector<cloneofsimo_slot> out;
  for (std::size_t i = 0; i < layers; ++i)
    for (const char* layer : {"k_proj", "v_proj", "q_proj", "out_proj"})
      out.push_back({"text_model.encoder.layers." + std::to_string(i) + ".self_attn." + layer});
  return out;
}

namespace detail {

/// Gives each pair its layer. As the loader does, layers of a kind that the file has no pairs of are passed over.
inline std::optional<std::vector<std::string>> match_cloneofsimo(std::span<const cloneofsimo_pair> pairs,
                                                                 const std::vector<cloneofsimo_slot>& slots) {
  const auto is_convolution = [](const cloneofsimo_pair& pair) { return pair.down.size() == 4; };
  const bool convolutions = std::any_of(pairs.begin(), pairs.end(), is_convolution);
  const bool linear = !std::all_of(pairs.begin(), pairs.end(), is_convolution);
  std::vector<std::string> out;
  for (const cloneofsimo_slot& slot : slots) {
    if (slot.convolution ? !convolutions : !linear) continue;
    if (out.size() == pairs.size() || is_convolution(pairs[out.size()]) != slot.convolution) return std::nullopt;
    out.push_back(slot.module);
  }
  if (out.size() != pairs.size()) return std::nullopt;
  return out;
}

inline failure cloneofsimo_mismatch(const std::string& file, std::string_view part, std::string expected, std::span<const cloneofsimo_pair> pairs) {
  const auto four = std::count_if(pairs.begin(), pairs.end(), [](const auto& pair) { return pair.down.size() == 4; });
  return failure{.code = errc::mismatch, .what = "the numbered pairs of the adapter do not count the layers of a known model", .file = file,
                 .place = "part " + quoted(part), .expected = std::move(expected),
                 .found = std::to_string(pairs.size()) + " pairs" + (four ? ", " + std::to_string(four) + " of them for convolutions" : "")};
}

}  // namespace detail

/// The layers of a UNet's pairs. Without classes, the default set and the extended one are tried. Which version of diffusers counted is told by the
/// fifth pair: ff.net.0.proj is eight times as wide as to_q. @fails mismatch (counts, kinds)
inline result<std::vector<std::string>> name_cloneofsimo_unet(std::span<const cloneofsimo_pair> pairs,
                                                              const std::optional<cloneofsimo_classes>& classes, const std::string& file) {
  const auto rows = [&](std::size_t i) { return i < pairs.size() && !pairs[i].up.empty() ? pairs[i].up[0] : std::size_t{0}; };
  const bool between = rows(4) == 8 * rows(0) && rows(4) != 0;
  std::string expected;
  std::vector<cloneofsimo_classes> sets{{}, {true, true, true}};
  if (classes) sets = {*classes};
  for (const cloneofsimo_classes& set : sets) {
    const std::vector<cloneofsimo_slot> slots = cloneofsimo_unet_slots(set, between);
    if (auto names = detail::match_cloneofsimo(pairs, slots)) return std::move(*names);
    expected += (expected.empty() ? "" : " or ") + std::to_string(slots.size());
  }
  return detail::cloneofsimo_mismatch(file, "unet", expected + " pairs in the order of the model", pairs);
}

/// The layers of a text encoder's pairs: 12 layers of SD1, 23 of SD2. @fails mismatch (counts)
inline result<std::vector<std::string>> name_cloneofsimo_text_encoder(std::span<const cloneofsimo_pair> pairs, const std::string& file) {
  for (const std::size_t layers : {std::size_t{12}, std::size_t{23}})
    if (auto names = detail::match_cloneofsimo(pairs, cloneofsimo_text_slots(layers))) return std::move(*names);
  return detail::cloneofsimo_mismatch(file, "text_encoder", "48 pairs (SD1) or 92 (SD2)", pairs);
}

TENSORSMITH_END_NAMESPACE
