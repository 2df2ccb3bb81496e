// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/detect.hpp: which Stable Diffusion family a model belongs to, from shapes, prefixes and configurations.
//
// Every piece of evidence excludes families; what is left must be one. Contradictions and open choices are refused with what to pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/checkpoint_parts.hpp"
#include "tensorsmith/arch/derive_unet.hpp"
#include "tensorsmith/arch/family.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A set of families.
class family_set {
 public:
  constexpr family_set() = default;
  constexpr family_set(std::initializer_list<sd_family> members) {
    for (const sd_family family : members) bits_ |= bit(family);
  }
  static constexpr family_set all() { return {sd_family::sd1, sd_family::sd2, sd_family::sdxl, sd_family::sdxl_refiner}; }

  constexpr bool contains(sd_family family) const noexcept { return bits_ & bit(family); }
  constexpr bool empty() const noexcept { return bits_ == 0; }
  constexpr family_set operator&(family_set other) const noexcept { return family_set(bits_ & other.bits_); }
  constexpr family_set operator~() const noexcept { return family_set(~bits_ & all().bits_); }
  constexpr bool operator==(const family_set&) const = default;

  /// The member, if there is exactly one.
  constexpr std::optional<sd_family> only() const noexcept {
    for (const sd_family family : {sd_family::sd1, sd_family::sd2, sd_family::sdxl, sd_family::sdxl_refiner})
      if (bits_ == bit(family)) return family;
    return std::nullopt;
  }
  /// "sd1 or sd2".
  std::string text() const {
    std::string out;
    for (const family_conventions& row : family_table)
      if (contains(*family_named(row.name))) out += (out.empty() ? "" : " or ") + std::string(row.name);
    return out;
  }

 private:
  constexpr explicit family_set(unsigned bits) noexcept : bits_(bits) {}
  static constexpr unsigned bit(sd_family family) noexcept { return 1u << static_cast<unsigned>(family); }
  unsigned bits_ = 0;
};

/// Gathers evidence of the family.
class family_vote {
 public:
  /// Only `possible` families agree with `what` ("the text encoder"), which was read off `why`.
  void allow(family_set possible, std::string what, std::string why) {
    if (contradiction_ || possible == family_set::all()) return;
    if ((left_ & possible).empty()) {
      contradiction_ = failure{.code = errc::mismatch, .what = "the evidence of the model's family contradicts itself",
                               .place = what, .expected = left_.text() + " (" + (reasons_.empty() ? "" : reasons_.back().reason) + ")",
                               .found = possible.text() + " (" + why + ")",
                               .advice = "check --model, or pass --model and --config to say what it is"};
      return;
    }
    if ((left_ & possible) != left_) reasons_.push_back({"family", (left_ & possible).text(), what + ": " + why});
    left_ = left_ & possible;
  }
  family_set left() const noexcept { return left_; }

  /// The family and what it was concluded from. @fails mismatch (contradiction, open choice)
  result<std::pair<sd_family, std::vector<evidence>>> outcome() const {
    if (contradiction_) return *contradiction_;
    if (const auto family = left_.only()) return std::pair(*family, reasons_);
    return failure{.code = errc::mismatch, .what = "what the model is stays open", .place = "family", .expected = "evidence for one family",
                   .found = left_.text(), .advice = "pass --model sd1, sd2, sdxl or sdxl-refiner"};
  }

 private:
  family_set left_ = family_set::all();
  std::vector<evidence> reasons_;
  std::optional<failure> contradiction_;
};

/// What the user says. @fails usage (no family is called so)
inline result<void> vote_of_user(family_vote& vote, std::string_view model) {
  if (model.empty() || model == "auto") return {};
  const auto family = family_named(model);
  if (!family)
    return failure{.code = errc::usage, .what = "unknown model " + quoted(model), .expected = "auto, sd1, sd2, sdxl or sdxl-refiner"};
  vote.allow({*family}, "--model", std::string(model));
  return {};
}

/// What the prefixes of the text encoders say.
inline void vote_of_parts(family_vote& vote, const checkpoint_parts& parts) {
  constexpr std::pair<std::string_view, family_set> rows[] = {
      {"cond_stage_model.transformer.", {sd_family::sd1}},
      {"cond_stage_model.model.", {sd_family::sd2}},
      {"conditioner.embedders.0.transformer.", {sd_family::sdxl}},
      {"conditioner.embedders.1.model.", {sd_family::sdxl}},
      {"conditioner.embedders.0.model.", {sd_family::sdxl_refiner, sd_family::sd2}},
      {"text_encoder_2.", {sd_family::sdxl, sd_family::sdxl_refiner}},
  };
  for (const checkpoint_part& part : parts.parts)
    for (const auto& [prefix, possible] : rows)
      if (part.prefix == prefix) vote.allow(possible, "the text encoder", "prefix " + std::string(prefix));
}

/// What the structure of the UNet says.
inline void vote_of_unet(family_vote& vote, const unet_shape& shape) {
  const std::size_t cross = shape.cross_attention;
  const std::string width = "attn2.to_k takes width " + std::to_string(cross);
  if (cross == 0) return;
  if (!shape.added_embedding) {
    vote.allow({sd_family::sd1, sd_family::sd2}, "the UNet", "it has no add_embedding (label_emb)");
    const bool decided = vote.left().only().has_value();
    if (cross == 768) vote.allow(~family_set{sd_family::sd2}, "the UNet", width + ", CLIP-L's");
    if (cross == 1024) vote.allow(~family_set{sd_family::sd1}, "the UNet", width + ", ViT-H's");
    // The weakest sign: it decides if neither the user nor a text encoder does, and must then agree with the width.
    if (!decided)
      vote.allow({shape.linear_projection ? sd_family::sd2 : sd_family::sd1}, "the UNet",
                 shape.linear_projection ? "proj_in is a matrix" : "proj_in is a convolution");
    return;
  }
  const std::size_t added = *shape.added_embedding;
  vote.allow({sd_family::sdxl, sd_family::sdxl_refiner}, "the UNet", "it has add_embedding (label_emb)");
  // SDXL adds the pooled state of its second encoder and six sizes of 256 values each; its text states are wider than that. The
  // refiner adds five sizes, and text states and pooled state come from the same encoder.
  if (added >= 5 * 256 && added - 5 * 256 == cross)
    vote.allow({sd_family::sdxl_refiner}, "the UNet", width + ", add_embedding " + std::to_string(added) + " = " + std::to_string(cross) + " + 5 × 256");
  else if (added > 6 * 256 && added - 6 * 256 < cross)
    vote.allow({sd_family::sdxl}, "the UNet",
               width + ", add_embedding " + std::to_string(added) + " = " + std::to_string(added - 6 * 256) + " + 6 × 256");
}

/// What a UNet's config.json says.
inline void vote_of_config(family_vote& vote, const json_value& config) {
  const auto number = [&](std::string_view key) -> std::int64_t {
    const json_value* value = config.find(key);
    return value && value->as_integer() ? *value->as_integer() : 0;
  };
  const json_value *added = config.find("addition_embed_type"), *linear = config.find("use_linear_projection");
  const std::int64_t cross = number("cross_attention_dim"), input = number("projection_class_embeddings_input_dim");
  if (added && added->as_string()) {
    const bool refiner = input - 5 * 256 == cross;
    vote.allow({refiner ? sd_family::sdxl_refiner : sd_family::sdxl}, "the UNet's configuration",
               "addition_embed_type " + quoted(*added->as_string()) + ", cross_attention_dim " + std::to_string(cross));
    return;
  }
  const bool is_linear = linear && linear->as_bool() && *linear->as_bool();
  vote.allow({is_linear || cross == 1024 ? sd_family::sd2 : sd_family::sd1}, "the UNet's configuration",
             std::string("use_linear_projection is ") + (is_linear ? "true" : "false") + ", cross_attention_dim " + std::to_string(cross));
}

TENSORSMITH_END_NAMESPACE
