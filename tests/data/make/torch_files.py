# SPDX-License-Identifier: MIT
"""Small files of every container that torch.save and pickle.dump ever wrote, each with a .safetensors twin of what it must give.

    python tests/data/make/torch_files.py [FOLDER]

legacy.pt        torch.save without zip: views, shared storages, every element type, a Parameter, an empty and a 0-d tensor; legacy.4.pt the
                 same in pickle protocol 4
lightning.ckpt   a training run (zip): state_dict, optimizer, callbacks and hyper parameters of classes that are not installed,
                 numpy scalars and arrays; lightning_legacy.ckpt the same without zip
module.pt        a whole pickled module with submodules, buffers and a ParameterDict; module_legacy.pt the same without zip
arrays.N.pkl     pickle.dump of numpy arrays, protocols 2 to 5: both byte orders, Fortran order, 0-d, nested, scalars, strings
tensors.N.pkl    pickle.dump of the tensors of legacy.pt
tar.pt           the tar layout of torch 0.1, put together here; torch.load still reads it
big_endian.pt    a zip whose storages are big-endian
"""
import collections
import copy
import io
import os
import pickle
import struct
import sys
import tarfile
import types
import warnings
import zipfile

import numpy as np
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "..", "torch")
warnings.simplefilter("ignore")
torch.manual_seed(7)


def twin(name, tensors):
    flat = {key: value.detach().resolve_conj().contiguous().clone() for key, value in tensors.items()}
    save_file(flat, os.path.join(OUT, name + ".safetensors"))
    os.chmod(os.path.join(OUT, name + ".safetensors"), 0o644)


def path(name):
    return os.path.join(OUT, name)


def tensors():
    base = torch.arange(24, dtype=torch.float32)
    half = torch.randn(4, 6).half()
    return collections.OrderedDict([
        ("f32", torch.randn(3, 5)), ("f64", torch.randn(7, dtype=torch.float64)), ("f16", half), ("bf16", torch.randn(2, 9).bfloat16()),
        ("i64", torch.tensor([-1, 2**62, 5])), ("i32", torch.tensor([[-7, 2**31 - 1]], dtype=torch.int32)),
        ("i16", torch.tensor([-300, 300], dtype=torch.int16)), ("i8", torch.tensor([-128, 127], dtype=torch.int8)),
        ("u8", torch.arange(11, dtype=torch.uint8)), ("bool", torch.tensor([True, False, True])),
        ("f8", torch.tensor([1.5, -2.0, 0.25]).to(torch.float8_e4m3fn)), ("u16", torch.tensor([1, 65535], dtype=torch.uint16)),
        ("scalar", torch.tensor(2.5)), ("empty", torch.zeros(0, 4)), ("transposed", half.t()),
        ("middle", base[6:12].view(2, 3)), ("overlap", base[10:14]), ("columns", base.view(4, 6)[:, 1:5:2]),
        ("expanded", base[3].expand(2, 3)), ("channels_last", torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)),
        ("parameter", torch.nn.Parameter(torch.randn(3))), ("tied", half),
    ])


def foreign():
    """Classes of a package that the reader has never heard of."""
    names = ["lightning_fake", "lightning_fake.callbacks", "lightning_fake.config"]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    for module, cls in [(names[1], "ModelCheckpoint"), (names[2], "AttributeDict"), (names[2], "Node")]:
        bases = (dict,) if cls == "AttributeDict" else ()
        setattr(sys.modules[module], cls, type(cls, bases, {"__module__": module}))
    return sys.modules[names[1]].ModelCheckpoint, sys.modules[names[2]].AttributeDict, sys.modules[names[2]].Node


def lightning():
    callback, attributes, node = foreign()
    state = collections.OrderedDict([("net.weight", torch.randn(4, 3)), ("net.bias", torch.randn(4)),
                                     ("mean", np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)),
                                     ("std", np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3))),
                                     ("table", np.arange(4, dtype=">i4"))])
    state._metadata = collections.OrderedDict([("", {"version": 1})])
    config = node()
    config.tree = {"a": [1, 2], "b": None}
    return state, {
        "epoch": 3, "global_step": np.int64(470000), "pytorch-lightning_version": "1.4.2", "state_dict": state,
        "callbacks": {callback: {"best_model_score": torch.tensor(0.125), "wait_count": 0, "kth": {"x.ckpt": np.float64(0.5)}}},
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": torch.randn(4, 3)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
        "lr_schedulers": [], "hyper_parameters": attributes(width=3, name="net", nested=attributes(x=1)), "config": config,
        "ema_decay": np.float32(0.5), "flag": np.bool_(True), "loops": {"fit": {"done": {1, 2}}},
    }


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        self.table = torch.nn.ParameterDict({"left": torch.nn.Parameter(torch.randn(2)), "right": torch.nn.Parameter(torch.randn(3))})
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("gone", torch.arange(4), persistent=False)


def arrays():
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    return collections.OrderedDict([
        ("f4", grid), ("f8", np.array([0.1, -2.5])), ("f2", np.array([1, 2, 3], dtype=np.float16)), ("i8", np.array([-1, 2**40])),
        ("i4", np.array([[1, -2]], dtype=np.int32)), ("i2", np.array([-5], dtype=np.int16)), ("i1", np.array([-5, 5], dtype=np.int8)),
        ("u1", np.arange(200, 210, dtype=np.uint8)), ("u2", np.array([65535], dtype=np.uint16)), ("b1", np.array([True, False])),
        ("big", np.array([1.5, -2.25], dtype=">f4")), ("big_grid", np.asfortranarray(np.arange(6, dtype=">i8").reshape(2, 3))),
        ("fortran", np.asfortranarray(grid)), ("view", grid[:, 1:3]), ("scalar", np.array(7.5)), ("empty", np.zeros((0, 3), dtype=np.float32)),
        ("nested", {"a": np.ones(3, dtype=np.float32), "b": [np.zeros(2, dtype=np.float32), np.full(1, 4, dtype=np.float32)]}),
        ("step", np.int64(12)), ("rate", 0.25), ("name", "model"), ("words", np.array(["a", "bc"])), ("objects", np.array([None, {}], dtype=object)),
    ])


def flattened(value, prefix=""):
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            return {}
        return {prefix: torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    out = {}
    for key, inner in items:
        out.update(flattened(inner, f"{prefix}.{key}" if prefix else str(key)))
    return out


class NumberedPickler(pickle._Pickler):
    """Pickles tensors as the numbers that the member `tensors` gives them."""

    def persistent_id(self, value):
        return str(1000 + value[1]) if isinstance(value, tuple) and value[:1] == ("tensor-number",) else None


class _Tag:
    def __init__(self, module, name):
        self.text = f"c{module}\n{name}\n"


def dump(value):
    """Protocol 2 by hand, where a class must be named that no torch of today has."""
    if isinstance(value, _Tag):
        return value.text.encode()
    if isinstance(value, int):
        return b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value)) + value.encode()
    return b"(" + b"".join(dump(v) for v in value) + b"t"


def program(body):
    return b"\x80\x02" + body + b"."


def tar_file():
    """Two storages and a part of the second one; three tensors, of which one is a transposed view."""
    first, second = torch.arange(12, dtype=torch.float32), torch.arange(8, dtype=torch.int64)
    storages = program(dump(2))
    for key, kind, data in [(11, "FloatStorage", first), (12, "LongStorage", second)]:
        storages += program(dump((key, "cpu", _Tag("torch", kind)))) + struct.pack("<q", data.numel()) + data.numpy().tobytes()
    storages += program(b"](" + dump((13, 12, 2, 4)) + b"e")
    described = program(dump(3))
    for key, storage, kind, sizes, strides, offset in [
            (1000, 11, "FloatTensor", (3, 4), (4, 1), 0), (1001, 11, "FloatTensor", (2, 3), (1, 2), 2), (1002, 13, "LongTensor", (3,), (1,), 1)]:
        described += program(dump((key, storage, _Tag("torch", kind)))) + struct.pack("<iI", len(sizes), 0)
        described += struct.pack(f"<{2 * len(sizes) + 1}q", *sizes, *strides, offset)
    buffer = io.BytesIO()
    NumberedPickler(buffer, 2).dump({"weight": ("tensor-number", 0), "sub": {"view": ("tensor-number", 1), "part": ("tensor-number", 2)}, "epoch": 4})
    system = {"protocol_version": 1000, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with tarfile.open(path("tar.pt"), "w:", format=tarfile.PAX_FORMAT) as tar:
        for name, data in [("sys_info", pickle.dumps(system, 2)), ("pickle", buffer.getvalue()), ("tensors", described), ("storages", storages)]:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1490000000.5  # a fraction of a second needs an extended header, as torch's files have it
            tar.addfile(info, io.BytesIO(data))
    expected = {"weight": first.view(3, 4), "sub.view": first.as_strided((2, 3), (1, 2), 2), "sub.part": second[3:6]}
    loaded = torch.load(path("tar.pt"), weights_only=False)
    for key, value in flattened(loaded).items():
        assert torch.equal(value, expected[key]), key
    twin("tar", expected)


def big_endian():
    kinds = {"f32": torch.randn(2, 3), "bf16": torch.randn(4).bfloat16(), "i64": torch.tensor([1, -2]), "u8": torch.arange(5, dtype=torch.uint8),
             "c64": torch.randn(2, dtype=torch.complex64)}
    kinds["transposed"] = torch.randn(3, 4).t()
    buffer = io.BytesIO()
    torch.save(kinds, buffer)
    widths = {}
    for index, value in enumerate(kinds.values()):
        widths[f"archive/data/{index}"] = value.element_size() // (2 if value.is_complex() else 1)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path("big_endian.pt"), "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("/byteorder"):
                data = b"big"
            if entry.filename in widths:
                data = np.frombuffer(data, dtype=f"<u{widths[entry.filename]}").byteswap().tobytes()
            if "/." not in entry.filename:  # what describes the layout of the original file
                new.writestr(zipfile.ZipInfo(entry.filename), data)
    for key, value in torch.load(path("big_endian.pt")).items():
        assert torch.equal(value, kinds[key]), key
    twin("big_endian", kinds)


def main():
    os.makedirs(OUT, exist_ok=True)
    values = tensors()
    torch.save(values, path("legacy.pt"), _use_new_zipfile_serialization=False)
    torch.save(values, path("legacy.4.pt"), pickle_protocol=4, _use_new_zipfile_serialization=False)
    twin("legacy", values)
    state, run = lightning()
    torch.save(run, path("lightning.ckpt"))
    torch.save(copy.copy(run), path("lightning_legacy.ckpt"), _use_new_zipfile_serialization=False)
    twin("lightning", flattened(dict(state)))
    net = Net()
    torch.save(net, path("module.pt"))
    torch.serialization.get_source_lines_and_file = lambda cls: (["source of " + cls.__name__ + "\n"], 0, "net.py")
    torch.save(net, path("module_legacy.pt"), _use_new_zipfile_serialization=False)
    twin("module", net.state_dict())
    for protocol in (2, 3, 4, 5):
        with open(path(f"arrays.{protocol}.pkl"), "wb") as file:
            pickle.dump(arrays(), file, protocol=protocol)
    twin("arrays", flattened(arrays()))
    for protocol in (2, 4):
        with open(path(f"tensors.{protocol}.pkl"), "wb") as file:
            pickle.dump(values, file, protocol=protocol)
    tar_file()
    big_endian()


if __name__ == "__main__":
    main()
