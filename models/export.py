"""A PyTorch module as one ONNX file that computes the same."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from trtq import lazy
from trtq.errors import ModelError
from trtq.files import write_atomically
from trtq.models.fake_quantize import list_translations
from trtq.models.foreign import silence
from trtq.models.modules import name_after_modules
from trtq.models.parity import TOLERANCE, check_parity, set_to_eval

if TYPE_CHECKING:
    import torch

_DATA_DEPENDENT = "its control flow depends on values"
_MAX_TRACED_OPSET = 20
_NOISE = re.compile(r" \((unhinted|Size-like symbols): [^()]*(\([^()]*\))?[^()]*\)\.?")
_USER_LINE = re.compile(
    r'raised this error:\n\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in \w+\n(?P<code>[^\n]*)'
)


def export(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    path: str | Path,
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
    with set_to_eval(module), torch.no_grad(), silence():
        model = _to_onnx(module, batches[0], names, output_names, opset)
        difference = max(check_parity(module, model, inputs, tolerance=tolerance) for inputs in batches)
    write_atomically(Path(path), ir.to_proto(model).SerializeToString())
    return difference


def to_onnx(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    open_axes: Mapping[str, Mapping[int, str]],
    *,
    opset: int,
    output_names: Sequence[str] | None = None,
) -> tuple[ir.Model, str]:
    """Returns the module in evaluation mode as an ONNX model, and a note of the exporter.

    The exporter of PyTorch 2 traces with symbolic sizes and reports what it cannot follow. What it has no
    operators for, and TorchScript, goes to the exporter of PyTorch 1; not so control flow that depends on
    values, which that one would freeze as the example takes it.

    Args:
        module: Takes the inputs by position.
        inputs: Example values.
        open_axes: The names of the inputs, with the names of their open axes; "past+sequence" is a sum.
        opset: The version of ONNX's operators.
        output_names: A name for each output; None: those of the exporter.

    Raises:
        ModelError: Neither can export it; the first one's words are given, with the line of the user's code.
    """
    torch = lazy.require("torch", "export", "exporting a PyTorch module")
    refusal: ModelError | None = None
    with set_to_eval(module), torch.no_grad(), silence():
        if not isinstance(module, torch.jit.ScriptModule):
            try:
                return _to_onnx(module, inputs, open_axes, output_names, opset), ""
            except ModelError as error:
                if _DATA_DEPENDENT in str(error):
                    raise
                refusal = error
        try:
            model = _trace(module, inputs, open_axes, opset)
        except (RuntimeError, TypeError, ValueError) as error:
            raise refusal or ModelError(
                f"PyTorch cannot export this TorchScript: {str(error).strip().splitlines()[0][:300]}"
            ) from error
    return model, "exported with the exporter of PyTorch 1" + (f", since: {refusal}" if refusal else "")


def _trace(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    open_axes: Mapping[str, Mapping[int, str]],
    opset: int,
) -> ir.Model:
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
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def _to_onnx(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    open_axes: Mapping[str, Mapping[int, str]],
    output_names: Sequence[str] | None,
    opset: int,
) -> ir.Model:
    """Returns the module as an ONNX model with clean names."""
    import torch

    names_of_dims = {name for axes in open_axes.values() for name in axes.values()}
    dims = {  # what a sum is follows from the others
        name: torch.export.Dim.DYNAMIC if "+" in name else torch.export.Dim(name) for name in names_of_dims
    }
    shapes = tuple({axis: dims[name] for axis, name in axes.items()} for axes in open_axes.values())
    names = None if output_names is None else list(output_names)
    try:
        program = torch.onnx.export(
            module,
            tuple(inputs),
            dynamo=True,
            verbose=False,
            input_names=list(open_axes),
            output_names=names,
            dynamic_shapes=_as_parameters(module, shapes) if any(shapes) else None,
            opset_version=opset,
            custom_translation_table=list_translations(),
        )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"PyTorch cannot export {type(module).__name__}: {_reason(error)}; change the module there "
            "(torch.where and torch.cond choose by values), or fix the sizes if it complains of them"
        ) from error
    model: ir.Model = program.model
    name_after_modules(model.graph)
    _name_values(model.graph)
    inputs_by_name = {value.name for value in model.graph.inputs}
    for value in model.graph.outputs:
        if value.name in inputs_by_name:  # it is an input, and needs a name of its own
            value.name = f"{value.name}_output"
    _name_sums(model, open_axes)
    _strip(model)
    _check_interface(model, list(open_axes), names, opset)
    return model


def _as_parameters(module: torch.nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the shapes as the parameters of `forward` take the inputs: `*inputs` takes all as one tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    return (shapes,) if [item.kind for item in parameters] == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _reason(error: Exception) -> str:
    """Returns the exporter's reason in one line, and the line of the user's code that it names."""
    cause = str(error.__cause__ or error).strip()
    reason = _NOISE.sub("", " ".join(cause.partition("\n\n")[0].split()))[:400]
    if "data-dependent" in reason:
        reason = f"{_DATA_DEPENDENT} ({reason})"
    place = _USER_LINE.search(cause)
    return reason + (
        f", at {place['file']}, line {place['line']}: `{place['code'].strip()}`" if place else ""
    )


def _name_values(graph: ir.Graph) -> None:
    """Names what each node makes for the node."""
    outputs = {value.name for value in graph.outputs}
    for node in graph.all_nodes():
        for index, value in enumerate(node.outputs):
            if value.name and value.name not in outputs:
                value.name = f"{node.name}_output_{index}"


def _name_sums(model: ir.Model, open_axes: Mapping[str, Mapping[int, str]]) -> None:
    """Names the open dims of inputs that are sums of others, for which PyTorch finds names of its own."""
    for value in model.graph.inputs:
        for axis, name in open_axes.get(str(value.name), {}).items():
            if "+" in name and value.shape is not None:
                value.shape[axis] = name.replace("+", "_plus_")


def _strip(model: ir.Model) -> None:
    """Removes every doc string and metadata property, such as stack traces."""
    nodes = list(model.graph.all_nodes())
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in nodes for value in node.outputs]
    items: list[Any] = [model, model.graph, *(node.graph for node in nodes), *nodes, *values]
    for item in items:
        item.doc_string = None
        item.metadata_props.clear()


def _check_interface(
    model: ir.Model, input_names: list[str], output_names: list[str] | None, opset: int
) -> None:
    """Raises ModelError unless the exported model has the names and the opset that were asked for."""
    for kind, values, wanted in (
        ("inputs", model.graph.inputs, input_names),
        ("outputs", model.graph.outputs, output_names),
    ):
        names = [str(value.name) for value in values]
        if wanted is not None and names != wanted:
            raise ModelError(
                f"the exported model has the {kind} {', '.join(names)}, but the names given are "
                f"{', '.join(wanted)}; give one name for each of the {len(names)} {kind}"
            )
    version = model.opset_imports.get("", opset)
    if version != opset:
        raise ModelError(
            f"PyTorch exported with opset {version} and cannot convert this model to opset {opset}; "
            f"ask for opset {version}"
        )
