"""What the outputs of a model mean: by the right answers where they are known, else by the float model's.

Each metric is 0 to 1, and takes lists with the judged output of every sample. With answers it is the share of
right ones; without, the agreement with what the float model decides on the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Sequence[NDArray[Any]]
Task = Mapping[str, Any]


def score(task: Task, outputs: Outputs, reference: Outputs) -> float:
    """Returns the metric that the task names.

    Args:
        task: The content of a model's task.json.
        outputs: One array a sample, of the judged model.
        reference: The same of the float model.
    """
    return _METRICS[task["metric"]](task, outputs, reference)


def has_answers(task: Task) -> bool:
    """Whether the metric is of right answers, not of agreement with the float model."""
    return task.get("answers") is not None


def top1(task: Task, outputs: Outputs, reference: Outputs) -> float:
    """Returns how often the largest score is at the right class."""
    wanted = task["answers"] or [int(row.argmax()) for row in reference]
    return _share(int(row.argmax()) == answer for row, answer in zip(outputs, wanted, strict=True))


def text(task: Task, outputs: Outputs, _: Outputs) -> float:
    """Returns how many strings are exactly right, by greedy CTC decoding."""
    return _share(
        _fold(task, _ctc(task, row)) == _fold(task, answer)
        for row, answer in zip(outputs, task["answers"], strict=True)
    )


def _ctc(task: Task, scores: NDArray[Any]) -> str:
    steps = scores.reshape(-1, scores.shape[-1]).argmax(axis=-1)  # batch 1: time first or last is the same
    kept = [step for step, before in zip(steps, [-1, *steps[:-1]], strict=True) if step != before]
    return "".join(task["charset"][step] for step in kept if step != task["blank"])


def _fold(task: Task, string: str) -> str:
    string = "".join(letter for letter in string if letter not in task.get("ignore", ""))
    return string.lower() if task.get("ignore_case") else string


def retrieval(task: Task, outputs: Outputs, _: Outputs) -> float:
    """Returns how often the nearest other vector, by cosine, is the right one."""
    vectors = np.stack([row.ravel() for row in outputs]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    near = vectors @ vectors.T
    np.fill_diagonal(near, -2)
    return _share(int(row.argmax()) == answer for row, answer in zip(near, task["answers"], strict=True))


def mask_iou(task: Task, outputs: Outputs, reference: Outputs) -> float:
    """Returns the intersection over union of the masks of all samples together."""
    both = either = 0
    for ours, theirs in zip(outputs, reference, strict=True):
        mine, wanted = ours > task["threshold"], theirs > task["threshold"]
        both, either = both + int((mine & wanted).sum()), either + int((mine | wanted).sum())
    return both / either if either else 1.0


def decisions(task: Task, outputs: Outputs, reference: Outputs) -> float:
    """Returns how many values lie on the same side of the threshold."""
    same = [
        (a > task["threshold"]) == (b > task["threshold"]) for a, b in zip(outputs, reference, strict=True)
    ]
    return float(np.concatenate([item.ravel() for item in same]).mean())


def detections(task: Task, outputs: Outputs, reference: Outputs) -> float:
    """Returns the F1 of the boxes: matched if the class is the same and the boxes overlap by half."""
    matched = total = 0
    for ours, theirs in zip(outputs, reference, strict=True):
        found, wanted = _boxes(task, ours), _boxes(task, theirs)
        total += len(found) + len(wanted)
        for box in found:
            fits = [item for item in wanted if item[5] == box[5] and _overlap(box, item[None])[0] >= 0.5]
            if fits:
                best = max(fits, key=lambda item: float(_overlap(box, item[None])[0]))
                wanted = [item for item in wanted if item is not best]
                matched += 1
    return 2 * matched / total if total else 1.0


def _boxes(task: Task, output: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Returns [left, top, right, bottom, score, class] of each box that is left after suppression."""
    raw = output[0].astype(np.float64)
    rows = raw.T if task["layout"] == "v8" else _yolox(raw, task["side"])
    scores, classes = rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
    with np.errstate(invalid="ignore"):
        strong = scores > task["threshold"]
    centre, half = rows[strong, :2], rows[strong, 2:4] / 2
    boxes = np.column_stack([centre - half, centre + half, scores[strong], classes[strong]])
    boxes, kept = boxes[boxes[:, 4].argsort()[::-1]], []
    while len(boxes):
        kept.append(boxes[0])
        other = (_overlap(boxes[0], boxes) < 0.45) | (boxes[:, 5] != boxes[0, 5])
        other[0] = False
        boxes = boxes[other]
    return kept


def _yolox(raw: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    places, strides = [], []
    for stride in (8, 16, 32):
        cells = side // stride
        rows, columns = np.divmod(np.arange(cells * cells), cells)
        places.append(np.column_stack([columns, rows]))
        strides.append(np.full((cells * cells, 1), stride))
    step = np.concatenate(strides)
    centre = (raw[:, :2] + np.concatenate(places)) * step
    return np.column_stack([centre, np.exp(np.minimum(raw[:, 2:4], 10)) * step, raw[:, 4:5] * raw[:, 5:]])


def _overlap(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the intersection over union of one box with each of the others."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:4], boxes[:, 2:4])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1) + np.prod(box[2:4] - box[:2])
    return np.asarray(both / np.maximum(areas - both, 1e-12))


def _share(right: Any) -> float:
    return float(np.mean([bool(item) for item in right]))


_METRICS: Mapping[str, Callable[[Task, Outputs, Outputs], float]] = {
    "top1": top1,
    "text": text,
    "retrieval": retrieval,
    "mask_iou": mask_iou,
    "decisions": decisions,
    "detections": detections,
}
