"""Histograms as inline SVG, in the manner of the line charts of ``evaluation/chart.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from aad1.evaluation.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, nice_ticks

BINS = 24
TAIL = 99  # percentile beyond which a few far values share the last bar, so that they do not flatten the rest
GAP = 1.0  # between bars
FEW = 6  # values that are so few are all shown where they are


@dataclass(frozen=True)
class Histogram:
    """How often values fall where. walls: values that were asked for, as vertical lines."""

    title: str
    unit: str
    values: Sequence[float]
    walls: Sequence[float] = ()

    def bars(self) -> list[tuple[float, float, int]]:
        """From, to and count of each bar; the last one also counts what lies beyond it."""
        values = np.asarray(self.values, float)
        usual = float(np.percentile(values, TAIL) if len(set(self.values)) > FEW else values.max())
        seen = [float(values.min()), usual, *self.walls]  # what was asked for is always in the picture
        ticks = nice_ticks(min(seen), max(seen))
        edges = np.linspace(ticks[0], ticks[-1], BINS + 1)
        counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
        return [(float(a), float(b), int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]

    def svg(self) -> str:
        """The histogram as an SVG element, or a line that says there is nothing to draw."""
        if not self.values:
            return f'<p class="empty">{escape(self.title)}: not known of any clip.</p>'
        bars = self.bars()
        low, high, most = bars[0][0], bars[-1][1], max(count for *_, count in bars)
        across, up = (WIDTH - LEFT - RIGHT) / (high - low), (HEIGHT - TOP - BOTTOM) / most
        drawn = [
            f'<rect class="bar" x="{LEFT + (a - low) * across:.1f}" y="{HEIGHT - BOTTOM - n * up:.1f}" '
            f'width="{(b - a) * across - GAP:.1f}" height="{n * up:.1f}"><title>{n} from {a:g} to {b:g}</title></rect>'
            for a, b, n in bars
            if n
        ]
        walls = [
            f'<line class="asked" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            for x in (LEFT + (wall - low) * across for wall in self.walls)
        ]
        axis = [
            f'<line class="wall" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>',
            f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{most}</text>',
            *self._marks(low, high, across),
        ]
        label = escape(f"{self.title}: histogram of {len(self.values)} clips")
        parts = "".join([*axis, *drawn, *walls])
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{parts}</svg>'

    def _marks(self, low: float, high: float, across: float) -> list[str]:
        values = [v for v in nice_ticks(low, high) if low <= v <= high]
        texts = [f"{v:g}" for v in values[:-1]] + [f"{values[-1]:g} {self.unit}".strip()]
        ends = ["start" if v == low else "end" if v == values[-1] else "middle" for v in values]
        return [
            f'<text x="{LEFT + (v - low) * across:.1f}" y="{HEIGHT - 8}" text-anchor="{end}">{escape(text)}</text>'
            for v, text, end in zip(values, texts, ends, strict=True)
        ]
