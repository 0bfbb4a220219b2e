"""Small models of the kinds that the tutorials are about, with random weights, and data for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from PIL import Image

Shapes = dict[str, tuple[int, ...]]

_DETECTOR = """<ir_version: 9, opset_import: ["" : 19]>
detector (float[N,3,64,64] images) => (float[N,12,64] output0) <int64[3] shape = {0, 12, 64}> {
  c1 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (images, w1)
  r1 = Relu(c1)
  c2 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r1, w2)
  r2 = Relu(c2)
  c3 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r2, w3)
  r3 = Relu(c3)
  [head_boxes] boxes = Conv(r3, w_boxes)
  [head_scores] logits = Conv(r3, w_scores)
  scores = Sigmoid(logits)
  both = Concat <axis = 1> (boxes, scores)
  output0 = Reshape(both, shape)
}"""
_ENCODER = """<ir_version: 9, opset_import: ["" : 19]>
encoder (int64[N,S] input_ids, int64[N,S] attention_mask) => (float[N,4] logits)
<int64[2] axes = {1, 2}, int64[1] last = {1}, float one = {1.0}, float low = {-10000.0}> {
  x = Gather(words, input_ids)
  q = MatMul(x, w_q)
  k = MatMul(x, w_k)
  v = MatMul(x, w_v)
  kt = Transpose <perm = [0, 2, 1]> (k)
  qk = MatMul(q, kt)
  seen = Cast <to = 1> (attention_mask)
  gone = Sub(one, seen)
  far = Mul(gone, low)
  mask = Unsqueeze(far, last)
  masked = Add(qk, mask)
  p = Softmax <axis = -1> (masked)
  a = MatMul(p, v)
  o = MatMul(a, w_o)
  h = Add(x, o)
  up = MatMul(h, w_up)
  act = Relu(up)
  down = MatMul(act, w_down)
  y = Add(h, down)
  pooled = ReduceMean <keepdims = 0> (y, last)
  logits = MatMul(pooled, classifier)
}"""
_DECODER = """<ir_version: 9, opset_import: ["" : 19]>
decoder (int64[N,S] input_ids) => (float[N,S,256] logits) {
  x = Gather(embed_tokens, input_ids)
  gate = MatMul(x, w_gate)
  up = MatMul(x, w_up)
  s = Sigmoid(gate)
  silu = Mul(gate, s)
  act = Mul(silu, up)
  down = MatMul(act, w_down)
  y = Add(x, down)
  [lm_head] logits = MatMul(y, w_head)
}"""
_DIFFUSION = """<ir_version: 9, opset_import: ["" : 19]>
diffusion (float[N,16,8] sample, float[N] timestep) => (float[N,16,8] direction) <int64[1] one = {1}> {
  [patch_embed] x = MatMul(sample, w_in)
  t = Unsqueeze(timestep, one)
  angles = Mul(t, frequencies)
  waves = Sin(angles)
  row = Unsqueeze(waves, one)
  [condition] scale = MatMul(row, w_condition)
  h = Mul(x, scale)
  up = MatMul(h, w_up)
  act = Relu(up)
  down = MatMul(act, w_down)
  y = Add(x, down)
  [proj_out] direction = MatMul(y, w_out)
}"""
_FEED_FORWARD: Shapes = {"w_up": (128, 256), "w_down": (256, 128)}
_QKVO: Shapes = {f"w_{name}": (128, 128) for name in "qkvo"}
_CONVOLUTIONS: Shapes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (64, 32, 3, 3)}
_TEXTS: dict[str, tuple[str, Shapes]] = {
    "detector": (_DETECTOR, {**_CONVOLUTIONS, "w_boxes": (4, 64, 1, 1), "w_scores": (8, 64, 1, 1)}),
    "encoder": (_ENCODER, {"words": (256, 128), **_QKVO, **_FEED_FORWARD, "classifier": (128, 4)}),
    "decoder": (
        _DECODER,
        {"embed_tokens": (256, 128), "w_gate": (128, 256), **_FEED_FORWARD, "w_head": (128, 256)},
    ),
    "diffusion": (
        _DIFFUSION,
        {
            "w_in": (8, 128),
            "frequencies": (1, 32),
            "w_condition": (32, 128),
            **_FEED_FORWARD,
            "w_out": (128, 8),
        },
    ),
}
_NUM_SAMPLES = 16


def save_kinds(folder: Path) -> None:
    """Writes a folder with a model and its data for each kind."""
    rng = np.random.default_rng(0)
    for kind, (text, shapes) in _TEXTS.items():
        model = onnx.parser.parse_model(text)
        for name, shape in shapes.items():
            fan_in = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
            size = 1.0 if name in ("words", "embed_tokens") else (2 / fan_in) ** 0.5
            weight = (size * rng.standard_normal(shape)).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        (folder / kind).mkdir()
        onnx.save(model, folder / kind / "model.onnx")
    (folder / "detector" / "photos").mkdir()
    for number in range(_NUM_SAMPLES):
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "detector" / "photos" / f"{number:02}.png")
    tokens = rng.integers(0, 256, (_NUM_SAMPLES, 16))
    lengths = rng.integers(4, 17, (_NUM_SAMPLES, 1))
    np.savez(
        folder / "encoder" / "sentences.npz",
        input_ids=tokens,
        attention_mask=(np.arange(16) < lengths).astype(np.int64),
    )
    np.savez(folder / "decoder" / "tokens.npz", input_ids=tokens)
    np.savez(
        folder / "diffusion" / "all-steps.npz",
        sample=rng.standard_normal((4 * _NUM_SAMPLES, 16, 8)).astype(np.float32),
        timestep=rng.permutation(np.tile(np.linspace(1, 0.25, 4, dtype=np.float32), _NUM_SAMPLES)),
    )
