"""Inputs whose data shows too little: it is zero throughout, or unlike that of the calibration."""

from __future__ import annotations

from itertools import islice

import numpy as np

from trtq.calibrators.ranges import Ranges
from trtq.pipeline.build.job import Job
from trtq.progress import Watcher

_FACTOR = 10.0
"""Samples of one distribution differ by less; pixels from 0 to 255 and from 0 to 1 by more."""
_FEEDS = 8


def doubt_zero_inputs(job: Job, ranges: Ranges | None) -> str:
    """Returns why nothing is known of an input that is quantized and always zero; empty if there is none.

    Its range is a guess. Evaluation data in which it is not zero shows whether that holds.
    """
    known = {} if ranges is None else ranges.tensors
    names = [item.name for item in job.graph.inputs if item.name in known and known[item.name].is_dead]
    for feed in (job.evaluation or ()) if names else ():
        names = [name for name in names if not feed.arrays[name].any()]
        if not names:
            break
    if not names:
        return ""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"input {names[0]!r}{others} is zero in every sample, so its range is a guess and nothing shows what "
        "quantization does to it; give samples in which it is as in real use"
    )


def warn_of_other_scale(job: Job, ranges: Ranges | None, watcher: Watcher) -> None:
    """Warns of an input that is far larger or smaller in the evaluation data than in the calibration data.

    They were then probably prepared in another way, such as without a division by 255.
    """
    if ranges is None or job.evaluation is None or job.spec.evaluation.data is None:
        return
    largest: dict[str, float] = {}
    names = [item.name for item in job.graph.inputs if item.name in ranges.tensors]
    for feed in islice(job.evaluation, _FEEDS) if names else ():
        for name in names:
            here = float(np.abs(feed.arrays[name]).max(initial=0.0))
            largest[name] = max(largest.get(name, 0.0), here)
    for name, here in largest.items():
        item = ranges.tensors[name]
        before = max(-item.minimum, item.maximum)
        if min(here, before) > 0 and not 1 / _FACTOR < here / before < _FACTOR:
            watcher.warn(
                f"input {name!r} reaches {here:.4g} in {job.evaluation.origin}, and {before:.4g} in the "
                "calibration data: check that both are prepared as the model was trained"
            )
