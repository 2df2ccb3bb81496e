#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""One pipeline of one library makes one small image, from given noise, and compares it with the reference.

usage: pipelines.py torch     MODEL FOLDER IMAGE.npy [LORA STRENGTH EMBEDDING]   # the original: makes the reference, with the LoRA fused
                                                          # and the embedding loaded if they are given
       pipelines.py optimum   MODEL FOLDER REFERENCE.npy   # Optimum's ONNX Runtime pipeline of the same kind
       pipelines.py diffusers MODEL FOLDER REFERENCE.npy   # diffusers' OnnxStableDiffusionPipeline

Every client loads the folder by from_pretrained and nothing else. MODEL+adapters: the prompt uses the tokens of the embedding.
"""
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np  # noqa: E402
import torch  # noqa: E402

ALLOWED = 2 / 255
PROMPT, NEGATIVE = "a photo of a cat on the moon", "the old city"
TOKEN = "<cat>"  # two vectors: diffusers writes it out as "<cat> <cat>_1"
CLASSES = {"sd1": "StableDiffusionPipeline", "sd2_v": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline",
           "sd1_inpaint": "StableDiffusionInpaintPipeline", "sdxl_refiner": "StableDiffusionXLImg2ImgPipeline"}
FACTOR = {"sd1_inpaint": 4}  # image pixels a latent pixel; the others: 2


def noise(shape, seed):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def arguments(model):
    """Text to image from given latents; the pipelines that take an image draw their noise from torch's generator."""
    height, width = 16, 24
    factor = FACTOR.get(model, 2)
    common = dict(prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=4, guidance_scale=4.0, output_type="np")
    size = dict(height=height * factor, width=width * factor)
    if model in ("sd1", "sd2_v", "sdxl"):
        return dict(common, latents=torch.from_numpy(noise((1, 4, height, width), 11)), **size)
    image = torch.from_numpy(np.clip(noise((1, 3, height * factor, width * factor), 12) * 0.2 + 0.5, 0, 1))
    common["generator"] = torch.Generator().manual_seed(13)
    if model == "sd1_inpaint":
        mask = torch.zeros((1, 1, height * factor, width * factor))
        mask[..., width * factor // 3:] = 1
        return dict(common, image=image, mask_image=mask, strength=1.0, **size)
    return dict(common, image=image, strength=0.75)


def load_adapters(pipe, lora, strength, embedding):
    """The LoRA fused, the embedding loaded, as diffusers documents both; and one repair: the models' configs say `eos_token_id: 2`, for which
    transformers pools at the largest id. That is an added token as soon as there is one, and no longer the end of the text."""
    from safetensors.torch import load_file
    pipe.load_lora_weights(lora)
    pipe.fuse_lora(components=[n for n in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, n, None) is not None], lora_scale=float(strength))
    pipe.unload_lora_weights()
    if getattr(pipe, "text_encoder_2", None) is not None:
        encoder = pipe.text_encoder_2
        getattr(encoder, "text_model", encoder).eos_token_id = pipe.tokenizer_2.eos_token_id
    vectors = load_file(embedding)
    if "clip_g" in vectors:
        pipe.load_textual_inversion(vectors["clip_l"], token=TOKEN, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
        pipe.load_textual_inversion(vectors["clip_g"], token=TOKEN, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)
    else:
        pipe.load_textual_inversion(vectors["emb_params"], token=TOKEN)


def main():
    client, model, folder, path, *adapters = sys.argv[1:]
    model, _, with_adapters = model.partition("+")
    torch.set_num_threads(2)
    feed = arguments(model)
    if with_adapters:
        feed["prompt"] = f"a photo of a {TOKEN} on the moon"
    if client == "torch":
        import diffusers
        pipe = getattr(diffusers, CLASSES[model]).from_pretrained(folder, torch_dtype=torch.float32)
        if adapters:
            load_adapters(pipe, *adapters)
    elif client == "optimum":
        from optimum import onnxruntime as library
        pipe = getattr(library, "ORT" + CLASSES[model]).from_pretrained(folder)
    elif client == "diffusers":
        import diffusers
        pipe = diffusers.OnnxStableDiffusionPipeline.from_pretrained(folder, provider="CPUExecutionProvider")
        # this pipeline takes every VAE for one of factor 8 when it checks the latents it is given
        rows, columns = feed["latents"].shape[2:]
        feed.update(latents=feed["latents"].numpy(), height=8 * rows, width=8 * columns)
        feed["prompt"] = feed["prompt"].replace(TOKEN, f"{TOKEN} {TOKEN}_1")  # it does not do that itself
    else:
        raise SystemExit(__doc__)
    pipe.set_progress_bar_config(disable=True)
    image = np.asarray(pipe(**feed).images[0], np.float32)
    if client == "torch":
        if not image.std() > 0.05:
            raise SystemExit(f"the reference image is flat (deviation {image.std():.3f})")
        np.save(path, image)
        return 0
    reference = np.load(path)
    if image.shape != reference.shape:
        raise SystemExit(f"image {image.shape}, reference {reference.shape}")
    worst = float(np.abs(image - reference).max())
    print(f"{type(pipe).__name__}: largest difference {worst * 255:.4f}/255, deviation of the image {reference.std():.2f}")
    return 0 if worst <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
