"""From a float ONNX model to a verified INT8 TensorRT engine.

    import trtq

    report = trtq.build("model.onnx", spec=trtq.ModelSpec(calibration=trtq.CalibrationSpec(data="calib.npz")))
    print(report.verdict, report.engine.layers_int8)

Names are imported when they are first used: `import trtq` itself loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtq.calibrators.ranges import Ranges, read_ranges
    from trtq.calibrators.statistics import Statistics
    from trtq.calibrators.statistics_file import merge_statistics, read_statistics
    from trtq.errors import TrtqError
    from trtq.models.demo import write_demo
    from trtq.models.preprocess import Preprocess
    from trtq.models.spec import (
        AccuracySpec,
        CalibrationSpec,
        EvaluationSpec,
        InputSpec,
        LayerSpec,
        ModelSpec,
        QuantizationSpec,
        read_spec,
    )
    from trtq.pipeline.bench.benchmark import Benchmark, bench
    from trtq.pipeline.bench.runnables import RunOptions
    from trtq.pipeline.bench.turns import Schedule
    from trtq.pipeline.build import build
    from trtq.pipeline.calibrate import calibrate, estimate_ranges, observe
    from trtq.pipeline.calibrate.data import ObserveOptions
    from trtq.pipeline.compare import compare
    from trtq.pipeline.deliver.integrity import Integrity
    from trtq.pipeline.deliver.report import Report, read_report
    from trtq.pipeline.doctor import doctor
    from trtq.pipeline.engine.profiles import GivenShapes
    from trtq.pipeline.engine.target import Target
    from trtq.pipeline.inspect import inspect
    from trtq.pipeline.judge.compare import Comparison
    from trtq.pipeline.judge.sensitivity import Sensitivity
    from trtq.pipeline.load import load
    from trtq.pipeline.migrate import migrate
    from trtq.pipeline.package import Package, PackageSpec, package
    from trtq.pipeline.quantize import quantize
    from trtq.pipeline.sensitivity import sensitivity
    from trtq.pipeline.sign import sign
    from trtq.pipeline.verify import verify

_HOMES = {
    "AccuracySpec": "trtq.models.spec",
    "Benchmark": "trtq.pipeline.bench.benchmark",
    "CalibrationSpec": "trtq.models.spec",
    "Comparison": "trtq.pipeline.judge.compare",
    "EvaluationSpec": "trtq.models.spec",
    "GivenShapes": "trtq.pipeline.engine.profiles",
    "InputSpec": "trtq.models.spec",
    "Integrity": "trtq.pipeline.deliver.integrity",
    "LayerSpec": "trtq.models.spec",
    "ModelSpec": "trtq.models.spec",
    "Package": "trtq.pipeline.package",
    "PackageSpec": "trtq.pipeline.package",
    "ObserveOptions": "trtq.pipeline.calibrate.data",
    "Preprocess": "trtq.models.preprocess",
    "QuantizationSpec": "trtq.models.spec",
    "Ranges": "trtq.calibrators.ranges",
    "Report": "trtq.pipeline.deliver.report",
    "RunOptions": "trtq.pipeline.bench.runnables",
    "Schedule": "trtq.pipeline.bench.turns",
    "Sensitivity": "trtq.pipeline.judge.sensitivity",
    "Statistics": "trtq.calibrators.statistics",
    "Target": "trtq.pipeline.engine.target",
    "TrtqError": "trtq.errors",
    "bench": "trtq.pipeline.bench.benchmark",
    "build": "trtq.pipeline.build",
    "calibrate": "trtq.pipeline.calibrate",
    "compare": "trtq.pipeline.compare",
    "doctor": "trtq.pipeline.doctor",
    "inspect": "trtq.pipeline.inspect",
    "load": "trtq.pipeline.load",
    "merge_statistics": "trtq.calibrators.statistics_file",
    "migrate": "trtq.pipeline.migrate",
    "observe": "trtq.pipeline.calibrate",
    "package": "trtq.pipeline.package",
    "quantize": "trtq.pipeline.quantize",
    "estimate_ranges": "trtq.pipeline.calibrate",
    "read_ranges": "trtq.calibrators.ranges",
    "read_report": "trtq.pipeline.deliver.report",
    "read_spec": "trtq.models.spec",
    "read_statistics": "trtq.calibrators.statistics_file",
    "sensitivity": "trtq.pipeline.sensitivity",
    "sign": "trtq.pipeline.sign",
    "verify": "trtq.pipeline.verify",
    "write_demo": "trtq.models.demo",
}

__all__ = [
    "AccuracySpec",
    "Benchmark",
    "CalibrationSpec",
    "Comparison",
    "EvaluationSpec",
    "GivenShapes",
    "InputSpec",
    "Integrity",
    "LayerSpec",
    "ModelSpec",
    "ObserveOptions",
    "Package",
    "PackageSpec",
    "Preprocess",
    "QuantizationSpec",
    "Ranges",
    "Report",
    "RunOptions",
    "Schedule",
    "Sensitivity",
    "Statistics",
    "Target",
    "TrtqError",
    "bench",
    "build",
    "calibrate",
    "compare",
    "doctor",
    "estimate_ranges",
    "inspect",
    "load",
    "merge_statistics",
    "migrate",
    "observe",
    "package",
    "quantize",
    "read_ranges",
    "read_report",
    "read_spec",
    "read_statistics",
    "sensitivity",
    "sign",
    "verify",
    "write_demo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trtq' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
