"""Small line charts as inline SVG: no library, no network, colours from the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 12, 26
TICKS = 4
DOTTED = 40  # a line of fewer points shows each of them

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A named series; ``style`` is the CSS class that colours it. Where y is not finite the line is broken."""

    label: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """Lines over x. marks: (x, label) along the axis; walls: x of vertical divisions; ideal: a level worth reaching."""

    title: str
    lines: Sequence[Line]
    marks: Sequence[tuple[float, str]]
    walls: Sequence[float] = ()
    ideal: float | None = None

    def svg(self) -> str:
        """The chart as an SVG element, or a line that says there is nothing to draw."""
        points = [point for line in self.lines for point in line.points if math.isfinite(point[1])]
        if not points:
            return f'<p class="empty">{escape(self.title)}: nothing was logged.</p>'
        frame = _frame(points, [x for x, _ in self.marks], self.ideal)
        parts = [*self._grid(frame), *(_drawn(line, frame) for line in self.lines)]
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">{"".join(parts)}</svg>'
        )

    def _grid(self, frame: _Frame) -> list[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for value in frame.ticks:
            y = frame.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>')
        for x, label in self.marks:
            parts.append(
                f'<text x="{frame.x(x):.1f}" y="{HEIGHT - 8}" text-anchor="{frame.anchor(x)}">{escape(label)}</text>'
            )
        for wall in self.walls:
            x = frame.x(wall)
            parts.append(f'<line class="wall" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        if self.ideal is not None:
            y = frame.y(self.ideal)
            parts.append(f'<line class="ideal" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        return parts


@dataclass(frozen=True)
class _Frame:
    """The ranges that are shown and how they map to the picture."""

    left: float
    right: float
    ticks: Sequence[float]

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def anchor(self, value: float) -> str:
        """Labels at the ends stay inside the picture."""
        part = (value - self.left) / (self.right - self.left)
        return "start" if part < 0.05 else "end" if part > 0.95 else "middle"


def _frame(points: Sequence[Point], marks: Sequence[float], ideal: float | None) -> _Frame:
    xs = [x for x, _ in points] + list(marks)
    ys = [y for _, y in points] + ([ideal] if ideal is not None else [])
    left, right = min(xs), max(xs)
    return _Frame(left, right if right > left else left + 1, nice_ticks(min(ys), max(ys)))


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers that cover [low, high], about ``count`` steps apart."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def marks(last: float, unit: str, first: float = 0.0) -> list[tuple[float, str]]:
    """Round numbers along the axis, the last one with its unit."""
    *most, end = nice_ticks(first, last)
    return [*((x, f"{x:g}") for x in most), (end, f"{end:g} {unit}")]


def _drawn(line: Line, frame: _Frame) -> str:
    """Its pieces, and where its points are few, each of them."""
    drawn = "".join(_polyline(piece, line.style, frame) for piece in _pieces(line.points))
    if len(line.points) >= DOTTED:
        return drawn
    dots = (
        f'<circle class="dot {line.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3">'
        f"<title>{escape(line.label)} {y:.3g}</title></circle>"
        for x, y in line.points
        if math.isfinite(y)
    )
    return drawn + "".join(dots)


def _pieces(points: Sequence[Point]) -> list[list[Point]]:
    """The points between those that are not finite."""
    pieces: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _polyline(points: Sequence[Point], style: str, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return f'<polyline class="line {style}" points="{path}"/>'
