#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random valid files of weights: those of the reference libraries read by us, and ours read by them. They must agree on names,
element types, shapes and every element.

usage: compare.py --program weights-digest [--count N] [--formats safetensors torch legacy npz] [--jobs N] [--seed N] [--work DIR]

covers OUT-04, VAL-02, VAL-03, VAL-07: ten thousand random files a format, read alike by the reference libraries and by us

The references are the safetensors library, torch and numpy; run this in a Python environment that has them. `--count` files a
format and direction (10000). "legacy" is the container of torch before 1.6, which is read and not written. A difference keeps its
file in the work folder and fails the run.
"""

import argparse
import collections
import json
import multiprocessing
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib

import numpy
import safetensors
import safetensors.torch
import torch

TORCH = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64, "i32": torch.int32,
         "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool, "f8_e4m3": torch.float8_e4m3fn,
         "f8_e5m2": torch.float8_e5m2, "u16": torch.uint16, "u32": torch.uint32, "u64": torch.uint64, "c64": torch.complex64,
         "f8_e4m3fnuz": torch.float8_e4m3fnuz, "f8_e5m2fnuz": torch.float8_e5m2fnuz, "c128": torch.complex128}
OURS = {dtype: name for name, dtype in TORCH.items()}
# The spelling of safetensors, our spelling, bits.
SAFETENSORS = {"F64": ("f64", 64), "F32": ("f32", 32), "F16": ("f16", 16), "BF16": ("bf16", 16), "I64": ("i64", 64), "I32": ("i32", 32),
               "I16": ("i16", 16), "I8": ("i8", 8), "U64": ("u64", 64), "U32": ("u32", 32), "U16": ("u16", 16), "U8": ("u8", 8),
               "BOOL": ("bool", 8), "C64": ("c64", 64), "F8_E4M3": ("f8_e4m3", 8), "F8_E5M2": ("f8_e5m2", 8), "F8_E8M0": ("f8_e8m0", 8),
               "F8_E4M3FNUZ": ("f8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("f8_e5m2fnuz", 8), "F4": ("f4_e2m1", 4), "F6_E2M3": ("f6_e2m3", 6),
               "F6_E3M2": ("f6_e3m2", 6)}
NUMPY = {"f8": "f64", "f4": "f32", "f2": "f16", "i8": "i64", "i4": "i32", "i2": "i16", "i1": "i8", "u8": "u64", "u4": "u32", "u2": "u16",
         "u1": "u8", "b1": "bool", "c8": "c64", "c16": "c128"}
LEGACY = ["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool", "c64", "c128"]
PARTS = ["a", "weight", ".", "_", "bias", "0", "17", "-", " ", "layers", "é", "ß", "日本", "Ω", "ы", "😀", "e\u0301"]
ODD = ["\"", "\\", "\n", "\t", "'", "{", "}", "/", "\x7f", "\u2028", "\u202e", ":", "\x01", "%s", "</script>"]


# --- what a file holds: {name: (type, shape, CRC-32)}, {metadata} ------------------------------------------------------------------

def digest_of_bytes(data):
    return format(zlib.crc32(data), "08x")


def digest_of_torch(tensor):
    tensor = tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return digest_of_bytes(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")


def torch_contents(tensors):
    return {name: (OURS[t.dtype], tuple(t.shape), digest_of_torch(t)) for name, t in tensors.items()}


def numpy_contents(arrays):
    out = {}
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"))
        out[name] = (NUMPY[little.dtype.str[1:]], array.shape, digest_of_bytes(little.tobytes("C")))
    return out


def read_digests(text):
    files, current = [], None
    for line in text.split("\n"):
        kind, _, rest = line.partition("\t")
        if kind == "F":
            current = {"path": rest, "tensors": {}, "metadata": {}, "errors": []}
            files.append(current)
        elif kind == "T":
            name, dtype, shape, crc = rest.split("\t")
            name = bytes.fromhex(name).decode("utf-8", "surrogateescape")
            if name in current["tensors"]:
                current["errors"].append(f"the name {name!r} appears twice")
            current["tensors"][name] = (dtype, tuple(map(int, shape.split(","))) if shape else (), crc)
        elif kind == "M":
            key, value = (bytes.fromhex(part).decode() for part in rest.split("\t"))
            current["metadata"][key] = value
        elif kind == "E":
            current["errors"].append(rest)
    return files


# --- files made by the reference libraries -----------------------------------------------------------------------------------------

def make_name(rng, number, plain=False):
    name = "".join(rng.choice(ODD) if not plain and rng.random() < 0.25 else rng.choice(PARTS) for _ in range(rng.randrange(6)))
    return name + f".{number}" if plain or rng.random() < 0.95 else name


def make_shape(rng):
    if rng.random() < 0.025:
        return (16 * rng.randrange(1, 1000),)
    return tuple(0 if rng.random() < 0.08 else rng.randrange(1, 5) for _ in range(rng.randrange(7)))


def count_of(shape):
    n = 1
    for extent in shape:
        n *= extent
    return n


def make_tensor(rng, dtypes):
    """A tensor of random bytes."""
    dtype, shape = rng.choice(dtypes), make_shape(rng)
    if dtype is torch.bool:
        tensor = torch.frombuffer(bytearray(b & 1 for b in rng.randbytes(count_of(shape) or 1)), dtype=torch.uint8).view(torch.bool)
    else:
        tensor = torch.frombuffer(bytearray(rng.randbytes(dtype.itemsize * max(1, count_of(shape)))), dtype=dtype)
    return tensor[:count_of(shape)].reshape(shape)


def make_view(rng, tensor):
    """The tensor transposed, narrowed, with steps, expanded, overlapping itself, or as it is."""
    kind = rng.randrange(6)
    if kind == 0 and tensor.dim() >= 2:
        order = list(range(tensor.dim()))
        rng.shuffle(order)
        return tensor.permute(order)
    if kind == 1 and tensor.dim() >= 1 and tensor.shape[0] > 1:
        first = rng.randrange(tensor.shape[0])
        return tensor.narrow(0, first, rng.randrange(tensor.shape[0] - first + 1))
    if kind == 2 and tensor.dim() >= 1:
        return tensor[..., ::rng.randrange(1, 4)]
    if kind == 3:
        return tensor.unsqueeze(0).expand(rng.randrange(1, 4), *tensor.shape)
    if kind == 4 and tensor.dim() == 1 and tensor.numel() >= 4:
        return tensor.as_strided((tensor.numel() // 2, 3), (1, 1)) if tensor.numel() >= 6 else tensor
    if kind == 5 and tensor.numel() > 1:
        return tensor.reshape(-1)[1:]
    return tensor


def theirs_safetensors(path, rng):
    if rng.random() < 0.6:
        tensors = {}
        for i in range(rng.randrange(1, 7)):
            tensors[make_name(rng, i)] = make_tensor(rng, [d for d in OURS if d is not torch.complex128])
        metadata = {make_name(rng, i): make_name(rng, i) for i in range(rng.randrange(3))} if rng.random() < 0.4 else None
        safetensors.torch.save_file(tensors, path, metadata)
        return
    # Every element type; white space, order of keys and alignment that the reference writer never makes and its reader accepts.
    header, data, names = {}, b"", set()
    if rng.random() < 0.3:
        header["__metadata__"] = {make_name(rng, i): make_name(rng, i) for i in range(rng.randrange(3))}
    for i in range(rng.randrange(0, 6)):
        dtype = rng.choice(list(SAFETENSORS))
        bits, shape = SAFETENSORS[dtype][1], make_shape(rng)
        if bits < 8:
            shape += (8,)
        size = count_of(shape) * bits // 8
        fields = [("dtype", dtype), ("shape", list(shape)), ("data_offsets", [len(data), len(data) + size])]
        rng.shuffle(fields)
        name = make_name(rng, i)
        if name in names:
            continue
        names.add(name)
        header[name] = dict(fields)
        data += bytes(b & 1 for b in rng.randbytes(size)) if dtype == "BOOL" else rng.randbytes(size)
    keys = list(header)
    rng.shuffle(keys)
    text = json.dumps({k: header[k] for k in keys}, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    blank = lambda: "".join(rng.choice(" \t\r\n") for _ in range(rng.randrange(4)))
    text = (blank() + text + blank() + " " * rng.randrange(9)).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def safetensors_contents(path, _strict):
    """As the reference library reads it: torch's side where torch has the types, else the raw bytes."""
    with open(path, "rb") as file:
        raw = file.read()
    parts = dict(safetensors.deserialize(raw))
    names = {info["dtype"] for info in parts.values()}
    if all(SAFETENSORS[n][0] in TORCH for n in names):
        contents = torch_contents(safetensors.torch.load_file(path))
        if contents.keys() != parts.keys():
            raise RuntimeError("the reference library disagrees with itself")
    else:
        contents = {name: (SAFETENSORS[i["dtype"]][0], tuple(i["shape"]), digest_of_bytes(bytes(i["data"]))) for name, i in parts.items()}
    return contents, json.loads(raw[8:8 + struct.unpack("<Q", raw[:8])[0]]).get("__metadata__") or {}


def theirs_torch(path, rng, legacy):
    # The old container has no storages of the newer types: torch writes such files and cannot read them.
    dtypes = [d for d in OURS if not legacy or OURS[d] in LEGACY]
    state = collections.OrderedDict() if rng.random() < 0.5 else {}
    for i in range(rng.randrange(1, 7)):
        name = make_name(rng, i)
        if state and rng.random() < 0.4:
            tensor = rng.choice(list(state.values()))
            tensor = make_view(rng, tensor) if rng.random() < 0.8 else tensor
        else:
            tensor = make_tensor(rng, dtypes)
            if rng.random() < 0.4:
                tensor = make_view(rng, tensor)
        state[name] = tensor
    for name, tensor in state.items():
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1 and rng.random() < 0.1:
            state[name] = torch.nn.Parameter(tensor)
    if isinstance(state, collections.OrderedDict) and rng.random() < 0.5:
        state._metadata = collections.OrderedDict([("", {"version": 1}), ("layer", {"version": 2})])
    saved = state
    if rng.random() < 0.35:
        saved = {"epoch": 3, "global_step": rng.randrange(1 << 40), "state_dict": state, "lr": 1e-4, "note": "π", "flags": [True, None, (1, 2)],
                 "hyper_parameters": {"name": "x", "sizes": [1, 2, 3]}}
    protocol = 2 if rng.random() < 0.7 else rng.randrange(3, 6)
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)


def torch_file_contents(path, strict):
    try:
        loaded = torch.load(path, weights_only=True)
    except pickle.UnpicklingError:  # its strict reader knows protocol 2 only; these files are torch's own
        if strict:
            raise
        loaded = torch.load(path, weights_only=False)
    return torch_contents(loaded["state_dict"] if isinstance(loaded.get("state_dict"), dict) else loaded), None


def theirs_npz(path, rng):
    arrays = {}
    for i in range(rng.randrange(1, 7)):
        kind, shape = rng.choice(list(NUMPY)), make_shape(rng)
        dtype = numpy.dtype(kind)
        raw = rng.randbytes(dtype.itemsize * count_of(shape))
        if kind == "b1":
            raw = bytes(b & 1 for b in raw)
        array = numpy.frombuffer(raw, dtype).reshape(shape)
        if rng.random() < 0.25:
            array = numpy.asfortranarray(array)
        if rng.random() < 0.15:
            array = array.astype(dtype.newbyteorder(">"))
        arrays[make_name(rng, i, plain=True)] = array
    kind = rng.random()
    if kind < 0.6:
        numpy.savez(path, **arrays)
    elif kind < 0.85:
        numpy.savez_compressed(path, **arrays)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(name + ".npy", "w") as file:
                    numpy.lib.format.write_array(file, array, version=rng.choice([(1, 0), (2, 0), (3, 0)]))


def npz_contents(path, _strict):
    with numpy.load(path, allow_pickle=False) as archive:
        return numpy_contents({name: archive[name] for name in archive.files}), None


# format: (makes a file of theirs, reads one by them, our writer's name or nothing, extension)
FORMATS = {
    "safetensors": (theirs_safetensors, safetensors_contents, "safetensors", ".safetensors"),
    "torch": (lambda path, rng: theirs_torch(path, rng, False), torch_file_contents, "torch", ".pt"),
    "legacy": (lambda path, rng: theirs_torch(path, rng, True), torch_file_contents, None, ".pt"),
    "npz": (theirs_npz, npz_contents, "npz", ".npz"),
}


# --- comparing -------------------------------------------------------------------------------------------------------------------

def difference(ours, contents, metadata):
    """What the two readers disagree on, or nothing."""
    if ours["errors"]:
        return "we say: " + ours["errors"][0]
    if ours["tensors"] != contents:
        for name in sorted(ours["tensors"].keys() | contents.keys()):
            a, b = ours["tensors"].get(name), contents.get(name)
            if a != b:
                return f"tensor {name!r}: ours {a}, theirs {b}"
    if metadata is not None and ours["metadata"] != metadata:
        return f"metadata: ours {ours['metadata']}, theirs {metadata}"
    return None


def run_chunk(task):
    name, direction, seed, count, options = task
    make, contents_of, writer, extension = FORMATS[name]
    folder = os.path.join(options.work, f"{name}-{direction}-{seed}")
    os.makedirs(folder)
    start, found, tensors = time.monotonic(), [], 0
    environment = dict(os.environ, LC_ALL="C.UTF-8")
    if direction == "read":
        paths = []
        for i in range(count):
            paths.append(os.path.join(folder, f"{i}{extension}"))
            make(paths[-1], random.Random(seed * 1_000_003 + i))
        done = subprocess.run([options.program, "read"], input="".join(p + "\n" for p in paths), capture_output=True, text=True, env=environment)
    else:
        done = subprocess.run([options.program, "write", writer, folder, str(seed), str(count)], capture_output=True, text=True, env=environment)
    digests = read_digests(done.stdout)
    if done.returncode or len(digests) != count:
        found.append(f"{folder}: exit status {done.returncode}, {len(digests)} of {count} files: {done.stderr.strip()[-300:]}")
    for ours in digests:
        try:
            said = difference(ours, *contents_of(ours["path"], direction == "write"))
        except Exception as error:  # whatever the reference library raises is a finding
            said = f"the reference reader refuses it: {type(error).__name__}: {error}"
        tensors += len(ours["tensors"])
        if said:
            found.append(f"{ours['path']}: {said}")
        else:
            os.unlink(ours["path"])
    if not found:
        shutil.rmtree(folder)
    return name, direction, len(digests), tensors, found, time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--formats", nargs="*", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--work", default=None, help="where files that differ are kept; they are made in memory, in /dev/shm, where there is one")
    options = parser.parse_args()
    # In memory, because our writer asks the disk to store each of the small files safely.
    base, keep = "/dev/shm" if os.access("/dev/shm", os.W_OK) else options.work or "/tmp", options.work
    options.work = os.path.join(base, f"tensorsmith-differential-{os.getpid()}")
    options.program = os.path.abspath(options.program)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # about pickle protocols above 2
    tasks = []
    for name in options.formats:
        for direction in ("read", "write") if FORMATS[name][2] else ("read",):
            for at in range(0, options.count, options.chunk):
                tasks.append((name, direction, options.seed + at, min(options.chunk, options.count - at), options))
    start, totals, findings = time.monotonic(), {}, []
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for name, direction, files, tensors, found, seconds in pool.imap_unordered(run_chunk, tasks):
            row = totals.setdefault((name, direction), [0, 0, 0, 0.0])
            for k, value in enumerate((files, tensors, len(found), seconds)):
                row[k] += value
            findings += found
    for (name, direction), (files, tensors, bad, seconds) in sorted(totals.items()):
        what = "theirs, read by us" if direction == "read" else "ours, read by them"
        print(f"{name:12} {what}: {files} files, {tensors} tensors, {bad} differ ({seconds:.0f} s of one core)")
    for line in findings[:20]:
        print("  " + line)
    files = sum(row[0] for row in totals.values())
    print(f"{files} files compared in {time.monotonic() - start:.0f} s, {len(findings)} differ")
    if findings or not files:
        if keep and base != keep:
            os.makedirs(keep, exist_ok=True)
            options.work = shutil.move(options.work, os.path.join(keep, os.path.basename(options.work)))
        print(f"the files are in {options.work}")
        return 1
    shutil.rmtree(options.work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
