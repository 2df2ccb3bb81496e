#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints the SHA-256 of what torch's .to() gives for 8-bit types, as tests/core/float8_test.cpp records it. Needs torch and numpy.

Inputs: all 65,536 codes of f16 and of bf16, and the f32 with the bits i * 0x9E3779B1 mod 2^32 for i < 2^20.
"""
import hashlib

import numpy
import torch

types = {"f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2,
         "f8_e4m3fnuz": torch.float8_e4m3fnuz, "f8_e5m2fnuz": torch.float8_e5m2fnuz}
codes = torch.from_numpy(numpy.arange(65536, dtype=numpy.uint16).view(numpy.int16))
spread = (numpy.arange(1 << 20, dtype=numpy.uint64) * 0x9E3779B1 & 0xFFFFFFFF).astype(numpy.uint32)
inputs = {"f16": codes.view(torch.float16), "bf16": codes.view(torch.bfloat16), "f32": torch.from_numpy(spread.view(numpy.float32))}
for source, values in inputs.items():
    for target, torch_type in types.items():
        digest = hashlib.sha256(values.to(torch_type).view(torch.uint8).numpy().tobytes()).hexdigest()
        print(f'    {{dtype::{source}, dtype::{target}, "{digest}"}},')
