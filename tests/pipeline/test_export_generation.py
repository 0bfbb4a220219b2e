"""A language model of `transformers`, exported with its cache, gives the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from trtq.calibrators.settings import read_spec
from trtq.models.session import open_session, run
from trtq.pipeline.export import ExportOptions, export

transformers = pytest.importorskip("transformers", reason="needs transformers: make test-transformers")
pytestmark = pytest.mark.usefixtures("torchlib_is_read_once")
_LAYERS, _PROMPT, _TOKENS = 2, 7, 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_exported_llama_gives_the_tokens_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    module = transformers.LlamaForCausalLM(config).eval()
    module.save_pretrained(tmp_path / "llama")
    found = export(
        f"hf:{tmp_path / 'llama'}", tmp_path / "d.onnx", options=ExportOptions(task="text-generation")
    )
    assert found.num_compared == 6  # with an empty cache, and of one token, too
    model = onnx.load(found.path)
    assert "lm_head/MatMul" in {node.name for node in model.graph.node}
    assert [item.name for item in model.graph.initializer if 128 in item.dims] == ["lm_head.weight"]  # tied
    spec = read_spec(tmp_path / "d.toml")
    assert [item.max for item in spec.inputs["input_ids"].all] == [(8, 64), (8, 1)]
    prompt = np.random.default_rng(0).integers(0, 128, (2, _PROMPT))
    wanted = module.generate(
        torch.from_numpy(prompt), max_new_tokens=_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    np.testing.assert_array_equal(_generate(found.path, prompt), wanted.numpy())


def _generate(path: Path, tokens: np.ndarray) -> np.ndarray:
    """Returns the prompt with the most likely tokens after it: all of it at once, then one at a time."""
    session, new = open_session(path, optimize=False), tokens
    parts = [f"{layer}.{part}" for layer in range(_LAYERS) for part in ("key", "value")]
    past = {f"past_key_values.{part}": np.zeros((2, 2, 0, 16), np.float32) for part in parts}
    for _ in range(_TOKENS):
        seen, length = tokens.shape[1] - new.shape[1], tokens.shape[1]
        feed = {
            "input_ids": new,
            "attention_mask": np.ones((2, length), np.int64),
            "position_ids": np.tile(np.arange(seen, length), (2, 1)),
            **past,
        }
        logits, *caches = run(session, ["logits", *(f"present.{part}" for part in parts)], feed)
        past = dict(zip(past, caches, strict=True))
        new = logits[:, -1].argmax(-1)[:, None]
        tokens = np.concatenate([tokens, new], axis=1)
    return tokens
