// SPDX-License-Identifier: MIT
//
// tests/fuzz/mutate_npy.hpp: mutations of NumPy's .npy: the header's text changes, its length and the data follow.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fuzz/mutate.hpp"

namespace fuzz {

inline std::string npy_of(std::string header, const std::string& data, int version) {
  const std::size_t prefix = version == 1 ? 10 : 12;
  while ((prefix + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  return std::string("\x93NUMPY") + static_cast<char>(version) + '\0' + little_endian(header.size(), version == 1 ? 2 : 4) + header + data;
}

inline bool mutate_npy(std::string& file, dice& roll, std::size_t most) {
  if (file.size() < 12 || roll.once_in(8)) {
    constexpr sized_name kinds[] = {{"f4", 4}, {"f8", 8}, {"f2", 2}, {"i8", 8}, {"i4", 4}, {"i2", 2}, {"i1", 1}, {"u1", 1},
                                    {"u8", 8}, {"b1", 1}, {"c8", 8}, {"V2", 2}, {"O", 8},  {"U3", 12}};
    const sized_name kind = roll.one_of(kinds);
    std::vector<std::size_t> shape = small_shape(roll);
    const std::string text = std::string("{'descr': '") + (kind.bits == 1 ? "|" : roll.once_in(5) ? ">" : "<") + std::string(kind.name) +
                             "', 'fortran_order': " + (roll.once_in(3) ? "True" : "False") + ", 'shape': (" + listed(shape, ", ") +
                             (shape.size() == 1 ? ",), }" : "), }");
    file = npy_of(text, std::string(product(shape) * kind.bits, 'n'), roll.once_in(3) ? 2 + static_cast<int>(roll.below(2)) : 1);
    return file.size() <= most;
  }
  const int version = file[6];
  const std::size_t prefix = version == 1 ? 10 : 12;
  const std::uint64_t length = number_at(file, 8, prefix - 8);
  if (length > file.size() - prefix) return false;
  std::string header = file.substr(prefix, static_cast<std::size_t>(length)), data = file.substr(prefix + static_cast<std::size_t>(length));
  if (roll.once_in(4)) {
    mutate_bytes(data, data.size() + 16);
  } else {
    while (!header.empty() && (header.back() == ' ' || header.back() == '\n')) header.pop_back();
    mutate_bytes(header, header.size() + 32);
  }
  file = npy_of(std::move(header), data, version);
  return file.size() <= most;
}

}  // namespace fuzz
