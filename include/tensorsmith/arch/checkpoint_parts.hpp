// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/checkpoint_parts.hpp: which tensors of a single-file checkpoint belong to which model.
//
// Include this to split a checkpoint by its prefixes. Every tensor ends in a part, among the moving averages, on the list of what is
// ignored (with the reason), or among the unknown ones.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/names/path.hpp"
#include "tensorsmith/tensor/catalog.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Whose names a part uses.
enum class part_form : std::uint8_t {
  ldm,        ///< the original training code's (UNet, autoencoder)
  diffusers,  ///< diffusers' (UNet, autoencoder)
  clip,       ///< transformers' text encoder
  open_clip,  ///< OpenCLIP's text encoder
};

/// Tensors under one prefix, the prefix taken off. Views into the catalog that was split.
struct checkpoint_part {
  struct member {
    std::string_view name;
    const catalog_entry* entry = nullptr;
  };
  std::string component;  ///< "unet", "vae", "text_encoder", "text_encoder_2"
  part_form form = part_form::ldm;
  std::string prefix;
  std::vector<member> members;

  std::vector<std::string_view> names() const {
    std::vector<std::string_view> out;
    for (const member& m : members) out.push_back(m.name);
    return out;
  }
};

/// A tensor that is left out on purpose.
struct ignored_tensor {
  std::string name, reason;
};

/// A checkpoint taken apart.
struct checkpoint_parts {
  std::vector<checkpoint_part> parts;
  std::size_t moving_averages = 0;           ///< tensors under `model_ema.`
  std::vector<std::string> markers;          ///< tensors that only say something: v_pred, ztsnr, edm_mean, …
  std::vector<ignored_tensor> ignored;       ///< schedule buffers and the like
  std::vector<const catalog_entry*> unknown;  ///< outside every known prefix

  checkpoint_part* find(std::string_view component) noexcept {
    for (checkpoint_part& part : parts)
      if (part.component == component) return &part;
    return nullptr;
  }
  const checkpoint_part* find(std::string_view component) const noexcept {
    return const_cast<checkpoint_parts*>(this)->find(component);
  }
  bool marked(std::string_view marker) const noexcept {
    return std::any_of(markers.begin(), markers.end(), [&](const std::string& m) { return m.substr(0, marker.size()) == marker; });
  }
};

/// Where a part starts. `strip` characters of the prefix are taken off the names.
struct part_prefix {
  std::string_view prefix, component;
  part_form form;
  std::size_t strip;
};

namespace detail {
constexpr part_prefix prefixed(std::string_view prefix, std::string_view component, part_form form) {
  return {prefix, component, form, prefix.size()};
}
constexpr part_prefix bare(std::string_view prefix, std::string_view component, part_form form) {
  return {prefix, component, form, 0};
}
}  // namespace detail

/// The prefixes of checkpoints, then the modules with which files of one component start.
inline constexpr part_prefix part_prefixes[] = {
    detail::prefixed("model.diffusion_model.", "unet", part_form::ldm),
    detail::prefixed("diffusion_model.", "unet", part_form::ldm),
    detail::prefixed("unet.", "unet", part_form::diffusers),
    detail::prefixed("first_stage_model.", "vae", part_form::ldm),
    detail::prefixed("model.first_stage_model.", "vae", part_form::ldm),
    detail::prefixed("vae.", "vae", part_form::ldm),
    detail::prefixed("cond_stage_model.transformer.", "text_encoder", part_form::clip),
    detail::prefixed("cond_stage_model.model.", "text_encoder", part_form::open_clip),
    detail::prefixed("conditioner.embedders.0.transformer.", "text_encoder", part_form::clip),
    detail::prefixed("conditioner.embedders.0.model.", "text_encoder", part_form::open_clip),
    detail::prefixed("conditioner.embedders.1.model.", "text_encoder_2", part_form::open_clip),
    detail::prefixed("clip_l.transformer.", "text_encoder", part_form::clip),
    detail::prefixed("text_encoder.", "text_encoder", part_form::clip),
    detail::prefixed("text_encoder_2.", "text_encoder_2", part_form::clip),
    detail::bare("input_blocks.", "unet", part_form::ldm),
    detail::bare("middle_block.", "unet", part_form::ldm),
    detail::bare("output_blocks.", "unet", part_form::ldm),
    detail::bare("time_embed.", "unet", part_form::ldm),
    detail::bare("label_emb.", "unet", part_form::ldm),
    detail::bare("out.", "unet", part_form::ldm),
    detail::bare("down_blocks.", "unet", part_form::diffusers),
    detail::bare("mid_block.", "unet", part_form::diffusers),
    detail::bare("up_blocks.", "unet", part_form::diffusers),
    detail::bare("time_embedding.", "unet", part_form::diffusers),
    detail::bare("add_embedding.", "unet", part_form::diffusers),
    detail::bare("class_embedding.", "unet", part_form::diffusers),
    detail::bare("conv_in.", "unet", part_form::diffusers),
    detail::bare("conv_norm_out.", "unet", part_form::diffusers),
    detail::bare("conv_out.", "unet", part_form::diffusers),
    detail::bare("encoder.conv_", "vae", part_form::ldm),
    detail::bare("encoder.norm_out.", "vae", part_form::ldm),
    detail::bare("encoder.down.", "vae", part_form::ldm),
    detail::bare("encoder.down_blocks.", "vae", part_form::ldm),
    detail::bare("encoder.mid.", "vae", part_form::ldm),
    detail::bare("encoder.mid_block.", "vae", part_form::ldm),
    detail::bare("decoder.", "vae", part_form::ldm),
    detail::bare("quant_conv.", "vae", part_form::ldm),
    detail::bare("post_quant_conv.", "vae", part_form::ldm),
    detail::bare("text_model.", "text_encoder", part_form::clip),
    detail::bare("embeddings.", "text_encoder", part_form::clip),
    detail::bare("encoder.layers.", "text_encoder", part_form::clip),
    detail::bare("final_layer_norm.", "text_encoder", part_form::clip),
    detail::bare("text_projection.weight", "text_encoder", part_form::clip),
    detail::bare("transformer.resblocks.", "text_encoder", part_form::open_clip),
    detail::bare("positional_embedding", "text_encoder", part_form::open_clip),
    detail::bare("token_embedding.", "text_encoder", part_form::open_clip),
    detail::bare("ln_final.", "text_encoder", part_form::open_clip),
    detail::bare("text_projection", "text_encoder", part_form::open_clip),
};

/// Names that say which other architecture a file holds.
struct foreign_mark {
  std::string_view text;    ///< occurs in a tensor's name
  std::string_view family;  ///< "a Flux model"
};
inline constexpr foreign_mark foreign_marks[] = {
    {"joint_blocks.", "a Stable Diffusion 3 model"},
    {"double_blocks.", "a Flux model"},
    {"single_transformer_blocks.", "a Flux model"},
    {"control_model.", "a ControlNet"},
    {"input_hint_block.", "a ControlNet"},
    {"controlnet_", "a ControlNet"},
    {"lora_controlnet", "a Control-LoRA"},
    {"lora_up.weight", "a LoRA adapter"},
    {"lora_down.weight", "a LoRA adapter"},
    {".lora_A.", "a LoRA adapter"},
    {".lora.up.", "a LoRA adapter"},
    {".hada_w1_", "a LoHa adapter"},
    {".lokr_w", "a LoKr adapter"},
    {"motion_modules.", "an AnimateDiff motion module"},
    {"noise_augmentor.", "a Stable unCLIP model"},
    {"clip_txt_mapper.", "a Stable Cascade model"},
    {"image_proj.", "an IP-Adapter"},
    {"adapter.body.", "a T2I-Adapter"},
    {"string_to_param", "a Textual Inversion embedding"},
    {"emb_params", "a Textual Inversion embedding"},
};

/// Buffers of the noise schedule and other leftovers of training that no network reads.
inline constexpr std::string_view schedule_buffers[] = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "logvar", "denoiser.sigmas", "scale_factor",
    "model_ema.decay", "model_ema.num_updates"};
/// Tensors whose presence tells how the model was trained.
inline constexpr std::string_view marker_tensors[] = {"v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred."};

/// Why a tensor is ignored wherever it occurs, or nothing.
inline std::string_view why_ignored(std::string_view name) noexcept {
  const auto ends = [&](std::string_view tail) { return name.size() >= tail.size() && name.substr(name.size() - tail.size()) == tail; };
  for (const std::string_view buffer : schedule_buffers)
    if (name == buffer) return "a buffer of training";
  if (ends("position_ids")) return "positions are counted, not read";
  if (name.substr(0, 5) == "loss.") return "only training reads it";
  if (ends("logit_scale")) return "only training reads it";
  if (name.find("embedding_manager") != std::string_view::npos) return "an embedding of training";
  return {};
}

/// The first sign of another architecture in these names, or nullptr; `where` receives the name.
inline const foreign_mark* find_foreign(const catalog& tensors, std::string& where) {
  for (const catalog_entry& entry : tensors.entries())
    for (const foreign_mark& mark : foreign_marks)
      if (entry.name.find(mark.text) != std::string::npos) return where = entry.name, &mark;
  return nullptr;
}

namespace detail {

inline const part_prefix* prefix_of(std::string_view name) noexcept {
  for (const part_prefix& row : part_prefixes)
    if (name.size() > row.prefix.size() - (row.strip == 0 ? 1 : 0) && name.substr(0, row.prefix.size()) == row.prefix) return &row;
  return nullptr;
}

/// Files of one component do not say whose names they use; the blocks do.
inline void settle_form(checkpoint_part& part) {
  if (part.component != "unet" && part.component != "vae") return;
  const auto uses = [&](std::string_view head) {
    return std::any_of(part.members.begin(), part.members.end(),
                       [&](const auto& m) { return m.name.substr(0, head.size()) == head; });
  };
  if (part.component == "unet") part.form = uses("down_blocks.") ? part_form::diffusers : part_form::ldm;
  else part.form = uses("encoder.down_blocks.") || uses("decoder.up_blocks.") ? part_form::diffusers : part_form::ldm;
}

}  // namespace detail

/// Splits a checkpoint by its prefixes. The result refers to `tensors`, which must outlive it.
/// @fails mismatch if two prefixes hold the same component.
inline result<checkpoint_parts> split_checkpoint(const catalog& tensors) {
  checkpoint_parts out;
  for (const catalog_entry& entry : tensors.entries()) {
    const std::string_view name = entry.name;
    if (const std::string_view reason = why_ignored(name); !reason.empty()) {
      out.ignored.push_back({entry.name, std::string(reason)});
      continue;
    }
    if (std::any_of(std::begin(marker_tensors), std::end(marker_tensors),
                    [&](std::string_view m) { return name == m || (m.back() == '.' && name.substr(0, m.size()) == m); })) {
      out.markers.push_back(entry.name);
      continue;
    }
    if (name.substr(0, 10) == "model_ema.") {
      ++out.moving_averages;
      continue;
    }
    const part_prefix* row = detail::prefix_of(name);
    if (!row) {
      out.unknown.push_back(&entry);
      continue;
    }
    checkpoint_part* part = out.find(row->component);
    const std::string prefix(row->prefix.substr(0, row->strip));
    if (part && (part->prefix != prefix || (part->form != row->form && row->component[0] == 't' && !prefix.empty())))
      return failure{.code = errc::mismatch, .what = "two prefixes hold the same component " + std::string(row->component),
                     .place = entry.origin, .expected = quoted(part->prefix), .found = quoted(prefix)};
    if (!part) part = &out.parts.emplace_back(checkpoint_part{std::string(row->component), row->form, prefix, {}});
    // `text_projection.weight` occurs with both kinds of names; whatever else there is decides.
    if (row->form == part_form::open_clip && prefix.empty()) part->form = part_form::open_clip;
    part->members.push_back({name.substr(row->strip), &entry});
  }
  for (checkpoint_part& part : out.parts) detail::settle_form(part);
  return out;
}

TENSORSMITH_END_NAMESPACE
