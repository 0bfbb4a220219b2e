"""Weights in several formats: those that lose most for the memory they save keep the most bits."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir

from trtq.files import as_argument
from trtq.pipeline.formats import FP16, INT4, INT8
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.plan.scheme import SchemePlan
from trtq.pipeline.rewrite.weights.choose import SENSITIVE, choose_weights, group_by_weight

_GROUPS: Mapping[str, str] = {
    "head": SENSITIVE,
    "embeddings": r"embed|wte|wpe",
    "experts": r"expert",
    "attention": r"attn|attention|[qkvo]_proj|qkv|query|key|value",
}
"""Patterns of names, the first that matches counts; what none matches is "the rest"."""
_REST = "rest"


class _Step(NamedTuple):
    group: str
    form: str


_STEPS = (
    _Step(_REST, INT8.name), _Step("experts", INT8.name), _Step("embeddings", INT8.name),
    _Step("attention", INT8.name), _Step("experts", INT4.name), _Step(_REST, INT4.name),
    _Step("embeddings", INT4.name), _Step("attention", INT4.name), _Step("head", INT8.name),
)  # fmt: skip
"""From FP16 on, each step takes the bits that are missed least; what no pattern names goes first."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """One mixture.

    Attributes:
        formats: Of each group of weights: "head", "embeddings", "experts", "attention" and "rest".
        scheme: How its weights are stored.
        skip: Patterns of what stays FP16.
        model: The model, for the command.
        memory: What it needs.
    """

    formats: Mapping[str, str]
    scheme: WeightScheme
    skip: tuple[str, ...] = ()
    model: str = ""
    memory: SchemePlan | None = field(default=None, compare=False)

    @property
    def command(self) -> str:
        """The command that builds it, quoted for a shell."""
        words = ["trtq", "build", as_argument(self.model), "--weights", self.scheme.format]
        if self.scheme.has_blocks:
            words += ["--block-size", str(self.scheme.block_size)]
        for pattern, form in self.scheme.others:
            words += ["--weights-for", f"{pattern}={form}"]
        for pattern in self.skip:
            words += ["--skip", pattern]
        return shlex.join(words)

    @property
    def is_uniform(self) -> bool:
        """Whether all but the head are in one format."""
        return len({form for group, form in self.formats.items() if group != "head"}) == 1

    def __str__(self) -> str:
        """Names the groups by format: "embeddings INT8, attention FP16, rest INT4"."""
        return ", ".join(f"{group} {form.upper()}" for group, form in self.formats.items())


def list_mixtures(model: ir.Model, block_size: int, skip: Sequence[str]) -> Iterator[Mixture]:
    """Yields the mixtures of a model, from the most exact to the smallest.

    Groups that the model does not have are not named. An expert that has several matrices in one weight is
    stored in 8 bits at most.

    Args:
        model: The float graph.
        block_size: Of INT4.
        skip: What keeps its precision whatever its group.
    """
    groups = _find_groups(model, skip)
    formats = dict.fromkeys(groups, FP16.name)
    for step in _STEPS:
        if step.form in groups.get(step.group, ()):
            formats[step.group] = step.form
            yield _create(formats, block_size, skip)


def _find_groups(model: ir.Model, skip: Sequence[str]) -> dict[str, set[str]]:
    """Returns the groups of a model in the order of the patterns, each with the formats it can have."""
    found: dict[str, set[str]] = {}
    for form in (INT8.name, INT4.name):
        placement = choose_weights(model, WeightScheme(form, keep_sensitive=False), skip)
        for weight in group_by_weight(model, placement):
            names = (weight.tensor, *(reader.name for reader in weight.readers))
            found.setdefault(_find_group(names), set()).add(form)
    return {group: found[group] for group in (*_GROUPS, _REST) if group in found}


def _find_group(names: Sequence[str]) -> str:
    for group, pattern in _GROUPS.items():
        if any(re.search(pattern, name) for name in names):
            return group
    return _REST


def _create(formats: Mapping[str, str], block_size: int, skip: Sequence[str]) -> Mixture:
    """Returns the mixture with the format of the rest as its own, and patterns of the other groups."""
    stored = {group: form for group, form in formats.items() if form != FP16.name}
    own = stored.get(_REST) or next(iter(stored.values()))
    others = tuple((_GROUPS[group], form) for group, form in stored.items() if group == "head" or form != own)
    floats = tuple(_GROUPS[group] for group in formats if group not in (*stored, "head"))
    scheme = WeightScheme(own, block_size=block_size, others=others)
    return Mixture(dict(formats), scheme, (*skip, *floats))
