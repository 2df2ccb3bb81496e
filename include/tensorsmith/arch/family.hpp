// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/family.hpp: the Stable Diffusion families and their conventions that no weight tells.
//
// Include this to name a family or to fill in what shapes leave open: head sizes, image size, scaling factor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Families of Stable Diffusion pipelines. Reduced and tiny models belong to the family whose conventions they follow.
enum class sd_family : std::uint8_t { sd1, sd2, sdxl, sdxl_refiner };

/// What the members of a family share. Values: configurations of the published models.
struct family_conventions {
  std::string_view name;             ///< as `--model` and reports spell it
  std::size_t heads;                 ///< attention heads of the UNet at every level, or 0
  std::size_t head_size;             ///< channels of a head of the UNet, or 0
  std::size_t image_size;            ///< pixels of the training images
  double scaling_factor;             ///< of the autoencoder's latents
  bool vae_upcast;                   ///< the autoencoder overflows in f16
  std::string_view diffusers_version;  ///< that the published configurations name
};

inline constexpr family_conventions family_table[] = {
    {"sd1", 8, 0, 512, 0.18215, false, "0.6.0"},
    {"sd2", 0, 64, 768, 0.18215, false, "0.10.0.dev0"},
    {"sdxl", 0, 64, 1024, 0.13025, true, "0.19.0.dev0"},
    {"sdxl-refiner", 0, 64, 1024, 0.13025, true, "0.19.0.dev0"},
};

constexpr const family_conventions& conventions_of(sd_family family) noexcept {
  return family_table[static_cast<std::size_t>(family)];
}
constexpr std::string_view name_of(sd_family family) noexcept { return conventions_of(family).name; }

/// The family called `name`, as `--model` spells it.
constexpr std::optional<sd_family> family_named(std::string_view name) noexcept {
  for (const sd_family family : {sd_family::sd1, sd_family::sd2, sd_family::sdxl, sd_family::sdxl_refiner})
    if (name_of(family) == name) return family;
  return std::nullopt;
}

/// True for the two families whose UNet also takes a pooled text embedding and sizes.
constexpr bool is_sdxl(sd_family family) noexcept { return family == sd_family::sdxl || family == sd_family::sdxl_refiner; }

TENSORSMITH_END_NAMESPACE
