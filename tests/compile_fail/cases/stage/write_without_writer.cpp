// expect: tensorsmith: write<Format> has no writer for this format; include tensorsmith/stage/write_weights.hpp or write_onnx.hpp
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/stage/write.hpp"
#ifdef FIXED
#include "tensorsmith/stage/write_weights.hpp"
#endif

auto stage = [] { return tensorsmith::write<tensorsmith::tags::safetensors_file>("model.safetensors"); };
