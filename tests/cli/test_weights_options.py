"""`--weights` of `trtq build` and `trtq quantize`, on a small decoder and the real builder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import trtq
from numpy.typing import NDArray

from trtq.models.session import open_session, run

TEXT = """<ir_version: 9, opset_import: ["" : 18]>
g (int64[N,S] ids) => (float[N,S,200] logits) {
  [embed] e = Gather (table, ids)
  [up] h = MatMul (e, w)
  [act] a = Relu (h)
  [down] d = MatMul (a, v)
  [sum] s = Add (e, d)
  [lm_head] logits = MatMul (s, head)
}"""


def write(folder: Path, scale: int = 1) -> Path:
    """Writes a model with its weights in another file, and data."""
    rng = np.random.default_rng(0)
    width = 64 * scale
    shapes = {"table": (200, width), "w": (width, 4 * width), "v": (4 * width, width), "head": (width, 200)}
    model = onnx.parser.parse_model(TEXT)
    for name, shape in shapes.items():
        weight: NDArray[Any] = rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[0] ** 0.5)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.data")
    np.savez(folder / "data.npz", ids=rng.integers(0, 200, (8, 12)))
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("decoder"))


def ops_of(path: Path) -> list[str]:
    return [node.op_type for node in ir.load(path).graph]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "name", "cosine"),
    [
        (["--weights", "int8"], "int8-weights", 0.9999),
        (["--weights", "int4", "--block-size", 32], "int4-weights", 0.99),
        (["--weights", "nf4", "--double-quant", "--compute-dtype", "fp32"], "nf4-weights", 0.99),
    ],
)
def test_a_build_with_weights_alone(
    model: Path, tmp_path: Path, options: list[object], name: str, cosine: float
) -> None:
    pytest.importorskip("tensorrt_rtx")
    data = model.parent / "data.npz"
    result = trtq("build", model, *options, "--calib-data", data, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["precision"] == name
    assert report["weights"]["num_weights"] == 3
    assert [item["name"] for item in report["kept_float"]] == ["lm_head"]
    pairs = {(item["candidate"], item["reference"]): item["cosine"] for item in report["comparison"]}
    assert set(pairs) == {(name, "fp32"), (name, "fp16"), ("fp16", "fp32")}
    assert pairs[name, "fp32"] > cosine
    ours = next(item for item in report["logits"] if (item["candidate"], item["reference"]) == (name, "fp32"))
    assert 0 < ours["kl_nats"] < 0.1
    assert ours["perplexity"] == pytest.approx(ours["reference_perplexity"], rel=0.05)
    assert "DequantizeLinear" in ops_of(tmp_path / "out" / f"model.{name}.onnx")
    text = trtq("build", model, *options, "--calib-data", data, "-o", tmp_path / "out", "-v").stdout
    assert f"3 weights in {options[1]!s}".lower() in text.lower()
    assert "TensorRT keeps" in text
    assert f"logits  perplexity {ours['perplexity']:.4g} ({name})" in text


def test_what_looks_at_data_is_nearer_than_rounding(model: Path, tmp_path: Path) -> None:
    cosines = {}
    for method in ("rtn", "mse", "gptq", "awq"):
        arguments = ("--weights", "int4", "--weight-method", method, "--backend", "onnxruntime", "--json")
        data = model.parent / "data.npz"
        result = trtq("build", model, *arguments, "--calib-data", data, "-o", tmp_path / method)
        assert result.exit_code in (0, 3), result.stderr
        comparison = json.loads(result.stdout)["comparison"]
        cosines[method] = next(item["cosine"] for item in comparison if item["reference"] == "fp32")
    assert cosines["rtn"] < cosines["mse"]
    assert cosines["rtn"] < cosines["gptq"]
    assert cosines["rtn"] < cosines["awq"]


def test_beside_int8_the_small_products_and_embeddings_are_in_few_bits(tmp_path: Path) -> None:
    large = write(tmp_path, scale=8)  # 512 x 2048
    arguments = ("--int8", "--weights", "int4", "--backend", "onnxruntime", "--skip", "^down", "--json")
    quick = ("--repair", "none", "--calib-method", "minmax")
    result = trtq(
        "build", large, *arguments, *quick, "--calib-data", tmp_path / "data.npz", "-o", tmp_path / "out"
    )
    assert result.exit_code in (0, 3), result.stderr
    report = json.loads(result.stdout)
    assert (report["precision"], report["engine"]["layers_quantized"]) == ("int8", 2)  # up, and lm_head
    assert report["weights"]["num_weights"] == 1
    kinds = {
        node.inputs[0].dtype.name  # type: ignore[union-attr]
        for node in ir.load(tmp_path / "out" / "model.int8.onnx").graph
        if node.op_type == "DequantizeLinear"
    }
    assert kinds == {"INT8", "UINT8", "INT4"}
    assert {item["name"] for item in report["kept_float"]} == {"down"}


def test_w4a8_stores_products_in_four_bits_behind_eight(tmp_path: Path) -> None:
    path = write(tmp_path)
    quick = ("--repair", "none", "--calib-method", "minmax", "--calib-data", tmp_path / "data.npz")
    result = trtq(
        "build", path, "--w4a8", "--backend", "onnxruntime", *quick, "-o", tmp_path / "out", "--json"
    )
    assert result.exit_code in (0, 3), result.stderr
    report = json.loads(result.stdout)
    assert (report["precision"], report["weights"]["num_weights"]) == ("int8", 3)  # up, down, the table
    assert report["weights"]["gain"].startswith("each run turns INT4 weights into 8 bits")
    nodes = list(ir.load(tmp_path / "out" / "model.int8.onnx").graph)
    stored = [node for node in nodes if node.op_type == "QuantizeLinear" and "axis" in node.attributes]
    kinds = [node.inputs[0].producer().inputs[0].dtype for node in stored]  # type: ignore[union-attr]
    assert kinds == [ir.DataType.INT4] * 2
    command = json.loads((tmp_path / "out" / "manifest.json").read_text())["commands"]["trtq"]
    assert "--int8 --weights int4 --weight-method mse --block-size 64 --w4a8" in command
    assert trtq("calibrate", path, *quick[2:], "-o", tmp_path / "ranges.json").exit_code == 0
    arguments = ("--ranges", tmp_path / "ranges.json", "--w4a8", "-q", "-o", tmp_path / "m.onnx")
    assert trtq("quantize", path, *arguments).exit_code == 0
    assert ops_of(tmp_path / "m.onnx").count("QuantizeLinear") >= 4


def test_w4a8_of_a_model_without_such_products_is_refused(tmp_path: Path) -> None:
    data = ("--calib-data", tmp_path / "data.npz", "--skip", "up", "--skip", "down")
    result = trtq(
        "build", write(tmp_path), "--w4a8", "--backend", "onnxruntime", *data, "-o", tmp_path / "out"
    )
    assert result.exit_code == 2
    assert "has no quantized MatMul or Gemm whose weight can be stored as INT4" in result.stderr
    assert "leave --w4a8 out" in result.stderr


def test_quantize_writes_weights_without_ranges(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    result = trtq("quantize", model, "--weights", "nf4", "--quantize-sensitive", "--output", output, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert ops_of(output).count("DequantizeLinear") == 4
    ids = np.load(model.parent / "data.npz")["ids"]
    wanted, found = (
        run(open_session(path, optimize=False), ["logits"], {"ids": ids})[0] for path in (model, output)
    )
    assert (wanted * found).sum() / np.linalg.norm(wanted) / np.linalg.norm(found) > 0.97


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("build", ["--block-size", "32"], "--block-size is for weights of fewer bits; give --weights too"),
        ("build", ["--double-quant"], "--double-quant is for weights of fewer bits; give --weights too"),
        (
            "build",
            ["--weights", "fp8", "--block-size", "32"],
            "--block-size is for int4 and nf4; FP8 weights have one scale for each channel",
        ),
        (
            "build",
            ["--weights", "nf4", "--weight-method", "mse"],
            "the weight method mse is for int4, nf4 weights have only rtn",
        ),
        (
            "build",
            ["--w4a8", "--weights", "nf4"],
            "W4A8 stores weights as int4, with clips by mse, not as nf4 by rtn; leave --weights and "
            "--weight-method out, or --w4a8",
        ),
        (
            "build",
            ["--w4a8", "--weight-method", "awq"],
            "W4A8 stores weights as int4, with clips by mse, not as int4 by awq; leave --weights and "
            "--weight-method out, or --w4a8",
        ),
        ("build", ["--w4a8", "--int8", "--fp8"], "--int8 and --fp8 contradict each other; give one of them"),
        (
            "quantize",
            ["--w4a8"],
            "W4A8 has activations of 8 bits; give --ranges of `trtq calibrate` with --w4a8",
        ),
        (
            "quantize",
            [],
            "give --ranges of `trtq calibrate`, --weights, --activations per-token or --kv-cache",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    model: Path, command: str, options: list[str], message: str
) -> None:
    result = trtq(command, model, *options)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"error: {message}")


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_looks_at_data_is_refused_without(model: Path, tmp_path: Path, method: str) -> None:
    arguments = ("--weights", "int4", "--weight-method", method, "-q")
    result = trtq("quantize", model, *arguments, "-o", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "cannot be calibrated without data" in result.stderr
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantize_takes_the_data_that_a_method_needs(model: Path, tmp_path: Path, method: str) -> None:
    data = ("--calib-data", model.parent / "data.npz", "--calib-samples", "4", "--calib-batch-size", "2")
    arguments = ("--weights", "int4", "--weight-method", method, *data, "-o", tmp_path / "m.onnx", "-q")
    result = trtq("quantize", model, *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert ops_of(tmp_path / "m.onnx").count("DequantizeLinear") == 3


def test_quantize_takes_no_data_that_nothing_reads(model: Path) -> None:
    result = trtq("quantize", model, "--weights", "int4", "--calib-data", model.parent / "data.npz")
    assert result.exit_code == 2
    assert (
        "--calib-data is for --weight-method gptq and awq, and for --kv-cache without --ranges; nothing"
        in result.stderr
    )


def test_a_model_whose_weights_are_all_quantized_is_refused(model: Path, tmp_path: Path) -> None:
    first = trtq("quantize", model, "--weights", "int8", "-o", tmp_path / "m.onnx", "-q")
    assert first.exit_code == 0
    result = trtq("quantize", tmp_path / "m.onnx", "--weights", "int4", "-q")
    assert result.exit_code == 2
    assert (
        "m.onnx has no weight that can be stored as INT4 (lm_head: its name is a sensitive one)"
        in result.stderr
    )
    arguments = ("--weights", "int4", "--backend", "onnxruntime", "--opt-shapes", "ids:2x8")
    built = trtq("build", tmp_path / "m.onnx", *arguments)
    assert "no weight can be stored in fewer bits; the report says why" in built.stderr
    verdict, page, advice, run = built.stdout.rstrip().splitlines()[-4:]
    assert verdict.startswith("UNVERIFIED")
    assert page == f"open  {tmp_path / 'm.trtq' / 'report.html'}"
    assert advice.endswith(" --eval-data DATA  # gives data to compare on")
    assert run == f"run   trtq run {tmp_path / 'm.trtq'} --data DATA -o outputs.npz"


def test_data_that_is_missing_is_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "model.data").unlink()
    result = trtq("quantize", path, "--weights", "int4", "-q")
    assert result.exit_code == 2
    assert "which is not next to the model" in result.stderr
    assert sorted(item.name for item in tmp_path.iterdir()) == ["data.npz", "model.onnx"]


_LIMITED = """
import resource, sys
import trtq.pipeline.graph.load as load
load._MOST_IN_MEMORY = 1 << 20  # as if the model were too large for memory
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from trtq.calibrators.memory import find_peak_bytes
from trtq.cli import main
try:
    main(sys.argv[2:], standalone_mode=False)
finally:
    print("peak", find_peak_bytes())
"""


def limited(kind: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _LIMITED, kind, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = write(tmp_path, scale=16)
    before = sorted(item.name for item in tmp_path.iterdir())
    process = limited("full", "quantize", path, "--weights", "int4", "-q", "-o", tmp_path / "m.onnx")
    assert "cannot write" in process.stderr
    assert "None" not in process.stderr
    assert sorted(item.name for item in tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("deep"), layers=24)


@pytest.fixture(scope="module")
def idle() -> int:
    """The memory of a process that does nothing, in bytes."""
    return int(limited("free", "doctor", "--json").stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["int4", "nf4"])
def test_a_large_model_is_never_in_memory(deep: Path, idle: int, tmp_path: Path, form: str) -> None:
    largest, total = 4 * 1024 * 2048, deep.with_name("model.data").stat().st_size
    method = ("--weight-method", "rtn") if form == "int4" else ()
    process = limited("free", "quantize", deep, "--weights", form, *method, "-q", "-o", tmp_path / "m.onnx")
    assert process.returncode == 0, process.stderr
    peak = int(process.stdout.split()[-1])
    assert peak < 4 * largest + 500e6
    assert peak - idle < total / 2  # and what it takes is not the model
    assert (tmp_path / "m.onnx.data").stat().st_size < 0.15 * total


def write_deep(folder: Path, layers: int) -> Path:
    """Writes a chain of products of 8 MB each, tensor by tensor."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    with (folder / "model.data").open("wb") as data:
        for index in range(layers):
            rows, columns = (1024, 2048) if index % 2 == 0 else (2048, 1024)
            tensor = onnx.TensorProto(
                name=f"w{index}", data_type=onnx.TensorProto.FLOAT, dims=(rows, columns)
            )
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "model.data"), ("offset", data.tell()), ("length", 8 << 20)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            data.write(rng.standard_normal((rows, columns), dtype=np.float32).tobytes())
            nodes.append(onnx.helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"]))
    width = 1024 if layers % 2 == 0 else 2048
    graph = onnx.helper.make_graph(
        nodes,
        "deep",
        [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, [1, 1024])],
        [onnx.helper.make_tensor_value_info(f"x{layers}", onnx.TensorProto.FLOAT, [1, width])],
        tensors,
    )
    opset = onnx.helper.make_opsetid("", 21)
    (folder / "model.onnx").write_bytes(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    )
    return folder / "model.onnx"


def test_a_build_of_which_no_weight_is_stored_does_not_pass(model: Path, tmp_path: Path) -> None:
    data = ("--eval-data", model.parent / "data.npz", "--backend", "onnxruntime", "--skip", ".")
    result = trtq("build", model, "--weights", "int8", *data, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "no weight can be stored in fewer bits; the report says why" in result.stderr
    assert "UNVERIFIED: no weight is stored in fewer bits: float was compared with float" in " ".join(
        result.stdout.split()
    )
