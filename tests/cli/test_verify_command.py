"""`trtq verify` and `trtq sign` as a user sees them: exit code and whole output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import trtq

from trtq.models.demo import write_demo

Keys = Callable[[str], Path]
BUILD = ("--backend", "onnxruntime", "--calib-samples", "16", "--eval-samples", "16", "-q")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    """A build of the demo, signed as it was built."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    result = trtq("build", folder / "model.onnx", *BUILD, "--sign-key", keys("private"))
    assert (result.exit_code, result.stderr) == (0, "")
    return folder / "model.trtq"


@pytest.fixture
def folder(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "model.trtq"))


def test_a_folder_that_is_as_it_was_built(folder: Path, keys: Keys) -> None:
    (folder / "manifest.sig").rename(folder.with_name("manifest.sig"))
    result = trtq("verify", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"as built  {len(list(folder.iterdir()))} files, ")
    assert result.stdout.endswith("kB  not signed\n")
    folder.with_name("manifest.sig").rename(folder / "manifest.sig")
    assert trtq("verify", folder).stdout.endswith("kB  its signature is not checked without --key\n")
    result = trtq("verify", folder, "--key", keys("public"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("kB  signed by the owner of the key\n")
    assert trtq("verify", folder, "-q").output == ""


def test_what_is_not_as_it_was_built(folder: Path) -> None:
    (folder / "model.int8.onnx").write_bytes(b"")
    (folder / "ranges.json").unlink()
    (folder / "[bold]new.so").write_bytes(b"")
    result = trtq("verify", folder)
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert lines[:3] == ["changed model.int8.onnx", "missing ranges.json", "unknown [bold]new.so"]
    assert lines[3].startswith("NOT AS BUILT  ")
    assert result.stderr == (
        f"error: {folder} is not what was built: changed: model.int8.onnx; missing: ranges.json; "
        "unknown: [bold]new.so\n"
    )


def test_json_tells_the_same(folder: Path) -> None:
    shown = json.loads(trtq("verify", folder, "--json").stdout)
    assert (shown["intact"], shown["signature"], shown["changed"]) == (True, "unchecked", [])
    (folder / "model.int8.onnx").write_bytes(b"")
    result = trtq("verify", folder, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["changed"] == ["model.int8.onnx"]


def test_a_wrong_key_or_none_is_one_line(folder: Path, keys: Keys, tmp_path: Path) -> None:
    result = trtq("verify", folder, "--key", keys("other"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: the signature of {folder} is not that of ")
    result = trtq("verify", folder, "--key", tmp_path / "absent")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: cannot read the key {tmp_path / 'absent'}: No such file or directory\n",
    )


def test_signing_says_what_was_written(folder: Path, keys: Keys) -> None:
    (folder / "manifest.sig").unlink()
    result = trtq("sign", folder, "--key", keys("other-private"))
    assert (result.exit_code, result.stdout) == (0, f"written to {folder / 'manifest.sig'}\n")
    assert trtq("verify", folder, "--key", keys("other"), "-q").exit_code == 0
    assert trtq("sign", folder, "--key", keys("private"), "-q").output == ""
    assert trtq("verify", folder, "--key", keys("public"), "-q").exit_code == 0


def test_a_bad_key_is_told_before_the_build(signed: Path, tmp_path: Path) -> None:
    model = signed.parent / "model.onnx"
    result = trtq("build", model, *BUILD, "-o", tmp_path / "out", "--sign-key", model)
    assert result.exit_code == 2
    assert f"{model} is not a private key in PEM; make one with: openssl genpkey" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_build_that_fails_its_gate_is_not_signed(signed: Path, keys: Keys, tmp_path: Path) -> None:
    arguments = ("-o", tmp_path / "out", "--min-cosine", "1", "--sign-key", keys("private"))
    assert trtq("build", signed.parent / "model.onnx", *BUILD, *arguments).exit_code == 3
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert not (tmp_path / "out" / "manifest.sig").exists()


def test_what_another_key_has_signed_is_built_again(folder: Path, keys: Keys, signed: Path) -> None:
    again = ("build", signed.parent / "model.onnx", *BUILD, "-o", folder, "--json", "--sign-key")
    assert json.loads(trtq(*again, keys("private")).stdout)["reused"] == ["everything"]
    assert json.loads(trtq(*again, keys("other-private")).stdout)["reused"] == []
    assert trtq("verify", folder, "--key", keys("other"), "-q").exit_code == 0
