"""How likely language models find a text: windows over its tokens, with a cache and without."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import trtq
from hypothesis import given
from hypothesis import strategies as st

from trtq.errors import DataError, ModelError, UsageError
from trtq.pipeline.compare import compare_reading
from trtq.pipeline.judge.windows import compare_texts, slide

_PLAIN = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[N, {length}] input_ids) => (float[N, {length}, {size}] logits) {{
    sums = CumSum (input_ids, one) logits = Gather (table, sums)
}}"""
_CACHED = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[N, {length}] input_ids, int64[N, T] attention_mask, float[N, 1, P, 1] past_0)
=> (float[N, {length}, 16] logits, float[N, 1, Q, 1] present_0) {{
    new = Cast <to = 1> (input_ids) four = Unsqueeze (new, axes)
    present_0 = Concat <axis = 2> (past_0, four) before = ReduceSum <keepdims = 0> (past_0, all)
    sums = CumSum (new, one) b = Unsqueeze (before, one1) total = Add (sums, b)
    places = Cast <to = 7> (total) logits = Gather (table, places)
}}"""
_LAST = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[N, S] input_ids) => (float[N, 1, 16] logits) {
    sums = CumSum (input_ids, one) last = Slice (sums, from, to, one1) logits = Gather (table, last)
}"""
TABLE = np.random.default_rng(0).standard_normal((1024, 16)).astype(np.float32)
TEXTS = [np.random.default_rng(1).integers(0, 16, count).tolist() for count in (50, 1, 7, 18)]


def write(path: Path, text: str, table: np.ndarray = TABLE) -> Path:
    """Writes a model whose logits are the row of the table at the sum of all tokens that it sees."""
    model = onnx.parser.parse_model(text)
    arrays = {"one": np.array(1), "one1": np.array([1]), "axes": np.array([1, 3]), "all": np.array([1, 2, 3])}
    arrays |= {"from": np.array([-1]), "to": np.array([4096])}
    read = {name for node in model.graph.node for name in node.input}
    for name, values in {**arrays, "table": table}.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


def find_perplexity(window: int, stride: int, table: np.ndarray = TABLE) -> float:
    """Returns the perplexity of the texts, token by token."""
    surprise = []
    for text in TEXTS:
        for place in range(1, len(text)):
            start = -(-max(place + 1 - window, 0) // stride) * stride
            scores = table[sum(text[start:place])].astype(np.float64)
            surprise.append(np.log(np.exp(scores).sum()) - scores[text[place]])
    return math.exp(np.mean(surprise))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(2, 12), st.data())
def test_every_token_but_the_first_is_predicted_once(
    lengths: list[int], window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    texts = [list(range(100 * index, 100 * index + length)) for index, length in enumerate(lengths)]
    predicted: list[int] = []
    try:
        for item in slide(texts, window, stride):
            assert len(item.tokens) <= window
            assert item.first in (0, window - stride - 1)
            predicted += item.tokens[item.first + 1 :].tolist()
    except DataError:
        assert max(lengths) == 1
    assert predicted == [token for text in texts for token in text[1:]]


@pytest.mark.parametrize(("window", "stride"), [(8, 3), (8, 7), (64, 32)])
@pytest.mark.parametrize("length", ["S", 1])
def test_the_perplexity_is_that_of_all_tokens_with_and_without_a_cache(
    tmp_path: Path, window: int, stride: int, length: str | int
) -> None:
    table = TABLE + TABLE[::-1]
    plain = write(tmp_path / "plain.onnx", _PLAIN.format(length="S", size=16))
    cached = write(tmp_path / "cached.onnx", _CACHED.format(length=length), table)
    found = compare_texts(("a", plain), ("b", cached), slide(TEXTS, window, stride), stride)
    assert found.reference_perplexity == pytest.approx(find_perplexity(window, stride), rel=1e-5)
    assert found.perplexity == pytest.approx(find_perplexity(window, stride, table), rel=1e-5)
    assert (found.spans[0].first, found.spans[-1].last) == (0, min(window, 50) - 2)
    again = compare_texts(("b", cached), ("a", plain), slide(TEXTS, window, stride), stride)
    assert again.perplexity == pytest.approx(found.reference_perplexity, rel=1e-6)


def test_texts_are_compared_on_the_command_line(tmp_path: Path) -> None:
    model = write(tmp_path / "a.onnx", _PLAIN.format(length=8, size=16))
    (tmp_path / "t.txt").write_text("\n".join(" ".join(map(str, text)) for text in TEXTS))
    command = ("compare", model, model, "--token-ids", tmp_path / "t.txt", "--window", 8)
    told = f"perplexity {find_perplexity(8, 4):.4g} ({model} again), {find_perplexity(8, 4):.4g} ({model})"
    assert told in trtq(*command).stdout
    document = json.loads(trtq(*command, "--json", "-q").stdout)
    assert (document["output"], document["kl_nats"], document["top1"]) == ("logits", 0, 1)
    result = trtq(*command, "--min-cosine", 0.5)
    assert (
        result.stderr
        == "error: --min-cosine has no effect with --token-ids: tokens are shown, not judged on data\n"
    )
    result = trtq("compare", model, model, "--stride", 4)
    assert result.stderr == "error: --window and --stride are for --token-ids; give it, or leave them out\n"
    with pytest.raises(
        ModelError, match=r"'input_ids' has 8 places, and 9 tokens are too many; .* or --window"
    ):
        compare_reading(model, model, tmp_path / "t.txt", window=9)


def test_windows_that_leave_tokens_out_are_refused() -> None:
    with pytest.raises(
        UsageError, match="--stride is 1 to 7 for --window 8, so that all tokens are predicted"
    ):
        slide([[1, 2]], 8, 8)
    with pytest.raises(DataError, match="no text has two tokens or more, so none can be predicted"):
        slide([[1], [2]], 8, 4)


def test_models_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    reference = write(tmp_path / "a.onnx", _PLAIN.format(length="S", size=16))
    candidate = write(tmp_path / "b.onnx", _PLAIN.format(length="S", size=12), TABLE[:, :12])
    last, windows = write(tmp_path / "c.onnx", _LAST), slide([[1, 2]], 8, 4)
    with pytest.raises(ModelError, match=r"b\.onnx has a vocabulary of 12 tokens, and .*a\.onnx one of 16"):
        compare_texts(("a", reference), ("b", candidate), windows, 4)
    with pytest.raises(DataError, match=r"window 1 has the token 16, and the vocabulary of .* ends at 15"):
        compare_texts(("a", reference), ("b", reference), slide([[1, 16]], 8, 4), 4)
    with pytest.raises(
        ModelError, match="output 'logits' has the logits of the last token alone; export the"
    ):
        compare_texts(("a", last), ("b", last), windows, 4)
