// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/write.hpp: writes a lowered bundle as an ONNX pipeline folder.
//
// Include this to write `unet/model.onnx` and its siblings. Compile with -DONNX_ML=1 -DONNX_NAMESPACE=onnx and link onnx,
// onnx_proto and protobuf. Protobuf carries structure only (kilobytes); weights go from their recipes straight to their final
// offsets.
#pragma once

#include <string>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/onnx/folder_writer.hpp"
#include "tensorsmith/format/onnx/report.hpp"
#include "tensorsmith/format/onnx/tag.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Writes one folder a component (model.onnx, a data file, config.json), side files and model_index.json below `path`; all of it
/// appears at once when it is complete. The same bundle gives the same bytes for any number of threads and size of tiles.
///
/// With weights_mode::in_place and `path` being the bundle's source folder, graphs are added beside the source weights; existing
/// configurations and side files are kept. Into another folder the weight files are cloned or linked; where that is impossible
/// the component is copied and a note says so.
///
/// @fails path (the output exists), usage (weights that cannot stay in place), limit (an embedded file over 2 GiB), no_space, io,
/// integrity (a source changed or its checksum is wrong), cancelled
inline result<write_report> write_onnx_folder(const bundle& models, const std::string& path, const onnx_write_options& options,
                                              job& run) {
  detail::onnx_folder_writer writer(models, path, options, run);
  TENSORSMITH_CHECK(writer.plan());
  return writer.write();
}

/// What `write_onnx_folder` would write, with sizes and an estimate of the memory it needs; nothing is read or written. Whether
/// links work shows only when they are made.
inline result<write_report> plan_onnx_folder(const bundle& models, const std::string& path, const onnx_write_options& options,
                                             job& run) {
  detail::onnx_folder_writer writer(models, path, options, run);
  TENSORSMITH_CHECK(writer.plan());
  return writer.describe();
}

TENSORSMITH_END_NAMESPACE
