"""How far an exported ONNX model is from the PyTorch module that it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.errors import GateError, ModelError
from trtq.models.foreign import explain_failures
from trtq.models.session import open_session, run

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference between PyTorch and ONNX Runtime that is rounding, as a part of the output's range."""
_LOWER = {"FLOAT16": 0.01, "BFLOAT16": 0.08}
"""The same for modules that compute in these types, some ten times their own rounding."""


def check_parity(
    module: torch.nn.Module,
    model: ir.Model | Path,
    inputs: Sequence[torch.Tensor],
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Returns the largest difference of the model's outputs from the module's, relative to an output's range.

    The range of an output is its largest value less its smallest in PyTorch, or 1 for a constant output.

    Args:
        module: The module, in the mode in which it is to be compared.
        model: The ONNX model, or the path of its file.
        inputs: A tensor for each input, in the model's order.
        tolerance: The largest difference that is taken for rounding.

    Raises:
        ModelError: ONNX Runtime does not run the model, or the module fails.
        GateError: An output differs by more.
    """
    import numpy as np

    worst = 0.0
    wanted, actual = run_outputs(module, inputs), _run(model, inputs)
    if len(wanted) != len(actual):
        raise GateError(
            f"the exported model has the {len(actual)} outputs {', '.join(actual)}, the module returns "
            f"{len(wanted)} tensors; return each tensor once, and no others"
        )
    for tensor, (name, found) in zip(wanted, actual.items(), strict=True):
        expected = tensor.double().numpy(force=True)
        if expected.shape != found.shape:
            raise GateError(
                f"output '{name}' has shape {found.shape} in the exported model, {expected.shape} in "
                "PyTorch; shapes must not depend on the values or on the batch that was traced"
            )
        if not expected.size:
            continue
        span = float(np.ptp(expected)) or 1.0
        difference = float(np.max(np.abs(expected - found))) / span
        if not difference <= tolerance:  # also when it is NaN
            raise GateError(
                f"output '{name}' of the exported model differs from PyTorch's by {difference:.3g} "
                f"of its range, at most {tolerance:g} is rounding; "
                "look for code that is random, or that does something else while it is exported"
            )
        worst = max(worst, difference)
    return worst


def find_tolerance(model: ir.Model) -> tuple[float, str]:
    """Returns the largest difference that is rounding, and the type that allows more than float32 does."""
    found = {TOLERANCE: ""}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.dtype is not None and value.dtype.name in _LOWER:
                found[_LOWER[value.dtype.name]] = value.dtype.name.lower()
    return max(found), found[max(found)]


def run_outputs(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the tensors that the module returns, in the order in which the exporter makes outputs of them.

    Raises:
        ModelError: The module fails on these inputs, or returns something else than tensors.
    """
    torch = lazy.require("torch", "export", "running a PyTorch module")
    name = type(module).__name__
    shown = ", ".join(f"{tuple(value.shape)} {str(value.dtype).rpartition('.')[2]}" for value in inputs)
    advice = "give the inputs that it takes with --input and --size, or fix that line"
    with explain_failures(f"{name} fails on inputs of shape {shown}", advice), torch.no_grad():
        returned = module(*inputs)
    return list(_tensors(returned, name))


def _tensors(returned: Any, name: str) -> Iterator[torch.Tensor]:
    """Yields the tensors of what a module returned; None is left out."""
    import torch

    if isinstance(returned, torch.Tensor):
        yield returned
    elif isinstance(returned, Mapping | tuple | list):
        for item in returned.values() if isinstance(returned, Mapping) else returned:
            yield from _tensors(item, name)
    elif returned is not None:
        raise ModelError(f"{name} returns a {type(returned).__name__}; return tensors only, or lists of them")


@contextmanager
def set_to_eval(module: torch.nn.Module) -> Iterator[None]:
    """Puts the module into evaluation mode, and every submodule back into its own afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    with suppress(NotImplementedError):  # an exported program, which has one mode only
        module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _run(model: ir.Model | Path, inputs: Sequence[torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Returns the outputs by name that ONNX Runtime computes on the CPU, as the file says: unoptimized."""
    try:
        session = open_session(model, optimize=False)
        names = [spec.name for spec in session.get_inputs()]
        outputs = [spec.name for spec in session.get_outputs()]
        feed = dict(zip(names, (value.numpy(force=True) for value in inputs), strict=True))
        return dict(zip(outputs, run(session, outputs, feed), strict=True))
    except ModelError as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise ModelError(
            f"ONNX Runtime does not run the exported model on inputs of shape {shapes}: {error}; "
            "change the module, or export with another opset or a fixed batch"
        ) from error
