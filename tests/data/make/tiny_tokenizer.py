# SPDX-License-Identifier: MIT
"""A real CLIP tokenizer, only smaller: printable ASCII, merges trained on a few sentences, the two markers last."""
import collections
import json
import os

VOCABULARY = 300

SENTENCES = """a photo of an astronaut riding a horse on the moon
a painting of a small house near the river in the morning light
a detailed drawing of the old city at night with many lights
the cat and the dog are sleeping under the table in the garden
portrait of a woman with a red hat standing in front of a mountain
a landscape with trees and water and a bridge of stone in autumn
high quality photograph of a glass of water on a wooden table"""


def train(count):
    words = collections.Counter(SENTENCES.split())
    split = {w: tuple(w[:-1]) + (w[-1] + "</w>",) for w in words}
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for word, parts in split.items():
            out, i = [], 0
            while i < len(parts):
                if parts[i:i + 2] == best:
                    out.append(best[0] + best[1])
                    i += 2
                else:
                    out.append(parts[i])
                    i += 1
            split[word] = tuple(out)
    return merges


def write_tokenizer(folder, pad):
    letters = [chr(c) for c in range(33, 127)]
    merges = train(VOCABULARY - 2 * len(letters) - 2)
    tokens = letters + [c + "</w>" for c in letters] + [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == len(set(tokens)) == VOCABULARY
    os.makedirs(folder, exist_ok=True)

    def write(name, value):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
            out.write(value)

    def marker(content, normalized=True):
        return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False)

    write("vocab.json", json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    write("merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write("special_tokens_map.json", json.dumps(dict(
        bos_token=marker("<|startoftext|>"), eos_token=marker("<|endoftext|>"), pad_token=pad,
        unk_token=marker("<|endoftext|>")), indent=2) + "\n")
    write("tokenizer_config.json", json.dumps(dict(
        add_prefix_space=False, bos_token=dict(marker("<|startoftext|>"), __type="AddedToken"), do_lower_case=True,
        eos_token=dict(marker("<|endoftext|>"), __type="AddedToken"), errors="replace", model_max_length=77,
        pad_token=pad, tokenizer_class="CLIPTokenizer", unk_token=dict(marker("<|endoftext|>"), __type="AddedToken")),
        indent=2) + "\n")
