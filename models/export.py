"""A PyTorch module as one ONNX file that computes the same."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.errors import ModelError
from trtq.files import write_atomically

if TYPE_CHECKING:
    import onnx
    import torch
    from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference between PyTorch and ONNX Runtime that is rounding, as a part of the output's range."""


def export(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool = True,
    opset: int = 18,
) -> float:
    """Returns the largest relative difference between the module and the ONNX file that was written.

    The module is exported as it infers (`eval`). PyTorch and ONNX Runtime are compared on the example inputs
    and, with a dynamic batch, on a batch that is one sample larger; only a file that agrees is written.

    Nodes are named for the submodule that they come from, `stem.conv/Conv`, and the tensors that they make
    `stem.conv/Conv_output_0`. The exporter's notes, such as stack traces with the folders of the machine, are
    left out.

    Args:
        module: Takes the inputs by position; returns a tensor, or a flat tuple, list or mapping of tensors.
        example_inputs: One tensor for each input; axis 0 is the batch when it is dynamic.
        path: The file to write; weights are inside, so the model must stay under 2 GiB.
        input_names: A name for each input.
        output_names: A name for each output.
        dynamic_batch: Whether axis 0 of every input is a free dimension called `batch`.
        opset: The version of ONNX's operators.

    Raises:
        ModelError: The module cannot be exported, or the result differs by more than `TOLERANCE`.
        ArtifactError: The file cannot be written.
    """
    torch = lazy.require("torch", "export", "exporting a PyTorch module")
    batches = [tuple(example_inputs)]
    if dynamic_batch:
        # Tracing sees the larger batch, because PyTorch takes an axis of size 1 for a constant.
        batches.insert(0, tuple(torch.cat([value, value[:1]]) for value in example_inputs))
    with _evaluating(module), torch.no_grad():
        data = _to_onnx(
            module, batches[0], input_names, output_names, dynamic_batch=dynamic_batch, opset=opset
        )
        difference = max(check_parity(module, data, inputs) for inputs in batches)
    write_atomically(path, data)
    return difference


def check_parity(module: torch.nn.Module, model: bytes, inputs: Sequence[torch.Tensor]) -> float:
    """Returns the largest difference of the model's outputs from the module's, relative to an output's range.

    The range of an output is its largest value less its smallest in PyTorch, or 1 for a constant output.

    Args:
        module: The module, in the mode in which it is to be compared.
        model: The ONNX model, serialized.
        inputs: A tensor for each input, in the model's order.

    Raises:
        ModelError: ONNX Runtime does not run the model, or an output differs by more than `TOLERANCE`.
    """
    import numpy as np

    worst = 0.0
    for wanted, (name, actual) in zip(_flat(module(*inputs)), _run(model, inputs).items(), strict=True):
        expected = wanted.numpy(force=True).astype(np.float64)
        if expected.shape != actual.shape:
            raise ModelError(
                f"output '{name}' has shape {actual.shape} in the exported model, "
                f"{expected.shape} in PyTorch; "
                "shapes must not depend on the values or on the batch that was traced"
            )
        span = float(np.ptp(expected)) or 1.0
        difference = float(np.max(np.abs(expected - actual))) / span
        if not difference <= TOLERANCE:  # also when it is NaN
            raise ModelError(
                f"output '{name}' of the exported model differs from PyTorch's by {difference:.3g} "
                f"of its range, at most {TOLERANCE:g} is rounding; "
                "look for code that acts at random, or otherwise while it is exported"
            )
        worst = max(worst, difference)
    return worst


def _run(model: bytes, inputs: Sequence[torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Returns the outputs by name that ONNX Runtime computes on the CPU."""
    purpose = "comparing the exported model with PyTorch"
    onnxruntime = lazy.require("onnxruntime", None, purpose)
    refusals = lazy.require("onnxruntime.capi.onnxruntime_pybind11_state", None, purpose)
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        names = [spec.name for spec in session.get_inputs()]
        values = [value.numpy(force=True) for value in inputs]
        outputs = session.run(None, dict(zip(names, values, strict=True)))
    except (
        refusals.Fail,
        refusals.InvalidArgument,
        refusals.InvalidGraph,
        refusals.NotImplemented,
        refusals.RuntimeException,
    ) as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise ModelError(
            f"ONNX Runtime does not run the exported model on inputs of shape {shapes}: {error}; "
            "change the module, or export with another opset or a fixed batch"
        ) from error
    return {spec.name: output for spec, output in zip(session.get_outputs(), outputs, strict=True)}


def _flat(outputs: Any) -> list[torch.Tensor]:
    """Returns what a module returned as a list of tensors, in the order of the exported model's outputs."""
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Puts the module into evaluation mode, and every submodule back into its own afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _to_onnx(
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    dynamic_batch: bool,
    opset: int,
) -> bytes:
    """Returns the module as a serialized ONNX model with clean names."""
    import torch

    batch = torch.export.Dim("batch")
    try:
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=tuple({0: batch} for _ in inputs) if dynamic_batch else None,
            opset_version=opset,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n\n")[0]
        raise ModelError(
            f"PyTorch cannot export {type(module).__name__}: {reason}; "
            "change the module as it says, or fix the batch if that is what it complains of"
        ) from error
    _name_after_modules(module, program.model.graph)
    model = program.model_proto
    _strip(model)
    _check_interface(model, list(input_names), list(output_names), opset)
    return bytes(model.SerializeToString())


def _name_after_modules(module: torch.nn.Module, graph: Any) -> None:
    """Names each node, and the tensors it makes, for the submodule whose weights it uses or that called it.

    Args:
        module: The module, for the names of its weights.
        graph: The `onnx_ir` graph, with the exporter's notes still on it; changed in place.
    """
    weights = {name for name, _ in module.named_parameters()}
    outputs = {value.name for value in graph.outputs}
    taken: set[str] = set()
    for node in graph.all_nodes():
        # A convolution with a folded batch norm carries the norm's scope; its weight still tells its own.
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        used = [value.name for value in node.inputs if value is not None and value.name in weights]
        scope = used[0].rpartition(".")[0] if used else "".join(scopes[-2:-1])
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(1)))
        node.name = next(name for name in names if name not in taken)
        taken.add(node.name)
        for index, value in enumerate(node.outputs):
            if value.name and value.name not in outputs:
                value.name = f"{node.name}_output_{index}"


def _strip(message: Any) -> None:
    """Removes every doc string and metadata property from a protobuf message and the messages in it."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                _strip(child)


def _check_interface(
    model: onnx.ModelProto, input_names: list[str], output_names: list[str], opset: int
) -> None:
    """Raises ModelError unless the exported model has the names and the opset that were asked for."""
    for kind, values, wanted in (
        ("inputs", model.graph.input, input_names),
        ("outputs", model.graph.output, output_names),
    ):
        names = [value.name for value in values]
        if names != wanted:
            raise ModelError(
                f"the exported model has the {kind} {', '.join(names)}, "
                f"but the names given are {', '.join(wanted)}; "
                f"give one name for each of the {len(names)} {kind}"
            )
    version = next(entry.version for entry in model.opset_import if not entry.domain)
    if version != opset:
        raise ModelError(
            f"PyTorch exported with opset {version} and cannot convert this model to opset {opset}; "
            f"ask for opset {version}"
        )
