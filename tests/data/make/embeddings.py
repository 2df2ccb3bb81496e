# SPDX-License-Identifier: MIT
"""Make tests/data/embeddings: Textual Inversion files for the tiny pipelines, as the tools save them.

    python tests/data/make/embeddings.py [--out tests/data/embeddings]

Needs torch and safetensors (tests/clients/requirements-diffusers.txt). Element j of vector i is ((64·i + 5·j + seed) mod 33 − 16) / 32: exact in
every floating type. Widths are those of the tiny encoders: 64 (SD1, SDXL's first), 128 (SDXL's second).
"""
import argparse
import collections
import os

import torch
from safetensors.torch import save_file


def vectors(count, width, seed=0, dtype=torch.float32):
    i = torch.arange(count).reshape(-1, 1)
    j = torch.arange(width).reshape(1, -1)
    return (((64 * i + 5 * j + seed) % 33 - 16).to(torch.float64) / 32).to(dtype)


def a1111(vectors_of_star):
    """The dict that the web UI saves after training."""
    return {"string_to_token": {"*": 265}, "string_to_param": vectors_of_star, "name": "cat-in-training", "step": 499,
            "sd_checkpoint": "81761151", "sd_checkpoint_name": "v1-5-pruned-emaonly"}


def parameter_dict(values):
    """The web UI keeps trained vectors in a ParameterDict, and pickles it whole."""
    out = torch.nn.ParameterDict()
    out["*"] = torch.nn.Parameter(values)
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "embeddings"))
    out = parser.parse_args().out
    os.makedirs(os.path.join(out, "pair"), exist_ok=True)

    def torch_file(name, value, **how):
        torch.save(value, os.path.join(out, name), **how)

    def tensors(name, value, metadata=None):
        save_file({key: v.contiguous() for key, v in value.items()}, os.path.join(out, name), metadata=metadata)

    torch_file("a1111.pt", a1111({"*": vectors(2, 64)}))
    torch_file("a1111_legacy.pt", a1111({"*": vectors(2, 64)}), _use_new_zipfile_serialization=False)
    torch_file("a1111_parameter.pt", a1111(parameter_dict(vectors(2, 64))))
    torch_file("a1111_nested.pt", a1111({"_parameters": collections.OrderedDict({"*": torch.nn.Parameter(vectors(2, 64))})}))
    torch_file("kohya.pt", {"emb_params": vectors(3, 64)})
    tensors("kohya.safetensors", {"emb_params": vectors(3, 64)}, {"ss_note": "trained by hand"})
    tensors("sdxl.safetensors", {"clip_l": vectors(2, 64), "clip_g": vectors(2, 128, 7)})
    torch_file("sdxl.pt", {"clip_l": vectors(2, 64), "clip_g": vectors(2, 128, 7)})
    tensors("sdxl_half.safetensors", {"clip_l": vectors(2, 64)})
    tensors("sdxl_uneven.safetensors", {"clip_l": vectors(2, 64), "clip_g": vectors(3, 128, 7)})
    torch_file("learned_embeds.bin", {"<cat>": vectors(1, 64)[0]})
    tensors("concept.safetensors", {"<cat-toy>": vectors(1, 64)[0]})
    tensors("concept_f16.safetensors", {"<cat-toy>": vectors(2, 64, 0, torch.float16)})
    tensors("pair/learned_embeds.safetensors", {"<cat>": vectors(1, 64)})
    tensors("pair/learned_embeds_2.safetensors", {"<cat>": vectors(1, 128, 7)})
    torch_file("style.ti.pt", {"<s1>": vectors(1, 64)[0], "<s2>": vectors(2, 64)[1]})
    lora = {"unet:0:up": vectors(8, 2, 3, torch.float16), "unet:0:down": vectors(2, 8, 5, torch.float16)}
    tensors("cloneofsimo.safetensors", {**lora, "<s1>": vectors(1, 64)[0], "<s2>": vectors(2, 64)[1]},
            {"unet": '["CrossAttention", "GEGLU"]', "unet:0:rank": "2", "<s1>": "<embed>", "<s2>": "<embed>"})
    module = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": vectors(256, 1, 3),
              "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": vectors(1, 64, 5)}
    tensors("bundled.safetensors", {**module, "bundle_emb.cat.string_to_param.*": vectors(2, 64), "bundle_emb.dog.emb_params": vectors(1, 64, 9)})
    tensors("bundled_sdxl.safetensors", {**module, "bundle_emb.cat.clip_l": vectors(2, 64), "bundle_emb.cat.clip_g": vectors(2, 128, 7)})
    torch_file("bare.pt", vectors(2, 64))
    torch_file("batch.pt", vectors(2, 64).reshape(1, 2, 64))
    torch_file("transposed.pt", {"emb_params": vectors(3, 64).t().contiguous().t()})


if __name__ == "__main__":
    main()
