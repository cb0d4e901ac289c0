"""Distances between sets of clips and diversity of futures, as parts of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aad1.evaluation import sources
from aad1.evaluation.report import Report, read_report, write_report
from aad1.evaluation.sets import SetEvaluation
from aad1.evaluation.sources import Source

EMPTY = Report("world", "sets", {}, (), ())


def rows() -> list[Source]:
    return [sources.control(name) for name in ("truth", "frozen", "constant_velocity")]


def both(folder: Path, wanted: Sequence[Source]) -> Report:
    sets = SetEvaluation(folder, clips=6, images=2)
    report = sets.with_diversity(sets.with_distribution(EMPTY, wanted), wanted)
    write_report(report, folder)
    return read_report(folder)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    both(folder, rows())
    return folder


def test_the_truth_stands_beside_every_row(once: Path) -> None:
    distribution, diversity = read_report(once).tables
    assert list(distribution.rows) == list(diversity.rows) == ["truth", "frozen", "constant_velocity"]
    assert set(distribution.clips.values()) == {6}
    assert set(diversity.clips.values()) == {2 * 8}
    near, far = (distribution.rows[name]["mmd"] for name in ("truth", "frozen"))
    assert near is not None
    assert far is not None
    assert far.mean > near.high
    assert diversity.rows["constant_velocity"]["seed_position"].mean == 0  # type: ignore[union-attr]
    assert diversity.rows["truth"]["seed_position"].mean > 5  # type: ignore[union-attr]


def test_what_is_known_is_used_again(once: Path) -> None:
    def never(*_: object) -> list[sources.Sample]:
        pytest.fail("it was measured again")

    kept = [replace(source, samples=never) for source in rows()]
    assert both(once, kept) == read_report(once)
    (once / "features" / "frozen.npz").write_bytes(b"torn")
    with pytest.raises(pytest.fail.Exception):
        both(once, kept)


def test_sources_without_such_clips_are_named(tmp_path: Path) -> None:
    wanted = [sources.control("truth"), replace(sources.control("frozen"), saved=True)]
    report = both(tmp_path, [*wanted, replace(sources.control("constant_velocity"), frames=17)])
    assert report.models == ["truth"]
    assert [line.split(": ")[0] for line in report.missing if "FD of" not in line] == [
        "frozen, distribution",
        "constant_velocity, distribution",
        "frozen, diversity",
        "constant_velocity, diversity",
    ]
