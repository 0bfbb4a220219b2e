"""Photos, lines of text, captchas, sentences and speech, made from what the pinned packages ship.

Every part ("calibration", "evaluation") draws from photos and sentences that the other does not have.
"""

from __future__ import annotations

import ast
import ctypes
import io
import random
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

PARTS = ("calibration", "evaluation")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_PHOTOS = {
    "calibration": (
        "skimage/data/astronaut.png", "skimage/data/coffee.png", "skimage/data/motorcycle_left.png",
        "skimage/data/hubble_deep_field.jpg", "skimage/data/retina.jpg", "sklearn/datasets/images/china.jpg",
    ),
    "evaluation": (
        "skimage/data/chelsea.png", "skimage/data/rocket.jpg", "skimage/data/ihc.png",
        "sklearn/datasets/images/flower.jpg", "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    ),
}  # fmt: skip
_PEOPLE = {
    "calibration": (
        "skimage/data/astronaut.png", "ultralytics/assets/bus.jpg", "insightface/data/images/mask_blue.jpg",
        "insightface/data/images/mask_white.jpg", "skimage/data/coffee.png",
    ),
    "evaluation": (
        "insightface/data/images/t1.jpg", "insightface/data/images/Tom_Hanks_54745.png",
        "ultralytics/assets/zidane.jpg", "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    ),
}  # fmt: skip
"""What a detector of people finds something in."""
_WORDS = """
    the quick brown fox jumps over lazy dog invoice total amount 2024 Order No. 58213 Payment received Thank
    you $49.90 Hello World QUANTIZED MODEL runtime graph Street 17 Berlin Meeting at 10:30 Please sign here
    Chapter Introduction Results Discussion temperature 23.5C open closed EXIT WARNING high voltage
"""
_VOICES = ("en-us", "en-gb", "de", "fr", "es", "it", "pl")


class Wheels:
    """The files inside a folder of wheels, by their paths there."""

    def __init__(self, folder: Path) -> None:
        self._homes = {
            name: path for path in sorted(folder.glob("*.whl")) for name in zipfile.ZipFile(path).namelist()
        }

    def names(self) -> list[str]:
        """Returns every path, in order."""
        return sorted(self._homes)

    def read(self, name: str) -> bytes:
        """Returns one file."""
        with zipfile.ZipFile(self._homes[name]) as wheel:
            return wheel.read(name)

    def extract(self, prefix: str, folder: Path) -> None:
        """Writes all files whose path starts so."""
        for name in self._homes:
            if name.startswith(prefix) and not name.endswith("/"):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.read(name))


@dataclass
class Media:
    """What samples of one part are made of; the same seed gives the same samples."""

    wheels: Wheels
    scratch: Path
    part: str
    seed: str

    def __post_init__(self) -> None:
        """Starts the random numbers."""
        self.random = random.Random(f"{self.seed} {self.part}")
        self.noise = np.random.default_rng(self.random.randrange(1 << 32))

    @cached_property
    def photos(self) -> list[Image.Image]:
        """The photos of this part."""
        return self._opened(_PHOTOS)

    @cached_property
    def people(self) -> list[Image.Image]:
        """The photos of this part for a detector of people."""
        return self._opened(_PEOPLE)

    def _opened(self, names: Mapping[str, Sequence[str]]) -> list[Image.Image]:
        return [Image.open(io.BytesIO(self.wheels.read(name))).convert("RGB") for name in names[self.part]]

    @cached_property
    def _fonts(self) -> list[bytes]:
        names = [
            name
            for name in self.wheels.names()
            if re.search(r"ttf/(DejaVu|STIXGeneral)\w*(-\w+)?\.ttf$", name)
        ]
        return [self.wheels.read(name) for name in names if "Display" not in name]

    def font(self, size: int) -> Any:
        """Returns one of the fonts."""
        return ImageFont.truetype(io.BytesIO(self.random.choice(self._fonts)), size)

    def words(self, least: int, most: int) -> str:
        """Returns so many words."""
        return " ".join(self.random.choice(_WORDS.split()) for _ in range(self.random.randint(least, most)))

    def crop(self, smallest: float = 0.45, photos: Sequence[Image.Image] | None = None) -> Image.Image:
        """Returns a part of a photo, perhaps mirrored, a little brighter or darker."""
        photo = self.random.choice(photos or self.photos)
        share = self.random.uniform(smallest, 1)
        width, height = int(photo.width * share), int(photo.height * share)
        left, top = self.random.randint(0, photo.width - width), self.random.randint(0, photo.height - height)
        photo = photo.crop((left, top, left + width, top + height))
        if self.random.random() < 0.5:
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(photo, np.float32) * self.random.uniform(0.75, 1.2) + self.random.uniform(-12, 12)
        return to_image(pixels)

    def line(self, text: str, size: int = 36, paper: tuple[int, ...] | None = None) -> Image.Image:
        """Returns a line of text on paper, a little blurred and noisy."""
        font, pad = self.font(size), 6
        left, top, right, bottom = font.getbbox(text)
        paper = paper or tuple(self.random.randint(170, 255) for _ in range(3))
        image = Image.new("RGB", (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad), paper)
        ink = tuple(self.random.randint(0, 90) for _ in range(3))
        ImageDraw.Draw(image).text((pad - left, pad - top), text, fill=ink, font=font)
        if self.random.random() < 0.4:
            image = image.filter(ImageFilter.GaussianBlur(self.random.uniform(0.3, 1.0)))
        pixels = np.asarray(image, np.float32)
        return to_image(pixels + self.noise.normal(0, self.random.uniform(0, 9), pixels.shape))

    def scene(self, width: int, height: int) -> Image.Image:
        """Returns lines of text on paper or on a photo."""
        on_paper = self.random.random() < 0.5
        paper = tuple(self.random.randint(200, 255) for _ in range(3))
        image = Image.new("RGB", (width, height), paper) if on_paper else self.crop().resize((width, height))
        top = self.random.randint(5, 25)
        while top < height - 45:
            size = self.random.choice([16, 20, 26, 34])
            line = self.line(self.words(1, 4), size, paper if on_paper else None)
            if line.width < width - 20:
                image.paste(line, (self.random.randint(2, width - line.width - 2), top))
            top += size + self.random.randint(10, 50)
        return image

    def captcha(self, width: int, height: int, letters: str) -> tuple[Image.Image, str]:
        """Returns four turned letters with lines and dots over them, and what they are."""
        light = tuple(self.random.randint(200, 255) for _ in range(3))
        image = Image.new("RGB", (width, height), light)
        draw, text, left = ImageDraw.Draw(image), "".join(self.random.choices(letters, k=4)), 8
        for letter in text:
            size = self.random.randint(int(height * 0.5), int(height * 0.66))
            mask = self.glyph(letter, height, size, (height // 4, height // 8), 18)
            ink = tuple(self.random.randint(0, 130) for _ in range(3))
            image.paste(ink, (left - 8, self.random.randint(-3, 3)), mask)
            left += (width - 24) // 4
        for _ in range(self.random.randint(1, 4)):
            ends = [(self.random.randint(0, width), self.random.randint(0, height)) for _ in range(2)]
            draw.line(ends, fill=tuple(self.random.randint(60, 190) for _ in range(3)), width=1)
        for _ in range(self.random.randint(20, 90)):
            place = (self.random.randint(0, width), self.random.randint(0, height))
            draw.point(place, fill=tuple(self.random.randint(0, 200) for _ in range(3)))
        return image, text

    def glyph(self, letter: str, side: int, size: int, at: tuple[int, int], turn: float) -> Image.Image:
        """Returns the mask of a turned letter."""
        mask = Image.new("L", (side, side), 0)
        ImageDraw.Draw(mask).text(at, letter, fill=255, font=self.font(size))
        return mask.rotate(self.random.uniform(-turn, turn), Image.Resampling.BILINEAR)

    def sentence_pairs(self, count: int) -> list[tuple[str, str]]:
        """Returns the first and the second paragraph of so many docstrings of scikit-learn."""
        pairs = sorted(_docstring_pairs(self.wheels))
        random.Random(0).shuffle(pairs)  # the same order for both parts
        own = pairs[PARTS.index(self.part) :: len(PARTS)]
        if len(own) < count:
            raise ValueError(f"{count} pairs of sentences are wanted, there are {len(own)}")
        return own[:count]

    def speech(self, seconds: float) -> NDArray[np.float32]:
        """Returns speech in several languages with pauses, 16 kHz, shape (samples,)."""
        espeak = _Espeak(self.wheels, self.scratch)
        spoken: list[NDArray[np.floating]] = []
        sentences = [first for first, _ in self.sentence_pairs(64)]
        while sum(len(piece) for piece in spoken) < seconds * 16000:
            voice, text = self.random.choice(_VOICES), self.random.choice(sentences)
            piece = espeak.say(text, voice, self.random.randint(130, 200), self.random.randint(25, 80))
            pause = np.zeros(int(self.random.uniform(0.4, 0.9) * 16000))
            loudness = self.random.uniform(0.25, 0.8) / max(float(np.abs(piece).max()), 1e-6)
            noise = self.random.choice([0.0005, 0.003, 0.01])
            whole = np.concatenate([piece * loudness, pause])
            spoken.append(whole + self.noise.normal(0, noise, len(whole)))
        return np.concatenate(spoken)[: int(seconds * 16000)].astype(np.float32)

    def files(self, count: int) -> list[bytes]:
        """Returns so many files of many types from the wheels; no file is in both parts."""
        by_type: dict[str, list[str]] = {}
        for name in self.wheels.names():
            by_type.setdefault(Path(name).suffix, []).append(name)
        found = []
        for suffix in sorted(by_type):
            own = by_type[suffix][PARTS.index(self.part) :: len(PARTS)]
            found += self.random.sample(own, min(len(own), max(2, count // 16)))
        self.random.shuffle(found)
        contents = (self.wheels.read(name) for name in found if not name.endswith((".onnx", "/")))
        return [content for content in contents if len(content) > 200][:count]


class _Espeak:
    """The speech synthesizer eSpeak NG, from its wheel."""

    def __init__(self, wheels: Wheels, scratch: Path) -> None:
        home = scratch / "espeakng_loader"
        if not home.is_dir():
            wheels.extract("espeakng_loader/", scratch)
        self._library = ctypes.cdll.LoadLibrary(str(home / "libespeak-ng.so"))
        self._pieces: list[NDArray[np.int16]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._take)  # C holds no reference to it
        self._rate = self._library.espeak_Initialize(2, 0, str(home).encode(), 0)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: Any, count: int, _: int | None) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, rate: int, pitch: int) -> NDArray[np.float64]:
        """Returns the text spoken, 16 kHz."""
        self._pieces.clear()
        self._library.espeak_SetVoiceByName(voice.encode())
        self._library.espeak_SetParameter(1, rate, 0)
        self._library.espeak_SetParameter(3, pitch, 0)
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        spoken = np.concatenate(self._pieces).astype(np.float64) / 32768
        times = np.arange(0, len(spoken), self._rate / 16000)
        return np.interp(times, np.arange(len(spoken)), spoken)


def _docstring_pairs(wheels: Wheels) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for name in wheels.names():
        if not re.fullmatch(r"sklearn/(?!.*tests/|externals/).*\.py", name):
            continue
        for node in ast.walk(ast.parse(wheels.read(name))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                paragraphs = [
                    " ".join(text.split()) for text in (ast.get_docstring(node) or "").split("\n\n")
                ]
                first, second = (*paragraphs, "", "")[:2]
                prose = all(
                    40 < len(text) < 300 and not re.search(r"-----|^\.\.|Read more|>>>|^[-*]|:func:", text)
                    for text in (first, second)
                )
                if prose and not {first, second} & seen:
                    seen |= {first, second}
                    yield first, second


def to_image(pixels: NDArray[Any]) -> Image.Image:
    """Returns pixels of any range as an image."""
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def planes(
    image: Image.Image, channels: str, mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Returns (pixel - mean) / std, shape (3, height, width), in the order "RGB" or "BGR"."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    pixels = pixels[..., ::-1] if channels == "BGR" else pixels
    scaled = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)


def letterbox(image: Image.Image, side: int, fill: int, *, centred: bool = False) -> Image.Image:
    """Returns the image fitted into a square, with the rest filled."""
    share = side / max(image.size)
    image = image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))))
    square = Image.new("RGB", (side, side), (fill,) * 3)
    at = ((side - image.width) // 2, (side - image.height) // 2) if centred else (0, 0)
    square.paste(image, at)
    return square
