#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""merge-embedding against the libraries that load Textual Inversion: transformers' tokenizers give the ids that it entered, and the text encoders
that it wrote give what diffusers' give after load_textual_inversion.

usage: embeddings.py CASE --bin DIR --work DIR

CASE is one of `embeddings.py list`. Works with transformers 4.57 (tokenizers in Python and in Rust) and 5 (in Rust only).
"""
import json
import os
import shutil
import sys

sys.dont_write_bytecode = True
from cases import DATA, Cases, expect, folder_of  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
FILES = os.path.join(DATA, "embeddings")
case = Cases()
FIRST = 300  # tokens of the tiny vocabulary; its end marker is the last of them
SPECIAL_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json")


def merge(run, base, output, *embeddings, rule="diffusers"):
    arguments = [part for e in embeddings for part in ("--embedding", e)]
    run.program("merge-embedding", base, output, *arguments, "--rule", rule, "--quiet")
    return output


def embedding(name, token=None):
    return os.path.join(FILES, name) + (":" + token if token else "")


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def tokenizers(folder):
    """Every tokenizer that transformers makes of a folder: the classic one in Python and the fast one, where both exist."""
    import transformers
    out = [transformers.CLIPTokenizer.from_pretrained(folder)]
    if int(transformers.__version__.split(".")[0]) < 5:
        out.append(transformers.CLIPTokenizerFast.from_pretrained(folder))
    return out


def check_tokens(folder, ids):
    for tokenizer in tokenizers(folder):
        for token, number in ids.items():
            expect(tokenizer.convert_tokens_to_ids(token) == number,
                   f"{type(tokenizer).__name__} of {folder}: {token} is {tokenizer.convert_tokens_to_ids(token)}, expected {number}")
        expect(len(tokenizer) == FIRST + len(ids), f"{folder}: {len(tokenizer)} tokens, expected {FIRST + len(ids)}")
        token = next(iter(ids))
        found = tokenizer(f"a {token} in")["input_ids"]
        expect(found.count(ids[token]) == 1 and found[-1] == FIRST - 1, f"{type(tokenizer).__name__}: {found} lacks {ids[token]}")


def check_files(before, after, ids):
    """added_tokens.json is what transformers writes; the vocabulary is untouched."""
    expected = json.dumps(ids, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    expect(read(after, "added_tokens.json") == expected, f"{after}/added_tokens.json is not what transformers writes")
    for name in SPECIAL_FILES:
        if os.path.exists(os.path.join(before, name)):
            expect(read(before, name) == read(after, name), f"{name} changed")


RULES = {
    "diffusers": {"<cat>": 300, "<cat>_1": 301, "<cat>_2": 302},
    "kohya": {"<cat>": 300, "<cat>1": 301, "<cat>2": 302},
    "onnx-web": {"<cat>": 300, "<cat>-all": 301, "<cat>-0": 302, "<cat>-1": 303, "<cat>-2": 304},
}


@case
def token_rules(run):
    for rule, ids in RULES.items():
        out = merge(run, folder_of("sd1"), run.path(rule), embedding("kohya.safetensors", "<cat>"), rule=rule)
        check_tokens(os.path.join(out, "tokenizer"), ids)
        check_files(os.path.join(folder_of("sd1"), "tokenizer"), os.path.join(out, "tokenizer"), ids)
        expect(json.loads(read(out, "text_encoder", "config.json"))["vocab_size"] == FIRST + len(ids), "vocab_size")
    return ", ".join(RULES)


@case
def unicode_tokens(run):
    out = merge(run, folder_of("sd1"), run.path("out"), embedding("concept.safetensors", "<größe>"), embedding("learned_embeds.bin", "<猫>"))
    ids = {"<größe>": 300, "<猫>": 301}
    check_tokens(os.path.join(out, "tokenizer"), ids)
    check_files(os.path.join(folder_of("sd1"), "tokenizer"), os.path.join(out, "tokenizer"), ids)
    return " ".join(ids)


@case
def saved_again(run):
    """Tokenizers as transformers itself saves them: with added_tokens_decoder, with tokenizer.json, with tokens added before."""
    base, done = run.path("base"), []
    for kind in range(len(tokenizers(os.path.join(folder_of("sd1"), "tokenizer")))):
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(folder_of("sd1"), base)
        tokenizer = tokenizers(os.path.join(folder_of("sd1"), "tokenizer"))[kind]
        shutil.rmtree(os.path.join(base, "tokenizer"))
        tokenizer.save_pretrained(os.path.join(base, "tokenizer"))
        out = merge(run, base, run.path(f"one-{kind}"), embedding("a1111.pt", "<cat>"))
        check_tokens(os.path.join(out, "tokenizer"), {"<cat>": 300, "<cat>_1": 301})
        again = merge(run, out, run.path(f"two-{kind}"), embedding("concept.safetensors"))
        ids = {"<cat>": 300, "<cat>_1": 301, "<cat-toy>": 302}
        check_tokens(os.path.join(again, "tokenizer"), ids)
        check_files(os.path.join(base, "tokenizer"), os.path.join(again, "tokenizer"), ids)
        tokenizer.add_tokens(list(ids))
        tokenizer.save_pretrained(run.path("theirs"))
        for name in sorted(os.listdir(run.path("theirs"))):
            if name in ("tokenizer_config.json", "tokenizer.json"):
                ours, theirs = (json.loads(read(folder, name)) for folder in (os.path.join(again, "tokenizer"), run.path("theirs")))
                for key in ("added_tokens_decoder", "added_tokens"):
                    expect(ours.get(key) == theirs.get(key), f"{name}: {key} is\n{ours.get(key)}\nexpected\n{theirs.get(key)}")
            elif name == "added_tokens.json":
                expect(read(again, "tokenizer", name) == read(run.path("theirs"), name), "added_tokens.json differs from transformers'")
        done.append(f"{type(tokenizer).__name__}: {', '.join(sorted(os.listdir(os.path.join(base, 'tokenizer'))))}")
    return "; ".join(done)


def pipeline(kind, folder):
    import diffusers
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    pipe = getattr(diffusers, kind).from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same(found, expected, what, limit=1e-5):
    worst = float((found.detach() - expected.detach()).abs().max())
    expect(found.shape == expected.shape and worst <= limit, f"{what}: differs by {worst}")


def readable(model, run):
    """The model's folder. The tiny ones were saved by transformers 5, whose text encoders without projection have names that 4 does not know."""
    import transformers
    from safetensors.torch import load_file, save_file
    if int(transformers.__version__.split(".")[0]) >= 5:
        return folder_of(model)
    out = run.path("readable")
    shutil.copytree(folder_of(model), out)
    for encoder in ("text_encoder", "text_encoder_2"):
        path = os.path.join(out, encoder, "model.safetensors")
        if os.path.exists(path):
            known = ("text_model.", "text_projection.")
            save_file({name if name.startswith(known) else "text_model." + name: v for name, v in load_file(path).items()}, path, {"format": "pt"})
    return out


PROMPT = "a photograph of <cat> in it"


def diffusers_encoder(model, files, run):
    """A pipeline of one text encoder: matrix, ids and prompt states are those of load_textual_inversion."""
    out = merge(run, folder_of(model), run.path("out"), *files)
    theirs, ours = pipeline("StableDiffusionPipeline", readable(model, run)), pipeline("StableDiffusionPipeline", out)
    for file in files:
        path, _, token = file.rpartition(":") if ":" in file else (file, "", None)
        theirs.load_textual_inversion(path, token=token or None, weight_name=os.path.basename(path))
    expect(len(theirs.tokenizer) == len(ours.tokenizer), f"{len(ours.tokenizer)} tokens, expected {len(theirs.tokenizer)}")
    same(ours.text_encoder.get_input_embeddings().weight, theirs.text_encoder.get_input_embeddings().weight, "token embedding", 0)
    found, expected = (p.encode_prompt(p.maybe_convert_prompt(PROMPT, p.tokenizer), "cpu", 1, False)[0] for p in (ours, theirs))
    same(found, expected, "prompt states")
    return f"{len(theirs.tokenizer) - FIRST} tokens"


case(diffusers_encoder, "sd1", [embedding("concept.safetensors"), embedding("learned_embeds.bin")], name="diffusers.sd1")
case(diffusers_encoder, "sd1", [embedding("a1111.pt", "<cat>")], name="diffusers.sd1-a1111")
case(diffusers_encoder, "sd1", [embedding("kohya.safetensors", "<cat>")], name="diffusers.sd1-kohya")
case(diffusers_encoder, "sd2_v", [embedding("kohya.safetensors", "<cat>")], name="diffusers.sd2")


@case
def diffusers_sdxl(run):
    """Both encoders, and the pooled state, which the published eos_token_id 2 would take from the new token."""
    import torch
    from safetensors.torch import load_file
    name = embedding("sdxl.safetensors")
    out = merge(run, folder_of("sdxl"), run.path("out"), name + ":<cat>")
    theirs, ours = pipeline("StableDiffusionXLPipeline", readable("sdxl", run)), pipeline("StableDiffusionXLPipeline", out)
    state = load_file(name)
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(theirs, "text_encoder" + number), getattr(theirs, "tokenizer" + number)
        theirs.load_textual_inversion(state[key], token="<cat>", text_encoder=encoder, tokenizer=tokenizer)
        same(getattr(ours, "text_encoder" + number).get_input_embeddings().weight, encoder.get_input_embeddings().weight, "token embedding" + number, 0)
        check_tokens(os.path.join(out, "tokenizer" + number), {"<cat>": 300, "<cat>_1": 301})
        expect(getattr(ours, "text_encoder" + number).config.eos_token_id == FIRST - 1, "eos_token_id")

    def states(pipe):
        prompt = pipe.maybe_convert_prompt(PROMPT, pipe.tokenizer)
        found = pipe.encode_prompt(prompt, prompt_2=prompt, device="cpu", do_classifier_free_guidance=False)
        return found[0], found[2]

    with torch.no_grad():
        plain, wrong = states(theirs)
        for encoder in (theirs.text_encoder, theirs.text_encoder_2):
            for part in (encoder, getattr(encoder, "text_model", encoder)):
                part.config.eos_token_id = FIRST - 1
                if hasattr(part, "eos_token_id"):
                    part.eos_token_id = FIRST - 1
        expected, pooled = states(theirs)
        found, found_pooled = states(ours)
    same(found, expected, "prompt states")
    same(plain, expected, "prompt states with the published end marker")
    same(found_pooled, pooled, "pooled state")
    expect(float((wrong - pooled).abs().max()) > 1e-3, "the published eos_token_id pools at the right place: the check shows nothing")
    return f"pooled states, with the published end marker off by {float((wrong - pooled).abs().max()):.2f}"


if __name__ == "__main__":
    sys.exit(case.main())
