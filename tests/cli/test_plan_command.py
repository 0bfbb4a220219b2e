"""`trtq plan` by exit code and output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import trtq


@pytest.fixture
def product(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]>g (float[N,256] x) => (float[N,128] y) { y = MatMul (x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((256, 128), np.float32), "w"))
    onnx.save(model, tmp_path / "product.onnx")
    return tmp_path / "product.onnx"


def test_a_number_of_parameters_is_a_table() -> None:
    result = trtq("plan", "--params", "10B", "--gpu-memory", "8GB")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.strip() for line in result.stdout.splitlines()] == [
        "10,000,000,000 parameters  10,000,000,000 weights",
        "",
        "precision   weights   bits each    engine   activations     total   fits",
        "────────────────────────────────────────────────────────────────────────",
        "FP32        40.0 GB       32.00   40.0 GB             -   40.4 GB     no",
        "FP16        20.0 GB       16.00   20.0 GB             -   20.4 GB     no",
        "BF16        20.0 GB       16.00   20.0 GB             -   20.4 GB     no",
        "INT8        10.0 GB        8.00   10.0 GB             -   10.4 GB     no",
        "FP8         10.0 GB        8.00   10.0 GB             -   10.4 GB     no",
        "INT4         5.3 GB        4.25    5.3 GB             -    5.7 GB    yes",
        "NF4          5.3 GB        4.25    5.3 GB             -    5.7 GB    yes",
        "",
        "total: engine, activations, and 400.0 MB for CUDA and scratch memory",
        "activations and state are not known without a model; give one, with --batch and --seq",
        "int4 and nf4 have one FP16 scale for 64 weights; without scales they are 4 bits",
        "build them with --fp16 and --weights int8, fp8 (for compute capability 8.9 and newer), int4 "
        "or nf4; fp32 and bf16 are for comparison",
        "recommended for 8.0 GB: INT4: INT8 does not fit; INT4 is dequantized inside the matrix "
        "multiplication, so it is also the fastest that does",
    ]


def test_a_model_is_planned_as_json(product: Path) -> None:
    result = trtq("plan", product, "--batch", 4, "--json", "--gpu-memory", "1G", "--skip", "nothing")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["num_params"] == 256 * 128
    assert document["recommended"] == "fp16"
    int8 = next(item for item in document["schemes"] if item["name"] == "int8")
    assert int8["weights_bytes"] == 256 * 128 + 2 * 128
    assert int8["activations_bytes"] == 2 * 4 * (256 + 128)
    assert int8["total_bytes"] == int8["engine_bytes"] + int8["activations_bytes"] + int8["reserve_bytes"]


def test_shapes_and_block_size_are_options(product: Path) -> None:
    result = trtq("plan", product, "--shapes", "x:8x256", "--block-size", 32, "--workspace", "1M", "--json")
    document = json.loads(result.stdout)
    assert document["notes"][0] == "for x 8x256"
    int4 = next(item for item in document["schemes"] if item["name"] == "int4")
    assert int4["weights_bytes"] == 256 * 128 // 2 + 2 * 256 * 128 // 32
    assert trtq("plan", product, "--shapes", "x:8x256").stdout.startswith("product.onnx  32,768 weights\n")


def test_scales_are_counted_in_8_bits_if_asked(product: Path) -> None:
    for given in (["--params", "10B"], [str(product), "--quantize-sensitive"]):
        document = json.loads(trtq("plan", *given, "--double-quant", "--json").stdout)
        nf4 = next(item for item in document["schemes"] if item["name"] == "nf4")
        assert nf4["bits_per_weight"] == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=2e-3)
        assert any("the scales of nf4 are in 8 bits" in note for note in document["notes"])


def test_sensitive_weights_are_counted_in_fewer_bits_if_asked(product: Path) -> None:
    model = onnx.load(product)
    model.graph.node[0].name = "lm_head/MatMul"
    onnx.save(model, product)
    sizes = {}
    for given in ([], ["--quantize-sensitive"]):
        document = json.loads(trtq("plan", product, *given, "--json").stdout)
        sizes[len(given)] = {item["name"]: item["weights_bytes"] for item in document["schemes"]}
    assert (sizes[0]["int8"], sizes[1]["int8"]) == (2 * 256 * 128, 256 * 128 + 2 * 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a model, or --params with a number of parameters, such as 10B"),
        (["--params", "ten"], "'ten' is not a number of parameters; write 10B, 350M or 125000000"),
        (
            ["--params", "1B", "--gpu-memory", "lots"],
            "'lots' is not a size; write bytes, or a number with K, M or G",
        ),
        (
            ["--params", "1e400"],
            "'1e400' is more parameters than any model has; write 10B, 350M or 125000000",
        ),
        (
            ["--params", "1B", "--gpu-memory", "9" * 400],
            "'99999999999999999999...' is more than any memory; write bytes, or a number with K, M or G",
        ),
        (["--params", "1B", "--gpu-memory", "0"], "the GPU's memory must have at least 1 byte, got 0"),
        (["--params", "1B", "--seq", "4"], "--seq is for a model, which --params is not"),
        (["--params", "1B", "--past", "4"], "--past is for a model, which --params is not"),
        (["--params", "1B", "--kv-cache", "int8"], "--kv-cache is for a model, which --params is not"),
    ],
)
def test_nonsense_is_a_usage_error(arguments: list[str], message: str) -> None:
    result = trtq("plan", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("8GiB", 8 << 30), ("8G", 8 << 30), ("512MB", 512 * 10**6)]
)
def test_memory_in_gb_is_decimal_as_on_the_box(text: str, size: int) -> None:
    result = trtq("plan", "--params", "1B", "--gpu-memory", text, "--json")
    assert json.loads(result.stdout)["gpu_memory_bytes"] == size


def test_a_pattern_that_is_none_is_a_usage_error(product: Path) -> None:
    result = trtq("plan", product, "--skip", "(")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: '(' is not a regular expression: ")


def test_a_model_and_a_count_are_too_much(product: Path) -> None:
    assert trtq("plan", product, "--params", "1B").exit_code == 2


def test_more_positions_than_the_rotary_table_has_are_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
    g (float[B,S,128] q, float[B,S,64] k, float[B,S,64] v, int32[B] last, int32 total,
       float[B,2,P,32] past_key, float[B,2,P,32] past_value)
      => (float[B,S,128] y, float[B,2,T,32] present_key, float[B,2,T,32] present_value) {
      [attention] y, present_key, present_value = com.microsoft.GroupQueryAttention
        <num_heads = 4, kv_num_heads = 2, do_rotary = 1>
        (q, k, v, past_key, past_value, last, total, cos, sin)
    }""")
    table = np.ones((64, 16), np.float32)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(table, name) for name in ("cos", "sin"))
    onnx.save(model, path := tmp_path / "decoder.onnx")
    assert trtq("plan", path, "--past", "63", "--new", "1").exit_code == 0
    result = trtq("plan", path, "--past", "63", "--new", "2")
    assert (result.exit_code, result.stdout, result.stderr) == (
        2,
        "",
        "error: node 'attention/q_cos' reads entry 64 of 'cos', which has 64; if these are positions, the "
        "model takes 64 at the most: choose smaller sizes (--past plus --new, or --seq), or export it with a "
        "longer table\n",
    )


_BY_POSITION = """<ir_version: 10, opset_import: ["": 23]>
    g (int64[B,S] input_ids, int64[B,T] attention_mask, int64[B,S] position_ids,
       float[B,2,P,32] past_key, float[B,2,P,32] past_value)
      => (float[B,S,32] y, float[B,2,T,32] present_key, float[B,2,T,32] present_value) {{
      words = Gather (vocabulary, input_ids)
      {}
      present_key = Concat <axis = 2> (past_key, new) present_value = Concat <axis = 2> (past_value, new)
    }}"""
_LOOKUPS = {
    "positions": "[look] at = Gather (table, position_ids) y = Add (words, at)",
    "shifted": """moved = Add (position_ids, two) less = Sub (moved, two)
      [look] at = Gather (table, less) y = Add (words, at)""",
    "mask": """sum = CumSum (attention_mask, one) all = Sub (sum, one)
      behind = Shape <start = 2, end = 3> (past_key) end = Shape <start = 1, end = 2> (attention_mask)
      last = Slice (all, behind, end, ones) [look] at = Gather (table, last) y = Add (words, at)""",
    "rotary": """heads = Unsqueeze (words, ones)
      [look] turned = RotaryEmbedding (heads, table, table, position_ids) y = Squeeze (turned, ones)""",
}


def _save_decoder(path: Path, lookup: str) -> Path:
    body = f"{lookup} head = Unsqueeze (words, ones) new = Concat <axis = 1> (head, head)"
    model = onnx.parser.parse_model(_BY_POSITION.format(body))
    values = {
        "vocabulary": np.ones((7, 32), np.float32),
        "table": np.ones((64, 16 if "Rotary" in lookup else 32), np.float32),
        "one": np.int64(1),
        "two": np.int64(2),
        "ones": np.array([1]),
    }
    for name, value in values.items():
        if name in body or name == "vocabulary":
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("lookup", _LOOKUPS)
def test_a_table_that_is_read_by_positions_or_a_mask_is_checked(lookup: str, tmp_path: Path) -> None:
    path = _save_decoder(tmp_path / "decoder.onnx", _LOOKUPS[lookup])
    assert trtq("plan", path, "--past", "60", "--new", "4").exit_code == 0
    result = trtq("plan", path, "--past", "60", "--new", "5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error: node 'look' reads entry 64 of 'table', which has 64; if these are"
    )


def test_a_table_that_cannot_be_checked_is_named(tmp_path: Path) -> None:
    lookup = """short = Cast <to = 5> (position_ids) own = Max (short, short) long = Cast <to = 7> (own)
      at = Gather (table, long) y = Add (words, at)"""  # ONNX Runtime has no Max of int16
    path = _save_decoder(tmp_path / "decoder.onnx", lookup)
    result = trtq("plan", path, "--past", "60", "--new", "5")
    assert result.exit_code == 0
    assert "whether 'table' has an entry for each position is not checked" in result.stdout


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--batch 8", "--batch 8 is not the size of any dynamic axis: 'x' is (1, 8)"),
        ("--seq 7", "--seq 7 is not the size of any dynamic axis: 'x' is (1, 8)"),
        (
            "--batch 2147483648",
            "--batch must be at most 2147483647, which TensorRT can count to, got 2147483648",
        ),
        ("--new 7", "--new 7 is not the size of any dynamic axis: 'x' is (1, 8)"),
    ],
)
def test_a_size_that_nothing_has_is_refused(given: str, told: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> g (float[1,8] x) => (float[1,8] y) { y = Relu (x) }'
    )
    onnx.save(model, path := tmp_path / "m.onnx")
    result = trtq("plan", path, *given.split())
    assert (result.exit_code, result.stderr) == (2, f"error: {told}\n")
    assert trtq("plan", path, "--batch", "1").exit_code == 0
