// expect: tensorsmith: blend works on weights or graphs; put it between open
#include "tensorsmith/stage/blend.hpp"
#include "tensorsmith/stage/write_weights.hpp"

#ifdef FIXED
using flowing = tensorsmith::bundle;
#else
using flowing = tensorsmith::write_report;
#endif

bool blended(tensorsmith::chain<flowing> model, tensorsmith::package other) {
  return (std::move(model) | tensorsmith::blend(other, {.ratio = 0.3})).has_value();
}
