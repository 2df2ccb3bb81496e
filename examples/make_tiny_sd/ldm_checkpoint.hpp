// SPDX-License-Identifier: MIT
//
// make_tiny_sd/ldm_checkpoint.hpp: the same weights as one LDM checkpoint, by the inverse of the name tables.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model_configs.hpp"
#include "random_weights.hpp"
#include "tensorsmith/arch/names/clip.hpp"
#include "tensorsmith/arch/names/open_clip.hpp"
#include "tensorsmith/arch/names/unet.hpp"
#include "tensorsmith/arch/names/vae.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/package.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace make_tiny_sd {

namespace ts = tensorsmith;

namespace detail {

inline ts::failure unmapped(const std::string& component, const std::string& name) {
  return {.code = ts::errc::internal, .what = "the name tables do not know " + ts::quoted(name), .place = component};
}

inline std::vector<std::string_view> names_of(const ts::catalog& weights) {
  std::vector<std::string_view> names;
  for (const ts::catalog_entry& e : weights.entries()) names.emplace_back(e.name);
  return names;
}

inline ts::result<void> add_unet(const ts::component& unet, ts::catalog& out) {
  const auto layout = ts::unet_layout_of_diffusers(names_of(unet.weights));
  for (const ts::catalog_entry& e : unet.weights.entries()) {
    const auto name = ts::unet_name_to_ldm(e.name, layout);
    if (!name) return unmapped("unet", e.name);
    TENSORSMITH_CHECK(out.add("model.diffusion_model." + *name, e.tensor, e.origin));
  }
  return {};
}

inline ts::result<void> add_vae(const ts::component& vae, ts::catalog& out) {
  const auto layout = ts::vae_layout_of(names_of(vae.weights));
  for (const ts::catalog_entry& e : vae.weights.entries()) {
    const auto name = ts::vae_name_to_ldm(e.name, layout);
    if (!name) return unmapped("vae", e.name);
    ts::tensor_ref tensor = e.tensor;
    if (ts::is_vae_projection(e.name)) {
      TENSORSMITH_TRY(tensor, ts::reshaped(tensor, {tensor.shape()[0], tensor.shape()[1], 1, 1}));
    }
    TENSORSMITH_CHECK(out.add("first_stage_model." + *name, tensor, e.origin));
  }
  return {};
}

/// A text encoder under transformers' own names, with the buffer that files have beside them.
inline ts::result<void> add_clip(const ts::component& text, const std::string& prefix, ts::catalog& out) {
  std::array<std::int64_t, 77> ids{};
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i);
  std::vector<std::byte> bytes(sizeof ids);
  std::memcpy(bytes.data(), ids.data(), sizeof ids);
  const std::string buffer = prefix + "text_model.embeddings.position_ids";
  TENSORSMITH_CHECK(out.add(buffer, ts::in_memory({buffer, ts::dtype::i64, {1, ids.size()}}, std::move(bytes)), "position ids"));
  for (const ts::catalog_entry& e : text.weights.entries()) {
    const auto name = ts::clip_name_to_ldm(e.name);
    if (!name) return unmapped(text.name, e.name);
    TENSORSMITH_CHECK(out.add(prefix + *name, e.tensor, e.origin));
  }
  return {};
}

/// A text encoder in OpenCLIP's form: query, key and value stacked, the projection transposed.
inline ts::result<void> add_open_clip(const ts::component& text, const std::string& prefix, ts::catalog& out) {
  std::vector<std::pair<std::string, std::vector<ts::tensor_ref>>> stacks;
  for (const ts::catalog_entry& e : text.weights.entries()) {
    const auto target = ts::open_clip_name_to_ldm(e.name);
    if (!target) return unmapped(text.name, e.name);
    const std::string name = prefix + target->name;
    if (target->action == ts::open_clip_action::third) {
      std::size_t at = 0;
      while (at < stacks.size() && stacks[at].first != name) ++at;
      if (at == stacks.size()) stacks.emplace_back(name, std::vector<ts::tensor_ref>(3));
      stacks[at].second[target->part] = e.tensor;
      continue;
    }
    ts::tensor_ref tensor = e.tensor;
    if (target->action == ts::open_clip_action::transpose) {
      TENSORSMITH_TRY(tensor, ts::transposed(tensor));
    }
    TENSORSMITH_CHECK(out.add(name, tensor, e.origin));
  }
  for (auto& [name, parts] : stacks) {
    for (const ts::tensor_ref& part : parts)
      if (!part) return unmapped(text.name, name + ": one of query, key and value");
    TENSORSMITH_CHECK(out.add(name, stacked(std::move(parts)), "q, k, v"));
  }
  return {};
}

/// The scalar that OpenCLIP files have and nothing uses.
inline ts::result<void> add_logit_scale(const std::string& prefix, ts::catalog& out) {
  const float value = 4.6052F;
  std::vector<std::byte> bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return out.add(prefix + "logit_scale", ts::in_memory({prefix + "logit_scale", ts::dtype::f32, {}}, std::move(bytes)),
                 "logit scale");
}

}  // namespace detail

/// The pipeline as one catalog under the names of the original training code. For SD2, `text_encoder` must hold one layer more
/// than the network uses and a projection (see unused_open_clip_part), as published files do.
inline ts::result<ts::catalog> ldm_checkpoint(const std::vector<ts::component>& components, const model_choice& m) {
  ts::catalog out;
  for (const ts::component& c : components) {
    if (c.name == "unet") {
      TENSORSMITH_CHECK(detail::add_unet(c, out));
    } else if (c.name == "vae") {
      TENSORSMITH_CHECK(detail::add_vae(c, out));
    } else if (c.name == "text_encoder" && m.family != ts::sd_family::sd2) {
      const std::string prefix = m.has_second_encoder() ? "conditioner.embedders.0.transformer." : "cond_stage_model.transformer.";
      TENSORSMITH_CHECK(detail::add_clip(c, prefix, out));
    } else {
      const std::string prefix = m.family == ts::sd_family::sd2    ? "cond_stage_model.model."
                                 : m.family == ts::sd_family::sdxl ? "conditioner.embedders.1.model."
                                                                   : "conditioner.embedders.0.model.";
      TENSORSMITH_CHECK(detail::add_open_clip(c, prefix, out));
      TENSORSMITH_CHECK(detail::add_logit_scale(prefix, out));
    }
  }
  return out;
}

}  // namespace make_tiny_sd
