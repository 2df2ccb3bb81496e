#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sd-to-onnx against `cp -r --reflink=never` of the same folder, alternating, each with a sync.

usage: sd_to_onnx.py --bin DIR --work DIR [--source FOLDER] [--pairs 7] [--modes copy in-place f16] [--json FILE]

Without --source, make-tiny-sd writes a full-size SD1.5 (4.27 GB, f32, random) into the work folder, once. The bars: median of the
pairwise wall ratios of `copy` at most 1.3, `in-place` under a second, peak anonymous memory at most 300 MB in every mode. The exit
status says whether they hold. The ratio of f16, which writes half the bytes, is shown beside.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys

from measure import size_of, table, timed

BAR_COPY, BAR_IN_PLACE, BAR_ANONYMOUS = 1.3, 1.0, 300e6


def linked_copy(source, target):
    """The in-place export writes beside its source: give it a folder of hard links, so that the source stays as it is."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--source")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--modes", nargs="*", default=["copy", "in-place", "f16"], choices=["copy", "in-place", "f16"])
    parser.add_argument("--json")
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    source = options.source or os.path.join(options.work, "sd1-full")
    if not os.path.exists(source):
        subprocess.run([os.path.join(options.bin, "make-tiny-sd"), source, "--family", "sd1", "--size", "full"], check=True)
    program = os.path.join(options.bin, "sd-to-onnx")
    copied, target = os.path.join(options.work, "copied"), os.path.join(options.work, "onnx")
    size = size_of(source)
    subprocess.run(["sh", "-c", f"find '{source}' -type f -exec cat {{}} + > /dev/null"], check=True)  # every run finds it cached
    commands = {"cp": ["cp", "-r", "--reflink=never", source, copied],
                "copy": [program, source, target, "--quiet"],
                "f16": [program, source, target, "--quiet", "--dtype", "f16"],
                "in-place": [program, target, target, "--quiet", "--weights", "in-place"]}
    runs = {mode: [] for mode in ["cp"] + options.modes}
    for pair in range(options.pairs):
        order = ["cp"] + options.modes
        for mode in order if pair % 2 == 0 else reversed(order):
            shutil.rmtree(copied, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            if mode == "in-place":
                linked_copy(source, target)
            runs[mode].append(timed(commands[mode]))
        print(f"pair {pair + 1}: " + ", ".join(f"{m} {runs[m][-1]['wall']:.2f} s" for m in order), flush=True)
    shutil.rmtree(copied, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)

    print(f"\n{size / 1e9:.2f} GB, {options.pairs} alternating pairs, medians; wall time includes the sync")
    report, bad = dict(bytes=size, pairs=options.pairs, modes=table(runs, "cp", 10)), []
    for mode, result in report["modes"].items():
        ratio, peak = result["ratio"], result["peak_anonymous"]
        if mode == "copy" and ratio > BAR_COPY:
            bad.append(f"copy takes {ratio:.2f} of cp, the bar is {BAR_COPY}")
        if mode == "in-place" and result["middle"]["wall"] >= BAR_IN_PLACE:
            bad.append(f"in-place takes {result['middle']['wall']:.2f} s, the bar is {BAR_IN_PLACE} s")
        if mode != "cp" and peak > BAR_ANONYMOUS:
            bad.append(f"{mode} holds {peak / 1e6:.0f} MB, the bar is {BAR_ANONYMOUS / 1e6:.0f} MB")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    print("\n" + ("; ".join(bad) if bad else "all bars hold"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
