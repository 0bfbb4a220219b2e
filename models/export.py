"""A PyTorch module as one ONNX file that computes the same."""

from __future__ import annotations

import ast
import inspect
import io
import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.errors import GateError, ModelError
from trtq.files import write_atomically
from trtq.models.fake_quantize import translations

if TYPE_CHECKING:
    import onnx
    import torch
    from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference between PyTorch and ONNX Runtime that is rounding, as a part of the output's range."""
_DATA_DEPENDENT = "its control flow depends on values"
_MAX_TRACED_OPSET = 20
_USER_LINE = re.compile(
    r'raised this error:\n\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in \w+\n(?P<code>[^\n]*)'
)


def export(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool = True,
    opset: int = 18,
    tolerance: float = TOLERANCE,
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
        tolerance: The largest difference that is taken for rounding, as a part of the output's range.

    Raises:
        ModelError: The module cannot be exported.
        GateError: The result differs by more.
        ArtifactError: The file cannot be written.
    """
    torch = lazy.require("torch", "export", "exporting a PyTorch module")
    batches = [tuple(example_inputs)]
    if dynamic_batch:
        # Tracing sees the larger batch, because PyTorch takes an axis of size 1 for a constant.
        batches.insert(0, tuple(torch.cat([value, value[:1]]) for value in example_inputs))
    names = dict.fromkeys(input_names, {0: "batch"} if dynamic_batch else {})
    with evaluating(module), torch.no_grad():
        data = _to_onnx(module, batches[0], names, output_names, opset)
        difference = max(check_parity(module, data, inputs, tolerance=tolerance) for inputs in batches)
    write_atomically(path, data)
    return difference


def check_parity(
    module: torch.nn.Module, model: bytes, inputs: Sequence[torch.Tensor], *, tolerance: float = TOLERANCE
) -> float:
    """Returns the largest difference of the model's outputs from the module's, relative to an output's range.

    The range of an output is its largest value less its smallest in PyTorch, or 1 for a constant output.

    Args:
        module: The module, in the mode in which it is to be compared.
        model: The ONNX model, serialized.
        inputs: A tensor for each input, in the model's order.
        tolerance: The largest difference that is taken for rounding.

    Raises:
        ModelError: ONNX Runtime does not run the model.
        GateError: An output differs by more.
    """
    import numpy as np

    worst = 0.0
    for wanted, (name, actual) in zip(_flat(module(*inputs)), _run(model, inputs).items(), strict=True):
        expected = wanted.numpy(force=True).astype(np.float64)
        if expected.shape != actual.shape:
            raise GateError(
                f"output '{name}' has shape {actual.shape} in the exported model, "
                f"{expected.shape} in PyTorch; "
                "shapes must not depend on the values or on the batch that was traced"
            )
        span = float(np.ptp(expected)) or 1.0
        difference = float(np.max(np.abs(expected - actual))) / span
        if not difference <= tolerance:  # also when it is NaN
            raise GateError(
                f"output '{name}' of the exported model differs from PyTorch's by {difference:.3g} "
                f"of its range, at most {tolerance:g} is rounding; "
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
        options = (
            onnxruntime.SessionOptions()
        )  # as the file says: optimized, Q/DQ would become integer arithmetic
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
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
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Puts the module into evaluation mode, and every submodule back into its own afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    with suppress(NotImplementedError):  # an exported program, which has one mode only
        module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def to_onnx(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    open_axes: Mapping[str, Mapping[int, str]],
    *,
    opset: int,
) -> tuple[bytes, str]:
    """Returns the module in evaluation mode as a serialized ONNX model, and a note of the exporter.

    The exporter of PyTorch 2 traces with symbolic sizes and tells what it cannot follow. What it has no
    operators for, and TorchScript, goes to the exporter of PyTorch 1; not so control flow that depends on
    values, which that one would freeze as the example takes it.

    Args:
        module: Takes the inputs by position.
        inputs: Example values.
        open_axes: The names of the inputs, with the names of their open axes.
        opset: The version of ONNX's operators.

    Raises:
        ModelError: Neither can export it; the first one's words are told, with the line of the user's code.
    """
    torch = lazy.require("torch", "export", "exporting a PyTorch module")
    with evaluating(module), torch.no_grad(), _quiet():
        is_script = isinstance(module, torch.jit.ScriptModule)
        try:
            if not is_script:
                return _to_onnx(module, inputs, open_axes, None, opset), ""
        except ModelError as error:
            if _DATA_DEPENDENT in str(error):
                raise
            first: ModelError | None = error
        else:
            first = None
        try:
            data = _traced(module, inputs, open_axes, opset)
        except (RuntimeError, TypeError, ValueError) as error:
            raise first or ModelError(
                f"PyTorch cannot export this TorchScript: {str(error).strip().splitlines()[0][:300]}"
            ) from error
    return data, "exported with the exporter of PyTorch 1" + ("" if is_script else f", since: {first}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporters log, print and warn of from the terminal: what counts is in their errors."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # it prints whole graphs
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _traced(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    open_axes: Mapping[str, Mapping[int, str]],
    opset: int,
) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        tuple(inputs),
        buffer,
        dynamo=False,
        input_names=list(open_axes),
        dynamic_axes={name: dict(axes) for name, axes in open_axes.items() if axes},
        opset_version=min(opset, _MAX_TRACED_OPSET),
    )
    return buffer.getvalue()


def _to_onnx(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    open_axes: Mapping[str, Mapping[int, str]],
    output_names: Sequence[str] | None,
    opset: int,
) -> bytes:
    """Returns the module as a serialized ONNX model with clean names."""
    import torch

    dims = {name: torch.export.Dim(name) for axes in open_axes.values() for name in axes.values()}
    shapes: tuple[Any, ...] = tuple(
        {axis: dims[name] for axis, name in axes.items()} for axes in open_axes.values()
    )
    try:
        program = torch.onnx.export(
            module,
            tuple(inputs),
            dynamo=True,
            verbose=False,
            input_names=list(open_axes),
            output_names=None if output_names is None else list(output_names),
            dynamic_shapes=_as_parameters(module, shapes) if any(shapes) else None,
            opset_version=opset,
            custom_translation_table=translations(),
        )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"PyTorch cannot export {type(module).__name__}: {_reason(error)}; "
            "change the module as it says, or fix the sizes if that is what it complains of"
        ) from error
    _name_after_modules(module, program.model.graph)
    model = program.model_proto
    _strip(model)
    _check_interface(model, list(open_axes), None if output_names is None else list(output_names), opset)
    return bytes(model.SerializeToString())


def _as_parameters(module: torch.nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the shapes as the parameters of `forward` take the inputs: `*inputs` takes all as one tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    return (shapes,) if [item.kind for item in parameters] == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _reason(error: Exception) -> str:
    """Returns the exporter's reason in one line, and the line of the user's code that it names."""
    cause = str(error.__cause__ or error).strip()
    reason = " ".join(cause.partition("\n\n")[0].split())[:400]
    if "data-dependent" in reason:
        reason = f"{_DATA_DEPENDENT} ({reason})"
    place = _USER_LINE.search(cause)
    return reason + (
        f", at {place['file']}, line {place['line']}: `{place['code'].strip()}`" if place else ""
    )


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
    model: onnx.ModelProto, input_names: list[str], output_names: list[str] | None, opset: int
) -> None:
    """Raises ModelError unless the exported model has the names and the opset that were asked for."""
    for kind, values, wanted in (
        ("inputs", model.graph.input, input_names),
        ("outputs", model.graph.output, output_names),
    ):
        names = [value.name for value in values]
        if wanted is not None and names != wanted:
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
