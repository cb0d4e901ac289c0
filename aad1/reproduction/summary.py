"""From pieces to an experiment's tables: seeds and clips pooled, conditions compared clip by clip.

A 95 % interval has two parts, added in quadrature: over training seeds Student's t of the seeds' own values (a
bootstrap of three seeds would leave out the truth one time in four), over test clips a bootstrap. The conditions have
seeds and clips in common, so a difference is taken within each seed and each draw of clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from aad1.evaluation.intervals import LEVEL, Interval, draws
from aad1.measures.world import CURVES, MEASURE, combine
from aad1.reproduction.experiments import Condition, Experiment
from aad1.reproduction.pieces import PARTS, Piece

Values = NDArray[np.float64]  # the first of its draws is the data as it is
Pieces = Mapping[str, Sequence[Piece]]  # of each condition, by its label


@dataclass(frozen=True)
class Line:
    """One condition by measure: its value, each seed's own, and its difference from the experiment's first condition.

    None is N/A; ``changes`` is empty for the first condition itself, and where fewer than two seeds tell.
    """

    condition: Condition
    seeds: Sequence[int]
    clips: int
    values: Mapping[str, Interval | None]
    by_seed: Mapping[str, Sequence[float | None]]
    changes: Mapping[str, Interval | None]
    curves: Mapping[str, Sequence[float | None]]

    def differs(self, measure: str) -> bool:
        """Whether the interval of the difference leaves out 0."""
        change = self.changes.get(measure)
        return change is not None and (change.low > 0 or change.high < 0)


def summarise(experiment: Experiment, protocol: str, pieces: Pieces) -> list[Line]:
    """The lines of one protocol's table; conditions without a piece are left out, to be named by the caller."""
    measures = experiment.measures[protocol]
    first = [piece for piece in pieces[experiment.conditions[0].label] if protocol in piece.protocols]
    lines = []
    for condition in experiment.conditions:
        own = [piece for piece in pieces[condition.label] if protocol in piece.protocols]
        if not own:
            continue
        pairs = _paired(own, first) if condition.trained else (own, first)
        changed = condition is not experiment.conditions[0] and len(pairs[1]) > 1
        changes = _changes(*pairs, protocol, measures) if changed else {}
        lines.append(_line(condition, own, protocol, measures, changes))
    return lines


def _paired(own: Sequence[Piece], first: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """The pieces of the seeds that both have."""
    common = {piece.seed for piece in own} & {piece.seed for piece in first}
    return [piece for piece in own if piece.seed in common], [piece for piece in first if piece.seed in common]


def _changes(
    own: Sequence[Piece], first: Sequence[Piece], protocol: str, measures: Sequence[str]
) -> dict[str, Interval | None]:
    here, there = Totals.of(own, protocol), Totals.of(first, protocol)
    found = {}
    for name in measures:
        pooled, by_seed = value(name, here.draws), value(name, here.seeds)
        found[name] = _interval(pooled - value(name, there.draws), by_seed - value(name, there.seeds))
    return found


def _line(
    condition: Condition,
    pieces: Sequence[Piece],
    protocol: str,
    measures: Sequence[str],
    changes: Mapping[str, Interval | None],
) -> Line:
    totals = Totals.of(pieces, protocol)
    by_seed = {name: value(name, totals.seeds) for name in measures}
    return Line(
        condition,
        [piece.seed for piece in pieces],
        len(pieces[0].protocols[protocol].tracks),
        {name: _interval(value(name, totals.draws), by_seed[name]) for name in measures},
        {name: [None if np.isnan(own) else float(own) for own in by_seed[name]] for name in measures},
        changes,
        _curves(pieces, protocol),
    )


@dataclass(frozen=True)
class Totals:
    """Numerators and denominators. draws: over all seeds' clips, then over each resample of the clips,
    [draws, parts, 2]; seeds: over each seed's own clips, [seeds, parts, 2].
    """

    draws: Values
    seeds: Values

    @classmethod
    def of(cls, pieces: Sequence[Piece], protocol: str) -> Totals:
        """Of the pieces of one condition, a piece a seed."""
        arrays = np.stack([piece.protocols[protocol].array() for piece in pieces])  # [seeds, clips, parts, 2]
        return cls(np.tensordot(draws(arrays.shape[1]), arrays.sum(axis=0), 1), arrays.sum(axis=1))


def _interval(values: Values, by_seed: Values) -> Interval | None:
    """Around the first of ``values``; None where that is N/A. One seed alone gives an interval over clips."""
    if np.isnan(values[0]):
        return None
    over_clips = stats.norm.ppf(0.5 + LEVEL / 2) * np.nanstd(values[1:])
    mean, width = float(values[0]), float(np.hypot(_over_seeds(by_seed[~np.isnan(by_seed)]), over_clips))
    return Interval(mean, mean - width, mean + width)


def _over_seeds(known: Values) -> float:
    """Half of Student's interval of the mean; 0 of one value, which says nothing of its scatter."""
    if len(known) < 2:
        return 0.0
    return float(stats.t.ppf(0.5 + LEVEL / 2, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5)


def value(name: str, totals: Values) -> Values:
    """The measure of each line of totals [lines, parts, 2], numerators and denominators."""
    parts = {part: PARTS.index(part) for part in MEASURE[name].keys}
    return combine(MEASURE[name], {part: (totals[:, i, 0], totals[:, i, 1]) for part, i in parts.items()})


def _curves(pieces: Sequence[Piece], protocol: str) -> dict[str, list[float | None]]:
    """Each of CURVES by chunk, over all seeds and clips."""
    totals = {name: np.sum([piece.protocols[protocol].curves[name] for piece in pieces], axis=0) for name in CURVES}
    return {name: [float(a / b) if b > 0 else None for a, b in pairs] for name, pairs in totals.items()}
