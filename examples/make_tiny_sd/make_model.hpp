// SPDX-License-Identifier: MIT
//
// make_tiny_sd/make_model.hpp: made-up weights for every parameter that the architectures ask for.
//
// The code that builds graphs is the one authority on names and shapes: it is run with a source that hands out random
// tensors and remembers what was taken; the graphs are thrown away.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model_configs.hpp"
#include "random_weights.hpp"
#include "tensorsmith/arch/autoencoder_kl.hpp"
#include "tensorsmith/arch/clip_text.hpp"
#include "tensorsmith/arch/interface.hpp"
#include "tensorsmith/arch/unet2d_condition.hpp"
#include "tensorsmith/graph/parameters.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/package.hpp"

namespace make_tiny_sd {

namespace ts = tensorsmith;

/// Hands out a random tensor for any name and shape, the same one for the same name, and keeps the list.
class recording_source final : public ts::parameter_source {
 public:
  recording_source(std::string component, std::uint64_t seed, ts::dtype type)
      : component_(std::move(component)), seed_(seed), type_(type) {}

  ts::result<ts::tensor_ref> take(std::string_view name, const ts::shape_type& shape) override {
    if (const ts::catalog_entry* known = taken_.find(name)) return known->tensor;
    TENSORSMITH_TRY(ts::tensor_ref tensor, ts::cast(random_tensor(seed_, component_ + '.' + std::string(name), shape), type_));
    TENSORSMITH_CHECK(taken_.add(std::string(name), tensor, component_ + '.' + std::string(name)));
    return tensor;
  }
  ts::catalog taken() && { return std::move(taken_); }

 private:
  std::string component_;
  std::uint64_t seed_;
  ts::dtype type_;
  ts::catalog taken_;
};

/// The component with weights for all its parameters.
inline ts::result<ts::component> make_component(const component_plan& plan, const model_choice& m, std::uint64_t seed) {
  recording_source source(plan.name, seed, m.type);
  const ts::io_interface io = ts::interface_optimum();
  ts::arch_options options;
  options.component = plan.name;
  if (plan.name == "unet") {
    if (m.has_second_encoder()) options.text_embeds_width = detail::width_of(m, true);
    TENSORSMITH_CHECK(ts::build_unet2d_condition(plan.config, source, io, options));
  } else if (plan.name == "vae") {
    TENSORSMITH_CHECK(ts::build_vae_encoder(plan.config, source, io, options));
    TENSORSMITH_CHECK(ts::build_vae_decoder(plan.config, source, io, options));
  } else {
    TENSORSMITH_CHECK(ts::build_clip_text(plan.config, source, io, options));
  }
  ts::component out;
  out.name = plan.name;
  out.config = plan.config;
  out.weights = std::move(source).taken();
  return out;
}

/// All components. `unused_layer` adds to SD2's text encoder the last layer and the projection that published checkpoints
/// have and the network does not use.
inline ts::result<std::vector<ts::component>> make_components(const model_choice& m, std::uint64_t seed, bool unused_layer) {
  TENSORSMITH_TRY(std::vector<component_plan> plans, plan_components(m));
  std::vector<ts::component> out;
  for (component_plan& plan : plans) {
    if (unused_layer && m.family == ts::sd_family::sd2 && plan.name == "text_encoder") {
      plan.config.set("num_hidden_layers", *plan.config.find("num_hidden_layers")->as_integer() + 1);
      plan.config.set("projection_dim", *plan.config.find("hidden_size"));
      plan.config.set("architectures", ts::json_value::array{"CLIPTextModelWithProjection"});
    }
    TENSORSMITH_TRY(ts::component made, make_component(plan, m, seed));
    out.push_back(std::move(made));
  }
  return out;
}

}  // namespace make_tiny_sd
