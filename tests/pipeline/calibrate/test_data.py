"""The first half of a build: which settings, which data, which method."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from numpy.typing import NDArray
from recording_watcher import RecordingWatcher

from trtq.calibrators import Method, create_method
from trtq.calibrators.entropy import Auto, Entropy, EntropyWithRows
from trtq.calibrators.estimate import estimate
from trtq.calibrators.minmax import MinMax
from trtq.calibrators.mse import Mse
from trtq.calibrators.percentile import Percentile
from trtq.errors import DataError, UsageError
from trtq.models.spec import (
    AccuracySpec,
    CalibrationSpec,
    EvaluationSpec,
    InputSpec,
    LayerSpec,
    ModelSpec,
    ProfileSpec,
)
from trtq.pipeline.calibrate.data import (
    ObserveOptions,
    find_shapes,
    find_spec,
    open_calibration_data,
    options_from_spec,
    place_layers,
    warn_of_dead,
    warn_of_unmatched,
)
from trtq.pipeline.calibrate.observation import observe_graph
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import Graph, load
from trtq.progress import Silent


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        small (float[N,3,4,4] x) => (float[N,3,4,4] y) {
          [first] h = Conv <kernel_shape = [1,1]> (x, w1)
          [act] r = Relu (h)
          [second] y = Conv <kernel_shape = [1,1]> (r, w2)
        }""")
    for name in ("w1", "w2"):
        weight = np.eye(3, dtype=np.float32)[..., None, None]
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, tmp_path / "m.onnx")
    return load(tmp_path / "m.onnx", min_opset=19)


def samples(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def images(count: int, value: float = 1.0) -> NDArray[np.float32]:
    return np.full((count, 3, 4, 4), value, np.float32)


# Settings


def test_settings_of_the_models_own_name_come_first(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("[accuracy]\nmin_cosine = 0.5\n")
    assert find_spec(tmp_path / "net.onnx").accuracy.min_cosine == 0.5
    (tmp_path / "net.toml").write_text("[accuracy]\nmin_cosine = 0.75\n")
    assert find_spec(tmp_path / "net.onnx").accuracy.min_cosine == 0.75


def test_without_settings_the_defaults_hold(tmp_path: Path) -> None:
    assert find_spec(tmp_path / "net.onnx") == ModelSpec()


@pytest.mark.parametrize("name", [".", "/"])
def test_a_path_without_a_name_has_no_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_spec(Path(name)).accuracy == AccuracySpec()


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        (CalibrationSpec(), Auto()),
        (CalibrationSpec(parameters={"num_bins": 512}), Auto(num_bins=512)),
        (CalibrationSpec(method="minmax"), MinMax()),
        (CalibrationSpec(method="mse"), Mse()),
        (CalibrationSpec("d.npz", "cross-entropy", {"num_bins": 1024}), EntropyWithRows(1024)),
        (CalibrationSpec("d.npz", "percentile", {"percentile": 99.0}), Percentile(99.0)),
        (CalibrationSpec("d.npz", "mse", {"percentile": 99.0}), Mse()),  # as older settings may have it
    ],
)
def test_the_method_is_the_one_that_is_named(spec: CalibrationSpec, method: object) -> None:
    assert create_method(spec) == method


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"no calibration method 'max'; use auto, minmax, .*, cosine, cross-entropy"
    ):
        create_method(CalibrationSpec(method="max"))


# Data


def test_data_comes_in_batches_up_to_the_wanted_samples(graph: Graph, tmp_path: Path) -> None:
    data = samples(tmp_path / "c.npz", x=images(10))
    spec = ModelSpec(calibration=CalibrationSpec(data=data, batch_size=4, samples=8))
    batches = open_calibration_data(graph, spec, Target(), random_data=False)
    assert [feed.num_samples for feed in batches] == [4, 4]


def test_calibration_data_may_hold_the_labels_too(graph: Graph, tmp_path: Path) -> None:
    data = samples(tmp_path / "c.npz", x=images(3), truth=np.zeros(3, np.int64))
    spec = ModelSpec(
        calibration=CalibrationSpec(data=data), evaluation=EvaluationSpec(data=data, labels="truth")
    )
    assert open_calibration_data(graph, spec, Target(), random_data=False).num_samples == 3


def test_without_data_the_error_lists_the_ways(graph: Graph) -> None:
    with pytest.raises(DataError) as caught:
        open_calibration_data(graph, ModelSpec(), Target(), random_data=False)
    message = str(caught.value)
    for way in (".npz or .npy", "folder of .npz", "folder of images", "script.py:function", ".json of inputs",
                "[calibration] of model.toml", "--random-data"):  # fmt: skip
        assert way in message


@pytest.mark.parametrize(
    ("spec", "given", "batch"),
    [
        (ModelSpec(), GivenShapes(), 1),
        (ModelSpec(inputs={"x": InputSpec((1, 3, 4, 4), (3, 3, 4, 4), (9, 3, 4, 4))}), GivenShapes(), 3),
        (ModelSpec(), GivenShapes(max={"x": (5, 3, 4, 4)}), 5),
        (ModelSpec(), GivenShapes(opt={"x": (2, 3, 4, 4)}, max={"x": (5, 3, 4, 4)}), 2),
    ],
)
def test_random_data_has_the_usual_shape_if_one_is_known(
    graph: Graph, spec: ModelSpec, given: GivenShapes, batch: int
) -> None:
    batches = open_calibration_data(graph, spec, Target(shapes=given), random_data=True)
    assert batches.is_random
    assert {feed.arrays["x"].shape for feed in batches} == {(batch, 3, 4, 4)}


# Placement


def test_patterns_that_match_nothing_are_told_with_near_names(graph: Graph) -> None:
    watcher = RecordingWatcher()
    warn_of_unmatched(graph, ("^first$", "secnd", "§"), watcher)
    assert watcher.warnings == [
        "'secnd' matches no node; the nearest names are second",
        "'§' matches no node",
    ]


def test_patterns_of_both_kinds_are_checked(graph: Graph) -> None:
    watcher = RecordingWatcher()
    spec = ModelSpec(layers=LayerSpec(skip=("^first$", "fourth§§"), keep_fp32=("fifth§§",)))
    placement = place_layers(graph, spec, Target(), watcher)
    assert [node.name for node in placement.layers] == ["second"]
    assert [text.split()[0] for text in watcher.warnings] == ["'fourth§§'", "'fifth§§'"]


def test_types_that_are_not_wanted_are_kept(graph: Graph) -> None:
    placement = place_layers(graph, ModelSpec(), Target(op_types=("Gemm",)), Silent())
    assert placement.layers == ()
    assert [node.reason for node in placement.kept] == ["Conv is not among the types to quantize"] * 2


# Ranges


def test_ranges_hold_what_the_data_reached(graph: Graph, tmp_path: Path) -> None:
    values = images(5)
    values[3, 0, 0, 0] = -4.0
    spec = ModelSpec(calibration=CalibrationSpec(data=samples(tmp_path / "c.npz", x=values), batch_size=2))
    watcher = RecordingWatcher()
    placement = place_layers(graph, spec, Target(), watcher)
    batches = open_calibration_data(graph, spec, Target(), random_data=False)
    seen = observe_graph(graph, placement.activations, batches, ObserveOptions(), watcher)
    ranges = estimate(seen, MinMax())
    assert {name: (item.amax, item.minimum) for name, item in ranges.tensors.items()} == {
        "x": (4.0, -4.0),
        "r": (1.0, 0.0),
    }
    assert (ranges.method, ranges.num_samples, ranges.model_sha256) == ("minmax()", 5, graph.sha256)
    assert ranges.shapes["x"].max == (2, 3, 4, 4)
    assert watcher.stages == [("Calibrating", 5)]
    assert watcher.samples == {"Calibrating": [2, 2, 1]}
    assert watcher.warnings == []


def test_tensors_that_are_always_zero_are_told(graph: Graph, tmp_path: Path) -> None:
    spec = ModelSpec(calibration=CalibrationSpec(data=samples(tmp_path / "c.npz", x=images(2, -1.0))))
    watcher = RecordingWatcher()
    placement = place_layers(graph, spec, Target(), watcher)
    batches = open_calibration_data(graph, spec, Target(), random_data=False)
    seen = observe_graph(graph, placement.activations, batches, ObserveOptions(), watcher)
    ranges = estimate(seen, MinMax())
    assert watcher.warnings == []
    warn_of_dead(ranges, watcher)
    assert watcher.warnings == [
        "1 tensor was zero in every sample and gets amax 1.0: r",
        "input 'x' was -1 in every sample, and its range is made for that alone; give samples in which it is "
        "as in real use",
    ]
    assert ranges.amax("r") == 1.0


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        (CalibrationSpec("d.npz", "percentile", {"percentile": 99.0}), Percentile(99.0)),
        (
            CalibrationSpec("d.npz", "entropy", {"num_bins": 512, "max_clipped": 0.5}),
            Entropy(512, max_clipped=0.5),
        ),
        (CalibrationSpec("d.npz", "mse", {"smallest": 0.5, "num_candidates": 3}), Mse(3, 0.5)),
        (CalibrationSpec(method="minmax"), MinMax()),
    ],
)
def test_a_method_has_the_parameters_of_the_settings(spec: CalibrationSpec, method: Method) -> None:
    assert create_method(spec) == method


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            CalibrationSpec("d.npz", "mse", {"num_bins": 9}),
            "num_bins is not a parameter of the calibration method mse; it has num_candidates, smallest",
        ),
        (
            CalibrationSpec("d.npz", "minmax", {"smallest": 0.5}),
            "smallest is not a parameter of the calibration method minmax; it has none",
        ),
        (CalibrationSpec("d.npz", "entropy", {"num_bins": 1}), "entropy needs 2 <= num_levels <= num_bins"),
    ],
)
def test_a_parameter_of_another_method_is_refused(spec: CalibrationSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_method(spec)


def test_what_is_kept_fp32_is_not_quantized(graph: Graph) -> None:
    assert place_layers(graph, ModelSpec(), Target(), RecordingWatcher()).quantized != ()
    spec = ModelSpec(layers=LayerSpec(keep_fp32=(".",)))
    assert place_layers(graph, spec, Target(), RecordingWatcher()).quantized == ()


def test_the_settings_say_how_the_pass_is_made(graph: Graph, tmp_path: Path) -> None:
    data = samples(tmp_path / "c.npz", x=images(5))
    spec = ModelSpec(calibration=CalibrationSpec(data=data, method="minmax", memory_bytes=1))
    batches = open_calibration_data(graph, spec, Target(), random_data=False)
    with pytest.raises(UsageError, match="memory of 1 bytes is too small: tensor 'r' takes"):
        observe_graph(graph, ("x", "r"), batches, options_from_spec(spec.calibration), RecordingWatcher())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (CalibrationSpec(device=cast(Any, "tpu")), "the calibration device must be cpu or cuda, got 'tpu'"),
        (CalibrationSpec(memory_bytes=0), "the calibration memory must be at least 1 byte, got 0"),
    ],
)
def test_a_pass_that_cannot_be_made_is_refused(settings: CalibrationSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_from_spec(settings)


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        (GivenShapes(opt={"x": (2,)}, max={"x": (3,)}), (2,)),
        (GivenShapes(min={"x": (1,)}), (1,)),  # one stands for those that are not given
        (GivenShapes(profiles=tuple({"x": ProfileSpec((n,), (n,), (n,))} for n in (4, 5))), (4,)),
    ],
)
def test_the_usual_shapes_are_those_of_the_first_profile(
    shapes: GivenShapes, wanted: tuple[int, ...]
) -> None:
    assert find_shapes(ModelSpec(), Target(shapes=shapes)) == {"x": wanted}
