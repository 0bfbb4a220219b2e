"""`trtq completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from trtq.cli.console import print_answer

_NAME, _VARIABLE = "trtq", "_TRTQ_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a completion script for SHELL: bash, zsh or fish.

    \b
    bash, in ~/.bashrc:
      eval "$(trtq completion bash)"
    zsh, in ~/.zshrc:
      eval "$(trtq completion zsh)"
    fish:
      trtq completion fish > ~/.config/fish/completions/trtq.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    print_answer(f"{kind(ctx.find_root().command, {}, _NAME, _VARIABLE).source()}\n")
