"""Trains the small digit classifier that `trtq` ships as its demo: `python -m trtq.models.train_demo`.

The images are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998,
UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0), as scikit-learn carries them.
"""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.files import write_atomically
from trtq.models.export import export

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

NUM_CALIBRATION = 512
NUM_EVALUATION = 600
EPOCHS = 40
SEED = 0


def main(folder: Path = Path(__file__).parent / "assets") -> None:
    """Trains the model and writes `digits.onnx` and `digits.npz` into the folder; prints what came out."""
    import numpy as np

    torch = lazy.require("torch", "export", "training the demo model")
    datasets = lazy.require("sklearn.datasets", "export", "training the demo model")
    # Fixed, because the order of the sums depends on it, and the same files should come out again.
    torch.set_num_threads(2)

    digits = datasets.load_digits()
    images, labels = digits.images.astype("uint8"), digits.target.astype("int64")
    parts = split_data(labels)
    start = time.monotonic()
    network = train(images[parts["training"]], labels[parts["training"]], epochs=EPOCHS)
    seconds = time.monotonic() - start
    held_out = parts["evaluation"]
    with torch.no_grad():
        predicted = network(to_batch(images[held_out])).argmax(1).numpy()
    accuracy = np.mean(predicted == labels[held_out])
    example, path = [to_batch(images[held_out[:2]])], folder / "digits.onnx"
    difference = export(network, example, path, input_names=["image"], output_names=["logits"])
    archive = io.BytesIO()
    arrays: dict[str, Any] = {"images": images, "labels": labels, **parts}
    np.savez_compressed(archive, **arrays)
    write_atomically(folder / "digits.npz", archive.getvalue())
    print(f"trained for {EPOCHS} epochs on {len(parts['training'])} images in {seconds:.0f} s")
    print(f"accuracy on {len(held_out)} images never trained on: {accuracy:.2%}")
    print(f"PyTorch and ONNX Runtime differ by {difference:.1g} of the output's range")


def split_data(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Returns the sorted indices of each part of the data; all hold the classes in the same proportion.

    `evaluation` and `training` share no image; `calibration` is a part of `training`.
    """
    import numpy as np

    split = lazy.require("sklearn.model_selection", "export", "training the demo model").train_test_split
    indices = np.arange(len(labels))
    training, evaluation = split(indices, test_size=NUM_EVALUATION, stratify=labels, random_state=SEED)
    calibration, _ = split(training, train_size=NUM_CALIBRATION, stratify=labels[training], random_state=SEED)
    parts = {"training": training, "calibration": calibration, "evaluation": evaluation}
    return {name: np.sort(part) for name, part in parts.items()}


def to_batch(images: NDArray[np.uint8]) -> torch.Tensor:
    """Returns images (uint8 in 0..16, shape (N, 8, 8)) as float32 in [0, 1], shape (N, 1, 8, 8)."""
    import torch

    return torch.from_numpy(images[:, None].astype("float32") / 16)


def build_network() -> torch.nn.Module:
    """Returns the untrained network: float32 images, shape (batch, 1, 8, 8), to logits, shape (batch, 10).

    It is small, and has what quantization meets in larger ones: residual additions, depthwise convolutions,
    ReLU6, a concatenation of branches, pooling and a fully connected head.
    """
    import torch
    from torch import nn

    def conv(
        inputs: int, outputs: int, size: int, *, groups: int = 1, activation: Any = nn.ReLU
    ) -> nn.Sequential:
        layers = OrderedDict(
            conv=nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False),
            norm=nn.BatchNorm2d(outputs),
        )
        if activation is not None:
            layers["act"] = activation()
        return nn.Sequential(layers)

    def separable(inputs: int, outputs: int) -> nn.Sequential:
        depthwise = conv(inputs, inputs, 3, groups=inputs, activation=nn.ReLU6)
        return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=conv(inputs, outputs, 1)))

    class Residual(nn.Module):  # type: ignore[misc]  # the untyped base is PyTorch's
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.first = conv(channels, channels, 3)
            self.second = conv(channels, channels, 3, activation=None)
            self.act = nn.ReLU()

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.act(value + self.second(self.first(value)))

    class Branches(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.narrow = conv(inputs, outputs // 2, 1)
            self.wide = separable(inputs, outputs // 2)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.narrow(value), self.wide(value)], dim=1)

    return nn.Sequential(
        OrderedDict(
            stem=conv(1, 32, 3),
            block1=Residual(32),
            pool=nn.MaxPool2d(2),
            branches=Branches(32, 64),
            block2=Residual(64),
            mix=separable(64, 96),
            gap=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(96, 10),
        )
    )


def train(
    images: NDArray[np.uint8], labels: NDArray[np.int64], *, epochs: int = EPOCHS, seed: int = SEED
) -> torch.nn.Module:
    """Returns a trained network in evaluation mode; the same arguments give the same weights.

    Images are uint8 in 0..16, shape (N, 8, 8), each time moved by up to one pixel; labels are int64 in 0..9.
    """
    import torch

    batch_size = 64
    inputs, targets = to_batch(images), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(seed)
        network = build_network()
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
        steps = epochs * -(-len(inputs) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
        network.train()
        for _ in range(epochs):
            for chosen in torch.randperm(len(inputs)).split(batch_size):
                logits = network(_shift(inputs[chosen]))
                loss = torch.nn.functional.cross_entropy(logits, targets[chosen], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return network.eval()


def _shift(images: torch.Tensor) -> torch.Tensor:
    """Returns each image moved by -1, 0 or 1 pixel along both axes, with zeros coming in."""
    import torch

    padded = torch.nn.functional.pad(images[:, 0], (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(images), 1)) + torch.arange(8)
    sample = torch.arange(len(images))[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]][:, None]


if __name__ == "__main__":
    main()
