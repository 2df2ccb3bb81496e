// expect: tensorsmith: this stage cannot follow here
// SPDX-License-Identifier: MIT
#include "tensorsmith/core/pipe.hpp"

namespace ts = tensorsmith;

struct halve {
  using input = int;
  using output = double;
  static constexpr std::string_view name = "halve";
  ts::result<double> run(int value, ts::job&) const { return value / 2.0; }
};

int main() {
  ts::chain<int> start(ts::result<int>(4), std::make_shared<ts::job>());
#ifdef FIXED
  return (start | halve{}) ? 0 : 1;
#else
  return (start | halve{} | halve{}) ? 0 : 1;
#endif
}
