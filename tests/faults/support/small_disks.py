# SPDX-License-Identifier: MIT
# covers IO-01: disks of many sizes
"""Converts onto memory disks of 8 KiB, 12 KiB, ... : either the whole output is there, or exit status NOSPC with one sentence and nothing."""
import os
import sys

from privileged import Work, contents, model, programs, run, skip

NOSPC = 18


def main():
    given = programs()
    with Work() as work:
        source = work / "model.safetensors"
        model(source)
        conversions = {
            "model.safetensors": [],
            "half.safetensors": ["--dtype", "f16"],
            "model.pt": [],
            "shards": ["--to", "safetensors", "--shard-size", "20kB"],
        }
        runs = full = wrong = 0
        for name, options in conversions.items():
            expected = work / ("expected-" + name)
            run([given.convert, source, expected, "--quiet", *options], check=True)
            whole = contents(expected) if os.path.isdir(expected) else {"": open(expected, "rb").read()}
            fits_from = None
            size = 8
            while size <= 256:
                disk = work / "disk"
                if not work.mount("tmpfs", disk, "-t", "tmpfs", "-o", f"size={size}k"):
                    skip("mounting a memory disk is not permitted here")
                target = os.path.join(disk, name)
                done = run([given.convert, source, target, "--quiet", *options])
                runs += 1
                if done.returncode == 0:
                    there = contents(target) if os.path.isdir(target) else {"": open(target, "rb").read()}
                    fine = there == whole and os.listdir(disk) == [name]
                    fits_from = fits_from or size
                else:
                    full += 1
                    fine = (done.returncode == NOSPC and done.stderr.count("\n") == 1 and "expected " in done.stderr
                            and os.listdir(disk) == [] and fits_from is None)
                if not fine:
                    wrong += 1
                    print(f"{name} on {size} KiB: status {done.returncode}, {done.stderr!r}, left {os.listdir(disk)}")
                work.umount(disk)
                size += 4
            if fits_from is None:
                wrong += 1
                print(f"{name}: never fits")
        print(f"{runs} runs, {full} on disks that were too small, {wrong} wrong")
        return 1 if wrong or not full else 0


sys.exit(main())
