"""What is known of the usual families of models: how their inputs are made, and which layers are delicate.

The numbers are those of the families' own training code: torchvision's and timm's presets come from these
libraries, the YOLO ones from the detectors' published inference code (letterbox, RGB, 0-1), the encoders'
from their configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trtq.models.inputs import ModuleInput
from trtq.models.preprocess import Preprocess
from trtq.models.spec import AccuracySpec, InputSpec, LayerSpec, ModelSpec

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCHES = (1, 8, 32)


def imagenet(
    size: int = 224,
    resize: int = 256,
    mean: tuple[float, ...] = _MEAN,
    std: tuple[float, ...] = _STD,
) -> ModelSpec:
    """Returns the settings of an ImageNet classifier with the input `image`, shape (N, 3, size, size).

    Args:
        size: The middle part that is kept, in pixels.
        resize: The shorter side before that.
        mean: One number a channel, of values in 0..1.
        std: Likewise.
    """
    steps = Preprocess(resize=(resize,), resize_mode="short-side", crop=(size,), mean=mean, std=std)
    return ModelSpec(inputs={"image": _batches((3, size, size))}, preprocess=steps)


def yolo(size: int = 640, *, name: str = "images") -> ModelSpec:
    """Returns the settings of a YOLO-style detector: letterboxed RGB in 0..1, and a head that stays float.

    The last layers put boxes (0..640) and scores (0..1) into one tensor; in INT8 the scores would vanish. The
    pattern matches the decoding of exporters that name nodes by module, such as `model.22/dfl/conv`.
    """
    steps = Preprocess(resize=(size,), resize_mode="letterbox", mean=(0.0,), std=(1.0,))
    return ModelSpec(
        inputs={name: _batches((3, size, size))},
        preprocess=steps,
        accuracy=AccuracySpec(min_cosine=0.99),
        layers=LayerSpec(skip=(r"dfl",)),
    )


def encoder(names: tuple[str, ...] = ("input_ids", "attention_mask"), *, length: int = 512) -> ModelSpec:
    """Returns the settings of a BERT-style encoder: batches of up to 32 texts of up to `length` tokens.

    Args:
        names: Of its inputs, each of shape (N, L).
        length: The most tokens that it takes.
    """
    usual = min(128, length)
    shape = InputSpec((1, 1), (8, usual), (32, length))
    return ModelSpec(inputs=dict.fromkeys(names, shape))


FAMILIES: Mapping[str, Callable[[], ModelSpec]] = {"imagenet": imagenet, "yolo": yolo, "encoder": encoder}


def of_transformer(config: Any) -> tuple[tuple[ModuleInput, ...], ModelSpec]:
    """Returns the inputs and settings of a model of the `transformers` library.

    Args:
        config: Its configuration: a vision model has `image_size`, a text model a vocabulary.
    """
    size = getattr(config, "image_size", None)
    if size is not None:
        size = int(size if isinstance(size, int) else size[0])
        channels = int(getattr(config, "num_channels", 3))
        spec = imagenet(size, size, (0.5,) * 3, (0.5,) * 3)
        spec = ModelSpec(inputs={"pixel_values": spec.inputs["image"]}, preprocess=spec.preprocess)
        return (ModuleInput("pixel_values", ("N", channels, size, size)),), spec
    names: tuple[str, ...] = ("input_ids", "attention_mask")
    if getattr(config, "type_vocab_size", 0) > 1:
        names = (*names, "token_type_ids")
    spec = encoder(names, length=min(int(getattr(config, "max_position_embeddings", 512)), 512))
    return tuple(ModuleInput(name, ("N", "L"), "int64") for name in names), spec


def _batches(rest: tuple[int, ...]) -> InputSpec:
    return InputSpec(*((batch, *rest) for batch in _BATCHES))
