#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""ONNX Runtime computes with a finished ONNX folder into which a LoRA was merged what it computes with a conversion of the merged model.

usage: merge_onnx.py --bin FOLDER_OF_PROGRAMS --work DIR [--only PATTERN ...]

Needs onnxruntime, onnx, numpy, safetensors. Ends with `N passed, N failed`.
"""
import argparse
import fnmatch
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import traceback

import numpy as np
import onnx
import onnxruntime as ort
from safetensors.numpy import load_file, save_file

sys.dont_write_bytecode = True
from compare_onnx import Failure, Workplace, expect  # noqa: E402

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data")
TOLERANCE = 5e-5
END_OF_TEXT = 299
ort.set_default_logger_severity(3)


class Programs(Workplace):
    def __init__(self, folder, work):
        super().__init__(work)
        self.folder = os.path.abspath(folder)

    def __call__(self, program, source, *arguments):
        """The output of a program that makes OUTPUT of a source."""
        out = self.path(program)
        done = subprocess.run([os.path.join(self.folder, program), source, out, *map(str, arguments), "--quiet"], capture_output=True, text=True, timeout=600)
        expect(done.returncode == 0, f"{program} {source} {' '.join(map(str, arguments))}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-400:]}")
        return out


def lora(model, path):
    """Rank 4, kohya's names: every linear and convolution layer."""
    draw, out = np.random.RandomState(5), {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te1_" if "xl" in model else "lora_te_"), ("text_encoder_2", "lora_te2_")):
        for file in glob.glob(os.path.join(DATA, model, "diffusers", part, "*.safetensors")):
            for name, weight in sorted(load_file(file).items()):
                if not name.endswith(".weight") or weight.ndim < 2 or name.endswith(("token_embedding.weight", "position_embedding.weight")):
                    continue
                if part != "unet" and not name.startswith("text_"):
                    name = "text_model." + name
                module, kernel = prefix + name[:-len(".weight")].replace(".", "_"), weight.shape[2:]
                out[module + ".lora_down.weight"] = (draw.standard_normal((4, weight.shape[1], *kernel)) * 0.1).astype(np.float32)
                out[module + ".lora_up.weight"] = (draw.standard_normal((weight.shape[0], 4, *[1] * len(kernel))) * 0.1).astype(np.float32)
                out[module + ".alpha"] = np.array(2, np.float32)
    save_file(out, path)
    return path


def session(folder, part):
    path = os.path.join(folder, part, "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def feed(run):
    draw, out = np.random.RandomState(7), {}
    for i in run.get_inputs():
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32}[i.type]
        shape = [s if isinstance(s, int) else {"channels": 4}.get(s, 2 if "batch" in s else 8) for s in i.shape]
        if i.name == "input_ids":
            out[i.name] = draw.randint(1, END_OF_TEXT - 1, shape).astype(kind)
            out[i.name][:, -2:] = END_OF_TEXT
        elif i.name == "timestep":
            out[i.name] = np.full(shape, 7, kind)
        else:
            out[i.name] = draw.standard_normal(shape).astype(kind)
    return out


def distance(first, second, part):
    """Largest difference of two graphs' outputs, relative to the largest value."""
    runs = [session(folder, part) for folder in (first, second)]
    inputs = feed(runs[0])
    names = [o.name for o in runs[0].get_outputs()]
    expect(names == [o.name for o in runs[1].get_outputs()], f"{part}: outputs differ")
    worst = 0.0
    for name, a, b in zip(names, runs[0].run(None, inputs), runs[1].run(None, inputs)):
        expect(np.isfinite(a).all() and np.isfinite(b).all(), f"{part}.{name} is not finite")
        worst = max(worst, float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max()))
    return worst


def fingerprint(folder):
    out = {}
    for file in glob.glob(os.path.join(folder, "**", "*"), recursive=True):
        if os.path.isfile(file):
            with open(file, "rb") as data:
                out[os.path.relpath(file, folder)] = hashlib.sha256(data.read()).hexdigest()
    return out


def check_export(run, name):
    """What another exporter wrote: the merged graphs compute what the converted merged model does."""
    base, adapter = os.path.join(DATA, "onnx", name), os.path.join(DATA, "onnx", "lora.safetensors") + ":0.8"
    merged = run("merge-lora", base, "--lora", adapter)
    layout = {"optimum": "optimum", "script": "diffusers"}[name]
    wanted = run("sd-to-onnx", run("merge-lora", os.path.join(DATA, "onnx", "pipeline"), "--lora", adapter), "--dtype", "f32", "--layout", layout)
    said = []
    for part in ("text_encoder", "unet"):
        off, effect = distance(merged, wanted, part), distance(base, merged, part)
        expect(off <= TOLERANCE, f"{part}: off by {off:.1e}, allowed {TOLERANCE:.0e}")
        expect(effect > 100 * TOLERANCE, f"{part}: the LoRA changed nothing ({effect:.1e})")
        said.append(f"{part} off by {off:.1e}, changed by {effect:.1e}")
    return ", ".join(said)


def check_ours(run, model):
    """Our own folder, in each way that weights are stored: the very files that the merged model converts to."""
    source = run("convert-weights", os.path.join(DATA, model, "diffusers"), "--to", "diffusers", "--dtype", "f32")
    adapter = lora(model, run.path("lora.safetensors")) + ":0.8"
    merged_source = run("merge-lora", source, "--lora", adapter)
    for options in ([], ["--weights", "embed"]):
        wanted = fingerprint(run("sd-to-onnx", merged_source, "--dtype", "f32", *options))
        got = fingerprint(run("merge-lora", run("sd-to-onnx", source, "--dtype", "f32", *options), "--lora", adapter))
        wrong = sorted(k for k in wanted.keys() | got.keys() if wanted.get(k) != got.get(k))
        expect(not wrong, f"{options}: these files differ: {', '.join(wrong)}")
    return f"{len(wanted)} files, the same bytes"


def check_in_place(run, model):
    """Graphs that point into safetensors files, with Transpose nodes before MatMul."""
    source = run("convert-weights", os.path.join(DATA, model, "diffusers"), "--to", "diffusers", "--dtype", "f32")
    adapter = lora(model, run.path("lora.safetensors")) + ":0.8"
    base = run("sd-to-onnx", source, "--weights", "in-place")
    merged = run("merge-lora", base, "--lora", adapter)
    wanted = run("sd-to-onnx", run("merge-lora", source, "--lora", adapter), "--dtype", "f32")
    said = []
    for part in ("unet", "text_encoder"):
        graph = onnx.load(os.path.join(merged, part, "model.onnx"), load_external_data=False)
        expect(any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.graph.initializer), f"{part}: no external data")
        runs = [ort.InferenceSession(os.path.join(f, part, "model.onnx"), providers=["CPUExecutionProvider"]) for f in (merged, wanted)]
        inputs = feed(runs[0])
        got, right = (r.run(None, inputs)[0].astype(np.float64) for r in runs)
        off = float(np.abs(got - right).max() / np.abs(right).max())
        expect(off <= TOLERANCE, f"{part}: off by {off:.1e}")
        said.append(f"{part} off by {off:.1e}")
    return ", ".join(said)


def check_tokens(run, name):
    """An added token does not move the pooled output away from the end marker, and its rows are the embedding's."""
    vectors = np.random.RandomState(3).standard_normal((2, 16)).astype(np.float32)
    file = run.path("two.safetensors")
    save_file({"emb_params": vectors}, file)
    base = os.path.join(DATA, "onnx", name)
    merged = run("merge-embedding", base, "--embedding", file + ":newword")
    encoder = session(merged, "text_encoder")
    for order in ([5, 300, 301, 7, END_OF_TEXT, END_OF_TEXT], [301, 300, END_OF_TEXT, 301, 2, END_OF_TEXT]):
        ids = np.array([order], np.int64)
        state, pooled = encoder.run(["last_hidden_state", "pooler_output"], {"input_ids": ids})
        at = order.index(END_OF_TEXT)
        expect(np.abs(state[0, at] - pooled[0]).max() < 1e-5, f"the pooled output is not the state of position {at}")
    graph = onnx.load(os.path.join(merged, "text_encoder", "model.onnx"))
    table = next(t for t in graph.graph.initializer if t.name.endswith("token_embedding.weight"))
    rows = onnx.numpy_helper.to_array(table)
    expect(rows.shape == (302, 16) and (rows[300:] == vectors).all(), f"the rows of the new tokens: {rows.shape}")
    return "two tokens"


CHECKS = {"optimum": (check_export, "optimum"), "script": (check_export, "script"), "sd1": (check_ours, "sd1"), "sdxl": (check_ours, "sdxl"),
          "sd1.in-place": (check_in_place, "sd1"), "tokens": (check_tokens, "optimum")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--only", nargs="*", default=["*"])
    arguments = parser.parse_args()
    chosen = [n for n in CHECKS if any(fnmatch.fnmatchcase(n, p) for p in arguments.only)]
    if not chosen:
        parser.error("no check is called so")
    passed = failed = 0
    for name in chosen:
        function, argument = CHECKS[name]
        work = os.path.join(arguments.work, name)
        try:
            said, good = function(Programs(arguments.bin, work), argument), True
        except Failure as failure:
            said, good = str(failure), False
        except Exception:
            said, good = traceback.format_exc(limit=-3), False
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'} {name:14} {said}", flush=True)
        if good:
            shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
