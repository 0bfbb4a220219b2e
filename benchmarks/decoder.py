"""Writes a decoder of any size as exporters do: grouped queries, rotary positions, RMSNorm, SwiGLU.

The weights are random FP16, drawn and written one after another into shards beside the graph, so a model of
20 GB needs no more memory than its largest weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_SHARD_BYTES = 4_000_000_000
_DRAWN = 1 << 22


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 128_256

    @property
    def head(self) -> int:
        """The elements of one head."""
        return self.hidden // self.heads


SHAPES = {
    "10B": Shape(4096, 14336, 41, 32, 8),
    "1B": Shape(2048, 8192, 12, 32, 8, vocabulary=64_128),
    "tiny": Shape(256, 768, 2, 8, 2, vocabulary=1024),
}


@dataclass
class _Shards:
    """Files of weights, each closed when it is full."""

    folder: Path
    generator: np.random.Generator
    size: int = 0
    number: int = 0

    def draw(self, name: str, shape: Sequence[int], deviation: float) -> TensorProto:
        """Writes a weight of normally distributed FP16, and returns the constant that names its place."""
        count = int(np.prod(shape))
        if self.size and self.size + 2 * count > _SHARD_BYTES:
            self.number, self.size = self.number + 1, 0
        location, start = f"weights-{self.number:05}.data", self.size
        with (self.folder / location).open("ab") as file:
            for first in range(0, count, _DRAWN):
                drawn = self.generator.standard_normal(min(_DRAWN, count - first), np.float32)
                file.write((drawn * np.float32(deviation)).astype(np.float16).tobytes())
        self.size += 2 * count
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", start), ("length", 2 * count)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


@dataclass
class _Graph:
    shards: _Shards
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def node(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def product(self, name: str, value: str, shape: tuple[int, int]) -> str:
        weight = self.shards.draw(f"{name}.weight", shape, shape[0] ** -0.5)
        self.constants.append(weight)
        return self.node("MatMul", f"{name}/MatMul", value, weight.name)

    def norm(self, name: str, value: str, size: int) -> str:
        squares = self.node("Mul", f"{name}/Mul", value, value)
        mean = self.node("ReduceMean", f"{name}/ReduceMean", squares, "last_axis")
        root = self.node("Sqrt", f"{name}/Sqrt", self.node("Add", f"{name}/Add", mean, "epsilon"))
        scaled = self.node("Div", f"{name}/Div", value, root)
        return self.node(
            "Mul", f"{name}/Mul_1", scaled, self.constant(f"{name}.weight", np.ones(size, np.float16))
        )


def write_decoder(shape: Shape, path: Path, seed: int = 0) -> int:
    """Writes the model and its shards beside it; returns the number of weights."""
    graph = _Graph(_Shards(path.parent, np.random.default_rng(seed)))
    for name, values in _numbers(shape).items():
        graph.constant(name, values)
    embedding = graph.shards.draw("model.embed_tokens.weight", (shape.vocabulary, shape.hidden), 0.02)
    graph.constants.append(embedding)
    value = graph.node("Gather", "model/embed_tokens/Gather", embedding.name, "input_ids")
    cosine, sine = _add_angles(graph)
    for index in range(shape.layers):
        value = _add_layer(graph, f"model.layers.{index}", value, shape, cosine, sine)
    value = graph.norm("model.norm", value, shape.hidden)
    logits = graph.product("lm_head", value, (shape.hidden, shape.vocabulary))
    graph.node("Identity", "logits_last", logits)
    graph.nodes[-1].output[0] = "logits"
    _save(graph, shape, path)
    return sum(int(np.prod(item.dims)) for item in graph.constants if item.data_type == TensorProto.FLOAT16)


def _numbers(shape: Shape) -> dict[str, NDArray[Any]]:
    steps = np.arange(0, shape.head, 2, dtype=np.float32) / shape.head
    return {
        "last_axis": np.array([-1], np.int64),
        "epsilon": np.array(1e-5, np.float16),
        "frequencies": (500_000.0**-steps).astype(np.float32)[None, None, :],
        "scale": np.array(shape.head**-0.5, np.float16),
        "first": np.array([0], np.int64),
        "half": np.array([shape.head // 2], np.int64),
        "end": np.array([shape.head], np.int64),
        "second_axis": np.array([2], np.int64),
        "to_heads": np.array([0, 0, shape.heads, shape.head], np.int64),
        "to_kv_heads": np.array([0, 0, shape.kv_heads, shape.head], np.int64),
        "to_hidden": np.array([0, 0, shape.hidden], np.int64),
        "repeats": np.array([1, 1, shape.heads // shape.kv_heads, 1, 1], np.int64),
        "to_all_heads": np.array([0, shape.heads, -1, shape.head], np.int64),
        "most_negative": np.array(-60000, np.float16),
    }


def _add_angles(graph: _Graph) -> tuple[str, str]:
    """Adds the cosine and sine of all positions, shape (N, 1, T, head), and the mask of what lies ahead."""
    place = graph.node("Cast", "model/rotary/Cast", "position_ids", to=TensorProto.FLOAT)
    column = graph.node("Unsqueeze", "model/rotary/Unsqueeze", place, "last_axis")
    angles = graph.node("Mul", "model/rotary/Mul", column, "frequencies")
    both = graph.node("Concat", "model/rotary/Concat", angles, angles, axis=-1)
    one = graph.constant("first_axis", np.array([1], np.int64))
    found = []
    for kind in ("Cos", "Sin"):
        half = graph.node(
            "Cast", f"model/rotary/{kind}_half", graph.node(kind, f"model/rotary/{kind}", both), to=10
        )
        found.append(graph.node("Unsqueeze", f"model/rotary/{kind}_heads", half, one))
    rows = graph.node("Unsqueeze", "model/mask/rows", place, "last_axis")
    columns = graph.node("Unsqueeze", "model/mask/columns", place, one)
    ahead = graph.node("Less", "model/mask/Less", rows, columns)
    zero = graph.constant("zero", np.array(0, np.float16))
    mask = graph.node("Where", "model/mask/Where", ahead, "most_negative", zero)
    graph.node("Unsqueeze", "model/mask/heads", mask, one)
    return found[0], found[1]


def _add_layer(graph: _Graph, name: str, value: str, shape: Shape, cosine: str, sine: str) -> str:
    narrow, wide = shape.kv_heads * shape.head, shape.intermediate
    within = f"{name}.self_attn"
    normed = graph.norm(f"{name}.input_layernorm", value, shape.hidden)
    query = graph.product(f"{within}.q_proj", normed, (shape.hidden, shape.hidden))
    key = graph.product(f"{within}.k_proj", normed, (shape.hidden, narrow))
    content = graph.product(f"{within}.v_proj", normed, (shape.hidden, narrow))
    query = _rotate(graph, f"{within}.q", _split(graph, f"{within}.q", query, "to_heads"), cosine, sine)
    key = _rotate(graph, f"{within}.k", _split(graph, f"{within}.k", key, "to_kv_heads"), cosine, sine)
    content = _split(graph, f"{within}.v", content, "to_kv_heads")
    key, content = (_repeat(graph, f"{within}.{n}", v) for n, v in (("k", key), ("v", content)))
    turned = graph.node("Transpose", f"{within}/Transpose", key, perm=[0, 1, 3, 2])
    scaled = graph.node("Mul", f"{within}/scaled", query, "scale")
    scores = graph.node("MatMul", f"{within}/MatMul", scaled, turned)
    scores = graph.node("Add", f"{within}/Add", scores, "model/mask/heads_output")
    mixed = graph.node(
        "MatMul", f"{within}/MatMul_1", graph.node("Softmax", f"{within}/Softmax", scores), content
    )
    mixed = graph.node("Transpose", f"{within}/Transpose_1", mixed, perm=[0, 2, 1, 3])
    mixed = graph.node("Reshape", f"{within}/Reshape", mixed, "to_hidden")
    attended = graph.product(f"{within}.o_proj", mixed, (shape.hidden, shape.hidden))
    value = graph.node("Add", f"{name}/Add", value, attended)
    normed = graph.norm(f"{name}.post_attention_layernorm", value, shape.hidden)
    gate = graph.product(f"{name}.mlp.gate_proj", normed, (shape.hidden, wide))
    up = graph.product(f"{name}.mlp.up_proj", normed, (shape.hidden, wide))
    gate = graph.node("Mul", f"{name}.mlp/Silu", gate, graph.node("Sigmoid", f"{name}.mlp/Sigmoid", gate))
    up = graph.node("Mul", f"{name}.mlp/Mul", gate, up)
    return graph.node(
        "Add", f"{name}/Add_1", value, graph.product(f"{name}.mlp.down_proj", up, (wide, shape.hidden))
    )


def _split(graph: _Graph, name: str, value: str, heads: str) -> str:
    parted = graph.node("Reshape", f"{name}/split", value, heads)
    return graph.node("Transpose", f"{name}/heads", parted, perm=[0, 2, 1, 3])


def _rotate(graph: _Graph, name: str, value: str, cosine: str, sine: str) -> str:
    low = graph.node("Slice", f"{name}/low", value, "first", "half", "last_axis")
    high = graph.node("Slice", f"{name}/high", value, "half", "end", "last_axis")
    turned = graph.node("Concat", f"{name}/turned", graph.node("Neg", f"{name}/Neg", high), low, axis=-1)
    straight = graph.node("Mul", f"{name}/cosine", value, cosine)
    return graph.node("Add", f"{name}/rotated", straight, graph.node("Mul", f"{name}/sine", turned, sine))


def _repeat(graph: _Graph, name: str, value: str) -> str:
    """Gives each key and value head to all the queries of its group."""
    parted = graph.node("Unsqueeze", f"{name}/groups", value, "second_axis")
    return graph.node(
        "Reshape", f"{name}/all", graph.node("Tile", f"{name}/Tile", parted, "repeats"), "to_all_heads"
    )


def _save(graph: _Graph, shape: Shape, path: Path) -> None:
    dims = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, dims) for n in ("input_ids", "position_ids")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT16, [*dims, shape.vocabulary])
    made = helper.make_graph(graph.nodes, "decoder", inputs, [output], graph.constants)
    opset = helper.make_opsetid("", 18)
    path.write_bytes(helper.make_model(made, opset_imports=[opset], ir_version=9).SerializeToString())
