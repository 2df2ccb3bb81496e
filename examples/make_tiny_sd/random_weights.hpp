// SPDX-License-Identifier: MIT
//
// make_tiny_sd/random_weights.hpp: weights that are a function of (seed, tensor name, element index).
//
// Nothing is drawn from a stream, so any thread can make any region, and a model is the same in every file format.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/tensor/recipe.hpp"

namespace make_tiny_sd {

namespace ts = tensorsmith;

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014): the finalizer of SplitMix64.
constexpr std::uint64_t mixed(std::uint64_t z) noexcept {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/// FNV-1a.
constexpr std::uint64_t name_hash(std::string_view name) noexcept {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

/// Uniform values in [center - spread, center + spread].
struct distribution {
  float center = 0, spread = 1;
};

/// What keeps activations of a random network in range: unit gain for matrices and convolutions, norms near 1, small
/// biases; queries and keys a little larger, so that attention is not even.
inline distribution distribution_of(std::string_view name, const ts::shape_type& shape) {
  const float root3 = 1.7320508F;  // a uniform value in ±√3·s has deviation s
  if (name.ends_with(".bias")) return {0, 0.1F * root3};
  if (name.find("token_embedding") != std::string_view::npos) return {0, 0.6F * root3};
  if (name.find("position_embedding") != std::string_view::npos) return {0, 0.3F * root3};
  if (shape.size() < 2) return {1, 0.2F * root3};
  std::size_t fan_in = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) fan_in *= shape[i];
  float gain = 1;
  for (const std::string_view part : {"q_proj.", "k_proj.", "to_q.", "to_k."})
    if (name.find(part) != std::string_view::npos) gain = 1.5F;
  return {0, gain * root3 / std::sqrt(static_cast<float>(fan_in))};
}

/// An f32 tensor of random values.
class random_recipe final : public ts::recipe {
 public:
  random_recipe(std::uint64_t seed, std::string_view name, ts::shape_type shape)
      : key_(mixed(seed ^ name_hash(name))), values_(distribution_of(name, shape)) {
    info_.name = std::string(name);
    info_.type = ts::dtype::f32;
    info_.shape = std::move(shape);
  }
  std::span<const ts::tensor_info> outputs() const noexcept override { return {&info_, 1}; }

  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch&) const override {
    const std::size_t cols = ts::plane_of(info_.shape).cols;
    const float scale = values_.spread / 8388608.0F;
    for (std::size_t i = 0; i < r.rows; ++i) {
      std::byte* out = tiles[0].data + i * tiles[0].pitch;
      const std::uint64_t first = (r.row + i) * cols + r.col;
      for (std::size_t j = 0; j < r.cols; ++j) {
        const std::uint64_t bits = mixed(key_ + (first + j) * 0x9E3779B97F4A7C15u);
        // 24 bits, so that the conversion is exact
        const auto whole = static_cast<std::int32_t>(bits >> 40) - 8388608;
        const float value = values_.center + static_cast<float>(whole) * scale;
        std::memcpy(out + j * sizeof value, &value, sizeof value);
      }
    }
    return {};
  }

 private:
  std::uint64_t key_;
  distribution values_;
  ts::tensor_info info_;
};

inline ts::tensor_ref random_tensor(std::uint64_t seed, std::string_view name, ts::shape_type shape) {
  return {std::make_shared<random_recipe>(seed, name, std::move(shape)), 0};
}

}  // namespace make_tiny_sd
