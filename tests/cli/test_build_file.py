"""`trtq.toml`: what becomes of it, and what is wrong with it, before any work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trtq.cli.build_file import BuildEntry, read_builds
from trtq.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, which is not the current one."""
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("a", "b"):
        (tmp_path / "models" / f"{name}.onnx").write_bytes(b"model")
    return tmp_path / "models"


def read(folder: Path, text: str) -> tuple[BuildEntry, ...]:
    (folder / "trtq.toml").write_text(text)
    return read_builds(folder / "trtq.toml")


def problems(folder: Path, text: str) -> list[str]:
    """Returns the sentences that tell what is wrong."""
    with pytest.raises(UsageError) as caught:
        read(folder, text)
    first, _, rest = str(caught.value).partition(" cannot be built: ")
    assert first == str(folder / "trtq.toml")
    return [line.strip().replace(str(folder), "DIR") for line in rest.split(" | ")]


def test_data_behind_a_url_stays_where_it_is(folder: Path) -> None:
    (entry,) = read(folder, '[[build]]\nmodel = "a.onnx"\ncalib-data = "s3://b/a.npz"\n')
    assert "--calib-data=s3://b/a.npz" in entry.job.arguments


def test_keys_are_options_and_defaults_hold_for_all(folder: Path) -> None:
    first, second = read(
        folder,
        """
        [defaults]
        int8 = true
        calib-data = "data.npz"
        skip = ["^/head/", "x"]
        [[build]]
        model = "a.onnx"
        [[build]]
        name = "small"
        model = "b.onnx"
        output = "out/b"
        int8 = false
        weights = "int4"
        skip = []
        block-size = 32
        max-drop = 0.5
        calib-data = "feeds.py:feeds"
        metric = "score.py:score"
        eval-data = "eval.npz"
        labels = "labels.npy"
        reference = "float.onnx"
        """,
    )
    assert first.job.arguments == (
        "build", f"{folder}/a.onnx", "--int8", f"--calib-data={folder}/data.npz", "--skip=^/head/",
        "--skip=x", "--json", "--quiet",
    )  # fmt: skip
    assert (first.name, first.output, first.number) == ("a", folder / "a.trtq", 1)
    assert second.job.arguments == (
        "build", f"{folder}/b.onnx", f"--calib-data={folder}/feeds.py:feeds", f"--output={folder}/out/b",
        "--weights=int4", "--block-size=32", "--max-drop=0.5", f"--metric={folder}/score.py:score",
        f"--eval-data={folder}/eval.npz", f"--labels={folder}/labels.npy",
        f"--reference={folder}/float.onnx", "--json", "--quiet",
    )  # fmt: skip
    assert (second.name, second.output) == ("small", folder / "out" / "b")


KINDS = """
    [defaults]
    on = ["l4", "h100"]
    calib-samples = 16
    [kind.h100]
    resources = ["nvidia-h100", "tensorrt-10.9"]
    compute-capability = ["9.0"]
    calib-samples = 8
    [[build]]
    model = "a.onnx"
    backend = "tensorrt-rtx"
    [[build]]
    model = "b.onnx"
    output = "out/b.engine"
    on = "h100"
    calib-samples = 4
    [[build]]
    model = "b.onnx"
    output = "out/c.engine"
    name = "c"
"""


def test_a_build_for_several_kinds_is_as_many_builds(folder: Path) -> None:
    found = read(folder, KINDS)
    assert [(item.number, item.title, item.output.name) for item in found] == [
        (1, "a on l4", "a.l4.trtq"), (1, "a on h100", "a.h100.trtq"), (2, "b on h100", "b.trtq"),
        (3, "c on l4", "c.l4.trtq"), (3, "c on h100", "c.h100.trtq"),
    ]  # fmt: skip
    assert [item.is_one_of_several for item in found] == [True, True, False, True, True]
    assert [item.job.resources for item in found[:2]] == [("l4",), ("nvidia-h100", "tensorrt-10.9")]
    assert found[1].job.arguments == (
        "build", f"{folder}/a.onnx", "--calib-samples=8", "--compute-capability=9.0",
        "--backend=tensorrt-rtx", f"--output={folder}/a.h100.trtq", "--json", "--quiet",
    )  # fmt: skip
    assert f"--output={folder}/out/c.l4.engine" in found[3].job.arguments
    assert {"--calib-samples=4", f"--output={folder}/out/b.engine"} < {*found[2].job.arguments}
    assert found[1].job.result == folder / "a.h100.trtq" / "manifest.json"


def test_elsewhere_tensorrt_may_be_what_builds_and_one_key_signs_all(folder: Path) -> None:
    (folder / "trtq.toml").write_text(KINDS)
    found = read_builds(folder / "trtq.toml", Path("private.pem"), is_elsewhere=True)
    assert [item.job.needs_gpu for item in found] == [False, False, True, True, True]
    assert {item.sign_key for item in found} == {Path.cwd() / "private.pem"}
    assert f"--sign-key={Path.cwd() / 'private.pem'}" in found[0].job.arguments


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kind = 1", "a kind is a section [kind.NAME], with a name for `on`"),
        (
            '[kind."a b"]',
            "[kind.a b]: its name becomes a part of folders' names; use letters, digits, '.', '_' and '-'",
        ),
        (
            "[kind.a]\nresources = []",
            "[kind.a]: resources must be a list of names of Ray's custom resources, got []",
        ),
        ("[kind.a]\nint9 = true", "[kind.a]: unknown key 'int9'; is it int8?"),
        ('[kind.a]\non = "b"', "[kind.a]: on belongs in a [[build]]"),
        ('[kind.a]\noutput = "x"', "[kind.a]: output belongs in a [[build]]"),
    ],
)
def test_a_wrong_kind_is_told(text: str, line: str, folder: Path) -> None:
    assert problems(folder, f'{text}\n[[build]]\nmodel = "a.onnx"\n') == [line]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("[]", 'on must be names of kinds of machines, such as ["nvidia-l4"], got []'),
        ("[1]", 'on must be names of kinds of machines, such as ["nvidia-l4"], got [1]'),
        ('["a", "b", "a"]', "on names a kind twice: a, b, a"),
        (
            '["a & b"]',
            "on: 'a & b' is not a valid kind name; use letters, digits, '.', '_' and '-', and name "
            "other resources in a section [kind.NAME]",
        ),
    ],
)
def test_a_build_on_what_is_no_kind_is_told(value: str, line: str, folder: Path) -> None:
    assert problems(folder, f'[[build]]\nmodel = "a.onnx"\non = {value}\n') == [f"build 1 (a.onnx): {line}"]


def test_a_build_is_thought_to_need_memory_by_its_size_unless_it_says(folder: Path) -> None:
    (folder / "a.onnx.data").write_bytes(bytes(1000))
    one, other, last = read(
        folder,
        '[[build]]\nmodel = "a.onnx"\n[[build]]\nmodel = "b.onnx"\n'
        '[[build]]\nmodel = "b.onnx"\noutput = "c"\nmemory = "2G"\n',
    )
    assert one.job.memory_bytes - other.job.memory_bytes == 8 * 1000
    assert other.job.memory_bytes > 1 << 30
    assert last.job.memory_bytes == 2 << 30


def test_builds_by_tensorrt_take_turns_on_the_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[[build]]\nmodel = "a.onnx"\n[[build]]\nmodel = "b.onnx"\nbackend = "{}"\n'
    found = read(folder, text.format("tensorrt"))
    assert [item.job.needs_gpu for item in found] == [False, True]
    monkeypatch.setattr("trtq.pipeline.engine.tensorrt.TensorRt.why_not", lambda self: "")
    found = read(folder, text.format("tensorrt-rtx"))
    assert [item.job.needs_gpu for item in found] == [True, False]


def test_everything_that_is_wrong_is_told_at_once(folder: Path) -> None:
    assert problems(
        folder,
        """
        [default]
        [defaults]
        output = "x"
        [[build]]
        modle = "a.onnx"
        [[build]]
        model = "c.onnx"
        quiet = true
        [[build]]
        model = "a.onnx"
        int8 = "yes"
        output = ["a"]
        skip = [1, true]
        [[build]]
        model = "a.onnx"
        backend = "trt"
        [[build]]
        model = "a.onnx"
        max-drop = 1000
        [[build]]
        model = "a.onnx"
        [[build]]
        model = "../models/a.onnx"
        """,
    ) == [
        "unknown section 'default'; the sections are [defaults], [kind.NAME] and [[build]]",
        "[defaults]: output belongs in a [[build]]",
        "build 1 (?): unknown key 'modle'; is it model?",
        "build 1 (?): model is missing; give the path of an ONNX file",
        "build 2 (c.onnx): unknown key 'quiet'; the keys are the options of trtq build, without --",
        "build 2 (c.onnx): there is no model DIR/c.onnx",
        "build 3 (a.onnx): int8 must be true or false, got 'yes'",
        "build 3 (a.onnx): output has one value, got ['a']",
        "build 3 (a.onnx): skip must be texts, got [1, True]",
        "build 4 (a.onnx): Invalid value for '--backend': 'trt' is not one of 'auto', 'tensorrt', "
        "'tensorrt-rtx', 'onnxruntime'.",
        "build 5 (a.onnx): max_drop must be between 0 and 100 points, got 1000.0",
        "builds 6 and 7 have the same output DIR/../models/a.trtq; give each its own output",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "there is no [[build]]"),
        (
            '[build]\nmodel = "a.onnx"',
            "[defaults] is a section, and every [[build]] is one, with two brackets",
        ),
        ("defaults = 1", "[defaults] is a section, and every [[build]] is one, with two brackets"),
        (
            '[[build]]\nmodel = "a.onnx"\nmemory = "lots"',
            "build 1 (a.onnx): 'lots' is not a size; write bytes, or a number with K, M or G",
        ),
        (
            '[[build]]\nmodel = "a.onnx"\nmin-cosine = true',
            "build 1 (a.onnx): min-cosine must be a text or a number, got True",
        ),
        (
            '[[build]]\nmodel = "a.onnx"\nspec = "no.toml"',
            "build 1 (a.onnx): cannot read the settings DIR/no.toml: No such file or directory",
        ),
    ],
)
def test_a_file_that_cannot_be_built_is_told(text: str, line: str, folder: Path) -> None:
    assert problems(folder, text) == [line]


def test_the_example_of_the_docs_is_read(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "build-all.md"
    blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    text, farm = (block for block in blocks if "[[build]]" in block)
    for name in ("detector", "encoder", "model"):
        (tmp_path / f"{name}.onnx").touch()
    detector, encoder = read(tmp_path, text)
    assert "--compute-capability=8.9" in detector.job.arguments
    assert "--weights=int4" in encoder.job.arguments
    assert "--int8" not in encoder.job.arguments
    assert [item.title for item in read(tmp_path, farm)] == ["detector on l4", "detector on nvidia-h100"]


def test_no_file_and_no_toml_are_told(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the builds .*: No such file"):
        read_builds(folder / "trtq.toml")
    with pytest.raises(UsageError, match="is not valid TOML"):
        read(folder, "[[build")
