"""How the inputs of a module are told, and the example values made for them."""

from __future__ import annotations

import pytest

from trtq.errors import UsageError
from trtq.models.inputs import ModuleInput, check_sizes, parse_input, parse_sizes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x:Nx3x224x224:float32", ModuleInput("x", ("N", 3, 224, 224))),
        ("x:1x3x8x8", ModuleInput("x", (1, 3, 8, 8))),
        ("input_ids:NxL:int64", ModuleInput("input_ids", ("N", "L"), "int64")),
        (" a.b:batchxC2:bool ", ModuleInput("a.b", ("batch", "C2"), "bool")),
    ],
)
def test_an_input_by_its_text(text: str, found: ModuleInput) -> None:
    assert parse_input(text) == found


@pytest.mark.parametrize("text", ["", "x", "x:", ":3x3", "x:3xx3", "x:0x3", "x:nx3", "x:3,3", "x:-1x3"])
def test_what_tells_no_input_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not an input; write name:Nx3x224x224:float32"):
        parse_input(text)


def test_an_unknown_dtype_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"input 'x' has dtype 'half'; use one of float32, float16"):
        parse_input("x:3:half")


def test_the_example_has_a_batch_of_two_and_sizes_that_were_given() -> None:
    item = ModuleInput("x", ("N", 3, "H", "W"))
    assert item.shape({}) == (2, 3, 64, 64)
    assert item.shape({"H": 32, "N": 5}) == (5, 3, 32, 64)
    assert item.open_axes == {0: "N", 2: "H", 3: "W"}
    values = item.example({"H": 4, "W": 4})
    assert (values.shape, values.dtype.name) == ((2, 3, 4, 4), "float32")
    assert 0.5 < values.std() < 1.5


def test_integers_are_such_as_ids_and_masks_both_hold() -> None:
    values = ModuleInput("ids", ("N", "L"), "int64").example({})
    assert (values.dtype.name, set(values.reshape(-1).tolist())) == ("int64", {0, 1})


def test_a_size_of_no_open_dim_is_refused() -> None:
    inputs = (parse_input("x:NxLx3"), parse_input("m:NxL:bool"))
    check_sizes({"L": 5}, inputs)
    message = r"a size is given for 'H', but the dynamic dims are L, N of x:NxLx3:float32 and m:NxL:bool"
    with pytest.raises(UsageError, match=message):
        check_sizes({"H": 5}, inputs)


def test_an_array_fits_where_dims_are_open() -> None:
    item = parse_input("x:Nx3")
    assert [item.fits(shape) for shape in ((5, 3), (5, 4), (5,))] == [True, False, False]


def test_sizes_by_their_texts() -> None:
    assert parse_sizes(("H=256", "L=16")) == {"H": 256, "L": 16}
    with pytest.raises(UsageError, match=r"'H=' is not a size; write NAME=SIZE"):
        parse_sizes(("H=",))


def test_a_sum_of_open_dims_has_their_sizes_and_integers_lie_below_what_is_said() -> None:
    item = ModuleInput("mask", ("N", "P+S"), "int64", below=5)
    assert item.shape({"P": 3, "S": 4}) == (2, 7)
    assert {*item.example({"P": 30, "S": 40}).ravel().tolist()} == {0, 1, 2, 3, 4}
    check_sizes({"P": 3}, [item])
    assert parse_sizes(("past=3",)) == {"past": 3}
    with pytest.raises(
        UsageError, match=r"a size is given for 'P\+S', but the dynamic dims are N, P, S of mask"
    ):
        check_sizes({"P+S": 3}, [item])
