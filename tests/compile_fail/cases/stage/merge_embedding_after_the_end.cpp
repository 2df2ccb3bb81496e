// expect: tensorsmith: merge_embedding works on weights or graphs; put it between open
#include "tensorsmith/stage/merge_embedding.hpp"
#include "tensorsmith/stage/write_weights.hpp"

#ifdef FIXED
using flowing = tensorsmith::bundle;
#else
using flowing = tensorsmith::write_report;
#endif

bool merged(tensorsmith::chain<flowing> model, tensorsmith::chain<tensorsmith::package> embedding) {
  return (std::move(model) | tensorsmith::merge_embedding(std::move(embedding), "<cat>", {.strength = 0.8})).has_value();
}
