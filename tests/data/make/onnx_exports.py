#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes tests/data/onnx: a very small pipeline, and what other exporters make of it.

usage: onnx_exports.py [FOLDER]      (needs torch, diffusers, transformers, optimum-onnx: tests/clients/requirements-optimum.txt)

  pipeline/     the model: diffusers folder, f32, every parameter random
  optimum/      optimum-onnx's export of its UNet and text encoder
  script/       as diffusers' convert_stable_diffusion_checkpoint_to_onnx.py: opset 14, the UNet's weights in weights.pb
  optimum_xl/   optimum-onnx's export of a text encoder with projection, freshly initialised: equal parameters are stored once
  encoder_xl/   that text encoder
  lora.safetensors   a LoRA for pipeline/, every module of both networks
"""
import os
import shutil
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..")
OUT = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(DATA, "onnx"))
WIDTH = 16


def randomized(model, seed):
    """Every parameter gets values of its own: norms around 1, the others small."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.1 if p.ndim < 2 else 0.5 / p[0].numel() ** 0.5
            p.copy_(torch.randn(p.shape, generator=draw) * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.eval()


def text_config(**more):
    return CLIPTextConfig(vocab_size=300, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                          max_position_embeddings=77, eos_token_id=2, bos_token_id=298, pad_token_id=299, **more)


def unet(**more):
    return UNet2DConditionModel(sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
                                cross_attention_dim=WIDTH, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
                                **more)


def vae():
    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1, latent_channels=4, sample_size=8)


def tokenizer():
    return CLIPTokenizer.from_pretrained(os.path.join(DATA, "sd1", "diffusers", "tokenizer"))


def save_small(pipe, folder):
    """The pipeline without what no test reads."""
    pipe.save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):
        path = os.path.join(folder, name, "tokenizer.json")
        if os.path.exists(path):
            os.remove(path)


def optimum(source, folder, task, keep):
    from optimum.exporters.onnx import main_export
    main_export(source, output=folder, task=task, do_validation=False)
    for name in os.listdir(folder):
        if name not in keep:
            path = os.path.join(folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def script(pipe, folder):
    """The calls of diffusers' script."""
    def export(model, path, args, names, outputs, axes):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        torch.onnx.export(model, args, path, input_names=names, output_names=outputs, dynamic_axes=axes, do_constant_folding=True,
                          opset_version=14, dynamo=False)
    ids = pipe.tokenizer("A sample prompt", padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    export(pipe.text_encoder, os.path.join(folder, "text_encoder", "model.onnx"), (ids.to(torch.int32),), ["input_ids"],
           ["last_hidden_state", "pooler_output"], {"input_ids": {0: "batch", 1: "sequence"}})
    path = os.path.join(folder, "unet", "model.onnx")
    export(pipe.unet, path, (torch.randn(2, 4, 8, 8), torch.randn(2), torch.randn(2, 77, WIDTH), False),
           ["sample", "timestep", "encoder_hidden_states", "return_dict"], ["out_sample"],
           {"sample": {0: "batch", 1: "channels", 2: "height", 3: "width"}, "timestep": {0: "batch"},
            "encoder_hidden_states": {0: "batch", 1: "sequence"}})
    whole = onnx.load(path)
    shutil.rmtree(os.path.dirname(path))
    os.makedirs(os.path.dirname(path))
    onnx.save_model(whole, path, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.pb", convert_attribute=False)


def lora(pipe, path):
    """Rank 2, kohya's names: every linear and convolution layer of both networks."""
    draw, out = np.random.RandomState(5), {}
    for model, prefix in ((pipe.unet, "lora_unet_"), (pipe.text_encoder, "lora_te_")):
        for name, p in model.named_parameters():
            if not name.endswith(".weight") or p.ndim < 2 or name.endswith("_embedding.weight"):
                continue
            if prefix == "lora_te_" and not name.startswith("text_model."):
                name = "text_model." + name
            module = prefix + name[:-len(".weight")].replace(".", "_")
            kernel = p.shape[2:]
            out[module + ".lora_down.weight"] = (draw.standard_normal((2, p.shape[1], *kernel)) * 0.2).astype(np.float32)
            out[module + ".lora_up.weight"] = (draw.standard_normal((p.shape[0], 2, *[1] * len(kernel))) * 0.2).astype(np.float32)
            out[module + ".alpha"] = np.array(1, np.float32)
    save_file(out, path)


def main():
    torch.manual_seed(0)
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    pipe = StableDiffusionPipeline(vae=randomized(vae(), 1), text_encoder=randomized(CLIPTextModel(text_config()), 2), tokenizer=tokenizer(),
                                   unet=randomized(unet(), 3), scheduler=PNDMScheduler(), safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)
    save_small(pipe, os.path.join(OUT, "pipeline"))
    lora(pipe, os.path.join(OUT, "lora.safetensors"))
    optimum(os.path.join(OUT, "pipeline"), os.path.join(OUT, "optimum"), "stable-diffusion", {"unet", "text_encoder", "model_index.json", "tokenizer"})
    script(pipe, os.path.join(OUT, "script"))
    with tempfile.TemporaryDirectory() as temporary:
        fresh = CLIPTextModelWithProjection(text_config(projection_dim=WIDTH)).eval()
        xl = StableDiffusionXLPipeline(vae=vae(), text_encoder=CLIPTextModel(text_config()).eval(), text_encoder_2=fresh, tokenizer=tokenizer(), tokenizer_2=tokenizer(),
                                       unet=unet(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + WIDTH,
                                                 transformer_layers_per_block=1).eval(), scheduler=PNDMScheduler())
        save_small(xl, os.path.join(temporary, "xl"))
        optimum(os.path.join(temporary, "xl"), os.path.join(OUT, "optimum_xl"), "stable-diffusion-xl", {"text_encoder_2", "tokenizer_2"})
        shutil.copytree(os.path.join(temporary, "xl", "text_encoder_2"), os.path.join(OUT, "encoder_xl"))
    for root, _, files in os.walk(OUT):
        for name in files:
            print(f"{os.path.getsize(os.path.join(root, name)):8} {os.path.relpath(os.path.join(root, name), OUT)}")


if __name__ == "__main__":
    main()
