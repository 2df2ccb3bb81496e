// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string>

/// Tensors in a safetensors file, counted after a cast of all of them; 0 if it fails.
std::size_t tensors_of(const std::string& path);
