"""Control characters are shown, not obeyed: names come from files that nobody should trust."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What moves the cursor, changes colors or turns text around; not the tab and the end of a line."""


def escape(text: str) -> str:
    """Returns a text with its control characters written out, such as `\\x1b`."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)
