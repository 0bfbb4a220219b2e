"""The ranges of a job: given, of an earlier build, or calibrated and improved."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from trtq.calibrators.memory import find_peak_bytes
from trtq.calibrators.ranges import Ranges, read_ranges
from trtq.calibrators.statistics import Statistics
from trtq.pipeline.build.job import Job
from trtq.pipeline.calibrate.data import need_no_ranges, options_from_spec, warn_of_dead
from trtq.pipeline.calibrate.improve import improve_ranges, list_channels, take_ranges
from trtq.pipeline.calibrate.observation import observe_graph
from trtq.pipeline.deliver.earlier import EarlierBuild
from trtq.pipeline.deliver.html.page_data import PageData
from trtq.pipeline.deliver.html.tensors import summarize_tensors
from trtq.pipeline.deliver.names import RANGES
from trtq.pipeline.deliver.report import CalibrationReport
from trtq.pipeline.formats import FP16
from trtq.progress import Log
from trtq.records import Repairs


@dataclass(frozen=True, slots=True)
class JobRanges:
    """The ranges of a job, what the report and the page say of them, and what they were taken from."""

    ranges: Ranges | None = None
    report: CalibrationReport | None = None
    repairs: Repairs | None = None
    tensors: PageData = field(default_factory=PageData)
    statistics: Statistics | None = None


def find_ranges(job: Job, earlier: EarlierBuild | None, log: Log) -> JobRanges:
    """Returns the ranges that the job is built with; none where TensorRT finds them or nothing needs them.

    Raises:
        DataError: The data does not fit the model.
        ModelError: ONNX Runtime cannot run the model.
    """
    if job.ranges is not None or job.is_as_given:
        return JobRanges(job.ranges)
    if not job.calibrates:
        return JobRanges(None if job.is_implicit else need_no_ranges(job.graph, job.placement))
    found = _reuse(earlier, log) or _calibrate(job, log)
    assert found.ranges is not None
    warn_of_dead(found.ranges, log)
    return found


def _reuse(earlier: EarlierBuild | None, log: Log) -> JobRanges | None:
    if earlier is None or "ranges" not in earlier.same or RANGES not in earlier.manifest.outputs:
        return None
    log.note("model, data and method are unchanged: reusing the ranges of the earlier build")
    log.reused.append("ranges")
    ranges, report = read_ranges(earlier.folder / RANGES), earlier.report
    return JobRanges(ranges, report.calibration, report.repairs, earlier.seen)


def _calibrate(job: Job, log: Log) -> JobRanges:
    return search_ranges(job, observe_job(job, log), log)


def observe_job(job: Job, log: Log) -> Statistics:
    """Returns what one pass over the calibration data sees of the tensors of a job.

    Raises:
        DataError: The data does not fit the model.
        ModelError: ONNX Runtime cannot run the model.
    """
    assert job.calibration is not None
    with log.timed("calibrate"):
        how = options_from_spec(job.spec.calibration)
        how = replace(how, watches_all=job.strategy.rest is FP16, workers=job.workers)
        channels = (
            {} if job.is_implicit else list_channels(job.graph, job.placement, job.calibration, job.spec)
        )
        return observe_graph(job.graph, tuple(job.tensors), job.calibration, how, log, channels)


def search_ranges(job: Job, statistics: Statistics, log: Log) -> JobRanges:
    """Returns the ranges by the method of a job, with the repairs that gain; see `improve_ranges`."""
    assert job.calibration is not None
    if job.is_implicit or not job.placement.layers:
        found = take_ranges(job.graph, job.tensors, statistics, job.calibration, job.spec, log)
    else:
        with log.timed("repair"):
            found = improve_ranges(
                job.graph, job.placement, statistics, job.calibration, job.spec, log, job.workers
            )
    ranges = found.ranges
    if not ranges.tensors:
        return JobRanges(ranges, repairs=found.repairs)
    report = CalibrationReport(
        method=ranges.method,
        data=ranges.data,
        samples=ranges.num_samples,
        seconds=round(log.seconds["calibrate"], 3),
        peak_rss_bytes=find_peak_bytes(),
        random=ranges.is_random,
    )
    tensors = summarize_tensors(statistics, ranges, found.method)
    return JobRanges(ranges, report, found.repairs, tensors, statistics)
