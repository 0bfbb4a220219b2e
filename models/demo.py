"""The demo: a trained model with its data and settings, ready to be built without a download."""

from __future__ import annotations

import importlib.resources
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq.errors import ArtifactError
from trtq.files import read_file, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SETTINGS = """\
# What `trtq build model.onnx` reads beside the model.

[calibration]
# Typical inputs, from which the INT8 ranges are estimated: an array named for each input of the model.
data = "calibration.npz"

[evaluation]
# Other inputs, on which the FP32 and the INT8 model are compared.
data = "evaluation.npz"
# The array in that file with the right class of each input; with it, accuracy is compared as well.
labels = "labels"

[accuracy]
# The least cosine similarity between the outputs of the FP32 and the INT8 model; 1.0 means the same.
min_cosine = 0.99
# The most accuracy points that INT8 may lose against FP32.
max_drop = 1.0
"""


def write_demo(folder: Path | str) -> list[Path]:
    """Returns the files of the demo, which now lie in the folder.

    - `model.onnx`: a classifier of handwritten digits; `image`, float32 in [0, 1], shape (batch, 1, 8, 8), to
      `logits`, float32, shape (batch, 10).
    - `calibration.npz`: `image`, float32, shape (512, 1, 8, 8).
    - `evaluation.npz`: `image`, float32, shape (600, 1, 8, 8), and `labels`, int64, shape (600,); never
      trained on.
    - `model.toml`: the settings.

    A file that is there with the same content stays; when one has other content, nothing is written.

    Args:
        folder: Where to write; it is made when it does not exist.

    Raises:
        ArtifactError: A file with other content is in the way, or the folder cannot be written.
    """
    folder = Path(folder)
    contents = {folder / name: data for name, data in _contents().items()}
    missing = [path for path, data in contents.items() if not _is_written(path, data)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot make the folder {folder}: {error.strerror or error}; give a folder that can be written"
        ) from error
    for path in missing:
        write_atomically(path, contents[path])
    return list(contents)


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """Returns the demo's data: images, labels, and the indices of each part.

    Returns:
        float32 in [0, 1], shape (N, 1, 8, 8); int64, shape (N,); `training`, `calibration` (a part of it) and
        `evaluation`, which shares no image with them.
    """
    import numpy as np

    assets = importlib.resources.files("trtq.models") / "assets"
    with np.load(io.BytesIO((assets / "digits.npz").read_bytes()), allow_pickle=False) as digits:
        images = digits["images"][:, None].astype(np.float32) / 16  # 0..16, uint8, shape (N, 8, 8)
        parts = {name: digits[name] for name in ("training", "calibration", "evaluation")}
        return images, digits["labels"], parts


def _contents() -> dict[str, bytes]:
    """Returns the content of each file of the demo."""
    images, labels, parts = load_digits()
    calibration, evaluation = parts["calibration"], parts["evaluation"]
    return {
        "model.onnx": (importlib.resources.files("trtq.models") / "assets" / "digits.onnx").read_bytes(),
        "calibration.npz": _npz({"image": images[calibration]}),
        "evaluation.npz": _npz({"image": images[evaluation], "labels": labels[evaluation]}),
        "model.toml": SETTINGS.encode(),
    }


def _npz(arrays: dict[str, Any]) -> bytes:
    """Returns an uncompressed .npz, whose bytes depend on the arrays alone."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _is_written(path: Path, data: bytes) -> bool:
    """Returns whether the file exists with this content; raises ArtifactError when it exists with another."""
    try:
        present = read_file(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror or error}; "
            "the demo writes this file, so give it another folder or remove what is in the way"
        ) from error
    if present != data:
        raise ArtifactError(
            f"{path} exists and is not the demo's file; nothing was overwritten; "
            "give the demo another folder, or move that file away"
        )
    return True
