#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes tests/data/gguf with gguf-py (pip install gguf): tensors of every type that is read, and what gguf-py decodes them to."""
import pathlib

import gguf
import numpy

folder = pathlib.Path(__file__).resolve().parent.parent / "gguf"
folder.mkdir(exist_ok=True)
random = numpy.random.RandomState(7)
expected = {}

writer = gguf.GGUFWriter(folder / "tiny.gguf", "tiny")
writer.add_uint8("t.u8", 200)
writer.add_int8("t.i8", -100)
writer.add_uint16("t.u16", 60000)
writer.add_int16("t.i16", -30000)
writer.add_uint32("t.u32", 4000000000)
writer.add_int32("t.i32", -2000000000)
writer.add_float32("t.f32", 0.25)
writer.add_bool("t.bool", True)
writer.add_string("t.string", "größe")
writer.add_uint64("t.u64", 1 << 63)
writer.add_int64("t.i64", -(1 << 62))
writer.add_float64("t.f64", 0.1)
writer.add_array("t.short", [1, 2, 3])
writer.add_array("t.long", list(range(100)))
writer.add_array("t.words", ["a", "bc", ""])
for dtype in ("float32", "float16", "float64", "int8", "int16", "int32", "int64"):
    data = (numpy.arange(24) * 0.5 - 3).astype(dtype).reshape(2, 3, 4)
    writer.add_tensor(f"direct.{dtype}", data)
    expected[f"direct.{dtype}"] = data
values = (random.standard_normal((5, 96)) * 3).astype(numpy.float32)
values[2, 32:64] = 0  # a block of zeros
for kind in (gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0):
    stored = gguf.quants.quantize(values, kind)
    writer.add_tensor(f"quantized.{kind.name}", stored, raw_dtype=kind)
    expected[f"quantized.{kind.name}"] = gguf.quants.dequantize(stored, kind).astype(numpy.float32)
vector = gguf.quants.quantize(values[0], gguf.GGMLQuantizationType.Q8_0)
writer.add_tensor("vector", vector, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
expected["vector"] = gguf.quants.dequantize(vector, gguf.GGMLQuantizationType.Q8_0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
numpy.savez_compressed(folder / "expected.npz", **expected)
