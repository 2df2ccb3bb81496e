// expect: tensorsmith needs a little-endian target
// covers BIG-06: big-endian machines
#ifndef FIXED
#undef __BYTE_ORDER__
#define __BYTE_ORDER__ __ORDER_BIG_ENDIAN__
#endif
#include "tensorsmith/core/config.hpp"
