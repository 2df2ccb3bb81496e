#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""convert-weights against `cp --reflink=never`, the safetensors library and torch on the same file, alternating, each with a sync.

usage: convert_weights.py --bin DIR --work DIR [--source FILE.safetensors] [--pairs 7] [--python PYTHON] [--modes …] [--json FILE]

Without --source, make-tiny-sd writes a full-size SD1.5 checkpoint (4.27 GB, f32, random) into the work folder, once. The files of the
other modes (bf16, torch) are made from it by convert-weights. --python names an interpreter with safetensors and torch; without it
the rows of the libraries are left out, and the report says so. The bar: the median of the pairwise wall ratios of `keep` to `cp` is at most
1.1. The exit status says whether it holds.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys

from measure import table, timed

BAR_KEEP = 1.1

LIBRARIES = {
    "keep by safetensors": ("f32", "from safetensors.torch import load_file, save_file\nsave_file(load_file({0!r}), {1!r})"),
    "f16 by safetensors": ("f32", "from safetensors.torch import load_file, save_file\n"
                                  "save_file({{k: v.half() for k, v in load_file({0!r}).items()}}, {1!r})"),
    "bf16 to f32 by safetensors": ("bf16", "from safetensors.torch import load_file, save_file\n"
                                           "save_file({{k: v.float() for k, v in load_file({0!r}).items()}}, {1!r})"),
    "torch by torch": ("torch", "import torch\ntorch.save(torch.load({0!r}, weights_only=True, mmap=True), {1!r})"),
}


def prepare(options, program):
    """The source files, by name; made once."""
    files = dict(f32=options.source or os.path.join(options.work, "f32.safetensors"), bf16=os.path.join(options.work, "bf16.safetensors"),
                 torch=os.path.join(options.work, "f32.ckpt"))
    if not os.path.exists(files["f32"]):
        subprocess.run([os.path.join(options.bin, "make-tiny-sd"), files["f32"], "--family", "sd1", "--size", "full", "--form", "safetensors"],
                       check=True)
    if not os.path.exists(files["bf16"]) and any("bf16" in mode for mode in options.modes):
        subprocess.run([program, files["f32"], files["bf16"], "--to", "safetensors", "--dtype", "bf16", "--quiet"], check=True)
    if not os.path.exists(files["torch"]) and any("torch" in mode for mode in options.modes):
        subprocess.run([program, files["f32"], files["torch"], "--to", "torch", "--quiet"], check=True)
    return {name: path for name, path in files.items() if os.path.exists(path)}


def commands_of(options, program, files):
    """Every mode as (source, command, target)."""
    def target(name):
        return os.path.join(options.work, "out", name)
    ours = {"keep": ("f32", ["--to", "safetensors"], "keep.safetensors"),
            "f16": ("f32", ["--to", "safetensors", "--dtype", "f16"], "f16.safetensors"),
            "bf16 to f32": ("bf16", ["--to", "safetensors", "--dtype", "f32"], "f32.safetensors"),
            "shards of 500 MB": ("f32", ["--to", "safetensors", "--shard-size", "500MB"], "shards"),
            "to torch": ("f32", ["--to", "torch"], "to.ckpt"),
            "torch to torch": ("torch", ["--to", "torch"], "torch.ckpt"),
            "torch to safetensors": ("torch", ["--to", "safetensors"], "from_torch.safetensors")}
    out = {"cp": ("f32", ["cp", "--reflink=never", files["f32"], target("cp.safetensors")])}
    for mode, (source, arguments, name) in ours.items():
        if source in files:
            out[mode] = (source, [program, files[source], target(name), "--quiet"] + arguments)
    for mode, (source, code) in LIBRARIES.items():
        if options.python and source in files:
            out[mode] = (source, [options.python, "-c", code.format(files[source], target(mode.replace(" ", "_")))])
    return {mode: row for mode, row in out.items() if mode == "cp" or mode in options.modes}


def main():
    every = ["keep", "f16", "bf16 to f32", "shards of 500 MB", "to torch", "torch to torch", "torch to safetensors", *LIBRARIES]
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--source")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--python")
    parser.add_argument("--modes", nargs="*", default=every, choices=every)
    parser.add_argument("--json")
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    program = os.path.join(options.bin, "convert-weights")
    files = prepare(options, program)
    commands = commands_of(options, program, files)
    for mode in options.modes:
        if mode not in commands:
            print(f"left out: {mode} (needs --python)")
    for source in {source for source, _ in commands.values()}:
        with open(files[source], "rb") as file:  # every run finds it in the page cache
            while file.read(1 << 24):
                pass
    out = os.path.join(options.work, "out")
    runs = {mode: [] for mode in commands}
    for pair in range(options.pairs):
        for mode in list(commands) if pair % 2 == 0 else reversed(list(commands)):
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)
            runs[mode].append(timed(commands[mode][1]))
        print(f"pair {pair + 1}: " + ", ".join(f"{m} {r[-1]['wall']:.2f} s" for m, r in runs.items()), flush=True)
    shutil.rmtree(out, ignore_errors=True)

    size = os.path.getsize(files["f32"])
    print(f"\n{size / 1e9:.2f} GB of f32, {options.pairs} alternating pairs, medians; wall time includes the sync")
    report, bad = dict(bytes=size, pairs=options.pairs, modes=table(runs, "cp", 28)), []
    for mode, result in report["modes"].items():
        ratio = result["ratio"]
        if mode == "keep" and ratio > BAR_KEEP:
            bad.append(f"keep takes {ratio:.2f} of cp, the bar is {BAR_KEEP}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    print("\n" + ("; ".join(bad) if bad else "the bar holds"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
