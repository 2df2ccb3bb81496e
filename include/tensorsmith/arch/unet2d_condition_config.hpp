// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/unet2d_condition_config.hpp: config.json of a UNet2DConditionModel, checked and spelled out block by block.
//
// Include arch/unet2d_condition.hpp to build one. Keys and defaults are those of diffusers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/config_reader.hpp"
#include "tensorsmith/graph/nn.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How class labels reach a UNet.
enum class class_embedding : std::uint8_t {
  none,
  table,              ///< ids → rows of a table
  timestep,           ///< numbers → sines and cosines → two linear layers
  identity,           ///< vectors as wide as the time embedding, as they are
  projection,         ///< vectors → two linear layers
  simple_projection,  ///< vectors → one linear layer
};

/// What is in the middle of a UNet.
enum class unet2d_middle : std::uint8_t { none, resnet, cross_attention };

/// One resolution of a UNet, as its down block (finest first) or its up block (coarsest first) has it.
struct unet2d_level {
  std::size_t channels = 320, layers = 2;
  std::size_t heads = 8, cross_width = 768;
  bool attends = false;                  ///< CrossAttnDownBlock2D, CrossAttnUpBlock2D
  bool only_cross_attention = false;
  std::vector<std::size_t> depth{};      ///< transformer blocks of each layer, if it attends
};

/// A UNet2DConditionModel.
struct unet2d_condition_config {
  std::size_t in_channels = 4, out_channels = 4;
  std::size_t conv_in_kernel = 3, conv_out_kernel = 3;
  std::vector<unet2d_level> down{}, up{};
  std::size_t cross_width = 768;         ///< of encoder_hidden_states
  unet2d_middle middle = unet2d_middle::cross_attention;
  std::size_t middle_depth = 1;
  float middle_scale = 1;
  std::size_t downsample_padding = 1, groups = 32;
  float epsilon = 1e-5F;
  nn::activation activation = nn::activation::silu;
  bool linear_projection = false, upcast_attention = false, center_input = false;
  bool scale_shift = false;                         ///< resnet_time_scale_shift "scale_shift"
  bool flip_sin_to_cos = true;
  float freq_shift = 0;
  std::size_t time_width = 1280;                    ///< width of the time embedding
  std::optional<nn::activation> time_activation{}, time_post_activation{};
  std::optional<std::size_t> time_condition{};      ///< width of the input timestep_cond
  class_embedding classes = class_embedding::none;
  std::size_t class_count = 0, class_width = 0;     ///< rows of the table; width of the vectors
  bool class_concat = false;                        ///< class embedding beside the time embedding instead of added to it
  std::size_t added_width = 0, added_time_width = 0;  ///< SDXL's text_time: input of add_embedding, sines of one id; 0: none

  /// Width of the time embedding that the blocks see.
  std::size_t block_time_width() const noexcept { return class_concat ? 2 * time_width : time_width; }
};

namespace detail {

/// Transformer blocks of every layer of the levels: one number, one a level, or one a layer of a level. An up block has one layer
/// more than its down block.
inline std::vector<std::vector<std::size_t>> unet_depths(config_reader& read, std::string_view key, const std::vector<std::size_t>& layers) {
  std::vector<std::vector<std::size_t>> out;
  const json_value* v = read.find(key);
  const bool by_level = v != nullptr && v->as_array() != nullptr;
  const json_value::array* levels = by_level ? read.entries(key, layers.size(), layers.size()) : nullptr;
  const std::size_t all = by_level ? 1 : read.integer(key, 1, config_bounds::layers);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const json_value::array* each = levels ? (*levels)[i].as_array() : nullptr;
    const std::string where = config_reader::place(key, i);
    const std::size_t one = levels && !each ? read.checked((*levels)[i], where, 1, config_bounds::layers) : all;
    std::vector<std::size_t> depth(layers[i], one);
    if (each && each->size() != layers[i])
      read.refuse(errc::malformed, where, "wrong number of entries", std::to_string(layers[i]) + ", one a layer", std::to_string(each->size()));
    for (std::size_t j = 0; each && j < each->size() && j < depth.size(); ++j)
      depth[j] = read.checked((*each)[j], config_reader::place(where, j), 1, config_bounds::layers);
    out.push_back(std::move(depth));
  }
  return out;
}

inline bool nested(const json_value* v) {
  const json_value::array* list = v ? v->as_array() : nullptr;
  if (list == nullptr) return false;
  for (const json_value& e : *list)
    if (e.as_array() != nullptr) return true;
  return false;
}

/// Down and up levels.
inline void read_unet_levels(config_reader& read, unet2d_condition_config& out) {
  const auto channels = read.integers("block_out_channels", 0, config_bounds::channels, config_bounds::levels);
  if (read.failed()) return;
  const std::size_t n = channels.size();
  constexpr std::string_view down_types[] = {"DownBlock2D", "CrossAttnDownBlock2D"}, up_types[] = {"UpBlock2D", "CrossAttnUpBlock2D"};
  const auto down_attends = read.choices("down_block_types", n, down_types), up_attends = read.choices("up_block_types", n, up_types);
  const auto layers = read.integer_or_list("layers_per_block", 2, n, config_bounds::layers);
  const auto heads = read.integer_or_list(read.has("num_attention_heads") ? "num_attention_heads" : "attention_head_dim", 8, n, config_bounds::heads);
  const auto cross = read.integer_or_list("cross_attention_dim", 1280, n, config_bounds::channels);
  const auto only_cross = read.flag_or_list("only_cross_attention", false, n);
  if (read.failed()) return;
  std::vector<std::size_t> up_layers(layers.rbegin(), layers.rend());
  for (std::size_t& l : up_layers) ++l;
  const auto down_depth = unet_depths(read, "transformer_layers_per_block", layers);
  std::vector<std::vector<std::size_t>> up_depth;
  if (read.has("reverse_transformer_layers_per_block")) up_depth = unet_depths(read, "reverse_transformer_layers_per_block", up_layers);
  else if (nested(read.find("transformer_layers_per_block")))
    return read.refuse(errc::malformed, "reverse_transformer_layers_per_block",
                       "transformer_layers_per_block differs between layers, so the up blocks need theirs", "an array", "nothing");
  else
    for (std::size_t i = 0; i < n; ++i) up_depth.emplace_back(up_layers[i], down_depth[n - 1 - i][0]);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t r = n - 1 - i;
    out.down.push_back({channels[i], layers[i], heads[i], cross[i], down_attends[i] == 1, only_cross[i], down_depth[i]});
    out.up.push_back({channels[r], up_layers[i], heads[r], cross[r], up_attends[i] == 1, only_cross[r], up_depth[i]});
    if (read.failed()) return;
    if (channels[i] % out.groups != 0)
      read.refuse(errc::malformed, config_reader::place("block_out_channels", i), "the channels do not divide into the groups",
                  "a multiple of norm_num_groups " + std::to_string(out.groups), std::to_string(channels[i]));
    if ((down_attends[i] == 1 || up_attends[r] == 1) && heads[i] > channels[i])
      read.refuse(errc::malformed, "attention_head_dim", "more attention heads than channels", "at most " + std::to_string(channels[i]),
                  std::to_string(heads[i]));
  }
  out.middle_depth = down_depth.back()[0];
}

/// Class labels, SDXL's added embedding, LCM's guidance embedding.
inline void read_unet_conditions(config_reader& read, unet2d_condition_config& out) {
  constexpr std::string_view kinds[] = {"timestep", "identity", "projection", "simple_projection"};
  const std::size_t width = read.integer("projection_class_embeddings_input_dim", 0, config_bounds::channels);
  if (read.has("class_embed_type")) {
    constexpr class_embedding types[] = {class_embedding::timestep, class_embedding::identity, class_embedding::projection,
                                         class_embedding::simple_projection};
    out.classes = types[read.choice("class_embed_type", "", kinds)];
  } else if (const auto count = read.optional("num_class_embeds", config_bounds::vocabulary)) {
    out.classes = class_embedding::table;
    out.class_count = *count;
  }
  out.class_width = out.classes == class_embedding::identity ? out.time_width : width;
  out.class_concat = read.flag("class_embeddings_concat", false) && out.classes != class_embedding::none;
  const bool text_time = read.has("addition_embed_type");
  constexpr std::string_view added[] = {"text_time"};
  read.choice("addition_embed_type", "text_time", added);
  if (text_time) {
    out.added_width = width;
    out.added_time_width = read.required("addition_time_embed_dim", config_bounds::channels, 2);
  }
  const bool needs_width = text_time || out.classes == class_embedding::projection || out.classes == class_embedding::simple_projection;
  if (needs_width && width == 0)
    read.refuse(errc::malformed, "projection_class_embeddings_input_dim", "the configuration lacks a value", "an integer", "nothing");
  if (text_time && out.class_concat)
    read.refuse(errc::unsupported, "class_embeddings_concat", "it cannot go with addition_embed_type: the widths differ", "false", "true");
  out.time_condition = read.optional("time_cond_proj_dim", config_bounds::channels);
}

inline std::optional<nn::activation> optional_activation(config_reader& read, std::string_view key) {
  if (!read.has(key)) return std::nullopt;
  constexpr std::string_view words[] = {"silu", "swish", "gelu"};
  return read.choice(key, "silu", words) == 2 ? nn::activation::gelu : nn::activation::silu;
}

/// Widths of sines and cosines: both halves equally long, and no frequency infinite.
inline void check_unet_sines(config_reader& read, const unet2d_condition_config& c) {
  if (c.down.empty()) return;
  const std::size_t base = c.down[0].channels;
  for (const auto& [key, width] : {std::pair("block_out_channels/0", base),
                                   std::pair("addition_time_embed_dim", c.added_width != 0 ? c.added_time_width : base)}) {
    if (width % 2 != 0) read.refuse(errc::unsupported, key, "a time embedding needs as many sines as cosines", "an even number", std::to_string(width));
    if (static_cast<double>(c.freq_shift) >= static_cast<double>(width) / 2)
      read.refuse(errc::malformed, "freq_shift", "it leaves the time embedding no finite frequencies", "less than half of /" + std::string(key),
                  std::to_string(c.freq_shift));
  }
}

/// The text states are one input, so all blocks that read them must agree on their width.
inline void choose_cross_width(config_reader& read, unet2d_condition_config& out) {
  std::optional<std::size_t> common;
  const auto meet = [&](std::size_t width) {
    if (common.value_or(width) != width)
      read.refuse(errc::unsupported, "cross_attention_dim", "blocks that attend to one text need one width", std::to_string(*common), std::to_string(width));
    common = width;
  };
  for (const unet2d_level& level : out.down)
    if (level.attends) meet(level.cross_width);
  if (out.middle == unet2d_middle::cross_attention && !out.down.empty()) meet(out.down.back().cross_width);
  for (const unet2d_level& level : out.up)
    if (level.attends) meet(level.cross_width);
  out.cross_width = common.value_or(out.down.empty() ? 1 : out.down[0].cross_width);
}

/// Features of other models that share the class name.
inline void refuse_unet_features(config_reader& read) {
  read.only("dual_cross_attention", false, "dual cross-attention");
  read.only("encoder_hid_dim", nullptr, "a projection of the text states");
  read.only("encoder_hid_dim_type", nullptr, "a projection of the text states");
  read.only("attention_type", "default", "gated attention");
  constexpr std::string_view positional[] = {"positional"};
  read.choice("time_embedding_type", "positional", positional);
}

}  // namespace detail

/// Reads the configuration. `attention_head_dim` means the number of heads, as it always has in these files. resnet_skip_time_act,
/// resnet_out_scale_factor, cross_attention_norm and mid_block_only_cross_attention have no effect on the block types supported here,
/// as in diffusers. @fails malformed, unsupported; both name file and JSON pointer
inline result<unet2d_condition_config> read_unet2d_condition_config(const json_value& config, const std::string& file) {
  config_reader read(config, file);
  unet2d_condition_config out;
  constexpr std::string_view classes[] = {"UNet2DConditionModel"};
  read.choice("_class_name", "UNet2DConditionModel", classes);
  detail::refuse_unet_features(read);
  out.in_channels = read.integer("in_channels", 4, config_bounds::channels);
  out.out_channels = read.integer("out_channels", 4, config_bounds::channels);
  out.conv_in_kernel = read.integer("conv_in_kernel", 3, 31);
  out.conv_out_kernel = read.integer("conv_out_kernel", 3, 31);
  for (const auto& [key, kernel] : {std::pair("conv_in_kernel", out.conv_in_kernel), std::pair("conv_out_kernel", out.conv_out_kernel)})
    if (kernel % 2 == 0) read.refuse(errc::unsupported, key, "an even kernel changes the size of the image", "an odd number", std::to_string(kernel));
  out.groups = read.integer("norm_num_groups", 32, config_bounds::channels);
  out.epsilon = static_cast<float>(read.number("norm_eps", 1e-5, 0, 1));
  out.activation = detail::optional_activation(read, "act_fn").value_or(nn::activation::silu);
  detail::read_unet_levels(read, out);
  constexpr std::string_view middles[] = {"UNetMidBlock2DCrossAttn", "UNetMidBlock2D"};
  const json_value* middle = config.find("mid_block_type");
  if (middle != nullptr && middle->is_null()) out.middle = unet2d_middle::none;
  else out.middle = read.choice("mid_block_type", middles[0], middles) == 0 ? unet2d_middle::cross_attention : unet2d_middle::resnet;
  detail::choose_cross_width(read, out);
  out.middle_scale = static_cast<float>(read.number("mid_block_scale_factor", 1, 1e-6, 1e6));
  out.downsample_padding = read.integer("downsample_padding", 1, 1, 0);
  out.linear_projection = read.flag("use_linear_projection", false);
  out.upcast_attention = read.flag("upcast_attention", false);
  out.center_input = read.flag("center_input_sample", false);
  constexpr std::string_view shifts[] = {"default", "scale_shift"};
  out.scale_shift = read.choice("resnet_time_scale_shift", "default", shifts) == 1;
  out.flip_sin_to_cos = read.flag("flip_sin_to_cos", true);
  out.freq_shift = static_cast<float>(read.number("freq_shift", 0, -1e3, 1e3));
  const std::size_t base = out.down.empty() ? 2 : out.down[0].channels;
  out.time_width = read.integer("time_embedding_dim", 4 * base, 4 * config_bounds::channels);
  out.time_activation = detail::optional_activation(read, "time_embedding_act_fn");
  out.time_post_activation = detail::optional_activation(read, "timestep_post_act");
  detail::read_unet_conditions(read, out);
  detail::check_unet_sines(read, out);
  TENSORSMITH_CHECK(read.outcome());
  return out;
}

TENSORSMITH_END_NAMESPACE
