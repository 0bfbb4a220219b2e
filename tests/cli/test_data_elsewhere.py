"""Whole commands on data that lies elsewhere give what they give on the same data here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import trtq
from web_site import Site

from trtq.calibrators.statistics_file import read_statistics

ENTROPY = ("--calib-samples", "32", "--calib-method", "entropy", "--repair", "none", "-q")


def ranges_of(model: Path, output: Path, data: object) -> bytes:
    """Returns the ranges by some data, without its name."""
    result = trtq("calibrate", model, *ENTROPY, "--calib-data", data, "-o", output)
    assert result.exit_code == 0, result.stderr
    return output.read_bytes().replace(str(data).encode(), b"DATA")


def test_data_on_s3_gives_the_ranges_of_the_same_file_here(s3: Any, model: Path, tmp_path: Path) -> None:
    near = model.parent / "calibration.npz"
    s3.put(str(near), "data/demo/calibration.npz")
    far = ranges_of(model, tmp_path / "far.json", "s3://data/demo/calibration.npz")
    assert far == ranges_of(model, tmp_path / "near.json", near)


def test_an_unchanged_build_by_http_reads_no_data_again(site: Site, model: Path, tmp_path: Path) -> None:
    site.files["/c.npz"] = (model.parent / "evaluation.npz").read_bytes()
    secret = f"{site.address.replace('//', '//me:hush@')}/c.npz?X-Signature=hush"
    data = ("--calib-data", secret, "--eval-data", secret, "--labels", "labels")
    build = ("build", model, "--int8", "--backend", "onnxruntime", *data, "--output", tmp_path / "out")
    first = trtq(*build)
    assert first.exit_code == 0, first.stderr
    asked = [request for request in site.requests if request[0] == "GET"]
    second = trtq(*build)
    assert "nothing has changed" in second.stderr + second.stdout
    again = [request for request in site.requests if request[0] == "GET"][len(asked) :]
    assert len(again) <= 4  # the directory of the archive, of both data sets
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"hush" not in written + (first.output + second.output).encode()
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["model"]
    assert settings["calibration"]["data"] == settings["evaluation"]["data"] == f"{site.address}/c.npz"


@pytest.mark.slow
def test_parts_of_files_on_s3_make_up_the_whole(s3: Any, model: Path, tmp_path: Path) -> None:
    import numpy as np

    with np.load(model.parent / "calibration.npz") as arrays:
        image = arrays["image"]
    for index in range(3):
        with s3.open(f"data/parts/{index}.npz", "wb") as stream:
            np.savez(stream, image=image[8 * index : 8 * index + 8])
    whole, parts = tmp_path / "whole.npz", [tmp_path / f"{part}.npz" for part in (1, 2)]
    common = ("calibrate", model, "--calib-data", "s3://data/parts", "-q", "--save-statistics")
    result = trtq(*common, whole, "-o", tmp_path / "r.json", "--calib-method", "minmax", "--repair", "none")
    assert result.exit_code == 0, result.stderr
    for index, part in enumerate(parts, 1):
        assert trtq(*common, part, "--shard", f"{index}/2").exit_code == 0
    assert trtq("merge-statistics", *parts, "-o", tmp_path / "m.npz", "-q").exit_code == 0
    merged, at_once = read_statistics(tmp_path / "m.npz"), read_statistics(whole)
    assert merged.histograms == at_once.histograms
    assert merged.num_samples == at_once.num_samples == 24


def test_data_that_cannot_be_read_ends_with_2_and_is_named(s3: Any, model: Path, tmp_path: Path) -> None:
    result = trtq("calibrate", model, "--calib-data", "s3://data/gone.npz", "-o", tmp_path / "r.json")
    assert result.exit_code == 2
    assert result.stderr.endswith("error: there is no s3://data/gone.npz; check the address\n")
