// SPDX-License-Identifier: MIT
//
// tests/fuzz/mutate_gguf.hpp: GGUF files made from random tensors and values, and numbers in them made odd.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fuzz/mutate.hpp"

namespace fuzz {

inline std::string gguf_text(std::string_view text) { return little_endian(text.size(), 8) + std::string(text); }

inline std::string gguf_file(dice& roll) {
  struct kind {
    std::uint32_t id;
    std::size_t elements, bytes;
  };
  constexpr kind kinds[] = {{0, 1, 4}, {1, 1, 2}, {30, 1, 2}, {8, 32, 34}, {2, 32, 18}, {24, 1, 1}, {25, 1, 2}, {26, 1, 4}, {27, 1, 8}, {28, 1, 8},
                            {12, 256, 144}};
  const std::size_t tensors = roll.below(4), values = roll.below(4);
  std::uint64_t alignment = 32;
  std::string out = "GGUF" + little_endian(roll.once_in(6) ? 2 : 3, 4) + little_endian(tensors, 8), pairs, data;
  for (std::size_t i = 0; i < values; ++i) {
    const std::size_t type = roll.below(13);
    constexpr int widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    pairs += gguf_text("key." + std::to_string(i)) + little_endian(type, 4);
    if (type == 8) {
      pairs += gguf_text("text");
    } else if (type == 9) {
      const std::size_t count = roll.below(5);
      pairs += little_endian(5, 4) + little_endian(count, 8) + std::string(4 * count, 'v');
    } else {
      pairs += little_endian(type == 7 ? roll.below(2) : odd_number(roll), widths[type]);
    }
  }
  if (roll.once_in(4)) {
    alignment = std::uint64_t{8} << roll.below(5);
    pairs += gguf_text("general.alignment") + little_endian(4, 4) + little_endian(alignment, 4);
    out += little_endian(values + 1, 8);
  } else {
    out += little_endian(values, 8);
  }
  out += pairs;
  for (std::size_t i = 0; i < tensors; ++i) {
    const kind& k = roll.one_of(kinds);
    std::vector<std::size_t> shape = small_shape(roll);
    if (shape.size() > 4) shape.resize(4);
    if (!shape.empty()) shape[0] *= k.elements;
    std::string name = "t";
    name += std::to_string(i);
    out += gguf_text(name) + little_endian(shape.size(), 4);
    for (const std::size_t extent : shape) out += little_endian(extent, 8);
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    out += little_endian(k.id, 4) + little_endian(data.size(), 8);
    data.append(product(shape) / k.elements * k.bytes, 'g');
  }
  out.resize((out.size() + alignment - 1) / alignment * alignment);
  return out + data;
}

inline bool mutate_gguf(std::string& file, dice& roll, std::size_t most) {
  if (file.size() < 24 || roll.once_in(4)) {
    file = gguf_file(roll);
    return file.size() <= most;
  }
  const std::size_t width = roll.once_in(2) ? 4 : 8, at = roll.below(file.size() - width);
  const std::uint64_t value = roll.once_in(2) ? odd_number(roll) : number_at(file, at, width) + roll.below(9) - 4;
  file.replace(at, width, little_endian(value, static_cast<int>(width)));
  return true;
}

}  // namespace fuzz
