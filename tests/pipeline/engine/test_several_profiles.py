"""Several optimization profiles: given, built, compared, packaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import trtq
from numpy.typing import NDArray

from trtq.calibrators.settings import read_spec
from trtq.errors import UsageError
from trtq.models.signature import TensorSpec
from trtq.models.spec import InputSpec, ModelSpec, ProfileSpec
from trtq.models.toml import format_spec
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.deliver.triton.config import ModelConfig
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.plan import OpenedPlan
from trtq.pipeline.engine.profiles import GivenShapes, list_profiles, parse_profile, resolve_profiles
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.trtexec import format_trtexec

ONE, EIGHT, MANY = (
    ProfileSpec((1, 3), (1, 3), (1, 3)),
    ProfileSpec((2, 3), (8, 3), (8, 3)),
    ProfileSpec((9, 3), (16, 3), (32, 3)),
)
X = TensorSpec("x", "float32", ("N", 3))
Y = TensorSpec("y:0", "float32", ("N", 3))


def test_a_profile_is_read_as_it_is_written() -> None:
    assert parse_profile("x:1x3:1x3:1x3") == {"x": ONE}
    assert parse_profile("x:2X3:8x3:8x3, 'y:0':1x3:1x3:1x3") == {"x": EIGHT, "y:0": ONE}
    for text in ("x", "x:1x3", "x:1x3:2x3:a", "x:1x3:1x3:1x3:1x3"):
        with pytest.raises(UsageError, match=r"is not a profile; write name:MIN:OPT:MAX, such as x:1x3x8x8:"):
            parse_profile(text)
    with pytest.raises(UsageError, match=r"^an empty text is not a profile; write name:MIN:OPT:MAX$"):
        parse_profile("")
    with pytest.raises(UsageError, match=r"^input 'x': profile shapes must have the same rank"):
        parse_profile("x:2x3:1x3:1x3")


def test_whole_profiles_follow_the_first_and_make_it_where_there_is_none() -> None:
    whole = GivenShapes(profiles=({"x": ONE}, {"x": MANY}))
    seen = {"y:0": InputSpec((1, 3), (4, 3), (4, 3))}
    found, notes = resolve_profiles([X, Y], whole, {}, seen)
    assert found["x"] == InputSpec(ONE.min, ONE.opt, ONE.max, profiles=(MANY,))
    assert found["y:0"].profiles == (found["y:0"].first,)  # as many of each input
    assert len(notes) == 1
    settings = {"x": InputSpec(EIGHT.min, EIGHT.opt, EIGHT.max, profiles=(ONE,))}
    (both,) = resolve_profiles([X], GivenShapes(profiles=({"x": MANY},)), settings, {})[0].values()
    assert both.all == (EIGHT, ONE, MANY)
    assert list_profiles({"x": both}) == [{"x": EIGHT}, {"x": ONE}, {"x": MANY}]
    assert both.hull == InputSpec((1, 3), (8, 3), (32, 3))
    with pytest.raises(UsageError, match="does not fit input 'x'"):
        resolve_profiles([X], GivenShapes(profiles=({"x": ProfileSpec((1, 4), (1, 4), (1, 4))},)), {}, {})
    with pytest.raises(UsageError, match="shapes are given for 'z'"):
        resolve_profiles([X], GivenShapes(profiles=({"z": ONE},)), {}, seen)


def test_settings_have_them_as_tables(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    table = "[[inputs.x.profiles]]\nmin = [{0}, 3]\nopt = [{0}, 3]\nmax = [{0}, 3]\n"
    path.write_text(table.format(1) + table.format(8))
    spec = read_spec(path)
    assert [item.opt for item in spec.inputs["x"].all] == [(1, 3), (8, 3)]
    again = ModelSpec(inputs=spec.inputs)
    path.write_text(format_spec(again))
    assert read_spec(path) == again
    path.write_text("[inputs.x]\nmin = [2, 3]\nopt = [2, 3]\nmax = [2, 3]\n" + table.format(1))
    assert [item.opt for item in read_spec(path).inputs["x"].all] == [(2, 3), (1, 3)]
    for text, told in (
        ("[inputs.x]\nprofiles = []\n", r"\[inputs\.x\] is incomplete"),
        (
            table.format(1) + "[[inputs.x.profiles]]\nmin = [1]\nopt = [1]\nmax = [1]\n",
            "must have the same rank; got 2, 1",
        ),
        ("[inputs.x]\nprofiles = 3\n", r"\[\[inputs\.x\.profiles\]\] must be a section, got 3"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=told):
            read_spec(path)


def test_trtexec_gets_a_profile_after_the_other() -> None:
    profiles = {"x": InputSpec(ONE.min, ONE.opt, ONE.max, profiles=(EIGHT,))}
    command = format_trtexec(BuildRequest(Path("m.onnx"), profiles), has_typed_flag=False)
    assert (
        "--profile=0 --minShapes=x:1x3 --optShapes=x:1x3 --maxShapes=x:1x3 "
        "--profile=1 --minShapes=x:2x3 --optShapes=x:8x3 --maxShapes=x:8x3" in command
    )


class Engine:
    """An engine of two profiles, and its context."""

    num_optimization_profiles = 2
    active_optimization_profile = 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3) if name == "x" else (4,)

    def get_tensor_profile_shape(self, name: str, number: int) -> tuple[tuple[int, ...], ...]:
        assert name == "x"
        item = (ONE, EIGHT)[number]
        return item.min, item.opt, item.max

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.active_optimization_profile = number
        return stream == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True


def test_a_run_takes_the_profile_that_its_shapes_fit() -> None:
    plan, engine = object.__new__(OpenedPlan), Engine()
    plan.engine = plan.context = engine
    plan.inputs = ("x", "k")

    def feed(count: int) -> dict[str, NDArray[Any]]:
        return {"x": np.zeros((count, 3)), "k": np.zeros(4)}

    for count, number in ((8, 1), (1, 0), (2, 1)):
        plan.take_shapes(feed(count))
        assert engine.active_optimization_profile == number


def test_a_build_has_them_all_and_tells_which_is_not_compared(
    path_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := TensorRtRtx().why_not():
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    path_of("g (float[N,L,64] x) => (float[N,L,64] y) { y = MatMul (x, w) }", w=weight).rename("m.onnx")
    np.savez("d.npz", x=np.random.default_rng(1).standard_normal((8, 4, 64)).astype(np.float32))
    profiles = ("--profile", "x:1x4x64:8x4x64:8x4x64", "--profile", "x:1x32x64:1x32x64:2x32x64")
    quick = ("--int8", "--backend", "tensorrt-rtx", "--effort", "quick", "--calib-data", "d.npz")
    result = trtq("build", "m.onnx", *quick, "--compute-capability", "8.9", *profiles)
    assert result.exit_code == 0, result.output
    assert "  profile 1 of x: min 1x32x64  opt 1x32x64  max 2x32x64\n" in result.stdout
    assert "fits optimization profile 1 (x 1x32x64), so it was not compared" in " ".join(
        result.stderr.split()
    )
    assert len(read_report("m.trtq").engine.profiles["x"].all) == 2
    assert "shapes of x, profile 1" in Path("m.trtq/report.html").read_text()


def test_triton_takes_the_one_that_fits() -> None:
    config = ModelConfig("m", "tensorrt", 8, (), (), num_profiles=2)
    assert config.message()["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "profile": ["0", "1"]}]
