// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/block_weights.hpp: one weight a block of the UNet, in the lists that kohya's tools take.
//
// Include this for merges that treat blocks differently. (kohya-ss/sd-scripts, networks/svd_merge_lora.py.)
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensorsmith/arch/names/unet.hpp"
#include "tensorsmith/core/error.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Weights by block of the original names: BASE (the text encoder), IN00 to IN11, MID, OUT00 to OUT11. Blocks that a list does not name keep 1.
class block_weights {
 public:
  /// 12 numbers: BASE, IN04,05,07,08, MID, OUT00–05 (SDXL); 17: BASE, IN01,02,04,05,07,08, MID, OUT03–11 (SD1, SD2);
  /// 20: BASE, IN00–08, MID, OUT00–08 (SDXL with convolutions); 26: BASE, IN00–11, MID, OUT00–11. @fails usage (another count)
  static result<block_weights> from(std::span<const double> list) {
    block_weights out;
    std::vector<std::size_t> slots{base};
    const auto in = [&](std::initializer_list<std::size_t> blocks) { for (const std::size_t n : blocks) slots.push_back(first_in + n); };
    const auto add = [&](std::size_t first, std::size_t from, std::size_t count) { for (std::size_t i = 0; i < count; ++i) slots.push_back(first + from + i); };
    switch (list.size()) {
      case 12: in({4, 5, 7, 8}), slots.push_back(middle), add(first_out, 0, 6); break;
      case 17: in({1, 2, 4, 5, 7, 8}), slots.push_back(middle), add(first_out, 3, 9); break;
      case 20: add(first_in, 0, 9), slots.push_back(middle), add(first_out, 0, 9); break;
      case 26: add(first_in, 0, 12), slots.push_back(middle), add(first_out, 0, 12); break;
      default:
        return failure{.code = errc::usage, .what = "a list of block weights has the wrong length", .expected = "17 or 26 numbers for SD1 and SD2, 12 or 20 for SDXL",
                       .found = std::to_string(list.size())};
    }
    for (std::size_t i = 0; i < slots.size(); ++i) out.weights_[slots[i]] = list[i];
    return out;
  }

  /// The weight of the text encoders.
  double text_encoder() const noexcept { return weights_[base]; }

  /// The weight of a layer of the UNet, by its name in the original names ("input_blocks.4.1.proj_in"): 1 outside the blocks.
  double of_ldm(std::string_view name) const {
    path_reader path(name);
    if (path.take("middle_block")) return weights_[middle];
    const bool in = path.take("input_blocks"), out = !in && path.take("output_blocks");
    const auto number = in || out ? path.take_index() : std::nullopt;
    return number && *number < 12 ? weights_[(in ? first_in : first_out) + *number] : 1.0;
  }

  /// The weight of a layer by its diffusers name. `layout` is the UNet's.
  double of_diffusers(std::string_view module, const unet_name_layout& layout) const {
    const auto ldm = unet_name_to_ldm(std::string(module) + ".weight", layout);
    return ldm ? of_ldm(*ldm) : 1.0;
  }

 private:
  static constexpr std::size_t base = 0, first_in = 1, middle = 13, first_out = 14;
  block_weights() { weights_.fill(1.0); }
  std::array<double, 26> weights_;
};

TENSORSMITH_END_NAMESPACE
