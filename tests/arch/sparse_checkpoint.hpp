// SPDX-License-Identifier: MIT
//
// tests/arch/sparse_checkpoint.hpp: full-size single-file checkpoints whose tensors are holes in a sparse file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arch/published_models.hpp"
#include "tensorsmith/arch/names/unet.hpp"
#include "tensorsmith/arch/names/vae.hpp"

namespace support {

inline parameters with_prefix(const std::string& prefix, const parameters& list) {
  parameters out;
  for (const auto& entry : list) out.push_back({prefix + entry.first, entry.second});
  return out;
}

inline parameters joined(std::vector<parameters> lists) {
  parameters out;
  for (auto& list : lists) out.insert(out.end(), list.begin(), list.end());
  return out;
}

inline parameters ldm_unet(const unet_plan& plan, const std::string& prefix = "model.diffusion_model.") {
  const parameters list = unet_parameters(plan);
  std::vector<std::string_view> names;
  for (const auto& entry : list) names.push_back(entry.first);
  const auto layout = tensorsmith::unet_layout_of_diffusers(names);
  parameters out;
  for (const auto& entry : list) out.push_back({prefix + tensorsmith::unet_name_to_ldm(entry.first, layout).value(), entry.second});
  return out;
}

inline parameters ldm_vae(const std::vector<std::size_t>& channels = {128, 256, 512, 512}) {
  parameters out;
  for (const auto& entry : vae_parameters(channels)) {
    auto shape = entry.second;
    if (tensorsmith::is_vae_projection(entry.first)) shape.insert(shape.end(), {1, 1});
    out.push_back({"first_stage_model." + tensorsmith::vae_name_to_ldm(entry.first, {channels.size()}).value(), shape});
  }
  return out;
}

/// Writes a safetensors file of f16 tensors that are all holes.
inline void write_sparse(const std::filesystem::path& path, const parameters& list, const std::map<std::string, std::string>& metadata = {}) {
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) header += (header.back() == '{' ? "\"" : ",\"") + key + "\":\"" + value + "\"";
    header += "},";
  }
  std::uint64_t offset = 0;
  for (const auto& [name, shape] : list) {
    std::string text = "[";
    for (const std::size_t extent : shape) text += (text.size() > 1 ? "," : "") + std::to_string(extent);
    const std::uint64_t bytes = 2 * tensorsmith::element_count(shape);
    header += "\"" + name + "\":{\"dtype\":\"F16\",\"shape\":" + text + "],\"data_offsets\":[" + std::to_string(offset) + "," +
              std::to_string(offset + bytes) + "]},";
    offset += bytes;
  }
  header.back() = '}';
  while (header.size() % 8 != 0) header += ' ';
  {
    std::ofstream file(path, std::ios::binary);
    for (int i = 0; i < 8; ++i) file.put(static_cast<char>((header.size() >> (8 * i)) & 0xFF));
    file << header;
  }
  std::filesystem::resize_file(path, 8 + header.size() + offset);
}

}  // namespace support
