"""The findings of `trtq lint` as SARIF 2.1.0, the format of tools that look at sources.

OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0", 2020. A model has no lines: a
finding is in the file, and in the node as a logical location.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from trtq.json import to_text

if TYPE_CHECKING:
    from trtq.pipeline.graph.lint.finding import Finding
    from trtq.pipeline.lint import LintItem, LintReport

_LEVELS: Mapping[str, str] = {"refused": "error", "wrong": "error", "float": "warning", "suspect": "warning"}
_EFFECTS: Mapping[str, str] = {
    "refused": "TensorRT refuses the model",
    "wrong": "TensorRT computes something else than the file says",
    "float": "TensorRT runs the layer in float",
    "suspect": "TensorRT computes what the file says, which is hardly what was meant",
}
_REPAIRS: Mapping[str, str] = {
    "exact": "trtq build repairs it exactly: {what}",
    "rounds": "trtq build repairs it: {what}",
    "requantize": "trtq build --requantize: {what}",
    "none": "no repair: {advice}",
}


def describe_repair(item: LintItem, detail: str) -> str:
    """Returns what helps against a finding, with the numbers of its node or without."""
    return _REPAIRS[item.repair].format(what=item.what + detail, advice=item.finding.advice)


def to_sarif(linted: LintReport) -> bytes:
    """Returns the findings as SARIF, with one rule for each that has any."""
    rules = list({item.finding.rule: item.finding for item in linted.items}.values())
    names = [rule.rule for rule in rules]
    driver = {
        "name": "trtq",
        "version": version("trtq"),
        "rules": [_describe_rule(rule) for rule in rules],
    }
    run = {
        "tool": {"driver": driver},
        "results": [_describe_item(item, linted.model, names) for item in linted.items],
    }
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return (to_text({"$schema": schema, "version": "2.1.0", "runs": [run]}) + "\n").encode()


def _describe_rule(finding: Finding) -> dict[str, Any]:
    """Returns a rule; its level is that of what TensorRT does."""
    return {
        "id": finding.rule,
        "shortDescription": {"text": f"{finding.rule}: {_EFFECTS[finding.effect]}"},
        "help": {"text": finding.advice},
        "defaultConfiguration": {"level": _LEVELS[finding.effect]},
    }


def _describe_item(item: LintItem, model: str, rules: Sequence[str]) -> dict[str, Any]:
    """Returns a finding, with what tells it from the others in the next run too."""
    finding = item.finding
    told = f"{finding.node} ({finding.op_type}): {finding.reason}. {describe_repair(item, item.detail)}."
    digest = hashlib.sha256("\0".join((finding.rule, finding.node)).encode()).hexdigest()
    return {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "level": _LEVELS[finding.effect],
        "message": {"text": told},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _locate(model)}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": finding.node, "kind": "object"}],
            }
        ],
        "partialFingerprints": {"node/v1": digest},
    }


def _locate(model: str) -> str:
    """Returns the URI of a file: relative where it lies in this folder, as a checkout has it."""
    relative = os.path.relpath(model)
    return Path(model).absolute().as_uri() if relative.startswith(os.pardir) else quote(relative)
