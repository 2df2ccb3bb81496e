// SPDX-License-Identifier: MIT
//
// tests/fuzz/mutate.hpp: mutations that know a format: they change one thing and repair the lengths, offsets and checksums
// around it, so that readers get past their first checks. Inputs stay ordinary files.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace fuzz {

/// splitmix64: small, and the same everywhere.
class dice {
 public:
  explicit dice(std::uint64_t seed) noexcept : state_(seed) {}
  std::uint64_t next() noexcept {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15U);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }
  /// 0 … count-1; 0 for count 0.
  std::size_t below(std::size_t count) noexcept { return count ? static_cast<std::size_t>(next() % count) : 0; }
  bool once_in(std::size_t count) noexcept { return below(count) == 0; }
  template <class Range>
  const auto& one_of(const Range& choices) noexcept {
    return choices[below(std::size(choices))];
  }

 private:
  std::uint64_t state_;
};

inline std::string little_endian(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  return out;
}
inline std::uint64_t number_at(std::string_view text, std::size_t at, std::size_t bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes; i-- > 0;) value = (value << 8) | static_cast<unsigned char>(text[at + i]);
  return value;
}

/// libFuzzer's own mutation of a piece.
inline void mutate_bytes(std::string& piece, std::size_t most) {
  const std::size_t before = piece.size();
  most = std::max(most, before);
  piece.resize(most ? most : 1);
  const std::size_t size = LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(piece.data()), before, piece.size());
  piece.resize(size);
}

/// A number that readers stumble over.
inline std::uint64_t odd_number(dice& roll) {
  constexpr std::array<std::uint64_t, 24> values = {0,      1,          2,          3,          7,          8,          16,         64,
                                                    127,    128,        255,        256,        65535,      65536,      1u << 20,   0x7FFFFFFF,
                                                    1u << 31, 0xFFFFFFFE, 0xFFFFFFFF, 1ULL << 32, 1ULL << 48, 1ULL << 62, ~0ULL >> 1, ~0ULL};
  return roll.one_of(values) + (roll.once_in(4) ? roll.below(5) - 2 : 0);
}

/// The mutator of a target: `change(file, roll, most)` two times out of three, libFuzzer's own else, or where that gives up.
template <class Change>
std::size_t mutate(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed, Change&& change) {
  dice roll(seed);
  if (!roll.once_in(3)) {
    std::string file(reinterpret_cast<const char*>(data), size);
    if (change(file, roll, most) && !file.empty() && file.size() <= most) {
      std::memcpy(data, file.data(), file.size());
      return file.size();
    }
  }
  return LLVMFuzzerMutate(data, size, most);
}

// --- safetensors ------------------------------------------------------------------------------------------------------------

struct sized_name {
  std::string_view name;
  std::size_t bits;
};
inline constexpr sized_name safetensors_types[] = {
    {"BOOL", 8}, {"F4", 4},  {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},
    {"I16", 16}, {"U16", 16}, {"F16", 16},   {"BF16", 16},   {"I32", 32}, {"U32", 32}, {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64}, {"U64", 64}};

inline std::vector<std::size_t> small_shape(dice& roll) {
  std::vector<std::size_t> shape(roll.below(5));
  constexpr std::size_t extents[] = {0, 1, 1, 2, 2, 3, 4, 4, 8, 16};
  for (std::size_t& extent : shape) extent = roll.one_of(extents);
  return shape;
}
inline std::size_t product(const std::vector<std::size_t>& shape) {
  std::size_t out = 1;
  for (const std::size_t extent : shape) out *= extent;
  return out;
}
inline std::string listed(const std::vector<std::size_t>& shape, std::string_view between) {
  std::string out;
  for (std::size_t i = 0; i < shape.size(); ++i) out.append(i ? between : "").append(std::to_string(shape[i]));
  return out;
}

/// Where the data of a header's tensors ends: the largest second number of a data_offsets.
inline std::size_t safetensors_end(std::string_view header) {
  std::size_t end = 0;
  for (std::size_t at = 0; (at = header.find("data_offsets\":[", at)) != header.npos;) {
    at += 15;
    const std::size_t comma = header.find(',', at);
    if (comma == header.npos || comma - at > 20) continue;
    std::size_t value = 0;
    for (std::size_t i = comma + 1; i < header.size() && header[i] >= '0' && header[i] <= '9' && value < (1u << 24); ++i)
      value = 10 * value + static_cast<std::size_t>(header[i] - '0');
    end = std::max(end, value);
  }
  return end;
}

/// Changes the text of the header or adds a tensor; the length in front and the data behind follow.
inline bool mutate_safetensors(std::string& file, dice& roll, std::size_t most) {
  if (file.size() < 10) return false;
  const std::uint64_t length = number_at(file, 0, 8);
  if (length > file.size() - 8) return false;
  std::string header = file.substr(8, static_cast<std::size_t>(length)), data = file.substr(8 + static_cast<std::size_t>(length));
  if (roll.once_in(2)) {
    const std::size_t close = header.rfind('}');
    if (close == header.npos) return false;
    const sized_name type = roll.one_of(safetensors_types);
    const std::vector<std::size_t> shape = small_shape(roll);
    const std::size_t end = safetensors_end(header), bytes = (product(shape) * type.bits + 7) / 8;
    std::string entry = header.find('"') < close ? "," : "";
    entry += "\"t" + std::to_string(roll.below(40)) + "\":{\"dtype\":\"" + std::string(type.name) + "\",\"shape\":[" + listed(shape, ",") +
             "],\"data_offsets\":[" + std::to_string(end) + "," + std::to_string(end + bytes) + "]}";
    header.insert(close, entry);
  } else {
    mutate_bytes(header, header.size() + 64);
  }
  if (!roll.once_in(4)) data.resize(std::min(safetensors_end(header), most), 'x');
  file = little_endian(header.size(), 8) + header + data;
  return true;
}

}  // namespace fuzz
