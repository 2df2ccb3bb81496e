// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/pipeline_index.hpp: model_index.json of a pipeline of ONNX graphs, from that of the original pipeline.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/interface.hpp"
#include "tensorsmith/core/json_value.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// diffusers' ONNX pipeline of the same kind, or nothing.
inline std::string_view onnx_pipeline_of(std::string_view torch_class) noexcept {
  constexpr std::pair<std::string_view, std::string_view> rows[] = {
      {"StableDiffusionPipeline", "OnnxStableDiffusionPipeline"},
      {"StableDiffusionImg2ImgPipeline", "OnnxStableDiffusionImg2ImgPipeline"},
      {"StableDiffusionInpaintPipeline", "OnnxStableDiffusionInpaintPipeline"},
      {"StableDiffusionUpscalePipeline", "OnnxStableDiffusionUpscalePipeline"}};
  for (const auto& [torch, onnx] : rows)
    if (torch == torch_class) return onnx;
  return {};
}

}  // namespace detail

/// The index for the graphs `names` of an interface. Optimum keeps the index of the original; diffusers and onnx-web (all but SDXL, for
/// which diffusers has no ONNX pipelines) name the ONNX pipeline's class, its graphs as OnnxRuntimeModel, and no safety checker, which
/// is not converted.
inline json_value onnx_pipeline_index(const json_value& index, const io_interface& io, const std::vector<std::string>& names) {
  const json_value* cls = index.find("_class_name");
  const std::string_view wanted = cls && cls->as_string() ? detail::onnx_pipeline_of(*cls->as_string()) : std::string_view{};
  if (io.name == "optimum" || wanted.empty()) return index;
  const json_value graph = json_value::array{"diffusers", "OnnxRuntimeModel"}, none = json_value::array{nullptr, nullptr};
  const auto built = [&](std::string_view name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  json_value out{json_value::object{}};
  for (const auto& [key, entry] : *index.as_object()) {
    if (key == "_class_name") out.set(key, wanted);
    else if (key == "vae")
      for (const std::string_view half : {"vae_encoder", "vae_decoder"}) out.set(half, built(half) ? graph : none);
    else if (key == "safety_checker") out.set(key, none);
    else if (key == "requires_safety_checker") out.set(key, false);
    else if (key == "image_encoder") continue;  // the ONNX pipelines have no such part
    else out.set(key, built(key) ? graph : entry);
  }
  return out;
}

TENSORSMITH_END_NAMESPACE
