// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/checkpoint_catalogs.hpp: parts of a checkpoint as catalogs with the names of diffusers and transformers.
//
// Include this to turn a part that split_checkpoint found into the weights of a component. Nothing is read: splits, transposes and
// reshapes are views.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/checkpoint_parts.hpp"
#include "tensorsmith/arch/names/clip.hpp"
#include "tensorsmith/arch/names/open_clip.hpp"
#include "tensorsmith/arch/names/unet.hpp"
#include "tensorsmith/arch/names/vae.hpp"
#include "tensorsmith/tensor/package.hpp"
#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Weights under their final names, and what was left out ("name: reason").
struct named_weights {
  catalog weights;
  std::vector<std::string> ignored;
};

namespace detail {

/// Collects names that no table knows; one error tells the first of them and how many there are.
class unknown_names {
 public:
  void add(const catalog_entry& entry) {
    if (count_++ < 5) shown_ += (shown_.empty() ? "" : ", ") + quoted(entry.name);
  }
  result<void> outcome(std::string_view component, std::string_view origin) const {
    if (count_ == 0) return {};
    return failure{.code = errc::unsupported,
                   .what = std::to_string(count_) + " tensors have names that no known " + std::string(component) + " has",
                   .place = std::string(origin), .found = shown_ + (count_ > 5 ? ", …" : ""),
                   .advice = "this is a variant that is not supported"};
  }

 private:
  std::size_t count_ = 0;
  std::string shown_;
};

inline std::string_view prefix_text(const checkpoint_part& part) {
  return part.prefix.empty() ? std::string_view("names without prefix") : std::string_view(part.prefix);
}

}  // namespace detail

/// The UNet. With `moving_average` its weights are taken from `tensors` under their flat names. `class_embedding`: see unet_name_layout.
/// @fails unsupported (unknown names), mismatch (a moving average is missing)
inline result<named_weights> unet_weights(const checkpoint_part& part, const catalog& tensors, bool moving_average,
                                          bool class_embedding = false) {
  named_weights out;
  detail::unknown_names unknown;
  const auto names = part.names();
  unet_name_layout layout = unet_layout_of_ldm(names);
  layout.class_embedding = class_embedding;
  for (const checkpoint_part::member& m : part.members) {
    auto name = part.form == part_form::diffusers ? std::optional<std::string>(m.name) : unet_name_to_diffusers(m.name, layout);
    if (!name) {
      unknown.add(*m.entry);
      continue;
    }
    const catalog_entry* source = m.entry;
    if (moving_average) {
      source = tensors.find(unet_ema_name(m.name));
      if (!source)
        return failure{.code = errc::mismatch, .what = "the moving average of a tensor is missing", .place = m.entry->origin,
                       .expected = quoted(unet_ema_name(m.name)),
                       .advice = tensors.contains(unet_ema_name("out.2.weight")) ? "leave out --ema"
                                 : "the file holds no moving averages (often it holds them as its weights); leave out --ema"};
      if (source->tensor.shape() != m.entry->tensor.shape())
        return failure{.code = errc::mismatch, .what = "a moving average has another shape than its tensor", .place = source->origin,
                       .expected = to_string(m.entry->tensor.shape()), .found = to_string(source->tensor.shape())};
      out.ignored.push_back(m.entry->name + ": its moving average is used");
    }
    TENSORSMITH_CHECK(out.weights.add(std::move(*name), source->tensor, source->origin));
  }
  TENSORSMITH_CHECK(unknown.outcome("UNet", detail::prefix_text(part)));
  return out;
}

/// The autoencoder. Its attention projections come out as matrices. @fails unsupported (unknown names), mismatch (shapes)
inline result<named_weights> vae_weights(const checkpoint_part& part) {
  named_weights out;
  detail::unknown_names unknown;
  const auto names = part.names();
  const vae_name_layout layout = vae_layout_of(names);
  for (const checkpoint_part::member& m : part.members) {
    if (m.name.substr(0, 5) == "loss." || m.name.substr(0, 10) == "model_ema.") {
      out.ignored.push_back(m.entry->name + ": only training reads it");
      continue;
    }
    auto name = part.form == part_form::diffusers ? std::optional<std::string>(modern_vae_name(m.name))
                                                  : vae_name_to_diffusers(m.name, layout);
    if (!name) {
      unknown.add(*m.entry);
      continue;
    }
    tensor_ref tensor = m.entry->tensor;
    if (const shape_type& shape = tensor.shape(); is_vae_projection(*name) && shape.size() > 2 &&
                                                  std::all_of(shape.begin() + 2, shape.end(), [](std::size_t e) { return e == 1; })) {
      TENSORSMITH_TRY(tensor, reshaped(tensor, {shape[0], shape[1]}));
    }
    TENSORSMITH_CHECK(out.weights.add(std::move(*name), std::move(tensor), m.entry->origin));
  }
  TENSORSMITH_CHECK(unknown.outcome("autoencoder", detail::prefix_text(part)));
  return out;
}

/// A text encoder that is stored under transformers' names. `projected`: keep its text projection (SDXL's second one).
inline result<named_weights> clip_weights(const checkpoint_part& part, bool projected) {
  named_weights out;
  detail::unknown_names unknown;
  for (const checkpoint_part::member& m : part.members) {
    auto name = clip_name_to_diffusers(m.name);
    if (!name) {
      unknown.add(*m.entry);
    } else if (!projected && path_reader(*name).take("text_projection")) {
      out.ignored.push_back(m.entry->name + ": this text encoder has no projection");
    } else {
      TENSORSMITH_CHECK(out.weights.add(std::move(*name), m.entry->tensor, m.entry->origin));
    }
  }
  TENSORSMITH_CHECK(unknown.outcome("CLIP text encoder", detail::prefix_text(part)));
  return out;
}

namespace detail {

/// The number of blocks to keep. The network of SD2 reads the second to last state: a complete encoder loses its last block. Files
/// written from diffusers folders never had it; they lack the projection and the logit scale as well.
inline std::size_t kept_blocks(const checkpoint_part& part, const catalog& tensors, bool projected) {
  std::size_t blocks = 0, width = 0;
  bool complete = tensors.contains(part.prefix + "logit_scale");
  for (const checkpoint_part::member& m : part.members) {
    path_reader path(m.name);
    if (path.take("transformer.resblocks")) {
      if (const auto n = path.take_index()) blocks = std::max(blocks, *n + 1);
    } else if (path.take("text_projection")) {
      complete = true;
    } else if (path.take("ln_final.weight") && !m.entry->tensor.shape().empty()) {
      width = m.entry->tensor.shape()[0];
    }
  }
  const bool whole_vit_h = width == 1024 && blocks == 24;
  return !projected && blocks > 0 && (complete || whole_vit_h) ? blocks - 1 : blocks;
}

inline result<tensor_ref> open_clip_tensor(const catalog_entry& entry, const open_clip_target& target) {
  switch (target.action) {
    case open_clip_action::copy: return entry.tensor;
    case open_clip_action::transpose: return transposed(entry.tensor);
    case open_clip_action::third: {
      const shape_type& shape = entry.tensor.shape();
      if (shape.empty() || shape[0] % 3 != 0)
        return failure{.code = errc::mismatch, .what = "stacked projections cannot be split in three", .place = entry.origin,
                       .expected = "a multiple of 3 rows", .found = to_string(shape)};
      return sliced_rows(entry.tensor, target.part * (shape[0] / 3), shape[0] / 3);
    }
  }
  return entry.tensor;
}

}  // namespace detail

/// An OpenCLIP text encoder. `projected`: all blocks and the projection (SDXL's second one, the refiner's); otherwise as SD2 uses it,
/// without its last block and without projection.
inline result<named_weights> open_clip_weights(const checkpoint_part& part, const catalog& tensors, bool projected) {
  named_weights out;
  detail::unknown_names unknown;
  const std::size_t blocks = detail::kept_blocks(part, tensors, projected);
  for (const checkpoint_part::member& m : part.members) {
    path_reader path(m.name);
    if (const auto n = path.take("transformer.resblocks") ? path.take_index() : std::nullopt; n && *n >= blocks) {
      out.ignored.push_back(m.entry->name + ": the network reads the second to last state");
      continue;
    }
    const auto targets = open_clip_name_to_diffusers(m.name);
    if (targets.empty()) unknown.add(*m.entry);
    for (const open_clip_target& target : targets) {
      if (!projected && target.name == "text_projection.weight") {
        out.ignored.push_back(m.entry->name + ": this text encoder has no projection");
        continue;
      }
      auto tensor = detail::open_clip_tensor(*m.entry, target);
      if (!tensor) {
        tensor.error().place = m.entry->origin;
        return std::move(tensor).error();
      }
      TENSORSMITH_CHECK(out.weights.add(target.name, std::move(tensor).value(), m.entry->origin));
    }
  }
  TENSORSMITH_CHECK(unknown.outcome("OpenCLIP text encoder", detail::prefix_text(part)));
  return out;
}

TENSORSMITH_END_NAMESPACE
