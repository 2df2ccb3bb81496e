#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs a script of kohya-ss/sd-scripts with today's diffusers and transformers.

usage: kohya_shim.py SD_SCRIPTS SCRIPT [ARGUMENT …]

The scripts ask for versions of 2022 and import, through library/train_util.py, packages that a merge never calls. What has been renamed
is given back under its old name, and packages that are not installed become empty modules. Nothing that takes part in the merge
is replaced: what is timed is the script's own code on the installed torch.
"""
import importlib
import importlib.util
import os
import runpy
import sys
import types

# Imported at the top of the scripts' modules, called by training and inference alone.
UNUSED = ("torchvision", "torchvision.transforms", "cv2", "imagesize", "toml", "einops", "library.lpw_stable_diffusion",
          "library.sdxl_lpw_stable_diffusion")


class AnyName(type):
    """The type of classes with every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Unused


class Unused(metaclass=AnyName):
    """Stands for every name of a package that is not there; may be called and derived from."""

    def __init__(self, *_, **__):
        pass


class Package(types.ModuleType):
    """A module with every name."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Unused


def give_back_text_model():
    """transformers 5 drops the level `text_model` of a CLIP text encoder, whose names the scripts read and write."""
    import torch
    import transformers
    today = transformers.CLIPTextModel
    if "text_model" in dict(today._from_config(transformers.CLIPTextConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=1,
                                                                           vocab_size=8)).named_children()):
        return

    class CLIPTextModel(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.text_model = inner

        @classmethod
        def _from_config(cls, config):
            return cls(today._from_config(config))

    sys.modules[today.__module__].CLIPTextModel = CLIPTextModel  # where the lazy package looks it up
    transformers.CLIPTextModel = CLIPTextModel


def main():
    folder, script = os.path.abspath(sys.argv[1]), sys.argv[2]
    sys.path[:0] = [os.path.dirname(os.path.join(folder, script)), folder]
    for library in ("torch", "transformers", "diffusers", "accelerate"):  # they look for some of these packages: first without ours
        importlib.import_module(library)
    give_back_text_model()
    missing = {name for name in UNUSED if "." not in name and importlib.util.find_spec(name) is None}
    for name in UNUSED:
        if name.startswith("library.") or name.split(".")[0] in missing:
            sys.modules[name] = Package(name)
    sys.argv = [os.path.join(folder, script)] + sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
