// expect: tensorsmith: open<Format> has no reader for this format
// SPDX-License-Identifier: MIT
#include "tensorsmith/stage/open.hpp"

namespace ts = tensorsmith;

struct my_file {};
#ifdef FIXED
template <>
struct ts::reader<my_file> {
  static ts::result<ts::package> open(const std::string&, ts::job&) { return ts::package{}; }
};
#endif

int main() { return ts::open<my_file>("file") ? 0 : 1; }
