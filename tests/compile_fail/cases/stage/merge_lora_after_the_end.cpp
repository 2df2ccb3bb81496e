// expect: tensorsmith: merge_lora works on weights or graphs; put it between open
#include "tensorsmith/stage/merge_lora.hpp"
#include "tensorsmith/stage/write_weights.hpp"

#ifdef FIXED
using flowing = tensorsmith::bundle;
#else
using flowing = tensorsmith::write_report;
#endif

bool merged(tensorsmith::chain<flowing> model, tensorsmith::package adapter) {
  return (std::move(model) | tensorsmith::merge_lora(adapter, {.strength = 0.8f})).has_value();
}
