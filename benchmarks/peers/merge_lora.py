#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""merge-lora against networks/merge_lora.py of kohya-ss/sd-scripts: a LoRA into a full-size SD1.5 checkpoint, alternating, each with a sync.

usage: merge_lora.py --bin DIR --work DIR [--sd-scripts FOLDER --python PYTHON] [--ranks 8 32 128] [--conv] [--dtypes f32 f16] [--pairs 5] [--json FILE]

--sd-scripts is a checkout of https://github.com/kohya-ss/sd-scripts (Apache-2.0), --python an interpreter with torch, diffusers, transformers,
accelerate and safetensors; kohya_shim.py beside this file runs the script with today's versions of them. Without both, the rows of the
peer are left out, and the report says so. make-tiny-sd writes the checkpoint (random, 4.27 GB in f32) into the work folder, once; the adapters
(192 modules of the UNet and 72 of the text encoder in f16, with --conv another 86) are written by this script.

Both merge with strength 0.8 in f32 and save in the type of the checkpoint, on the same cores. Before anything is timed the two results are
compared, tensor by tensor. The bars: at least 5 times as fast as the peer, at most 300 MB of anonymous memory. The exit status says whether they hold.
"""
import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys

from measure import table, timed

BAR_SPEED, BAR_MEMORY = 5.0, 300e6
HERE = os.path.dirname(os.path.abspath(__file__))

COMPARE = """
import sys
from safetensors import safe_open
a, b, base = (safe_open(p, "pt") for p in sys.argv[1:4])
names, changed, worst = set(a.keys()), 0, 0.0
lost = sorted(names - set(b.keys()))
assert not lost, f"the peer lacks {lost[:3]}"
for name in sorted(names):
    x, y, z = a.get_tensor(name), b.get_tensor(name), base.get_tensor(name)
    assert x.dtype == y.dtype and x.shape == y.shape, f"{name}: {x.dtype} {x.shape}, the peer has {y.dtype} {y.shape}"
    if not x.dtype.is_floating_point: continue
    changed += not bool((x == z).all())
    step = 2.0 ** -10 if x.element_size() == 2 else 2.0 ** -20
    far = (x.double() - y.double()).abs() / (y.double().abs() + 0.01)
    worst = max(worst, float(far.max()) / step)
    assert worst <= 1, f"{name} differs from the peer's by {worst} steps"
print(f"{len(names)} tensors, {changed} changed, largest difference {worst:.3f} of the tolerance")
assert changed == int(sys.argv[4]), "the number of changed weights is wrong"
"""


def modules(conv):
    """Name and weight shape of every module that kohya's trainer makes for SD1.5."""
    attention = [(f"down_blocks_{i}_attentions_{j}", c) for i, c in enumerate((320, 640, 1280)) for j in range(2)]
    attention += [("mid_block_attentions_0", 1280)]
    attention += [(f"up_blocks_{i + 1}_attentions_{j}", c) for i, c in enumerate((1280, 640, 320)) for j in range(3)]
    for place, c in attention:
        for name in ("proj_in", "proj_out"):
            yield f"lora_unet_{place}_{name}", (c, c, 1, 1)
        block = f"lora_unet_{place}_transformer_blocks_0_"
        for layer, width in (("attn1", c), ("attn2", 768)):
            for name in ("to_q", "to_k", "to_v", "to_out_0"):
                yield f"{block}{layer}_{name}", (c, width if name in ("to_k", "to_v") else c)
        yield f"{block}ff_net_0_proj", (8 * c, c)
        yield f"{block}ff_net_2", (c, 4 * c)
    for i in range(12):
        layer = f"lora_te_text_model_encoder_layers_{i}_"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}self_attn_{name}", (768, 768)
        yield f"{layer}mlp_fc1", (3072, 768)
        yield f"{layer}mlp_fc2", (768, 3072)
    if conv:
        yield from conv_modules()


def conv_modules():
    """The 86 of a LoCon: resnets and samplers."""
    widths, blocks = (320, 640, 1280, 1280), []
    skips, channels = [320], 320
    for i, c in enumerate(widths):
        for j in range(2):
            blocks.append((f"down_blocks_{i}_resnets_{j}", channels, c))
            channels = c
            skips.append(c)
        if i < 3:
            yield f"lora_unet_down_blocks_{i}_downsamplers_0_conv", (c, c, 3, 3)
            skips.append(c)
    blocks += [("mid_block_resnets_0", 1280, 1280), ("mid_block_resnets_1", 1280, 1280)]
    for i, c in enumerate(reversed(widths)):
        for j in range(3):
            blocks.append((f"up_blocks_{i}_resnets_{j}", channels + skips.pop(), c))
            channels = c
        if i < 3:
            yield f"lora_unet_up_blocks_{i}_upsamplers_0_conv", (c, c, 3, 3)
    for place, given, c in blocks:
        yield f"lora_unet_{place}_conv1", (c, given, 3, 3)
        yield f"lora_unet_{place}_time_emb_proj", (c, 1280)
        yield f"lora_unet_{place}_conv2", (c, c, 3, 3)
        if given != c:
            yield f"lora_unet_{place}_conv_shortcut", (c, given, 1, 1)


def write_adapter(path, rank, conv):
    """A kohya LoRA in f16; its numbers repeat after 65521 values. Returns the number of modules."""
    numbers, header, at, count = random.Random(rank), {}, 0, 0
    for name, shape in modules(conv):
        kernel = list(shape[2:])
        tensors = {"alpha": [], "lora_down.weight": [rank, shape[1]] + kernel, "lora_up.weight": [shape[0], rank] + [1] * len(kernel)}
        for parameter, sizes in tensors.items():
            size = 2
            for n in sizes:
                size *= n
            header[f"{name}.{parameter}"] = dict(dtype="F16", shape=sizes, data_offsets=[at, at + size])
            at += size
        count += 1
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pattern = struct.pack("<65521e", *(numbers.uniform(-0.02, 0.02) for _ in range(65521)))
    payload = bytearray((pattern * (at // len(pattern) + 1))[:at])
    for name, entry in header.items():
        if name.endswith(".alpha"):
            payload[slice(*entry["data_offsets"])] = struct.pack("<e", rank / 2)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + payload)
    return count


def commands_of(options, base, adapter, dtype, out):
    ours = [os.path.join(options.bin, "merge-lora"), base, os.path.join(out, "ours.safetensors"), "--lora", adapter + ":0.8", "--quiet"]
    commands = {"merge-lora": ours}
    if options.sd_scripts and options.python:
        precision = {"f32": "float", "f16": "fp16"}[dtype]
        commands["kohya"] = [options.python, os.path.join(HERE, "kohya_shim.py"), options.sd_scripts, "networks/merge_lora.py", "--sd_model", base,
                             "--save_to", os.path.join(out, "kohya.safetensors"), "--models", adapter, "--ratios", "0.8",
                             "--precision", "float", "--save_precision", precision]
    return commands


def measured(options, base, adapter, modules_count, title, dtype):
    """One base with one adapter: compared, then timed. Returns the table's rows and the bars that do not hold."""
    out = os.path.join(options.work, "out")
    commands = commands_of(options, base, adapter, dtype, out)
    runs = {mode: [] for mode in commands}
    for pair in range(options.pairs + 1):
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        for mode in list(commands) if pair % 2 == 0 else reversed(list(commands)):
            result = timed(commands[mode])
            if pair > 0:  # the first pair fills the page cache and is compared
                runs[mode].append(result)
                shutil.rmtree(out)
                os.makedirs(out)
        if pair == 0 and "kohya" in commands:
            files = [os.path.join(out, name) for name in ("ours.safetensors", "kohya.safetensors")]
            subprocess.run([options.python, "-c", COMPARE, *files, base, str(modules_count)], check=True)
    shutil.rmtree(out, ignore_errors=True)
    print(f"\n{title}")
    rows, bad = table(runs, "merge-lora", 14), []
    if rows["merge-lora"]["peak_anonymous"] > BAR_MEMORY:
        bad.append(f"{title}: {rows['merge-lora']['peak_anonymous'] / 1e6:.0f} MB of anonymous memory, the bar is {BAR_MEMORY / 1e6:.0f}")
    if "kohya" in rows and rows["kohya"]["ratio"] < BAR_SPEED:
        bad.append(f"{title}: {rows['kohya']['ratio']:.2f} times as fast as the peer, the bar is {BAR_SPEED}")
    return rows, bad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--sd-scripts")
    parser.add_argument("--python")
    parser.add_argument("--ranks", nargs="*", type=int, default=[8, 32, 128])
    parser.add_argument("--conv", action="store_true")
    parser.add_argument("--dtypes", nargs="*", default=["f32"], choices=["f32", "f16"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    if not (options.sd_scripts and options.python):
        print("left out: kohya's merge_lora.py (needs --sd-scripts and --python)")
    report, bad = {}, []
    for dtype in options.dtypes:
        base = os.path.join(options.work, f"{dtype}.safetensors")
        if not os.path.exists(base):
            subprocess.run([os.path.join(options.bin, "make-tiny-sd"), base, "--family", "sd1", "--size", "full", "--form", "safetensors",
                            "--dtype", dtype], check=True)
        for rank in options.ranks:
            adapter = os.path.join(options.work, f"rank{rank}{'_conv' if options.conv else ''}.safetensors")
            count = write_adapter(adapter, rank, options.conv)
            title = f"rank {rank}, {count} modules, into {os.path.getsize(base) / 1e9:.2f} GB of {dtype}, {options.pairs} alternating pairs"
            report[title], wrong = measured(options, base, adapter, count, title, dtype)
            bad += wrong
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    print("\n" + ("; ".join(bad) if bad else "the bars hold"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
