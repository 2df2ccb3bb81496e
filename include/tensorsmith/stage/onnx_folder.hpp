// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/onnx_folder.hpp: `open<onnx_folder>("sd15-onnx") | merge_lora(…) | rewrite_onnx("out")`.
//
// Include this to open a finished folder of ONNX graphs, and to write it again with what the stages between changed. Protobuf is not needed.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/onnx_pipeline.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/format/onnx/tag.hpp"
#include "tensorsmith/stage/misplaced.hpp"
#include "tensorsmith/stage/open.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A folder of ONNX graphs: its networks under their parameters' names.
template <>
struct reader<tags::onnx_folder> {
  static result<package> open(const std::string& path, job& run) {
    TENSORSMITH_TRY(onnx_pipeline opened, open_onnx_pipeline(path, run));
    return std::move(opened.model);
  }
};

/// Writes the folder that the package was opened from, with the package's parameters; see write_onnx_pipeline.
struct rewrite_onnx_stage {
  using input = package;
  using output = write_report;
  static constexpr std::string_view name = "rewrite_onnx";

  std::string path;
  onnx_pipeline_options how;

  result<write_report> run(const package& in, job& run) const {
    const std::size_t said = run.notes.size();
    TENSORSMITH_TRY(const onnx_pipeline base, open_onnx_pipeline(in.source, run));
    run.notes.resize(said);  // opening it the first time said the same
    return write_onnx_pipeline(base, in, {}, path, how, run);
  }
};

/// Stage: writes `path`, the folder of ONNX graphs that was opened with its parameters as they are now.
/// @fails integrity (the folder changed meanwhile), and as write_onnx_pipeline
inline rewrite_onnx_stage rewrite_onnx(std::string path, onnx_pipeline_options how = {}) { return {std::move(path), how}; }

TENSORSMITH_END_NAMESPACE
