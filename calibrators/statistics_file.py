"""Statistics as a file, and as one value from the files of all parts of the data."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.kernel import MANTISSA_BITS, NUM_BINS
from trtq.calibrators.statistics import MOST_SHARDS, Histogram, Statistics, StatisticsSource, find_bins
from trtq.errors import ArtifactError
from trtq.files import read_file, refuse_damage
from trtq.json import FileKind, Measured


@dataclass(frozen=True, slots=True)
class _Header:
    """What the file holds beside the histograms of `tensors`: `Statistics` as JSON has it.

    `inputs` are pairs of a shape and how often it came; a magnitude that is infinite is null.
    """

    mantissa_bits: int
    source: StatisticsSource
    shards: tuple[int, ...]
    num_samples: int
    magnitudes: Mapping[str, Measured]
    inputs: Mapping[str, tuple[tuple[tuple[int, ...], int], ...]]
    feeds: Mapping[str, int]
    tensors: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.source.num_shards <= MOST_SHARDS:
            raise ValueError(f"there are no {self.source.num_shards} parts of data")
        if not self.shards or not all(1 <= shard <= self.source.num_shards for shard in self.shards):
            raise ValueError(f"there are no parts {list(self.shards)} of {self.source.num_shards}")
        seen = (number for shapes in self.inputs.values() for _, number in shapes)
        if wrong := [number for number in (self.num_samples, *self.feeds.values(), *seen) if number < 0]:
            raise ValueError(f"{wrong[0]} is not a number of samples or feeds")
        if self.num_samples and not self.inputs:
            raise ValueError("there are samples without inputs")
        if below := [name for name, value in self.magnitudes.items() if value < 0]:
            raise ValueError(f"tensor {below[0]!r} has a magnitude of {self.magnitudes[below[0]]}")
        if apart := sorted(self.feeds.keys() - set(self.tensors)):
            raise ValueError(f"there are feeds of {apart[0]!r}, which is no tensor")


FILE = FileKind(_Header, "statistics file", "trtq calibrate --save-statistics", "statistics", has_null=True)


def statistics_to_bytes(statistics: Statistics) -> bytes:
    """Returns the statistics as an .npz: a JSON document beside the bins and counts of all histograms."""
    histograms = statistics.histograms.values()
    header = _Header(
        MANTISSA_BITS,
        statistics.source,
        tuple(sorted(statistics.shards)),
        statistics.num_samples,
        dict(sorted(statistics.magnitudes.items())),
        {name: tuple(seen.items()) for name, seen in statistics.inputs.items()},
        statistics.feeds,
        tuple(statistics.histograms),
    )
    stream = io.BytesIO()
    np.savez(
        stream,
        document=np.frombuffer(FILE.encode(header), np.uint8),
        sizes=np.array([histogram.bins.size for histogram in histograms], np.int64),
        bins=np.concatenate([np.zeros(0, np.int32), *(item.bins for item in histograms)]),
        counts=np.concatenate([np.zeros(0, np.int64), *(item.counts for item in histograms)]),
        extremes=np.array([(item.minimum, item.maximum) for item in histograms]).reshape(-1, 2),
    )
    return stream.getvalue()


def read_statistics(path: Path | str) -> Statistics:
    """Returns the statistics of a file.

    Raises:
        ArtifactError: The file is missing, cut short, of another kind or of another schema.
    """
    arrays = _read_arrays(path)
    header = FILE.decode(arrays["document"].tobytes(), path)
    if header.mantissa_bits != MANTISSA_BITS:
        raise ArtifactError(
            f"{path} counts in bins of {header.mantissa_bits} bits, this trtq in bins of {MANTISSA_BITS}; "
            f"calibrate again"
        )
    try:
        histograms = _histograms(header.tensors, arrays)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a whole statistics file: {error}; calibrate again") from error
    return Statistics(
        histograms=histograms,
        magnitudes={
            name: math.inf if math.isnan(value) else value for name, value in header.magnitudes.items()
        },
        inputs={name: dict(seen) for name, seen in header.inputs.items()},
        num_samples=header.num_samples,
        source=header.source,
        shards=frozenset(header.shards),
        feeds=header.feeds,
    )


def _read_arrays(path: Path | str) -> dict[str, NDArray[Any]]:
    """Returns the arrays of an .npz, whole members checked by their CRC before NumPy parses them."""
    if not Path(path).exists():
        raise ArtifactError(f"there are no statistics {path}; `trtq calibrate` writes them")
    with refuse_damage(
        ArtifactError, f"{path} is not a whole statistics file; write it again with `{FILE.writer}`"
    ):
        with zipfile.ZipFile(io.BytesIO(read_file(Path(path)))) as archive:
            members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
        arrays = {
            name: np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            for name, content in members.items()
        }
        return {name: arrays[name] for name in ("document", "bins", "counts", "sizes", "extremes")}


def merge_statistics(parts: Sequence[Statistics], names: Sequence[str]) -> Statistics:
    """Returns the statistics of all parts of the data, whatever their order.

    Args:
        parts: Of `observe` with a shard each, or merged ones.
        names: Of the parts, for messages.

    Raises:
        ArtifactError: They are not of the same model, tensors and data, or overlap; one is unfinished.
    """
    merged, first = parts[0], names[0]
    for part, name in zip(parts, names, strict=True):
        if part.feeds:
            raise ArtifactError(f"{name} is of an interrupted pass; let the same command finish it first")
        refuse_other(part, name, merged, first)
    for part, name in zip(parts[1:], names[1:], strict=True):
        if both := merged.shards & part.shards:
            raise ArtifactError(
                f"{name} holds part {min(both)} of {part.source.num_shards} of the data, which was there "
                f"before; give each part once"
            )
        merged = _merged(merged, part)
    return merged


def refuse_other(found: Statistics, name: str, wanted: Statistics, other: str) -> None:
    """Refuses statistics of something else.

    Raises:
        ArtifactError: Model, data, number of parts or tensors differ; the message says which.
    """
    one, two = found.source, wanted.source
    keys = {  # of the data not the path, which another machine spells otherwise
        "model": ("model_sha256", one.model_sha256[:12], two.model_sha256[:12]),
        "data": ("data_digest", _show(one), _show(two)),
        "number of parts": ("num_shards", one.num_shards, two.num_shards),
    }
    for what, (key, ours, theirs) in keys.items():
        if getattr(one, key) != getattr(two, key):
            raise ArtifactError(f"{name} is of another {what} than {other}: {ours}, not {theirs}")
    if apart := sorted(set(found.histograms) ^ set(wanted.histograms)):
        holder = name if apart[0] in found.histograms else other
        raise ArtifactError(
            f"{name} is of other tensors than {other}: only {holder} has {apart[0]!r}; use the same "
            "--skip and --op-types"
        )


def _show(source: StatisticsSource) -> str:
    return f"{source.data} ({source.data_digest[:12]}{source.data_digest[64:]})"  # how it is cut stands last


def _merged(one: Statistics, two: Statistics) -> Statistics:
    shapes = {
        name: {
            shape: seen.get(shape, 0) + two.inputs[name].get(shape, 0)
            for shape in {**seen, **two.inputs[name]}
        }
        for name, seen in one.inputs.items()
    }
    return replace(
        one,
        histograms={name: item.merged(two.histograms[name]) for name, item in one.histograms.items()},
        magnitudes={
            name: max(one.magnitudes.get(name, 0.0), two.magnitudes.get(name, 0.0))
            for name in sorted({*one.magnitudes, *two.magnitudes})
        },
        inputs={name: dict(sorted(seen.items())) for name, seen in shapes.items()},
        num_samples=one.num_samples + two.num_samples,
        shards=one.shards | two.shards,
    )


def _histograms(names: Sequence[str], arrays: dict[str, NDArray[Any]]) -> dict[str, Histogram]:
    bins, counts, sizes, extremes = (arrays[name] for name in ("bins", "counts", "sizes", "extremes"))
    dtypes = [array.dtype for array in (bins, counts, sizes, extremes)]
    if dtypes != [np.int32, np.int64, np.int64, np.float64]:
        raise TypeError(f"the histograms are of {', '.join(map(str, dtypes))}")
    if len(set(names)) != len(names) or sizes.shape != (len(names),) or extremes.shape != (len(names), 2):
        raise ValueError("the histograms do not fit the tensors")
    if bins.ndim != 1 or bins.shape != counts.shape or (sizes < 0).any() or bins.size != sizes.sum():
        raise ValueError("the bins do not fit their counts")
    ends, histograms = np.cumsum(sizes).tolist(), {}
    for name, size, end, (low, high) in zip(names, sizes.tolist(), ends, extremes.tolist(), strict=True):
        histogram = histograms[name] = Histogram(bins[end - size : end], counts[end - size : end], low, high)
        if flaw := _flaw(histogram):
            raise ValueError(f"the histogram of tensor {name!r} {flaw}")
    return histograms


def _flaw(histogram: Histogram) -> str:
    """Returns what no values could have made of a histogram; empty: nothing."""
    bins, low, high = histogram.bins, histogram.minimum, histogram.maximum
    if not bins.size:
        return "" if (low, high) == (np.inf, -np.inf) else "has extremes without values"
    if bins[0] < 0 or bins[-1] >= NUM_BINS or (np.diff(bins) <= 0).any():
        return "has bins that do not exist or do not ascend"
    if (histogram.counts <= 0).any():
        return "has counts below 1"
    if not -np.inf < low <= high < np.inf:
        return f"has the extremes {low} and {high}"
    ends = find_bins(np.array([low, high]))
    if max(ends) != bins[-1] or min(ends) < bins[0] or not np.isin(ends, bins).all():
        return "has extremes that are not in its bins"
    return ""
