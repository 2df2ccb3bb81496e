# SPDX-License-Identifier: MIT
"""Small layers merged with adapters by the libraries that trained them: kohya-ss/sd-scripts, LyCORIS and PEFT.

    python tests/data/make/reference_merges.py SD_SCRIPTS [FOLDER]

SD_SCRIPTS is a checkout of https://github.com/kohya-ss/sd-scripts; needs torch, lycoris-lora, peft, safetensors, and what networks/lora.py and
networks/oft.py import. Every file holds, for a linear layer, a 1x1 and a 3x3 convolution (and norms where they take part):

  base.<layer>.weight, .bias     the layers before the merge
  tool.<layer>.weight, .bias     after it, by the library's own merge: in f64 where it can (then rounded to f32 once), else in f32
  forward.<layer>.weight         the right weight, where the library's merge is known to be wrong: LyCORIS's forward pass works with it
  adapter.<key>                  the adapter with the keys and shapes that the library saves

and in its metadata the tool with its version, the strength, and what the test must know: rank and alpha where the file stores none (PEFT),
the rule of DoRA.
"""
import os
import sys

import torch
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
KOHYA = os.path.abspath(sys.argv[1])
OUT = sys.argv[2] if len(sys.argv) > 2 else os.path.join(HERE, "..", "adapters_reference")
sys.path[:0] = [KOHYA, os.path.join(KOHYA, "networks")]

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV1 = "mid_block.attentions.0.proj_in"
CONV3 = "mid_block.resnets.0.conv1"
NORMS = ("mid_block.attentions.0.transformer_blocks.0.norm1", "mid_block.resnets.0.norm1")


def model(norms=False):
    """A module tree with the names of a UNet; the same numbers each time, all of them f32."""
    torch.manual_seed(1)
    root = torch.nn.Module()
    layers = {LINEAR: torch.nn.Linear(12, 8), CONV1: torch.nn.Conv2d(12, 8, 1), CONV3: torch.nn.Conv2d(4, 8, 3)}
    if norms:
        layers |= {NORMS[0]: torch.nn.LayerNorm(8), NORMS[1]: torch.nn.GroupNorm(2, 8)}
    for path, layer in layers.items():
        torch.nn.init.normal_(layer.weight, 1.0 if path in NORMS else 0.0, 0.3)
        at = root
        *parents, name = path.split(".")
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, torch.nn.Module())
            at = getattr(at, parent)
        at.add_module(name, layer)
    return root.requires_grad_(False)


def layers_of(root):
    return {path: layer for path, layer in root.named_modules() if hasattr(layer, "weight") and not list(layer.children())}


def randomize(tensors, size=0.5):
    """Numbers in place of the start values, which are zeros in part; factors on the whole weight stay near what they were."""
    generator = torch.Generator().manual_seed(2)
    for name in sorted(tensors):
        value = tensors[name]
        if name.endswith((".alpha", ".on_input")) or value.numel() == 0:
            continue
        noise = torch.randn(value.shape, generator=generator)
        near = name.endswith(("dora_scale", "rescale")) or "lora_magnitude_vector" in name
        value.copy_(value.float() + 0.2 * noise if near else size * noise)


def save(name, base, merged, adapter, forward=None, **notes):
    tensors = {}
    for prefix, root in (("base", base), ("tool", merged)):
        for path, layer in layers_of(root).items():
            for parameter in ("weight", "bias"):
                tensors[f"{prefix}.{path}.{parameter}"] = getattr(layer, parameter)
    for path, weight in (forward or {}).items():
        tensors[f"forward.{path}.weight"] = weight
    for key, value in adapter.items():
        tensors[f"adapter.{key}"] = value
    unchanged = {path for path in layers_of(base) if all(torch.equal(tensors[f"base.{path}.{p}"].double(), tensors[f"tool.{path}.{p}"].double())
                                                         for p in ("weight", "bias"))}
    assert not unchanged, f"{name}: {unchanged} did not change"
    tensors = {k: (v if k.startswith("adapter.") and not v.is_floating_point() else v.detach().float()).contiguous().clone() for k, v in tensors.items()}
    path = os.path.join(OUT, name + ".safetensors")
    save_file(tensors, path, {k: str(v) for k, v in notes.items()})
    os.chmod(path, 0o644)
    print(f"{name}: {os.path.getsize(path)} bytes")


# kohya-ss/sd-scripts: the modules of networks/, merged by their own merge_to, in f32

def kohya():
    import lora
    import oft

    base, merged, adapter = model(), model(), {}
    for path, layer in layers_of(merged).items():
        name = "lora_unet_" + path.replace(".", "_")
        module = lora.LoRAInfModule(name, layer, 0.7, 3, 1.5)
        state = {f"{name}.{k}": v for k, v in module.state_dict().items() if not k.startswith("org_module.")}
        randomize(state)
        adapter |= {k: v.clone() for k, v in state.items()}
        module.merge_to({k.removeprefix(name + "."): v for k, v in state.items()}, torch.float32, "cpu")
    save("kohya_lora", base, merged, adapter, tool="sd-scripts networks/lora.py", strength=0.7, precision="f32")

    for alpha in (0.01, 100.0):
        base, merged, adapter = model(), model(), {}
        for path, layer in layers_of(merged).items():
            name = "oft_unet_" + path.replace(".", "_")
            module = oft.OFTInfModule(name, layer, 0.7, 2, alpha)
            state = {f"{name}.{k}": v for k, v in module.state_dict().items()}
            randomize(state)
            adapter |= {k: v.clone() for k, v in state.items()}
            module.merge_to()
        save("kohya_oft" + ("" if alpha < 1 else "_loose"), base, merged, adapter, tool="sd-scripts networks/oft.py", strength=0.7, precision="f32")


def kohya_tucker():
    """LyCORIS's adapter with Tucker cores: kohya's merge does not read the core and spreads the product of the rest over the kernel."""
    import lora

    stored = load_file(os.path.join(OUT, "lycoris_locon_tucker.safetensors"))
    adapter = {k.removeprefix("adapter.").replace("lycoris_", "lora_unet_"): v for k, v in stored.items() if k.startswith("adapter.")}
    base, merged = model(), model()
    for path, layer in layers_of(merged).items():
        name = "lora_unet_" + path.replace(".", "_")
        module = lora.LoRAInfModule(name, layer, 0.7, 3, 1.5)
        module.merge_to({k.removeprefix(name + "."): v for k, v in adapter.items() if k.startswith(name + ".")}, torch.float32, "cpu")
    right = {path: stored[f"tool.{path}.weight"] for path in layers_of(base)}
    save("kohya_tucker", base, merged, adapter, right, tool="sd-scripts networks/lora.py", strength=0.7, precision="f32")


# LyCORIS: modules made and saved by the library, merged by its merge_to in f64 (OFT in f32: it knows no other type)

def unit_response(root, path):
    """The weight that the forward pass works with: its answers to unit inputs."""
    layer = layers_of(root)[path]
    weight = layer.weight
    n = weight[0].numel()
    inputs = torch.eye(n, dtype=weight.dtype)
    inputs = inputs if weight.dim() == 2 else inputs.view(n, *weight.shape[1:])
    out = layer(inputs).reshape(n, -1) - layer(torch.zeros_like(inputs[:1])).reshape(1, -1)
    return out.t().reshape(weight.shape)


def saved(modules):
    return {f"{m.lora_name}.{k}": v.detach().clone() for m in modules for k, v in m.state_dict().items()}


def finish(name, base, merged, modules, adapter, strength, wrong=False, **notes):
    from importlib.metadata import version

    assert len(modules) == len(layers_of(base)), f"{name}: {len(modules)} modules"
    number = torch.float32 if "oft" in name else torch.float64
    merged.to(number)
    forward = {}
    for module in modules:
        module.to(number).eval()
        module.multiplier = strength
        if wrong:
            path = next(path for path, layer in layers_of(merged).items() if layer is module.org_module[0])
            module.apply_to()
            forward[path] = unit_response(merged, path)
            module.restore()
        module.merge_to(strength)
    save(name, base, merged, adapter, forward, tool="LyCORIS " + version("lycoris-lora"), strength=strength,
         precision="f32" if number == torch.float32 else "f64", **notes)


def lycoris_case(name, strength=0.7, norms=False, dim=3, alpha=1.5, wrong=False, rule="", **arguments):
    from lycoris.wrapper import create_lycoris

    merged = model(norms)
    made = create_lycoris(merged, 1.0, dim, alpha, **arguments)
    randomize({f"{m.lora_name}.{k}": v.data for m in made.loras for k, v in m.named_parameters()}, 0.9 if wrong else 0.5)
    finish(name, model(norms), merged, made.loras, saved(made.loras), strength, wrong, **({"dora": rule} if rule else {}))


def lycoris_full():
    """A full difference is saved by a module that has taken its layer over, and merged by one that has not."""
    from lycoris.wrapper import create_lycoris, create_lycoris_from_weights

    made = create_lycoris(model(), 1.0, algo="full")
    made.apply_to()
    randomize({f"{m.lora_name}.{k}": v.data for m in made.loras for k, v in m.named_parameters()})
    adapter, merged = saved(made.loras), model()
    network, _ = create_lycoris_from_weights(0.7, "", merged, adapter)
    for module in network.loras:  # it keeps the layer as it was, in the type that it had
        module._org_weight = [w.double() for w in module._org_weight]
        module.org_bias = [b.double() for b in module.org_bias]
    finish("lycoris_full", model(), merged, network.loras, adapter, 0.7)


def lycoris_ia3_input():
    """(IA)3 on the input: an option of the module that the wrapper does not offer for all layers."""
    import lycoris.modules.ia3 as ia3

    merged = model()
    modules = [ia3.IA3Module("lycoris_" + path.replace(".", "_"), layer, 1.0, train_on_input=True) for path, layer in layers_of(merged).items()]
    randomize({f"{m.lora_name}.{k}": v.data for m in modules for k, v in m.named_parameters()})
    finish("lycoris_ia3_input", model(), merged, modules, saved(modules), 0.7)


def lycoris_cases():
    lycoris_case("lycoris_locon", algo="locon")
    lycoris_case("lycoris_locon_tucker", algo="locon", use_tucker=True)
    lycoris_case("lycoris_norm", algo="locon", norms=True, train_norm=True)
    lycoris_case("lycoris_dora", algo="locon", dora_wd=True, rule="lycoris")
    lycoris_case("lycoris_dora_input", algo="locon", dora_wd=True, wd_on_output=False, rule="lycoris")
    lycoris_case("lycoris_loha", algo="loha", wrong=True)
    lycoris_case("lycoris_loha_tucker", algo="loha", use_tucker=True, wrong=True)
    lycoris_case("lycoris_lokr", algo="lokr", dim=1, alpha=0.5, factor=2, wrong=True)
    lycoris_case("lycoris_lokr_both", algo="lokr", dim=1, alpha=0.5, factor=4, decompose_both=True, wrong=True)
    lycoris_case("lycoris_lokr_tucker", algo="lokr", dim=1, alpha=0.5, factor=2, use_tucker=True, wrong=True)
    lycoris_case("lycoris_lokr_full", algo="lokr", dim=64, alpha=3, factor=2, full_matrix=True)
    lycoris_full()
    lycoris_case("lycoris_ia3", algo="ia3")
    lycoris_ia3_input()
    lycoris_case("lycoris_glora", algo="glora")
    lycoris_case("lycoris_oft", algo="diag-oft", dim=4)
    lycoris_case("lycoris_oft_constraint", algo="diag-oft", dim=4, constraint=0.05)
    lycoris_case("lycoris_oft_rescaled", algo="diag-oft", dim=4, rescaled=True)
    lycoris_case("lycoris_boft", algo="boft", dim=2)
    lycoris_case("lycoris_boft_rescaled", algo="boft", dim=2, constraint=0.05, rescaled=True)


# PEFT: made by get_peft_model, saved by save_pretrained, merged by merge_and_unload in f64

def peft_case(name, **arguments):
    import tempfile

    import peft

    base, merged = model(), model().double()
    config = peft.LoraConfig(r=3, lora_alpha=1.5, target_modules=list(layers_of(base)), init_lora_weights=False, **arguments)
    wrapped = peft.get_peft_model(merged, config, autocast_adapter_dtype=False)
    state = {k: v for k, v in wrapped.state_dict().items() if "lora_" in k}
    randomize(state)
    for value in state.values():  # what the file stores is what is merged
        value.copy_(value.float().double())
    for module in wrapped.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.7)
    with tempfile.TemporaryDirectory() as folder:
        wrapped.save_pretrained(folder)
        adapter = load_file(os.path.join(folder, "adapter_model.safetensors"))
    save(name, base, wrapped.merge_and_unload(), adapter, tool="PEFT " + peft.__version__, strength=0.7, precision="f64", alpha=1.5,
         stabilised=int(arguments.get("use_rslora", False)), dora="peft")


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_grad_enabled(False)
    kohya()
    lycoris_cases()
    kohya_tucker()
    peft_case("peft_lora")
    peft_case("peft_rslora", use_rslora=True)
    peft_case("peft_dora", use_dora=True)


main()
