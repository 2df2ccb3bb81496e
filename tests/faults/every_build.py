#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The same verdicts in every build: compiles fault tests with and without assertions, unoptimized and optimized, by GCC and Clang.

usage: every_build.py [--work DIR] [--compilers g++ clang++-14] [TEST ...]     (TEST: safetensors zip pickle …)

covers ENV-02: the fault tests assert exact codes and messages; here they run in each build, and the number of assertions must agree
Run by hand before a release, since it takes a compilation for each test and build. Ends with a table.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = [["-O0"], ["-O0", "-DNDEBUG"], ["-O3"], ["-O3", "-DNDEBUG"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=["safetensors", "zip", "pickle", "legacy", "npz", "gguf"])
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/every-build"))
    parser.add_argument("--compilers", nargs="*", default=["g++", "clang++-14"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    verdicts, wrong = {}, 0
    for compiler in options.compilers:
        main_object = options.work / f"main.{compiler}.o"
        common = [compiler, "-std=c++20", f"-I{ROOT}/include", f"-I{ROOT}/tests", f'-DTENSORSMITH_TEST_DATA="{ROOT}/tests/data"']
        subprocess.run([*common, "-O1", "-c", str(ROOT / "tests/support/catch_main.cpp"), "-o", str(main_object)], check=True)
        for flags in FLAGS:
            for test in options.tests:
                start, program = time.monotonic(), options.work / "test"
                subprocess.run([*common, *flags, str(ROOT / f"tests/faults/{test}_test.cpp"), str(main_object), "-o", str(program), "-lz",
                                "-pthread"], check=True)
                run = subprocess.run([str(program)], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ, LC_ALL="C"))
                last = [line for line in run.stdout.splitlines() if line.strip()][-1:] or ["no output"]
                passed = re.search(r"All tests passed \((\d+) assertions? in (\d+) test cases?\)", run.stdout)
                verdict = tuple(map(int, passed.groups())) if passed and run.returncode == 0 else f"exit {run.returncode}: {last[0]}"
                same = verdicts.setdefault(test, verdict) == verdict and not isinstance(verdict, str)
                wrong += not same
                shown = verdict if isinstance(verdict, str) else f"{verdict[1]} test cases, {verdict[0]} assertions pass"
                print(f"{'ok  ' if same else 'FAIL'} {test:12} {compiler:12} {' '.join(flags):14} {shown} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{wrong} builds differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
