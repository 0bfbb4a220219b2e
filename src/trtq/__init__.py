"""From a float ONNX model to a verified INT8 TensorRT engine.

    import trtq

    report = trtq.build("model.onnx", "calibration.npz", int8=True, min_cosine=0.99)
    outputs = trtq.load(report.output).run({"x": array})

Names are imported when they are first used: `import trtq` itself loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The public names: this is the one list, which is read below too.
    from trtq.calibrators import Method as Method
    from trtq.calibrators.cache import CacheDifference as CacheDifference
    from trtq.calibrators.cache import CalibrationCache as CalibrationCache
    from trtq.calibrators.cache import compare_caches as compare_caches
    from trtq.calibrators.cache import format_cache as format_cache
    from trtq.calibrators.cache import parse_cache as parse_cache
    from trtq.calibrators.cache import read_cache as read_cache
    from trtq.calibrators.ranges import Ranges as Ranges
    from trtq.calibrators.ranges import read_ranges as read_ranges
    from trtq.calibrators.settings import read_spec as read_spec
    from trtq.calibrators.statistics import Statistics as Statistics
    from trtq.calibrators.statistics_file import merge_statistics as merge_statistics
    from trtq.calibrators.statistics_file import read_statistics as read_statistics
    from trtq.cluster import Ray as Ray
    from trtq.errors import ArtifactError as ArtifactError
    from trtq.errors import BuildError as BuildError
    from trtq.errors import DataError as DataError
    from trtq.errors import GateError as GateError
    from trtq.errors import MissingDependency as MissingDependency
    from trtq.errors import ModelError as ModelError
    from trtq.errors import TrtqError as TrtqError
    from trtq.errors import UsageError as UsageError
    from trtq.errors import WorkerError as WorkerError
    from trtq.models.demo import write_demo as write_demo
    from trtq.models.operators import use_operators as use_operators
    from trtq.models.preprocess import Preprocess as Preprocess
    from trtq.models.spec import AccuracySpec as AccuracySpec
    from trtq.models.spec import CalibrationSpec as CalibrationSpec
    from trtq.models.spec import EvaluationSpec as EvaluationSpec
    from trtq.models.spec import InputSpec as InputSpec
    from trtq.models.spec import LayerSpec as LayerSpec
    from trtq.models.spec import ModelSpec as ModelSpec
    from trtq.models.spec import OperatorSpec as OperatorSpec
    from trtq.models.spec import ProfileSpec as ProfileSpec
    from trtq.models.spec import QuantizationSpec as QuantizationSpec
    from trtq.models.toml import format_spec as format_spec
    from trtq.pipeline.bench.benchmark import Benchmark as Benchmark
    from trtq.pipeline.bench.benchmark import bench as bench
    from trtq.pipeline.bench.runnables import RunOptions as RunOptions
    from trtq.pipeline.bench.turns import Schedule as Schedule
    from trtq.pipeline.build import build as build
    from trtq.pipeline.build.dry import BuildPlan as BuildPlan
    from trtq.pipeline.build.dry import PlannedData as PlannedData
    from trtq.pipeline.build.dry import plan_build as plan_build
    from trtq.pipeline.cache import export_cache as export_cache
    from trtq.pipeline.calibrate import calibrate as calibrate
    from trtq.pipeline.calibrate import estimate_ranges as estimate_ranges
    from trtq.pipeline.calibrate import observe as observe
    from trtq.pipeline.calibrate.data import ObserveOptions as ObserveOptions
    from trtq.pipeline.compare import compare as compare
    from trtq.pipeline.deliver.index import Index as Index
    from trtq.pipeline.deliver.index import IndexIntegrity as IndexIntegrity
    from trtq.pipeline.deliver.integrity import Integrity as Integrity
    from trtq.pipeline.deliver.report import Report as Report
    from trtq.pipeline.deliver.report import read_report as read_report
    from trtq.pipeline.deliver.tracking import TrackedRun as TrackedRun
    from trtq.pipeline.deliver.tracking import log_build as log_build
    from trtq.pipeline.doctor import Health as Health
    from trtq.pipeline.doctor import doctor as doctor
    from trtq.pipeline.engine.backend import BuilderOptions as BuilderOptions
    from trtq.pipeline.engine.profiles import GivenShapes as GivenShapes
    from trtq.pipeline.engine.target import Target as Target
    from trtq.pipeline.export import ExportedFile as ExportedFile
    from trtq.pipeline.export import ExportOptions as ExportOptions
    from trtq.pipeline.export import export as export
    from trtq.pipeline.formats.scheme import WeightScheme as WeightScheme
    from trtq.pipeline.init import InitialSettings as InitialSettings
    from trtq.pipeline.init import ModelHints as ModelHints
    from trtq.pipeline.init import init as init
    from trtq.pipeline.inspect import FolderSummary as FolderSummary
    from trtq.pipeline.inspect import ModelSummary as ModelSummary
    from trtq.pipeline.inspect import inspect as inspect
    from trtq.pipeline.judge.compare import Comparison as Comparison
    from trtq.pipeline.judge.sensitivity import Sensitivity as Sensitivity
    from trtq.pipeline.judge.speed import SpeedVerdict as SpeedVerdict
    from trtq.pipeline.lint import LintItem as LintItem
    from trtq.pipeline.lint import LintReport as LintReport
    from trtq.pipeline.lint import lint as lint
    from trtq.pipeline.load import LoadedEngine as LoadedEngine
    from trtq.pipeline.load import load as load
    from trtq.pipeline.migrate import CacheOutcome as CacheOutcome
    from trtq.pipeline.migrate import MigrationResult as MigrationResult
    from trtq.pipeline.migrate import migrate as migrate
    from trtq.pipeline.package import Package as Package
    from trtq.pipeline.package import PackageSpec as PackageSpec
    from trtq.pipeline.package import package as package
    from trtq.pipeline.package.deepstream import DeepStreamPackage as DeepStreamPackage
    from trtq.pipeline.package.deepstream import package_deepstream as package_deepstream
    from trtq.pipeline.plan import DynamicSizes as DynamicSizes
    from trtq.pipeline.plan import MemoryPlan as MemoryPlan
    from trtq.pipeline.plan import plan_model as plan_model
    from trtq.pipeline.plan import plan_params as plan_params
    from trtq.pipeline.quantize import quantize as quantize
    from trtq.pipeline.report import BuildPair as BuildPair
    from trtq.pipeline.report import compare_builds as compare_builds
    from trtq.pipeline.report import list_layers as list_layers
    from trtq.pipeline.report import report as report
    from trtq.pipeline.run import RunOutcome as RunOutcome
    from trtq.pipeline.run import run as run
    from trtq.pipeline.sensitivity import sensitivity as sensitivity
    from trtq.pipeline.sign import sign as sign
    from trtq.pipeline.verify import verify as verify
    from trtq.pipeline.verify import verify_index as verify_index
    from trtq.progress import Watcher as Watcher
    from trtq.workers import Processes as Processes

    __version__: str
else:

    def __getattr__(name: str) -> Any:  # hidden from type checkers, to which it would allow every name
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("trtq")
        if name not in _HOMES:
            raise AttributeError(f"module 'trtq' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def _read_homes() -> dict[str, str]:
    """Returns the module of each public name, from the list above."""
    loader: Any = __spec__.loader  # also where the package lies in a zip file
    words = [line.split() for line in loader.get_source(__name__).splitlines()]
    return {line[3]: line[1] for line in words if line[2::2] == ["import", "as"]}


_HOMES = _read_homes()
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
