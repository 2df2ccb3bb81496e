# SPDX-License-Identifier: MIT
# covers IO-12: a memory group of 256 MiB, in which the kernel kills who uses more
"""Hostile files of every container under a memory group of 256 MiB without swap: each is refused with a sentence, none is killed."""
import os
import struct
import sys

from privileged import Work, model, programs, run, skip

LIMIT = 256 << 20
REFUSED = range(10, 23)  # the exit statuses of the error codes


def make_group():
    """(folder of the group, the file for its highest use) or None."""
    name = f"tensorsmith-test-{os.getpid()}"
    for root, limits, peak in (("/sys/fs/cgroup/memory", ("memory.limit_in_bytes",), "memory.max_usage_in_bytes"),
                               ("/sys/fs/cgroup", ("memory.max",), "memory.peak")):
        group = os.path.join(root, name)
        try:
            os.mkdir(group)
        except OSError:
            continue
        try:
            for limit in limits:
                with open(os.path.join(group, limit), "w", encoding="ascii") as file:
                    file.write(str(LIMIT))
            return group, os.path.join(group, peak)
        except OSError:
            os.rmdir(group)
    return None


def hostile(work):
    """name -> bytes, or (bytes, length of a sparse file)"""
    def header(text):
        return struct.pack("<Q", len(text)) + text

    tensor = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    many = b"{" + b",".join(tensor % i for i in range(150_000)) + b",,}"
    return {
        "length.safetensors": struct.pack("<Q", 1 << 40) + b"{}",
        "sparse.safetensors": (struct.pack("<Q", 99_000_000) + b"{", 8 << 30),
        "brackets.safetensors": header(b"[" * 16_000_000),
        "name.safetensors": header(b'{"' + b"n" * 16_000_000 + b'":1}'),
        "escapes.safetensors": header(b'{"' + b"\\u0041" * 2_700_000 + b'":1}'),
        "many.safetensors": header(many),
        "metadata.safetensors": header(b'{"__metadata__":{' + b",".join(b'"%d":"x"' % i for i in range(1_000_000)) + b"}} x"),
        "shape.safetensors": header(b'{"t":{"dtype":"F32","shape":[' + b"1," * 8_000_000 + b'1],"data_offsets":[0,4]}}') + b"abcd",
        "index.safetensors.index.json": b'{"weight_map":{' + b",".join(b'"%d":"a-%d.safetensors"' % (i, i) for i in range(400_000)) + b"}}",
        "bytes.pt": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
        "lists.pt": b"\x80\x02" + b"]" * 4_000_000 + b"a" * 3_999_999 + b".",
        "memo.pt": b"\x80\x02" + b"".join(b"]r" + struct.pack("<I", i) for i in range(2_000_000)) + b".",
        "index.pt": b"\x80\x02]r" + struct.pack("<I", 0xFFFFFFFF) + b".",
        "double.pt": b"\x80\x02]" + b"(2t" * 1_000_000 + b".",
        "strings.pt": b"\x80\x02" + b"X\x08\x00\x00\x00aaaaaaaa" * 1_200_000 + b"t.",
        "directory.pt": b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, 0xFFFFFFF0, 0, 0),
        "count.gguf": b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60),
        "string.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 62) + b"x",
        "array.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 0, 1 << 60),
        "shape.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8), }" + b" " * 41 + b"\n",
        "header.npy": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0), 5 << 30),
    }


def main():
    given = programs()
    made = make_group()
    if made is None:
        skip("making a memory group is not permitted here")
    group, peak = made

    def enter():
        with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as file:
            file.write(str(os.getpid()))

    wrong = 0
    try:
        with Work() as work:
            source = work / "model.safetensors"
            model(source)
            fine = run([given.convert, source, work / "out.safetensors", "--quiet"], preexec_fn=enter)
            if fine.returncode != 0:
                print(f"a good file: status {fine.returncode} {fine.stderr}")
                return 1
            files = hostile(work)
            for name, what in files.items():
                data, length = what if isinstance(what, tuple) else (what, 0)
                with open(work / name, "wb") as file:
                    file.write(data)
                    if length:
                        file.truncate(length)
                done = run([given.convert, work / name, work / "refused.safetensors", "--quiet"], preexec_fn=enter, timeout=60)
                if done.returncode not in REFUSED or done.stderr.count("\n") != 1 or "out of memory" in done.stderr:
                    wrong += 1
                    print(f"{name}: status {done.returncode} {done.stderr[:300]}")
                os.unlink(work / name)
            if os.path.exists(peak):
                print(f"highest use, pages of files included: {int(open(peak, encoding='ascii').read()) >> 20} MiB")
            print(f"{len(files)} files, {wrong} wrong")
    finally:
        os.rmdir(group)
    return 1 if wrong else 0


sys.exit(main())
