"""Which flags of trtexec and Polygraphy are found, in scripts and in strings."""

# ruff: noqa: E501 - one snippet a line

from __future__ import annotations

from textwrap import dedent

import pytest

from trtq.pipeline.migrate.removed.calls import find_uses
from trtq.pipeline.migrate.removed.commands import Source, search_text


def _in_text(text: str) -> list[tuple[int, int, str]]:
    found = search_text(Source(dedent(text)))
    return [(use.line, use.column, use.removed.name) for use in found]


def _in_python(source: str) -> list[tuple[int, int, str]]:
    return sorted((use.line, use.column, use.removed.name) for use in find_uses(Source(dedent(source))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trtexec --onnx=m.onnx --int8 --saveEngine=m.plan", [(1, 23, "trtexec --int8")]),
        ("/usr/src/tensorrt/bin/trtexec --fp16", [(1, 31, "trtexec --fp16")]),
        ("@$(TRTEXEC) --best # a recipe", [(1, 13, "trtexec --best")]),
        ("${TRTEXEC_BIN:-x}; $TRTEXEC --calib=c.cache", [(1, 29, "trtexec --calib")]),
        ("RUN cd /x && trtexec --onnx=m.onnx --workspace=4096", [(1, 36, "trtexec --workspace")]),
        ('command: ["trtexec", "--onnx=m.onnx", "--fp8"]', [(1, 40, "trtexec --fp8")]),
        ('"trtexec.exe" --int4', [(1, 15, "trtexec --int4")]),
        ("x=$(trtexec --explicitBatch)", [(1, 13, "trtexec --explicitBatch")]),
        ("trtexec --int8 2>&1 --fp16 | tee log", [(1, 9, "trtexec --int8"), (1, 21, "trtexec --fp16")]),
        ("polygraphy run m.onnx --trt --int8 --calibration-cache c",
         [(1, 29, "polygraphy --int8"), (1, 36, "polygraphy --calibration-cache")]),
        ("trtexec --int8; trtexec --int8", [(1, 9, "trtexec --int8"), (1, 25, "trtexec --int8")]),
    ],
)  # fmt: skip
def test_flags_are_found_in_a_line(text: str, expected: list[tuple[int, int, str]]) -> None:
    assert _in_text(text) == expected


def test_a_command_goes_over_lines() -> None:
    text = """\
        trtexec --onnx=m.onnx \\
            --saveEngine=m.plan \\
            # the flags
            --int8 --calib=c.cache
        python export.py --fp16
        args:
          - trtexec
          - --fp16
          - "--layerPrecisions=*:fp16"
        other:
          - --int8
    """
    assert _in_text(text) == [
        (4, 5, "trtexec --int8"),
        (4, 12, "trtexec --calib"),
        (8, 5, "trtexec --fp16"),
        (9, 6, "trtexec --layerPrecisions"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "trtexec --onnx=m.onnx --stronglyTyped --memPoolSize=workspace:1024 --noTF32",
        "# trtexec --int8",
        "trtexec --onnx=m.onnx # was --int8",
        "python export.py --int8 && trtexec --onnx=m.onnx",
        "trtexec --onnx=m.onnx; python bench.py --fp16",
        "trtexec --onnx=m.onnx | grep -e --int8",
        "python run_trtexec.py --model m --batch 8 --int8",
        "python trtexec.py --int8",
        "docker run --workspace x trtexec --onnx=m.onnx",
        "trtexec --int8-things --calib_data --fp16x my--int8",
        "trtq build m.onnx --int8",
        "polygraphy run m.onnx --trt --tf32",
        "",
    ],
)
def test_other_flags_are_left_alone(text: str) -> None:
    assert _in_text(text) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('subprocess.run(["trtexec", "--onnx=m.onnx", "--int8"])', [(1, 46, "trtexec --int8")]),
        ('os.system("trtexec --onnx=m.onnx --fp16")', [(1, 34, "trtexec --fp16")]),
        ('run("/usr/bin/trtexec", *more, "--best")', [(1, 33, "trtexec --best")]),
        ("run([TRTEXEC, '--int8'])", [(1, 16, "trtexec --int8")]),
        ("run([self.trtexec_path, f'--calib={cache}'])", [(1, 27, "trtexec --calib")]),
        ('run(f"{trtexec} --onnx={path} --int8 {more}")', [(1, 31, "trtexec --int8")]),
        ('run(f"{args.trtexec} --onnx={path} --int8", shell=True)', [(1, 36, "trtexec --int8")]),
        ('c = ("trtexec --onnx=m "\n     "--int8 --fp16")', [(2, 7, "trtexec --int8"), (2, 14, "trtexec --fp16")]),
        ('c = ("trtexec --onnx=m "\n     f"{x} --int8")', [(2, 12, "trtexec --int8")]),
        ('s = """\npython a.py --fp16\ntrtexec --onnx=m \\\n  --int8\n"""', [(4, 3, "trtexec --int8")]),
        ('if call(["trtexec", "--int8"]):\n    pass', [(1, 22, "trtexec --int8")]),
        ('with Popen(["trtexec", "--int8"]) as p:\n    pass', [(1, 25, "trtexec --int8")]),
        ('try:\n    call("trtexec --int8")\nexcept OSError:\n    call("trtexec --fp16")',
         [(2, 19, "trtexec --int8"), (4, 19, "trtexec --fp16")]),
        ('def f(x):\n    """Runs."""\n    return ["trtexec", "--int8"]', [(3, 25, "trtexec --int8")]),
        ('match x:\n    case 1:\n        y = "trtexec --int8"', [(3, 22, "trtexec --int8")]),
        ('call(["polygraphy", "run", "--fp16"])', [(1, 29, "polygraphy --fp16")]),
        # a command that is put together
        ('cmd = ["trtexec"]\ncmd += ["--int8"]\ncmd.append("--fp16")\ncmd.extend(x + ["--bf16"])\nrun(cmd + ["--best"])',
         [(2, 10, "trtexec --int8"), (3, 13, "trtexec --fp16"), (4, 18, "trtexec --bf16"), (5, 13, "trtexec --best")]),
        ('self.cmd: list = ["trtexec"]\nif x:\n    self.cmd.append("--int8")', [(3, 22, "trtexec --int8")]),
        ('cmd = []\ncmd += ["trtexec"]\ncmd += ["--int8"]', [(3, 10, "trtexec --int8")]),
    ],
)  # fmt: skip
def test_flags_are_found_in_python(source: str, expected: list[tuple[int, int, str]]) -> None:
    assert _in_python(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        'run(["python", "export.py", "--int8"])',
        'parser.add_argument("--int8", help="as trtexec has it")',
        '@click.option("--int8", help="as trtexec has it")\ndef f(): pass',
        '"""Like trtexec --int8."""',
        'raise ValueError("trtexec --int8 is gone")',
        'assert ok, "trtexec --int8 is gone"',
        'cmd = ["trtexec"]\ncmd = ["python", "--int8"]',
        'def f():\n    cmd = ["trtexec"]\ndef g(cmd):\n    cmd += ["--int8"]',
        'run("python a.py --int8 && trtexec --onnx=m")',
        'run(["python", "run_trtexec.py", "--int8"])',
        'import trtexec\nx = "--int8"',
        "x = b'trtexec --int8', 5, None",
    ],
)
def test_other_strings_are_left_alone(source: str) -> None:
    assert _in_python(source) == []
