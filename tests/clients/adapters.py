#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""merge-lora against the libraries that make and merge adapters: diffusers' fuse_lora, PEFT's merge and LyCORIS' merge_to, on whole small models.

usage: adapters.py CASE --bin DIR --work DIR      # a case, or the beginning of the names of several: adapters.py lycoris …
       adapters.py make MODEL FOLDER       # lora.safetensors and embedding.safetensors for the images of pipelines.py

`adapters.py list` prints the groups, `adapters.py cases` every case. Every adapter is saved by its own library and merged twice: by the library into the model in memory, by
merge-lora into the model's folder. Every weight of the pipeline is compared, those that the adapter must not touch included; every module
of the adapter must have been applied.
"""
import json
import os
import sys

sys.dont_write_bytecode = True
from cases import Cases, expect, folder_of  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
case = Cases(grouped=True)
MODELS = {"sd1": "StableDiffusionPipeline", "sd2_v": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
EPS = 2.0 ** -24  # half a unit in the last place of f32, relative
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LINEAR = ATTENTION + ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
CONVOLUTION = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def merge(run, base, adapter, *arguments, strength):
    """merge-lora into f32; the folder, and how many modules were applied: all of them."""
    out = run.path("merged")
    account = json.loads(run.program("merge-lora", base, out, "--lora", f"{adapter}:{strength}", "--dtype", "f32", "--force", "--json", "--strict", *arguments))
    for one in account["adapters"]:
        expect(one["applied"] and not one["not_found"] and not one["ignored"],
               f"merge-lora applied {one['applied']}, did not find {one['not_found']}, ignored {one['ignored']} modules")
    return out, sum(one["applied"] for one in account["adapters"])


def pipeline(model, folder=None):
    import diffusers
    import torch
    return getattr(diffusers, MODELS[model]).from_pretrained(folder or folder_of(model), torch_dtype=torch.float32)


PARTS = ("unet", "text_encoder", "text_encoder_2")


def weights_of(pipe):
    """Every parameter by component and plain name, wrappers of PEFT removed."""
    out = {}
    for part in (*PARTS, "vae"):
        module = getattr(pipe, part, None)
        if module is None:
            continue
        for name, tensor in module.state_dict().items():
            if ".lora_" in name or "position_ids" in name:
                continue
            out[part + "." + name.replace(".base_layer.", ".").removeprefix("base_model.model.")] = tensor.detach().clone().float()
    return out


def compare(found, expected, before, allowed, count):
    """`allowed(name, before, after)`: the largest difference of an element, as a tensor or a number. What was not changed must be the same bits."""
    import torch
    if set(found) != set(expected):
        raise SystemExit(f"other weights: {sorted(set(found) ^ set(expected))[0]}")
    changed, worst = 0, 0.0
    for name, tensor in expected.items():
        if torch.equal(tensor, before[name]):
            if not torch.equal(found[name], before[name]):
                raise SystemExit(f"{name} was changed, the library leaves it")
            continue
        changed += 1
        difference = (found[name] - tensor).abs()
        share = float((difference / allowed(name, before[name], tensor)).max())
        worst = max(worst, share)
        if not share <= 1:
            raise SystemExit(f"{name}: differs by {float(difference.max()):.3g}, {share:.1f} times what rounding explains")
        if float((tensor - before[name]).abs().max()) < 1e-4:
            raise SystemExit(f"{name}: the change is too small to tell anything")
    if not changed:
        raise SystemExit("the library changed nothing")
    return f"{count} modules, {changed} weights, worst {worst:.2f} of the rounding allowed"


def of_product(rank):
    """What a program that adds a product of this rank in f32 errs by: (rank + 8) roundings of the magnitudes involved."""
    def allowed(_name, before, after):
        return (rank + 8) * EPS * (before.abs() + (after - before).abs() + float((after - before).abs().mean()) * rank)
    return allowed


def of_tool(factor):
    """The tool's own rounding: relative to the largest magnitudes of the layer."""
    def allowed(_name, before, after):
        return factor * EPS * float(before.abs().max() + (after - before).abs().max())
    return allowed


def randomise(parameters, scale=0.1):
    import torch
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale


def add_adapter(pipe, **config):
    """A PEFT adapter on the UNet and the text encoders of the pipeline, with random weights."""
    from peft import LoraConfig
    convolutions = config.pop("convolutions", True)
    unet = LoraConfig(target_modules=LINEAR + (CONVOLUTION if convolutions else []), init_lora_weights=False, **config)
    text = LoraConfig(target_modules=TEXT, init_lora_weights=False, **config)
    pipe.unet.add_adapter(unet)
    pipe.text_encoder.add_adapter(text)
    if getattr(pipe, "text_encoder_2", None) is not None:
        pipe.text_encoder_2.add_adapter(text)
    for part in PARTS:
        module = getattr(pipe, part, None)
        if module is not None:
            randomise([p for n, p in sorted(module.named_parameters()) if ".lora_A." in n or ".lora_B." in n])


def layers_of(pipe, convert=lambda names: names):
    from peft.utils import get_peft_model_state_dict
    out = {}
    for part in PARTS:
        module = getattr(pipe, part, None)
        if module is not None:
            out[part + "_lora_layers"] = convert(get_peft_model_state_dict(module))
    return out


def diffusers_file(model, config, strength, run):
    """The file that diffusers' own trainers write, with the configuration in its header, against the trained pipeline fused by diffusers. (The file has
    two styles of names; diffusers 0.42 itself reads only one of them again.)"""
    from diffusers.utils import convert_state_dict_to_diffusers
    from diffusers.training_utils import _collate_lora_metadata
    pipe = pipeline(model)
    before = weights_of(pipe)
    add_adapter(pipe, **config)
    modules = {part: getattr(pipe, part) for part in PARTS if getattr(pipe, part, None) is not None}
    pipe.save_lora_weights(run.path("adapter"), **layers_of(pipe, convert_state_dict_to_diffusers), **_collate_lora_metadata(modules))
    adapter = run.path("adapter/pytorch_lora_weights.safetensors")
    pipe.fuse_lora(components=list(modules), lora_scale=strength)
    out, count = merge(run, folder_of(model), adapter, strength=strength)
    return compare(weights_of(pipeline(model, out)), weights_of(pipe), before, of_product(config["r"]), count)


for each in MODELS:
    case(diffusers_file, each, dict(r=4, lora_alpha=4), 0.7, name=f"diffusers-{each}")
case(diffusers_file, "sd1", dict(r=6, lora_alpha=3, use_rslora=True), 1.0, name="diffusers-rslora")
case(diffusers_file, "sd1", dict(r=8, lora_alpha=16, rank_pattern={"to_q": 2}, alpha_pattern={"to_q": 5, "attn2.to_k": 1}), 1.0, name="diffusers-patterns")


def kohya_file(model, strength, run):
    """The same adapter under kohya's names, written by diffusers, alpha stored in every module, fused by diffusers."""
    import safetensors.torch
    import torch
    from peft.utils import get_peft_model_state_dict
    pipe = pipeline(model)
    before = weights_of(pipe)
    add_adapter(pipe, r=4, lora_alpha=4, convolutions=False)
    tensors = {}
    two = getattr(pipe, "text_encoder_2", None) is not None
    for part, prefix in (("unet", "unet"), ("text_encoder", "te1" if two else "te"), ("text_encoder_2", "te2")):
        module = getattr(pipe, part, None)
        if module is None:
            continue
        for name, tensor in get_peft_model_state_dict(module).items():
            path, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
            if part != "unet" and not path.startswith("text_model."):
                path = "text_model." + path  # the name before transformers 5, which kohya's files keep
            module_name = f"lora_{prefix}_{path.replace('.', '_')}"
            tensors[f"{module_name}.lora_{'down' if kind.startswith('A') else 'up'}.weight"] = tensor.contiguous()
            tensors[f"{module_name}.alpha"] = torch.tensor(2.0)
    adapter = run.path("kohya.safetensors")
    safetensors.torch.save_file(tensors, adapter)
    other = pipeline(model)
    other.load_lora_weights(adapter)
    other.fuse_lora(components=[p for p in PARTS if getattr(other, p, None) is not None], lora_scale=strength)
    other.unload_lora_weights()
    out, count = merge(run, folder_of(model), adapter, strength=strength)
    return compare(weights_of(pipeline(model, out)), weights_of(other), before, of_product(4), count)


for each in MODELS:
    case(kohya_file, each, 0.8, name=f"kohya-names-{each}")


def peft_folder(config, run):
    """A folder of PEFT itself (adapter_model.safetensors, adapter_config.json) for the UNet, merged by merge_and_unload."""
    from peft import LoraConfig, get_peft_model
    pipe = pipeline("sd1")
    before = weights_of(pipe)
    settings = dict(target_modules=LINEAR + CONVOLUTION, init_lora_weights=False, r=4, lora_alpha=6)
    model = get_peft_model(pipe.unet, LoraConfig(**{**settings, **config}))
    randomise([p for n, p in sorted(model.named_parameters()) if ".lora_A." in n or ".lora_B." in n])
    if config.get("use_dora"):
        for name, parameter in sorted(model.named_parameters()):
            if "lora_magnitude_vector" in name:
                parameter.data = parameter.data * 1.25
    model.save_pretrained(run.path("peft"))
    pipe.unet = model.merge_and_unload()
    out, count = merge(run, folder_of("sd1"), run.path("peft"), strength=1)
    return compare(weights_of(pipeline("sd1", out)), weights_of(pipe), before, of_tool(8), count)


case(peft_folder, {}, name="peft-lora")
case(peft_folder, dict(use_rslora=True), name="peft-rslora")
case(peft_folder, dict(use_dora=True), name="peft-dora")
case(peft_folder, dict(lora_bias=True, target_modules=["to_out.0", "proj_in", "ff.net.2", "conv1"]), name="peft-bias")  # layers with a bias
case(peft_folder, dict(modules_to_save=["conv_in", "time_embedding.linear_1"]), name="peft-modules-to-save")


def lycoris(model, algorithm, settings, strength, run):
    """One algorithm of LyCORIS on every layer of the UNet. alpha is the rank for LoHa and LoKr: merge_to multiplies theirs by alpha/rank twice."""
    import logging
    import safetensors.torch
    from lycoris import create_lycoris
    logging.disable(logging.WARNING)
    pipe = pipeline(model)
    before = weights_of(pipe)
    network = create_lycoris(pipe.unet, 1.0, linear_dim=4, linear_alpha=settings.get("alpha", 2), algo=algorithm, preset="full",
                             **{name: value for name, value in settings.items() if name != "alpha"})
    for lora in network.loras:
        randomise([p for _, p in sorted(lora.named_parameters())], 0.05 if algorithm in ("diag-oft", "boft") else 0.2)
        for name, parameter in lora.named_parameters():
            if "dora_scale" in name or "rescale" in name:
                parameter.data = parameter.data * 0.1 + 1
    network.apply_to()  # makes the modules part of the network, under their names in files
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in network.state_dict().items()}
    network.restore()
    adapter = run.path("lycoris.safetensors")
    safetensors.torch.save_file(tensors, adapter)
    network.merge_to(strength)
    expected = weights_of(pipe)
    out, count = merge(run, folder_of(model), adapter, "--dora-strength", "lycoris", strength=strength)
    return compare(weights_of(pipeline(model, out)), expected, before, of_tool(8), count)


LYCORIS = {  # algorithm and settings
    "locon": ("locon", dict()),
    "tucker": ("locon", dict(use_tucker=True)),
    "norm": ("locon", dict(train_norm=True)),
    "dora": ("locon", dict(dora_wd=True)),
    "dora-input": ("locon", dict(dora_wd=True, wd_on_output=False)),
    "loha": ("loha", dict(alpha=4)),
    "loha-tucker": ("loha", dict(alpha=4, use_tucker=True)),
    "lokr": ("lokr", dict(alpha=4, factor=4)),
    "lokr-tucker": ("lokr", dict(alpha=4, factor=4, decompose_both=True, use_tucker=True)),
    "full": ("full", dict()),
    "ia3": ("ia3", dict()),
    "glora": ("glora", dict()),
    "oft": ("diag-oft", dict(constraint=0)),
    "oft-rescaled": ("diag-oft", dict(constraint=0, rescaled=True)),
    "boft": ("boft", dict(constraint=0)),
}
for each in MODELS:
    for label, (algorithm, settings) in LYCORIS.items():
        case(lycoris, each, algorithm, settings, 0.7, name=f"lycoris-{label}-{each}")


def make_files(model, folder):
    """A LoRA of diffusers on every layer and an embedding of two vectors, both strong enough to be seen in the image."""
    import safetensors.torch
    import torch
    from diffusers.training_utils import _collate_lora_metadata
    pipe = pipeline(model)
    add_adapter(pipe, r=4, lora_alpha=4, convolutions=True)
    modules = {part: getattr(pipe, part) for part in PARTS if getattr(pipe, part, None) is not None}
    pipe.save_lora_weights(folder, **layers_of(pipe), **_collate_lora_metadata(modules), weight_name="lora.safetensors")
    generator = torch.Generator().manual_seed(9)
    rows = [torch.randn((2, getattr(pipe, part).config.hidden_size), generator=generator) for part in modules if part != "unet"]
    names = ["emb_params"] if len(rows) == 1 else ["clip_l", "clip_g"]
    safetensors.torch.save_file(dict(zip(names, rows)), os.path.join(folder, "embedding.safetensors"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        os.makedirs(sys.argv[3], exist_ok=True)
        make_files(*sys.argv[2:4])
    else:
        sys.exit(case.main())
