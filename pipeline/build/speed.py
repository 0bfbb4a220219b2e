"""The speed of what was built, against the float model or engine on the same machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from trtq.calibrators.batches import Feed
from trtq.calibrators.sources import make_random_batches
from trtq.errors import TrtqError
from trtq.models.spec import InputSpec
from trtq.pipeline.bench.process import Request
from trtq.pipeline.bench.runnables import Inputs, Runnable
from trtq.pipeline.bench.speed import Pair, measure_speed
from trtq.pipeline.bench.turns import Schedule
from trtq.pipeline.build.engine import EngineBuild
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.models import ModelFiles
from trtq.pipeline.deliver.names import ENGINE
from trtq.pipeline.deliver.report import EngineReport
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.gpu import explain_missing_gpu
from trtq.pipeline.engine.plan_run import MODULES
from trtq.pipeline.judge.evaluate import filter_by_profiles
from trtq.pipeline.judge.speed import SpeedVerdict, refuse_to_judge
from trtq.progress import Log
from trtq.temporary import open_temporary_folder

SCHEDULE = Schedule()


def judge_job_speed(
    job: Job, models: ModelFiles, engine: EngineBuild, stage: Path, log: Log
) -> SpeedVerdict | None:
    """Returns what the speed gate says of what was built; None if it is not asked.

    An engine is measured against one of the same builder in FP16, or in FP32 if it is FP16 itself, which is
    built for that; a model against the float model. Where the engine cannot run, nothing is judged.
    """
    wanted = job.spec.accuracy.min_speedup
    if wanted is None:
        return None
    is_engine = engine.report.path == ENGINE
    name = f"{job.name} engine" if is_engine else job.name
    if reason := _explain_unmeasured(job, models, is_engine=is_engine):
        return refuse_to_judge(reason, wanted, name)
    with log.timed("speed"), ExitStack() as stack:
        try:
            if is_engine:
                place = stack.enter_context(open_temporary_folder())
                pair = _pair_engines(job, models, engine.report, stage, place, log)
            else:
                pair = _pair_models(job, models)
            return measure_speed(pair, _find_inputs(job, engine.report), SCHEDULE, wanted, log)
        except TrtqError as error:
            return refuse_to_judge(str(error), wanted, name)


def _explain_unmeasured(job: Job, models: ModelFiles, *, is_engine: bool) -> str:
    """Returns why nothing can be measured; empty if it can."""
    if is_engine and (missing := explain_missing_gpu()):
        return f"it cannot run here, since {missing}; measure it with trtq bench where it will run"
    wanted = _name_source(job) if is_engine else "fp32"
    if job.is_as_given or wanted not in models.files:
        return f"this build has no {wanted.upper()} model to measure against; measure it with trtq bench"
    return ""


def _name_source(job: Job) -> str:
    """Returns the model that the float engine is built from; FP16 stands in the graph if types count."""
    return "fp16" if job.strategy.is_typed and job.name != "fp16" else "fp32"


def _pair_models(job: Job, models: ModelFiles) -> Pair:
    def create(name: str) -> Runnable:
        return Runnable(name, name, "cpu", Request("onnx", models.files[name].resolve()))

    return Pair(create(job.name), create("fp32"))


def _pair_engines(
    job: Job, models: ModelFiles, report: EngineReport, stage: Path, place: Path, log: Log
) -> Pair:
    """Returns the engine and a float one, which is built for this."""
    precision, source = "fp32" if job.name == "fp16" else "fp16", _name_source(job)
    log.stage(f"Building the {precision.upper()} engine to measure against")
    request = BuildRequest(
        models.files[source],
        report.profiles,
        job.target.compute_capabilities,
        job.target.workspace_bytes,
        job.target.options,
        () if precision == source else ("fp16",),
    )
    plan = job.backend.build(request).plan
    assert plan is not None
    (place / ENGINE).write_bytes(plan)

    def create(name: str, folder: Path) -> Runnable:
        request = Request("plan", (folder / ENGINE).resolve(), "cuda", 0, (MODULES[job.backend.name],))
        return Runnable(f"{name} engine", name, "cuda", request)

    return Pair(create(job.name, stage), create(precision, place))


def _find_inputs(job: Job, report: EngineReport) -> Inputs:
    """Returns the first batch of the data that the engine takes, else random numbers in its usual shapes."""
    data, names = job.evaluation or job.calibration, [item.name for item in job.graph.inputs]
    dynamic: dict[str, InputSpec] = {
        item.name: report.profiles[item.name] for item in job.graph.inputs if item.name in report.profiles
    }
    fitting = None if data is None else next(iter(filter_by_profiles(data, dynamic, [])), None)
    if fitting is not None and data is not None:
        return _take(fitting, names, f"the first samples of {data.origin}")
    shapes = {name: profile.opt for name, profile in dynamic.items()}
    return _take(next(iter(make_random_batches(job.graph.inputs, shapes, 1))), names, "random numbers")


def _take(feed: Feed, names: list[str], origin: str) -> Inputs:
    return Inputs({name: feed.arrays[name] for name in names}, origin, feed.num_samples)
