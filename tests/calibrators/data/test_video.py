"""Frames of videos as data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from made_up import sizes_of
from PIL import Image

from trtq.calibrators.batches import Batches
from trtq.calibrators.sources import open_batches
from trtq.errors import DataError, UsageError
from trtq.models.preprocess import Preprocess, describe
from trtq.models.signature import TensorSpec

INPUTS = [TensorSpec("image", "float32", ("N", 3, 16, 16))]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A video of ten grey frames, 0, 20, 40 and so on."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "bgr0"
        for level in range(0, 200, 20):
            image = Image.new("RGB", (16, 16), (level, level, level))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


def read(
    source: object, step: int, size: int = 4, inputs: Sequence[TensorSpec] = INPUTS, **more: Any
) -> Batches:
    steps = Preprocess(scale=1.0, mean=(0.0,), std=(1.0,), frame_step=step, **more)
    return open_batches(str(source), inputs, size, preprocess=steps)


@pytest.mark.parametrize(("step", "levels"), [(1, range(0, 200, 20)), (3, (0, 60, 120, 180)), (100, (0,))])
def test_every_nth_frame_is_a_sample(video: Path, step: int, levels: Sequence[int]) -> None:
    found = [level for feed in read(video, step) for level in feed.arrays["image"][:, 0, 0, 0].tolist()]
    assert found == list(levels)


def test_a_frame_tells_where_it_is_from_and_how_it_was_prepared(video: Path) -> None:
    batches = read(video, 4)
    assert [feed.source for feed in batches] == [f"{video}, frame 0 to {video}, frame 8"]
    assert (batches.num_samples, batches.preprocess is not None) == (None, True)
    assert describe(Preprocess(frame_step=4)).replace(", one frame in 4", "") == describe(Preprocess())


def test_frames_are_prepared_as_pictures(video: Path) -> None:
    small = [TensorSpec("image", "float32", ("N", 3, 8, 8))]
    assert next(iter(read(video, 1, 4, small))).arrays["image"].shape == (4, 3, 8, 8)


def test_videos_of_a_folder_come_one_after_the_other(video: Path) -> None:
    (video.parent / "b.mkv").write_bytes(video.read_bytes())
    batches = read(video.parent, 5)
    assert sizes_of(batches) == [2, 2]
    assert [feed.num_samples for feed in batches.shard(2, 2)] == [2]


def test_videos_come_from_s3(s3: Any, video: Path) -> None:
    s3.put(str(video), "data/videos/a.mkv")
    assert sizes_of(read("s3://data/videos/a.mkv", 2)) == [4, 1]


def test_another_step_is_another_digest(video: Path) -> None:
    assert read(video, 2).digest != read(video, 3).digest


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a.mp4 cannot be read as a video: "):
        list(read(tmp_path / "a.mp4", 1))


def write(path: Path, **options: str) -> Path:
    """Writes a video of ten noisy frames."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.effect_noise((16, 16), 99))))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "flags"), [("a.mp4", "faststart"), ("b.mp4", "empty_moov"), ("a.avi", ""), ("a.mkv", "")]
)
def test_a_video_that_is_cut_short_is_told(tmp_path: Path, name: str, flags: str) -> None:
    path = write(tmp_path / name, **({"movflags": flags} if flags else {}))
    assert sum(sizes_of(read(path, 1))) == 10
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    words = rf"{name} cannot be read as a video: it is cut short: {len(content) - 1} of {len(content)} bytes$"
    with pytest.raises(DataError, match=words):
        list(read(path, 1))


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_what_stands_behind_a_video_is_passed_over(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes() + b"\xff" * 20)
    assert sum(sizes_of(read(path, 1))) == 10


def test_a_video_that_is_damaged_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    content = path.read_bytes()
    middle = content.index(b"mdat") + 600
    path.write_bytes(content[:middle] + b"\xff" * 100 + content[middle + 100 :])
    with pytest.raises(DataError, match=r"a.mp4 cannot be read as a video: a part of it is damaged, or it i"):
        list(read(path, 1))


def test_a_video_for_another_kind_of_model_is_refused(video: Path) -> None:
    with pytest.raises(
        DataError, match=r"^a video feeds one input of rank 4, the model takes x float32 \(N, 2\)"
    ):
        read(video, 1, 4, [TensorSpec("x", "float32", ("N", 2))])


def test_a_step_of_less_than_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^frame_step must be at least 1, got 0$"):
        Preprocess(frame_step=0)


def test_the_frames_are_those_of_the_video(video: Path) -> None:
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    arrays = np.concatenate([feed.arrays["image"] for feed in read(video, 1)])
    assert np.array_equal(arrays, np.stack(frames).transpose(0, 3, 1, 2))
