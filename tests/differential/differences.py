#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Files on which we and the reference readers differ on purpose: shows that both still do what docs/reliability.md says.

usage: differences.py --program weights-digest [--work DIR]

Runs in the Python environment of compare.py. Each case is one file, what we must do with it, and what the reference reader does:
"reads" (tensor w with its bytes), "other" (reads something else), "refuses". Some cases are no differences: they show where both agree.
"""

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib

import safetensors
import torch

DATA = struct.pack("<4f", 1, 2, 3, 4)


def safetensors_file(header, data=DATA):
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin=0, end=16, dtype="F32", shape=(4,)):
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]})


def torch_file(value=None, **options):
    buffer = io.BytesIO()
    torch.save({"w": torch.tensor([1.0, 2, 3, 4])} if value is None else value, buffer, **options)
    return buffer.getvalue()


def rebuilt(change=lambda entries: entries):
    """A torch archive written again by zipfile, after `change` on [(name, bytes)]."""
    with zipfile.ZipFile(io.BytesIO(torch_file())) as archive:
        entries = change([(i.filename, archive.read(i)) for i in archive.infolist()])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def with_flipped_byte():
    whole = bytearray(torch_file())
    at = bytes(whole).index(DATA)
    whole[at + 3] ^= 0x40
    return bytes(whole)


def with_other_local_name():
    whole = bytearray(torch_file())
    at = bytes(whole).index(b"/data/0")  # the local header comes first
    whole[at + 6] = ord("1")
    return bytes(whole)


def longer_storage(entries):
    return [(n, d + b"\0" * 8 if n.endswith("/data/0") else d) for n, d in entries]


def pickle_with_tail(entries):
    return [(n, d + b"tail" if n.endswith("data.pkl") else d) for n, d in entries]


def second_pickle(entries):
    return entries + [("other/data.pkl", next(d for n, d in entries if n.endswith("data.pkl")))]



# row: what, extension, bytes, what we do, what the reference does
CASES = [
    ("VAL-01", "white space before the object", ".safetensors", lambda: safetensors_file(' \n{"w":' + entry() + "}"), "reads", "reads"),
    ("VAL-01", "white space behind the object", ".safetensors", lambda: safetensors_file('{"w":' + entry() + "}\r\n\t "), "reads", "reads"),
    ("ST-09", "a name twice, same bytes", ".safetensors", lambda: safetensors_file('{"w":' + entry() + ',"w":' + entry() + "}"), "refuses", "reads"),
    ("ST-12", "a gap", ".safetensors", lambda: safetensors_file('{"w":' + entry(8, 24) + "}", b"\0" * 8 + DATA), "refuses", "refuses"),
    ("ST-13", "an overlap", ".safetensors", lambda: safetensors_file('{"w":' + entry() + ',"v":' + entry() + "}"), "refuses", "refuses"),
    ("ST-14", "trailing bytes", ".safetensors", lambda: safetensors_file('{"w":' + entry() + "}", DATA + b"tail"), "refuses", "refuses"),
    ("ST-21", "65 dimensions", ".safetensors", lambda: safetensors_file('{"w":' + entry(shape=[1] * 64 + [4]) + "}"), "refuses", "reads"),
    ("ST-23", "an unknown field", ".safetensors", lambda: safetensors_file('{"w":' + entry()[:-1] + ',"more":1}}'), "reads", "reads"),
    ("ZIP-08", "a wrong checksum of a storage", ".pt", with_flipped_byte, "refuses", "other"),
    ("ZIP-05", "an entry under two names", ".pt", with_other_local_name, "refuses", "reads"),
    ("ZIP-12", "two pickles", ".pt", lambda: rebuilt(second_pickle), "refuses", "refuses"),
    ("ZIP-14", "bytes before the archive", ".pt", lambda: b"#!/bin/sh\nexit\n" + rebuilt(), "refuses", "refuses"),
    ("ZIP-14", "bytes behind the archive", ".pt", lambda: rebuilt() + b"tail", "refuses", "reads"),
    ("ZIP-20", "a storage longer than declared", ".pt", lambda: rebuilt(longer_storage), "reads", "refuses"),
    ("PKL-20", "bytes behind the end of the pickle", ".pt", lambda: rebuilt(pickle_with_tail), "refuses", "reads"),
    ("PKL-24", "a sparse tensor", ".pt", lambda: torch_file({"w": torch.tensor([1.0, 2, 3, 4]), "s": torch.eye(2).to_sparse()}), "refuses", "reads"),
    ("PKL-01", "an object of an unknown class without tensors", ".pt", lambda: torch_file({"w": torch.tensor([1.0, 2, 3, 4]), "x": zlib.crc32}), "reads",
     "refuses"),
]


def ours(program, path):
    done = subprocess.run([program, "read"], input=path + "\n", capture_output=True, text=True, check=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    if any(line[0] == "E" for line in lines):
        return "refuses", next(line[1] for line in lines if line[0] == "E")
    crc = format(zlib.crc32(DATA), "08x")
    return ("reads" if any(line[0] == "T" and line[1] == b"w".hex() and line[4] == crc for line in lines) else "other"), ""


def theirs(path):
    try:
        if path.endswith(".safetensors"):
            with open(path, "rb") as file:
                data = bytes(dict(safetensors.deserialize(file.read()))["w"]["data"])
        else:
            data = torch.load(path, weights_only=True)["w"].numpy().tobytes()
    except Exception as error:  # whatever the reference raises
        return "refuses", f"{type(error).__name__}: {error}"
    return ("reads" if data == DATA else "other"), ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    work, wrong = tempfile.mkdtemp(dir=options.work), 0
    for number, (row, what, extension, make, we, they) in enumerate(CASES):
        path = os.path.join(work, f"{number}{extension}")
        with open(path, "wb") as file:
            file.write(make())
        found = ours(os.path.abspath(options.program), path), theirs(path)
        good = (found[0][0], found[1][0]) == (we, they)
        wrong += not good
        print(f"{'ok  ' if good else 'FAIL'} {row:7} {what}: we {found[0][0]}, they {found[1][0]}")
        if not good:
            print(f"     expected: we {we}, they {they}\n     we: {found[0][1][:200]}\n     they: {found[1][1][:200]}")
    shutil.rmtree(work)
    print(f"{len(CASES)} differences, {wrong} not as described")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
