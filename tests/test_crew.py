"""What processes tell each other, and how a mistake of one becomes known to all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ranks import on_ranks

from aad1.errors import UserError
from aad1.parallel.crew import ALONE, Crew, SharedError


def crew() -> Crew:
    return Crew(dist.get_rank(), dist.get_world_size(), control=dist.group.WORLD)


def messages() -> tuple[Any, ...]:
    me = crew()
    me.meet()
    told, any_of_them = me.tell(f"from {me.rank}"), (me.any(me.rank == 1), me.any(False))
    return me.leads, me.gather(10 + me.rank), me.collect(20 + me.rank), told, *any_of_them


def test_every_process_hears_the_others(tmp_path: Path) -> None:
    first, second = on_ranks(messages, 2, tmp_path)
    assert first == (True, [10, 11], [20, 21], "from 0", True, False)
    assert second == (False, [10, 11], [], "from 0", True, False)


def refusal(refusing: tuple[int, ...]) -> str:
    me = crew()

    def act() -> str:
        if me.rank in refusing:
            raise UserError(f"no room for {me.rank}")
        return "done"

    try:
        return me.agree(act)
    except SharedError as error:
        return str(error)


@pytest.mark.parametrize(
    ("refusing", "said"),
    [
        ((), "done"),
        ((1,), "rank 1 of 3: no room for 1"),
        ((1, 2), "rank 1, 2 of 3: no room for 1"),
        ((0, 1, 2), "no room for 0"),
        ((0,), "no room for 0"),
        ((0, 2), "rank 0, 2 of 3: no room for 0"),
    ],
)
def test_what_one_refuses_is_refused_by_all(tmp_path: Path, refusing: tuple[int, ...], said: str) -> None:
    assert on_ranks(refusal, 3, tmp_path, refusing) == [said] * 3


def test_one_alone_meets_nobody() -> None:
    ALONE.meet()
    assert (ALONE.leads, ALONE.gather(1), ALONE.collect(3), ALONE.tell(2)) == (True, [1], [3], 2)
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
    with pytest.raises(UserError, match=r"^no$"):
        ALONE.agree(lambda: (_ for _ in ()).throw(UserError("no")))
