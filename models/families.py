"""What is known of the usual families of models: how their inputs are made, and which layers are delicate.

The numbers are those of the families' own training code: torchvision's and timm's presets come from these
libraries, the YOLO ones from the detectors' published inference code (letterbox, RGB, 0-1), the encoders'
from their configuration, CLIP's and ViT's from their published preprocessors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trtq.models.inputs import ModuleInput
from trtq.models.preprocess import Preprocess
from trtq.models.spec import AccuracySpec, InputSpec, LayerSpec, ModelSpec

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BATCHES = (1, 8, 32)
_CONVNEXT_CROPS_BELOW = 384
LAST_OF_DIFFUSION = r"^/?(\w+[/.])?(proj_out|norm_out)(?![a-z0-9])"
"""The last layers of a diffusion transformer, under one name at most: blocks may have their own proj_out."""
Size = tuple[int, int]


def describe_imagenet(
    size: Size = (224, 224),
    resize: int | None = None,
    mean: tuple[float, ...] = _MEAN,
    std: tuple[float, ...] = _STD,
    *,
    name: str = "image",
) -> ModelSpec:
    """Returns the settings of an ImageNet classifier, whose input has the shape (N, 3, *size).

    Args:
        size: Height and width of the middle part that is kept, in pixels.
        resize: The shorter side before that; None: 256 for 224, and in that proportion for others.
        mean: One number a channel, of values in 0..1.
        std: Likewise.
        name: Of the input.
    """
    side = resize or round(min(size) * 256 / 224)
    steps = Preprocess(resize=(side,), resize_mode="short-side", crop=_short(size), mean=mean, std=std)
    return ModelSpec(inputs={name: list_batches((3, *size))}, preprocess=steps)


def describe_yolo(size: Size = (640, 640), *, name: str = "images") -> ModelSpec:
    """Returns the settings of a YOLO-style detector: letterboxed RGB in 0..1, and a head that stays float.

    The last layers put boxes (0..640) and scores (0..1) into one tensor; in INT8 the scores would vanish. The
    pattern matches the decoding of exporters that name nodes by module, such as `model.22/dfl/conv`.
    """
    steps = Preprocess(resize=_short(size), resize_mode="letterbox", mean=(0.0,), std=(1.0,))
    return ModelSpec(
        inputs={name: list_batches((3, *size))},
        preprocess=steps,
        accuracy=AccuracySpec(min_cosine=0.99),
        layers=LayerSpec(skip=(r"dfl",)),
    )


def describe_encoder(
    names: tuple[str, ...] = ("input_ids", "attention_mask"), *, length: int = 512
) -> ModelSpec:
    """Returns the settings of a BERT-style encoder: batches of up to 32 texts of up to `length` tokens.

    Args:
        names: Of its inputs, each of shape (N, L).
        length: The most tokens that it takes.
    """
    usual = min(128, length)
    shape = InputSpec((1, 1), (8, usual), (32, length))
    return ModelSpec(inputs=dict.fromkeys(names, shape))


def describe_clip(size: Size = (224, 224), *, name: str = "pixel_values") -> ModelSpec:
    """Returns the settings of the picture encoder of CLIP and its kin, with OpenAI's mean and deviation."""
    return describe_imagenet(size, min(size), _CLIP_MEAN, _CLIP_STD, name=name)


def describe_vit(size: Size = (224, 224), *, name: str = "pixel_values") -> ModelSpec:
    """Returns the settings of a vision transformer as Google trains them: stretched, values in -1..1."""
    steps = Preprocess(resize=_short(size), mean=(0.5,), std=(0.5,))
    return ModelSpec(inputs={name: list_batches((3, *size))}, preprocess=steps)


def describe_unit(size: Size | None = None, *, name: str = "image") -> ModelSpec:
    """Returns the settings of a model that takes values in 0..1, and may normalize them itself."""
    inputs = {} if size is None else {name: list_batches((3, *size))}
    return ModelSpec(inputs=inputs, preprocess=Preprocess(mean=(0.0,), std=(1.0,)))


def describe_pixels(size: Size | None = None, *, name: str = "image") -> ModelSpec:
    """Returns the settings of a model that takes the pixels as they are, 0..255."""
    spec = describe_unit(size, name=name)
    return replace(spec, preprocess=replace(spec.preprocess, scale=1.0))


def describe_diffusion() -> ModelSpec:
    """Returns the settings of a diffusion transformer: what makes its output stays float.

    Its inputs are arrays: latents, a time step, and what it is conditioned on.
    """
    return ModelSpec(layers=LayerSpec(skip=(LAST_OF_DIFFUSION,)))


FAMILIES: Mapping[str, Callable[[], ModelSpec]] = {
    "imagenet": describe_imagenet,
    "yolo": describe_yolo,
    "encoder": describe_encoder,
    "bert": describe_encoder,
    "clip": describe_clip,
    "vit": describe_vit,
    "unit": describe_unit,
    "pixels": describe_pixels,
    "diffusion": describe_diffusion,
}
"""The families by name; bert is an encoder."""
TEXT_FAMILIES = ("encoder", "bert")
ARRAY_FAMILIES = ("diffusion",)
_PICTURES: Mapping[str, Callable[..., ModelSpec]] = {
    name: make for name, make in FAMILIES.items() if name not in (*TEXT_FAMILIES, *ARRAY_FAMILIES)
}


def describe_family(name: str, inputs: Sequence[ModuleInput]) -> ModelSpec:
    """Returns the settings of a family for a module with these inputs: pictures have their size.

    Args:
        name: Of `FAMILIES`.
        inputs: The first with four dims is the picture, (N, C, H, W).
    """
    for item in inputs:
        if name in _PICTURES and len(item.dims) == 4:
            height, width = item.dims[2:]
            if isinstance(height, int) and isinstance(width, int):
                return _PICTURES[name]((height, width), name=item.name)
    return FAMILIES[name]()


def describe_processor(settings: Mapping[str, Any]) -> Preprocess:
    """Returns how pictures are prepared, as the `preprocessor_config.json` of a model says it."""
    return _of_image_processor(settings)[0]


def describe_transformer(
    config: Any, main_input: str, processor: Mapping[str, Any] | None
) -> tuple[tuple[ModuleInput, ...], ModelSpec]:
    """Returns the inputs and settings of a model of the `transformers` library; none for those of sound.

    Args:
        config: Its configuration.
        main_input: The name of its first input: `pixel_values` for a vision model, `input_ids` for text.
        processor: Its `preprocessor_config.json`, which says how pictures are prepared; None if it has none.
    """
    if main_input == "pixel_values":
        steps, cut = _of_image_processor(processor or {})
        size = _size(getattr(config, "image_size", None)) or cut or (224, 224)
        shape = (int(getattr(config, "num_channels", 3)), *size)
        spec = ModelSpec(inputs={main_input: list_batches(shape)}, preprocess=steps)
        return (ModuleInput(main_input, ("N", *shape)),), spec
    if main_input != "input_ids":
        return (), ModelSpec()
    has_types = getattr(config, "type_vocab_size", 0) > 1
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if has_types else []))
    spec = describe_encoder(names, length=min(int(getattr(config, "max_position_embeddings", 512)), 512))
    return tuple(ModuleInput(name, ("N", "L"), "int64") for name in names), spec


def _of_image_processor(settings: Mapping[str, Any]) -> tuple[Preprocess, Size | None]:
    """Returns the steps that a `preprocessor_config.json` gives, and the size of the picture after them.

    `size` is height and width, or a shorter side; a `crop_pct` enlarges that side, of which the middle is
    kept, as ConvNeXT's does below 384 pixels.
    """
    size = settings.get("size", settings.get("crop_size"))
    side = size.get("shortest_edge") if isinstance(size, Mapping) else None
    crop = _size(settings.get("crop_size")) if settings.get("do_center_crop") else None
    if isinstance(size, int) and crop is not None:
        side = size
    if side is not None and settings.get("crop_pct") and side < _CONVNEXT_CROPS_BELOW:
        crop, side = (side, side), int(side / settings["crop_pct"])
    resize = (int(side),) if side is not None else _short(_size(size))
    normal = settings.get("do_normalize", True)
    steps = Preprocess(
        resize=resize if settings.get("do_resize", True) else (),
        resize_mode="short-side" if side is not None and crop is not None else "stretch",
        crop=_short(crop),
        scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
        mean=tuple(settings.get("image_mean", _MEAN)) if normal else (0.0,),
        std=tuple(settings.get("image_std", _STD)) if normal else (1.0,),
    )
    return steps, crop or _size(side if side is not None else size)


def _size(given: Any) -> Size | None:
    """Returns height and width of what a configuration says: one number, two, or a mapping with them."""
    if isinstance(given, Mapping):
        return (int(given["height"]), int(given["width"])) if {"height", "width"} <= set(given) else None
    if isinstance(given, list | tuple):
        return int(given[0]), int(given[-1])
    return (int(given), int(given)) if given is not None else None


def _short(size: Size | None) -> tuple[int, ...]:
    """Returns one number for a square, two for another rectangle."""
    return () if size is None else size[:1] if size[0] == size[1] else size


def list_batches(rest: tuple[int, ...]) -> InputSpec:
    """Returns the profile of batches up to 32, with these sizes of the other axes."""
    return InputSpec(*((batch, *rest) for batch in _BATCHES))
