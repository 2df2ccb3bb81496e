// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/prune.hpp: leaving out what only training needs: moving averages, optimizer state, noise schedule buffers.
//
// Include this to make a checkpoint of training one for inference. Names decide; what each group takes is said at its function.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/checkpoint_parts.hpp"
#include "tensorsmith/tensor/filter.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What to leave out.
struct prune_options {
  bool ema = false;        ///< moving averages of the weights (is_moving_average)
  bool optimizer = false;  ///< the optimizer's state (is_optimizer_state)
  bool schedule = false;   ///< buffers of the noise schedule (is_schedule_buffer)
};

/// True for moving averages of weights: everything below a first module that is called `ema`, `model_ema` (the original Stable
/// Diffusion code), `ema_model`, or ends in `_ema` (diffusers' training scripts: `unet_ema`).
inline bool is_moving_average(std::string_view name) noexcept {
  const std::string_view module = name.substr(0, name.find('.'));
  return module.size() < name.size() && (module == "ema" || module == "ema_model" || module.ends_with("_ema"));
}

/// True for the state that optimizers keep beside the weights: everything below a first module called `optimizer`, `optimizers`,
/// `optimizer_states` (Lightning) or `optim`, and the buffers that torch's optimizers call `exp_avg`, `exp_avg_sq`,
/// `max_exp_avg_sq`, `square_avg`, `momentum_buffer`.
inline bool is_optimizer_state(std::string_view name) noexcept {
  constexpr std::string_view modules[] = {"optimizer", "optimizers", "optimizer_states", "optim"};
  constexpr std::string_view buffers[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "momentum_buffer"};
  const std::string_view module = name.substr(0, name.find('.'));
  const std::string_view last = name.substr(name.rfind('.') == std::string_view::npos ? 0 : name.rfind('.') + 1);
  return (module.size() < name.size() && std::find(std::begin(modules), std::end(modules), module) != std::end(modules)) ||
         std::find(std::begin(buffers), std::end(buffers), last) != std::end(buffers);
}

/// True for what the original training code stores of its noise schedule at the top level of a checkpoint (arch/checkpoint_parts.hpp's
/// schedule_buffers): `betas`, `alphas_cumprod`, `posterior_variance`, `denoiser.sigmas`, … `position_ids` is none of them.
inline bool is_schedule_buffer(std::string_view name) noexcept {
  return !is_moving_average(name) && std::find(std::begin(schedule_buffers), std::end(schedule_buffers), name) != std::end(schedule_buffers);
}

/// Takes the chosen groups out of all components and returns what was taken, in order; it is added to the components' `ignored`
/// too. A component without a name is judged by its tensors' names, others by "component.name" as well (`unet_ema`).
/// @fails mismatch if nothing would be left: the package then holds nothing else
inline result<std::vector<ignored_tensor>> prune(package& in, const prune_options& options) {
  const auto reason = [&](const std::string& name) -> std::string_view {
    if (options.ema && is_moving_average(name)) return "a moving average of training";
    if (options.optimizer && is_optimizer_state(name)) return "state of the optimizer";
    if (options.schedule && is_schedule_buffer(name)) return "a buffer of the noise schedule";
    return {};
  };
  const auto why = [&](const component& part, const catalog_entry& entry) {
    const std::string_view found = reason(entry.name);
    return found.empty() && !part.name.empty() ? reason(qualified_name(part, entry.name)) : found;
  };
  std::vector<ignored_tensor> taken;
  std::size_t all = 0;
  for (const component& part : in.components) {
    all += part.weights.size();
    for (const catalog_entry& entry : part.weights.entries())
      if (const std::string_view found = why(part, entry); !found.empty())
        taken.push_back({qualified_name(part, entry.name), std::string(found)});
  }
  if (taken.empty()) return taken;
  if (taken.size() == all)
    return failure{.code = errc::mismatch, .what = "pruning leaves no tensor: the source holds nothing but state of training", .file = in.source,
                   .expected = "a weight of a network", .found = quoted(taken[0].name), .advice = "prune less, or choose another source"};
  for (component& part : in.components)
    TENSORSMITH_CHECK(drop_entries(part, [&](const catalog_entry& entry) { return std::string(why(part, entry)); }));
  return taken;
}

TENSORSMITH_END_NAMESPACE
