"""Tests of training the demo model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from trtq.models import train_demo

pytestmark = pytest.mark.usefixtures("torchlib_is_read_once")

IMAGES = np.random.default_rng(0).integers(0, 17, (20, 8, 8), dtype=np.uint8)
LABELS = np.arange(20) % 10


def test_the_same_seed_gives_the_same_network() -> None:
    first, second = (train_demo.train(IMAGES, LABELS, epochs=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_another_network() -> None:
    first, second = (train_demo.train(IMAGES, LABELS, epochs=1, seed=seed).state_dict() for seed in (0, 1))
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_training_leaves_the_random_numbers_of_the_caller_alone() -> None:
    before = torch.random.get_rng_state()
    train_demo.train(IMAGES, LABELS, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_parts_are_stratified_and_apart() -> None:
    labels = np.arange(1797) % 10
    parts = train_demo.split_data(labels)
    assert {name: len(part) for name, part in parts.items()} == {
        "training": 1197,
        "calibration": 512,
        "evaluation": 600,
    }
    assert not set(parts["training"]) & set(parts["evaluation"])
    assert set(parts["calibration"]) <= set(parts["training"])
    for part in parts.values():
        assert np.ptp(np.bincount(labels[part])) <= 1
    again = train_demo.split_data(labels)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_an_image_becomes_a_sample_between_zero_and_one() -> None:
    batch = train_demo.to_batch(np.full((3, 8, 8), 16, np.uint8))
    assert (batch.shape, batch.dtype) == ((3, 1, 8, 8), torch.float32)
    assert torch.all(batch == 1)


@pytest.mark.slow
def test_the_command_writes_a_model_and_the_data_that_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_demo, "EPOCHS", 1)
    train_demo.main(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.npz", "digits.onnx"]
    onnx.checker.check_model(onnx.load(tmp_path / "digits.onnx"), full_check=True)
    assert "accuracy on 600 images never trained on: " in capsys.readouterr().out
    shipped = Path(train_demo.__file__).parent / "assets" / "digits.npz"
    with np.load(tmp_path / "digits.npz") as made, np.load(shipped) as kept:
        assert made.files == kept.files == ["images", "labels", "training", "calibration", "evaluation"]
        assert all(np.array_equal(made[name], kept[name]) for name in kept.files)
