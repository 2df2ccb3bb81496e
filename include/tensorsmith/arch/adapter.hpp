// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/adapter.hpp: an adapter file taken apart: modules, and the parameters of each.
//
// Include this to merge adapters or to look into them. arch/recognize_adapter.hpp tells what a file is; arch/adapter_targets.hpp finds the layers
// that the modules belong to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/recognize_adapter.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/tensor/weight_change.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One module of an adapter: the tensors that change one layer.
struct adapter_layer {
  std::string name;  ///< as the file names it: "lora_unet_mid_block_…", "unet.mid_block.….to_q"
  /// Parameter ("lora_down", "alpha", "hada_w1_a", …) and its tensor. Parameter names are those of detail::adapter_parameters.
  std::vector<std::pair<std::string_view, const catalog_entry*>> parameters;

  /// The tensor of a parameter, or an empty one.
  tensor_ref find(std::string_view parameter) const {
    const catalog_entry* const found = entry(parameter);
    return found ? found->tensor : tensor_ref{};
  }
  /// The entry of a parameter, or nullptr.
  const catalog_entry* entry(std::string_view parameter) const noexcept {
    for (const auto& [known, found] : parameters)
      if (known == parameter) return found;
    return nullptr;
  }
  bool has(std::string_view parameter) const noexcept { return entry(parameter) != nullptr; }
};

/// An adapter of the LoRA family. Refers to `tensors`, which it owns.
struct adapter {
  std::string file;                    ///< for messages
  std::shared_ptr<const catalog> tensors;
  adapter_description what;
  std::vector<adapter_layer> modules;  ///< sorted by name
  std::vector<std::string> unknown;     ///< tensors that are no parameter of any algorithm
};

namespace detail {

constexpr std::string_view parameter_of_bit(std::uint64_t bit) noexcept {
  for (std::size_t i = 0; i < std::size(adapter_parameters); ++i)
    if (bit == std::uint64_t{1} << i) return adapter_parameters[i];
  return {};
}

}  // namespace detail

/// Takes an adapter's tensors apart. @fails unsupported (no adapter of the LoRA family, by what it is instead), mismatch (a parameter twice)
inline result<adapter> read_adapter(catalog tensors, std::string file) {
  adapter out;
  out.file = std::move(file);
  out.tensors = std::make_shared<const catalog>(std::move(tensors));
  auto what = recognize_adapter(*out.tensors);
  if (!what)
    return failure{.code = errc::unsupported, .what = "the file is no adapter", .file = out.file,
                   .expected = "a LoRA, LoHa, LoKr, (IA)3, GLoRA, OFT or DoRA adapter", .found = std::to_string(out.tensors->size()) + " other tensors",
                   .advice = "look at it with inspect"};
  if (what->family == adapter_family::textual_inversion || what->family == adapter_family::hypernetwork ||
      what->family == adapter_family::cloneofsimo)
    return failure{.code = errc::unsupported, .what = "this kind of adapter cannot be merged into weights here", .file = out.file,
                   .expected = "an adapter with the names of its modules", .found = std::string(name_of(what->family))};
  out.what = std::move(*what);
  std::map<std::string_view, std::size_t> known;
  for (const catalog_entry& entry : out.tensors->entries()) {
    if (std::string_view(entry.name).starts_with("bundle_emb.")) continue;
    const detail::adapter_key key = detail::split_adapter_name(entry.name);
    const std::string_view parameter = detail::parameter_of_bit(key.bit);
    if (parameter.empty()) {
      out.unknown.push_back(entry.name);
      continue;
    }
    const auto [at, fresh] = known.emplace(key.module, out.modules.size());
    if (fresh) out.modules.push_back({std::string(key.module), {}});
    adapter_layer& module = out.modules[at->second];
    if (module.has(parameter))
      return failure{.code = errc::mismatch, .what = "a module has the same parameter twice", .file = out.file,
                     .place = "tensor " + quoted(entry.name), .expected = "one " + std::string(parameter)};
    module.parameters.emplace_back(parameter, &entry);
  }
  std::sort(out.modules.begin(), out.modules.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

TENSORSMITH_END_NAMESPACE
