#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs every composite operator, lowered for ONNX Runtime, against its formula in numpy.

usage: lowering.py LOWERING_CASES WORK [--opsets 14,17,…]
"""

import argparse
import math
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime

rng = np.random.default_rng(7)
erf = np.vectorize(math.erf)


def parameter(name, *shape):
    seed = 2166136261
    for c in name.encode():
        seed = ((seed ^ c) * 16777619) & 0xFFFFFFFF
    mixed = (np.arange(math.prod(shape), dtype=np.uint64) * 2654435761 + seed) & 0xFFFFFFFF
    return (mixed / 4294967296.0 - 0.5).astype(np.float32).reshape(shape)


def weight(type_, leaf, *shape):
    return parameter("block.0." + leaf, *shape).astype(type_).astype(np.float64)


def normal(type_, *shape):
    return rng.standard_normal(shape).astype(type_)


def linear(t, x, bias):
    y = x @ weight(t, "weight", 40, 24).T
    return y + weight(t, "bias", 40) if bias else y


def normalize(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def group_norm(t, x, groups, eps):
    y = normalize(x.reshape(x.shape[0], groups, -1), 2, eps).reshape(x.shape)
    column = [24] + [1] * (x.ndim - 2)
    return y * weight(t, "weight", 24).reshape(column) + weight(t, "bias", 24).reshape(column)


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def attention(q, k, v, causal=False):
    b, s, _ = q.shape
    q, k, v = (x.reshape(b, -1, 4, 8).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(8)
    if causal:
        scores = np.where(np.triu(np.ones((s, s), bool), 1), -np.inf, scores)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(b, s, 32)


def pool(x, ids):
    return np.stack([x[i, int(np.argmax(ids[i] == 49407))] for i in range(len(x))])


def timestep(t, width, flip, shift, period):
    half = width // 2
    exponent = np.float32(-math.log(period)) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    angles = np.atleast_1d(t).astype(np.float32)[:, None] * np.exp(exponent.astype(np.float64)).astype(np.float32)[None]
    parts = [np.sin(angles.astype(np.float64)), np.cos(angles.astype(np.float64))]
    y = np.concatenate(parts[::-1] if flip else parts, -1)
    return np.pad(y, ((0, 0), (0, width % 2)))


def causal_twice(q, k, v):
    return attention(attention(q, k, v, True), k, v, True)


def cases(t):
    """name → (inputs, formula on f64 inputs)"""
    seq, image = normal(t, 2, 7, 24), normal(t, 2, 6, 4, 5)
    qkv = {"q": normal(t, 2, 7, 32), "k": normal(t, 2, 11, 32), "v": normal(t, 2, 11, 32)}
    causal = {n: normal(t, 2, 7, 32) for n in "qkv"}
    fixed = {n: normal(t, 2, 9, 32) for n in "qkv"}
    ids = np.array([[49406, 3, 49407, 49407, 1], [49407, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    tokens = normal(t, 2, 20, 6)
    to_image = lambda x, tokens: tokens.transpose(0, 2, 1).reshape(x.shape)
    return {
        "linear": ({"x": seq}, lambda x: linear(t, x, True)),
        "linear_no_bias": ({"x": seq}, lambda x: linear(t, x, False)),
        "linear_matrix": ({"x": seq[:, 0]}, lambda x: linear(t, x, True)),
        "linear_tied": ({"ids": np.array([[3, 39, 0]])}, lambda ids: linear(t, weight(t, "weight", 40, 24)[ids.astype(int)], False)),
        "layer_norm": ({"x": normal(t, 2, 7, 48) * t(3) + t(1)},
                       lambda x: normalize(x, -1, 1e-5) * weight(t, "weight", 48) + weight(t, "bias", 48)),
        "group_norm": ({"x": normal(t, 2, 24, 5, 7) * t(3) + t(1)}, lambda x: group_norm(t, x, 8, 1e-5)),
        "group_norm_flat": ({"x": normal(t, 2, 24, 9)}, lambda x: group_norm(t, x, 4, 1e-6)),
        "gelu": ({"x": seq * t(3)}, gelu),
        "quick_gelu": ({"x": seq * t(3)}, lambda x: x * sigmoid(1.702 * x)),
        "silu": ({"x": seq * t(3)}, lambda x: x * sigmoid(x)),
        "geglu": ({"x": normal(t, 2, 7, 48)}, lambda x: x[..., :24] * gelu(x[..., 24:])),
        "attention": (qkv, attention),
        "attention_upcast": (qkv, attention),
        "attention_causal": (causal, causal_twice),
        "attention_causal_fixed": (fixed, causal_twice),
        "upsample_nearest": ({"x": normal(t, 2, 3, 4, 5)}, lambda x: x.repeat(2, 2).repeat(2, 3)),
        "pad_bottom_right": ({"x": normal(t, 2, 3, 4, 5)}, lambda x: np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))),
        "image_to_tokens": ({"x": image}, lambda x: x.reshape(2, 6, 20).transpose(0, 2, 1)),
        "tokens_to_image": ({"x": image, "tokens": tokens}, lambda x, tokens: 2 * to_image(x, tokens)),
        "tokens_to_image_fixed": ({"x": image, "tokens": tokens}, to_image),
        "pool_i32": ({"x": normal(t, 3, 5, 6), "ids": ids.astype(np.int32)}, pool),
        "pool_i64": ({"x": normal(t, 3, 5, 6), "ids": ids.astype(np.int64)}, pool),
        "timestep_scalar": ({"t": np.array(981, np.float32)}, lambda t_: timestep(t_, 320, True, 0, 10000)),
        "timestep_list": ({"t": np.array([0, 1, 999])}, lambda t_: timestep(t_, 256, False, 1, 10000)),
        "timestep_odd": ({"t": np.array([0.5, 77], t)}, lambda t_: timestep(t_, 33, True, 0, 1000)),
    }


def run(folder, t):
    bad = 0
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    made = {p.name for p in folder.iterdir()}
    expected = cases(t)
    if made != set(expected):
        print(f"{folder}: cases differ: {sorted(made ^ set(expected))}")
        return 1
    for name, (inputs, formula) in expected.items():
        path = folder / name / "model.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        y = session.run(None, inputs)[0].astype(np.float64)
        want = formula(**{("t_" if k == "t" else k): np.asarray(v).astype(np.float64) for k, v in inputs.items()})
        error = np.abs(y - want).max() / np.abs(want).max() if y.shape == want.shape else math.inf
        if not error <= (2e-6 if t is np.float32 or name.startswith("timestep") else 4e-3):
            print(f"{path}: shape {y.shape}, expected {want.shape}; error {error:.3g} of the largest value")
            bad += 1
    return bad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--opsets", default="14,15,16,17,18,19,20,21")
    args = parser.parse_args()
    bad = count = 0
    shutil.rmtree(args.work, ignore_errors=True)
    for opset in args.opsets.split(","):
        for dtype, t in (("f32", np.float32), ("f16", np.float16)):
            for keep in ([], ["keep"]):
                folder = args.work / f"{opset}-{dtype}{''.join(keep)}"
                subprocess.run([args.binary, str(folder), opset, dtype, *keep], check=True)
                bad += run(folder, t)
                count += 1
    print(f"{count} sets of lowered operators, {bad} wrong results")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
