// expect: tensorsmith: this stage cannot follow here: its input is not what the stage before it gives
#include "tensorsmith/stage/cast.hpp"

#ifdef FIXED
using flowing = tensorsmith::package;
#else
using flowing = int;  // what write gives is no input of any stage
#endif

bool halved(tensorsmith::chain<flowing> done) {
  return (std::move(done) | tensorsmith::cast<tensorsmith::tags::f16>()).has_value();
}
