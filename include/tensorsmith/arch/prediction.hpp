// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/prediction.hpp: whether a model predicts the noise or the velocity. Weights do not tell; this weighs the evidence.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/checkpoint_parts.hpp"
#include "tensorsmith/arch/family.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What is known about how a model was trained besides its tensors.
struct training_facts {
  std::optional<std::string> user;                             ///< `--prediction-type`
  std::optional<std::string> yaml;                             ///< `model.params.parameterization` of a sidecar
  std::vector<std::pair<std::string, std::string>> metadata;   ///< of a safetensors header
  std::optional<std::int64_t> global_step;                     ///< of a Lightning checkpoint
};

/// The answer. `zero_snr`: the noise schedule ends in pure noise.
struct prediction_choice {
  bool velocity = false;
  bool zero_snr = false;
  bool guessed = false;  ///< nothing but the custom of the family says so
  evidence finding{};

  std::string_view name() const noexcept { return velocity ? "v_prediction" : "epsilon"; }
};

namespace detail {

/// Spellings of the two kinds. Anything else: nothing.
inline std::optional<bool> is_velocity(std::string_view text) noexcept {
  if (text == "v" || text == "v_prediction" || text == "v-prediction" || text == "v_pred" || text == "vpred") return true;
  if (text == "epsilon" || text == "eps") return false;
  return std::nullopt;
}

inline std::optional<prediction_choice> prediction_of_metadata(const training_facts& facts) {
  for (const auto& [key, value] : facts.metadata) {
    if (key == "modelspec.prediction_type")
      if (const auto v = is_velocity(value))
        return prediction_choice{.velocity = *v, .finding = {"prediction_type", *v ? "v_prediction" : "epsilon",
                                                             "metadata modelspec.prediction_type is " + quoted(value)}};
    const bool base = key == "ss_base_model_version" && value.find("sd_v2_v") != std::string::npos;
    const bool architecture = key == "modelspec.architecture" && value.find("stable-diffusion-v2-768-v") != std::string::npos;
    if (base || architecture)
      return prediction_choice{.velocity = true, .finding = {"prediction_type", "v_prediction", "metadata " + key + " is " + quoted(value)}};
  }
  return std::nullopt;
}

}  // namespace detail

/// Weighs the evidence, strongest first: the user, a sidecar, metadata, marker tensors, training steps (SD2), the custom of the
/// family. `short_schedule`: variants of SD2 that are published with epsilon only (inpainting, depth, Turbo).
/// @fails usage (a spelling that means neither)
inline result<prediction_choice> choose_prediction(sd_family family, const training_facts& facts, const checkpoint_parts& parts,
                                                   std::optional<std::string> epsilon_variant = {}) {
  const auto say = [](bool velocity, std::string reason) {
    prediction_choice out;
    out.velocity = velocity;
    out.finding = {"prediction_type", std::string(out.name()), std::move(reason)};
    return out;
  };
  const bool zero_snr = parts.marked("ztsnr");
  const auto marked = [&](prediction_choice choice) { return choice.zero_snr = zero_snr && choice.velocity, choice; };
  if (facts.user) {
    const auto v = detail::is_velocity(*facts.user);
    if (!v)
      return failure{.code = errc::usage, .what = "unknown prediction type " + quoted(*facts.user), .expected = "epsilon or v_prediction"};
    return marked(say(*v, "--prediction-type"));
  }
  if (facts.yaml)
    if (const auto v = detail::is_velocity(*facts.yaml)) return marked(say(*v, "parameterization in the yaml configuration"));
  if (const auto choice = detail::prediction_of_metadata(facts)) return marked(*choice);
  if (parts.marked("v_pred")) return marked(say(true, "the marker tensor 'v_pred'"));
  if (family != sd_family::sd2) return say(false, "custom of " + std::string(name_of(family)));
  if (epsilon_variant) return say(false, *epsilon_variant);
  if (facts.global_step == 875000) return say(false, "global_step is 875000, that of the 512 pixel base model");
  if (facts.global_step) return say(true, "global_step is " + std::to_string(*facts.global_step) + ", not that of the base model");
  prediction_choice out = say(true, "most SD2 models predict velocity; nothing in the file says so");
  out.guessed = true;
  return out;
}

TENSORSMITH_END_NAMESPACE
