# SPDX-License-Identifier: MIT
"""Other shapes in which the same model is published, made from a diffusers folder with numpy alone.

    python tests/data/make/variants.py fp16-sharded FOLDER OUT   # variant names, three shards a component, index files; text encoder plain
    python tests/data/make/variants.py old-vae FOLDER OUT        # VAE attention as diffusers < 0.17 named it
    python tests/data/make/variants.py f32 FOLDER OUT            # every weight stored as F32
    python tests/data/make/variants.py split FOLDER OUT          # LDM file without the VAE (OUT/model.safetensors) and the VAE alone (OUT/vae.safetensors)
"""
import json
import os
import shutil
import sys

import numpy as np

import ldm


def weight_files(folder):
    for part in sorted(os.listdir(folder)):
        for name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
            path = os.path.join(folder, part, name)
            if os.path.exists(path):
                yield part, path, name


def fp16_sharded(folder):
    for part, path, name in list(weight_files(folder)):
        if part == "text_encoder":
            continue  # a variant may exist for some components only
        tensors = ldm.read_safetensors(path)
        keys, stem = sorted(tensors), name[:-len(".safetensors")]
        total, weight_map = 0, {}
        for shard in range(3):
            file = f"{stem}.fp16-{shard + 1:05}-of-00003.safetensors"
            chosen = keys[shard::3]
            ldm.write_safetensors(os.path.join(folder, part, file), {k: tensors[k] for k in chosen}, "F16", {"format": "pt"})
            weight_map.update(dict.fromkeys(chosen, file))
            total += sum(tensors[k].nbytes for k in chosen)
        with open(os.path.join(folder, part, name + ".index.fp16.json"), "w", encoding="utf-8") as out:
            json.dump(dict(metadata=dict(total_size=total), weight_map=weight_map), out, indent=2)
        os.remove(path)


def old_vae(folder):
    path = os.path.join(folder, "vae", "diffusion_pytorch_model.safetensors")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    out = {}
    for key, value in ldm.read_safetensors(path).items():
        for new, old in names.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        out[key] = value
    ldm.write_safetensors(path, out, None, {"format": "pt"})


def f32(folder):
    for _, path, _ in list(weight_files(folder)):
        ldm.write_safetensors(path, ldm.read_safetensors(path), "F32", {"format": "pt"})


def split(folder, out):
    tensors = ldm.convert(folder)
    os.makedirs(out, exist_ok=True)
    prefix = "first_stage_model."
    ldm.write_safetensors(os.path.join(out, "model.safetensors"), {k: v for k, v in tensors.items() if not k.startswith(prefix)})
    alone = {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
    alone["loss.logvar"] = np.zeros((), np.float32)
    ldm.write_safetensors(os.path.join(out, "vae.safetensors"), alone)


def main():
    kind, folder, out = sys.argv[1:4]
    shutil.rmtree(out, ignore_errors=True)
    if kind == "split":
        return split(folder, out)
    shutil.copytree(folder, out)
    {"fp16-sharded": fp16_sharded, "old-vae": old_vae, "f32": f32}[kind](out)


if __name__ == "__main__":
    main()
