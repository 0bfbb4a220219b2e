"""TensorRT's own INT8 calibrators (8.6 to 10), fed with batches or with ranges of ours.

    batches ─────────▶ BatchCalibrator    TensorRT's algorithm, entropy2 or minmax, over the data
    scales of ours ──▶ ScaleCalibrator    any method of trtq, as a cache of entropy2

The bindings print an exception of a calibrator and go on as if the data had ended, so nothing is raised while
TensorRT builds: call `raise_if_wrong` after the build, also if it failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.cache import (
    ALGORITHMS,
    ENTROPY2,
    CalibrationCache,
    format_cache,
    parse_cache,
    parse_version,
)
from trtq.calibrators.device import DeviceMemory
from trtq.errors import BuildError, DataError, UsageError
from trtq.models.signature import show_shape

_CLASSES = {ENTROPY2: "IInt8EntropyCalibrator2", ALGORITHMS["minmax"]: "IInt8MinMaxCalibrator"}
_NEVER_ASKED = (
    "the build stopped before that, INT8 was not allowed, or the model has Q/DQ nodes; give a float model, "
    "and see TensorRT's own lines"
)
_FED_AS: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float32),  # TensorRT calibrates in float32
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}


class Calibrator:
    """What TensorRT's calibrators have in common; each is made over a calibrator class of its bindings.

    Attributes:
        written: The cache that TensorRT made; None before.
        was_asked: Whether TensorRT has come to calibrate: asked for the data, or for the scales.
        num_samples: How many samples TensorRT took; 0 where it got scales.
    """

    def __init__(self, cache: bytes | None = None) -> None:
        """Takes the text of a cache, None if there is data."""
        super().__init__()  # the bindings' part: without it they have no C++ object
        self.written: bytes | None = None
        self.was_asked = False
        self.num_samples = 0
        self._given = cache  # kept: TensorRT reads the memory after the call

    @property
    def cache(self) -> bytes | None:
        """What TensorRT quantized with: the cache that it made of the data, or the given one."""
        return self.written or self._given

    def read_calibration_cache(self) -> bytes | None:
        """Returns the given cache; None if there is data."""
        return self._given

    def write_calibration_cache(self, cache: memoryview) -> None:
        """Keeps the cache that TensorRT made; the memory is its own."""
        self.written = bytes(cache)


class BatchCalibrator(Calibrator):
    """Hands TensorRT one batch after another in device memory, one buffer an input, used again.

    Attributes:
        error: What went wrong while TensorRT asked.
    """

    def __init__(self, batches: Batches, memory: DeviceMemory, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Starts one pass over the data; a smaller last batch is left out.

        Args:
            batches: The data.
            memory: Where TensorRT reads; it must outlive the build.
            shapes: kOPT of the calibration profile for each input: what every batch must have.
        """
        super().__init__()
        self.error: BaseException | None = None
        self._feeds = iter(batches)
        self._origin = batches.origin
        self._memory = memory
        self._shapes = dict(shapes)
        self._buffers: dict[str, tuple[int, np.dtype[Any]]] = {}
        self._left_out = ""

    def get_batch_size(self) -> int:
        """Returns the samples a batch: the leading dimension of the first input that has one."""
        return next((shape[0] for shape in self._shapes.values() if shape), 1)

    def get_batch(self, names: Sequence[str]) -> list[int] | None:
        """Returns the addresses of the next batch's inputs; None at the end of the data, or on an `error`."""
        self.was_asked = True
        if self.error is not None:
            return None
        try:
            return self._next(names)
        except BaseException as error:  # noqa: BLE001 - the bindings would print it and take it for the end
            self.error = error
            return None

    def raise_if_wrong(self) -> None:
        """Raises, after the build, what was raised meanwhile, or that TensorRT took no batch."""
        if self.error is not None:
            raise self.error
        if not self.was_asked:
            raise BuildError(f"TensorRT asked for no calibration batch of {self._origin}: {_NEVER_ASKED}")
        if not self.num_samples:
            rest = f" ({self._left_out} is smaller and was left out)" if self._left_out else ""
            raise DataError(
                f"TensorRT took no calibration batch of {self.get_batch_size()} from {self._origin}{rest}; "
                f"give more samples, or smaller batches with --opt-shapes"
            )

    def _next(self, names: Sequence[str]) -> list[int] | None:
        feed = next(self._feeds, None)
        if feed is None:
            return None
        arrays = {name: self._select(feed, name) for name in names}
        wrong = [name for name, array in arrays.items() if array.shape != self._shapes[name]]
        if wrong:
            is_smaller = all(_is_smaller(arrays[name].shape, self._shapes[name]) for name in wrong)
            if is_smaller and next(self._feeds, None) is None:
                self._left_out = feed.source
                return None
            shape, wanted = arrays[wrong[0]].shape, self._shapes[wrong[0]]
            raise DataError(
                f"input {wrong[0]!r} of {feed.source} has shape {show_shape(shape)}, the calibration "
                f"profile needs {show_shape(wanted)} of every batch but a smaller last one; make all "
                "batches alike, or give their shape with --opt-shapes"
            )
        pointers = [self._upload(feed, name, array) for name, array in arrays.items()]
        self.num_samples += self.get_batch_size()
        return pointers

    def _select(self, feed: Feed, name: str) -> NDArray[Any]:
        for names, holder, remedy in (
            (self._shapes, "the calibration profile", "give --opt-shapes for it"),
            (feed.arrays, feed.source, "name the arrays as the model's inputs"),
        ):
            if name not in names:
                known = ", ".join(sorted(names)) or "none"
                raise DataError(f"TensorRT asks for input {name!r}, {holder} has {known}; {remedy}")
        return feed.arrays[name]

    def _upload(self, feed: Feed, name: str, array: NDArray[Any]) -> int:
        fed_as = _FED_AS.get(array.dtype.name)
        if fed_as is None:
            raise DataError(
                f"input {name!r} of {feed.source} is {array.dtype.name}, TensorRT calibrates with "
                f"{', '.join(_FED_AS)}; convert it with .astype('float32')"
            )
        if name not in self._buffers:
            pointer = self._memory.allocate(array.size * fed_as.itemsize)
            self._buffers[name] = pointer, array.dtype
        pointer, dtype = self._buffers[name]
        if array.dtype != dtype:
            raise DataError(
                f"input {name!r} of {feed.source} is {array.dtype.name}, it was {dtype.name} before; "
                f"give all feeds the dtype that the model takes"
            )
        self._memory.upload(pointer, array.astype(fed_as, copy=False))
        return pointer


class ScaleCalibrator(Calibrator):
    """Hands TensorRT scales as a cache of its own."""

    _was_rejected = False

    def get_batch_size(self) -> int:
        """Returns 1: there is no data."""
        return 1

    def get_batch(self, _names: Sequence[str]) -> list[int] | None:
        """Notes that TensorRT would calibrate, though it has scales."""
        self._was_rejected = True
        return None

    def read_calibration_cache(self) -> bytes | None:
        """Returns the scales."""
        self.was_asked = True
        return self._given

    def raise_if_wrong(self) -> None:
        """Raises BuildError, after the build, if TensorRT did not take the scales."""
        if self._was_rejected:
            own = f", its own have {_read_header(self.written)!r}" if self.written else ""
            raise BuildError(
                f"TensorRT did not take the scales: their cache has the header {_read_header(self._given)!r}"
                f"{own}; calibrate with data in place of the cache, or use explicit quantization "
                f"(--quantization explicit)"
            )
        if not self.was_asked:
            raise BuildError(f"TensorRT did not ask for the scales: {_NEVER_ASKED}")


def make_batch_calibrator(
    trt: ModuleType,
    algorithm: str,
    batches: Batches,
    memory: DeviceMemory,
    shapes: Mapping[str, tuple[int, ...]],
) -> BatchCalibrator:
    """Returns TensorRT's own calibrator before fusion, "entropy2" or "minmax", over data.

    Raises:
        UsageError: This TensorRT has no calibrators.
    """
    return _derive(trt, ALGORITHMS[algorithm], BatchCalibrator)(batches, memory, shapes)


def make_scale_calibrator(trt: ModuleType, scales: Mapping[str, float]) -> ScaleCalibrator:
    """Returns an `IInt8EntropyCalibrator2` that takes no data and quantizes with these scales.

    Scales are `amax / 127` by TensorRT's tensor name, which is ONNX's; float32 values, at least 0.

    Raises:
        UsageError: This TensorRT has no calibrators, there are no scales, or a name cannot stand in a cache.
        ArtifactError: A scale is negative or not finite.
    """
    calibrator = _derive(trt, ENTROPY2, ScaleCalibrator)
    if not scales:
        raise UsageError("there are no scales to hand to TensorRT; calibrate the model first")
    if unfit := [name for name in scales if "\n" in name or not name]:
        raise UsageError(
            f"tensor {unfit[0]!r} cannot stand in a calibration cache, which has one name per line; rename it"
        )
    text = format_cache(CalibrationCache(scales, parse_version(trt.__version__), ENTROPY2))
    parse_cache(text)  # refuses what TensorRT would misread
    return calibrator(text)


AnyCalibrator = BatchCalibrator | ScaleCalibrator
C = TypeVar("C", bound=Calibrator)


def _derive(trt: ModuleType, algorithm: str, ours: type[C]) -> type[C]:
    """Returns our calibrator over the bindings' class of this algorithm."""
    name = _CLASSES[algorithm]
    base: type | None = getattr(trt, name, None)
    if base is None:
        raise UsageError(
            f"{trt.__name__} {trt.__version__} has no {name}: TensorRT 11 and TensorRT-RTX have no INT8 "
            f"calibrators any more; use explicit quantization (--quantization explicit), or TensorRT 10"
        )
    return type(f"Trtq{name[1:]}", (ours, base), {})


def _read_header(cache: bytes | None) -> str:
    return (cache or b"").partition(b"\n")[0].decode(errors="replace")


def _is_smaller(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Returns whether this is a last batch: fewer samples, all else alike."""
    return bool(shape) and shape[1:] == wanted[1:] and len(shape) == len(wanted) and shape[0] < wanted[0]
