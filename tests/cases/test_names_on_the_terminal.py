"""Names with control characters are shown, and neither move the cursor nor write to the clipboard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from rich.table import Table
from rich.text import Text

from trtq.cli import main
from trtq.cli.console import ConsoleWatcher, echo
from trtq.cli.escape import escape
from trtq.cli.terminal import EscapingConsole

NAME = "fc\x1b]52;c;aGk=\x07\x1b[2J\rPASS"
SHOWN = r"fc\x1b]52;c;aGk=\x07\x1b[2J\rPASS"


def test_control_characters_are_written_out() -> None:
    assert escape(NAME) == SHOWN
    assert escape("\x9b1m\u202ea\tb\nc") == r"\x9b1m\u202ea" + "\tb\nc"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_console_escapes_strings_and_texts(is_terminal: bool) -> None:
    console = EscapingConsole(force_terminal=is_terminal, width=200, markup=False, record=True)
    rows = Table("name")
    rows.add_row(NAME)
    with console.capture() as captured:
        console.print(rows)
        console.print(Text(NAME.replace("\r", "").replace("\x07", ""), style="red"))
    assert captured.get().count(r"fc\x1b]52;c;aGk=") == 2
    assert SHOWN in captured.get()
    assert "\x1b]" not in captured.get()
    assert "\x1b[2J" not in captured.get()


def test_warnings_and_lines_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleWatcher(quiet=True).warn(NAME)
    echo(NAME)
    written = capsys.readouterr()
    assert SHOWN in written.err
    assert written.out == f"{SHOWN}\n"


def test_commands_and_their_errors_are_escaped(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name=NAME)
    proto = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
    proto.opset_import[0].version, proto.ir_version = 17, 8
    onnx.save(proto, tmp_path / "m.onnx")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx"), "--placement"])
    assert (shown.exit_code, SHOWN in shown.output, "\x1b" in shown.output) == (0, True, False)
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = NAME
    proto.graph.initializer[0].raw_data += b"more"
    onnx.save(proto, tmp_path / "m.onnx")
    refused = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx")])
    assert (refused.exit_code, "\x1b" in refused.output, "\x07" in refused.output) == (2, False, False)
