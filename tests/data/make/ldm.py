# SPDX-License-Identifier: MIT
"""Diffusers folder -> LDM checkpoint names, with numpy alone: the independent second opinion on the key maps.

    python tests/data/make/ldm.py FOLDER OUT.safetensors [--dtype F16|BF16|F32] [--style plain|old|bare-unet|no-text]

Writes what the original training code wrote: fused q/k/v and transposed projections for OpenCLIP (and, for SD2, the last
block, the projection and logit_scale that the diffusers folder does not have), VAE attention as 1x1 convolutions,
schedule buffers, position_ids.  `old` leaves out the `text_model.` level as the first SD1 files did.
"""
import argparse
import json
import os
import re
import struct

import numpy as np

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32}


def read_safetensors(path):
    """name -> array; BF16 comes back as float32 (exact)."""
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = file.read()
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        array = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        out[name] = array
    return out


def write_safetensors(path, tensors, dtype=None, metadata=None):
    """Store every floating-point tensor as `dtype`; refuses to change a value (except to BF16's of what is never read)."""
    header, blobs, offset = {}, [], 0
    if metadata:
        header["__metadata__"] = metadata
    for name, array in tensors.items():
        array = np.array(array, order="C")  # unlike ascontiguousarray, keeps a scalar a scalar
        kind = {np.dtype(v): k for k, v in DTYPES.items() if k != "BF16"}[array.dtype]
        if dtype and array.dtype.kind == "f":
            wide, kind = array.astype(np.float32), dtype
            if dtype == "BF16":
                bits = wide.view(np.uint32)
                exact = not (bits & 0xFFFF).any()
                array = (bits >> 16).astype(np.uint16)
            else:
                array = wide.astype(DTYPES[dtype])
                exact = np.array_equal(array.astype(np.float32), wide)
            if not exact and not ignored(name):
                raise ValueError(f"{name} cannot be stored as {dtype} without changing it")
        blob = array.tobytes()
        header[name] = dict(dtype=kind, shape=list(array.shape), data_offsets=[offset, offset + len(blob)])
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for blob in blobs:
            file.write(blob)


def ignored(name):
    return name in schedule_buffers() or name == "model_ema.decay"


def schedule_buffers():
    betas = np.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=np.float64) ** 2
    product = np.cumprod(1 - betas)
    before = np.append(1.0, product[:-1])
    variance = betas * (1 - before) / (1 - product)
    table = dict(
        betas=betas, alphas_cumprod=product, alphas_cumprod_prev=before, sqrt_alphas_cumprod=np.sqrt(product),
        sqrt_one_minus_alphas_cumprod=np.sqrt(1 - product), log_one_minus_alphas_cumprod=np.log(1 - product),
        sqrt_recip_alphas_cumprod=np.sqrt(1 / product), sqrt_recipm1_alphas_cumprod=np.sqrt(1 / product - 1),
        posterior_variance=variance, posterior_log_variance_clipped=np.log(np.maximum(variance, 1e-20)),
        posterior_mean_coef1=betas * np.sqrt(before) / (1 - product),
        posterior_mean_coef2=(1 - before) * np.sqrt(1 - betas) / (1 - product))
    return {k: v.astype(np.float32) for k, v in table.items()}


def rename(key, pairs):
    for pattern, replacement in pairs:
        key, hits = re.subn(pattern, replacement, key)
        if hits:
            return key
    raise KeyError(key)


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def unet_key(key, per_block, up_with_attention):
    step = per_block + 1
    head = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
            "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
            "conv_norm_out": "out.0", "conv_out": "out.2"}
    stem, leaf = key.rsplit(".", 1)
    if stem in head:
        return f"{head[stem]}.{leaf}"
    part = key.split(".")
    if part[0] == "mid_block":
        place = {"resnets0": "middle_block.0", "attentions0": "middle_block.1", "resnets1": "middle_block.2"}[part[1] + part[2]]
        rest, kind = part[3:], part[1]
    else:
        i, kind, j = int(part[1]), part[2], int(part[3])
        rest = part[4:]
        if part[0] == "down_blocks":
            if kind == "downsamplers":
                return f"input_blocks.{step * i + per_block + 1}.0.op.{leaf}"
            place = f"input_blocks.{step * i + j + 1}.{int(kind == 'attentions')}"
        else:
            if kind == "upsamplers":
                return f"output_blocks.{step * i + per_block}.{2 if i in up_with_attention else 1}.conv.{leaf}"
            place = f"output_blocks.{step * i + j}.{int(kind == 'attentions')}"
    if kind == "resnets":
        rest[0] = RESNET[rest[0]]
    return f"{place}.{'.'.join(rest)}"


def unet(folder):
    tensors = read_safetensors(os.path.join(folder, "unet", "diffusion_pytorch_model.safetensors"))
    with open(os.path.join(folder, "unet", "config.json"), encoding="utf-8") as file:
        per_block = json.load(file)["layers_per_block"]
    attention = {int(k.split(".")[1]) for k in tensors if re.match(r"up_blocks\.\d+\.attentions", k)}
    return {"model.diffusion_model." + unet_key(k, per_block, attention): v for k, v in tensors.items()}


def vae(folder):
    tensors = read_safetensors(os.path.join(folder, "vae", "diffusion_pytorch_model.safetensors"))
    last = max(int(k.split(".")[2]) for k in tensors if k.startswith("decoder.up_blocks."))
    out = {}
    for key, value in tensors.items():
        key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        key = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets", r"encoder.down.\1.block", key)
        key = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", key)
        key = re.sub(r"decoder\.up_blocks\.(\d+)\.resnets", lambda m: f"decoder.up.{last - int(m[1])}.block", key)
        key = re.sub(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"decoder.up.{last - int(m[1])}.upsample", key)
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        if "mid_block.attentions.0" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            key = re.sub(r"\.to_([qkv])\.", r".\1.", key).replace("to_out.0", "proj_out")
            if value.ndim == 2:
                value = value[:, :, None, None]
        out["first_stage_model." + key] = value
    return out


def text_tensors(folder, part):
    tensors = read_safetensors(os.path.join(folder, part, "model.safetensors"))
    out = {}
    for key, value in tensors.items():
        if not key.startswith(("text_model.", "text_projection.")):
            key = "text_model." + key
        if not key.endswith("position_ids"):
            out[key] = value
    return out


def clip(folder, part, prefix, old=False):
    tensors = text_tensors(folder, part)
    length = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
    tensors["text_model.embeddings.position_ids"] = np.arange(length, dtype=np.int64)[None]
    return {prefix + (k.replace("text_model.", "") if old else k): v for k, v in tensors.items()}


def open_clip(folder, part, prefix, dropped_block):
    tensors = text_tensors(folder, part)
    out, fused = {}, {}
    for key, value in tensors.items():
        hit = re.match(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", key)
        if hit:
            fused.setdefault((int(hit[1]), hit[3]), {})[hit[2]] = value
        elif key == "text_projection.weight":
            out["text_projection"] = value.T
        elif "layers" in key:
            key = key.replace("text_model.encoder.layers", "transformer.resblocks").replace("self_attn.out_proj", "attn.out_proj")
            key = key.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2").replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
            out[key] = value
        else:
            out[rename(key, [(r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
                             (r"text_model\.embeddings\.token_embedding", "token_embedding"),
                             (r"text_model\.final_layer_norm", "ln_final")])] = value
    for (layer, leaf), parts in fused.items():
        out[f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = np.concatenate([parts[p] for p in "qkv"])
    if dropped_block:  # a block and a projection that the network never uses: values that would show
        layers = 1 + max(layer for layer, _ in fused)
        for key in [k for k in out if f"resblocks.{layers - 1}." in k]:
            out[key.replace(f"resblocks.{layers - 1}.", f"resblocks.{layers}.")] = -out[key] * 2
        width = out["positional_embedding"].shape[1]
        out["text_projection"] = (np.arange(width * width).reshape(width, width) % 7 - 3).astype(np.float16)
    out["logit_scale"] = np.array(4.5, np.float16)
    return {prefix + k: v for k, v in out.items()}


def ema(tensors):
    """Flat names, other values (every weight with the opposite sign: a file that used them would be far off)."""
    out = {"model_ema.decay": np.array(0.9999, np.float32), "model_ema.num_updates": np.array(470000, np.int32)}
    for key, value in tensors.items():
        if key.startswith("model.diffusion_model."):
            out["model_ema." + key[len("model."):].replace(".", "")] = -value
    return out


def convert(folder, style="plain"):
    with open(os.path.join(folder, "model_index.json"), encoding="utf-8") as file:
        index = json.load(file)
    out = unet(folder)
    if style == "bare-unet":
        return {k[len("model.diffusion_model."):]: v for k, v in out.items()}
    out.update(schedule_buffers())
    out.update(vae(folder))
    if style == "no-text":
        return out
    present = [p for p in ("text_encoder", "text_encoder_2") if (index.get(p) or [None])[0]]
    with open(os.path.join(folder, present[0], "config.json"), encoding="utf-8") as file:
        act = json.load(file)["hidden_act"]
    if present == ["text_encoder", "text_encoder_2"]:
        out.update(clip(folder, "text_encoder", "conditioner.embedders.0.transformer."))
        out.update(open_clip(folder, "text_encoder_2", "conditioner.embedders.1.model.", False))
    elif present == ["text_encoder_2"]:
        out.update(open_clip(folder, "text_encoder_2", "conditioner.embedders.0.model.", False))
    elif act == "gelu":
        out.update(open_clip(folder, "text_encoder", "cond_stage_model.model.", True))
    else:
        out.update(clip(folder, "text_encoder", "cond_stage_model.transformer.", style == "old"))
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--dtype", choices=["F16", "BF16", "F32"])
    parser.add_argument("--style", default="plain", choices=["plain", "old", "bare-unet", "no-text"])
    arguments = parser.parse_args()
    write_safetensors(arguments.out, convert(arguments.folder, arguments.style), arguments.dtype, {"format": "pt"})


if __name__ == "__main__":
    main()
