// SPDX-License-Identifier: MIT
//
// tests/examples/adapters.hpp: adapters and embeddings with made-up numbers for a model folder, as files of their usual forms.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/run.hpp"
#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/random_values.hpp"

namespace programs {

using faults::add_tensor;
using faults::safetensors_parts;
using strings = std::vector<std::string>;

inline strings operator+(strings a, const strings& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// n numbers between −0.1 and 0.1 as f32.
inline std::string floats(std::size_t n, unsigned seed, float size = 0.1F) {
  const std::vector<float> values = random_values<float>(n, seed, size);
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

inline std::string underscored(std::string name) {
  for (char& c : name)
    if (c == '.') c = '_';
  return name;
}

inline std::size_t elements(const std::vector<std::size_t>& shape) {
  std::size_t n = 1;
  for (const std::size_t d : shape) n *= d;
  return n;
}

/// The shapes of a folder's weights by component and name.
inline std::map<std::string, std::vector<std::size_t>> shapes_of(const std::string& folder, const std::string& component) {
  const fs::path in = fs::path(folder) / component;
  const bool plain = fs::exists(in / "model.safetensors");
  const auto header = faults::read_parts(in / (plain ? "model.safetensors" : "diffusion_pytorch_model.safetensors")).header;
  std::map<std::string, std::vector<std::size_t>> out;
  for (const auto& [name, info] : header.items())
    if (name != "__metadata__") out[name] = info["shape"].get<std::vector<std::size_t>>();
  return out;
}

/// A pair of factors for a weight of this shape, [out, in] or [out, in, k, k].
inline void add_pair(safetensors_parts& file, const std::string& module, const std::vector<std::size_t>& shape, unsigned seed, float alpha = 2) {
  constexpr std::size_t rank = 4;
  std::vector<std::size_t> up{shape[0], rank}, down = shape;
  down[0] = rank;
  if (shape.size() == 4) up.insert(up.end(), {1, 1});
  add_tensor(file, module + ".lora_up.weight", "F32", up, floats(elements(up), seed));
  add_tensor(file, module + ".lora_down.weight", "F32", down, floats(elements(down), seed + 1));
  add_tensor(file, module + ".alpha", "F32", {}, std::string(reinterpret_cast<const char*>(&alpha), sizeof alpha));
}

/// True for the weights that trainers adapt: projections of attentions and MLPs, and convolutions of the UNet.
inline bool is_adapted(const std::string& name, const std::vector<std::size_t>& shape) {
  if (!name.ends_with(".weight") || (shape.size() != 2 && shape.size() != 4)) return false;
  if (name.find("embedding") != std::string::npos) return false;
  for (const char* part : {"attn", "ff.net", "self_attn", "mlp", "conv1", "proj_in"})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

/// A kohya file for every adapted layer of UNet and text encoders. @param family "sd1", "sdxl", …: which prefixes the encoders have
inline std::string kohya_adapter(const fs::path& path, const std::string& base, const std::string& family, unsigned seed = 1) {
  safetensors_parts file;
  std::map<std::string, std::string> components{{"unet", "lora_unet_"}, {"text_encoder", family == "sdxl" ? "lora_te1_" : "lora_te_"}, {"text_encoder_2", "lora_te2_"}};
  for (const auto& [component, prefix] : components) {
    if (!fs::exists(fs::path(base) / component)) continue;
    for (const auto& [name, shape] : shapes_of(base, component))
      if (is_adapted(name, shape)) add_pair(file, prefix + underscored(name.substr(0, name.size() - 7)), shape, seed += 2);
  }
  faults::write_parts(path, file);
  return path;
}

/// diffusers' `learned_embeds.safetensors`: one token with its vectors.
inline std::string learned_embeds(const fs::path& path, const std::string& token, std::size_t vectors, std::size_t width, unsigned seed = 7) {
  safetensors_parts file;
  const std::vector<std::size_t> shape = vectors == 0 ? std::vector<std::size_t>{width} : std::vector<std::size_t>{vectors, width};
  add_tensor(file, token, "F32", shape, floats(elements(shape), seed, 0.02F));
  faults::write_parts(path, file);
  return path;
}

/// Runs a program, which must succeed; its JSON report.
inline nlohmann::json report_of(const std::string& program, const strings& arguments) {
  CAPTURE(program, arguments);
  const outcome run = programs::run(program, arguments + strings{"--json"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  auto report = nlohmann::json::parse(run.out, nullptr, false);
  REQUIRE(report.is_object());
  return report;
}

/// Every tensor of every adapter of a report is accounted for; how many were applied.
inline std::size_t keys_applied(const nlohmann::json& report) {
  std::size_t applied = 0;
  for (const auto& adapter : report["adapters"]) {
    const auto& keys = adapter["keys"];
    CHECK(keys["all"].get<std::size_t>() == keys["applied"].get<std::size_t>() + keys["not_found"].get<std::size_t>() + keys["ignored"].get<std::size_t>() +
                                                keys["unknown"].get<std::size_t>() + keys["embeddings"].get<std::size_t>());
    CHECK(adapter["modules"].size() == adapter["applied"].get<std::size_t>() + adapter["not_found"].get<std::size_t>() + adapter["ignored"].get<std::size_t>());
    applied += keys["applied"].get<std::size_t>();
  }
  return applied;
}

}  // namespace programs
