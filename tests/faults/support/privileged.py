# SPDX-License-Identifier: MIT
"""What the tests that need rights share: small sources, running convert-weights, skipping where the right is missing."""
import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

SKIPPED = 77


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIPPED)


def programs():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", required=True, help="folder of convert-weights")
    parser.add_argument("--shim", default="", help="the library of fault_shim.cpp")
    given = parser.parse_args()
    given.convert = os.path.join(os.path.abspath(given.programs), "convert-weights")
    return given


def safetensors(path, tensors):
    """F32 tensors of the given numbers of elements, of bytes that differ."""
    header, data = {}, bytearray()
    state = 1
    for name, elements in tensors.items():
        begin = len(data)
        for _ in range(elements):
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            data += struct.pack("<f", state / 1e9)
        header[name] = {"dtype": "F32", "shape": [elements], "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def model(path):
    safetensors(path, {"a.weight": 3000, "a.bias": 10, "b.weight": 4096, "c.weight": 5000})


def contents(folder):
    """Relative path -> bytes, of all files below a folder; folders as None."""
    out = {}
    for root, folders, files in os.walk(folder):
        for name in folders:
            out[os.path.relpath(os.path.join(root, name), folder)] = None
        for name in files:
            with open(os.path.join(root, name), "rb") as file:
                out[os.path.relpath(os.path.join(root, name), folder)] = file.read()
    return out


def is_temporary(path):
    return any(part.startswith(".") and ".tensorsmith-" in part and part.endswith(".tmp") for part in path.split("/"))


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


class Work:
    """A folder that goes away, with what is mounted in it."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="tensorsmith-test-")
        self.mounts = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for place in reversed(self.mounts):
            run(["umount", "-l", place])
        shutil.rmtree(self.path, ignore_errors=True)

    def __truediv__(self, name):
        return os.path.join(self.path, name)

    def mount(self, what, place, *options):
        """True if it is mounted."""
        os.makedirs(place, exist_ok=True)
        if shutil.which("mount") is None or run(["mount", *options, what, place]).returncode != 0:
            return False
        self.mounts.append(place)
        return True

    def umount(self, place):
        run(["umount", place], check=True)
        self.mounts.remove(place)
