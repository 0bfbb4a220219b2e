"""Triton's `ModelConfig` in protobuf's text format, by protobuf itself: what is written, or compared.

Source: protobuf/model_config.proto of triton-inference-server/common. Its fields are described here by name
and type alone, as a text holds no numbers of fields; all others in a configuration from elsewhere pass by.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

from trtq import lazy
from trtq.errors import ArtifactError
from trtq.files import refuse_damage

Message: TypeAlias = Mapping[str, Any]
"""The fields of a message by name: messages as mappings, values of enumerations by name."""

DATA_TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
"""Triton's types by numpy's names."""
_ENUMS = {
    "DataType": ("TYPE_INVALID", *list(DATA_TYPES.values())[:-1], "TYPE_STRING", "TYPE_BF16"),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}
"""The values from 0 on."""
_MESSAGES = {
    "ModelConfig": "name:string platform:string backend:string max_batch_size:int32 "
    "version_policy:VersionPolicy input:Port* output:Port* instance_group:InstanceGroup* "
    "optimization:Optimization dynamic_batching:DynamicBatching parameters:Parameter* model_warmup:Warmup*",
    "VersionPolicy": "all:All latest:Latest",
    "All": "",
    "Latest": "num_versions:uint32",
    "Port": "name:string data_type:DataType dims:int64* reshape:Reshape",
    "Reshape": "shape:int64*",
    "InstanceGroup": "count:int32 kind:Kind profile:string*",
    "Optimization": "graph:Graph",
    "Graph": "level:int32",
    "DynamicBatching": "preferred_batch_size:int32* max_queue_delay_microseconds:uint64",
    "Parameter": "key:string value:ParameterValue",
    "ParameterValue": "string_value:string",
    "Warmup": "name:string batch_size:uint32 inputs:WarmupEntry*",
    "WarmupEntry": "key:string value:WarmupInput",
    "WarmupInput": "data_type:DataType dims:int64* zero_data:bool random_data:bool input_data_file:string",
}
"""The fields in the order in which they are written; those with * are repeated."""
_PASSED_BY = (
    "agents batch_input batch_output cc_model_filenames control control_input cpu_execution_accelerator cuda "
    "default_queue_policy direct ensemble_scheduling execution_accelerators gpu_execution_accelerator "
    "graph_lower_bound graph_spec histogram_options initial_state input input_map input_pinned_memory "
    "metric_control metric_identifier metric_tags model_metrics model_operations model_repository_agents "
    "model_transaction_policy oldest output_map output_pinned_memory parameters "
    "priority_queue_policy rate_limiter resources response_cache secondary_devices sequence_batching "
    "specific state step"
)
"""Triton's other fields that hold messages; protobuf before 6.31 skips no list of messages."""


def to_text(message: Message) -> str:
    """Returns a `ModelConfig` in the text format."""
    text: str = _protobuf("text_format").MessageToString(
        _config_class()(**message), as_utf8=True, use_short_repeated_primitives=True, use_index_order=True
    )
    return text


def parse(text: str, where: str) -> Any:
    """Returns the `ModelConfig` that a text holds, as a message of protobuf.

    Args:
        text: In the text format.
        where: Its name, for messages.

    Raises:
        ArtifactError: It is not in the text format; line and column are named.
    """
    text_format = _protobuf("text_format")
    with refuse_damage(ArtifactError, f"{where} is not a valid Triton configuration"):
        return text_format.Parse(text, _config_class()(), allow_unknown_field=True)


def name_data_type(port: Any) -> str:
    """Returns the name of the type of an input or output of a `ModelConfig`; empty where it has none."""
    kind = port.DESCRIPTOR.fields_by_name["data_type"].enum_type
    return str(kind.values_by_number[port.data_type].name) if port.HasField("data_type") else ""


@cache
def _config_class() -> Any:
    file = _protobuf("descriptor_pb2").FileDescriptorProto(
        name="trtq/model_config.proto", package="trtq", syntax="proto2"
    )
    for name, values in _ENUMS.items():
        numbered = [{"name": value, "number": number} for number, value in enumerate(values)]
        file.enum_type.add(name=name, value=numbered)
    passed_by = {name: f"{name}:Other*" for name in _PASSED_BY.split()}
    for message, fields in {**_MESSAGES, "Other": ""}.items():
        ours = {field.partition(":")[0]: field for field in fields.split()}
        every = ours | {name: field for name, field in passed_by.items() if name not in ours}
        described = [_describe(field, number) for number, field in enumerate(every.values(), 1)]
        file.message_type.add(name=message, field=described)
    pool = _protobuf("descriptor_pool").DescriptorPool()
    pool.Add(file)
    return _protobuf("message_factory").GetMessageClass(pool.FindMessageTypeByName("trtq.ModelConfig"))


def _describe(field: str, number: int) -> Message:
    """Returns the descriptor of a field; with `optional` an explicit 0 is told from none and is written."""
    name, _, kind = field.partition(":")
    label = "LABEL_REPEATED" if kind.endswith("*") else "LABEL_OPTIONAL"
    kind = kind.rstrip("*")
    is_ours = kind in _ENUMS or kind in _MESSAGES or kind == "Other"
    return {"name": name, "number": number, "label": label} | (
        {"type_name": f".trtq.{kind}"} if is_ours else {"type": f"TYPE_{kind.upper()}"}
    )


def _protobuf(module: str) -> Any:
    return lazy.require(f"google.protobuf.{module}", None, "config.pbtxt")
