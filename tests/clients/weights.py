#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The libraries that people use load what convert-weights writes, and find every tensor bit for bit.

usage: weights.py CASE --bin DIR --work DIR

CASE is one of the functions below that are marked with @case; `weights.py list` prints them.
"""
import os
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
from cases import DATA, Cases, folder_of  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
case = Cases()


def convert(run, source, output, *arguments):
    run.program("convert-weights", source, output, "--quiet", *arguments)
    return output


def original_names(run, model):
    """The model as a single file with the original names, written by another program than ours."""
    out = run.path(model + "-original.safetensors")
    if not os.path.exists(out):
        subprocess.run([sys.executable, os.path.join(DATA, "make", "ldm.py"), folder_of(model), out], check=True, stdout=subprocess.DEVNULL)
    return out


def weights_of(model, part="unet"):
    name = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
    return os.path.join(folder_of(model), part, name + ".safetensors")


def same(found, expected, what):
    import torch
    if set(found) != set(expected):
        raise SystemExit(f"{what}: other names, first {sorted(set(found) ^ set(expected))[0]}")
    for name, tensor in expected.items():
        other = found[name]
        if other.dtype != tensor.dtype or other.shape != tensor.shape:
            raise SystemExit(f"{what}: {name} is {other.dtype} {tuple(other.shape)}, expected {tensor.dtype} {tuple(tensor.shape)}")
        if not torch.equal(other.contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8)):
            raise SystemExit(f"{what}: {name} differs")
    return f"{len(expected)} tensors are equal"


@case
def safetensors_load_file(run):
    from safetensors.torch import load_file
    source = weights_of("sd1")
    said = same(load_file(convert(run, source, run.path("out.safetensors"), "--to", "safetensors")), load_file(source), "safetensors")
    half = load_file(convert(run, source, run.path("half.safetensors"), "--to", "safetensors", "--dtype", "bf16"))
    same(half, {k: v.bfloat16() for k, v in load_file(source).items()}, "bf16")
    return said + ", also as bf16"


@case
def torch_load_weights_only(run):
    import torch
    from safetensors.torch import load_file
    source = weights_of("sdxl")
    out = convert(run, source, run.path("out.pt"), "--to", "torch")
    expected = load_file(source)
    same(torch.load(out, weights_only=True), expected, "torch.load")
    same(torch.load(out, weights_only=True, mmap=True), expected, "torch.load with mmap")
    back = convert(run, out, run.path("back.safetensors"), "--to", "safetensors")
    return same(load_file(back), expected, "there and back")


@case
def torch_legacy_and_pickle(run):
    import torch
    from safetensors.torch import load_file
    tensors = load_file(weights_of("sd1", "vae"))
    legacy = run.path("legacy.bin")
    torch.save(tensors, legacy, _use_new_zipfile_serialization=False)
    return same(load_file(convert(run, legacy, run.path("out.safetensors"), "--to", "safetensors")), tensors, "a file of torch before 1.6")


@case
def numpy_load(run):
    import numpy
    import torch
    from safetensors.torch import load_file
    source = weights_of("sd1", "vae")
    with numpy.load(convert(run, source, run.path("out.npz"), "--to", "npz"), allow_pickle=False) as out:
        found = {name: torch.from_numpy(out[name]) for name in out.files}
    return same(found, load_file(source), "npz")


@case
def transformers_shards(run):
    import json
    import torch
    from transformers import CLIPTextModel
    folder = os.path.join(folder_of("sd1"), "text_encoder")
    out = convert(run, folder, run.path("shards"), "--to", "safetensors", "--shard-size", "100kB")
    with open(os.path.join(out, "model.safetensors.index.json"), encoding="utf-8") as file:
        shards = len(set(json.load(file)["weight_map"].values()))
    shutil.copy(os.path.join(folder, "config.json"), out)
    same(CLIPTextModel.from_pretrained(out, torch_dtype=torch.float32).state_dict(),
         CLIPTextModel.from_pretrained(folder, torch_dtype=torch.float32).state_dict(), "transformers")
    return f"{shards} shards load"


def image_of(pipe, model):
    import numpy
    from pipelines import arguments
    pipe.set_progress_bar_config(disable=True)
    return numpy.asarray(pipe(**arguments(model)).images[0], numpy.float32)


def same_image(found, expected, model):
    """Two pipelines that hold the same bits make the same image."""
    import numpy
    first, second = image_of(found, model), image_of(expected, model)
    worst = float(numpy.abs(first - second).max())
    if worst != 0 or not second.std() > 0.05:
        raise SystemExit(f"{model}: the images differ by {worst * 255:.4f}/255 (deviation {second.std():.3f})")
    return f"the image is the same (deviation {second.std():.2f})"


def class_of(model):
    import diffusers
    from pipelines import CLASSES
    return getattr(diffusers, CLASSES[model])


def folder_and_single_file(run, model, source, *arguments):
    """A folder that convert-weights made of a single file, against from_single_file of the same model."""
    import torch
    tokenizers = run.path("tokenizers")
    for name in ("tokenizer", "tokenizer_2"):
        if os.path.exists(os.path.join(folder_of(model), name)):
            shutil.copytree(os.path.join(folder_of(model), name), os.path.join(tokenizers, name))
    out = convert(run, source, run.path("folder"), "--to", "diffusers", "--tokenizer", tokenizers, *arguments)
    original = class_of(model).from_single_file(original_names(run, model), config=folder_of(model), local_files_only=True, torch_dtype=torch.float32)
    return same_image(class_of(model).from_pretrained(out, torch_dtype=torch.float32), original, model)


@case
def diffusers_from_checkpoint_sd1(run):
    return folder_and_single_file(run, "sd1", os.path.join(DATA, "sd1", "sd1.ckpt"))


@case
def diffusers_from_checkpoint_sd2(run):
    return folder_and_single_file(run, "sd2_v", original_names(run, "sd2_v"), "--shard-size", "1MB")


@case
def diffusers_from_checkpoint_sdxl(run):
    return folder_and_single_file(run, "sdxl", original_names(run, "sdxl"))


@case
def checkpoint_from_single_file(run):
    import torch
    out = convert(run, folder_of("sdxl"), run.path("model.safetensors"), "--to", "checkpoint")
    pipe = class_of("sdxl").from_single_file(out, config=folder_of("sdxl"), local_files_only=True, torch_dtype=torch.float32)
    return same_image(pipe, class_of("sdxl").from_pretrained(folder_of("sdxl"), torch_dtype=torch.float32), "sdxl")


@case
def checkpoint_as_torch(run):
    import torch
    from safetensors.torch import load_file
    out = convert(run, folder_of("sd1"), run.path("model.ckpt"), "--to", "checkpoint")
    expected = load_file(original_names(run, "sd1"))
    found = torch.load(out, weights_only=True)["state_dict"]
    leftovers = {name for name in expected if name not in found}
    unnamed = [n for n in leftovers if not n.endswith("position_ids") and "." in n]
    if unnamed:
        raise SystemExit(f"the checkpoint lacks {unnamed[0]}")
    return same(found, {name: tensor for name, tensor in expected.items() if name in found}, "checkpoint")


if __name__ == "__main__":
    sys.exit(case.main())
