"""What a model needs in one precision, or one mixture of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchemePlan:
    """One precision: floats alone, or weights in fewer bits and the rest in FP16.

    Attributes:
        name: Of the format.
        weights_bytes: All constants, with scales.
        engine_bytes: The file: weights, and the code of the kernels.
        activations_bytes: Alive at one time, with inputs and outputs; 0 if not known.
        state_bytes: Of these, inputs and outputs that carry state from run to run, such as a KV cache.
        reserve_bytes: CUDA's own, and the workspace if one is given.
        bits_per_weight: The mean over all float constants.
        fits: Whether the total fits into the GPU's memory; None if that is not given.
    """

    name: str
    weights_bytes: int
    engine_bytes: int
    activations_bytes: int
    state_bytes: int
    reserve_bytes: int
    bits_per_weight: float
    fits: bool | None = None

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.engine_bytes + self.activations_bytes + self.reserve_bytes
