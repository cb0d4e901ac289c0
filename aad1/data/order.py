"""The order that clips are read in: one endless stream, whose whole state is a few integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from aad1.errors import UserError

EPOCHS_HELD = 8  # permutations kept at a time: buckets may stand in neighbouring epochs


class SamplerState(TypedDict):
    """All there is to remember: the clips handed out so far, by bucket, of ``count``."""

    count: int
    seed: int
    taken: list[int]


class _Epoch(NamedTuple):
    """One bucket's clips in the order of an epoch, and where each stands in the order of all clips."""

    clips: NDArray[np.int64]
    places: NDArray[np.int64]


class Sampler:
    """An endless stream of clip indices; every epoch is a permutation drawn from (seed, epoch).

    The order is one stream: processes that share the work all go through it, each working on a part of what it gives.
    ``buckets`` has the bucket of every clip; a batch is of one bucket, the one whose clips fill it first as the stream
    goes by. Clips that do not fill a batch by the end of an epoch wait for the next one's, so none is left out: a batch
    may end one epoch and begin the next, and
    after n clips of a bucket each has come up n / its count times, rounded up or down.
    """

    def __init__(self, count: int, seed: int, *, buckets: Sequence[int] | None = None) -> None:
        if count < 1:
            raise ValueError(f"a sampler over {count} clips")
        self.count, self.seed = count, seed
        given = np.zeros(count, dtype=np.int64) if buckets is None else np.asarray(buckets, dtype=np.int64)[:count]
        self._names, self._bucket = np.unique(given, return_inverse=True)
        self._sizes = np.bincount(self._bucket)
        self._taken = [0] * len(self._sizes)
        self._epoch = lru_cache(maxsize=EPOCHS_HELD)(self._draw)

    @classmethod
    def restore(cls, state: SamplerState, available: int, *, buckets: Sequence[int] | None = None) -> Sampler:
        """Continue where ``state`` was taken, over the clips that the run was begun with.

        Clips that came after those are left out: with them every epoch would have another order. Raises UserError
        when the data has become fewer, or has other picture sizes.
        """
        if available < state["count"]:
            raise UserError(
                f"the run to continue was begun with {state['count']} clips, the data has only {available}; "
                "continue with the data it was begun with"
            )
        sampler = cls(state["count"], state["seed"], buckets=buckets)
        if len(sampler._taken) != len(state["taken"]):
            raise UserError(
                f"the run to continue was begun with clips of {len(state['taken'])} picture sizes, the data has "
                f"{len(sampler._taken)}; continue with the data it was begun with"
            )
        sampler._taken = list(state["taken"])
        return sampler

    def state(self) -> SamplerState:
        """What ``restore`` needs."""
        return {"count": self.count, "seed": self.seed, "taken": list(self._taken)}

    def next(self, batch_size: int) -> list[int]:
        """The next ``batch_size`` indices, all of one bucket."""
        bucket = min(range(len(self._taken)), key=lambda bucket: self._filled_at(bucket, batch_size))
        return self._take(bucket, batch_size)

    def _filled_at(self, bucket: int, wanted: int) -> int:
        """Where in the stream of all clips this bucket's next ``wanted`` clips are complete."""
        epoch, place = divmod(self._taken[bucket] + wanted - 1, int(self._sizes[bucket]))
        return epoch * self.count + int(self._epoch(epoch)[bucket].places[place])

    def _take(self, bucket: int, wanted: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < wanted:
            epoch, place = divmod(self._taken[bucket], int(self._sizes[bucket]))
            part = self._epoch(epoch)[bucket].clips[place : place + wanted - len(taken)]
            self._taken[bucket] += len(part)
            taken += part.tolist()
        return taken

    def _draw(self, epoch: int) -> list[_Epoch]:
        """The permutation of an epoch, apart by bucket."""
        stream = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        order = stream.permutation(self.count)
        places = [np.flatnonzero(self._bucket[order] == bucket) for bucket in range(len(self._sizes))]
        return [_Epoch(order[at], at) for at in places]
