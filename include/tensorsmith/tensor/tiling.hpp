// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/tiling.hpp: where a recipe's outputs go, and how its plane is cut into tiles.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tensorsmith/tensor/recipe.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Where one output goes: its bytes begin at `offset` of `sink`. A null sink discards the output.
struct output_slot {
  byte_sink* sink = nullptr;
  std::uint64_t offset = 0;
};

/// A recipe and where each of its outputs goes. `name` is for messages.
struct placement {
  recipe_ptr source;
  std::vector<output_slot> slots;  ///< one an output
  std::string name;
};

namespace detail {

/// The tiles of one placement: full-width bands of rows where a row fits into a tile, else pieces of rows.
struct tile_grid {
  plane all;
  std::size_t rows = 1, cols = 1;            // of a tile
  std::size_t down = 0, across = 0;          // tiles
  std::size_t tile_bytes = 0;                // of output 0
  std::size_t element_bits = 0;              // of all outputs that are kept

  std::size_t count() const noexcept { return down * across; }
  region at(std::size_t index) const noexcept {
    const std::size_t row = index / across * rows, col = index % across * cols;
    return {row, std::min(rows, all.rows - row), col, std::min(cols, all.cols - col)};
  }
  std::uint64_t output_bytes(std::size_t index) const noexcept { return at(index).elements() * element_bits / 8; }
};

inline std::size_t round_to(std::size_t value, std::size_t multiple) noexcept {
  return std::max(multiple, value / multiple * multiple);
}

inline tile_grid plan_tiles(const placement& p, std::size_t tile_bytes) {
  const recipe& source = *p.source;
  tile_grid grid;
  grid.all = source.work();
  const region grain = source.grain();
  const std::size_t bits = bits_of(source.outputs()[0].type);
  for (std::size_t k = 0; k < p.slots.size(); ++k)
    if (p.slots[k].sink) grid.element_bits += bits_of(source.outputs()[k].type);
  if (grid.all.rows == 0 || grid.all.cols == 0) {
    grid.down = grid.across = 1;  // an empty tensor still is prepared once
    return grid;
  }
  const std::size_t wanted = std::max<std::size_t>(1, tile_bytes * 8 / bits);  // elements
  const std::size_t rows_min = std::min(std::max<std::size_t>(1, grain.rows), grid.all.rows);
  const std::size_t cols_min = std::min(std::max<std::size_t>(1, grain.cols), grid.all.cols);
  if (rows_min * grid.all.cols <= wanted) {
    grid.cols = grid.all.cols;
    grid.rows = std::min(grid.all.rows, round_to(wanted / grid.all.cols, rows_min));
  } else {
    grid.rows = rows_min;
    grid.cols = std::min(grid.all.cols, round_to(wanted / rows_min, cols_min));
  }
  grid.down = (grid.all.rows + grid.rows - 1) / grid.rows;
  grid.across = (grid.all.cols + grid.cols - 1) / grid.cols;
  grid.tile_bytes = grid.rows * grid.cols * bits / 8;
  return grid;
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
