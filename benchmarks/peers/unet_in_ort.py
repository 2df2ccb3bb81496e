#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The UNet of one folder, exported by Optimum and by sd-to-onnx, in ONNX Runtime: load time and time a run, alternating.

usage: unet_in_ort.py --bin DIR --work DIR --source FOLDER [--pairs 5] [--runs 2] [--latent 64] [--threads 2] [--json FILE]

Run it with the Python of tests/clients/requirements-optimum.txt. Each measurement is a new process. The bar: the median of the
pairwise ratios ours/peer is at most 1.0, for loading and for running; the exit status says whether it holds.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time


def export_peer(source, out, opset):
    """The UNet through Optimum's exporter, as its main_export does it for a whole pipeline."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import pathlib
    import torch
    from diffusers import UNet2DConditionModel
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import UNetOnnxConfig
    model = UNet2DConditionModel.from_pretrained(os.path.join(source, "unet"), torch_dtype=torch.float32).eval()
    with open(os.path.join(source, "model_index.json"), encoding="utf-8") as file:
        index = json.load(file)
    model.config.requires_aesthetics_score = index.get("requires_aesthetics_score", False)
    for part in ("text_encoder_2", "text_encoder"):
        path = os.path.join(source, part, "config.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                model.config.text_encoder_projection_dim = json.load(file)["projection_dim"]
            break
    os.makedirs(out)
    start = time.monotonic()
    export(model, UNetOnnxConfig(model.config, task="semantic-segmentation"), pathlib.Path(out, "model.onnx"), opset=opset)
    return time.monotonic() - start


def open_session(path, source, latent, threads):
    """A session on the CPU, an input for it, and the seconds it took to load."""
    import numpy as np
    import onnxruntime as ort
    with open(os.path.join(source, "unet", "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    start = time.perf_counter()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter() - start
    random = np.random.RandomState(1)
    feed = {}
    for wanted in session.get_inputs():
        shape = {"sample": (1, config["in_channels"], latent, latent), "timestep": (1,) * len(wanted.shape),
                 "encoder_hidden_states": (1, 77, config["cross_attention_dim"])}.get(
                     wanted.name, (1, wanted.shape[-1] if wanted.shape else 1))
        value = random.standard_normal(shape) if wanted.name != "timestep" else np.full(shape, 500.0)
        feed[wanted.name] = value.astype(np.float32)
    return session, feed, loaded


def measure(path, source, latent, threads, runs):
    import numpy as np
    session, feed, loaded = open_session(path, source, latent, threads)
    times = []
    for _ in range(runs + 1):  # the first one allocates
        start = time.perf_counter()
        out, = session.run(None, feed)
        times.append(time.perf_counter() - start)
    np.save(path + ".out.npy", out)
    return dict(load=loaded, run=statistics.median(times[1:]), first=times[0])


def alternate(paths, source, latent, threads, runs):
    """Both graphs in this process, run in turn: the noise of a shared machine falls on both alike. Needs memory for two models."""
    sessions = {}
    for who, path in paths.items():
        session, feed, loaded = open_session(path, source, latent, threads)
        session.run(None, feed)  # the first run allocates
        sessions[who] = session, feed
        print(f"{who}: load {loaded:.2f} s", flush=True)
    times = {who: [] for who in paths}
    for turn in range(runs):
        for who in sorted(paths, reverse=turn % 2 == 0):
            session, feed = sessions[who]
            start = time.perf_counter()
            session.run(None, feed)
            times[who].append(time.perf_counter() - start)
    for who, values in times.items():
        print(f"{who}: median {statistics.median(values):.3f} s, least {min(values):.3f} s")
    ratio = statistics.median(o / p for o, p in zip(times["ours"], times["peer"]))
    print(f"run: median ratio {ratio:.3f}" + ("" if ratio <= 1.0 else ", the bar is 1.0"))
    return ratio <= 1.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin")
    parser.add_argument("--work")
    parser.add_argument("--source", required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--json")
    parser.add_argument("--alternate", type=int, metavar="RUNS", help="both in one process, so many runs each in turn, instead of pairs")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--export", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.source, options.latent, options.threads, options.runs)))
        return 0
    if options.export:
        print(f"Optimum's exporter: {export_peer(options.source, options.export, options.opset):.1f} s")
        return 0
    if not options.bin or not options.work:
        parser.error("--bin and --work are needed")
    os.makedirs(options.work, exist_ok=True)
    me = [sys.executable, os.path.abspath(__file__), "--source", options.source, "--opset", str(options.opset)]
    peer, ours = os.path.join(options.work, "peer"), os.path.join(options.work, "ours")
    if not os.path.exists(os.path.join(peer, "model.onnx")):  # in its own process: it holds the whole model in memory
        shutil.rmtree(peer, ignore_errors=True)
        subprocess.run(me + ["--export", peer], check=True)
    shutil.rmtree(ours, ignore_errors=True)
    subprocess.run([os.path.join(options.bin, "sd-to-onnx"), options.source, ours, "--components", "unet", "--dtype", "f32",
                    "--opset", str(options.opset), "--quiet"], check=True)
    paths = {"peer": os.path.join(peer, "model.onnx"), "ours": os.path.join(ours, "unet", "model.onnx")}
    for folder in (peer, os.path.join(ours, "unet")):  # both in the page cache
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as file:
                while file.read(1 << 24):
                    pass
    if options.alternate:
        return 0 if alternate(paths, options.source, options.latent, options.threads, options.alternate) else 1
    results = {"peer": [], "ours": []}
    for pair in range(options.pairs):
        for who in ("peer", "ours") if pair % 2 == 0 else ("ours", "peer"):
            done = subprocess.run(me + ["--measure", paths[who], "--latent", str(options.latent), "--threads", str(options.threads),
                                        "--runs", str(options.runs)], check=True, stdout=subprocess.PIPE, text=True)
            results[who].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"pair {pair + 1}: " + ", ".join(
            f"{w} load {results[w][-1]['load']:.3f} s, run {results[w][-1]['run']:.3f} s" for w in results), flush=True)
    import numpy as np
    a, b = (np.load(p + ".out.npy").astype(np.float64) for p in paths.values())
    print(f"largest difference of the two outputs: {np.abs(a - b).max() / np.abs(a).max():.1e} of the largest value")
    bad, report = [], dict(results)
    for what in ("load", "run"):
        ratios = [o[what] / p[what] for o, p in zip(results["ours"], results["peer"])]
        ratio = statistics.median(ratios)
        medians = [statistics.median(r[what] for r in results[w]) for w in ("peer", "ours")]
        print(f"{what}: peer {medians[0]:.3f} s, ours {medians[1]:.3f} s, median ratio {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        report[what] = ratio
        if ratio > 1.0:
            bad.append(f"{what} takes {ratio:.3f} of the peer, the bar is 1.0")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    print("; ".join(bad) if bad else "all bars hold")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
