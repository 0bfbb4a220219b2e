"""What a plan counts, what it recommends, and whether engines are as large as it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtq.errors import UsageError
from trtq.models.signature import TensorSpec
from trtq.models.spec import ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import INT4, NF4
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.placement import QuantizedNode
from trtq.pipeline.plan import DynamicSizes, count_code_bytes, parse_count, plan_model, plan_params
from trtq.pipeline.rewrite.weights.choose import ChosenWeight

TEXT = """g (float[N,S,512] x, float[N,4,P,16] past_k) => (float[N,S,512] y, float[N,4,Q,16] present_k) {
  [up] h = MatMul (x, w)
  [act] r = Relu (h)
  [down] y = MatMul (r, v)
  [keep] present_k = Concat <axis = 2> (past_k, past_k)
}"""


@pytest.fixture
def block(path_of: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((512, 2048), (2048, 512)))
    return path_of(TEXT, opset=21, ir_version=10, w=w, v=v)


def by_name(path: Path, **arguments: object) -> dict[str, int]:
    plan = plan_model(path, sizes=DynamicSizes(2, 8), **arguments)  # type: ignore[arg-type]
    return {item.name: item.weights_bytes for item in plan.schemes}


def test_the_textbook_table() -> None:
    plan = plan_params(parse_count("10B"), gpu_memory_bytes=8 * 10**9)
    assert {item.name: item.weights_bytes / 1e9 for item in plan.schemes} == {
        "fp32": 40, "fp16": 20, "bf16": 20, "int8": 10, "fp8": 10, "int4": 5.3125, "nf4": 5.3125,
    }  # fmt: skip
    assert [item.name for item in plan.schemes if item.fits] == ["int4", "nf4"]
    assert plan.recommended == "int4"


@pytest.mark.parametrize(
    ("memory", "recommended", "reason"),
    [
        (10**12, "fp16", "it fits"),
        (12 * 10**9, "int8", "FP16 does not fit"),
        (10**9, None, "nothing fits: even int4 needs 5.7 GB"),
        (4 * 10**8, None, "nothing fits: CUDA and scratch memory alone take 400.0 MB, without any model"),
    ],
)
def test_the_first_that_fits_is_recommended(memory: int, recommended: str | None, reason: str) -> None:
    plan = plan_params(10**10, gpu_memory_bytes=memory)
    assert plan.recommended == recommended
    assert plan.reason.startswith(reason)


def test_nothing_is_judged_without_a_memory() -> None:
    plan = plan_params(1000)
    assert plan.recommended is None
    assert {item.fits for item in plan.schemes} == {None}
    assert plan.reason == "no --gpu-memory is given, so nothing is judged"


def test_weights_are_counted_with_their_scales(block: Path) -> None:
    count = 2 * 512 * 2048
    assert by_name(block) == {
        "fp32": 4 * count,
        "fp16": 2 * count,
        "bf16": 2 * count,
        "int8": count + 2 * (2048 + 512),
        "fp8": count + 2 * (2048 + 512),
        "int4": count // 2 + 2 * count // 64,
        "nf4": count // 2 + 2 * count // 64,
    }
    assert by_name(block, double_quant=True) == by_name(block) | {
        "nf4": count // 2 + count // 64 + 4 * count // 64 // 256 + 2 * 4  # and an offset for each of the two
    }
    assert by_name(block, block_size=32)["int4"] == count // 2 + 2 * count // 32
    assert by_name(block, skip=["down"])["int8"] == count // 2 + 2 * 2048 + count


def test_state_and_activations_follow_the_shapes(block: Path) -> None:
    fp32, fp16 = plan_model(block, sizes=DynamicSizes(2, 8)).schemes[:2]
    assert fp32.state_bytes == 4 * (2 * 4 * 8 * 16 + 2 * 4 * 16 * 16)
    inputs = 2 * 8 * 512 + 2 * 4 * 8 * 16
    assert fp32.activations_bytes == 4 * (inputs + 2 * 8 * 2048 + 2 * 8 * 512)
    assert fp16.activations_bytes * 2 == fp32.activations_bytes
    assert fp32.total_bytes == fp32.engine_bytes + fp32.activations_bytes + fp32.reserve_bytes
    granted = plan_model(block, sizes=DynamicSizes(2, 8), workspace_bytes=1000).schemes[0]
    assert granted.reserve_bytes == fp32.reserve_bytes + 1000


@pytest.mark.parametrize("name", ["int8", "fp8", "int4", "nf4"])
def test_an_engine_is_as_large_as_planned(block: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    shapes = {"x": (2, 8, 512), "past_k": (2, 4, 8, 16)}
    target = Target(
        precision="weights",
        weights=WeightScheme(name),
        shapes=GivenShapes(opt=shapes),
        compute_capabilities=("8.9",),
    )
    report = build(block, spec=ModelSpec(), target=target, output=tmp_path / "out")
    planned = next(
        item for item in plan_model(block, sizes=DynamicSizes(shapes=shapes)).schemes if item.name == name
    )
    assert report.weights is not None
    assert planned.weights_bytes == report.weights.bytes_quantized
    held = sum(path.stat().st_size for path in (tmp_path / "out").glob("model.*-weights.onnx"))
    assert planned.weights_bytes == pytest.approx(held, rel=0.05)
    assert planned.engine_bytes == pytest.approx(report.engine.bytes, rel=0.2)  # 1 MB: half of it is code


def test_kernels_of_an_engine_are_counted_by_what_they_do() -> None:
    def code_of(nodes: str, chosen: Sequence[ChosenWeight] = ()) -> int:
        text = f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {{ {nodes} }}"""
        return count_code_bytes(ir.from_onnx_text(text), chosen)

    nothing = code_of("y = Relu(x)")  # a part of the product before it
    one = code_of("y = Sigmoid(x)") - nothing
    assert one > 0
    assert code_of("a = Sigmoid(x) y = Tanh(a)") == nothing + 2 * one
    assert code_of("y = MaxPool <kernel_shape = [1, 1]> (x)") > nothing + 5 * one
    readers = tuple(QuantizedNode(str(index), "MatMul", LayerScheme("")) for index in range(3))

    def twins(form: CodeFormat) -> list[ChosenWeight]:
        return [ChosenWeight(name, (64, 64), Encoding(form, PerBlock(0, 64)), readers) for name in ("a", "b")]

    int4 = code_of("y = Relu(x)", twins(INT4)) - nothing
    assert int4 == code_of("y = Relu(x)", twins(INT4)[:1]) - nothing  # the same kernel
    nf4 = code_of("y = Relu(x)", twins(NF4)) - nothing
    assert nf4 == 6 * (code_of("y = Relu(x)", [replace(twins(NF4)[0], readers=readers[:1])]) - nothing)


@pytest.mark.parametrize(
    ("text", "count"), [("10B", 10**10), ("350M", 350_000_000), ("1.5k", 1500), ("7", 7)]
)
def test_counts_are_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "ten", "B", "-3", "10 GB"])
def test_what_is_no_count_is_refused(text: str) -> None:
    message = f"{text!r} is not a number of parameters; write 10B, 350M or 125000000"
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_count(text)


@pytest.mark.parametrize("text", ["1e400", "9" * 400 + "B", "2e18"])
def test_more_parameters_than_any_model_has_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="' is more parameters than any model has; write 10B, 350M or 12500"):
        parse_count(text)


def test_the_notes_name_the_reserve_and_the_commands(block: Path) -> None:
    notes = plan_model(block, sizes=DynamicSizes(2, 8)).notes
    assert any("included in the 400.0 MB for CUDA and scratch memory" in note for note in notes)
    assert any("build them with --fp16 and --weights int8, fp8" in note for note in notes)


def test_nonsense_is_refused(block: Path) -> None:
    with pytest.raises(UsageError, match=r"'\(' is not a regular expression"):
        plan_model(block, sizes=DynamicSizes(2, 8), skip=["("])
    with pytest.raises(UsageError, match="a model has at least one parameter, got 0"):
        plan_params(0)
    with pytest.raises(UsageError, match="the GPU's memory must have at least 1 byte, got 0"):
        plan_params(10, gpu_memory_bytes=0)
    with pytest.raises(UsageError, match=r"the block size must be one of 16, .*, got 0"):
        plan_params(10, block_size=0)
    for sizes, message in (
        (DynamicSizes(0), "--batch must be at least 1, got 0"),
        (DynamicSizes(1, -1), "--seq must be at least 1, got -1"),
        (
            DynamicSizes(),
            "input 'x' is (N, S, 512); give --past and --new for its dynamic dims, or --shapes x:...",
        ),
        (DynamicSizes(shapes={"q": (1,)}), "shapes are given for 'q', but the model's inputs are x, past_k"),
        (
            DynamicSizes(1, 4, {"x": (1, 2, 3)}),
            "shape (1, 2, 3) does not fit input 'x', which is (N, S, 512)",
        ),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            plan_model(block, sizes=sizes)


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A step of a decoder: 2 heads of 16, with a mask over what came before and what is new."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (int64[N, S] input_ids, int64[N, T] attention_mask, float[N, 2, P, 16] past_0_key)
        => (float[N, S, 32] logits, float[N, 2, Q, 16] present_0_key) {
            x = Gather (w, input_ids) four = Reshape (x, heads) k = Transpose <perm = [0, 2, 1, 3]> (four)
            present_0_key = Concat <axis = 2> (past_0_key, k)
            m = Cast <to = 1> (attention_mask) two = Unsqueeze (m, axes)
            masked = Mul (present_0_key, two) t = ReduceSum <keepdims = 0> (masked, all)
            u = Unsqueeze (t, ones) logits = Add (x, u)
        }"""
    )
    arrays = {"heads": [0, 0, 2, 16], "axes": [1, 3], "all": [1, 2, 3], "ones": [1, 2]}
    for name, values in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 32), np.float32), "w"))
    onnx.save(model, tmp_path / "cached.onnx")
    return tmp_path / "cached.onnx"


@pytest.mark.parametrize(
    ("sizes", "past", "new"),
    [
        (DynamicSizes(3, past=40, new=1), 40, 1),
        (DynamicSizes(3, seq=8), 8, 8),
        (DynamicSizes(3, seq=8, past=0), 0, 8),
    ],
)
def test_a_mask_covers_the_past_and_what_is_new(
    cached: Path, sizes: DynamicSizes, past: int, new: int
) -> None:
    plan = plan_model(cached, sizes=sizes)
    assert plan.notes[0] == (
        f"for input_ids 3x{new}, attention_mask 3x{past + new}, past_0_key 3x2x{past}x16"
    )
    assert plan.schemes[1].state_bytes == 2 * 3 * 2 * 16 * (past + past + new)


def test_a_cache_in_8_bits_takes_half(cached: Path) -> None:
    sizes = DynamicSizes(3, past=4000, new=1)
    plain, small = (plan_model(cached, sizes=sizes, kv_cache=name).schemes[1] for name in ("fp16", "fp8"))
    assert 2 * small.state_bytes == plain.state_bytes
    assert plain.activations_bytes - small.activations_bytes == small.state_bytes
    told = "the state is counted in FP8, with one scale per tensor, as trtq build --kv-cache fp8 holds"
    assert any(note.startswith(told) for note in plan_model(cached, sizes=sizes, kv_cache="fp8").notes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (DynamicSizes(past=-1), "--past must be at least 0, got -1"),
        (DynamicSizes(new=0), "--new must be at least 1, got 0"),
        (
            DynamicSizes(),
            (
                "input 'input_ids' is (N, S); give --past and --new for its dynamic dims, or --shapes "
                "input_ids:"
            ),
        ),
    ],
)
def test_a_cache_wants_its_sizes(cached: Path, sizes: DynamicSizes, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plan_model(cached, sizes=sizes)


def test_a_model_without_a_cache_has_no_past(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 19]>g (float[N] x) => (float[N] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"--past is for a model with a cache, and the inputs are x"):
        plan_model(tmp_path / "m.onnx", sizes=DynamicSizes(past=4))


def test_the_batch_of_a_cache_need_not_be_its_first_axis(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[batch, seq, 4] x, float[2, batch, 3, past_seq, 8] past_0, float[past_seq, batch, 8] past_1)
        => (float[batch, seq, 4] y, float[2, batch, 3, past_seq, 8] present_0) {
            y = Relu (x) present_0 = Identity (past_0) }""")
    onnx.save(model, tmp_path / "m.onnx")
    plan = plan_model(tmp_path / "m.onnx", sizes=DynamicSizes(5, past=7, new=1))
    assert plan.notes[0] == "for x 5x1x4, past_0 2x5x3x7x8, past_1 7x5x8"
    assert plan.schemes[1].state_bytes == 2 * 2 * (2 * 5 * 3 * 7 * 8)


def test_dims_of_one_name_have_one_size() -> None:
    inputs = [
        TensorSpec("input_ids", "int64", ("batch", "seq")),
        TensorSpec("cache_position", "int64", ("seq",)),
        TensorSpec("position_ids", "int64", (3, "batch", "seq")),
        TensorSpec("past_mask", "int64", ("batch", "past_len")),
        TensorSpec("attention_mask", "int64", ("batch", "total")),
        TensorSpec("past_key", "float32", (2, "batch", "past_len", 8)),
    ]
    assert DynamicSizes(3, past=40, new=2).shapes_of(inputs) == {
        "input_ids": (3, 2), "cache_position": (2,), "position_ids": (3, 3, 2), "past_mask": (3, 40),
        "attention_mask": (3, 42), "past_key": (2, 3, 40, 8),
    }  # fmt: skip


def test_a_cache_whose_axes_are_not_known_wants_its_shape(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[N, S] x, float[N, heads, past_len, 8] past) => (float[N, S] y) { y = Relu (x) }""")
    onnx.save(model, tmp_path / "m.onnx")
    message = (
        r"input 'past' is \(N, heads, past_len, 8\), which does not tell the sizes of all its dynamic "
        r"dims;"
    )
    with pytest.raises(UsageError, match=message):
        plan_model(tmp_path / "m.onnx", sizes=DynamicSizes(past=4, new=1))
    given = DynamicSizes(past=4, new=1, shapes={"past": (1, 2, 4, 8)})
    assert plan_model(tmp_path / "m.onnx", sizes=given).notes[0] == "for x 1x1, past 1x2x4x8"


def test_the_format_of_a_cache_is_for_models_with_one(tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(
            "<ir_version: 10, opset_import: ['': 21]> g (float[1] x) => (float[1] y) "
            "{ y = Relu (x) }".replace("'", '"')
        ),
        tmp_path / "m.onnx",
    )
    with pytest.raises(UsageError, match="--kv-cache is for a model with a cache, and no output continues"):
        plan_model(tmp_path / "m.onnx", kv_cache="int8")
    with pytest.raises(UsageError, match="kv_cache is fp16, int8 or fp8, not 'int4'"):
        plan_model(tmp_path / "m.onnx", kv_cache="int4")


def test_weights_in_bodies_and_codes_are_counted(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[N, 64] x, bool c) => (float[N, 64] y) {
            v = DequantizeLinear (q, s) z = MatMul (x, v)
            y = If (c) <then_branch = a () => (float[N, 64] t) { t = MatMul (z, w) },
                        else_branch = b () => (float[N, 64] u) { u = Neg (z) }> }""")
    w, q, s = np.ones((64, 64), np.float32), np.ones((64, 64), np.int8), np.array(0.1, np.float32)
    model.graph.node[2].attribute[0].g.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(q, "q"), onnx.numpy_helper.from_array(s, "s")]
    )
    onnx.save(model, tmp_path / "m.onnx")
    plan = plan_model(tmp_path / "m.onnx")
    assert (plan.num_params, plan.schemes[0].weights_bytes) == (2 * 64 * 64 + 1, 5 * 64 * 64 + 4)
    assert plan.schemes[0].bits_per_weight == pytest.approx(20, abs=0.01)
