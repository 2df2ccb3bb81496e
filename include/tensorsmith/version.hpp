// SPDX-License-Identifier: MIT
//
// tensorsmith/version.hpp: the version as numbers and as text; written into what we produce.
#pragma once

#define TENSORSMITH_VERSION_MAJOR 0
#define TENSORSMITH_VERSION_MINOR 1
#define TENSORSMITH_VERSION_PATCH 0
#define TENSORSMITH_VERSION "0.1.0"
