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
