#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes tests/data/numpy with NumPy itself. Needs numpy and ml_dtypes.

Element i of every array, counted in C order, follows from i: see values(). tests/format/numpy_test.cpp computes the same.
"""
import pathlib
import zipfile

import ml_dtypes
import numpy

folder = pathlib.Path(__file__).resolve().parent.parent / "numpy"
folder.mkdir(exist_ok=True)


def values(code, shape):
    i = numpy.arange(int(numpy.prod(shape)))
    kind = numpy.dtype(code).kind
    if kind == "b":
        flat = i % 3 == 0
    elif kind == "c":
        flat = i * 0.5 - 1 - 0.25j * i
    elif kind == "f":
        flat = i * 0.5 - 1
    else:
        flat = i * 3 if kind == "u" else i * 3 - 20
    return flat.astype(code).reshape(shape)


arrays = {}
for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"):
    name = numpy.dtype(code).str[1:]
    arrays["little/" + name] = values("<" + code, (3, 4))
    arrays["big/" + name] = values(">" + code, (3, 4))
    arrays["fortran/" + name] = numpy.asfortranarray(values("<" + code, (3, 4)))
arrays["fortran3"] = numpy.asfortranarray(values(">f4", (2, 3, 4)))
arrays["scalar"] = values("<f4", ())
arrays["empty"] = values("<f4", (0, 5))
arrays["größe"] = values("<i4", (7,))
with numpy.errstate(all="raise"):
    numpy.savez(folder / "stored.npz", **arrays)
    numpy.savez_compressed(folder / "deflated.npz", **arrays)
with zipfile.ZipFile(folder / "stored.npz", "a") as archive:  # what people put beside arrays
    archive.writestr("readme.txt", "not an array")

numpy.save(folder / "one.npy", values("<f4", (3, 4)))
for version in (2, 3):
    with open(folder / f"version{version}.npy", "wb") as f:
        numpy.lib.format.write_array(f, values("<f4", (3, 4)), version=(version, 0))
refused = {"object": numpy.array([{"a": 1}, None], dtype=object), "structured": numpy.zeros(2, dtype=[("a", "<f4"), ("b", "<i4")]),
           "string": numpy.array([b"ab", b"c"]), "unicode": numpy.array(["ab", "c"]), "date": numpy.array(["2026-01-01"], dtype="M8[D]"),
           "duration": numpy.array([1], dtype="m8[s]"), "void": numpy.zeros(2, dtype="V3"), "bfloat16": numpy.zeros(2, dtype=ml_dtypes.bfloat16),
           "longdouble": numpy.zeros(2, dtype="g")}
for name, array in refused.items():
    numpy.save(folder / f"{name}.npy", array, allow_pickle=True)
