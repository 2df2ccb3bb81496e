// expect: tensorsmith: this stage works on weights, but graphs flow here
#include "tensorsmith/stage/cast.hpp"

#ifdef FIXED
using flowing = tensorsmith::package;
#else
using flowing = tensorsmith::bundle;
#endif

bool halved(tensorsmith::chain<flowing> model) {
  return (std::move(model) | tensorsmith::cast<tensorsmith::tags::f16>()).has_value();
}
