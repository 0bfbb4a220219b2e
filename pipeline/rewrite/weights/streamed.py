"""Weights in few bits that are encoded as they are written, so that none is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.streamed import StreamedTensor
from trtq.pipeline.rewrite.weights.choose import ChosenWeight
from trtq.pipeline.rewrite.weights.layout import Form, Part, fill_scales, finish_codes
from trtq.pipeline.rewrite.weights.strips import iterate_codes


def stream_weight(
    values: ir.TensorProtocol,
    weight: ChosenWeight,
    dtype: str,
    method: str,
    parts: Sequence[Part],
    form: Form,
) -> tuple[ir.TensorProtocol, ...]:
    """Returns the constants of a weight in another file, which is encoded as the codes are written.

    The scales are known then, and forgotten as they are handed out. Whoever asks for them first has the
    weight encoded twice.

    Args:
        values: One that `can_strip` takes.
        weight: What is held.
        dtype: Which the scales must survive.
        method: One of the format's.
        parts: Of `plan_parts`.
        form: Of `choose_form`, not "bnb4".
    """
    finish, left = finish_codes(form, parts[0].dtype), dict[int, ir.TensorProtocol]()

    def encode() -> Iterator[NDArray[Any]]:
        scales = np.empty(weight.encoding.granularity.scales_shape(weight.shape), np.float32)
        for codes in iterate_codes(values, weight.encoding, dtype, method, weight.tensor, scales):
            yield finish(codes).reshape(-1)
        left.update(enumerate(fill_scales(scales, weight, parts[1:], form), 1))

    def take(index: int) -> ir.TensorProtocol:
        if index not in left:
            for _ in encode():
                pass
        return left.pop(index)

    return StreamedTensor(encode, parts[0].dtype, parts[0].shape), *(
        ir.LazyTensor(partial(take, index), part.dtype, ir.Shape(part.shape))
        for index, part in enumerate(parts[1:], 1)
    )
