"""Tests of optimization profiles: the grammar of shapes, and where a profile comes from."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtq.calibrators.ranges import Shapes
from trtq.errors import UsageError
from trtq.models.signature import TensorSpec
from trtq.models.spec import InputSpec, ProfileSpec
from trtq.pipeline.engine.profiles import (
    GivenShapes,
    check_profiles,
    list_profiles,
    parse_shapes,
    resolve_profiles,
)

_IMAGE = TensorSpec("image", "float32", ("N", 3, "H", "W"))
_FIXED = TensorSpec("fixed", "float32", (1, 3))
_SMALL, _USUAL, _LARGE = (1, 3, 32, 32), (4, 3, 64, 64), (8, 3, 96, 96)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("image:1x3x224x224", {"image": (1, 3, 224, 224)}),
        ("image:1X3", {"image": (1, 3)}),
        ("image:[1,3,224,224]", {"image": (1, 3, 224, 224)}),
        ("image: [ 1, 3 ]", {"image": (1, 3)}),
        ("scalar:[]", {"scalar": ()}),
        ("scalar:[ ]", {"scalar": ()}),
        ("length:7", {"length": (7,)}),
        ("ids:1x8,mask:1x8", {"ids": (1, 8), "mask": (1, 8)}),
        ("ids:[1,8], mask:1x8 ,types:[1,8]", {"ids": (1, 8), "mask": (1, 8), "types": (1, 8)}),
        ("ids:1x8,", {"ids": (1, 8)}),
        ("'input_1:0':1x3x544x960", {"input_1:0": (1, 3, 544, 960)}),
        ('"input, with [all] of it":[2]', {"input, with [all] of it": (2,)}),
        ("input_1:0:1x3", {"input_1:0": (1, 3)}),
        ("x1x2:3x4", {"x1x2": (3, 4)}),
    ],
)
def test_trtexec_and_polygraphy_spellings_are_read(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assert parse_shapes(text) == shapes


@pytest.mark.parametrize(
    "text",
    [
        "image",
        "image:",
        ":1x3",
        "1x3",
        "image:1x",
        "image:x3",
        "image:-1x3",
        "image:1x3x",
        "image:1.5x3",
        "image:[1,,3]",
        "image:[1 3]",
        "image:[1,3,]",
        "image:[1,3",
        "image:(1,3)",
        "image:Nx3",
        "'':1x3",
        "'image:1x3",
        "ids:1x8 mask:1x8",
        "ids:1x8,mask",
    ],
)
def test_a_text_without_shapes_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"gives no shapes; write name:1x3x224x224 or name:\[1,3,224,"
    ) as told:
        parse_shapes(text)
    assert repr(text) in str(told.value)


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(UsageError, match="an empty text gives no shapes; write name:1x3x224x224"):
        parse_shapes("")


def test_an_input_with_two_shapes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'ids:1x8,ids:1x9' gives shapes for 'ids' twice; give one"):
        parse_shapes("ids:1x8,ids:1x9")


_names = st.text(st.characters(codec="utf-8", exclude_characters="'"), min_size=1)
_shapes = st.lists(st.integers(0, 10**6), max_size=6).map(tuple)


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(_names, _shapes, min_size=1, max_size=4), st.booleans())
def test_shapes_survive_being_written_and_read(shapes: dict[str, tuple[int, ...]], crossed: bool) -> None:
    def write(shape: tuple[int, ...]) -> str:
        return "x".join(map(str, shape)) if crossed and shape else str(list(shape))

    assert parse_shapes(",".join(f"'{name}':{write(shape)}" for name, shape in shapes.items())) == shapes


def _resolve(
    given_shapes: GivenShapes | None = None,
    spec: dict[str, InputSpec] | None = None,
    seen: dict[str, Shapes] | None = None,
    *inputs: TensorSpec,
) -> tuple[dict[str, InputSpec], list[str]]:
    return resolve_profiles(inputs or (_IMAGE,), given_shapes or GivenShapes(), spec or {}, seen or {})


@pytest.mark.parametrize(
    ("given_shapes", "profile"),
    [
        (GivenShapes({"image": _SMALL}, {"image": _USUAL}, {"image": _LARGE}), (_SMALL, _USUAL, _LARGE)),
        (GivenShapes(opt={"image": _USUAL}), (_USUAL, _USUAL, _USUAL)),
        (GivenShapes(max={"image": _LARGE}), (_LARGE, _LARGE, _LARGE)),
        (GivenShapes(min={"image": _SMALL}), (_SMALL, _SMALL, _SMALL)),
        (GivenShapes(min={"image": _SMALL}, max={"image": _LARGE}), (_SMALL, _LARGE, _LARGE)),
        (GivenShapes(min={"image": _SMALL}, opt={"image": _USUAL}), (_SMALL, _USUAL, _USUAL)),
        (GivenShapes(opt={"image": _USUAL}, max={"image": _LARGE}), (_USUAL, _USUAL, _LARGE)),
    ],
)
def test_a_given_shape_stands_for_those_that_are_not(
    given_shapes: GivenShapes, profile: tuple[tuple[int, ...], ...]
) -> None:
    assert _resolve(given_shapes) == ({"image": InputSpec(*profile)}, [])


def _span(size: int) -> ProfileSpec:
    return ProfileSpec((size,), (size,), (size,))


def _spec(*sizes: int) -> InputSpec:
    first, *rest = map(_span, sizes)
    return InputSpec(first.min, first.opt, first.max, profiles=tuple(rest))


@pytest.mark.parametrize(
    ("whole", "spec", "opt", "wanted"),
    [
        ([{"a": 1, "b": 2}, {"a": 3, "b": 4}], {}, {}, [(1, 2), (3, 4)]),
        ([{"a": 1}, {"a": 3, "b": 4}], {}, {}, [(1, 9), (3, 4)]),  # 9 is of the data
        ([{"a": 1, "b": 2}], {}, {"a": 5}, [(5, 9), (1, 2)]),
        ([{"a": 1, "b": 2}], {"a": _spec(5, 6, 7), "b": _spec(8, 3)}, {}, [(5, 8), (6, 3), (7, 8), (1, 2)]),
        ([{"b": 2}], {"a": _spec(5, 6)}, {}, [(5, 9), (6, 9), (5, 2)]),
        ([], {"a": _spec(5, 6), "b": _spec(8, 3)}, {"a": 7}, [(7, 8), (6, 3)]),
    ],
)
def test_the_shapes_of_a_profile_stay_together(
    whole: list[dict[str, int]], spec: dict[str, InputSpec], opt: dict[str, int], wanted: Sequence[object]
) -> None:
    profiles = tuple({name: _span(size) for name, size in each.items()} for each in whole)
    given_shapes = GivenShapes(opt={name: (size,) for name, size in opt.items()}, profiles=profiles)
    inputs = [TensorSpec(name, "float32", (name.upper(),)) for name in "ab"]
    seen = {name: Shapes((9,), (9,), (9,)) for name in "ab"}
    found, _ = _resolve(given_shapes, spec, seen, *inputs)
    assert [(each["a"].opt[0], each["b"].opt[0]) for each in list_profiles(found)] == wanted


def test_without_data_the_profiles_that_it_will_tell_are_not_known() -> None:
    inputs = [TensorSpec(name, "float32", (name.upper(),)) for name in "ab"]
    whole = GivenShapes(profiles=({"a": _span(1)}, {"a": _span(3), "b": _span(4)}))
    assert check_profiles(inputs, whole, {}) == {"a": _spec(1, 3), "b": None}
    assert check_profiles(inputs, GivenShapes(opt={"b": (2,)}), {}) == {"a": None, "b": _spec(2)}


def test_given_shapes_go_before_the_settings_and_these_before_the_data() -> None:
    spec = {"image": InputSpec(_SMALL, _USUAL, _LARGE)}
    seen = {"image": Shapes(_LARGE, _LARGE, _LARGE)}
    assert _resolve(GivenShapes(opt={"image": _USUAL}), spec, seen)[0]["image"].max == _USUAL
    assert _resolve(None, spec, seen) == (spec, [])


def test_the_shapes_of_the_data_make_a_profile_from_a_batch_of_1_on() -> None:
    profiles, notes = _resolve(seen={"image": Shapes((4, 3, 32, 32), _USUAL, _LARGE)})
    assert profiles == {"image": InputSpec((1, 3, 32, 32), _USUAL, _LARGE)}
    assert notes == [
        "input 'image' is dynamic: profile from the data, min 1x3x32x32, opt 4x3x64x64, max 8x3x96x96; "
        "others with --min-shapes, --opt-shapes, --max-shapes"
    ]


def test_a_fixed_batch_stays_in_a_profile_from_the_data() -> None:
    item = TensorSpec("image", "float32", (4, 3, "H", "W"))
    shapes = Shapes((4, 3, 32, 32), (4, 3, 64, 64), (4, 3, 96, 96))
    assert _resolve(None, None, {"image": shapes}, item)[0] == {
        "image": InputSpec(shapes.min, shapes.opt, shapes.max)
    }


def test_a_fixed_input_needs_no_profile_and_gets_none() -> None:
    assert _resolve(None, None, None, _FIXED) == ({}, [])
    assert _resolve(GivenShapes(opt={"fixed": (1, 3)}), None, None, _FIXED) == ({}, [])


def test_only_the_dynamic_inputs_get_profiles() -> None:
    profiles, _ = _resolve(GivenShapes(opt={"image": _USUAL}), None, None, _FIXED, _IMAGE)
    assert list(profiles) == ["image"]


def test_a_dynamic_input_without_any_shapes_is_refused() -> None:
    with pytest.raises(
        UsageError,
        match=r"input 'image' is dynamic, \(N, 3, H, W\), and there is no data .*--opt-shapes image:\.\.\., "
        r"or \[inputs\.image\] in model\.toml",
    ):
        _resolve()


@pytest.mark.parametrize(
    ("given_shapes", "spec"),
    [
        (GivenShapes(min={"picture": _SMALL}), {}),
        (GivenShapes(opt={"picture": _SMALL}), {}),
        (GivenShapes(max={"picture": _SMALL}), {}),
        (GivenShapes(), {"picture": InputSpec(_SMALL, _SMALL, _SMALL)}),
    ],
)
def test_shapes_for_an_unknown_input_are_refused(
    given_shapes: GivenShapes, spec: dict[str, InputSpec]
) -> None:
    with pytest.raises(
        UsageError, match=r"shapes are given for 'picture', but the model's inputs are image, fixed"
    ):
        _resolve(given_shapes, spec, None, _IMAGE, _FIXED)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((1, 4, 32, 32), "1x4x32x32"), ((1, 3, 32), "1x3x32"), ((), "scalar")],
)
def test_a_shape_that_does_not_fit_the_model_is_refused(shape: tuple[int, ...], shown: str) -> None:
    with pytest.raises(
        UsageError, match=rf"shape {shown} does not fit input 'image', which is \(N, 3, H, W\)"
    ):
        _resolve(GivenShapes(opt={"image": shape}))


def test_a_shape_that_does_not_fit_a_fixed_input_is_refused() -> None:
    with pytest.raises(UsageError, match=r"shape 2x3 does not fit input 'fixed', which is \(1, 3\)"):
        _resolve(GivenShapes(max={"fixed": (2, 3)}), None, None, _FIXED)


def test_given_shapes_out_of_order_are_refused_with_the_input() -> None:
    given_shapes = GivenShapes(min={"image": _LARGE}, max={"image": _SMALL})
    with pytest.raises(
        UsageError,
        match=r"input 'image': profile shapes must .* min <= opt <= max .*; "
        r"got min \(8, 3, 96, 96\), opt \(1, 3, 32, 32\), max \(1, 3, 32, 32\)",
    ):
        _resolve(given_shapes)
