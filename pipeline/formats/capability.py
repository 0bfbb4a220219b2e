"""The compute capability of a GPU, as people write it."""

from __future__ import annotations

import re

from trtq.errors import UsageError


def parse_capability(text: str) -> str:
    """Returns a compute capability as `8.9`, written so or as `89`, `sm_89` or `sm89`.

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is not a compute capability; write 8.9, 89 or sm_89")
    return f"{found[1]}.{found[2]}"
