#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Small files to start fuzzing from, right and wrong ones, one folder a target. Needs nothing but Python.

usage: seeds.py FOLDER
"""
import collections
import io
import json
import pathlib
import pickle
import struct
import sys
import zipfile
import zlib

SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
         "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8}


def safetensors(tensors, metadata=None, pad=0, tail=b""):
    """tensors: (name, dtype, shape) in the order of the file."""
    header, at = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, dtype, shape in tensors:
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return raw_safetensors(json.dumps(header, separators=(",", ":")) + " " * pad, bytes(i % 251 for i in range(at)) + tail)


def raw_safetensors(header, data=b"", length=None):
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def safetensors_seeds():
    yield "one", safetensors([("w", "F32", [2, 3])])
    yield "every_dtype", safetensors([(d.lower(), d, [2]) for d in SIZES])
    yield "metadata", safetensors([("a.b", "F16", [4])], {"format": "pt", "note": "ü"})
    yield "scalar_and_empty", safetensors([("s", "F64", []), ("e", "F32", [0, 3])])
    yield "padded", safetensors([("w", "BF16", [3])], pad=5)
    yield "six_bits", raw_safetensors('{"w":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]},"v":{"dtype":"F4","shape":[2,2],"data_offsets":[3,5]}}', b"12345")
    yield "no_tensors", raw_safetensors("{}")
    yield "tail", safetensors([("w", "F32", [1])], tail=b"x")
    yield "length_past_end", raw_safetensors("{}", length=2 ** 40)
    yield "length_all_ones", raw_safetensors("{}", length=2 ** 64 - 1)
    yield "overlap", raw_safetensors('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}', b"123456")
    yield "hole", raw_safetensors('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}', b"123456")
    yield "same_bytes_twice", raw_safetensors('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"1234")
    yield "duplicate_key", raw_safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1")
    yield "overflow", raw_safetensors('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}')
    yield "negative", raw_safetensors('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234")
    yield "deep", raw_safetensors('{"a":' + "[" * 100 + "]" * 100 + "}")
    yield "bad_utf8", raw_safetensors(b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1")
    yield "unknown_field", raw_safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{"y":[1,null,1.5e3,true]}}}', b"1")
    yield "unknown_dtype", raw_safetensors('{"a":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}', bytes(16))
    yield "control_name", raw_safetensors('{"\\u202e\\n\\u0000":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1")
    yield "float_offsets", raw_safetensors('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1e0]}}', b"1")
    yield "lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def archive(entries, method=zipfile.ZIP_STORED, comment=b""):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in entries:
            z.writestr(zipfile.ZipInfo(name), data, method)
        z.comment = comment
    return out.getvalue()


class Unseekable(io.BytesIO):
    """zipfile writes data descriptors to files it cannot seek in."""
    def seekable(self):
        return False

    def tell(self):
        raise OSError

    def seek(self, *_):
        raise OSError


def zip_seeds():
    stored = archive([("a/b", b"hello"), ("a/c", b"x" * 100)])
    yield "stored", stored
    yield "deflated", archive([("a/b", b"hello" * 50), ("d", b"")], zipfile.ZIP_DEFLATED)
    yield "comment", archive([("a", b"1")], comment=b"PK\5\6 not an end")
    yield "folder", archive([("f/", b""), ("f/x", b"1")])
    yield "empty", archive([])
    out = Unseekable()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("streamed", b"contents", zipfile.ZIP_DEFLATED)
    yield "data_descriptor", out.getvalue()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        with z.open("wide", "w", force_zip64=True) as f:
            f.write(b"contents")
    yield "zip64_entry", out.getvalue()
    yield "bad_crc", stored.replace(b"hello", b"hellO")
    yield "cut", stored[:-5]
    yield "prefixed", b"#!/bin/sh\n" + stored
    yield "twice", stored + stored
    yield "leaves_folder", archive([("../a", b"1")])
    yield "absolute", archive([("/a", b"1")])
    yield "same_name", archive_raw([("a", b"1"), ("a", b"2")])
    yield "encrypted", archive_raw([("a", b"1")], flags=1)
    yield "lzma", archive_raw([("a", b"1")], method=14)
    yield "huge_size", archive_raw([("a", b"1")], size=0xFFFFFFFE)
    yield "bomb", archive([("a", bytes(200000))], zipfile.ZIP_DEFLATED)


def archive_raw(entries, flags=0, method=0, size=None):
    out, directory = b"", b""
    for name, data in entries:
        at = len(out)
        common = struct.pack("<HHIIIIH", flags, method, 0, zlib.crc32(data), len(data), len(data) if size is None else size, len(name))
        out += b"PK\3\4" + struct.pack("<H", 20) + common + struct.pack("<H", 0) + name.encode() + data
        directory += b"PK\1\2" + struct.pack("<HH", 20, 20) + common + struct.pack("<HHHHII", 0, 0, 0, 0, 0, at) + name.encode()
    return out + directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(out), 0)


class Raw:
    """Opcodes put together by hand."""
    @staticmethod
    def text(s):
        return b"X" + struct.pack("<I", len(s.encode())) + s.encode()

    @staticmethod
    def number(n):
        return b"K" + bytes([n]) if 0 <= n < 256 else b"\x8a\x08" + struct.pack("<q", n)

    @staticmethod
    def tuple(values):
        return b"(" + b"".join(Raw.number(v) for v in values) + b"t"

    @staticmethod
    def tensor(shape=(2, 3), stride=(3, 1), storage="FloatStorage", key="0", numel=6, offset=0):
        return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + Raw.text("storage") + b"ctorch\n" + storage.encode() + b"\n" + Raw.text(key) +
                Raw.text("cpu") + Raw.number(numel) + b"tQ" + Raw.number(offset) + Raw.tuple(shape) + Raw.tuple(stride) +
                b"\x89ccollections\nOrderedDict\n)RtR")

    @staticmethod
    def typed(dtype, shape, nbytes, key="0"):
        return (b"ctorch._utils\n_rebuild_tensor_v3\n((" + Raw.text("storage") + b"ctorch.storage\nUntypedStorage\n" + Raw.text(key) +
                Raw.text("cpu") + Raw.number(nbytes) + b"tQK\0" + Raw.tuple(shape) + Raw.tuple([1] * len(shape)) +
                b"\x89ccollections\nOrderedDict\n)Rctorch\n" + dtype.encode() + b"\ntR")


def state(items, extra=b""):
    return b"\x80\x02}(" + b"".join(Raw.text(k) + v for k, v in items) + extra + b"u."


def pickles():
    yield "one_tensor", state([("w", Raw.tensor())])
    yield "views", state([("a", Raw.tensor(shape=(2, 2), stride=(1, 2), numel=6)), ("b", Raw.tensor(shape=(2,), stride=(3,), numel=6, offset=1)),
                          ("c", Raw.tensor(shape=(3, 2), stride=(0, 1), numel=6))])
    yield "types", state([(s, Raw.tensor(shape=(2,), stride=(1,), storage=s, key=str(i % 3), numel=2)) for i, s in enumerate(
        ["HalfStorage", "LongStorage", "ByteStorage"])])
    yield "untyped", state([("f8", Raw.typed("float8_e4m3fn", [4], 4)), ("u16", Raw.typed("uint16", [2], 4, "1"))])
    yield "lightning", state([("epoch", b"K\5"), ("global_step", b"M\1\2"), ("state_dict", b"}(" + Raw.text("w") + Raw.tensor() + b"u"),
                              ("callbacks", b"cpytorch_lightning.callbacks\nModelCheckpoint\n)R}" + Raw.text("a") + b"K\1sb"),
                              ("optimizer_states", b"](" + Raw.tensor() + b"e")])
    yield "ordered", b"\x80\x02ccollections\nOrderedDict\n)R(" + Raw.text("w") + Raw.tensor() + b"u}" + Raw.text("_metadata") + b"}sb."
    yield "module", (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81}(" + Raw.text("_parameters") + b"}" + Raw.text("weight") +
                     b"ctorch._utils\n_rebuild_parameter\n" + Raw.tensor() + b"\x88ccollections\nOrderedDict\n)R\x87Rs" + Raw.text("_buffers") + b"}" +
                     Raw.text("_modules") + b"}ub.")
    yield "tied", state([("a", Raw.tensor() + b"q\0"), ("b", b"h\0")])
    yield "outside", state([("w", Raw.tensor(shape=(1000,), stride=(1,), numel=6))])
    yield "huge_stride", state([("w", Raw.tensor(shape=(2, 2), stride=(2 ** 62, 2 ** 62)))])
    yield "huge_repeat", state([("w", Raw.tensor(shape=(2 ** 40,), stride=(0,)))])
    yield "system", b"\x80\x02cos\nsystem\n" + Raw.text("id") + b"\x85R."
    yield "cycle", b"\x80\x02]q\0h\0a."
    yield "tuple_cycle", b"\x80\x02]q\0(h\0tq\1a."
    yield "billion_laughs", b"\x80\x02" + b"(" + b"]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(40)) + b"t."
    yield "deep", b"\x80\x02" + b"]" * 300 + b"a" * 299 + b"."
    yield "marks", b"\x80\x02" + b"(" * 1500
    yield "no_stop", b"\x80\x02}"
    yield "protocol_0", b"(dp0\nS'a'\np1\nI1\ns."
    yield "text_forms", b"\x80\x02(I01\nI-5\nL12L\nF1.5\nS'a\\x41'\nVb\\u00e9\n\x8a\x01\xff\x8b\x02\0\0\0\1\2G?\xf0\0\0\0\0\0\0l."
    yield "numpy_scalar", state([("w", Raw.tensor()), ("loss", b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + Raw.text("f8") +
                                 b"\x89\x88\x87R(K\3" + Raw.text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbB\x08\0\0\0\0\0\0\0\0\0\xf0?\x86R")])
    yield "numpy_array", state([("a", b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85B\1\0\0\0b\x87R(K\1" + Raw.tuple([2]) + b"cnumpy\ndtype\n" +
                                 Raw.text("f4") + b"\x89\x88\x87R(K\3" + Raw.text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89B\x08\0\0\0abcdefghtb")])
    for protocol in range(2, 6):
        yield "python_%d" % protocol, pickle.dumps({"a": [1, 2 ** 70, -3, 1.5, None, True], "b": ("x", b"y", "ü" * 300), 3: {"s"}, "o": collections.OrderedDict(a=1),
                                                    "c": complex(1, 2), "f": frozenset([1])}, protocol)


def torch_zip(data_pkl, storages=((bytes(range(24)),)), extra=(), method=zipfile.ZIP_STORED):
    entries = [("m/data.pkl", data_pkl), ("m/byteorder", b"little")]
    entries += [("m/data/%d" % i, s) for i, s in enumerate(storages)]
    return archive(entries + [("m/version", b"3\n")] + list(extra), method)


def torch_zips():
    for name, data in pickles():
        yield name, torch_zip(data, [bytes(range(24)), bytes(range(16)), bytes(range(8))])
    one = state([("w", Raw.tensor())])
    yield "deflated", torch_zip(one, method=zipfile.ZIP_DEFLATED)
    yield "script", torch_zip(one, extra=[("m/constants.pkl", b"\x80\x02).")])
    yield "two_pickles", torch_zip(one, extra=[("n/data.pkl", one)])
    yield "missing_storage", torch_zip(one, storages=())
    yield "short_storage", torch_zip(one, storages=(b"abc",))
    yield "big_endian", archive([("m/data.pkl", one), ("m/byteorder", b"big"), ("m/data/0", bytes(24))])


def legacy(keys=("1",), tensor_bytes=24, protocol=2):
    out = pickle.dumps(0x1950A86A20F9469CFC6C, protocol) + pickle.dumps(1001, protocol)
    out += pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, protocol)
    body = b"\x80\x02}("
    for i, key in enumerate(keys):
        body += Raw.text("w%d" % i) + (b"ctorch._utils\n_rebuild_tensor_v2\n((" + Raw.text("storage") + b"ctorch\nFloatStorage\n" + Raw.text(key) + Raw.text("cpu") +
                                       Raw.number(tensor_bytes // 4) + b"NtQK\0" + Raw.tuple([2, 3]) + Raw.tuple([3, 1]) + b"\x89ccollections\nOrderedDict\n)RtR")
    out += body + b"u."
    out += pickle.dumps(list(keys), protocol)
    for _ in keys:
        out += struct.pack("<q", tensor_bytes // 4) + bytes(range(tensor_bytes))
    return out


def tar(entries):
    import tarfile
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as t:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue().rstrip(b"\0") + bytes(1024)


def torch_01():
    """A tar file of torch 0.1: sys_info, pickle, storages, tensors."""
    storages = pickle.dumps(1, 2) + b"\x80\x02(" + Raw.text("1") + Raw.text("cpu") + b"ctorch\nFloatStorage\nt." + struct.pack("<q", 6) + bytes(range(24))
    tensors = pickle.dumps(1, 2) + b"\x80\x02(" + Raw.text("5") + Raw.text("1") + b"ctorch\nFloatTensor\nt." + struct.pack("<i", 2) + bytes(4)
    tensors += struct.pack("<qq", 2, 3) + struct.pack("<qq", 3, 1) + struct.pack("<q", 0)
    return tar([("sys_info", pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {"int": 4, "long": 8}}, 2)),
                ("pickle", b"\x80\x02}" + Raw.text("w") + Raw.text("5") + b"Qs."), ("storages", storages), ("tensors", tensors)])


def legacy_seeds():
    yield "legacy_one", legacy()
    yield "legacy_two", legacy(("1", "2"))
    yield "legacy_protocol_4", legacy(protocol=4)
    yield "legacy_cut", legacy()[:-7]
    yield "legacy_tail", legacy() + b"tail"
    yield "tar_one", torch_01()
    yield "tar_cut", torch_01()[:900]
    for name, data in pickles():
        if name in ("one_tensor", "numpy_array", "numpy_scalar", "ordered", "python_4"):
            yield "bare_" + name, data


def index_seeds():
    def index(weight_map, **more):
        return json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map, **more}).encode()
    yield "two_shards", index({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"})
    yield "one", index({"w": "m.safetensors"})
    yield "no_metadata", b'{"weight_map":{"a":"b.bin"}}'
    yield "float_size", b'{"metadata":{"total_size":1.2e10},"weight_map":{"a":"b.bin"}}'
    yield "leaves_folder", index({"a": "../b.safetensors"})
    yield "absolute", index({"a": "/etc/passwd"})
    yield "empty_name", index({"a": ""})
    yield "nested", index({"a": "x/b.safetensors"})
    yield "number", b'{"weight_map":{"a":1}}'
    yield "list", b'{"weight_map":["a"]}'
    yield "no_map", b'{"metadata":{}}'
    yield "empty_map", b'{"weight_map":{}}'
    yield "twice", b'{"weight_map":{"a":"b","a":"c"}}'
    yield "two_maps", b'{"weight_map":{"a":"b"},"weight_map":{"c":"d"}}'
    yield "deep", b'{"x":' + b"[" * 70 + b"]" * 70 + b"}"
    yield "control", index({"\u202e": "a\n.bin"})


YAML = b"""model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    timesteps: 1000
    scale_factor: 0.18215 # of latents
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        in_channels: 4
        model_channels: 320
        attention_resolutions: [ 4, 2, 1 ]
        channel_mult: [ 1, 2, 4, 4 ]
        num_head_channels: 64
        use_linear_in_transformer: True
        context_dim: 1024
    items:
    - one
    - key: 'a'
      other: {a: 1, b: [x, y]}
    text: |
      block
      text
"""


def config_seeds(data):
    for model in sorted(p for p in data.iterdir() if (p / "folder").is_dir() or p.is_dir()):
        for path in sorted(model.rglob("*.json")):
            text = path.read_bytes()
            if len(text) <= 2500 and "tokenizer" not in str(path):
                yield "%s_%s" % (model.name, "_".join(path.relative_to(model).parts[-2:])), text
    yield "yaml_v2", YAML
    yield "yaml_short", b"a: 1\nb: [1, 2, {c: d}]\n- x\n"
    yield "json_forms", b'[0, -0.0, 1e308, 1e-320, 9223372036854775807, -9223372036854775808, 0.1, true, null, "\\ud83d\\ude00\\u0000", {}, []]'
    yield "json_too_large", b'[1e999]'
    yield "json_big_integer", b'[18446744073709551615]'
    yield "json_lone_surrogate", b'["\\ud800"]'
    yield "json_deep", b"[" * 80 + b"]" * 80
    yield "json_twice", b'{"a":1,"a":2}'
    yield "shapes_clip", json.dumps({"weights": {
        "text_model.embeddings.token_embedding.weight": [100, 64], "text_model.embeddings.position_embedding.weight": [77, 64],
        "text_model.encoder.layers.0.mlp.fc1.weight": [256, 64], "text_model.encoder.layers.0.self_attn.q_proj.weight": [64, 64],
        "text_projection.weight": [64, 64]}}).encode()
    vae = {"encoder.conv_in.weight": [32, 3, 3, 3], "decoder.conv_out.weight": [3, 32, 3, 3], "decoder.conv_in.weight": [32, 4, 3, 3],
           "encoder.down_blocks.0.resnets.0.conv1.weight": [32, 32, 3, 3], "decoder.up_blocks.0.resnets.0.conv1.weight": [32, 32, 3, 3],
           "decoder.up_blocks.0.resnets.1.conv1.weight": [32, 32, 3, 3], "encoder.mid_block.attentions.0.to_q.weight": [32, 32],
           "decoder.mid_block.attentions.0.to_q.weight": [32, 32], "encoder.conv_out.weight": [8, 32, 3, 3], "quant_conv.weight": [8, 8, 1, 1]}
    yield "shapes_vae", json.dumps({"weights": vae}).encode()
    unet = {"conv_in.weight": [32, 4, 3, 3], "conv_out.weight": [4, 32, 3, 3], "time_embedding.linear_1.weight": [128, 32],
            "down_blocks.0.resnets.0.conv1.weight": [32, 32, 3, 3], "down_blocks.0.attentions.0.proj_in.weight": [32, 32, 1, 1],
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": [32, 32],
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": [32, 768],
            "mid_block.resnets.0.conv1.weight": [32, 32, 3, 3], "mid_block.resnets.1.conv1.weight": [32, 32, 3, 3],
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": [32, 768], "mid_block.attentions.0.proj_in.weight": [32, 32, 1, 1],
            "up_blocks.0.resnets.0.conv1.weight": [32, 64, 3, 3], "up_blocks.0.resnets.1.conv1.weight": [32, 64, 3, 3],
            "up_blocks.0.attentions.0.proj_in.weight": [32, 32, 1, 1], "up_blocks.0.attentions.1.proj_in.weight": [32, 32, 1, 1],
            "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": [32, 768],
            "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight": [32, 768]}
    yield "shapes_unet", json.dumps({"weights": unet}).encode()
    yield "shapes_checkpoint", json.dumps({"weights": {
        "model.diffusion_model.input_blocks.0.0.weight": [32, 4, 3, 3], "first_stage_model.encoder.conv_in.weight": [32, 3, 3, 3],
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": [100, 64], "model_ema.decay": [], "alphas_cumprod": [1000],
        "lora_unet.x": [1]}}).encode()


def npy(descr, shape, order=False, data=None, version=1, text=None):
    header = text or "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }" % (descr, order, tuple(shape))
    width = 2 if version == 1 else 4
    header += " " * (-(8 + width + len(header) + 1) % 64) + "\n"
    if data is None:
        size = int(descr[2:]) if descr[2:].isdigit() else 8
        for extent in shape:
            size *= extent
        data = bytes(i % 251 for i in range(size))
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header.encode("utf-8") + data


def npys():
    yield "f4", npy("<f4", [2, 3])
    yield "big_endian", npy(">f4", [2])
    yield "fortran", npy("<f8", [2, 3], order=True)
    yield "scalar", npy("<i8", [])
    yield "bool", npy("|b1", [3])
    yield "empty", npy("<f2", [0, 4])
    yield "complex", npy("<c8", [2])
    yield "objects", npy("|O", [1], data=b"\x80\x02N.")
    yield "version_2", npy("<f4", [1], version=2)
    yield "version_3", npy("<f4", [1], version=3)
    yield "record", npy("", [1], text="{'descr': [('a', '<f4'), ('b', '<i8')], 'fortran_order': False, 'shape': (1,), }", data=bytes(12))
    yield "code", npy("", [], text="{'descr': __import__('os').system('id'), 'fortran_order': False, 'shape': (), }", data=bytes(4))
    yield "huge", npy("<f4", [], text="{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", data=b"")
    yield "short", npy("<f4", [10], data=b"abc")


def npz_seeds():
    for name, data in npys():
        yield "npy_" + name, data
        yield "npz_" + name, archive([("a.npy", data)])
    yield "npz_two", archive([("a.npy", npy("<f4", [2])), ("b/c.npy", npy("<i4", [1, 1])), ("note.txt", b"hi")])
    yield "npz_deflated", archive([("a.npy", npy("<f4", [20])), ("b.npy", npy("<u2", [3]))], zipfile.ZIP_DEFLATED)


def gguf(tensors, values=(), version=3, alignment=32, count=None):
    def text(s):
        return struct.pack("<Q", len(s.encode())) + s.encode()
    blocks = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 30: (1, 2), 3: (32, 20), 24: (1, 1), 26: (1, 4), 27: (1, 8), 28: (1, 8), 12: (256, 144)}
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if count is None else count, len(values))
    for key, kind, value in values:
        out += text(key) + struct.pack("<I", kind) + (text(value) if kind == 8 else value)
    at, data = 0, b""
    for name, kind, shape in tensors:
        elements = 1
        for extent in shape:
            elements *= extent
        size = elements // blocks[kind][0] * blocks[kind][1]
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", e) for e in shape) + struct.pack("<IQ", kind, at)
        data += bytes(i % 251 for i in range(size)) + bytes(-size % alignment)
        at = len(data)
    return out + bytes(-len(out) % alignment) + data


def gguf_seeds():
    arch = ("general.architecture", 8, "llama")
    yield "f32", gguf([("w", 0, [3, 2])], [arch])
    yield "f16_bf16", gguf([("a", 1, [4]), ("b", 30, [4])], [arch])
    yield "q8_0", gguf([("w", 8, [32, 2])], [arch])
    yield "q4_0", gguf([("w", 2, [64])], [arch])
    yield "q4_k", gguf([("w", 12, [256])], [arch])
    yield "integers", gguf([("w", 24, [4]), ("v", 26, [1]), ("u", 27, [1])])
    yield "values", gguf([("w", 0, [1])], [arch, ("a", 0, b"\1"), ("b", 1, b"\1"), ("c", 4, struct.pack("<I", 7)), ("d", 6, struct.pack("<f", 1.5)),
                                           ("e", 7, b"\1"), ("f", 10, struct.pack("<Q", 9)), ("g", 12, struct.pack("<d", 2.5)),
                                           ("list", 9, struct.pack("<IQ", 4, 3) + bytes(12)), ("words", 9, struct.pack("<IQQ", 8, 1, 1) + b"x"),
                                           ("nested", 9, struct.pack("<IQIQ", 9, 1, 0, 2) + b"ab")])
    yield "alignment", gguf([("w", 0, [1]), ("v", 0, [1])], [("general.alignment", 4, struct.pack("<I", 64))], alignment=64)
    yield "alignment_zero", gguf([("w", 0, [1])], [("general.alignment", 4, struct.pack("<I", 0))])
    yield "version_2", gguf([("w", 0, [1])], version=2)
    yield "version_1", gguf([("w", 0, [1])], version=1)
    yield "big_endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    yield "no_tensors", gguf([])
    yield "count_huge", gguf([], count=2 ** 61)
    yield "zero_extent", gguf([("w", 0, [0])])
    yield "cut", gguf([("w", 0, [8])])[:-9]
    yield "list_huge", gguf([("w", 0, [1])], [("l", 9, struct.pack("<IQ", 4, 2 ** 62))])


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, value):
    """A field of a protobuf message: a number, a text, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_tensor(name, dims, data=None, kind=1, external=None, more=b""):
    out = b"".join(field(1, d) for d in dims) + field(2, kind) + field(8, name)
    if external:
        out += b"".join(field(13, field(1, k) + field(2, v)) for k, v in external.items()) + field(14, 1)
    elif data is not None:
        out += field(9, data)
    return out + more


def onnx_node(operation, name, inputs, outputs, attributes=()):
    return (b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs) + field(3, name) + field(4, operation) +
            b"".join(field(5, a) for a in attributes))


def onnx(tensors=(), nodes=(), more=b"", ir=8, opset=17):
    graph = b"".join(field(1, n) for n in nodes) + field(2, "g") + b"".join(field(5, t) for t in tensors)
    graph += field(11, field(1, "x") + field(2, field(1, field(1, 1)))) + field(12, field(1, "y"))
    return field(1, ir) + field(2, "seeds") + field(7, graph + more) + field(8, field(1, "") + field(2, opset))


def onnx_seeds():
    matrix = onnx_tensor("onnx::MatMul_1", [2, 3], bytes(range(24)))
    yield "matmul", onnx([matrix, onnx_tensor("a.b.bias", [3], bytes(12))],
                         [onnx_node("MatMul", "/a/b/MatMul", ["x", "onnx::MatMul_1"], ["p"]), onnx_node("Add", "/a/b/Add", ["a.b.bias", "p"], ["y"])])
    yield "gemm", onnx([onnx_tensor("c.weight", [3, 2], bytes(24))],
                       [onnx_node("Gemm", "/c/Gemm", ["x", "c.weight"], ["y"], [field(1, "transB") + field(3, 1) + field(20, 2)])])
    yield "passed_on", onnx([onnx_tensor("w", [2, 2], bytes(8), 10)],
                            [onnx_node("Identity", "i", ["w"], ["d.weight"]), onnx_node("Cast", "c", ["d.weight"], ["e"], [field(1, "to") + field(3, 1) + field(20, 2)]),
                             onnx_node("Transpose", "t", ["e"], ["f"], [field(1, "perm") + field(8, 1) + field(8, 0) + field(20, 7)]),
                             onnx_node("MatMul", "/d/MatMul", ["x", "f"], ["y"])])
    yield "external", onnx([onnx_tensor("a", [2], external={"location": "data", "offset": "8", "length": "8"}),
                            onnx_tensor("b", [4], external={"location": "data", "offset": "32"}), onnx_tensor("c", [2], external={"location": "missing"})])
    yield "external_grows", onnx([onnx_tensor(n, [2], external={"location": "data", "offset": str(8 * i)}) for i, n in enumerate("abcd")])
    yield "typed", onnx([onnx_tensor("f", [2], more=field(4, bytes(8))), onnx_tensor("h", [2], kind=10, more=field(5, b"\x01\x02")),
                         onnx_tensor("i", [2], kind=7, more=field(7, 1) + field(7, 2)), onnx_tensor("u", [1], kind=12, more=field(11, b"\x05"))])
    yield "small_types", onnx([onnx_tensor("q", [3], b"\x21\x03", 22), onnx_tensor("e", [2], b"ab", 17), onnx_tensor("s", [1], kind=8, more=field(6, "t"))])
    branch = field(6, field(1, onnx_node("Identity", "inner", ["x"], ["z"])) + field(5, onnx_tensor("v", [1], bytes(4))))
    yield "branches", onnx([], [onnx_node("If", "if", ["x"], ["y"], [field(1, "then_branch") + branch + field(20, 5)])])
    yield "constant", onnx([], [onnx_node("Constant", "c", [], ["y"], [field(1, "value") + field(5, onnx_tensor("", [2], bytes(8))) + field(20, 4)])])
    yield "no_graph", field(1, 8) + field(8, field(2, 17))
    yield "negative_extent", onnx([onnx_tensor("w", [2 ** 64 - 1], b"")])
    yield "wrong_length", onnx([onnx_tensor("w", [3], bytes(8))])
    yield "groups", onnx(more=b"\xa3\x06\x08\x01\xa4\x06")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out, data = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).resolve().parent.parent / "data"
    everything = [("st", safetensors_seeds), ("torch", torch_zips), ("legacy", legacy_seeds), ("npz", npz_seeds), ("gguf", gguf_seeds)]
    seeds = {"safetensors": safetensors_seeds(), "zip": zip_seeds(), "pickle": pickles(), "legacy": legacy_seeds(), "shard_index": index_seeds(),
             "config": config_seeds(data), "npz": npz_seeds(), "gguf": gguf_seeds(), "onnx": onnx_seeds(),
             "convert": ((prefix + "_" + name, text) for prefix, make in everything for name, text in make())}
    for target, files in seeds.items():
        folder = out / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files:
            if len(content) <= 4096:
                (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
