"""Tests of the names, dtypes and shapes of inputs and outputs."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from trtq.errors import ModelError
from trtq.models.signature import TensorSpec, outputs_of, read_inputs, show_shape


def _model(inputs: str, outputs: str = "float[N] y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ }}'
    return ir.from_proto(onnx.parser.parse_model(text))


def _with_input(value: onnx.ValueInfoProto) -> ir.Model:
    graph = onnx.helper.make_graph([], "g", [value], [])
    return ir.from_proto(onnx.helper.make_model(graph))


def test_inputs_and_outputs_are_told_in_order() -> None:
    model = _model("float[N,3,224,?] image, int64 size", "float16[N,C] y, bool[2] z")
    assert read_inputs(model) == (
        TensorSpec("image", "float32", ("N", 3, 224, None)),
        TensorSpec("size", "int64", ()),
    )
    assert outputs_of(model) == (
        TensorSpec("y", "float16", ("N", "C")),
        TensorSpec("z", "bool", (2,)),
    )


@pytest.mark.parametrize(
    "dtype", ["float", "double", "float16", "bfloat16", "uint8", "int8", "int32", "bool"]
)
def test_dtypes_are_those_of_numpy(dtype: str) -> None:
    names = {"float": "float32", "double": "float64"}
    assert read_inputs(_model(f"{dtype}[N] x"))[0].dtype == names.get(dtype, dtype)


@pytest.mark.parametrize(
    ("shape", "dynamic"), [((), False), ((1, 3), False), (("N", 3), True), ((1, None), True)]
)
def test_open_dims_make_a_spec_dynamic(shape: tuple[int | str | None, ...], *, dynamic: bool) -> None:
    assert TensorSpec("x", "float32", shape).is_dynamic is dynamic


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((1, 3, 7), True), ((99, 3, 0), True), ((1, 4, 7), False), ((1, 3), False), ((1, 3, 7, 1), False)],
)
def test_only_fixed_dims_must_agree(shape: tuple[int, ...], *, fits: bool) -> None:
    assert TensorSpec("x", "float32", ("N", 3, None)).fits(shape) is fits


@pytest.mark.parametrize(
    ("shape", "shown"), [((), "()"), ((1,), "(1)"), (("N", 3, None, 224), "(N, 3, ?, 224)")]
)
def test_shapes_are_shown_as_people_write_them(shape: tuple[int | str | None, ...], shown: str) -> None:
    assert show_shape(shape) == shown
    assert str(TensorSpec("x", "int64", shape)) == f"x int64 {shown}"


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_tensor_of_strings_is_refused(kind: str) -> None:
    model = _model("string[N] text", "string[N] text")
    with pytest.raises(
        ModelError,
        match=rf"^{kind} 'text' is a tensor of strings, which TensorRT cannot take; "
        r"cut the string processing off the model$",
    ):
        (read_inputs if kind == "input" else outputs_of)(model)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_sequence_is_refused(kind: str) -> None:
    model = _model("seq(float[N]) boxes", "seq(float[N]) boxes")
    with pytest.raises(
        ModelError, match=rf"^{kind} 'boxes' is Sequence\(.*\); trtq and TensorRT take tensors only$"
    ):
        (read_inputs if kind == "input" else outputs_of)(model)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"^input 'x' is of unknown type; trtq and TensorRT take tensors only$"
    ):
        read_inputs(_with_input(onnx.ValueInfoProto(name="x")))


def test_a_tensor_without_rank_is_refused() -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)
    with pytest.raises(
        ModelError, match=r"^input 'x' has no shape, not even a rank; export the model with shapes$"
    ):
        read_inputs(_with_input(value))
