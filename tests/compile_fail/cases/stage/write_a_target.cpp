// expect: tensorsmith: write<Format> has no writer for this format; include tensorsmith/stage/write_weights.hpp or write_onnx.hpp
#include "tensorsmith/stage/write_onnx.hpp"
#include "tensorsmith/target/target.hpp"

#ifdef FIXED
using format = tensorsmith::tags::onnx_folder;
#else
using format = tensorsmith::tags::ort_cpu;
#endif

auto stage = [] { return tensorsmith::write<format>("out"); };
