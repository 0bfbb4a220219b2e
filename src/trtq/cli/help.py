"""`--help` in groups, completion, and what was meant by a command that does not exist."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_FEW = 12
"""Options that are listed without groups."""
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Module": ("--input", "--size", "--task", "--family", "--no-pretrained", "--opset"),
    "Memory": ("--params", "--gpu-memory"),
    "Data": (
        "--calib-data", "--calib-samples", "--calib-batch-size", "--random-data", "--calib-device",
        "--calib-memory", "--data", "--samples", "--batch-size", "--shapes", "--batch", "--seq", "--past",
        "--new", "--shard",
        "--checkpoint", "--checkpoint-seconds", "--statistics", "--save-statistics",
    ),
    "Images": (
        "--resize", "--resize-mode", "--crop", "--channels", "--scale", "--mean", "--std", "--layout",
        "--exif", "--frame-step",
    ),
    "Ranges": ("--ranges", "--calib-method", "--percentile", "--activations", "--weight-granularity"),
    "Repairs": ("--repair", "--effort", "--requantize"),
    "Precision": (
        "--int8", "--fp8", "--nvfp4", "--fp16", "--high-precision", "--weights", "--weight-method",
        "--block-size", "--w4a8", "--double-quant", "--quantize-sensitive", "--weights-for",
        "--kv-cache", "--quantization",
    ),
    "Layers": ("--skip", "--keep-fp32", "--force", "--op-types", "--auto", "--formats"),
    "Engine": (
        "--backend", "--compute-capability", "--min-shapes", "--opt-shapes", "--max-shapes", "--profile",
        "--workspace",
        "--timing-cache", "--builder-optimization-level", "--hardware-compatibility",
        "--version-compatible", "--plugins", "--ort-custom-ops", "--device", "--threads",
        "--cuda-graph",
    ),
    "Gate": (
        "--eval-data", "--labels", "--eval-output", "--eval-samples", "--reference", "--min-cosine",
        "--max-drop", "--metric", "--min-speedup", "--generate", "--prompt-ids", "--token-ids",
        "--window", "--stride",
    ),
    "Server": (
        "--triton", "--name", "--fallback", "--ab", "--max-batch", "--max-queue-delay", "--instances",
        "--serve-versions", "--warmup-data", "--deepstream", "--label-file",
    ),
    "Settings": ("--preset", "--spec", "--trust", "--key", "--ignore-gate", "--check"),
    "Workers": ("--workers", "--worker-cpus", "--autoscaling", "--on", "--jobs", "--memory"),
    "Time": ("--rounds", "--seconds", "--warmup", "--layers"),
    "Output": (
        "-o", "--index", "--yes", "--dry-run", "--sign-key", "--chart", "--mlflow", "--summary", "--junit",
        "--json", "-q", "-v", "--help",
    ),
}  # fmt: skip
"""The options of all commands by group, in the order in which a help shows them."""
_ELSEWHERE: Mapping[tuple[str, str], str] = {
    ("init", "--force"): "Output",
    ("export", "--weights"): "Module",
    ("plan", "--shapes"): "Memory",
    ("plan", "--batch"): "Memory",
    ("plan", "--seq"): "Memory",
    ("plan", "--past"): "Memory",
    ("plan", "--new"): "Memory",
}
"""The groups of options that mean something else in a command, by its name."""


class GroupedCommand(click.Command):
    """A command whose help shows its options in groups, if there are many."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, the groups in the order of the work."""
        shown = [item for item in self.get_params(ctx) if isinstance(item, click.Option) and not item.hidden]
        if len(shown) <= _FEW:
            super().format_options(ctx, formatter)
            return
        ours = {opt: item for item in shown for opt in item.opts}
        places = {name: title for title, names in _GROUPS.items() for name in names}
        places |= {name: title for (command, name), title in _ELSEWHERE.items() if command == self.name}
        for title in _GROUPS:
            found = dict.fromkeys(ours[name] for name in places if name in ours and places[name] == title)
            if rows := [record for item in found if (record := item.get_help_record(ctx)) is not None]:
                with formatter.section(title):
                    formatter.write_dl(rows)


class GuessingGroup(click.Group):
    """A group of commands that names the ones nearest to one that does not exist."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command that is named first; UsageError with the nearest names if there is none."""
        name = args[0]
        if not ctx.resilient_parsing and name[:1].isalnum() and self.get_command(ctx, name) is None:
            near = get_close_matches(name, self.list_commands(ctx), n=3)
            meant = f". (Did you mean {' or '.join(map(repr, near))}?)" if near else ""
            ctx.fail(f"No such command {name!r}{meant}")
        return super().resolve_command(ctx, args)


def complete_names(
    group: click.Group, ctx: click.Context, incomplete: str, texts: Mapping[str, str]
) -> list[CompletionItem]:
    """Returns the completions of a group's commands, which are not imported for it, and of its options."""
    from click.shell_completion import CompletionItem

    names = [CompletionItem(name, help=text) for name, text in texts.items() if name.startswith(incomplete)]
    return [*names, *click.Command.shell_complete(group, ctx, incomplete)]
