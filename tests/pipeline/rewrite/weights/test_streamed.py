"""Constants that are made as they are written have the content of those that are made as a whole."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from trtq.pipeline.formats import FP8, INT4, INT8, NF4
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock, PerChannel
from trtq.pipeline.rewrite.weights import strips
from trtq.pipeline.rewrite.weights.choose import ChosenWeight
from trtq.pipeline.rewrite.weights.layout import choose_form, fill_parts, plan_parts
from trtq.pipeline.rewrite.weights.streamed import stream_weight

ENCODINGS = [
    Encoding(INT8, PerChannel(1)),
    Encoding(FP8, PerChannel(0)),
    Encoding(INT4, PerBlock(0, 32)),
    Encoding(NF4, PerBlock(1, 16)),
    Encoding(NF4, PerBlock(0, 32), has_coded_scales=True),
]


def _bytes_of(tensor: ir.TensorProtocol) -> bytes:
    file = io.BytesIO()
    tensor.tofile(file)  # type: ignore[attr-defined]
    return file.getvalue()


@pytest.mark.parametrize("order", [1, -1], ids=["codes-first", "scales-first"])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda item: f"{item.format}-{item.granularity}")
def test_pieces_are_the_whole_in_either_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: Encoding, order: int
) -> None:
    monkeypatch.setattr(strips, "_STRIP", 1600)
    values = np.random.default_rng(0).standard_t(3, (160, 48)).astype(np.float16)
    (tmp_path / "w.data").write_bytes(values.tobytes())
    shape = ir.Shape(values.shape)
    outside = ir.ExternalTensor(
        "w.data", 0, values.nbytes, ir.DataType.FLOAT16, shape=shape, name="w", base_dir=tmp_path
    )
    weight = ChosenWeight("w", values.shape, encoding, ())
    form = choose_form(encoding)
    parts = plan_parts(weight, ir.DataType.FLOAT16, form)
    found = stream_weight(outside, weight, "float16", "rtn", parts, form)
    codes = encoding.format.encode(values, encoding.granularity, "float16", "rtn")
    wanted = fill_parts(codes, weight, parts, form)
    for one, other in list(zip(found, wanted, strict=True))[::order]:
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert _bytes_of(one) == other.tobytes()
    np.testing.assert_array_equal(found[0].numpy(), wanted[0].numpy())
