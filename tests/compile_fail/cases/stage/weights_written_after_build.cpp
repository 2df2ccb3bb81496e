// expect: tensorsmith: this stage works on weights, but graphs flow here; put it before build
#include "tensorsmith/stage/write_weights.hpp"

#ifdef FIXED
using flowing = tensorsmith::package;
#else
using flowing = tensorsmith::bundle;
#endif

bool written(tensorsmith::chain<flowing> model) {
  return (std::move(model) | tensorsmith::write<tensorsmith::tags::npz_file>("model.npz")).has_value();
}
