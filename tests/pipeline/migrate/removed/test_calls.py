"""What counts as a use of something removed, and what does not."""

# ruff: noqa: E501 - one snippet a line

from __future__ import annotations

from textwrap import dedent

import pytest

from trtq.pipeline.migrate.removed.calls import find_uses
from trtq.pipeline.migrate.removed.commands import Source, Use


def _uses(source: str) -> list[Use]:
    return sorted(find_uses(Source(dedent(source))), key=lambda use: (use.line, use.column))


def _found(source: str) -> list[tuple[int, int, str]]:
    return [(use.line, use.column, use.removed.name) for use in _uses(source)]


def _names(source: str) -> list[str]:
    return [use.removed.name for use in _uses(source)]


_TRT = "import tensorrt as trt\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import tensorrt\ntensorrt.BuilderFlag.INT8", [(2, 22, "BuilderFlag.INT8")]),
        ("import tensorrt as t\nx = t.BuilderFlag.FP16", [(2, 19, "BuilderFlag.FP16")]),
        ("import tensorrt_bindings as trt\ntrt.BuilderFlag.BF16", [(2, 17, "BuilderFlag.BF16")]),
        ("import tensorrt_bindings.tensorrt as trt\ntrt.IStreamReader", [(2, 5, "IStreamReader")]),
        ("from tensorrt import BuilderFlag as F\nF.OBEY_PRECISION_CONSTRAINTS", [(2, 3, "BuilderFlag.OBEY_PRECISION_CONSTRAINTS")]),
        ("from tensorrt import Builder, IInt8EntropyCalibrator2", [(1, 31, "IInt8EntropyCalibrator2")]),
        ("from tensorrt import *\nclass C(IInt8MinMaxCalibrator): pass", [(2, 9, "IInt8MinMaxCalibrator")]),
        ("from tensorrt import *\nf = BuilderFlag.INT8", [(2, 17, "BuilderFlag.INT8")]),
        (_TRT + "flags = trt.BuilderFlag\nflags.INT8", [(3, 7, "BuilderFlag.INT8")]),
        (_TRT + "n = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)", [(2, 48, "NetworkDefinitionCreationFlag.EXPLICIT_BATCH")]),
        (_TRT + "a = trt.CalibrationAlgoType.MINMAX_CALIBRATION", [(2, 9, "CalibrationAlgoType")]),
        (_TRT + "é = 'ü'; trt.UffParser()", [(2, 14, "UffParser")]),
        (_TRT + "x = (trt\n    .BuilderFlag\n    .INT8)", [(4, 6, "BuilderFlag.INT8")]),
        (_TRT + "print(f'{trt.BuilderFlag.INT8}')", [(2, 26, "BuilderFlag.INT8")]),
        ("def f():\n    import tensorrt as trt\n    return trt.BuilderFlag.INT8", [(3, 28, "BuilderFlag.INT8")]),
        ("import importlib\ntrt = importlib.import_module('tensorrt')\ntrt.IInt8Calibrator", [(3, 5, "IInt8Calibrator")]),
        ("from polygraphy import mod\ntrt = mod.lazy_import('tensorrt>=8.5')\ntrt.IInt8Calibrator", [(3, 5, "IInt8Calibrator")]),
        ("from polygraphy import mod\ntrt = mod.lazy_import_trt()\ntrt.IInt8Calibrator", [(3, 5, "IInt8Calibrator")]),
        ("class A:\n    def __init__(self):\n        import tensorrt\n        self.trt = tensorrt\n    def go(self):\n        self.trt.IInt8Calibrator", [(6, 18, "IInt8Calibrator")]),
        ("try:\n    import tensorrt as trt\nexcept ImportError:\n    import tensorrt_rtx as trt\ntrt.IInt8Calibrator", [(5, 5, "IInt8Calibrator")]),
        (_TRT + "getattr(trt.BuilderFlag, 'INT8')", [(2, 27, "BuilderFlag.INT8")]),
        (_TRT + "setattr(config, 'int8_calibrator', c)", [(2, 18, "IBuilderConfig.int8_calibrator")]),
        (_TRT + "trt.ITensor.set_dynamic_range(t, -1, 1)", [(2, 13, "ITensor.set_dynamic_range")]),
    ],
)  # fmt: skip
def test_names_of_the_module_are_found_however_it_was_imported(
    source: str, expected: list[tuple[int, int, str]]
) -> None:
    assert _found(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("config.int8_calibrator = c", ["IBuilderConfig.int8_calibrator"]),
        ("self.config.int8_calibrator.set_batches(b)", ["IBuilderConfig.int8_calibrator"]),
        ("whatever.set_calibration_profile(p)", ["IBuilderConfig.set_calibration_profile"]),
        ("t.set_dynamic_range(-1, 1)", ["ITensor.set_dynamic_range"]),
        ("layer.get_output(0).dynamic_range = (-1, 1)", ["ITensor.dynamic_range"]),
        ("in_tensor.dynamic_range", ["ITensor.dynamic_range"]),
        ("layer.precision = trt.int8", ["ILayer.precision"]),
        ("conv1_layer.precision", ["ILayer.precision"]),
        ("x.set_output_type(0, trt.int8)", ["ILayer.set_output_type"]),
        ("if builder.platform_has_fast_int8: pass", ["Builder.platform_has_fast_int8"]),
        ("config.max_workspace_size = 1 << 30", ["IBuilderConfig.max_workspace_size"]),
        ("engine = self.builder.build_engine(network, config)", ["Builder.build_engine"]),
        ("parser.supports_model(data)", ["OnnxParser.supports_model"]),
        ("context.execute_async(bindings=b)", ["IExecutionContext.execute_async"]),
        ("for i in range(engine.num_bindings): pass", ["ICudaEngine.num_bindings"]),
        ("context.execute_async_v2(b, s)", ["IExecutionContext.execute_async_v2"]),
        ("registry.get_plugin_creator('x', '1')", ["IPluginRegistry.get_plugin_creator"]),
        # by the class of the object
        ("for item in builder.create_network(0):\n    item.precision = trt.int8", ["ILayer.precision"]),
        ("[each.precision for each in builder.create_network(0)]", ["ILayer.precision"]),
        ("n = b.create_network(0)\nx = n.get_layer(0)\nx.precision", ["ILayer.precision"]),
        ("pool = network.add_pooling_nd(x, t, k)\npool.stride = 2", ["IPoolingLayer.stride"]),
        ("POW = network.add_constant((1,), w)\nPOW.precision = trt.float32", ["ILayer.precision"]),
        ("def f(n: trt.INetworkDefinition):\n    n.add_relu(x).precision", ["ILayer.precision"]),
        ("def f(c: trt.IBuilderConfig):\n    c.max_workspace_size = 1", ["IBuilderConfig.max_workspace_size"]),
        ("with trt.Builder(log) as b:\n    b.build_engine(n, c)", ["Builder.build_engine"]),
        ("e = trt.Runtime(log).deserialize_cuda_engine(d)\nc = e.create_execution_context()\nc.execute(1, b)", ["IExecutionContext.execute"]),
        ("b: trt.Builder = make()\nb.max_batch_size = 1", ["Builder.max_batch_size"]),
        ("b, c = trt.Builder(log), 3\nb.max_batch_size = 1", ["Builder.max_batch_size"]),
        ("class Mine(trt.Builder): pass\nm = Mine(log)\nm.max_batch_size = 1", ["Builder.max_batch_size"]),
        ("r = trt.get_plugin_registry()\nr.plugin_creator_list", ["IPluginRegistry.plugin_creator_list"]),
        ("class A:\n    def __init__(self):\n        self.b = trt.Builder(l)\n    def go(self):\n        self.b.build_engine(n, c)\n    def build_engine(self): pass", ["Builder.build_engine"]),
        # two arguments where 11 wants three
        ("network.add_quantize(x, s)", ["INetworkDefinition.add_quantize without output_type"]),
        ("network.add_dequantize(input=x, scale=s)", ["INetworkDefinition.add_dequantize without output_type"]),
    ],
)  # fmt: skip
def test_members_of_objects_are_found(source: str, expected: list[str]) -> None:
    assert _names(_TRT + source) == expected


@pytest.mark.parametrize(
    "source",
    [
        # nothing of TensorRT's
        "config.int8_calibrator = c",
        "layer.precision = 3",
        "class BuilderFlag: INT8 = 1\nBuilderFlag.INT8",
        "import tensorrt_rtx as trt\ntrt.BuilderFlag.INT8",
        "from mine import tensorrt as trt\ntrt.BuilderFlag.INT8",
        "from .tensorrt import IInt8Calibrator",
        "import tensorrt_llm\ntensorrt_llm.BuilderFlag.INT8\nlayer.precision = 1",
        # what 11 still has
        _TRT + "trt.BuilderFlag.TF32, trt.int8, trt.float16, trt.Builder, trt.DataType.INT8",
        _TRT + "network.add_quantize(x, s, trt.int8)\nnetwork.add_quantize(x, s, output_type=trt.int8)",
        _TRT + "network.add_quantize(*args)\nnetwork.add_quantize(x, **more)",
        _TRT + "profile = b.create_optimization_profile()\nprofile.set_shape_input('x', a, b, c)",
        _TRT + "net = b.create_network(0)\nnet.has_implicit_batch_dimension",
        _TRT + "network.num_layers, layer.name, layer.type, tensor.dtype, engine.num_io_tensors",
        # of the user's own
        _TRT + "args.precision = 'int8'\nif args.precision == 'int8': pass",
        _TRT + "class A:\n    def __init__(self): self.precision = 1\n    def build_engine(self): self.build_engine()",
        _TRT + "class EngineMaker:\n    def build_engine(self): pass\nEngineMaker().build_engine()",
        _TRT + "from common import EngineBuilder\nbuilder = EngineBuilder()\nbuilder.build_engine('x')",
        _TRT + "import common\ncommon.build_engine(path)",
        _TRT + "class A: pass\na = A()\na.set_dynamic_range(1)",
        _TRT + "def set_dynamic_range(): pass\nthing.set_dynamic_range(1)",
        _TRT + "import numpy as np\nnp.precision, np.lib.stride",
        _TRT + "cursor.execute('select 1')\nconv.stride = 2\ncursor.get_shape()",
        _TRT + "def f(trt):\n    return trt.BuilderFlag.INT8",
        _TRT + "'set_flag(trt.BuilderFlag.INT8)'\n# trt.BuilderFlag.INT8",
        _TRT + "hasattr(trt, 'IInt8Calibrator')",
        _TRT + "x = 'text'\nx.num_bindings",
        _TRT + "def f(c: 'trt.Something'):\n    c.max_workspace_size",
        _TRT + "x = a if b else c\nx.max_workspace_size",
        _TRT + "engine = trt.Builder(l)\nengine.has_implicit_batch_dimension",
        "from polygraphy.backend.trt import CreateConfig\nCreateConfig(tf32=True, int8=False, calibrator=None)",
        "from mine import CreateConfig\nCreateConfig(int8=True)",
        "from polygraphy.backend.trt import *\nCreateConfigRTX(profiles=p)",
        "x = x.more()\nx = x.again()\nif x > 3: x.y",
    ],
)  # fmt: skip
def test_other_code_is_left_alone(source: str) -> None:
    assert _names(source) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from polygraphy.backend.trt import CreateConfig\nCreateConfig(int8=True, fp16=use, profiles=p)",
         ["CreateConfig(int8=)", "CreateConfig(fp16=)"]),
        ("from polygraphy.backend.trt import create_config as cc\ncc(b, n, bf16=True)", ["CreateConfig(bf16=)"]),
        ("import polygraphy.backend.trt as pt\npt.CreateConfig(calibrator=pt.Calibrator(d))",
         ["CreateConfig(calibrator=)", "polygraphy Calibrator"]),
        ("from polygraphy.backend.trt import Calibrator", ["polygraphy Calibrator"]),
        ("from polygraphy.backend.trt import *\nc = CreateConfig(fp8=True)", ["CreateConfig(fp8=)"]),
        ("from polygraphy.backend.trt import network_from_onnx_path as n\nb, net, p = n(m)\nfor layer in net:\n    layer.precision = 1",
         ["ILayer.precision"]),
    ],
)  # fmt: skip
def test_polygraphy_is_advised_too(source: str, expected: list[str]) -> None:
    assert _names(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "if hasattr(trt, 'IInt8Calibrator'):\n    trt.IInt8Calibrator",
        "if not hasattr(trt, 'IInt8Calibrator'):\n    pass\nelse:\n    trt.IInt8Calibrator",
        "if hasattr(trt.BuilderFlag, 'INT8') and wanted:\n    config.int8_calibrator = c",
        "x = trt.IInt8Calibrator if hasattr(trt, 'IInt8Calibrator') else object",
        "x = hasattr(config, 'int8_calibrator') and config.int8_calibrator",
        "x = not hasattr(config, 'int8_calibrator') or config.int8_calibrator",
        "if 'INT8' in trt.BuilderFlag.__members__:\n    trt.BuilderFlag.INT8",
        "if 'EXPLICIT_BATCH' in trt.NetworkDefinitionCreationFlag.__members__:\n    trt.BuilderFlag.INT8",
        "if 'IInt8Calibrator' not in dir(trt):\n    raise SystemExit\ntrt.IInt8Calibrator",
        "OLD = hasattr(trt, 'IInt8Calibrator')\ndef f():\n    if OLD:\n        return trt.IInt8Calibrator",
        "p = trt.OnnxParser(n, l)\nif hasattr(p, 'supports_model_v2'):\n    pass\nelse:\n    p.supports_model(d)",
        "if int(trt.__version__.split('.')[0]) < 11:\n    trt.IInt8Calibrator",
        "major = int(trt.__version__.split('.')[0])\nif major >= 11:\n    pass\nelse:\n    trt.IInt8Calibrator",
        "from packaging.version import Version\nif Version(trt.__version__) < Version('11.0'):\n    trt.IInt8Calibrator",
        "import importlib.metadata as m\nif (11, 0) > tuple(m.version('tensorrt')):\n    trt.IInt8Calibrator",
        "if trt.__version__ <= '10.16':\n    trt.IInt8Calibrator",
        "V = trt.__version__\nif V < '10':\n    trt.IInt8Calibrator",
        "if not (trt.__version__ > '10' or other):\n    trt.IInt8Calibrator",
        "class A:\n    def __init__(self):\n        self.new = trt.__version__ >= '11'\n    def f(self):\n        if not self.new:\n            trt.IInt8Calibrator",
        "def f():\n    if trt.__version__ >= '11':\n        return None\n    return trt.IInt8Calibrator",
        "import sys\nif trt.__version__ < '11':\n    pass\nelse:\n    sys.exit('too new')\ntrt.IInt8Calibrator",
        "try:\n    trt.IInt8Calibrator\nexcept AttributeError:\n    pass",
        "try:\n    class C(trt.IInt8Calibrator): pass\nexcept (ImportError, AttributeError):\n    C = None",
        "try:\n    from tensorrt import IInt8Calibrator\nexcept ImportError:\n    pass",
        "try:\n    network.add_quantize(x, s)\nexcept TypeError:\n    pass",
        "import contextlib\nwith contextlib.suppress(AttributeError):\n    config.int8_calibrator = c",
        "getattr(trt, 'IInt8Calibrator', object)",
    ],
)  # fmt: skip
def test_code_that_asks_first_is_guarded(source: str) -> None:
    uses = _uses(_TRT + source)
    assert uses
    assert all(use.guarded for use in uses)


@pytest.mark.parametrize(
    "source",
    [
        "if hasattr(trt, 'IInt8Calibrator'):\n    pass\nelse:\n    trt.IInt8Calibrator",
        "if hasattr(trt, name):\n    trt.IInt8Calibrator",
        "if hasattr(args, 'int8'):\n    pass\nelse:\n    trt.BuilderFlag.INT8",
        "if args.int8 == 11:\n    trt.BuilderFlag.INT8",
        "if hasattr(engine, 'num_bindings'):\n    pass\ntrt.BuilderFlag.INT8",
        "if trt.__version__ >= '10':\n    trt.BuilderFlag.INT8",
        "if trt.__version__ >= '10':\n    pass\ntrt.BuilderFlag.INT8",
        "if trt.__version__ < '11' or force:\n    trt.BuilderFlag.INT8",
        "if trt.__version__ < newest:\n    trt.BuilderFlag.INT8",
        "if trt.__version__ < (11, 'x'):\n    trt.BuilderFlag.INT8",
        "if 8 < trt.__version__ < 11:\n    trt.BuilderFlag.INT8",
        "if int8 in names:\n    trt.BuilderFlag.INT8",
        "if '11' is trt.__version__:\n    trt.BuilderFlag.INT8",
        pytest.param(f"if trt.__version__ < '{'1' * 5001}':\n    trt.BuilderFlag.INT8", id="a long string"),
        pytest.param(f"if trt.__version__ < 0x{'1' * 5001}:\n    trt.BuilderFlag.INT8", id="a long number"),
        "try:\n    trt.BuilderFlag.INT8\nexcept ValueError:\n    pass",
        "try:\n    trt.BuilderFlag.INT8\nexcept Exception as error:\n    print(error)",
        "try:\n    pass\nexcept AttributeError:\n    trt.BuilderFlag.INT8",
        "try:\n    pass\nexcept AttributeError:\n    pass\nelse:\n    trt.BuilderFlag.INT8",
        "try:\n    from tensorrt import IInt8Calibrator\nexcept AttributeError:\n    pass",
        "try:\n    def f():\n        return trt.BuilderFlag.INT8\nexcept AttributeError:\n    pass",
        "with open(path):\n    trt.BuilderFlag.INT8",
    ],
)
def test_code_that_does_not_ask_is_not_guarded(source: str) -> None:
    (use,) = _uses(_TRT + source)
    assert not use.guarded


def test_a_guard_for_10_does_not_guard_what_only_11_removed() -> None:
    source = _TRT + "if trt.__version__ < '11':\n    engine.num_bindings\n    config.int8_calibrator\n"
    assert [(use.removed.name, use.guarded) for use in _uses(source)] == [
        ("ICudaEngine.num_bindings", False),
        ("IBuilderConfig.int8_calibrator", True),
    ]


def test_a_script_of_many_rebindings_is_read_in_no_time() -> None:
    steps = "\n".join(f"x = x.step(y, {i})\ny = y + x if x > {i} else x" for i in range(500))
    assert _names(f"{_TRT}{steps}\nx.int8_calibrator") == ["IBuilderConfig.int8_calibrator"]
