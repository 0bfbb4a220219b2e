"""Valid files of every kind, small ones: what the changed ones start from."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from numpy.typing import NDArray

import trtq
from trtq.pipeline.deliver.index import index_folder, write_index

KEPT = Path(__file__).parents[2] / "data" / "kept"
_HEAD = '<ir_version: 9, opset_import: ["" : %d]>'
_MODELS = {
    "small": (19, """
        g (float[N,3,8,8] x) => (float[N,4] y) {
          [first] h = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1)
          [norm] n = BatchNormalization (h, s8, s8, s8, s8)
          [act] r = Relu (n)
          [pool] p = GlobalAveragePool (r)
          [flat] f = Flatten (p)
          [second] y = Gemm (f, w2, b4) }"""),
    "codes": (19, """
        g (float[2,4] x) => (float[2,4] y) <float s = {0.5}, int8 z = {0}> {
          [q] a = QuantizeLinear (x, s, z) [d] b = DequantizeLinear (a, s, z)
          [qw] c = QuantizeLinear (w4, s, z) [dw] d = DequantizeLinear (c, s, z)
          [fc] y = MatMul (b, d) }"""),
    "bodies": (19, """
        g (float[2,4] x, bool c) => (float[2,4] y) {
          [if] t = If (c) <then_branch = a () => (float[2,4] u) { u = MatMul (x, w4) },
                           else_branch = b () => (float[2,4] v) { v = Relu (x) }>
          k = Constant <value = int64[1] {3}> ()
          [sum] y = Add (t, x) }"""),
    "old": (9, """
        g (float[1,1,4,4] x) => (float[?,?,?,?] y) <float[4] sc = {1, 1, 2, 2}> {
          [up] u = Upsample <mode = "nearest"> (x, sc)
          [pad] y = Pad <pads = [0,0,1,1,0,0,1,1], value = 0.5> (u) }"""),
    "shapes": (21, """
        g (float[N,T,4] x) => (float[N,M] y) {
          [shape] s = Shape <start = 0, end = 1> (x)
          k = Constant <value_ints = [-1]> ()
          [cat] d = Concat <axis = 0> (s, k)
          [drop] r, m = Dropout (x)
          [view] y = Reshape (r, d) }"""),
}  # fmt: skip
_FUNCTION = """
    <ir_version: 9, opset_import: ["" : 19, "ours" : 1]>
    g (float[2,4] x) => (float[2,4] y) { [call] y = ours.Twice (x) }
    <domain: "ours", opset_import: ["" : 19]> Twice (a) => (b) { b = Add (a, a) }"""


def list_models() -> Iterator[bytes]:
    """Yields models: a small net, Q/DQ, bodies, old operators, open shapes, a function, sparse weights."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "s8": (8,), "w2": (8, 4), "b4": (4,), "w4": (4, 4)}
    for opset, text in _MODELS.values():
        model = onnx.parser.parse_model(_HEAD % opset + text)
        for name, shape in shapes.items():
            if any(name in node.input for node in model.graph.node) or (
                name in text and "then_branch" in text
            ):
                array = rng.uniform(0.5, 1.5, shape).astype(np.float32)
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        yield model.SerializeToString()
    yield onnx.parser.parse_model(_FUNCTION).SerializeToString()
    yield _make_sparse().SerializeToString()


def _make_sparse() -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        _HEAD % 21 + "g (float[2,4] x) => (float[2,4] y) { [fc] y = MatMul (x, w) }"
    )
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    places = onnx.helper.make_tensor("w_places", onnx.TensorProto.INT64, [2], [0, 5])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4, 4]))
    codes = onnx.helper.make_tensor("codes", onnx.TensorProto.INT4, [4, 4], [1] * 16)
    model.graph.initializer.append(codes)
    return model


def write_home(home: Path) -> None:
    """Writes the folder from which all is read: a model, data of each kind, a build of it, settings, keys."""
    home.mkdir()
    rng = np.random.default_rng(0)
    (home / "model.onnx").write_bytes(next(list_models()))
    samples = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.savez(home / "data.npz", x=samples)
    np.save(home / "data.npy", samples)
    np.save(home / "labels.npy", np.arange(4))
    (home / "feeds").mkdir()
    np.savez(home / "feeds" / "0.npz", x=samples)
    (home / "images").mkdir()
    (home / "images" / "a.png").write_bytes(list_images()[0])
    _write_samples(home, samples)
    _write_polygraphy(home / "data.json", samples)
    (home / "settings").mkdir()
    (home / "settings" / "model.toml").write_bytes(SETTINGS[0])
    (home / "trtq.toml").write_bytes(BUILDS[0])
    (home / "scripts").mkdir()
    (home / "scripts" / "calibrate.py").write_bytes(SCRIPTS[0])
    (home / "scripts" / "Dockerfile").write_bytes(SCRIPTS[1])
    for path in KEPT.iterdir():
        shutil.copy(path, home / path.name)
    (home / "sensitivity.json").write_bytes(list_sensitivities()[0])
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(home / "data.npz"), method="minmax"),
        quantization=trtq.QuantizationSpec(repair=("none",)),
    )
    target = trtq.Target(backend="onnxruntime")
    trtq.build(home / "model.onnx", spec=spec, target=target, output=home / "net.trtq")
    indexed = index_folder(home / "index.json", "cpu", "", home / "net.trtq")
    assert indexed is not None
    write_index(home / "index.json", [indexed], None)
    shutil.copy(home / "net.trtq" / "ranges.json", home / "ranges.json")
    how = trtq.ObserveOptions(checkpoint=home / "statistics.npz")
    trtq.observe(home / "model.onnx", spec=spec, how=how)
    (home / "calibration.cache").write_bytes(CACHES[0])
    (home / "repository").mkdir()
    trtq.package(home / "net.trtq", home / "repository")
    _write_keys(home)
    _write_torch(home)


def _write_samples(home: Path, samples: NDArray[np.float32]) -> None:
    """Writes samples in a tar archive, in Parquet, as `datasets` does, and a video."""
    import av
    import pyarrow
    import pyarrow.parquet

    with tarfile.open(home / "data.tar", "w") as archive:
        for index, sample in enumerate(samples):
            for name, content in ((f"{index}.x.npy", _save(sample)), (f"{index}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
    table = pyarrow.table({"x": samples.tolist(), "label": [0] * len(samples)})
    pyarrow.parquet.write_table(table, home / "data.parquet")
    (home / "saved").mkdir()
    name = "data-00000-of-00001.arrow"
    with pyarrow.ipc.new_stream(home / "saved" / name, table.schema) as writer:
        writer.write_table(table)
    (home / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with av.open(str(home / "data.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuvj420p"
        for level in range(3):
            frame = np.full((16, 16, 3), level * 80, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def _write_torch(home: Path) -> None:
    """Writes weights in both formats, and an exported program."""
    import torch
    from safetensors.torch import save_file

    module = torch.nn.Linear(4, 4)
    torch.save(module.state_dict(), home / "weights.pt")
    save_file(module.state_dict(), home / "weights.safetensors")
    torch.export.save(torch.export.export(module, (torch.ones(2, 4),)), home / "module.pt2")


def _write_keys(home: Path) -> None:
    """Writes a pair of keys, and signs the build."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (home / "private.pem").write_bytes(private)
    (home / "public.pem").write_bytes(public)
    trtq.sign(home / "net.trtq", home / "private.pem")


def list_sensitivities() -> list[bytes]:
    """Returns what `trtq sensitivity` may have measured of the small net."""
    content = json.loads((KEPT / "sensitivity-1.json").read_bytes())
    for layer, name in zip(content["layers"], ("first", "second"), strict=False):
        layer["name"] = name
    return [json.dumps(content).encode()]


def list_arrays() -> list[bytes]:
    """Returns .npy files of several dtypes and orders."""
    arrays = (
        np.ones((4, 3, 8, 8), np.float32), np.ones((4, 3, 8, 8), ">f4"),
        np.asfortranarray(np.ones((4, 3), np.float16)),
        np.arange(4), np.zeros((2, 0)), np.array(["a", "b"]),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
        np.float64(1.0), np.ones((1, 1, 1, 1), bool),
        np.ones(3, complex), np.array(["2020"], "datetime64[D]"),
    )  # fmt: skip
    return [_save(array) for array in arrays]


def _save(array: object) -> bytes:
    stream = BytesIO()
    np.save(stream, np.asarray(array))
    return stream.getvalue()


def list_images() -> list[bytes]:
    """Returns pictures of each kind that is read, 8x8: grey, palette, 16-bit, alpha, CMYK, with EXIF."""
    from PIL import Image

    colors = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    picture, deep = Image.fromarray(colors), Image.fromarray(colors[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        (picture, "PNG"), (picture, "JPEG"), (picture, "BMP"), (picture, "WEBP"),
        (picture.convert("P"), "PNG"),
        (picture.convert("L"), "PNG"), (picture.convert("RGBA"), "PNG"), (picture.convert("CMYK"), "JPEG"),
        (deep, "PNG"), (picture.convert("1"), "BMP"), (picture, "GIF"), (picture, "TIFF"),
        (picture.convert("LA"), "PNG"),
    ]  # fmt: skip
    made = []
    for image, kind in kinds:
        stream = BytesIO()
        image.save(stream, kind, **({"exif": exif} if kind == "JPEG" else {}))
        made.append(stream.getvalue())
    return made


def _write_polygraphy(path: Path, samples: object) -> None:
    from polygraphy.json import save_json

    save_json([{"x": samples}], str(path))


SETTINGS = (
    b"""[inputs.x]
min = [1, 3, 8, 8]
opt = [4, 3, 8, 8]
max = [8, 3, 8, 8]
[preprocess]
resize = [8, 8]
resize_mode = "letterbox"
mean = [0.5, 0.5, 0.5]
std = [0.5]
scale = 0.004
layout = "NCHW"
exif = true
[calibration]
data = "data.npz"
method = "percentile"
percentile = 99.9
samples = 4
batch_size = 2
[evaluation]
data = "data.npz"
labels = "labels.npy"
output = "y"
[accuracy]
min_cosine = 0.9
max_drop = 1.5
metric = "top-5"
[quantization]
repair = ["equalize", "bias"]
weight_granularity = "per-tensor"
[layers]
skip = ["^/head/", "second"]
keep_fp32 = ["act"]
force = []
""",
)
BUILDS = (
    b"""[defaults]
backend = "onnxruntime"
calib-data = "data.npz"
memory = "1G"
[[build]]
model = "model.onnx"
name = "one"
output = "one.trtq"
skip = ["first"]
min-cosine = 0.5
[[build]]
model = "model.onnx"
output = "two.trtq"
fp16 = true
opt-shapes = "x:1x3x8x8"
""",
    b"""[defaults]
backend = "onnxruntime"
on = "one"
[kind.two]
resources = ["two", "tensorrt-10.9"]
calib-samples = 8
[[build]]
model = "model.onnx"
on = ["one", "two"]
""",
)
SCRIPTS = (
    b"""#!/usr/bin/env python
# -*- coding: utf-8 -*-
import tensorrt as trt
class Calibrator(trt.IInt8EntropyCalibrator2):
    def get_batch(self, names):
        return [int(self.device[name]) for name in names if hasattr(trt, "int8")]
def build(config, network):
    if trt.__version__ < "10": config.set_flag(trt.BuilderFlag.INT8)
    network.get_layer(0).precision = trt.int8
    return f"{config.max_workspace_size = }" + 'trtexec --int8 --calib=x'
""",
    b"""FROM nvcr.io/nvidia/tensorrt:23.10-py3
RUN trtexec --onnx=a.onnx --int8 --calib=a.cache --saveEngine="a b" \\
    && polygraphy convert a.onnx --int8 | tee log; trtexec $FLAGS --best
""",
)
CACHES = (
    b"TRT-8601-EntropyCalibration2\nx: 3c010a14\nh: 3d010a14\nr: 3c010a14\n"
    b"(Unnamed Layer* 3) [Shuffle]_output: 0\n",
    b"\xef\xbb\xbfTRT-100300-MinMaxCalibration\r\nx: 3c010a14\r\na:b: 00000001\r\n\r\n",
    b"x: 3C010A14\ny: 7f7fffff",
)
