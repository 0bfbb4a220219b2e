"""Number formats: what is true of each everywhere, and how a tensor is held in one.

A new format is one file here, one entry in `FORMATS`, and one test file.
"""

from __future__ import annotations

from collections.abc import Mapping

from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.floats import BF16, FP16, FP32
from trtq.pipeline.formats.format import Format
from trtq.pipeline.formats.fp8 import FP8
from trtq.pipeline.formats.int4 import INT4
from trtq.pipeline.formats.int8 import INT8, INT8_OF_7_BITS
from trtq.pipeline.formats.nf4 import NF4

__all__ = [
    "BF16",
    "BLOCK_FORMATS",
    "FORMATS",
    "FP8",
    "FP16",
    "FP32",
    "INT4",
    "INT8",
    "INT8_OF_7_BITS",
    "LAYER_FORMATS",
    "NF4",
    "WEIGHT_FORMATS",
    "WEIGHT_METHODS",
]  # fmt: skip

FORMATS: Mapping[str, Format] = {item.name: item for item in (FP32, FP16, BF16, INT8, FP8, INT4, NF4)}
"""By name, from the most exact to the smallest."""
WEIGHT_FORMATS: Mapping[str, CodeFormat] = {
    name: item for name, item in FORMATS.items() if isinstance(item, CodeFormat)
}
"""Those that weights can be stored in."""
LAYER_FORMATS: Mapping[str, CodeFormat] = {item.name: item for item in (INT8, FP8)}
"""Those that Q/DQ gives to activations and weights of layers."""
BLOCK_FORMATS = tuple(name for name, item in WEIGHT_FORMATS.items() if item.block_sizes)
"""The names of those with a scale for each block."""
WEIGHT_METHODS = tuple(dict.fromkeys(method for item in WEIGHT_FORMATS.values() for method in item.methods))
