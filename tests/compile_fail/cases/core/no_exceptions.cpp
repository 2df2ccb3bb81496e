// expect: tensorsmith needs exceptions
// covers ENV-06: a build with -fno-exceptions says so at once
#ifndef FIXED
#undef __cpp_exceptions
#endif
#include "tensorsmith/core/config.hpp"
