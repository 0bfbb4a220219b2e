"""JUnit's XML, as Jenkins, GitLab and GitHub's reporters read it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

_ELEMENTS = {"fail": "failure", "error": "error", "unverified": "skipped"}
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


@dataclass(frozen=True, slots=True)
class Case:
    """A test case: what is judged, as "pass", "fail", "error" or "unverified", and why."""

    name: str
    outcome: str
    text: str


def to_junit(title: str, cases: Sequence[Case]) -> bytes:
    """Returns a file with one suite. What is unverified counts as skipped: it neither holds nor fails."""
    counts = Counter(_ELEMENTS.get(case.outcome, "passed") for case in cases)
    numbers = {"tests": len(cases), "failures": counts["failure"], "errors": counts["error"]}
    shown = {name: str(count) for name, count in numbers.items()}
    root = ElementTree.Element("testsuites", shown)
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": _clean(title), **shown, "skipped": str(counts["skipped"])}
    )
    for case in cases:
        item = ElementTree.SubElement(
            suite, "testcase", {"classname": _clean(title), "name": _clean(case.name)}
        )
        if case.outcome in _ELEMENTS:
            told = ElementTree.SubElement(item, _ELEMENTS[case.outcome], {"message": _clean(case.text)})
            told.text = _clean(case.text)
        else:
            ElementTree.SubElement(item, "system-out").text = _clean(case.text)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=True)
    return text + b"\n"


def _clean(text: str) -> str:
    return _NO_XML.sub("?", text)
