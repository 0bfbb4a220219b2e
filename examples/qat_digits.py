"""Quantization-aware training recovers what PTQ loses: a depthwise net on handwritten digits, in minutes.

    python examples/qat_digits.py            # needs: pip install 'trtq[export]'

Trains a small depthwise-separable net, then gives its channels very unequal ranges: each channel of a
depthwise convolution is multiplied, and the next layer's weight divided, by one number. With ReLU between
them this changes nothing in float. Nets such as MobileNet come out of training like this, and one scale for a
whole activation then leaves the small channels four bits or less, so plain PTQ loses much. Fine-tuning with
fake-quantize lets the weights find values that the grid can hold. Prints the accuracy of the float, PTQ and
QAT models, as their ONNX files compute it.

PTQ here is `--calib-method entropy --repair none`. The default repairs mend this net without training; QAT is
for models where they do not help.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import trtq
from trtq.models import qat
from trtq.models.demo import load_digits
from trtq.models.export import export
from trtq.models.session import open_session, run
from trtq.pipeline.calibrate.qat import amax_by_node

SPREAD = 4  # ranges of channels differ by up to 2 ** 8
EPOCHS_FLOAT, EPOCHS_QAT = 30, 15


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Returns a depthwise and a pointwise convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def network() -> nn.Sequential:
    """Returns the untrained net: float32 images, shape (N, 1, 8, 8), to logits, shape (N, 10)."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        separable(32, 48),
        separable(48, 64, 2),
        separable(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def train(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, epochs: int, rate: float) -> None:
    """Trains in place with AdamW on batches of 64, each picture moved by up to one pixel."""
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            across, down = (int(step) for step in torch.randint(-1, 2, (2,)))
            moved = torch.roll(images[chosen], (across, down), (2, 3))
            loss = nn.functional.cross_entropy(net(moved), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()  # type: ignore[untyped-decorator]
def make_unequal(net: nn.Sequential, spread: int) -> None:
    """Multiplies the channels of each depthwise BatchNorm by many factors; undoes it in the next weight."""
    for block in net:
        if isinstance(block, nn.Sequential) and len(block) == 6:
            norm, pointwise = block[1], block[3]
            factors = (
                2.0 ** torch.linspace(-spread, spread, len(norm.weight))[torch.randperm(len(norm.weight))]
            )
            norm.weight *= factors
            norm.bias *= factors
            pointwise.weight /= factors[None, :, None, None]


def accuracy(model: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of right answers of an ONNX file."""
    logits = run(open_session(model, optimize=False), ["logits"], {"image": images})[0]
    return float(np.mean(logits.argmax(1) == labels))


def main() -> None:
    """Trains, quantizes both ways, and prints what became of the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, help="Folder for the models.  [default: a temporary one]")
    parser.add_argument("--learn", action="store_true", help="Learn the scales of activations, too (LSQ).")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        compare(folder, learn=given.learn)


def compare(folder: Path, *, learn: bool) -> dict[str, float]:
    """Returns the accuracies by model; writes the ONNX files to the folder."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums of several threads would train another net on each machine
    images, labels, parts = load_digits()
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    chosen, held_out = parts["training"], parts["evaluation"]
    net = network()
    train(net, inputs[chosen], targets[chosen], epochs=EPOCHS_FLOAT, rate=0.01)
    make_unequal(net, SPREAD)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    example = [inputs[:2]]
    float_model = folder / "float.onnx"
    export(net, example, float_model, **names)

    data = folder / "calibration.npz"
    np.savez(data, image=images[parts["calibration"]])
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(data), method="entropy"),
        quantization=trtq.QuantizationSpec(repair=("none",)),
    )
    ranges = trtq.calibrate(float_model, spec=spec)
    ptq = trtq.quantize(
        float_model, ranges, folder / "ptq.onnx", spec=spec, target=trtq.Target(high_precision="fp32")
    )

    start = time.monotonic()
    prepared = qat.prepare(net, amax_by_node(float_model, ranges), learn=learn)
    prepared.train()
    train(prepared, inputs[chosen], targets[chosen], epochs=EPOCHS_QAT, rate=0.002)
    seconds = time.monotonic() - start
    qat.export(qat.freeze(prepared), example, folder / "qat.onnx", **names)

    files = {"float": float_model, "PTQ": ptq, "QAT": folder / "qat.onnx"}
    found = {name: accuracy(path, images[held_out], labels[held_out]) for name, path in files.items()}
    for name, share in found.items():
        print(f"{name:5} {share:7.2%}")
    lost = found["float"] - found["PTQ"]
    recovered = (found["QAT"] - found["PTQ"]) / lost if lost > 0 else float("nan")
    print(f"PTQ loses {100 * lost:.1f} points; QAT recovers {recovered:.0%} of them in {seconds:.0f} s")
    return {**found, "recovered": recovered, "seconds": seconds}


if __name__ == "__main__":
    main()
