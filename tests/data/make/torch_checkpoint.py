# SPDX-License-Identifier: MIT
"""The sd1 model as a training run leaves it: torch.save of a Lightning dictionary (zip container, pickle protocol 2).

    python tests/data/make/torch_checkpoint.py [FOLDER] [OUT.ckpt] [--dtype F16|F32] [--no-ema]

Everything a reader must cope with is in it: `state_dict` nested, callbacks keyed by a class that is not installed, a numpy
scalar, position_ids, an EMA copy with other values, schedule buffers, a transposed view, and three tensors in one storage.
"""
import argparse
import os
import sys
import types

import numpy as np
import torch

import ldm

HERE = os.path.dirname(os.path.abspath(__file__))


def lightning_callback():
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    cls = type("ModelCheckpoint", (), {"__module__": names[-1]})
    sys.modules[names[-1]].ModelCheckpoint = cls
    return cls


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default=os.path.join(HERE, "..", "sd1", "diffusers"))
    parser.add_argument("out", nargs="?", default=os.path.join(HERE, "..", "sd1", "sd1.ckpt"))
    parser.add_argument("--dtype", default="F16", choices=["F16", "F32"])
    parser.add_argument("--no-ema", action="store_true")
    arguments = parser.parse_args()
    tensors = ldm.convert(arguments.folder)
    if not arguments.no_ema:
        tensors.update(ldm.ema(tensors))
    kind = torch.float16 if arguments.dtype == "F16" else torch.float32
    state = {}
    for key, value in tensors.items():
        tensor = torch.from_numpy(np.array(value))
        keep = not tensor.is_floating_point() or key in ldm.schedule_buffers() or key == "model_ema.decay"
        state[key] = tensor if keep else tensor.to(kind)
    # a view with strides (1, n), and three tensors that share one storage at different offsets
    view = next(k for k in state if k.endswith("attn1.to_q.weight") and k.startswith("model."))
    state[view] = state[view].t().contiguous().t()
    shared = [k for k in state if k.endswith(("ff.net.2.bias", "attn1.to_out.0.bias", "attn2.to_out.0.bias")) and k.startswith("model.")][:3]
    joined = torch.cat([state[k].flatten() for k in shared])
    offset = 0
    for key in shared:
        count = state[key].numel()
        state[key] = joined[offset:offset + count].view(state[key].shape)
        offset += count
    torch.save({
        "epoch": 11, "global_step": np.int64(470000), "pytorch-lightning_version": "1.4.2", "state_dict": state,
        "callbacks": {lightning_callback(): {"monitor": "val/loss_simple_ema", "best_model_score": torch.tensor(0.125),
                                             "best_model_path": "logs/run/checkpoints/epoch=000010.ckpt", "current_score": None}},
        "optimizer_states": [], "lr_schedulers": [],
    }, arguments.out)


if __name__ == "__main__":
    main()
