// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/write_onnx.hpp: `… | lower_to<ort>() | write<onnx_folder>("out/sd15")`. Needs onnx (protobuf).
#pragma once

#include <string>

#include "tensorsmith/format/onnx/tag.hpp"
#include "tensorsmith/format/onnx/write.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/stage/write.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A pipeline folder of ONNX graphs.
template <>
struct writer<tags::onnx_folder> {
  using input = bundle;
  using options = onnx_write_options;
  static result<write_report> write(const bundle& in, const std::string& path, const options& how, job& run) {
    return write_onnx_folder(in, path, how, run);
  }
};

TENSORSMITH_END_NAMESPACE
