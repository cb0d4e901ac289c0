"""Filling latent stores: one process or many, each making its blocks; the leader shows how far all are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aad1.data.blocks import Clip, StoreWriter, write_block
from aad1.data.claim import Plan, await_plan
from aad1.data.store import SKIPPED, Manifest, Skip
from aad1.data.team import ALONE, Helpers, Team, require_leader
from aad1.errors import UserError
from aad1.progress import Progress

PAUSE = 0.2  # seconds between looks at what the others have made
NAMED = 8  # missing blocks named in an error
REASON = 200  # characters of a helper's failure in it
SHOWN = 10  # skipped clips named in the summary
Make = Callable[[Sequence[range]], Iterator[Sequence[Clip | Skip]]]


@dataclass(frozen=True)
class Work:
    """A store and how to fill it.

    sources: a name for every source item; block: how many of them a block has; make: what becomes of the items of each
    block (positions in ``sources``), in order; unit: what messages call an item.
    """

    folder: Path
    manifest: Manifest
    sources: Sequence[str]
    block: int
    make: Make
    unit: str = "clip"


@dataclass(frozen=True)
class Summary:
    """What a filled store holds: how many clips, and what was left out (by earlier runs too)."""

    folder: Path
    count: int
    skipped: tuple[Skip, ...]
    unit: str = "clip"

    def __str__(self) -> str:
        text = f"{self.folder}: {self.count} {several(self.unit)}"
        if not self.skipped:
            return text
        lines = [f"  {skip.source}: {skip.reason}" for skip in self.skipped[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines.append(f"  and {len(self.skipped) - SHOWN} more")
        broken = sum(skip.kind == "broken" for skip in self.skipped)
        kinds = {"broken": broken, "filtered": len(self.skipped) - broken}
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        where = f"all in {self.folder / SKIPPED}; to try them again, delete {self.folder}"
        return "\n".join([f"{text}, {len(self.skipped)} skipped: {said} ({where})", *lines])


def fill(
    works: Sequence[Work],
    title: str,
    *,
    team: Team = ALONE,
    helpers: Helpers | None = None,
    meet: Callable[[], None] = lambda: None,
) -> list[Summary]:
    """Make every missing block of these stores and complete them, as the leader of a team; returns what they hold.

    ``meet`` waits for all others, and is called when they can read what there is to do and when all have followed:
    until then it stays there for them, however late they come and even when that is nothing.
    Without ``helpers`` the leader does its own share. Raises UserError when a store was begun with other settings or
    sources, when another run has it, and when a helper failed: then its blocks are missing and all others are kept.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(work)) for work in works]
        plans = [writer.publish(helpers.run if helpers else team.run) for writer in writers]
        meet()
        total, done = sum(writer.header.items for writer in writers), sum(writer.done for writer in writers)
        bar = stack.enter_context(Progress(title, total, done=done, unit=works[0].unit))
        if helpers and done < total:
            stack.enter_context(helpers).start()
        if not helpers:
            _make_own(works, plans, team, partial(_show, bar, writers))
        _await_others(bar, writers, helpers)
        for writer in writers:
            writer.complete()
        summaries = [_summary(writer) for writer in writers]
        for summary in summaries:
            bar.print(str(summary))
        meet()
        return summaries


def follow(works: Sequence[Work], team: Team) -> None:
    """Make this process's share of the blocks, as the leader has published them."""
    for work in works:
        for _ in _make(work, await_plan(work.folder, team.run), team):
            pass


def several(unit: str) -> str:
    """The plural of what messages call an item."""
    return f"{unit.removesuffix('y')}ies" if unit.endswith("y") else f"{unit}s"


def _summary(writer: StoreWriter) -> Summary:
    skips = tuple(sorted(writer.skips, key=lambda skip: skip.position))
    return Summary(writer.folder, writer.count, skips, writer.unit)


def _writer(work: Work) -> StoreWriter:
    return StoreWriter(work.folder, work.manifest, work.sources, block=work.block, unit=work.unit)


def _make(work: Work, plan: Plan, team: Team) -> Iterator[int]:
    """Make and write one's share; yields the number of each block that is written."""
    numbers = plan.share(team.rank or 0, team.ranks)
    made = work.make([plan.range_of(number) for number in numbers])
    for number, items in zip(numbers, made, strict=True):
        require_leader()
        write_block(work.folder, work.manifest, number, items)
        yield number


def _make_own(works: Sequence[Work], plans: Sequence[Plan], team: Team, show: Callable[[], None]) -> None:
    """Make the leader's share, and show now and then how far all are: each time the whole folder is looked at."""
    shown = time.monotonic()
    for work, plan in zip(works, plans, strict=True):
        for _ in _make(work, plan, team):
            if time.monotonic() > shown + PAUSE:
                show()
                shown = time.monotonic()


def _show(bar: Progress, writers: Sequence[StoreWriter]) -> None:
    """Move the bar to what is there, by whomever."""
    for writer in writers:
        writer.look()
    skipped = sum(len(writer.skips) for writer in writers)
    bar.advance(sum(writer.done for writer in writers) - bar.done, **({"skipped": skipped} if skipped else {}))


def _await_others(bar: Progress, writers: Sequence[StoreWriter], helpers: Helpers | None) -> None:
    """Wait until no block is missing, or no helper is left to make one."""
    while True:
        working = helpers is None or helpers.working()
        _show(bar, writers)
        for fallen in helpers.newly_fallen() if helpers else ():
            bar.print(f"process {fallen.rank} of {helpers.ranks if helpers else 0} failed: {fallen.reason}")
        if not any(writer.missing for writer in writers):
            return
        if helpers and not working:
            _refuse_missing(writers, helpers)
        time.sleep(PAUSE)


def _refuse_missing(writers: Sequence[StoreWriter], helpers: Helpers) -> None:
    for writer in writers:
        if missing := writer.missing:
            named = ", ".join(map(str, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
            what = f"{len(missing)} blocks of {writer.header.block} {several(writer.unit)} are missing ({named})"
            failed = f"{len(helpers.fallen)} of {helpers.ranks} processes failed"
            first = "".join(fallen.reason for fallen in helpers.fallen[:1])[:REASON]
            raise UserError(
                f"{writer.folder}: {what} because {failed} ({first}); all others are kept: the same command makes the "
                "missing ones"
            )
