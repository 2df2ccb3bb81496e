// SPDX-License-Identifier: MIT
//
// make_tiny_sd/ldm_checkpoint.hpp: the same weights as one LDM checkpoint, with what published files hold beside them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "model_configs.hpp"
#include "tensorsmith/arch/checkpoint_names.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/package.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace make_tiny_sd {

namespace ts = tensorsmith;

namespace detail {

/// The buffer that files have beside CLIP-L.
inline ts::result<void> add_position_ids(const std::string& prefix, ts::catalog& out) {
  std::array<std::int64_t, 77> ids{};
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i);
  std::vector<std::byte> bytes(sizeof ids);
  std::memcpy(bytes.data(), ids.data(), sizeof ids);
  const std::string name = prefix + "text_model.embeddings.position_ids";
  return out.add(name, ts::in_memory({name, ts::dtype::i64, {1, ids.size()}}, std::move(bytes)), "position ids");
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
/// than the network uses and a projection (`unused_layer` of make_components), as published files do.
inline ts::result<ts::catalog> ldm_checkpoint(const std::vector<ts::component>& components, const model_choice& m) {
  ts::package model;
  model.family = std::string(ts::name_of(m.family));
  model.components = components;
  ts::job quiet;
  TENSORSMITH_TRY(ts::catalog out, ts::checkpoint_catalog(model, quiet));
  for (const ts::component& c : components) {
    if (c.name != "text_encoder" && c.name != "text_encoder_2") continue;
    const auto place = ts::text_encoder_place_of(m.family, c.name == "text_encoder_2");
    const std::string prefix(place.prefix);
    if (!place.open_clip) {
      TENSORSMITH_CHECK(detail::add_position_ids(prefix, out));
      continue;
    }
    TENSORSMITH_CHECK(detail::add_logit_scale(prefix, out));
    if (const ts::catalog_entry* projection = c.weights.find("text_projection.weight"); projection && m.family == ts::sd_family::sd2) {
      TENSORSMITH_TRY(ts::tensor_ref turned, ts::transposed(projection->tensor));
      TENSORSMITH_CHECK(out.add(prefix + "text_projection", std::move(turned), projection->origin));
    }
  }
  return out;
}

}  // namespace make_tiny_sd
