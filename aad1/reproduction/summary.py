"""From pieces to an experiment's tables: seeds and clips pooled, conditions compared clip by clip.

Intervals are 95 % percentile bootstraps over training seeds and, within them, over test clips. Every condition has the
same seeds and the same clips, so both are drawn once for all: a difference is taken within each draw. With three seeds
an interval is a rough guide, which is why each seed's own value stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aad1.evaluation.intervals import Interval, draws, interval
from aad1.measures.world import CURVES, MEASURE, combine
from aad1.reproduction.experiments import Condition, Experiment
from aad1.reproduction.pieces import PARTS, Piece

Values = NDArray[np.float64]  # the first of its draws is the data as it is
Pieces = Mapping[str, Sequence[Piece]]  # of each condition, by its label


@dataclass(frozen=True)
class Line:
    """One condition by measure: its value, each seed's own, and its difference from the experiment's first condition.

    None is N/A; ``changes`` is empty for the first condition itself.
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
        changed = condition is not experiment.conditions[0] and all(pairs)
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
    here, there = _resampled(own, protocol), _resampled(first, protocol)
    return {name: interval(_value(name, here) - _value(name, there)) for name in measures}


def _line(
    condition: Condition,
    pieces: Sequence[Piece],
    protocol: str,
    measures: Sequence[str],
    changes: Mapping[str, Interval | None],
) -> Line:
    totals = _resampled(pieces, protocol)
    return Line(
        condition,
        [piece.seed for piece in pieces],
        len(pieces[0].protocols[protocol].tracks),
        {name: interval(_value(name, totals)) for name in measures},
        {name: [_point(name, piece, protocol) for piece in pieces] for name in measures},
        changes,
        _curves(pieces, protocol),
    )


def _resampled(pieces: Sequence[Piece], protocol: str) -> Values:
    """Numerators and denominators over all seeds and clips, then over each resample of both, [draws, parts, 2]."""
    arrays = np.stack([piece.protocols[protocol].array() for piece in pieces])  # [seeds, clips, parts, 2]
    return np.einsum("ds,dc,scpk->dpk", draws(len(pieces), seed=1), draws(arrays.shape[1]), arrays, optimize=True)


def _value(name: str, totals: Values) -> Values:
    """The measure of each draw, [draws]."""
    parts = {part: PARTS.index(part) for part in MEASURE[name].keys}
    return combine(MEASURE[name], {part: (totals[:, i, 0], totals[:, i, 1]) for part, i in parts.items()})


def _point(name: str, piece: Piece, protocol: str) -> float | None:
    value = float(_value(name, piece.protocols[protocol].array().sum(axis=0)[None])[0])
    return None if np.isnan(value) else value


def _curves(pieces: Sequence[Piece], protocol: str) -> dict[str, list[float | None]]:
    """Each of CURVES by chunk, over all seeds and clips."""
    totals = {name: np.sum([piece.protocols[protocol].curves[name] for piece in pieces], axis=0) for name in CURVES}
    return {name: [float(a / b) if b > 0 else None for a, b in pairs] for name, pairs in totals.items()}
