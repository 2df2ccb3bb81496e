// expect: pipeline_stage
// SPDX-License-Identifier: MIT
//
// A stage without a name is none: the concept says so.
#include "tensorsmith/core/pipe.hpp"

namespace ts = tensorsmith;

struct halve {
  using input = int;
  using output = double;
#ifdef FIXED
  static constexpr std::string_view name = "halve";
#endif
  ts::result<double> run(int value, ts::job&) const { return value / 2.0; }
};

int main() {
  ts::chain<int> start(ts::result<int>(4), std::make_shared<ts::job>());
  return (start | halve{}) ? 0 : 1;
}
