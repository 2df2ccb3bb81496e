# SPDX-License-Identifier: MIT
"""Adapters for the tiny model of ../sd1 that PEFT, diffusers and torch wrote, and what PEFT makes of the weights: ../adapters.

    python tests/data/make/adapters.py

`expected.safetensors` beside an adapter: the first rows of every merged weight (all of a bias), in float32, under component and name of the parameter.
"""
import json
import os
import shutil

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, "..", "sd1", "diffusers")
OUT = os.path.join(HERE, "..", "adapters")
ROWS = 3
MID = "mid_block.attentions.0.transformer_blocks.0."


def unet():
    return UNet2DConditionModel.from_pretrained(SOURCE, subfolder="unet", torch_dtype=torch.float32)


def text_encoder():
    return CLIPTextModel.from_pretrained(SOURCE, subfolder="text_encoder", torch_dtype=torch.float32)


def train(model, seed):
    """Gives every parameter of the adapter another value, as training would."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" not in name and "modules_to_save" not in name and not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=random) * 0.125
        value = parameter.detach() * (1 + 0.25 * noise) if "magnitude" in name or "modules_to_save" in name else parameter.detach() * 0 + noise
        parameter.data = value.to(torch.bfloat16).to(torch.float32)


def changed(before, after, component):
    out = {}
    for name, value in after.items():
        if name in before and not torch.equal(before[name], value):
            out[f"{component}.{name}"] = (value if value.dim() == 1 else value[:ROWS]).contiguous().clone()
    return out


def peft_folder(name, model, component, config, seed, safe=True):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrapped = get_peft_model(model, config)
    train(wrapped, seed)
    folder = os.path.join(OUT, name)
    wrapped.save_pretrained(folder, safe_serialization=safe, save_embedding_layers=False)
    readme = os.path.join(folder, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    expected = changed(before, wrapped.merge_and_unload().state_dict(), component)
    save_file(expected, os.path.join(folder, "expected.safetensors"))
    print(name, len(expected), "weights")


def diffusers_file():
    """Today's style of diffusers, with the scale in the header of the file."""
    pipeline = StableDiffusionPipeline.from_pretrained(SOURCE, torch_dtype=torch.float32, safety_checker=None)
    before = {part: {k: v.clone() for k, v in getattr(pipeline, part).state_dict().items()} for part in ("unet", "text_encoder")}
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=5, target_modules=["attn2.to_k", "attn2.to_v"], alpha_pattern={"attn2.to_v": 3}))
    pipeline.text_encoder.add_adapter(LoraConfig(r=3, lora_alpha=2, use_rslora=True, target_modules=["q_proj"]))
    train(pipeline.unet, 3)
    train(pipeline.text_encoder, 4)
    folder = os.path.join(OUT, "diffusers")
    configs = {part: getattr(pipeline, part).peft_config["default"].to_dict() for part in before}
    for config in configs.values():  # nothing of this machine belongs into the file
        config["base_model_name_or_path"] = None
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(pipeline.unet), text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder),
        unet_lora_adapter_metadata=configs["unet"], text_encoder_lora_adapter_metadata=configs["text_encoder"])
    expected = {}
    pipeline.fuse_lora(components=["unet", "text_encoder"])
    for part, old in before.items():
        now = {k.replace(".base_layer", ""): v for k, v in getattr(pipeline, part).state_dict().items()}
        expected |= changed(old, now, part)
    save_file(expected, os.path.join(folder, "expected.safetensors"))
    print("diffusers", len(expected), "weights")


def unet_shapes(between):
    """out and in of every layer in the order of cloneofsimo's numbers, for the UNet of Stable Diffusion 1."""
    for channels, attentions in [(320, 2), (640, 2), (1280, 2), (1280, 3), (640, 3), (320, 3), (1280, 1)]:
        for _ in range(attentions):
            first = [(channels, channels)] * 4
            second = [(channels, channels), (channels, 768), (channels, 768), (channels, channels)]
            wide = [(8 * channels, channels)]
            yield from first + (wide + second if between else second + wide)


def cloneofsimo():
    """Lists of pairs as torch.save wrote them. All tensors are views of one small storage, so that the file is small."""
    folder = os.path.join(OUT, "cloneofsimo")
    os.makedirs(folder)
    storage = (torch.arange(1, 65, dtype=torch.float32) / 64).to(torch.float16)

    def pairs(shapes):
        out = []
        for i, (rows, cols) in enumerate(shapes):  # up is (i % 61 + 1) / 64 everywhere, down 1
            out += [storage.as_strided((rows, 1), (0, 1), i % 61), storage.as_strided((1, cols), (1, 0), 63)]
        return out

    torch.save(pairs(unet_shapes(True)), os.path.join(folder, "cat.pt"))
    torch.save(pairs([(768, 768)] * 48), os.path.join(folder, "cat.text_encoder.pt"))
    torch.save({"<cat>": storage.as_strided((768,), (0,), 5), "<hat>": storage.as_strided((768,), (0,), 7)}, os.path.join(folder, "cat.ti.pt"))
    print("cloneofsimo 144 + 48 pairs")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    peft_folder("peft_patterns", unet(), "unet", LoraConfig(
        r=2, lora_alpha=6, use_rslora=True, target_modules=[MID + "attn1.to_q", MID + "attn1.to_out.0", "mid_block.resnets.0.conv1"],
        rank_pattern={"conv1": 3}, alpha_pattern={"mid_block.resnets.*.conv1": 5, "to_q": 4}, modules_to_save=["conv_out"]), 1)
    peft_folder("peft_dora", unet(), "unet", LoraConfig(
        r=2, lora_alpha=3, use_dora=True, target_modules=[MID + "attn2.to_k", "mid_block.resnets.1.conv2"]), 2, safe=False)
    peft_folder("peft_embedding", text_encoder(), "text_encoder", LoraConfig(
        r=2, lora_alpha=4, target_modules=["token_embedding", "layers.0.self_attn.q_proj"]), 5)
    peft_folder("peft_lora_bias", text_encoder(), "text_encoder", LoraConfig(
        r=2, lora_alpha=4, lora_bias=True, target_modules=["layers.0.self_attn.k_proj"]), 7)
    peft_folder("peft_bias", text_encoder(), "text_encoder", LoraConfig(
        r=1, lora_alpha=1, bias="lora_only", target_modules=["layers.1.self_attn.v_proj"]), 6)
    diffusers_file()
    cloneofsimo()
    for folder, _, files in os.walk(OUT):
        for name in files:
            path = os.path.join(folder, name)
            if name == "adapter_config.json":  # as above
                config = json.load(open(path, encoding="utf-8"))
                config["base_model_name_or_path"] = None
                with open(path, "w", encoding="utf-8") as out:
                    json.dump(config, out, indent=2, sort_keys=True)
                    out.write("\n")


if __name__ == "__main__":
    main()
