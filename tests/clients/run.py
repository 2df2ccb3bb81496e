#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The libraries and pipelines that people use load what sd-to-onnx and convert-weights write, unmodified: the pipelines make the image
that torch makes, the libraries find every tensor, bit for bit.

usage: run.py --bin DIR --work DIR --python-diffusers PYTHON --python-optimum PYTHON [--only PATTERN ...]

The two Pythons have requirements-diffusers.txt and requirements-optimum.txt. Ends with `N passed, N failed`.
"""
import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "data")

# name: model, source ("folder", "ckpt" or "ldm"), arguments of sd-to-onnx, client, which Python
CASES = {
    "optimum.sd1": ("sd1", "folder", ["--dtype", "f32"], "optimum", "optimum"),
    "optimum.sd1-ckpt": ("sd1", "ckpt", ["--dtype", "f32", "--tokenizer", "TOKENIZERS"], "optimum", "optimum"),
    "optimum.sd2_v": ("sd2_v", "folder", ["--dtype", "f32"], "optimum", "optimum"),
    "optimum.sdxl": ("sdxl", "folder", ["--dtype", "f32"], "optimum", "optimum"),
    "optimum.sdxl-embed": ("sdxl", "folder", ["--dtype", "f32", "--weights", "embed"], "optimum", "optimum"),
    "optimum.sdxl-ldm": ("sdxl", "ldm", ["--dtype", "f32", "--tokenizer", "TOKENIZERS"], "optimum", "optimum"),
    "optimum.sd1_inpaint": ("sd1_inpaint", "folder", ["--dtype", "f32"], "optimum", "optimum"),
    "optimum.sdxl_refiner": ("sdxl_refiner", "folder", ["--dtype", "f32"], "optimum", "optimum"),
    "diffusers.sd1": ("sd1", "folder", ["--dtype", "f32", "--layout", "diffusers"], "diffusers", "diffusers"),
    "diffusers.sd2_v": ("sd2_v", "folder", ["--dtype", "f32", "--layout", "diffusers"], "diffusers", "diffusers"),
    "diffusers.sd1-ckpt": ("sd1", "ckpt", ["--dtype", "f32", "--layout", "diffusers", "--tokenizer", "TOKENIZERS"], "diffusers", "diffusers"),
    "diffusers-0.39.sd1": ("sd1", "folder", ["--dtype", "f32", "--layout", "diffusers"], "diffusers", "optimum"),
}


def call(command, what):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900,
                          env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1"))
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no message"]
        raise RuntimeError(f"{what}: exit {done.returncode}: " + "\n      ".join(lines[-8:]))
    return done.stdout.strip().splitlines()[-1:] or [""]


def source(model, kind, work, python):
    folder = os.path.join(DATA, model, "diffusers")
    if kind == "folder":
        return folder
    if kind == "ckpt":
        return os.path.join(DATA, model, model + ".ckpt")
    path = os.path.join(work, model + ".safetensors")
    call([python, os.path.join(DATA, "make", "ldm.py"), folder, path], "ldm.py")
    return path


def tokenizers(model, work):
    """A folder with tokenizer/ and, for SDXL, tokenizer_2/, and nothing else."""
    out = os.path.join(work, model + "-tokenizers")
    if not os.path.exists(out):
        for name in ("tokenizer", "tokenizer_2"):
            here = os.path.join(DATA, model, "diffusers", name)
            if os.path.exists(here):
                shutil.copytree(here, os.path.join(out, name))
    return out


def pipeline_case(name, options, pythons, references):
    """sd-to-onnx's output in a pipeline; what the client said."""
    model, kind, arguments, client, python = CASES[name]
    script = os.path.join(HERE, "pipelines.py")
    if model not in references:
        path = os.path.join(options.work, model + ".npy")
        call([pythons["diffusers"], script, "torch", model, os.path.join(DATA, model, "diffusers"), path], "reference")
        references[model] = path
    out = os.path.join(options.work, name)
    extra = [tokenizers(model, options.work) if a == "TOKENIZERS" else a for a in arguments]
    call([os.path.join(options.bin, "sd-to-onnx"), source(model, kind, options.work, pythons["diffusers"]), out, "--quiet", *extra], "sd-to-onnx")
    return call([pythons[python], script, client, model, out, references[model]], client)[0]


def weights_case(name, options, pythons):
    """convert-weights' output in a library."""
    return call([pythons["diffusers"], os.path.join(HERE, "weights.py"), name.removeprefix("weights."), "--bin", options.bin,
                 "--work", os.path.join(options.work, name)], "libraries")[0]


def differential_case(name, options, pythons):
    """compare: generated files of every format, ours and those of the reference libraries, read by both. differences: what we read otherwise on purpose."""
    script = {"differential": ["compare.py", "--work", os.path.join(options.work, "differential")], "differences": ["differences.py"]}[name]
    return call([pythons["diffusers"], os.path.join(HERE, "..", "differential", script[0]), "--program", os.path.join(options.bin, "weights-digest"),
                 *script[1:]], name)[0]


def main():
    parser = argparse.ArgumentParser()
    for name in ("--bin", "--work", "--python-diffusers", "--python-optimum"):
        parser.add_argument(name, required=True)
    parser.add_argument("--only", nargs="*", default=["*"])
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    os.makedirs(options.work)
    pythons = {"diffusers": options.python_diffusers, "optimum": options.python_optimum}
    references, passed, failed = {}, 0, 0
    weights = subprocess.run([sys.executable, os.path.join(HERE, "weights.py"), "list"], capture_output=True, text=True, check=True).stdout.split()
    for name in [*CASES, *("weights." + w for w in weights), "differential", "differences"]:
        if not any(fnmatch.fnmatchcase(name, p) for p in options.only):
            continue
        start = time.monotonic()
        try:
            if name in CASES:
                said = pipeline_case(name, options, pythons, references)
            elif name in ("differential", "differences"):
                said = differential_case(name, options, pythons)
            else:
                said = weights_case(name, options, pythons)
            good = True
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            said, good = str(error), False
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'} {name:38} {time.monotonic() - start:6.1f} s  {said}", flush=True)
    if not passed + failed:
        parser.error("no case has that name")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
