// expect: tensorsmith needs a 64-bit target
// covers BIG-06: sizes of 32 bits
#ifndef FIXED
#undef __SIZEOF_SIZE_T__
#define __SIZEOF_SIZE_T__ 4
#endif
#include "tensorsmith/core/config.hpp"
