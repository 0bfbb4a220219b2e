"""Statistics as a file, and as one value from the files of all parts of the data."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.kernel import MANTISSA_BITS, NUM_BINS
from trtq.calibrators.statistics import Histogram, Statistics, StatisticsSource, find_bins
from trtq.errors import ArtifactError

SCHEMA_VERSION = 1


def statistics_to_bytes(statistics: Statistics) -> bytes:
    """Returns the statistics as an .npz: a JSON document beside the bins and counts of all histograms."""
    histograms = statistics.histograms.values()
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "statistics",
        "mantissa_bits": MANTISSA_BITS,
        "source": asdict(statistics.source),
        "shards": sorted(statistics.shards),
        "num_samples": statistics.num_samples,
        "magnitudes": dict(statistics.magnitudes),
        "inputs": {
            name: [[list(shape), number] for shape, number in seen.items()]
            for name, seen in statistics.inputs.items()
        },
        "feeds": dict(statistics.feeds),
        "tensors": list(statistics.histograms),
    }
    stream = io.BytesIO()
    np.savez(
        stream,
        document=np.frombuffer(json.dumps(document).encode(), np.uint8),
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
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise TypeError("one array")
        with loaded as archive:
            arrays = {name: archive[name] for name in archive.files}
        document = json.loads(arrays["document"].tobytes())
        if document["kind"] != "statistics":
            raise KeyError("kind")
        version = (document["schema_version"], document["mantissa_bits"])
    except FileNotFoundError as error:
        raise ArtifactError(f"there are no statistics {path}; `trtq calibrate` writes them") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(
            f"{path} is no whole statistics file ({type(error).__name__}: {error}); "
            f"write it again with `trtq calibrate --save-statistics`"
        ) from error
    if version != (SCHEMA_VERSION, MANTISSA_BITS):
        raise ArtifactError(
            f"{path} has schema version {version[0]} with {version[1]} bits, this trtq reads "
            f"{SCHEMA_VERSION} with {MANTISSA_BITS}; calibrate again"
        )
    try:
        return _from_document(document, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ArtifactError(f"{path} is no whole statistics file: {error!r}; calibrate again") from error


def merge_statistics(parts: Sequence[Statistics], names: Sequence[str]) -> Statistics:
    """Returns the statistics of all parts of the data, whatever their order.

    Args:
        parts: Of `observe` with a shard each, or merged ones.
        names: What each is called, for messages.

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
    ours, theirs = found.source, wanted.source
    differences = [  # of the data not the path, which another machine spells otherwise
        ("model", ours.model_sha256 != theirs.model_sha256, ours.model_sha256[:12], theirs.model_sha256[:12]),
        ("data", ours.data_digest != theirs.data_digest, _show(ours), _show(theirs)),
        ("number of parts", ours.num_shards != theirs.num_shards, ours.num_shards, theirs.num_shards),
    ]
    for what, differ, one, two in differences:
        if differ:
            raise ArtifactError(f"{name} is of another {what} than {other}: {one}, not {two}")
    if apart := sorted(set(found.histograms) ^ set(wanted.histograms)):
        holder = name if apart[0] in found.histograms else other
        raise ArtifactError(
            f"{name} is of other tensors than {other}: only {holder} has {apart[0]!r}; "
            f"take the same --skip and --op-types"
        )


def _show(source: StatisticsSource) -> str:
    return f"{source.data} ({source.data_digest[:12]}{source.data_digest[64:]})"  # how it is cut stands last


def _merged(one: Statistics, two: Statistics) -> Statistics:
    magnitudes = {
        name: max(one.magnitudes.get(name, 0.0), two.magnitudes.get(name, 0.0))
        for name in sorted({*one.magnitudes, *two.magnitudes})
    }
    inputs = {
        name: {
            shape: one.inputs[name].get(shape, 0) + two.inputs[name].get(shape, 0)
            for shape in sorted({*one.inputs[name], *two.inputs[name]})
        }
        for name in one.inputs
    }
    return replace(
        one,
        histograms={name: item.merged(two.histograms[name]) for name, item in one.histograms.items()},
        magnitudes=magnitudes,
        inputs=inputs,
        num_samples=one.num_samples + two.num_samples,
        shards=one.shards | two.shards,
    )


def _from_document(document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Statistics:
    source = _source(document["source"])
    shards = document["shards"]
    if not shards or not all(_is_count(shard) and 1 <= shard <= source.num_shards for shard in shards):
        raise ValueError(f"there are no parts {shards} of {source.num_shards}")
    counts = [document["num_samples"], *document["feeds"].values()]
    counts += [number for seen in document["inputs"].values() for _, number in seen]
    if wrong := [number for number in counts if not _is_count(number)]:
        raise ValueError(f"{wrong[0]!r} is no number of samples or feeds")
    if document["num_samples"] and not document["inputs"]:
        raise ValueError("there are samples without inputs")
    magnitudes = {name: float(value) for name, value in document["magnitudes"].items()}
    if wrong := [name for name, value in magnitudes.items() if not value >= 0]:
        raise ValueError(f"tensor {wrong[0]!r} has a magnitude of {magnitudes[wrong[0]]}")
    histograms = _histograms(document["tensors"], arrays)
    if apart := sorted(document["feeds"].keys() - histograms.keys()):
        raise ValueError(f"there are feeds of {apart[0]!r}, which is no tensor")
    return Statistics(
        histograms=histograms,
        magnitudes=magnitudes,
        inputs={
            name: {tuple(map(int, shape)): number for shape, number in seen}
            for name, seen in document["inputs"].items()
        },
        num_samples=document["num_samples"],
        source=source,
        shards=frozenset(shards),
        feeds=document["feeds"],
    )


def _source(document: dict[str, Any]) -> StatisticsSource:
    source = StatisticsSource(**document)
    if wrong := [
        name for name, value in document.items() if type(value) is not type(getattr(StatisticsSource(), name))
    ]:
        raise TypeError(f"the source's {wrong[0]} is {document[wrong[0]]!r}")
    return source


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _histograms(names: Sequence[str], arrays: dict[str, NDArray[Any]]) -> dict[str, Histogram]:
    bins, counts, sizes, extremes = (arrays[name] for name in ("bins", "counts", "sizes", "extremes"))
    dtypes = [array.dtype for array in (bins, counts, sizes, extremes)]
    if dtypes != [np.int32, np.int64, np.int64, np.float64]:
        raise TypeError(f"the histograms are of {', '.join(map(str, dtypes))}")
    if len(set(names)) != len(names) or sizes.shape != (len(names),) or extremes.shape != (len(names), 2):
        raise ValueError("the histograms do not fit the tensors")
    if bins.ndim != 1 or bins.shape != counts.shape or (sizes < 0).any() or bins.size != sizes.sum():
        raise ValueError("the bins do not fit their counts")
    ends, histograms = np.cumsum(sizes), {}
    for name, size, end, (low, high) in zip(names, sizes, ends, extremes, strict=True):
        part = slice(int(end - size), int(end))
        histograms[name] = Histogram(bins[part], counts[part], float(low), float(high))
        if flaw := _flaw(histograms[name]):
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
