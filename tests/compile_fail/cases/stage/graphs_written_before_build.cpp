// expect: tensorsmith: this stage works on graphs, but only weights flow here; put build<architecture>() before it
#include "tensorsmith/stage/write_onnx.hpp"

#ifdef FIXED
using flowing = tensorsmith::bundle;
#else
using flowing = tensorsmith::package;
#endif

bool written(tensorsmith::chain<flowing> model) {
  return (std::move(model) | tensorsmith::write<tensorsmith::tags::onnx_folder>("out")).has_value();
}
