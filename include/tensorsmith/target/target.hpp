// SPDX-License-Identifier: MIT
//
// tensorsmith/target/target.hpp: the runtimes that graphs are lowered to, as tags; each inherits the one it falls back to.
//
// Include this to name a target in a template argument. The lowerings live in target/<runtime>.hpp.
#pragma once

#include <concepts>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace tags {

/// ONNX Runtime with standard ONNX operators only: what every execution provider understands.
struct ort {};
/// ONNX Runtime, CPU execution provider.
struct ort_cpu : ort {};
/// ONNX Runtime, CUDA execution provider.
struct ort_cuda : ort {};
/// ONNX Runtime, TensorRT execution provider; what it declines runs on CUDA.
struct ort_tensorrt : ort_cuda {};
/// ONNX Runtime, DirectML execution provider.
struct ort_directml : ort {};
/// ONNX Runtime, CoreML execution provider.
struct ort_coreml : ort {};
/// ONNX Runtime for the web: WebAssembly, WebGPU, WebNN.
struct ort_web : ort {};

}  // namespace tags

/// A tag whose graphs run in ONNX Runtime.
template <class T>
concept ort_target = std::derived_from<T, tags::ort>;

TENSORSMITH_END_NAMESPACE
