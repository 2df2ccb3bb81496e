# SPDX-License-Identifier: MIT
"""Make the tiny pipelines of tests/data with the real diffusers and transformers, and record what they compute.

    python tests/data/make/tiny_models.py [--out tests/data] [--model sd1 ...]

Needs torch, diffusers >= 0.42, transformers >= 5.6, safetensors (tests/clients/requirements-diffusers.txt).
Weights come from numpy's RandomState (a frozen stream), so the library that runs this does not change them.
"""
import argparse
import json
import os
import shutil
import zlib

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tiny_tokenizer import VOCABULARY, write_tokenizer

torch.set_num_threads(2)

EOS = VOCABULARY - 1
BOS = VOCABULARY - 2

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
             trained_betas=None, steps_offset=1)


def text(hidden, layers, intermediate, act, projection, eos=2, with_projection=False):
    return dict(hidden_size=hidden, num_hidden_layers=layers, intermediate_size=intermediate, hidden_act=act,
                num_attention_heads=hidden // 64, projection_dim=projection, vocab_size=VOCABULARY,
                max_position_embeddings=77, layer_norm_eps=1e-5, attention_dropout=0.0, bos_token_id=0,
                eos_token_id=eos, pad_token_id=1, _with_projection=with_projection)


def unet(channels, layers, down, up, heads, cross, **more):
    names = {"D": "DownBlock2D", "CA": "CrossAttnDownBlock2D", "U": "UpBlock2D", "CU": "CrossAttnUpBlock2D"}
    base = dict(act_fn="silu", attention_head_dim=heads, block_out_channels=channels, center_input_sample=False,
                cross_attention_dim=cross, down_block_types=[names[d] for d in down],
                up_block_types=[names[u] for u in up], downsample_padding=1, flip_sin_to_cos=True, freq_shift=0,
                in_channels=4, out_channels=4, layers_per_block=layers, mid_block_scale_factor=1, norm_eps=1e-5,
                norm_num_groups=32, sample_size=16)
    base.update(more)
    return base


def vae(channels, layers, **more):
    base = dict(act_fn="silu", block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * len(channels),
                up_block_types=["UpDecoderBlock2D"] * len(channels), in_channels=3, out_channels=3, latent_channels=4,
                layers_per_block=layers, norm_num_groups=32, sample_size=16 * 2 ** (len(channels) - 1))
    base.update(more)
    return base


SDXL = dict(use_linear_projection=True, upcast_attention=None, addition_embed_type="text_time",
            addition_time_embed_dim=256, addition_embed_type_num_heads=64)

# bits: explicit mantissa bits kept; 10 is all of float16. Three bits keep the values exact in bfloat16 too
# (so that one model in F16, BF16 and F32 files is the same model) and let git compress the file.
MODELS = {
    "sd1": dict(
        seed=101, bits={"unet": 3, "vae": 10, "text_encoder": 10}, pipeline="StableDiffusionPipeline", classic_text=True,
        unet=unet([32, 32], 1, ["CA", "D"], ["U", "CU"], 8, 64),
        vae=vae([32, 32], 1),
        text_encoder=text(64, 2, 256, "quick_gelu", 64),
        scheduler=("PNDMScheduler", dict(BETAS, set_alpha_to_one=False, skip_prk_steps=True))),
    "sd1_inpaint": dict(
        seed=102, bits=3, pipeline="StableDiffusionInpaintPipeline", classic_text=True,
        unet=unet([32, 32, 32], 2, ["CA", "CA", "D"], ["U", "CU", "CU"], 8, 64, in_channels=9),
        vae=vae([32, 32, 32], 1),
        text_encoder=text(64, 1, 256, "quick_gelu", 64),
        scheduler=("DDIMScheduler", dict(BETAS, clip_sample=False, set_alpha_to_one=False))),
    "sd2_v": dict(
        seed=103, bits=3, pipeline="StableDiffusionPipeline",
        unet=unet([32, 64], 1, ["D", "CA"], ["CU", "U"], [1, 1], 64, use_linear_projection=True,
                  upcast_attention=True, dual_cross_attention=False, only_cross_attention=False, num_class_embeds=None),
        vae=vae([32, 32], 2),
        text_encoder=text(64, 3, 256, "gelu", 32),
        scheduler=("DDIMScheduler", dict(BETAS, clip_sample=False, set_alpha_to_one=False,
                                         prediction_type="v_prediction"))),
    "sdxl": dict(
        seed=104, bits=3, pipeline="StableDiffusionXLPipeline",
        unet=unet([32, 64], 1, ["D", "CA"], ["CU", "U"], [1, 1], 192, transformer_layers_per_block=[1, 2],
                  projection_class_embeddings_input_dim=128 + 6 * 256, **SDXL),
        vae=vae([32, 64], 1, scaling_factor=0.13025, force_upcast=True),
        text_encoder=text(64, 2, 256, "quick_gelu", 64),
        text_encoder_2=text(128, 2, 256, "gelu", 128, with_projection=True),
        scheduler=("EulerDiscreteScheduler", dict(BETAS, prediction_type="epsilon", interpolation_type="linear",
                                                  timestep_spacing="leading", use_karras_sigmas=False))),
    "sdxl_refiner": dict(
        seed=105, bits=3, pipeline="StableDiffusionXLImg2ImgPipeline",
        unet=unet([32, 64], 1, ["D", "CA"], ["CU", "U"], [1, 1], 64, transformer_layers_per_block=1,
                  projection_class_embeddings_input_dim=64 + 5 * 256, **SDXL),
        vae=vae([32, 32], 1, scaling_factor=0.13025, force_upcast=True),
        text_encoder_2=text(64, 2, 256, "gelu", 64, eos=EOS, with_projection=True),
        scheduler=("EulerDiscreteScheduler", dict(BETAS, prediction_type="epsilon", interpolation_type="linear",
                                                  timestep_spacing="leading", use_karras_sigmas=False))),
}


def trim(values, bits):
    """Round to float16 with `bits` explicit mantissa bits (half to even), flushing float16's subnormals."""
    half = values.astype(np.float16)
    if bits < 10:
        raw = half.view(np.uint16).astype(np.uint32)
        drop = 10 - bits
        raw += (1 << (drop - 1)) - 1 + ((raw >> drop) & 1)
        half = (raw & ~np.uint32((1 << drop) - 1)).astype(np.uint16).view(np.float16)
    half[np.abs(half) < 2.0 ** -14] = 0
    return half.astype(np.float32)


def randomize(module, name, seed, bits):
    """Weights of unit gain, norms and biases far from 1 and 0, queries and keys large enough for uneven attention."""
    state = module.state_dict()
    for key in sorted(state):
        rng = np.random.RandomState((zlib.crc32(f"{name}.{key}".encode()) ^ seed) & 0x7FFFFFFF)
        shape = tuple(state[key].shape)
        noise = rng.standard_normal(shape)
        leaf = key.split(".")
        if "token_embedding" in key:
            value = 0.6 * noise
        elif "position_embedding" in key:
            value = 0.3 * noise
        elif len(shape) >= 2:
            gain = 1.0 / np.sqrt(np.prod(shape[1:]))
            if leaf[-2] in ("q_proj", "k_proj"):
                gain *= 1.6
            elif leaf[-2] in ("to_q", "to_k"):  # with 1.6 here torch's own float16 is off by 1e-2, with 1.2 by 3e-3
                gain *= 1.2
            value = gain * noise
        elif leaf[-1] == "bias":
            value = 0.15 * noise
        else:
            value = 1.0 + 0.25 * noise
        state[key] = torch.from_numpy(trim(value.astype(np.float32), bits))
    module.load_state_dict(state)
    return module.eval()


def build(name, spec):
    import diffusers
    import transformers
    made = {}
    made["unet"] = diffusers.UNet2DConditionModel(**spec["unet"])
    made["vae"] = diffusers.AutoencoderKL(**spec["vae"])
    for part in ("text_encoder", "text_encoder_2"):
        if part in spec:
            values = dict(spec[part])
            projected = values.pop("_with_projection")
            cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
            made[part] = cls(transformers.CLIPTextConfig(**values))
    for part, module in made.items():
        bits = spec["bits"]
        randomize(module, part, spec["seed"], bits[part] if isinstance(bits, dict) else bits)
    return made


def record_text(module, projected):
    rng = np.random.RandomState(7)
    out = {}
    for case, (batch, length) in enumerate([(1, 77), (2, 13)]):
        ids = np.full((batch, length), EOS, np.int64)
        for row in range(batch):
            words = rng.randint(3, min(length - 3, 40))
            ids[row, 0] = BOS
            ids[row, 1:1 + words] = rng.randint(0, BOS, words)
            if row == 1:  # padded with "!" instead of the end marker, as SD2 and SDXL's second tokenizer do
                ids[row, 2 + words:] = 0
        with torch.no_grad():
            got = module(input_ids=torch.from_numpy(ids), output_hidden_states=True)
        out[f"case{case}.input_ids"] = ids
        out[f"case{case}.out.last_hidden_state"] = got.last_hidden_state.numpy()
        if projected:
            out[f"case{case}.out.text_embeds"] = got.text_embeds.numpy()
        else:
            out[f"case{case}.out.pooler_output"] = got.pooler_output.numpy()
        for index, state in enumerate(got.hidden_states):
            out[f"case{case}.out.hidden_states.{index}"] = state.numpy()
    return out


def record_unet(module):
    rng = np.random.RandomState(8)
    config = module.config
    step = 2 ** (len(config.block_out_channels) - 1)
    out = {}
    for case, (batch, height, width, length, time) in enumerate(
            [(1, 8, 8, 77, 981.0), (2, 4 * step, 6 * step, 13, 1.0), (2, 5 * step, 3 * step, 77, 500.25)]):
        feed = {
            "sample": rng.standard_normal((batch, config.in_channels, height, width)).astype(np.float32),
            "timestep": np.array(time, np.float32),
            "encoder_hidden_states": rng.standard_normal((batch, length, config.cross_attention_dim)).astype(np.float32),
        }
        extra = {}
        if config.addition_embed_type == "text_time":
            ids = 6 if config.projection_class_embeddings_input_dim % 256 == 128 else 5
            pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
            feed["text_embeds"] = rng.standard_normal((batch, pooled)).astype(np.float32)
            feed["time_ids"] = rng.choice([0.0, 6.0, 37.0, 512.0, 768.0, 1024.0], (batch, ids)).astype(np.float32)
            extra["added_cond_kwargs"] = {k: torch.from_numpy(feed[k]) for k in ("text_embeds", "time_ids")}
        with torch.no_grad():
            got = module(torch.from_numpy(feed["sample"]), torch.tensor(time),
                         torch.from_numpy(feed["encoder_hidden_states"]), **extra).sample
        for key, value in feed.items():
            out[f"case{case}.{key}"] = value
        out[f"case{case}.out.out_sample"] = got.numpy()
    return out


def record_vae(module):
    rng = np.random.RandomState(9)
    factor = 2 ** (len(module.config.block_out_channels) - 1)
    encoder, decoder = {}, {}
    for case, (batch, height, width) in enumerate([(1, 8, 8), (2, 6, 10), (2, 9, 5)]):
        image = rng.uniform(-1, 1, (batch, 3, height * factor, width * factor)).astype(np.float32)
        latent = rng.standard_normal((batch, 4, height, width)).astype(np.float32)
        with torch.no_grad():
            dist = module.encode(torch.from_numpy(image)).latent_dist
            picture = module.decode(torch.from_numpy(latent)).sample
        encoder[f"case{case}.sample"] = image
        # as Optimum >= 1.23 exports: mean and log-variance as the last convolution gives them, before the clamp
        encoder[f"case{case}.out.latent_parameters"] = dist.parameters.numpy()
        encoder[f"case{case}.out.latent_sample"] = dist.mode().numpy()
        decoder[f"case{case}.latent_sample"] = latent
        decoder[f"case{case}.out.sample"] = picture.numpy()
    return encoder, decoder


def save_folder(name, spec, made, folder):
    import diffusers
    import transformers
    kind, values = spec["scheduler"]
    parts = {part: module.half() for part, module in made.items()}
    parts["scheduler"] = getattr(diffusers, kind)(**values)
    temporary = folder + ".tokenizers"
    for index, part in enumerate(("text_encoder", "text_encoder_2")):
        tokenizer = "tokenizer" + part[len("text_encoder"):]
        if part in made:
            pad = "!" if part == "text_encoder_2" or name == "sd2_v" else "<|endoftext|>"
            write_tokenizer(os.path.join(temporary, tokenizer), pad)
            parts[tokenizer] = transformers.CLIPTokenizer.from_pretrained(os.path.join(temporary, tokenizer))
        elif name == "sdxl_refiner":
            parts[part] = parts[tokenizer] = None
    if not name.startswith("sdxl"):
        parts["safety_checker"] = None
        parts["requires_safety_checker"] = False
        parts["feature_extractor"] = transformers.CLIPImageProcessor() if name == "sd1" else None
    elif name == "sdxl_refiner":
        parts["requires_aesthetics_score"] = True
        parts["force_zeros_for_empty_prompt"] = False
    shutil.rmtree(folder, ignore_errors=True)
    pipe = getattr(diffusers, spec["pipeline"])(**parts)
    pipe.save_pretrained(folder, safe_serialization=True)
    for tokenizer in ("tokenizer", "tokenizer_2"):  # today's library writes tokenizer.json alone; published folders hold these
        source = os.path.join(temporary, tokenizer)
        if os.path.isdir(source):
            shutil.rmtree(os.path.join(folder, tokenizer), ignore_errors=True)
            shutil.copytree(source, os.path.join(folder, tokenizer))
    shutil.rmtree(temporary, ignore_errors=True)
    index = os.path.join(folder, "model_index.json")
    with open(index, encoding="utf-8") as file:
        content = file.read().replace("CLIPImageProcessorPil", "CLIPImageProcessor")  # the name where torchvision is installed
    with open(index, "w", encoding="utf-8") as file:
        file.write(content)
    if spec.get("classic_text"):
        classic_text_names(os.path.join(folder, "text_encoder", "model.safetensors"))


def classic_text_names(path):
    """transformers >= 5.6 drops the `text_model.` level; files written before have it."""
    tensors = load_file(path)
    save_file({k if k.startswith("text_model.") else "text_model." + k: v for k, v in tensors.items()}, path,
              metadata={"format": "pt"})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    parser.add_argument("--model", nargs="*", default=list(MODELS))
    arguments = parser.parse_args()
    for name in arguments.model:
        spec = MODELS[name]
        made = build(name, spec)
        home = os.path.join(arguments.out, name)
        recorded = os.path.join(home, "recorded")
        os.makedirs(recorded, exist_ok=True)
        outputs = {"unet": record_unet(made["unet"])}
        outputs["vae_encoder"], outputs["vae_decoder"] = record_vae(made["vae"])
        for part in ("text_encoder", "text_encoder_2"):
            if part in made:
                outputs[part] = record_text(made[part], spec[part]["_with_projection"])
        for part, tensors in outputs.items():
            save_file({k: np.array(v, order="C") for k, v in tensors.items()}, os.path.join(recorded, part + ".safetensors"))
            peak = {k.split(".out.")[1]: f"{np.abs(v).max():.3g}/{v.std():.3g}" for k, v in tensors.items()
                    if k.startswith("case1.out.")}
            print(f"{name:13} {part:15} max/std of case 1: {json.dumps(peak)}")
        save_folder(name, spec, made, os.path.join(home, "diffusers"))


if __name__ == "__main__":
    main()
