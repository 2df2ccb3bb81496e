// expect: tensorsmith: open<Format> has no reader for this format; include tensorsmith/stage/readers.hpp
#include "tensorsmith/format/safetensors/tag.hpp"
#include "tensorsmith/stage/open.hpp"
#ifdef FIXED
#include "tensorsmith/stage/readers.hpp"
#endif

bool opens() { return tensorsmith::open<tensorsmith::tags::safetensors_file>("model.safetensors").has_value(); }
