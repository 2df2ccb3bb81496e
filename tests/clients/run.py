#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The libraries and pipelines that people use load what our programs write, unmodified: the pipelines make the image that torch makes, the
libraries find every tensor, bit for bit; adapters are merged as their own libraries merge them.

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

# name: model, where LoRA and embedding go in, client, which Python. "convert": by sd-to-onnx itself. "folder": into the ONNX folder that sd-to-onnx
# wrote. "export": into the folder that Optimum's exporter wrote.
ADAPTERS = {
    "merged.sd1": ("sd1", "convert", "optimum", "optimum"),
    "merged.sd2_v": ("sd2_v", "convert", "optimum", "optimum"),
    "merged.sdxl": ("sdxl", "convert", "optimum", "optimum"),
    "merged.sd1-folder": ("sd1", "folder", "optimum", "optimum"),
    "merged.sdxl-folder": ("sdxl", "folder", "optimum", "optimum"),
    "merged.sd1-diffusers": ("sd1", "folder", "diffusers", "diffusers"),
    "merged.sd1-export": ("sd1", "export", "optimum", "optimum"),
    "merged.sdxl-export": ("sdxl", "export", "optimum", "optimum"),
}
STRENGTH = "0.7"
LIBRARIES = ("weights", "adapters", "embeddings")  # scripts with cases of their own


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


def adapters_case(name, options, pythons):
    """An ONNX pipeline with a LoRA and an embedding in it, against diffusers with both loaded."""
    model, place, client, python = ADAPTERS[name]
    script, files = os.path.join(HERE, "pipelines.py"), os.path.join(options.work, model + "-adapters")
    lora, embedding = os.path.join(files, "lora.safetensors"), os.path.join(files, "embedding.safetensors")
    out, reference = os.path.join(options.work, name), os.path.join(options.work, model + "+adapters.npy")
    source_folder = os.path.join(DATA, model, "diffusers")
    add_lora, add_embedding = ["--lora", f"{lora}:{STRENGTH}", "--strict"], ["--embedding", f"{embedding}:<cat>"]

    def ours(program, *arguments):
        call([os.path.join(options.bin, program), *arguments, "--quiet"], program)

    def merge_both(folder, merged):
        ours("merge-embedding", folder, merged + ".tokens", *add_embedding)
        ours("merge-lora", merged + ".tokens", merged, *add_lora)

    if not os.path.exists(files):
        call([pythons["diffusers"], os.path.join(HERE, "adapters.py"), "make", model, files], "adapters.py")
    if not os.path.exists(reference):
        call([pythons["diffusers"], script, "torch", model + "+adapters", source_folder, reference, lora, STRENGTH, embedding], "reference")

    if place == "convert":
        ours("sd-to-onnx", source_folder, out, "--dtype", "f32", *add_lora, *add_embedding)
    elif place == "folder":
        ours("sd-to-onnx", source_folder, out + ".before", "--dtype", "f32", *(["--layout", "diffusers"] if client == "diffusers" else []))
        merge_both(out + ".before", out)
    else:
        # transformers 5 saved the small text encoders without "text_model." in their names; the exporter's transformers 4 takes those for missing weights
        ours("convert-weights", source_folder, out + ".saved", "--to", "diffusers")
        call([os.path.join(os.path.dirname(pythons["optimum"]), "optimum-cli"), "export", "onnx", "--model", out + ".saved", "--task", "text-to-image",
              out + ".before"], "optimum-cli")
        merge_both(out + ".before", out)
    return call([pythons[python], script, client, model + "+adapters", out, reference], client)[0]


def library_case(name, options, pythons):
    """What a program wrote, in a library: "weights.CASE" is case CASE of weights.py."""
    script, _, case = name.partition(".")
    return call([pythons["diffusers"], os.path.join(HERE, script + ".py"), case, "--bin", options.bin, "--work", os.path.join(options.work, name)], "libraries")[0]


def library_cases():
    for script in LIBRARIES:
        listed = subprocess.run([sys.executable, os.path.join(HERE, script + ".py"), "list"], capture_output=True, text=True, check=True).stdout.split()
        yield from (f"{script}.{name}" for name in listed)


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
    for name in [*CASES, *ADAPTERS, *library_cases(), "differential", "differences"]:
        if not any(fnmatch.fnmatchcase(name, p) for p in options.only):
            continue
        start = time.monotonic()
        try:
            if name in CASES:
                said = pipeline_case(name, options, pythons, references)
            elif name in ADAPTERS:
                said = adapters_case(name, options, pythons)
            elif name in ("differential", "differences"):
                said = differential_case(name, options, pythons)
            else:
                said = library_case(name, options, pythons)
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
