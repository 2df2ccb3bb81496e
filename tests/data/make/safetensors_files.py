#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes tests/data/safetensors with the safetensors library itself. Needs safetensors (0.8) and torch.

every_dtype.safetensors: [2, 4] of each element type that the library writes, named after it; byte k of the i-th is (7 i + k) % 100.
tied.safetensors: what save_model writes for a model with tied weights; `model()` has the same embedding under two names.
"""
import ctypes
import pathlib

import torch
from safetensors import TensorSpec, serialize_file
from safetensors.torch import load_model, save_model

folder = pathlib.Path(__file__).resolve().parent.parent / "safetensors"
folder.mkdir(exist_ok=True)

# Bits of an element, and what TensorSpec calls the type. The format knows F6_E2M3 and F6_E3M2, too, which no writer makes yet.
TYPES = {"BOOL": (8, "bool"), "F4": (4, "float4_e2m1fn_x2"), "U8": (8, "uint8"), "I8": (8, "int8"), "F8_E5M2": (8, "float8_e5m2"),
         "F8_E4M3": (8, "float8_e4m3fn"), "F8_E8M0": (8, "float8_e8m0fnu"), "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
         "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"), "I16": (16, "int16"), "U16": (16, "uint16"), "F16": (16, "float16"), "BF16": (16, "bfloat16"),
         "I32": (32, "int32"), "U32": (32, "uint32"), "F32": (32, "float32"), "C64": (64, "complex64"), "F64": (64, "float64"),
         "I64": (64, "int64"), "U64": (64, "uint64")}


def model():
    """One embedding as input and output."""
    out = torch.nn.Sequential()
    out.embed = torch.nn.Embedding(6, 4)
    out.head = torch.nn.Linear(4, 6, bias=False)
    out.head.weight = out.embed.weight
    out.norm = torch.nn.LayerNorm(4)
    with torch.no_grad():
        out.embed.weight.copy_(torch.arange(24.0).reshape(6, 4) / 8)
    return out


def main():
    buffers, specs = [], {}
    for i, (name, (bits, called)) in enumerate(TYPES.items()):
        buffers.append((ctypes.c_uint8 * bits)(*[(7 * i + k) % 100 for k in range(bits)]))
        shape = [2, 2] if called.endswith("_x2") else [2, 4]  # two elements in a byte: the library doubles the last extent
        specs[name] = TensorSpec(dtype=called, shape=shape, data_ptr=ctypes.addressof(buffers[-1]), data_len=bits)
    serialize_file(specs, str(folder / "every_dtype.safetensors"), {"format": "pt"})
    save_model(model(), str(folder / "tied.safetensors"), metadata={"format": "pt"})
    load_model(model(), str(folder / "tied.safetensors"))


if __name__ == "__main__":
    main()
