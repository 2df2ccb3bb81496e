// expect: tensorsmith: this stage works on graphs, but only weights flow here; put build<architecture>() before it
#include "tensorsmith/stage/verify.hpp"

#ifdef FIXED
using flowing = tensorsmith::bundle;
#else
using flowing = tensorsmith::package;
#endif

bool sound(tensorsmith::chain<flowing> weights) { return (std::move(weights) | tensorsmith::verify()).has_value(); }
