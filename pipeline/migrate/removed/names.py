"""What TensorRT 10 and 11 removed, and what to do instead: the table in `removed.txt`.

The Python names are the difference between NVIDIA's own wheels, recorded class by class in
`tests/data/tensorrt_removed.txt`: 10.16.1.11 against 11.0.0.114 (11.4.0.106 lacks the same names) and 8.6.1
against 10.0.1. A test compares the table with it. What a removed class had, and what a layer inherits from
`ILayer`, is not repeated. The flags of trtexec are the difference between its option parser
(`samples/common/sampleOptions.cpp` of NVIDIA/TensorRT) at the tags v8.6.1, v10.0.1, v10.16, v11.0 and v11.1;
those of Polygraphy are what 0.53.6 answers by setting one of the removed names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Removed:
    """Something that TensorRT no longer has.

    Attributes:
        name: Such as "BuilderFlag.INT8", "trtexec --int8", "CreateConfig(int8=)".
        since: The first release without it: "10.0" or "11.0".
        advice: What to do instead.
        ambiguous: Other classes, TensorRT's or a user's, often have a member of this name too.
    """

    name: str
    since: str
    advice: str
    ambiguous: bool = False

    @property
    def major(self) -> int:
        """The major version of the first release without it."""
        return int(self.since.partition(".")[0])


RECEIVERS: Mapping[str, str] = {
    "Builder": r"builder",
    "IBuilderConfig": r"config|cfg|builder",
    "ICudaEngine": r"engine",
    "IExecutionContext": r"context|ctx",
    "ILayer": r"layer$|^l$",
    "ITensor": r"tensor",
    "OnnxParser": r"parser",
}
"""What an object of a class is usually called: that decides where its class is not known."""

_ENUMERATION = re.compile(r"\w+(Flag|Feature|Source|Capability|Verbosity|Mode|Type)$")
_SHAPES = {
    "": "{}",
    "trtexec": "trtexec {}",
    "polygraphy": "polygraphy {}",
    "CreateConfig": "CreateConfig({}=)",
    "without output_type": "INetworkDefinition.{} without output_type",
}


def _read_table() -> Iterator[Removed]:
    since = advice = owner = ""
    for line in (Path(__file__).parent / "removed.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            since = line.strip("[]")
        elif not line.startswith("    "):
            advice = line
        else:
            before, _, names = line.rpartition(": ")
            owner = owner if line.startswith("        ") else before.strip()
            for name in names.split():
                shown = _SHAPES.get(owner, f"{owner}.{{}}").format(name.rstrip("?"))
                yield Removed(shown, since, advice, ambiguous=name.endswith("?"))


REMOVED: Mapping[str, Removed] = {removed.name: removed for removed in _read_table()}
"""All that was removed, by the name that people know it by."""

MEMBERS: dict[str, dict[str, Removed]] = {}
"""The members that objects had: name -> the classes that had it."""
for _removed in REMOVED.values():
    _owner, _, _member = _removed.name.rpartition(".")
    if _owner and _member.isidentifier() and not _ENUMERATION.match(_owner):
        MEMBERS.setdefault(_member, {})[_owner] = _removed
