"""Q/DQ graphs whose shape is the point: what stands between pairs and layers, and what else has codes.

In the texts `x` is quantized with scale `s` and zero point `z` to `q` and dequantized to `d`; `dw` is the
dequantized weight of a Conv (CW) or of a MatMul (MW). Nodes that count are called "layer".
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from numpy.typing import NDArray

Constants = dict[str, NDArray[np.generic]]
_PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
_CW = "dw = DequantizeLinear <axis = 0> (w, sw, zw)"
_MW = "dw = DequantizeLinear <axis = 1> (w, sw, zw)"
_SCALE: Constants = {"s": np.asarray(0.05, np.float32), "z": np.asarray(0, np.int8)}


def _weight(*shape: int, axis: int = 0) -> Constants:
    scales = np.linspace(0.005, 0.01, shape[axis]).astype(np.float32)
    codes = np.arange(np.prod(shape)).reshape(shape) % 200 - 100
    return {"w": codes.astype(np.int8), "sw": scales, "zw": np.zeros(shape[axis], np.int8)}


_CONV, _MATRIX = _weight(32, 16, 3, 3), _weight(16, 32, axis=1)


def _f(*values: float) -> NDArray[np.generic]:
    return np.asarray(values if len(values) != 1 else values[0], np.float32)


def _i(*values: int) -> NDArray[np.generic]:
    return np.asarray(values, np.int64)


_BETWEEN_CONV: dict[str, tuple[str, str, Constants]] = {
    # input dims, what makes p of d, constants
    "pad": ("1,16,12,12", "Pad (d, a)", {"a": _i(0, 0, 1, 1, 0, 0, 1, 1)}),
    "resize": ("1,16,12,12", "Resize (d, none, a)", {"a": _f(1, 1, 2, 2), "none": np.zeros(0, np.float32)}),
    "slice": ("1,16,12,12", "Slice (d, a, b, c)", {"a": _i(0), "b": _i(8), "c": _i(3)}),
    "gather": ("1,16,12,12", "Gather <axis = 2> (d, a)", {"a": _i(0, 1, 2, 3, 4)}),
    "depth to space": ("1,64,12,12", "DepthToSpace <blocksize = 2> (d)", {}),
    "space to depth": ("1,4,24,24", "SpaceToDepth <blocksize = 2> (d)", {}),
    "expand": ("1,16,12,1", "Expand (d, a)", {"a": _i(1, 16, 12, 12)}),
    "average pool": ("1,16,12,12", "AveragePool <kernel_shape = [2, 2]> (d)", {}),
    "neg": ("1,16,12,12", "Neg (d)", {}),
    "clip": ("1,16,12,12", "Clip (d, a, b)", {"a": _f(0), "b": _f(6)}),
    "dropout": ("1,16,12,12", "Dropout (d)", {}),
    "sigmoid": ("1,16,12,12", "Sigmoid (d)", {}),
    "leaky relu": ("1,16,12,12", "LeakyRelu (d)", {}),
    "mul by a number": ("1,16,12,12", "Mul (d, a)", {"a": _f(2)}),
}
_WEIGHTS_MATMUL: dict[str, tuple[str, Constants]] = {
    "mul by a number": (f"{_MW} e = Mul (dw, a)", {**_MATRIX, "a": _f(2)}),
    "div by a number": (f"{_MW} e = Div (dw, a)", {**_MATRIX, "a": _f(2)}),
    "add a number": (f"{_MW} e = Add (dw, a)", {**_MATRIX, "a": _f(2)}),
    "mul by a column": (
        f"{_MW} e = Mul (dw, a)",
        {**_MATRIX, "a": np.linspace(1, 2, 16).astype(np.float32).reshape(16, 1)},
    ),
    "split": (f"{_MW} e, f = Split <axis = 1, num_outputs = 2> (dw)", _weight(16, 64, axis=1)),
    "two casts": (f"{_MW} c = Cast <to = 10> (dw) e = Cast <to = 1> (c)", _MATRIX),
    "concat": (
        "a = DequantizeLinear (w, s, z) b = DequantizeLinear (w, s, z) e = Concat <axis = 1> (a, b)",
        {"w": _weight(16, 16)["w"]},
    ),
    "one column": ("e = DequantizeLinear (w, s, z)", {"w": _weight(16, 1)["w"]}),
    "codes reshaped": (
        "c = Reshape (w, a) e = DequantizeLinear <axis = 1> (c, sw, zw)",
        {**_MATRIX, "w": _MATRIX["w"].reshape(-1), "a": _i(16, 32)},
    ),
    "codes through identity": ("c = Identity (w) e = DequantizeLinear <axis = 1> (c, sw, zw)", _MATRIX),
    "codes cast": ("e = Cast <to = 1> (w)", _MATRIX),
    "fewer scales": (
        "e = DequantizeLinear <axis = 1> (w, sw, zw)",
        {**_MATRIX, "sw": _MATRIX["sw"][:16], "zw": _MATRIX["zw"][:16]},
    ),
}  # fmt: skip
_CODES: dict[str, tuple[str, Constants]] = {
    "relu": ("Relu (q)", {}),
    "concat": ("Concat <axis = 1> (q, q)", {}),
    "gather": ("Gather <axis = 1> (q, a)", {"a": _i(0, 2)}),
    "add": ("Add (q, q)", {}),
    "pad": ("Pad (q, a)", {"a": _i(0, 0, 1, 1, 0, 0, 1, 1)}),
    "resize": ("Resize (q, none, a)", {"a": _f(1, 1, 2, 2), "none": np.zeros(0, np.float32)}),
    "clip": ("Clip (q, a)", {"a": np.asarray(0, np.int8)}),
    "max": ("Max (q, q)", {}),
    "neg": ("Neg (q)", {}),
    "depth to space": ("DepthToSpace <blocksize = 2> (q)", {}),
    "where": ("Where (a, q, q)", {"a": np.asarray(True)}),
    "expand": ("Expand (q, a)", {"a": _i(2, 16, 6, 6)}),
    "reduce max": ("ReduceMax (q, a)", {"a": _i(1)}),
}
_RECURRENT = {"LSTM": 32, "GRU": 24, "RNN": 8}
_WHOLE: dict[str, tuple[str, Constants]] = {
    "two activations": (
        f"(float[8,16] x, float[16,8] v) => (float[8,8] y) {{ {_PAIR} a = QuantizeLinear (v, s, z)"
        " b = DequantizeLinear (a, s, z) [layer] y = MatMul (d, b) }",
        _SCALE,
    ),
    "two activations, one transposed": (
        f"(float[8,16] x, float[8,16] v) => (float[8,8] y) {{ {_PAIR} a = QuantizeLinear (v, s, z)"
        " b = DequantizeLinear (a, s, z) t = Transpose <perm = [1, 0]> (b) [layer] y = MatMul (d, t) }",
        _SCALE,
    ),
    "two activations, one float": (
        f"(float[8,16] x, float[16,8] v) => (float[8,8] y) {{ {_PAIR} [layer] y = MatMul (d, v) }}",
        _SCALE,
    ),
    "conv of two activations": (
        f"(float[1,16,9,9] x, float[32,16,3,3] v) => (float[1,32,7,7] y) {{ {_PAIR}"
        " a = QuantizeLinear (v, s, z) b = DequantizeLinear (a, s, z) [layer] y = Conv (d, b) }",
        _SCALE,
    ),
    "gemm with both transposed": (
        f"(float[16,8] x) => (float[8,32] y) {{ {_PAIR} dw = DequantizeLinear <axis = 0> (w, sw, zw)"
        " [layer] y = Gemm <transA = 1, transB = 1> (d, dw) }",
        {**_SCALE, **_weight(32, 16)},
    ),
    "gemm with factors and a matrix to add": (
        f"(float[8,16] x) => (float[8,32] y) {{ {_PAIR} {_MW}"
        " [layer] y = Gemm <alpha = 0.5, beta = 2.0> (d, dw, c) }",
        {**_SCALE, **_MATRIX, "c": np.ones((8, 32), np.float32)},
    ),
    "vector": (
        f"(float[16] x) => (float[32] y) {{ {_PAIR} {_MW} [layer] y = MatMul (d, dw) }}",
        {**_SCALE, **_MATRIX},
    ),
    "input int8": (
        f"(int8[8,16] x) => (float[8,32] y) {{ d = DequantizeLinear (x, s, z) {_MW}"
        " [layer] y = MatMul (d, dw) }",
        {**_SCALE, **_MATRIX},
    ),
    "input uint8": (
        f"(uint8[8,16] x) => (float[8,32] y) {{ d = DequantizeLinear (x, s, u) {_MW}"
        " [layer] y = MatMul (d, dw) }",
        {**_SCALE, **_MATRIX, "u": np.asarray(0, np.uint8)},
    ),
    "input int32": ("(int32[8,16] x) => (float[8,16] y) { y = DequantizeLinear (x, s) }", _SCALE),
    "output int8": (
        f"(float[8,16] x) => (int8[8,32] y) {{ {_PAIR} {_MW} [layer] h = MatMul (d, dw)"
        " y = QuantizeLinear (h, s, z) }",
        {**_SCALE, **_MATRIX},
    ),
    "output uint8": (
        f"(float[8,16] x) => (uint8[8,32] y) {{ {_PAIR} {_MW} [layer] h = MatMul (d, dw)"
        " y = QuantizeLinear (h, s, u) }",
        {**_SCALE, **_MATRIX, "u": np.asarray(0, np.uint8)},
    ),
    "dynamic quantization": (
        "(float[8,16] x) => (float[8,32] y) { q, t, u = DynamicQuantizeLinear (x)"
        " i = MatMulInteger (q, w, u) c = Cast <to = 1> (i) y = Mul (c, t) }",
        {"w": _MATRIX["w"]},
    ),
    "operator format": (
        "(float[8,16] x) => (int8[8,32] y) { q = QuantizeLinear (x, s, z)"
        " y = QLinearMatMul (q, s, z, w, s, z, s, z) }",
        {**_SCALE, "w": _MATRIX["w"]},
    ),
    "bound of a clip": (
        f"(float[8,16] x) => (float[8,16] y) {{ {_PAIR} a = DequantizeLinear (c, s, z) y = Clip (d, a) }}",
        {**_SCALE, "c": np.asarray(0, np.int8)},
    ),
    "filling of a pad": (
        f"(float[8,16] x) => (float[8,18] y) {{ {_PAIR} a = DequantizeLinear (c, s, z) y = Pad (d, p, a) }}",
        {**_SCALE, "c": np.asarray(0, np.int8), "p": _i(0, 1, 0, 1)},
    ),
    "constant to add": (
        f"(float[8,16] x) => (float[8,16] y) {{ {_PAIR} a = DequantizeLinear (c, s, z) y = Add (d, a) }}",
        {**_SCALE, "c": np.ones(16, np.int8)},
    ),
    "table of codes": (
        "(int64[4] x) => (float[4,16] y) { g = Gather (c, x) y = DequantizeLinear (g, s, z) }",
        {**_SCALE, "c": np.ones((9, 16), np.int8)},
    ),
    "table dequantized": (
        "(int64[4] x) => (float[4,16] y) { d = DequantizeLinear (c, s, z) y = Gather (d, x) }",
        {**_SCALE, "c": np.ones((9, 16), np.int8)},
    ),
    "scale [1] on Q alone": (
        f"(float[1,16,9,9] x) => (float[1,32,7,7] y) {{ q = QuantizeLinear (x, t, u)"
        f" d = DequantizeLinear (q, s, z) {_CW} [layer] y = Conv (d, dw) }}",
        {**_SCALE, **_CONV, "t": _SCALE["s"].reshape(1), "u": _SCALE["z"].reshape(1)},
    ),
    "scale [1] on DQ alone": (
        f"(float[1,16,9,9] x) => (float[1,32,7,7] y) {{ q = QuantizeLinear (x, s, z)"
        f" d = DequantizeLinear (q, t, u) {_CW} [layer] y = Conv (d, dw) }}",
        {**_SCALE, **_CONV, "t": _SCALE["s"].reshape(1), "u": _SCALE["z"].reshape(1)},
    ),
    "zero point [1]": (
        f"(float[1,16,9,9] x) => (float[1,32,7,7] y) {{ q = QuantizeLinear (x, s, u)"
        f" d = DequantizeLinear (q, s, u) {_CW} [layer] y = Conv (d, dw) }}",
        {**_SCALE, **_CONV, "u": _SCALE["z"].reshape(1)},
    ),
    "two layers in a row": (
        f"(float[1,16,9,9] x) => (float[1,32,7,7] y) {{ {_PAIR} {_CW}"
        " [layer] h = Conv <pads = [1, 1, 1, 1]> (d, dw) a = QuantizeLinear (h, s, z)"
        " b = DequantizeLinear (a, s, z) v = DequantizeLinear <axis = 0> (w2, sw, zw)"
        " [layer2] y = Conv (b, v) }",
        {**_SCALE, **_CONV, "w2": _weight(32, 32, 3, 3)["w"]},
    ),
    "float scales, cast after": (
        f"(float[1,16,9,9] x) => (float16[1,32,7,7] y) {{ {_PAIR} p = Cast <to = 10> (d) {_CW}"
        " e = Cast <to = 10> (dw) [layer] y = Conv (p, e) }",
        {**_SCALE, **_CONV},
    ),
    "float input, float16 scales": (
        f"(float[1,16,9,9] x) => (float16[1,32,7,7] y) {{ q = QuantizeLinear (x, s, z)"
        f" d = DequantizeLinear (q, t, z) {_CW.replace('sw', 'tw')} [layer] y = Conv (d, dw) }}",
        {**_SCALE, **_CONV, "t": _SCALE["s"].astype(np.float16), "tw": _CONV["sw"].astype(np.float16)},
    ),
    "parts of the same scale joined": (
        f"(float[1,16,9,9] x) => (float[1,32,7,7] y) {{ {_PAIR} a = QuantizeLinear (x, s, z)"
        f" b = DequantizeLinear (a, s, z) p = Concat <axis = 1> (d, b) {_CW} [layer] y = Conv (p, dw) }}",
        {**_SCALE, **_CONV, "w": _weight(32, 32, 3, 3)["w"]},
    ),
    "parts of other scales joined": (
        f"(float[1,16,9,9] x) => (float[1,32,7,7] y) {{ {_PAIR} a = QuantizeLinear (x, t, z)"
        f" b = DequantizeLinear (a, t, z) p = Concat <axis = 1> (d, b) {_CW} [layer] y = Conv (p, dw) }}",
        {**_SCALE, **_CONV, "t": _f(0.1), "w": _weight(32, 32, 3, 3)["w"]},
    ),
    "float transposed convolution in bfloat16": (
        "(bfloat16[1,16,9,9] x) => (bfloat16[1,16,11,11] y) { [layer] y = ConvTranspose (x, w) }",
        {"w": np.ones((16, 16, 3, 3), ml_dtypes.bfloat16)},
    ),
}


def structures() -> dict[str, onnx.ModelProto]:
    """Returns the models by a name for people."""
    found: dict[str, onnx.ModelProto] = {}
    for name, (dims, maker, more) in _BETWEEN_CONV.items():
        body = f"{_PAIR} p = {maker} {_CW} [layer] y = Conv (p, dw)"
        text = f"(float[{dims}] x) => (float[1,32,M,N] y) {{ {body} }}"
        found[f"between: {name}"] = _model(text, {**_SCALE, **_CONV, **more})
    for name, (maker, more) in _WEIGHTS_MATMUL.items():
        text = f"(float[8,16] x) => (float[8,M] y) {{ {_PAIR} {maker} [layer] y = MatMul (d, e) }}"
        found[f"weight: {name}"] = _model(text, {**_SCALE, **more})
    for name, (maker, more) in _CODES.items():
        text = (
            f"(float[1,16,6,6] x) => (float[K,L,M,N] y) {{ q = QuantizeLinear (x, s, z) p = {maker}"
            " y = DequantizeLinear (p, s, z) }"
        )
        found[f"codes: {name}"] = _model(text, {**_SCALE, **more})
    for name, rows in _RECURRENT.items():
        weights = {"w": np.ones((1, rows, 16), np.float32), "r": np.ones((1, rows, 8), np.float32)}
        for batch in ("2", "N"):
            text = (
                f"(float[5,{batch},16] x) => (float[5,1,{batch},8] y)"
                f" {{ {_PAIR} [layer] y = {name} <hidden_size = 8> (d, w, r) }}"
            )
            found[f"{name}, batch {batch}"] = _model(text, {**_SCALE, **weights})
    found |= {name: _model(text, constants) for name, (text, constants) in _WHOLE.items()}
    return found


def _model(text: str, constants: Constants) -> onnx.ModelProto:
    opset = 22 if "bfloat16" in text else 19
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {text}')
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in constants.items()
        if name in used
    )
    return model
