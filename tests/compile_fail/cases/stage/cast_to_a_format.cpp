// expect: tensorsmith: cast<Dtype> needs an element type tag
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/stage/cast.hpp"

#ifdef FIXED
using wanted = tensorsmith::tags::bf16;
#else
using wanted = tensorsmith::tags::safetensors_file;
#endif

auto stage = tensorsmith::cast<wanted>();
