"""The order of clips depends on nothing but the seed, the clips' shapes and how many have been handed out."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aad1.data.order import Sampler
from aad1.errors import UserError


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    before=st.lists(st.integers(1, 50), max_size=5),
    after=st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_a_restored_sampler_goes_on_the_same(count: int, seed: int, before: list[int], after: list[int]) -> None:
    sampler = Sampler(count, seed)
    for batch in before:
        sampler.next(batch)
    state = json.loads(json.dumps(sampler.state()))
    restored = Sampler.restore(state, count)
    assert [sampler.next(b) for b in after] == [restored.next(b) for b in after]
    assert sampler.state() == restored.state()


def test_a_restored_sampler_leaves_out_clips_that_came_later() -> None:
    sampler = Sampler(20, seed=3)
    sampler.next(8)
    restored = Sampler.restore(sampler.state(), 22)
    assert [restored.next(8) for _ in range(6)] == [sampler.next(8) for _ in range(6)]


def test_every_epoch_is_another_permutation() -> None:
    sampler = Sampler(50, seed=1)
    epochs = [sampler.next(50) for _ in range(3)]
    assert all(sorted(e) == list(range(50)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    straddling = Sampler(50, seed=1)
    assert [i for _ in range(5) for i in straddling.next(30)] == [i for epoch in epochs for i in epoch]


def test_impossible_samplers_are_refused() -> None:
    with pytest.raises(ValueError, match="sampler"):
        Sampler(0, 0)
    with pytest.raises(UserError, match="only 5"):
        Sampler.restore({"count": 9, "seed": 0, "taken": [2]}, 5)


def test_one_shape_has_the_order_of_the_bare_permutations() -> None:
    sampler = Sampler(7, seed=5, buckets=[3] * 7)
    streams = [np.random.default_rng(np.random.SeedSequence([5, epoch])) for epoch in range(3)]
    assert [sampler.next(1)[0] for _ in range(21)] == [i for stream in streams for i in stream.permutation(7)]


# --- several shapes ---------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 2), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(buckets=shapes, seed=st.integers(0, 99), batch=st.integers(1, 12), cut=st.integers(0, 6))
def test_batches_have_one_shape_and_resume_exactly(buckets: list[int], seed: int, batch: int, cut: int) -> None:
    count = len(buckets)
    unbroken, broken = (Sampler(count, seed, buckets=buckets) for _ in range(2))
    for step in range(7):
        if step == cut:
            broken = Sampler.restore(json.loads(json.dumps(broken.state())), count, buckets=buckets)
        drawn = broken.next(batch)
        assert drawn == unbroken.next(batch)
        assert len({buckets[index] for index in drawn}) == 1


@settings(max_examples=60, deadline=None)
@given(buckets=shapes, seed=st.integers(0, 99), batch=st.integers(1, 5))
def test_no_clip_is_left_out_or_favoured(buckets: list[int], seed: int, batch: int) -> None:
    """Leftovers of an epoch begin the next, so within a shape no clip is ever two ahead of another."""
    sampler = Sampler(len(buckets), seed, buckets=buckets)
    seen: Counter[int] = Counter()
    for _ in range(6 * len(buckets)):
        seen.update(sampler.next(batch))
        for shape in set(buckets):
            times = [seen[index] for index, bucket in enumerate(buckets) if bucket == shape]
            assert max(times) - min(times) <= 1
    shares = {shape: [seen[i] for i, bucket in enumerate(buckets) if bucket == shape] for shape in set(buckets)}
    means = [float(np.mean(times)) for times in shares.values()]
    smallest = min(len(times) for times in shares.values())
    assert max(means) - min(means) <= batch / smallest + 1


def test_shapes_come_mixed_and_not_in_blocks() -> None:
    buckets = [0] * 60 + [1] * 40
    sampler = Sampler(100, seed=0, buckets=buckets)
    drawn = [buckets[sampler.next(4)[0]] for _ in range(25)]
    assert 8 <= sum(drawn) <= 12
    assert 0 < sum(drawn[:10]) < 10


def test_clips_of_other_shapes_are_not_the_data_of_the_run() -> None:
    sampler = Sampler(6, seed=0, buckets=[0, 1, 0, 1, 0, 1])
    with pytest.raises(UserError, match="2 picture sizes, the data has 1"):
        Sampler.restore(sampler.state(), 6)
