// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/config_overrides.hpp: configurations that the user gives (`--config`): diffusers' JSON files or an LDM yaml.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/ldm_yaml.hpp"
#include "tensorsmith/arch/unet_shape.hpp"
#include "tensorsmith/format/diffusers/read.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Configurations that stand in for derived ones.
struct config_overrides {
  std::string source;                                           ///< where they were read, as the user gave it
  std::vector<std::pair<std::string, json_value>> components;   ///< "unet" → its config.json
  std::optional<json_value> scheduler, index;
  std::optional<ldm_settings> yaml;
  std::string yaml_file;

  const json_value* find(std::string_view component) const noexcept {
    for (const auto& [name, config] : components)
      if (name == component) return &config;
    return nullptr;
  }
};

namespace detail {

inline result<void> read_yaml_override(config_overrides& out, const std::string& file, const limits& bounds) {
  TENSORSMITH_TRY(const std::string text, read_text_file(file, bounds.config_bytes));
  TENSORSMITH_TRY(const json_value yaml, parse_yaml_subset(text, file));
  TENSORSMITH_TRY(out.yaml, read_ldm_settings(yaml, file));
  out.yaml_file = file;
  return {};
}

/// The component that a bare config.json is of.
inline std::string component_of_config(const json_value& config) {
  const json_value *cls = config.find("_class_name"), *type = config.find("model_type"), *architectures = config.find("architectures");
  if (cls && cls->as_string() && *cls->as_string() == "UNet2DConditionModel") return "unet";
  if (cls && cls->as_string() && *cls->as_string() == "AutoencoderKL") return "vae";
  if (type && type->as_string() && type->as_string()->find("clip") != std::string::npos) {
    const auto* names = architectures ? architectures->as_array() : nullptr;
    return names && !names->empty() && (*names)[0] == json_value("CLIPTextModelWithProjection") ? "text_encoder_2" : "text_encoder";
  }
  return {};
}

inline bool is_yaml(std::string_view name) noexcept {
  return ends_with_ignoring_case(name, ".yaml") || ends_with_ignoring_case(name, ".yml");
}

}  // namespace detail

/// Reads what `--config` names: a yaml file, a folder with one, a pipeline's folder (or only its configurations), or one config.json.
/// @fails mismatch (nothing of the kind there), malformed, limit, path, io
inline result<config_overrides> read_config_overrides(const std::string& path, const limits& bounds) {
  config_overrides out;
  out.source = path;
  if (path.empty()) return out;
  if (!os::is_folder(path)) {
    if (detail::is_yaml(path)) {
      TENSORSMITH_CHECK(detail::read_yaml_override(out, path, bounds));
      return out;
    }
    TENSORSMITH_TRY(json_value config, read_json_file(path, bounds.config_bytes, bounds));
    const std::string name = detail::component_of_config(config);
    if (name.empty())
      return failure{.code = errc::unsupported, .what = "the configuration is of no component of Stable Diffusion", .file = path,
                     .expected = "a UNet2DConditionModel, an AutoencoderKL or a CLIP text model"};
    out.components.emplace_back(name, std::move(config));
    return out;
  }
  for (const std::string_view name : diffusers_models)
    if (const std::string folder = join_path(path, name); os::is_regular_file(join_path(folder, "config.json"))) {
      TENSORSMITH_TRY(json_value config, detail::read_config(folder, "config.json", bounds));
      out.components.emplace_back(std::string(name), std::move(config));
    }
  if (const std::string folder = join_path(path, "scheduler"); os::is_regular_file(join_path(folder, "scheduler_config.json"))) {
    TENSORSMITH_TRY(out.scheduler, detail::read_config(folder, "scheduler_config.json", bounds));
  }
  if (is_diffusers_folder(path)) {
    TENSORSMITH_TRY(out.index, detail::read_config(path, "model_index.json", bounds));
  }
  if (!out.components.empty() || out.scheduler) return out;
  if (os::is_regular_file(join_path(path, "config.json"))) return read_config_overrides(join_path(path, "config.json"), bounds);
  TENSORSMITH_TRY(const auto names, os::list_folder(path));
  std::vector<std::string> yamls;
  for (const std::string& name : names)
    if (detail::is_yaml(name)) yamls.push_back(name);
  if (yamls.size() != 1)
    return failure{.code = errc::mismatch, .what = "the folder holds no configuration that can be told", .file = path,
                   .expected = "unet/config.json and the like, one config.json, or one yaml file",
                   .found = yamls.empty() ? "none of them" : std::to_string(yamls.size()) + " yaml files"};
  TENSORSMITH_CHECK(detail::read_yaml_override(out, join_path(path, yamls[0]), bounds));
  return out;
}

namespace detail {

inline result<void> compare_setting(const std::string& file, std::string_view key, std::optional<std::size_t> says, std::size_t is) {
  if (!says || *says == is) return {};
  return failure{.code = errc::mismatch, .what = "the configuration does not fit the weights", .file = file, .place = std::string(key),
                 .expected = std::to_string(is) + " by the shapes of the UNet", .found = std::to_string(*says)};
}

}  // namespace detail

/// Compares a given configuration with the structure of the UNet. @fails mismatch, naming both
inline result<void> check_overrides(const config_overrides& overrides, const unet_shape& shape) {
  if (const auto& yaml = overrides.yaml) {
    const std::string& file = overrides.yaml_file;
    TENSORSMITH_CHECK(detail::compare_setting(file, "in_channels", yaml->in_channels, shape.in_channels));
    TENSORSMITH_CHECK(detail::compare_setting(file, "out_channels", yaml->out_channels, shape.out_channels));
    TENSORSMITH_CHECK(detail::compare_setting(file, "model_channels", yaml->model_channels, shape.down[0].channels));
    TENSORSMITH_CHECK(detail::compare_setting(file, "num_res_blocks", yaml->num_res_blocks, shape.layers_per_block));
    TENSORSMITH_CHECK(detail::compare_setting(file, "context_dim", yaml->context_dim, shape.cross_attention));
    TENSORSMITH_CHECK(detail::compare_setting(file, "adm_in_channels", yaml->adm_in_channels, shape.added_embedding.value_or(0)));
    if (!yaml->channel_mult.empty())
      TENSORSMITH_CHECK(detail::compare_setting(file, "channel_mult (levels)", yaml->channel_mult.size(), shape.down.size()));
    for (std::size_t i = 0; i < yaml->channel_mult.size(); ++i)
      TENSORSMITH_CHECK(detail::compare_setting(file, "channel_mult", yaml->channel_mult[i] * shape.down[0].channels, shape.down[i].channels));
  }
  const json_value* unet = overrides.find("unet");
  if (!unet) return {};
  const auto says = [&](const char* key) -> std::optional<std::size_t> {
    const json_value* value = unet->find(key);
    if (!value || !value->as_integer() || *value->as_integer() < 0) return std::nullopt;
    return static_cast<std::size_t>(*value->as_integer());
  };
  for (const auto& [key, is] : {std::pair("in_channels", shape.in_channels), {"out_channels", shape.out_channels},
                                {"cross_attention_dim", shape.cross_attention}, {"layers_per_block", shape.layers_per_block}})
    TENSORSMITH_CHECK(detail::compare_setting(overrides.source, std::string("unet ") + key, says(key), is));
  if (const json_value* channels = unet->find("block_out_channels"); channels && channels->as_array()) {
    TENSORSMITH_CHECK(detail::compare_setting(overrides.source, "unet block_out_channels (levels)", channels->as_array()->size(), shape.down.size()));
    for (std::size_t i = 0; i < shape.down.size(); ++i)
      if (const std::int64_t* each = (*channels->as_array())[i].as_integer(); each && *each >= 0)
        TENSORSMITH_CHECK(detail::compare_setting(overrides.source, "unet block_out_channels", static_cast<std::size_t>(*each), shape.down[i].channels));
  }
  return {};
}

TENSORSMITH_END_NAMESPACE
