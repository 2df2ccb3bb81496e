// expect: tensorsmith: lower_to<Target> needs a target tag such as tags::ort_cpu
#include "tensorsmith/format/onnx/tag.hpp"
#include "tensorsmith/stage/lower_to.hpp"

#ifdef FIXED
using target = tensorsmith::tags::ort_cuda;
#else
using target = tensorsmith::tags::onnx_folder;
#endif

auto stage = tensorsmith::lower_to<target>();
