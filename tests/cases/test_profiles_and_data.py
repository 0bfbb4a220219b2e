"""Data that the engine will never see proves nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtq
from trtq.pipeline.engine.profiles import GivenShapes

_NET = "net (float[N, 3, H, W] x) => (float[N, 8, H, W] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(("side", "verdict"), [(32, "unverified"), (64, "pass")])
def test_data_outside_of_the_profiles_makes_no_pass(
    path_of: Callable[..., Path], tmp_path: Path, side: int, verdict: str, auto: bool
) -> None:
    rng = np.random.default_rng(0)
    model = path_of(_NET, w=rng.standard_normal((8, 3, 3, 3)).astype(np.float32))
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((16, 3, 64, 64)).astype(np.float32))
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz")),
        quantization=trtq.QuantizationSpec(repair=("none",)),
        layers=trtq.LayerSpec(force=(".",)),
    )
    small, large = {"x": (1, 3, 8, 8)}, {"x": (1, 3, side, side)}
    target = trtq.Target(
        backend="tensorrt-rtx",
        compute_capabilities=("8.9",),
        shapes=GivenShapes(small, large, large),
        auto=auto,
    )
    report = trtq.build(model, spec=spec, target=target, output=tmp_path / "out")
    assert report.verdict == verdict
    if verdict == "unverified":
        assert report.reasons[0].endswith(
            "x.npz fits the engine's profiles, so nothing was compared that the engine takes; see "
            "--min-shapes and --max-shapes"
        )
