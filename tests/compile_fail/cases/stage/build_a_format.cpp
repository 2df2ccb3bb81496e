// expect: tensorsmith: build<Arch> needs an architecture tag such as tags::sd15
#include "tensorsmith/stage/build.hpp"

#ifdef FIXED
using arch = tensorsmith::tags::sd15;
#else
using arch = tensorsmith::tags::safetensors_file;
#endif

auto stage = tensorsmith::build<arch>();
