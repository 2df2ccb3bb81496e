// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/derive_config.hpp: configurations from shapes and conventions, for UNets, autoencoders and text encoders.
#pragma once

#include "tensorsmith/arch/derive_clip.hpp"
#include "tensorsmith/arch/derive_unet.hpp"
#include "tensorsmith/arch/derive_vae.hpp"
