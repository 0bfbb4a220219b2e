"""A language model that is run for one sequence: what its inputs take, what it reads, and what it writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtq.errors import DataError, ModelError
from trtq.models.session import Session, SessionPort, run
from trtq.models.signature import show_shape
from trtq.pipeline.graph.state import find_batches, find_cache_axes, is_cache, pair_states

Role = Literal["tokens", "positions", "types", "mask"]
Arrays = dict[str, NDArray[Any]]
_WHOLE: Mapping[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_DTYPES: Mapping[str, Any] = {
    **_WHOLE, "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8,
}  # fmt: skip
_TOKENS = re.compile(r"(^|[^a-z])ids?([^a-z]|$)|token", re.IGNORECASE)
_ROLES: Mapping[Role, re.Pattern[str]] = {
    "mask": re.compile("mask", re.IGNORECASE),
    "positions": re.compile("position", re.IGNORECASE),
    "types": re.compile("type|segment", re.IGNORECASE),
    "tokens": _TOKENS,
}
"""What an input takes by its name, the first that matches."""


class Decoder:
    """A language model whose inputs are tokens, their positions and types, masks and a cache."""

    def __init__(self, path: Path, session: Session) -> None:
        """Finds what the inputs and outputs are.

        Raises:
            ModelError: There are others, or a cache that does not begin empty and grow.
        """
        self._path, self._session = path, session
        inputs = {port.name: port for port in session.get_inputs()}
        outputs = {port.name: port for port in session.get_outputs()}
        self._caches = {name: port for name, port in inputs.items() if is_cache(name, port.shape)}
        self._plain = {name: port for name, port in inputs.items() if name not in self._caches}
        self._positions = {name: self._find_positions(port) for name, port in self._caches.items()}
        self._presents = pair_states(self._caches, outputs)
        if missing := [name for name in self._caches if name not in self._presents]:
            raise ModelError(f"{path} has the cache input {missing[0]!r}, but no such output")
        logits = ["logits"] if "logits" in outputs else [name for name in outputs if "logit" in name.lower()]
        self._logits = self._find_one("logits", logits, outputs)
        self._roles = {name: self._find_role(port) for name, port in self._plain.items()}
        found = [name for name, role in self._roles.items() if role == "tokens"]
        tokens = self._find_one("tokens as input", found, inputs)
        self._vocabulary = outputs[self._logits].shape[-1:]
        length = inputs[tokens].shape[1]
        self._length = length if isinstance(length, int) else None
        if self._caches and self._length not in (None, 1):
            raise ModelError(
                f"{path}: input {tokens!r} has {length} places, and what fills them up would stay in "
                "the cache; export the model with a dynamic length, or with one of 1"
            )

    def count_vocabulary(self) -> int:
        """Returns the number of tokens that there are logits for.

        Raises:
            ModelError: The model does not run.
        """
        size = next(iter(self._vocabulary), None)
        return size if isinstance(size, int) else self._run([0], 0, self._start())[0].shape[-1]

    def require_vocabulary(
        self, reference: Path, size: int, texts: Sequence[Sequence[int]], what: str
    ) -> None:
        """Checks that tokens are the same as those of the reference, and those of texts are among them.

        Raises:
            ModelError: The model has another number of tokens, or does not run.
            DataError: A text has others; texts are called `what`.
        """
        if (own := self.count_vocabulary()) != size:
            raise ModelError(
                f"{self._path} has a vocabulary of {own} tokens, and {reference} one of {size}: the same id "
                f"is another token; give models with one tokenizer"
            )
        for number, text in enumerate(texts, 1):
            if max(text) >= size:
                raise DataError(
                    f"{what} {number} has the token {max(text)}, and the vocabulary of {self._path} ends at "
                    f"{size - 1}"
                )

    def read(self, tokens: Sequence[int], piece: int) -> NDArray[Any]:
        """Returns the logits behind each token of a text, shape (T, vocabulary).

        Args:
            tokens: The text.
            piece: How many of them a model with a cache is given at a time, if it takes more than one.

        Raises:
            ModelError: The model does not run, there is no room for so many tokens, or it has the logits of
                the last one alone.
        """
        size, state, found = len(tokens), self._start(), list[NDArray[Any]]()
        if self._caches:
            size = self._length or piece
        for known in range(0, len(tokens), size):
            new = tokens[known : known + size]
            logits, state = self._run(new, known, state)
            if len(logits) != len(new):
                raise ModelError(
                    f"{self._path}: output {self._logits!r} has the logits of the last token alone; export "
                    f"the model with those of all tokens"
                )
            found.append(logits)
        return np.concatenate(found)

    @property
    def logits(self) -> str:
        """The name of the output."""
        return self._logits

    def write(self, prompt: Sequence[int], count: int) -> tuple[int, ...]:
        """Returns the most likely tokens, each behind those before.

        Raises:
            ModelError: The model does not run, there is no room for so many tokens, or logits are not finite.
        """
        tokens, known, state = list(prompt), 0, self._start()
        for _ in range(count):
            for end in self._list_ends(known, len(tokens)):
                scores, state = self._run(tokens[known:end], known, state)
                known = end if self._caches else 0
            if not np.isfinite(scores[-1].max()):
                raise ModelError(
                    f"{self._path}: the logits of token {len(tokens) + 1} are not finite, so none is the "
                    f"most likely; compare the models on data to see how far they are apart"
                )
            tokens.append(int(scores[-1].argmax()))
        return tuple(tokens[len(prompt) :])

    def _list_ends(self, known: int, total: int) -> Sequence[int]:
        """Returns how many tokens are known behind each run, until all are."""
        return range(known + 1, total + 1) if self._caches and self._length else [total]

    def _run(self, new: Sequence[int], known: int, state: Arrays) -> tuple[NDArray[Any], Arrays]:
        """Returns the logits behind the new tokens, or the last, shape (T, vocabulary), and the caches."""
        feed = {name: self._fill(port, new, known) for name, port in self._plain.items()} | state
        logits, *presents = run(self._session, [self._logits, *self._presents.values()], feed)
        if logits.ndim != 3:
            raise ModelError(
                f"{self._path}: output {self._logits!r} has {logits.ndim} axes; logits have 3: batch, "
                f"sequence, vocabulary"
            )
        places = logits.shape[1]
        if places != (self._length or len(new)) and (places, self._length) != (1, None):
            raise ModelError(
                f"{self._path}: output {self._logits!r} has {places} places for {self._length or len(new)} "
                f"tokens; logits are of all, or of the last one where none is filled up"
            )
        for name, array in zip(self._caches, presents, strict=True):
            if (size := array.shape[self._positions[name]]) != known + len(new):
                raise ModelError(
                    f"{self._path}: output {self._presents[name]!r} holds {size} positions behind "
                    f"{known + len(new)} tokens; tokens are written with caches that hold all of them"
                )
        return logits[0, : len(new)], dict(zip(self._caches, presents, strict=True))

    def _start(self) -> Arrays:
        """Returns caches of one sequence without positions."""
        state: Arrays = {}
        for name, port in self._caches.items():
            shape = [
                dim if isinstance(dim, int) else int(axis != self._positions[name])
                for axis, dim in enumerate(port.shape)
            ]
            state[name] = np.zeros(shape, _DTYPES.get(port.type, np.float32))
        return state

    def _find_positions(self, port: SessionPort) -> int:
        """Returns the axis of a cache that counts positions; another open one counts sequences."""
        batches = find_batches(other.shape for other in self._plain.values())
        axes = find_cache_axes(port.name, port.shape, batches)
        if axes.positions is None or axes.others:
            raise ModelError(
                f"{self._path}: cache {port.name!r} is {show_shape(port.shape)}, and needs one dynamic "
                "axis for positions, and no further one than for sequences; tokens are written with "
                "caches that grow"
            )
        return axes.positions

    def _find_one(self, what: str, found: Sequence[str], names: Iterable[str]) -> str:
        """Returns the name of the only tokens or logits."""
        if len(found) != 1:
            raise ModelError(
                f"{self._path}: a language model has {what}, and here {' and '.join(found) or 'nothing'} of "
                f"{', '.join(names)} is called so"
            )
        return found[0]

    def _find_role(self, port: SessionPort) -> Role:
        """Returns what an input of shape (batch, length) takes."""
        role = next((role for role, pattern in _ROLES.items() if pattern.search(port.name)), None)
        types = _DTYPES if role == "mask" else _WHOLE
        if role is None or len(port.shape) != 2 or port.type not in types:
            raise ModelError(
                f"{self._path}: input {port.name!r} is neither tokens, their positions or types, a mask nor "
                f"a cache; tokens are written by models that have nothing else"
            )
        return role

    def _fill(self, port: SessionPort, new: Sequence[int], known: int) -> NDArray[Any]:
        """Returns an input, shape (1, length): tokens, their types or positions, or a mask of all to them."""
        total = known + len(new)
        values: Mapping[Role, Sequence[int]] = {
            "tokens": new,
            "positions": range(known, total),
            "types": [0] * len(new),
            "mask": [1] * total,
        }
        filled, length = values[self._roles[port.name]], port.shape[1]
        if not isinstance(length, int):
            length = len(filled)
        if len(filled) > length:
            raise ModelError(
                f"{self._path}: input {port.name!r} has {length} places, and {len(filled)} tokens are "
                "too many; use shorter prompts, or a smaller --generate or --window"
            )
        return np.array([[*filled, *[0] * (length - len(filled))]], _DTYPES[port.type])
