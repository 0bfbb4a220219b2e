"""What becomes of protobuf messages that stay so: fields with other values, too many and too few of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from damage import ODD_NAMES, ODD_NUMBERS, damage
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_TYPES = (0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 18, 21, 22, 23, 24, 26, 99, -1)
_ODD_FLOATS = (0.0, -1.0, 1e38, -1e38, 1e-45, float("nan"), float("inf"))


@st.composite
def odd_model(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Returns an ONNX model of which one to three fields are others; every fourth is damaged instead."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damage(seeds))
    model = onnx.ModelProto()
    model.ParseFromString(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        messages = list(_list_messages(model))
        message = draw(st.sampled_from(messages))
        field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
        change = _change_list if _is_list(field) else _change_value
        change(draw, message, field, messages)
    return bytes(model.SerializeToString())


def _list_messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if _is_list(field) else (value,):
                yield from _list_messages(item)


def _is_list(field: Any) -> bool:
    """Returns whether a field is repeated; protobuf 6.31 and later say it otherwise than those before."""
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _change_list(draw: st.DrawFn, message: Any, field: Any, messages: list[Any]) -> None:
    """Removes, doubles, swaps, adds or changes items of a repeated field."""
    items = getattr(message, field.name)
    change = draw(st.sampled_from(["change", "change", "remove", "double", "swap", "add", "clear"]))
    if change == "clear":
        message.ClearField(field.name)
    elif change == "add" or not items:
        if field.message_type is None:
            items.append(_draw_value(draw, field, messages))
        else:
            source = _draw_message(draw, field, messages)
            items.add().CopyFrom(source)
    else:
        place, other = (draw(st.integers(0, len(items) - 1)) for _ in range(2))
        if change == "remove":
            del items[place]
        elif field.message_type is None:
            items[place] = items[other] if change == "swap" else _draw_value(draw, field, messages)
        elif change == "double":
            source = _copy(items[place])  # which moves when the list grows
            items.add().CopyFrom(source)
        else:
            source = _copy(items[other]) if change == "swap" else _draw_message(draw, field, messages)
            items[place].CopyFrom(source)


def _change_value(draw: st.DrawFn, message: Any, field: Any, messages: list[Any]) -> None:
    if draw(st.integers(0, 4)) == 0:
        message.ClearField(field.name)
    elif field.message_type is None:
        setattr(message, field.name, _draw_value(draw, field, messages))
    else:
        source = _draw_message(draw, field, messages)
        getattr(message, field.name).CopyFrom(source)


def _draw_message(draw: st.DrawFn, field: Any, messages: list[Any]) -> Any:
    """Returns a message of the field's type from elsewhere in the model, or an empty one."""
    same = [item for item in messages if item.DESCRIPTOR.full_name == field.message_type.full_name]
    return _copy(draw(st.sampled_from(same))) if same else GetMessageClass(field.message_type)()


def _copy(message: Any) -> Any:
    """Returns a copy: the message may hold the one that it is put into."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _draw_value(draw: st.DrawFn, field: Any, messages: list[Any]) -> Any:
    """Returns a value of the field's type: an odd one, or a name that stands elsewhere in the model."""
    if field.enum_type is not None:
        return draw(st.sampled_from([item.number for item in field.enum_type.values]))
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING and field.type != field.TYPE_BYTES:
        known = [getattr(item, "name", "") for item in messages] + [
            getattr(item, "op_type", "") for item in messages
        ]
        return draw(st.sampled_from([*(name for name in ODD_NAMES if name != "\ud800"), *known]))
    if kind == field.CPPTYPE_STRING:
        return draw(st.binary(max_size=40) | st.sampled_from([b"", b"\xff" * 1000, b"GRAPH", b"\0"]))
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return draw(st.sampled_from(_ODD_FLOATS))
    wide = kind in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64)
    low = 0 if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else -(2 ** (63 if wide else 31))
    high = 2 ** (63 if wide else 31) - 1
    return draw(st.sampled_from([number for number in (*ODD_NUMBERS, *_TYPES) if low <= number <= high]))
