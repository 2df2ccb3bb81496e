// expect: tensorsmith: this stage works on weights, but graphs flow here; put it before build
#include "tensorsmith/stage/dedupe.hpp"
#include "tensorsmith/stage/fuse.hpp"
#include "tensorsmith/stage/prune.hpp"
#include "tensorsmith/stage/rename.hpp"
#include "tensorsmith/stage/select.hpp"

#ifdef FIXED
using flowing = tensorsmith::package;
#else
using flowing = tensorsmith::bundle;
#endif

bool pruned(tensorsmith::chain<flowing> model) {
  using namespace tensorsmith::tags;
  return (std::move(model) | tensorsmith::prune(ema | optimizer | schedule)).has_value();
}

// The other stages on weights stand in their places in both versions.
bool others(tensorsmith::chain<tensorsmith::package> model) {
  return (std::move(model) | tensorsmith::select({"*"}) | tensorsmith::drop({"*.bias"}) | tensorsmith::rename({tensorsmith::rename_prefix("a.", "")}) |
          tensorsmith::fuse_rows({"*.a", "*.b"}, "$1.ab") | tensorsmith::split_rows("*.ab", {"$1.a", "$1.b"}) | tensorsmith::dedupe())
      .has_value();
}
