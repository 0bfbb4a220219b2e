"""When a candidate has failed whatever the rest of the data says, so that it need not be read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from trtq.calibrators.batches import Batches
from trtq.pipeline.judge.metrics import LOW_SHARE
from trtq.pipeline.judge.tally import Tally
from trtq.pipeline.judge.views import Key
from trtq.records import LOW_FACTOR, REFERENCES


@dataclass(frozen=True, slots=True)
class FailureRule:
    """Tells by counts when the gate of one candidate cannot hold any more.

    It knows two cases. A value that is not finite where the truth's is fails the gate, whatever follows. So
    does a twentieth of all samples with a low cosine: there never are fewer of these again. It never tells
    that a candidate passes, since any later sample may say otherwise.

    Attributes:
        candidate: What is judged.
        min_cosine: What the gate wants.
        least_samples: How many are read anyway, so that the numbers and the worst samples tell what is wrong.
    """

    candidate: str
    min_cosine: float
    least_samples: int = 256

    def has_failed(
        self,
        tally: Tally,
        batches: Batches,
        open_outputs: Collection[str] = (),
        noisy: Collection[Key] = (),
    ) -> bool:
        """Whether the candidate fails on the data, of which the tally has seen the first part.

        Args:
            tally: What was seen.
            batches: All of the data.
            open_outputs: Those of which a later sample may tell that they cannot be compared.
            noisy: The parts that may have more noise than a sample may.
        """
        if max((item.samples for item in tally.metrics.values()), default=0) < self.least_samples:
            return False
        most = find_most_samples(batches)
        for (candidate, reference, key), metrics in tally.metrics.items():
            output = key[0]
            if candidate != self.candidate or reference not in REFERENCES or output in open_outputs:
                continue
            if metrics.nonfinite:
                return True
            low = 1 - LOW_FACTOR * (1 - self.min_cosine)
            if most is not None and key not in noisy and metrics.count_below(low) > int(LOW_SHARE * most):
                return True
        return False


def find_most_samples(batches: Batches) -> int | None:
    """Returns how many samples data has at most; None if that is not known.

    The last of the feeds that were asked for may have more of them than were.
    """
    if batches.num_samples is None or batches.feed_samples is None:
        return None
    return batches.num_samples + batches.feed_samples
