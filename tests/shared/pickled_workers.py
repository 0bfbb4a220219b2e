"""Workers in this process that share nothing with it but what pickles."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from trtq.workers import Processes, Shared


@dataclass
class Pickled:
    """Workers that get what they do, and give what comes of it, through pickle; one may be lost."""

    most: int | None = None
    done: list[Any] = field(default_factory=list)

    def share(self, value: Any) -> Shared[Any]:
        return Processes().share(value)

    def count(self) -> int:
        return 2

    def map(self, task: Callable[[Any], Any], items: Iterable[Any]) -> Generator[Any, None, None]:
        for item in items:
            if self.most is not None and len(self.done) >= self.most:
                raise KeyboardInterrupt
            do, part = pickle.loads(pickle.dumps((task, item)))
            self.done.append(part)
            yield pickle.loads(pickle.dumps(do(part)))
