// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/build.hpp: `… | build<sd15>(interface::optimum) | …`: weights and configuration become graphs.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/arch/interface.hpp"
#include "tensorsmith/arch/stable_diffusion_build.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace tags {

/// Any Stable Diffusion model; which one is told from its shapes and configurations.
struct stable_diffusion { static constexpr std::string_view model = "auto"; };
struct sd15 : stable_diffusion { static constexpr std::string_view model = "sd1"; };
struct sd21 : stable_diffusion { static constexpr std::string_view model = "sd2"; };
struct sdxl : stable_diffusion { static constexpr std::string_view model = "sdxl"; };
struct sdxl_refiner : stable_diffusion { static constexpr std::string_view model = "sdxl-refiner"; };

}  // namespace tags

/// Tables of names, axes and types for the graphs' inputs and outputs.
namespace interface {

inline const io_interface optimum = interface_optimum();
inline const io_interface diffusers = interface_diffusers();
inline const io_interface onnx_web = interface_onnx_web();

}  // namespace interface

/// An architecture that `build` knows.
template <class Arch>
concept buildable_architecture = std::derived_from<Arch, tags::stable_diffusion>;

/// Builds the graphs of a pipeline. A single file is recognised first: its tensors get their final names, its configuration is derived.
struct build_stage {
  using input = package;
  using output = bundle;
  static constexpr std::string_view name = "build";

  build_options building;
  open_options opening;

  result<bundle> run(package in, job& run) const {
    TENSORSMITH_TRY(package model, recognize_stable_diffusion(std::move(in), opening, run));
    return build_stable_diffusion(std::move(model), building, run);
  }
};

/// Stage: graphs of the architecture `Arch` with the given interface. `opening` says what the file does not (configuration, prediction type).
/// @fails mismatch (a missing tensor, shapes that do not fit, another family), unsupported
template <class Arch>
build_stage build(const io_interface& io = interface::optimum, open_options opening = {}) {
  static_assert(buildable_architecture<Arch>,
                "tensorsmith: build<Arch> needs an architecture tag such as tags::sd15; formats belong into open<…> and write<…>, targets into lower_to<…>");
  if constexpr (buildable_architecture<Arch>)
    if (opening.model == "auto") opening.model = std::string(Arch::model);
  build_stage stage;
  stage.building.io = io;
  stage.building.io_float = io.io_float;
  stage.opening = std::move(opening);
  return stage;
}

TENSORSMITH_END_NAMESPACE
