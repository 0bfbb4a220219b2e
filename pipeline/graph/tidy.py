"""Brings what ONNX Runtime and TensorRT take, and ONNX's checker does not, into the form that all take."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from trtq.errors import ModelError

_BODIES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_MOST_DENSE_BYTES = 1 << 31
_FREE_WEIGHTS_IR = 4
VALUE_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Where a tensor has its values, if not in `raw_data`."""


def tidy(proto: onnx.ModelProto, path: Path) -> None:
    """Sorts the nodes, names nameless graphs and makes sparse weights dense, in place, also in bodies.

    Weights that are no inputs, as IR 3 wants them to be, make it IR 4.

    The domain of the standard operators, which may be called `ai.onnx`, is "" then, and an output that is
    listed twice is listed once.

    Raises:
        ModelError: A sparse weight contradicts itself, or would be too large.
    """
    _shorten_domain(proto)
    _drop_repeated_outputs(proto.graph)
    for function in proto.functions:
        _sort(function)
    _raise_ir_version(proto)
    _import_domains(proto)
    for graph in list_graphs(proto):
        _name(graph)
        _sort(graph)
        _densify(graph, path)
        _drop_repeated_weights(graph)


def list_graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """Returns the graph of a model and all bodies in it and in its functions."""
    nodes = [node for function in proto.functions for node in function.node]
    return [proto.graph, *_inner(proto.graph.node), *_inner(nodes)]


def _inner(nodes: object) -> Iterator[onnx.GraphProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for graph in _bodies(node):
            yield graph
            yield from _inner(graph.node)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    attributes = [attribute for attribute in node.attribute if attribute.type in _BODIES]
    return [
        body
        for item in attributes
        for body in ((item.g,) if item.type == onnx.AttributeProto.GRAPH else item.graphs)
    ]


def list_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yields the dense weights and constants of a model: of its graph, of all bodies and functions."""
    nodes = [*(node for function in proto.functions for node in function.node)]
    for graph in list_graphs(proto):
        yield from graph.initializer
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def check_attributes(proto: onnx.ModelProto, path: Path) -> None:
    """Refuses attributes that have no value where they stand, and texts of ONNX's operators that are none.

    Raises:
        ModelError: There is one.
    """
    for graph in [proto.graph, *_inner(proto.graph.node)]:
        for node in graph.node:
            for attribute in node.attribute:
                if flaw := _find_flaw(node, attribute):
                    raise ModelError(
                        f"{path}: node {node.name!r} ({node.op_type}): its attribute {attribute.name!r} "
                        f"{flaw}; export the model again"
                    )


def _find_flaw(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> str:
    """Returns what is wrong with an attribute; empty: nothing."""
    if attribute.ref_attr_name:
        return f"stands for the attribute {attribute.ref_attr_name!r} of a function, and is in none"
    if node.domain not in ("", "ai.onnx"):
        return ""
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode()
    except UnicodeDecodeError:
        return f"is not UTF-8 text: {text[:40]!r}"
    return _find_bad_spread(node, attribute)


def _find_bad_spread(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> str:
    """Returns what is wrong with how far random numbers spread: ONNX Runtime ends the process over it."""
    if node.op_type.startswith("RandomNormal") and attribute.name == "scale" and not attribute.f > 0:
        return f"is {attribute.f:g}, and random numbers need one above 0"
    if node.op_type.startswith("RandomUniform") and attribute.name in ("low", "high"):
        ends = {"low": 0.0, "high": 1.0} | {item.name: item.f for item in node.attribute}
        if not ends["low"] <= ends["high"]:
            return f"leaves no random numbers from {ends['low']:g} to {ends['high']:g}"
    return ""


def check_tensor(tensor: TensorProto, path: Path) -> None:
    """Refuses a weight with an unknown type, a negative dim, or more or fewer values than its dims say.

    Raises:
        ModelError: It is such a weight; its name is told.
    """
    told = f"{path}: the weights of {tensor.name!r}"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype is ir.DataType.UNDEFINED:
        raise ModelError(f"{told} have the unknown element type {tensor.data_type}; export the model again")
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{told} have the dims {list(tensor.dims)}; export the model again")
    if tensor.data_location == TensorProto.EXTERNAL or dtype is ir.DataType.STRING:
        return
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        have, want, unit = len(tensor.raw_data), math.ceil(count * dtype.bitwidth / 8), "bytes"
    else:
        have, want, unit = sum(len(getattr(tensor, field)) for field in VALUE_FIELDS), count, "values"
        want = 2 * want if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else want
        if dtype.bitwidth < 8:  # packed
            want = math.ceil(count * dtype.bitwidth / 8)
    if have != want:
        raise ModelError(
            f"{told} have {have} {unit}; the dims {list(tensor.dims)} of {dtype.name.lower()} need {want}; "
            f"export the model again, or copy the whole file"
        )


def _shorten_domain(proto: onnx.ModelProto) -> None:
    nodes = [node for part in (*list_graphs(proto), *proto.functions) for node in part.node]
    imports = [item for part in (proto, *proto.functions) for item in part.opset_import]
    for item in (*nodes, *imports):
        if item.domain == "ai.onnx":
            item.domain = ""


def _import_domains(proto: onnx.ModelProto) -> None:
    """Imports the domains that nodes have and the file does not, in version 1, as ONNX Runtime does."""
    known = {item.domain for item in proto.opset_import} | {""}
    used = {node.domain for graph in list_graphs(proto) for node in graph.node} - known
    for domain in sorted(used):
        proto.opset_import.add(domain=domain, version=1)


def _raise_ir_version(proto: onnx.ModelProto) -> None:
    """Gives a file of an old IR, whose weights were inputs too, the first in which they need not be."""
    inputs = {item.name for item in proto.graph.input}
    is_old = 0 < proto.ir_version < _FREE_WEIGHTS_IR
    if is_old and not all(item.name in inputs for item in proto.graph.initializer):
        proto.ir_version = _FREE_WEIGHTS_IR


def _drop_repeated_outputs(graph: onnx.GraphProto) -> None:
    outputs = dict[str, onnx.ValueInfoProto]()
    for output in graph.output:
        outputs.setdefault(output.name, output)
    if len(outputs) < len(graph.output):
        del graph.output[:]
        graph.output.extend(outputs.values())


def _drop_repeated_weights(graph: onnx.GraphProto) -> None:
    """Drops weights that are listed twice with the same values; of others ONNX's checker tells."""
    names = [item.name for item in graph.initializer]
    if len(set(names)) == len(names):
        return
    weights = {(item.name, item.SerializeToString()): item for item in graph.initializer}
    kept = [*weights.values()]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _name(graph: onnx.GraphProto) -> None:
    graph.name = graph.name or "graph"


def _sort(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Puts each node behind those that make what it reads; nodes that may stay in their order do.

    A circle is left as it is: ONNX's checker names it.
    """
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    before = [{makers[name] for name in _reads(node) if name in makers} for node in graph.node]
    if all(place > max(earlier, default=-1) for place, earlier in enumerate(before)):
        return
    readers: list[list[int]] = [[] for _ in before]
    for place, earlier in enumerate(before):
        for maker in earlier:
            readers[maker].append(place)
    missing = [len(earlier) for earlier in before]
    ready, order = [place for place, count in enumerate(missing) if not count], list[int]()
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers[order[-1]]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) == len(before):
        ranks = iter(np.argsort(order).tolist())
        graph.node.sort(key=lambda _: next(ranks))  # in place: large constants are not copied


def _reads(node: onnx.NodeProto) -> set[str]:
    """Returns the names that a node reads, also those that its bodies take from outside."""
    names = set(node.input)
    for body in _bodies(node):
        inside = {item.name for item in (*body.input, *body.initializer)}
        inside |= {name for inner in body.node for name in inner.output}
        read = {name for inner in body.node for name in _reads(inner)} | {item.name for item in body.output}
        names |= read - inside
    return names


def _densify(graph: onnx.GraphProto, path: Path) -> None:
    """Makes the sparse initializers and constants of a graph dense."""
    sparse = list(graph.sparse_initializer)
    graph.ClearField("sparse_initializer")
    graph.initializer.extend(_to_dense(item, item.values.name, path) for item in sparse)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                name = node.output[0] if node.output else node.name
                attribute.t.CopyFrom(_to_dense(attribute.sparse_tensor, name, path))
                attribute.ClearField("sparse_tensor")
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR


def _to_dense(sparse: onnx.SparseTensorProto, name: str, path: Path) -> TensorProto:
    told = f"{path}: the sparse weights of {name!r}"
    for tensor in (sparse.values, sparse.indices):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(f"{told} lie in another file; save the model with dense weights")
        check_tensor(tensor, path)
    dims = tuple(sparse.dims)
    values, places = numpy_helper.to_array(sparse.values).reshape(-1), numpy_helper.to_array(sparse.indices)
    if any(dim < 0 for dim in dims) or math.prod(dims) * values.itemsize > _MOST_DENSE_BYTES:
        raise ModelError(f"{told} have the dims {list(dims)}, which are too large to be made dense")
    places = places.astype(np.int64)
    is_one_each = places.shape in ((values.size,), (values.size, len(dims)))
    sizes = np.array(dims if places.ndim == 2 else [math.prod(dims)], np.int64)
    if not is_one_each or np.any(places < 0) or np.any(places >= (sizes if places.ndim == 2 else sizes[0])):
        raise ModelError(f"{told} have indices that do not fit the dims {list(dims)}; export the model again")
    flat = np.ravel_multi_index(tuple(places.T), dims) if places.ndim == 2 else places
    dense = np.zeros(math.prod(dims), values.dtype)
    dense[flat] = values
    return numpy_helper.from_array(dense.reshape(dims), name)
