"""What two language models write: greedy, with a cache and without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import trtq

from trtq.errors import DataError, ModelError
from trtq.pipeline.compare import compare_writing
from trtq.pipeline.judge.generate import compare_generated, read_prompts

_VOCABULARY = 16
_LAST = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[N, S] input_ids, int64[N, S] token_type_ids) => (float[N, 1, V] logits) {
    kinds = ReduceSum <keepdims = 0> (token_type_ids, one1) sums = ReduceSum (input_ids, one1)
    k = Unsqueeze (kinds, one1) total = Add (sums, k) logits = Gather (table, total)
}"""
_LATE_BATCH = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[N, {length}] input_ids, float[2, N, P, 1] past_0)
=> (float[N, {length}, 16] logits, float[2, N, Q, 1] present_0) {{
    new = Cast <to = 1> (input_ids) four = Unsqueeze (new, sides) both = Concat <axis = 0> (four, four)
    present_0 = Concat <axis = 2> (past_0, both) before = ReduceMean <keepdims = 0> (past_0, zero1)
    b = ReduceSum <keepdims = 0> (before, ends) sums = CumSum (new, one) c = Unsqueeze (b, one1)
    total = Add (sums, c) places = Cast <to = 7> (total) logits = Gather (table, places)
}}"""
_PLAIN = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[N, {length}] input_ids, int64[N, {length}] attention_mask) => (float[N, {length}, 16] logits) {{
    m = Cast <to = 7> (attention_mask) kept = Mul (input_ids, m)
    sums = CumSum (kept, one) logits = Gather (table, sums)
}}"""
_CACHED = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[N, S] input_ids, int64[N, T] attention_mask, float[N, 1, P, 1] past_0)
=> (float[N, S, 16] logits, float[N, 1, Q, 1] present_0) {
    new = Cast <to = 1> (input_ids) four = Unsqueeze (new, axes)
    present_0 = Concat <axis = 2> (past_0, four) before = ReduceSum <keepdims = 0> (past_0, all)
    sums = CumSum (new, one) b = Unsqueeze (before, one1) total = Add (sums, b)
    places = Cast <to = 7> (total) logits = Gather (table, places)
}"""


def _write(path: Path, text: str, *, changed: int | None = None) -> Path:
    """Writes a model whose next token is the sum of all tokens plus 1, modulo 16; or 3 for one sum."""
    model = onnx.parser.parse_model(text)
    table = np.eye(_VOCABULARY, dtype=np.float32)[(np.arange(4096) + 1) % _VOCABULARY]
    if changed is not None:
        table[changed] = np.eye(_VOCABULARY, dtype=np.float32)[3]
    arrays = {
        "sides": np.array([0, 3]),
        "ends": np.array([1, 2]),
        "zero1": np.array([0]),
        "one": np.array(1),
        "one1": np.array([1]),
        "axes": np.array([1, 3]),
        "all": np.array([1, 2, 3]),
    }
    read = {name for node in model.graph.node for name in node.input}
    for name, values in {**arrays, "table": table}.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


def _write_slowly(prompt: list[int], count: int) -> tuple[int, ...]:
    tokens = [*prompt]
    for _ in range(count):
        tokens.append((sum(tokens) + 1) % _VOCABULARY)
    return tuple(tokens[len(prompt) :])


@pytest.mark.parametrize(
    "text",
    [
        _PLAIN.format(length="S"),
        _PLAIN.format(length=12),
        _CACHED,
        _LAST,
        _LATE_BATCH.format(length="S"),
        _LATE_BATCH.format(length=1),
    ],
)
def test_tokens_are_written_one_behind_the_other(tmp_path: Path, text: str) -> None:
    model, prompts = _write(tmp_path / "m.onnx", text), [[1, 2, 3], [5]]
    for found, prompt in zip(compare_generated(model, model, prompts, 6), prompts, strict=True):
        assert found.prompt == tuple(prompt)
        assert found.reference == found.candidate == _write_slowly(prompt, 6)
        assert found.diverges_at is None


def test_the_first_token_that_differs_is_told(tmp_path: Path) -> None:
    reference = _write(tmp_path / "a.onnx", _CACHED)
    candidate = _write(tmp_path / "b.onnx", _PLAIN.format(length="S"), changed=1 + 2 + 4)
    (tmp_path / "prompts.txt").write_text("1, 2\n\n3 3\n")
    first, second = compare_writing(reference, candidate, tmp_path / "prompts.txt", 4)
    assert (first.reference, first.candidate[:2]) == ((4, 8, 0, 0), (4, 3))
    assert (first.diverges_at, second.diverges_at) == (1, None)
    arguments = ("compare", reference, candidate, "--generate", 4, "--prompt-ids", tmp_path / "prompts.txt")
    lines = trtq(*arguments).stdout.splitlines()
    assert lines[0] == "prompt 1, 2 tokens: diverges at token 2 of 4"
    assert lines[1] == "  a.onnx  4 8 0 0"
    assert lines[3] == "prompt 2, 2 tokens: the same 4 tokens"
    assert lines[-1] == "on average, the first 2.5 of 4 tokens are the same"
    assert [item["diverges_at"] for item in json.loads(trtq(*arguments, "--json").stdout)] == [1, None]


def test_prompts_are_lines_of_numbers_or_rows_of_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([[1, 2], [3, 4]]))
    (tmp_path / "p.txt").write_text("1 2\n3,4\n")
    assert read_prompts(tmp_path / "p.npy") == read_prompts(tmp_path / "p.txt") == [[1, 2], [3, 4]]


@pytest.mark.parametrize("content", ["", "\n\n", "-1 2", "1 2.5", "one two"])
def test_what_is_no_prompt_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(DataError, match=r"p.txt (holds no prompts; write|cannot be read as)"):
        read_prompts(tmp_path / "p.txt")


def test_a_mask_is_no_prompt(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([[True, False]]))
    with pytest.raises(DataError, match=r"p.npy holds no prompts; write"):
        read_prompts(tmp_path / "p.npy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "g (int64[N, S] input_ids, float[N, S] noise) => (float[N, S, 1] logits) "
            "{ a = Cast <to = 1> (input_ids) b = Add (a, noise) logits = Unsqueeze (b, two) }",
            "input 'noise' is neither tokens, their positions or types, a mask nor a cache;",
        ),
        (
            "g (int64[N, S] input_ids) => (float[N, S] logits) { logits = Cast <to = 1> (input_ids) }",
            "output 'logits' has 2 axes; logits have 3: batch, sequence, vocabulary",
        ),
        (
            "g (int64[N, 3] input_ids) => (float[N, 3, 1] logits) "
            "{ a = Cast <to = 1> (input_ids) logits = Unsqueeze (a, two) }",
            "input 'input_ids' has 3 places, and 4 tokens are too many; use shorter prompts",
        ),
        (
            "g (int64[N, S] input_ids, float[N, P, 2] past) => (float[N, S, 1] y) "
            "{ a = Cast <to = 1> (input_ids) s = ReduceSum <keepdims = 0> (past) b = Add (a, s) "
            "y = Unsqueeze (b, two) }",
            "has the cache input 'past', but no such output",
        ),
        (
            "g (int64[N, S] input_ids) => (float[N, S, 1] y, float[1] z) "
            "{ a = Cast <to = 1> (input_ids) y = Unsqueeze (a, two) z = Cast <to = 1> (two) }",
            "a language model has logits, and here nothing of y, z is called so",
        ),
        (
            "g (int64[N, S] input_ids, int64[N, S] decoder_input_ids) => (float[N, S, 1] logits) "
            "{ b = Add (input_ids, decoder_input_ids) a = Cast <to = 1> (b) logits = Unsqueeze (a, two) }",
            "has tokens as input, and here input_ids and decoder_input_ids of input_ids, ",
        ),
        (
            "g (int64[N, S] input_ids, float[N, 4, 2] past) => (float[N, S, 1] logits, "
            "float[N, 4, 2] present) { a = Cast <to = 1> (input_ids) "
            "logits = Unsqueeze (a, two) present = Identity (past) }",
            (
                r"cache 'past' is \(N, 4, 2\), and needs one dynamic axis for positions, and no further "
                r"one than"
            ),
        ),
        (
            "g (int64[N, S] input_ids, float[N, P, 1] past) => (float[N, S, 1] logits, "
            "float[N, S, 1] present) { a = Cast <to = 1> (input_ids) "
            "logits = Unsqueeze (a, two) present = Identity (logits) }",
            "output 'present' holds 1 positions behind 4 tokens; tokens are written with caches that",
        ),
        (
            "g (int64[N, 4] input_ids, float[N, P, 1] past) => (float[N, 4, 1] logits, "
            "float[N, Q, 1] present) { a = Cast <to = 1> (input_ids) "
            "logits = Unsqueeze (a, two) present = Concat <axis = 1> (past, logits) }",
            "input 'input_ids' has 4 places, and what fills them up would stay in the cache",
        ),
        (
            "g (int64[N, 4] input_ids) => (float[N, 1, 1] logits) "
            "{ b = ReduceMax (input_ids, one1) a = Cast <to = 1> (b) logits = Unsqueeze (a, two) }",
            "output 'logits' has 1 places for 4 tokens; logits are of all, or of the last one where none is",
        ),
    ],
)
def test_what_writes_no_tokens_is_refused(tmp_path: Path, text: str, message: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, number in {"two": 2, "one1": 1}.items():
        if name in text:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number]), name))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=message):
        compare_generated(tmp_path / "m.onnx", tmp_path / "m.onnx", [[0, 0, 0]], 3)


def test_prompts_and_a_count_go_together(tmp_path: Path) -> None:
    result = trtq("compare", "a.onnx", "b.onnx", "--generate", 4)
    assert result.exit_code == 2
    assert result.stderr == "error: --generate and --prompt-ids go together; give both, or neither\n"


def test_logits_that_are_not_finite_choose_no_token(tmp_path: Path) -> None:
    reference = _write(tmp_path / "a.onnx", _PLAIN.format(length="S"))
    broken = onnx.load(_write(tmp_path / "b.onnx", _PLAIN.format(length="S")))
    table = next(item for item in broken.graph.initializer if item.name == "table")
    table.CopyFrom(onnx.numpy_helper.from_array(np.full((4096, _VOCABULARY), np.nan, np.float32), "table"))
    onnx.save(broken, tmp_path / "b.onnx")
    with pytest.raises(ModelError, match=r"b\.onnx: the logits of token 3 are not finite, so none is"):
        compare_generated(reference, tmp_path / "b.onnx", [[1, 2]], 4)


def test_what_reads_data_or_judges_is_refused_with_generated_tokens(tmp_path: Path) -> None:
    model = _write(tmp_path / "m.onnx", _CACHED)
    (tmp_path / "p.txt").write_text("1 2")
    command = ("compare", str(model), str(model), "--generate", "2", "--prompt-ids", str(tmp_path / "p.txt"))
    for option, value in (("--data", "x.npz"), ("--min-cosine", "0.5"), ("--junit", "j.xml")):
        result = trtq(*command, option, value)
        assert result.exit_code == 2
        assert f"{option} has no effect with --generate: tokens are shown, not judged" in result.stderr


def test_vocabularies_of_several_sizes_are_refused(tmp_path: Path) -> None:
    reference = _write(tmp_path / "a.onnx", _LAST)
    model = onnx.load(reference)
    table = next(item for item in model.graph.initializer if item.name == "table")
    wider = np.pad(onnx.numpy_helper.to_array(table), ((0, 0), (0, 4)))
    table.CopyFrom(onnx.numpy_helper.from_array(wider, "table"))
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(
        ModelError, match=r"b\.onnx has a vocabulary of 20 tokens, and .*a\.onnx one of 16: the"
    ):
        compare_generated(reference, tmp_path / "b.onnx", [[1]], 2)


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    model = _write(tmp_path / "m.onnx", _CACHED)
    with pytest.raises(
        DataError, match=r"prompt 2 has the token 16, and the vocabulary of .*m\.onnx ends at 15"
    ):
        compare_generated(model, model, [[15], [3, 16]], 2)


def test_settings_name_libraries_of_operators_and_quiet_says_nothing(tmp_path: Path) -> None:
    model = _write(tmp_path / "m.onnx", _CACHED)
    (tmp_path / "p.txt").write_text("1 2")
    command = ("compare", str(model), str(model), "--generate", "2", "--prompt-ids", str(tmp_path / "p.txt"))
    assert trtq(*command, "-q").output == ""
    missing = trtq(*command, "--ort-custom-ops", "none.so")
    assert (missing.exit_code, missing.stderr) == (
        2, "error: there is no library none.so; --ort-custom-ops takes the path of a shared library\n"
    )  # fmt: skip
    settings = tmp_path / "m.toml"
    settings.write_text('[operators]\nort_custom_ops = ["none.so"]\n[evaluation]\ndata = "a.py:load"\n')
    assert "names the script" in (found := trtq(*command)).stderr
    assert "none.so as [operators] ort_custom_ops, and is not trusted" in found.stderr
    for named in (("--trust",), ("--spec", str(settings))):
        assert "there is no library" in trtq(*command, *named).stderr
