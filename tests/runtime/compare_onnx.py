#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""ONNX Runtime computes with what sd-to-onnx wrote what diffusers and transformers computed with the original.

usage: compare_onnx.py --bin SD_TO_ONNX --work DIR [--only PATTERN ...] [--list] [--keep]
       compare_onnx.py --folder ONNX_FOLDER --model sd1 [--tolerance 5e-5]     # an ONNX folder that something else wrote

Needs onnxruntime, onnx, numpy, safetensors. Patterns select checks by name (`sd1.*`, `*.same-bytes`). Ends with
`N passed, N failed`.
"""
import argparse
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback

import numpy as np
import onnx
import onnxruntime as ort
from safetensors.numpy import load_file

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "data")
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(DATA, "make"))
import ldm  # noqa: E402
import variants  # noqa: E402

ort.set_default_logger_severity(3)

MODELS = ["sd1", "sd1_inpaint", "sd2_v", "sdxl", "sdxl_refiner"]
COMPONENTS = {m: ["text_encoder", "unet", "vae_encoder", "vae_decoder"] for m in MODELS}
COMPONENTS["sdxl"] = ["text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"]
COMPONENTS["sdxl_refiner"] = ["text_encoder_2", "unet", "vae_encoder", "vae_decoder"]
CLASSIC = ["sd1", "sd1_inpaint", "sd2_v"]  # the families that the diffusers layout knows
F32, F16 = 5e-5, 1e-2
GRAPH_FILES = (".onnx", ".onnx_data", ".pb")


class Failure(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failure(message)


def source(model):
    return os.path.join(DATA, model, "diffusers")


# ---------------------------------------------------------------- running the program

class Workplace:
    """An empty folder, and numbered paths in it."""

    def __init__(self, work):
        self.work, self.count = os.path.abspath(work), 0
        shutil.rmtree(self.work, ignore_errors=True)
        os.makedirs(self.work)

    def path(self, name):
        self.count += 1
        return os.path.join(self.work, f"{self.count:02}-{name}")


class Converter(Workplace):
    def __init__(self, binary, work):
        super().__init__(work)
        self.binary = os.path.abspath(binary)

    def run(self, *arguments):
        return subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True, timeout=600)

    def __call__(self, what, *arguments, out=None, quiet=True):
        """Convert `what`; the folder that came out. A failure shows the program's own words."""
        out = out or self.path("onnx")
        done = self.run(what, out, *arguments, *(["--quiet"] if quiet else []))
        command = " ".join(map(str, arguments))
        expect(done.returncode == 0, f"sd-to-onnx {os.path.basename(what)} {command}: exit {done.returncode}: "
                                     f"{(done.stderr or done.stdout).strip()[-400:]}")
        return out

    def ldm(self, model, style="plain", dtype=None, change=None):
        path = self.path(f"{model}.safetensors")
        tensors = ldm.convert(source(model), style)
        ldm.write_safetensors(path, change(tensors) if change else tensors, dtype, {"format": "pt"})
        return path

    def variant(self, kind, model):
        out = self.path(kind)
        shutil.copytree(source(model), out)
        {"fp16-sharded": variants.fp16_sharded, "old-vae": variants.old_vae, "f32": variants.f32}[kind](out)
        return out


# ---------------------------------------------------------------- what a folder holds

def graphs(folder):
    found = {part: os.path.join(folder, part, "model.onnx") for part in sorted(os.listdir(folder))
             if os.path.exists(os.path.join(folder, part, "model.onnx"))}
    expect(found, f"no model.onnx below {folder}")
    return found


def fingerprint(folder, parts=None):
    """sha256 of every graph and weight file."""
    out = {}
    for part in graphs(folder):
        if parts and part not in parts:
            continue
        for name in sorted(os.listdir(os.path.join(folder, part))):
            if name.endswith(GRAPH_FILES):
                with open(os.path.join(folder, part, name), "rb") as file:
                    out[f"{part}/{name}"] = hashlib.sha256(file.read()).hexdigest()
    expect(out, f"nothing to compare in {folder}")
    return out


def same_bytes(reference, other, what):
    if reference == other:
        return
    wrong = sorted(k for k in reference.keys() | other.keys() if reference.get(k) != other.get(k))
    raise Failure(f"{what}: these files differ: {', '.join(wrong)}")


def external_files(path):
    """Locations of the external data of one graph, each checked to be a plain relative name that exists."""
    model = onnx.load(path, load_external_data=False)
    found = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = {e.key: e.value for e in tensor.external_data}["location"]
            expect(not os.path.isabs(location) and ".." not in location.split("/"), f"{path}: external data at {location}")
            expect(os.path.exists(os.path.join(os.path.dirname(path), location)), f"{path}: {location} is not there")
            found.add(location)
    return model, found


def check_files(folder, opset=None, checker=True):
    for part, path in graphs(folder).items():
        model, _ = external_files(path)
        if opset:
            standard = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
            expect(standard == [opset], f"{part}: opset {standard}, asked for {opset}")
        if checker:
            try:
                onnx.checker.check_model(path, full_check=True)
            except Exception as error:
                raise Failure(f"{part}: onnx.checker: {str(error)[:300]}") from None


# ---------------------------------------------------------------- numbers

KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
         "tensor(double)": np.float64}


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Failure(f"{path}: ONNX Runtime does not load it: {str(error)[:400]}") from None


def cases(tensors):
    count = 1 + max(int(k.split(".")[0][4:]) for k in tensors)
    for number in range(count):
        prefix = f"case{number}."
        mine = {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
        yield (number, {k: v for k, v in mine.items() if not k.startswith("out.")},
               {k[4:]: v for k, v in mine.items() if k.startswith("out.")})


def feeds(run, inputs, part):
    """The recorded inputs as the session wants them; a rank-1 timestep is tried with one step and with one a sample."""
    batch = next(iter(inputs.values())).shape[0]
    steps = [None]
    feed = {}
    for want in run.get_inputs():
        expect(want.name in inputs, f"{part}: unexpected input {want.name}")
        value = inputs[want.name].astype(KINDS[want.type])
        if want.name == "timestep" and len(want.shape) == 1:
            steps = [1, batch] if batch > 1 else [1]
        feed[want.name] = value
    missing = set(inputs) - {w.name for w in run.get_inputs()}
    expect(not missing, f"{part}: inputs {sorted(missing)} are missing")
    for count in steps:
        yield feed if count is None else dict(feed, timestep=np.full((count,), feed["timestep"], feed["timestep"].dtype))


def compare(folder, model, tolerance, parts=None):
    """Largest error relative to the largest reference value, over every output, case and component."""
    worst = (0.0, "")
    for part in parts or COMPONENTS[model]:
        path = os.path.join(folder, part, "model.onnx")
        expect(os.path.exists(path), f"{part}/model.onnx is missing")
        run = session(path)
        names = [o.name for o in run.get_outputs()]
        for number, inputs, outputs in cases(load_file(os.path.join(DATA, model, "recorded", part + ".safetensors"))):
            if "timestep" in inputs and any(i.name == "timestep" and "int" in i.type for i in run.get_inputs()):
                if inputs["timestep"] != np.round(inputs["timestep"]):
                    continue
            for feed in feeds(run, inputs, part):
                try:
                    results = run.run(None, feed)
                except Exception as error:
                    raise Failure(f"{part} case {number}: ONNX Runtime does not run it: {str(error)[:400]}") from None
                for name, got in zip(names, results):
                    if name == "hidden_states":  # what the legacy exporter calls the first one
                        name = "hidden_states.0"
                    expect(name in outputs, f"{part}: unexpected output {name}")
                    want = outputs[name]
                    expect(got.shape == want.shape, f"{part}.{name}: shape {got.shape}, recorded {want.shape}")
                    expect(np.isfinite(got).all(), f"{part}.{name}: not finite in case {number}")
                    error = float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())
                    if error >= worst[0]:
                        worst = (error, f"{part}.{name} case {number}")
                    expect(error <= tolerance, f"{part}.{name} case {number}: off by {error:.2e} of the largest value, allowed {tolerance:.0e}")
    return f"worst {worst[0]:.1e} ({worst[1]})"


# ---------------------------------------------------------------- names, types and axes

def interface(folder, model, layout, io):
    """Names in order, element types and which axes are free, as Optimum 2 and diffusers' script export them."""
    optimum = layout == "optimum"
    real = "tensor(float16)" if io == "f16" else "tensor(float)"
    ids = "tensor(int64)" if optimum else "tensor(int32)"
    free = None
    unet_inputs = [("sample", real, (free, "C", free, free)),
                   ("timestep", real, () if optimum else (free,)),
                   ("encoder_hidden_states", real, (free, free, "K"))]
    if model.startswith("sdxl"):
        unet_inputs += [("text_embeds", real, (free, "K")), ("time_ids", real, (free, "K"))]
    image, latent = (free, "C", free, free), (free, "C", free, free)
    table = {
        "unet": (unet_inputs, ["out_sample"]),
        "vae_encoder": ([("sample", real, image)], ["latent_parameters"] if optimum else ["latent_sample"]),
        "vae_decoder": ([("latent_sample", real, latent)], ["sample"]),
        "text_encoder": ([("input_ids", ids, (free, free))], ["last_hidden_state", "pooler_output"]),
        "text_encoder_2": ([("input_ids", ids, (free, free))], ["text_embeds", "last_hidden_state"]),
    }
    for part in COMPONENTS[model]:
        run = session(os.path.join(folder, part, "model.onnx"))
        want_inputs, want_outputs = table[part]
        if part.startswith("text") and model.startswith("sdxl"):
            with open(os.path.join(source(model), part, "config.json"), encoding="utf-8") as file:
                layers = json.load(file)["num_hidden_layers"]
            want_outputs = want_outputs + [f"hidden_states.{n}" for n in range(layers + 1)]
        got = [i.name for i in run.get_inputs()]
        expect(got == [w[0] for w in want_inputs], f"{part}: inputs {got}")
        got = [o.name for o in run.get_outputs()]
        expect(got == want_outputs, f"{part}: outputs {got}, expected {want_outputs}")
        for have, (name, kind, shape) in zip(run.get_inputs(), want_inputs):
            expect(have.type == kind, f"{part}.{name}: {have.type}, expected {kind}")
            expect(len(have.shape) == len(shape), f"{part}.{name}: shape {have.shape}, expected rank {len(shape)}")
            for size, wanted in zip(have.shape, shape):
                expect(isinstance(size, str) == (wanted is free), f"{part}.{name}: axes {have.shape}")
        for have in run.get_outputs():
            expect(have.type == real, f"{part}.{have.name}: {have.type}, expected {real}")
            expect(all(isinstance(s, (str, int)) for s in have.shape), f"{part}.{have.name}: axes {have.shape}")


def side_files(folder, model, layout):
    with open(os.path.join(folder, "model_index.json"), encoding="utf-8") as file:
        index = json.load(file)
    if layout == "diffusers":
        wanted = "OnnxStableDiffusionInpaintPipeline" if model.endswith("inpaint") else "OnnxStableDiffusionPipeline"
        expect(index["_class_name"] == wanted, f"model_index.json: {index['_class_name']}")
        for part in COMPONENTS[model]:
            expect(index.get(part) == ["diffusers", "OnnxRuntimeModel"], f"model_index.json: {part} {index.get(part)}")
    with open(os.path.join(folder, "scheduler", "scheduler_config.json"), encoding="utf-8") as file:
        json.load(file)
    for part in COMPONENTS[model]:
        if part.startswith("text_encoder"):
            for name in ("vocab.json", "merges.txt"):
                path = os.path.join("tokenizer" + part[len("text_encoder"):], name)
                expect(os.path.exists(os.path.join(folder, path)), f"{path} is missing")
        if layout == "optimum":
            with open(os.path.join(folder, part, "config.json"), encoding="utf-8") as file:
                json.load(file)


# ---------------------------------------------------------------- the checks

def check_f32(to, model):
    out = to(source(model), "--dtype", "f32")
    check_files(out, 17)
    interface(out, model, "optimum", "f32")
    side_files(out, model, "optimum")
    return compare(out, model, F32)


def check_f16(to, model):
    out = to(source(model), "--dtype", "f16")
    check_files(out, 17)
    interface(out, model, "optimum", "f32")
    return compare(out, model, F16)


def check_f16_io(to, model):
    out = to(source(model), "--dtype", "f16", "--io", "f16")
    check_files(out, 17)
    interface(out, model, "optimum", "f16")
    return compare(out, model, F16)


def check_opsets(to, model):
    said = []
    for opset in (14, 15, 18, 20):
        for dtype, tolerance in (("f32", F32), ("f16", F16)):
            out = to(source(model), "--dtype", dtype, "--opset", opset)
            check_files(out, opset)
            said.append(f"{opset} {dtype}: {compare(out, model, tolerance)[6:13]}")
            shutil.rmtree(out)
    return ", ".join(said)


def check_layouts(to, model):
    said = []
    for layout in (["diffusers"] if model in CLASSIC else []) + ["onnx-web"]:
        out = to(source(model), "--dtype", "f32", "--layout", layout)
        check_files(out)
        if layout == "diffusers":
            interface(out, model, layout, "f32")
            side_files(out, model, layout)
            for part, path in graphs(out).items():
                names = external_files(path)[1]
                expect(names <= {"weights.pb"}, f"{part}: external data in {names}")
        said.append(f"{layout}: {compare(out, model, F32)}")
    return ", ".join(said)


def check_embed(to, model):
    out = to(source(model), "--dtype", "f32", "--weights", "embed")
    for part, path in graphs(out).items():
        expect(not external_files(path)[1], f"{part}: embed left external data")
        expect(sorted(n for n in os.listdir(os.path.dirname(path)) if n.endswith(GRAPH_FILES)) == ["model.onnx"], f"{part}: more than model.onnx")
    check_files(out, 17)
    return compare(out, model, F32)


def check_in_place(to, model):
    """Beside the source weights: they stay untouched and the graphs are small."""
    said = []
    for kind, tolerance in (("f32", F32), ("f16", F16)):
        folder = to.variant("f32", model) if kind == "f32" else to.path("source")
        if kind == "f16":
            shutil.copytree(source(model), folder)
        before = fingerprint_weights(folder)
        to(folder, "--weights", "in-place", out=folder)
        after = fingerprint_weights(folder)
        expect({path: after.get(path) for path in before} == before, "in-place changed the source weights")
        expect({after[path] for path in after} == set(before.values()), "in-place brought weights that the source does not have")
        for part, path in graphs(folder).items():
            names = external_files(path)[1]
            expect(names, f"{part}: no external data")
            stored = sum(os.path.getsize(os.path.join(os.path.dirname(path), n)) for n in os.listdir(os.path.dirname(path)) if n.endswith(("_data", ".pb")))
            expect(os.path.getsize(path) + stored < 1 << 19, f"{part}: {os.path.getsize(path) + stored} bytes beside the weights")
        said.append(f"{kind}: {compare(folder, model, tolerance)}")
    return ", ".join(said)


def fingerprint_weights(folder):
    out = {}
    for root, _, files in os.walk(folder):
        for name in files:
            if name.endswith(".safetensors"):
                with open(os.path.join(root, name), "rb") as file:
                    out[os.path.join(root, name)] = hashlib.sha256(file.read()).hexdigest()
    return out


def check_in_place_elsewhere(to, model):
    """Into another folder: by clone, hard link or, said aloud, copy. ONNX Runtime is the judge of linked files."""
    folder = to.variant("f32", model)
    out = to(folder, "--weights", "in-place")
    said = compare(out, model, F32)
    single = to.ldm(model, dtype="F32")
    out = to(single, "--weights", "in-place")
    return f"folder {said}, checkpoint {compare(out, model, F32)}"


def check_same_bytes(to, model):
    """Folder, LDM safetensors (in three storage types where exact) and ckpt: the same graphs and weights."""
    sources = {"LDM F16": to.ldm(model, dtype="F16"), "LDM F32": to.ldm(model, dtype="F32")}
    if model != "sd1":
        sources["LDM BF16"] = to.ldm(model, dtype="BF16")
    else:
        sources["ckpt"] = os.path.join(DATA, "sd1", "sd1.ckpt")
    if model in ("sd1", "sd1_inpaint"):
        sources["LDM without text_model"] = to.ldm(model, "old")
    for dtype in ("f32", "f16"):
        reference = fingerprint(to(source(model), "--dtype", dtype))
        expect({k.split("/")[0] for k in reference} == set(COMPONENTS[model]), f"components {sorted(reference)}")
        for name, path in sources.items():
            out = to(path, "--dtype", dtype)
            same_bytes(reference, fingerprint(out), f"{name}, {dtype}")
            expect(os.path.exists(os.path.join(out, "scheduler", "scheduler_config.json")), f"{name}: no scheduler")
            shutil.rmtree(out)
    return f"folder = {' = '.join(sources)}"


def check_threads_tiles(to, model):
    for dtype in ("f32", "f16"):
        reference = None
        for arguments in (["--threads", 1], ["--threads", 2], ["--threads", 7], ["--tile", 65536], ["--tile", 4194304],
                          ["--threads", 7, "--tile", 65536]):
            out = to(source(model), "--dtype", dtype, *arguments)
            got = fingerprint(out)
            reference = reference or got
            same_bytes(reference, got, f"{dtype} {' '.join(map(str, arguments))}")
            shutil.rmtree(out)
    return "1, 2, 7 threads; tiles of 64 KiB and 4 MiB"


def check_variants(to, model):
    reference = fingerprint(to(source(model), "--dtype", "f32"))
    for kind in ("fp16-sharded", "old-vae", "f32"):
        same_bytes(reference, fingerprint(to(to.variant(kind, model), "--dtype", "f32")), kind)
    folder = to.path("split")
    variants.split(source(model), folder)
    without, alone = os.path.join(folder, "model.safetensors"), os.path.join(folder, "vae.safetensors")
    same_bytes(reference, fingerprint(to(without, "--vae", alone, "--dtype", "f32")), "--vae FILE")
    same_bytes(reference, fingerprint(to(without, "--vae", os.path.join(source(model), "vae"), "--dtype", "f32")), "--vae FOLDER")
    return "fp16 shards, old VAE names, F32 storage, --vae: same bytes"


def check_components(to, model):
    reference = fingerprint(to(source(model), "--dtype", "f32"))
    bare = to.ldm(model, "bare-unet")
    got = fingerprint(to(bare, "--components", "unet", "--dtype", "f32"))
    same_bytes({k: v for k, v in reference.items() if k.startswith("unet/")}, got, "a bare UNet")
    silent = to.ldm(model, "no-text")
    out = to.path("refused")
    done = to.run(silent, out, "--dtype", "f32")
    expect(done.returncode != 0, "a checkpoint without its text encoder converted without a word")
    expect("text" in done.stderr and "--components" in done.stderr, f"the refusal does not help: {done.stderr.strip()[-300:]}")
    expect(not os.path.exists(out), "the refusal left an output folder")
    got = fingerprint(to(silent, "--components", "unet,vae", "--dtype", "f32"))
    same_bytes({k: v for k, v in reference.items() if not k.startswith("text")}, got, "--components")
    return "bare UNet and missing text encoder"


def check_ema(to, model):
    checkpoint = os.path.join(DATA, model, model + ".ckpt")
    negated = to.ldm(model, change=lambda t: {k: -v if k.startswith("model.diffusion_model.") else v for k, v in t.items()})
    with_ema = fingerprint(to(checkpoint, "--ema", "--dtype", "f32"))
    same_bytes(fingerprint(to(negated, "--dtype", "f32")), with_ema, "--ema")
    expect(with_ema != fingerprint(to(checkpoint, "--dtype", "f32")), "--ema changed nothing")
    return "EMA values taken"


def check_ckpt_in_place(to, model):
    """From a torch zip: the graphs point into the archive's stored entries, where those lie as the graph needs them."""
    out = to(os.path.join(DATA, model, model + ".ckpt"), "--weights", "in-place")
    return compare(out, model, F16)


def check_json(to, model):
    out = to.path("dry")
    done = to.run(source(model), out, "--dry-run", "--json")
    expect(done.returncode == 0, done.stderr.strip()[-300:])
    expect(not os.path.exists(out), "--dry-run wrote something")
    json.loads(done.stdout)
    done = to.run(source(model), out, "--json", "--dtype", "f32")
    document = json.loads(done.stdout)
    listed = json.dumps(document.get("components", ""))
    for part in COMPONENTS[model]:
        expect(part in listed, f"--json: components do not name {part}")
    again = to.run(source(model), out, "--dtype", "f32")
    expect(again.returncode != 0 and "--force" in again.stderr, "an existing output folder was not refused")
    expect(fingerprint(out) == fingerprint(to(source(model), "--dtype", "f32", "--force", out=out)), "--force")
    return f"keys {sorted(document)}"


EVERY = {"f32": check_f32, "f16": check_f16, "f16-io": check_f16_io, "opsets": check_opsets, "layouts": check_layouts,
         "embed": check_embed, "in-place": check_in_place, "in-place-elsewhere": check_in_place_elsewhere,
         "same-bytes": check_same_bytes, "threads-tiles": check_threads_tiles, "json": check_json}
CHECKS = {f"{m}.{n}": (f, m) for m in MODELS for n, f in EVERY.items()}
CHECKS.update({"sd1.variants": (check_variants, "sd1"), "sd1.components": (check_components, "sd1"), "sd1.ema": (check_ema, "sd1"),
               "sd1.ckpt-in-place": (check_ckpt_in_place, "sd1")})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin")
    parser.add_argument("--work")
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--folder")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--tolerance", type=float, default=F32)
    arguments = parser.parse_args()
    if arguments.folder:
        try:
            check_files(arguments.folder)
            print(compare(arguments.folder, arguments.model, arguments.tolerance))
        except Failure as failure:
            print(failure)
            return 1
        return 0
    chosen = [n for n in CHECKS if any(fnmatch.fnmatchcase(n, p) or n.startswith(p + ".") for p in arguments.only)]
    if arguments.list:
        print("\n".join(chosen))
        return 0
    if not arguments.bin or not arguments.work:
        parser.error("--bin and --work are needed")
    if not chosen:
        parser.error(f"no check is called {' '.join(arguments.only)}")
    passed = failed = 0
    for name in chosen:
        function, model = CHECKS[name]
        work = os.path.join(arguments.work, name)
        start = time.monotonic()
        try:
            said, good = function(Converter(arguments.bin, work), model), True
        except Failure as failure:
            said, good = str(failure), False
        except Exception:
            said, good = traceback.format_exc(limit=-3), False
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'} {name:30} {time.monotonic() - start:6.1f} s  {said}", flush=True)
        if good and not arguments.keep:
            shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
