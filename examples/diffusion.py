"""A diffusion transformer on handwritten digits: ranges from all time steps, and from the first alone.

    python examples/diffusion.py             # needs: pip install 'trtq[export]'

Trains a small DiT (arXiv 2212.09748) as a rectified flow (arXiv 2209.03003): from a noisy picture, the time
and the digit that is wanted, it says in which direction the digit lies. A sampler asks it once for each time
step, and what its layers see changes from step to step. Keeps the inputs of all steps while digits are drawn,
builds INT8 from all steps and from the first alone, and draws the same digits with each model. Prints how
near the directions and the pictures come to those of the float model. The folder then holds the model with
its settings, the data, both builds, and the pictures (drawn.npz).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import trtq
from trtq.models.demo import load_digits
from trtq.models.export import export
from trtq.models.session import open_session, run

WIDTH, DEPTH, HEADS, PATCH, SIDE = 48, 2, 4, 2, 8
TOKENS, DIGITS, BANDS = (SIDE // PATCH) ** 2, 10, 32
TRAINING_STEPS, BATCH, RATE = 1500, 64, 3e-3
TIME_STEPS = 20
DRAWN = 32
Floats = NDArray[np.float32]
Arrays = dict[str, Any]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns tokens, shape (N, T, C), scaled and shifted as their picture is conditioned, shape (N, C)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """Attention and a projection, each behind a norm that the condition moves (adaLN-Zero)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.condition = nn.Linear(WIDTH, 6 * WIDTH)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns the tokens, shape (N, T, C)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.condition(condition).chunk(6, dim=-1)
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.qkv(modulate(self.norm1(x), shift1, scale1)).chunk(3, dim=-1)
        )
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate1[:, None] * self.out(attended)
        hidden = functional.gelu(self.up(modulate(self.norm2(x), shift2, scale2)))
        return x + gate2[:, None] * self.down(hidden)


class DiT(nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """The whole; its first and last layers have the names that diffusers gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.patch_embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.time_embed = nn.Sequential(nn.Linear(2 * BANDS, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.digit_embed = nn.Embedding(DIGITS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.norm_out = nn.Linear(WIDTH, 2 * WIDTH)
        self.proj_out = nn.Linear(WIDTH, PATCH * PATCH)
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, np.log(1000), BANDS)))

    def forward(self, sample: Tensor, timestep: Tensor, digit: Tensor) -> Tensor:
        """Returns the direction, shape (N, 1, 8, 8).

        Args:
            sample: float32, shape (N, 1, 8, 8).
            timestep: float32 from 1 (noise) to 0 (a digit), shape (N,).
            digit: int64, shape (N,).
        """
        angles = timestep[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        condition = functional.silu(self.time_embed(waves) + self.digit_embed(digit))
        x = self.patch_embed(sample).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.norm_out(condition).chunk(2, dim=-1)
        patches = self.proj_out(modulate(self.norm(x), shift, scale))
        rows = patches.unflatten(1, (SIDE // PATCH, SIDE // PATCH)).unflatten(-1, (PATCH, PATCH))
        return rows.transpose(2, 3).flatten(3).flatten(1, 2).unsqueeze(1)


def train(model: DiT, steps: int) -> float:
    """Returns the mean squared error of the last directions; trains in place."""
    images, labels, parts = load_digits()
    known = parts["training"]
    digits, wanted = torch.from_numpy(2 * images[known] - 1), torch.from_numpy(labels[known])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(digits), (BATCH,))
        noise, time = torch.randn(BATCH, 1, SIDE, SIDE), torch.rand(BATCH)
        sample = torch.lerp(digits[chosen], noise, time[:, None, None, None])
        loss = functional.mse_loss(model(sample, time, wanted[chosen]), noise - digits[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-50:]))


def write_model(model: DiT, path: Path) -> None:
    """Writes the ONNX file, and the settings of a diffusion transformer beside it."""
    shapes = torch.zeros(2, 1, SIDE, SIDE), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    export(model, shapes, path, input_names=["sample", "timestep", "digit"], output_names=["direction"])
    path.with_suffix(".toml").write_text(trtq.init(path, preset="diffusion").text)


def draw(path: Path, noise: Floats, digits: NDArray[np.int64]) -> tuple[Floats, Arrays]:
    """Returns the digits that a model draws, and its inputs at all time steps.

    Args:
        path: The ONNX file.
        noise: What is begun with, float32, shape (N, 1, 8, 8).
        digits: What is wanted, shape (N,).

    Returns:
        float32, shape (N, 1, 8, 8); and arrays with the samples of one step behind those of the step before.
    """
    session, sample, seen = open_session(path, optimize=False), noise, []
    for step in range(TIME_STEPS):
        time = np.full(len(noise), 1 - step / TIME_STEPS, np.float32)
        feed: Arrays = {"sample": sample, "timestep": time, "digit": digits}
        seen.append(feed)
        direction: Floats = run(session, ["direction"], feed)[0]
        sample = sample - direction / np.float32(TIME_STEPS)
    return sample, {name: np.concatenate([feed[name] for feed in seen]) for name in seen[0]}


def mix(arrays: Arrays) -> Arrays:
    """Returns the samples in random order: whoever takes the first of them takes all time steps."""
    order = np.random.default_rng(0).permutation(len(arrays["timestep"]))
    return {name: array[order] for name, array in arrays.items()}


def measure_db(exact: Floats, other: Floats) -> float:
    """Returns the ratio of signal to noise in dB."""
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - other).sum()))


def compare(folder: Path, steps: int) -> None:
    """Prints how near directions and pictures come to the float ones, in dB, by what calibrated the model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums of several threads would train another net on each machine
    model = DiT()
    print(f"trained: {train(model, steps):.3f} mean squared error")
    path = folder / "model.onnx"
    write_model(model, path)

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2 * DRAWN, 1, SIDE, SIDE)).astype(np.float32)
    digits = np.arange(2 * DRAWN) % DIGITS
    _, seen = draw(path, noise[:DRAWN], digits[:DRAWN])
    pictures, other = draw(path, noise[DRAWN:], digits[DRAWN:])
    first = {name: array[:DRAWN] for name, array in seen.items()}
    np.savez(folder / "evaluation.npz", **mix(other))
    drawn: Arrays = {"float": pictures}
    for name, data in {"all steps": mix(seen), "first step": first}.items():
        word = name.replace(" ", "-")
        np.savez(folder / f"{word}.npz", **data)
        report = trtq.build(
            path, folder / f"{word}.npz", eval_data=folder / "evaluation.npz", backend="onnxruntime",
            int8=True, output=folder / f"{word}.trtq",
        )  # fmt: skip
        quantized = folder / f"{word}.trtq" / "model.int8.onnx"
        drawn[name], _ = draw(quantized, noise[DRAWN:], digits[DRAWN:])
        exact, ours = (
            run(open_session(each, optimize=False), ["direction"], other)[0] for each in (path, quantized)
        )
        steps_db = [
            measure_db(*pair)
            for pair in zip(np.split(exact, TIME_STEPS), np.split(ours, TIME_STEPS), strict=True)
        ]
        print(
            f"{name}: {report.verdict}; directions {measure_db(exact, ours):.1f} dB, "
            f"step by step {' '.join(f'{each:.0f}' for each in steps_db)}; "
            f"pictures {measure_db(pictures, drawn[name]):.1f} dB"
        )
    np.savez(folder / "drawn.npz", **drawn)


def main() -> None:
    """Trains, calibrates both ways, and prints what became of the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, help="Folder for the files.  [default: a temporary one]")
    parser.add_argument("--steps", type=int, default=TRAINING_STEPS, help="Of training.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        compare(folder, given.steps)


if __name__ == "__main__":
    main()
