"""Which inputs of a decoder hold what came before, which outputs continue them, and what their axes count."""

from __future__ import annotations

import pytest

from trtq.pipeline.graph.state import find_batches, find_cache_axes, is_cache, pair_states


@pytest.mark.parametrize(
    "name", ["past_key_values.0.key", "past_k", "cache_k.0", "layer.past_value", "k_cache"]
)
def test_caches_are_known_by_name(name: str) -> None:
    assert is_cache(name, ("N", 8, "P", 64))
    assert not is_cache(name, ("N", "P"))


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "encoder_hidden_states", "repast"])
def test_what_is_called_otherwise_is_no_cache(name: str) -> None:
    assert not is_cache(name, ("N", 8, "P", 64))


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("past_0", "present_0"),
        ("cache_k.3", "new_cache_k.3"),
        ("in_cache_0", "out_cache_0"),
        ("kv_cache_in", "kv_cache_out"),
        ("in_k", "out_k"),
    ],
)
def test_an_output_continues_the_input_of_its_name(past: str, present: str) -> None:
    assert pair_states(["input_ids", past, "past_other"], ["logits", present]) == {past: present}


@pytest.mark.parametrize(
    ("shape", "tokens", "expected"),
    [
        (("N", 8, "P", 64), ("N", "S"), (0, 2, ())),
        (("s0", 8, "s2", 64), ("s0", "s1"), (0, 2, ())),
        ((2, "batch_size", 12, "past_sequence_length", 64), ("batch_size", "S"), (1, 3, ())),
        (("past_len", "batch", 2, 128), ("batch", "S"), (1, 0, ())),
        ((None, 8, None, 64), (None, None), (0, 2, ())),
        ((2, None, 12, None, 64), (None, None), (1, 3, ())),
        (("past_dim0", 8, "past_dim2", 64), ("ids_dim0", "ids_dim1"), (0, 2, ())),
        ((1, 8, None, 64), (1, None), (None, 2, ())),
        ((None, 1, 2, 128), (1, None), (None, 0, ())),
        ((None, 8, 128, 64), (None, None), (0, None, ())),
        (("N", "num_heads", 128, 64), ("N", "S"), (0, None, (1,))),
        (("batch_size_x_num_heads", 64, "past_len"), ("batch_size", "S"), (None, 2, (0,))),
        (("N", "heads", "past_len", 64), ("N", "S"), (0, 2, (1,))),
        (("A", 8, "P", 64), ("N", "S"), (None, None, (0, 2))),
        ((None, None, None, 64), (None, None), (0, None, (1, 2))),
        ((1, 8, 128, 64), (1, None), (None, None, ())),
    ],
)
def test_the_axes_of_a_cache_are_known_by_their_names_or_by_their_order(
    shape: tuple[int | str | None, ...],
    tokens: tuple[int | str | None, ...],
    expected: tuple[int | None, int | None, tuple[int, ...]],
) -> None:
    assert find_cache_axes("past", shape, find_batches([tokens])) == expected


def test_sequences_are_no_batch() -> None:
    assert find_batches([("seq_len", 1), ("S",), (1, "N"), ("N", "S")]) == {"N"}
