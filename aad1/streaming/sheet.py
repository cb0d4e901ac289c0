"""A contact sheet: a row of evenly spaced frames for each video, so that many can be compared at a glance."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from aad1.data.media import enlarge, read_frames
from aad1.files import write_atomic, write_errors
from aad1.streaming.record import enlargement

COLUMNS = 8  # frames of a row
GAP = 8  # px between tiles, between rows and around all of them
MOST_PIXELS = 2**26  # of a page; a long batch fills several, of which one is held in memory
LONGEST_LABEL = 400  # characters that are measured at all
PAPER, INK = (255, 255, 255), (24, 24, 24)


@dataclass(frozen=True)
class SheetRow:
    """A written video, and what its label says."""

    path: Path
    name: str
    prompt: str
    seed: int


def write_sheet(path: Path, rows: Iterable[SheetRow], columns: int = COLUMNS) -> list[Path]:
    """Write a PNG with a labelled row of at most ``columns`` frames for each video; returns the pages.

    Rows that one picture cannot hold go on in ``NAME-2.png`` and so on. Small videos are enlarged by a whole
    factor, as ``enlargement`` has it. Raises UserError when a page cannot be written.
    """
    pages = []
    for number, strips in enumerate(_paged(_strip(row, columns) for row in rows), start=1):
        pages.append(path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"))
        data = io.BytesIO()
        _stacked(strips).save(data, "PNG")
        with write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(pages[-1], data.getvalue())
    return pages


def label_height(height: int) -> int:
    """How many pixels the label above tiles of this height takes: legible beside them at any zoom."""
    return round(1.5 * _letters(height))


def _letters(height: int) -> int:
    return max(14, height // 16)


def _strip(row: SheetRow, columns: int) -> Image.Image:
    """A video's label, and its frames below."""
    frames = read_frames(row.path, columns)
    scale = enlargement((frames.shape[1], frames.shape[2]))
    tiles = enlarge(frames, scale)
    count, height, width, _ = tiles.shape
    strip = Image.new("RGB", (count * (width + GAP) - GAP, label_height(height) + height), PAPER)
    font = ImageFont.load_default(_letters(height))
    label = shortened(f"{row.name}   seed {row.seed}   {' '.join(row.prompt.split())}", strip.width, font)
    ImageDraw.Draw(strip).text((0, 0), label, INK, font)
    for index, tile in enumerate(tiles):
        strip.paste(Image.fromarray(tile), (index * (width + GAP), label_height(height)))
    return strip


def shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or as much of its beginning as fits into ``width`` pixels with dots after it."""
    if len(text) <= LONGEST_LABEL and font.getlength(text) <= width:
        return text
    text = text[:LONGEST_LABEL]
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _paged(strips: Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    """Strips in groups that one picture can hold, at least one in each."""
    page: list[Image.Image] = []
    for strip in strips:
        if page and _area([*page, strip]) > MOST_PIXELS:
            yield page
            page = []
        page.append(strip)
    if page:
        yield page


def _area(strips: list[Image.Image]) -> int:
    width, height = _size(strips)
    return width * height


def _size(strips: list[Image.Image]) -> tuple[int, int]:
    return max(s.width for s in strips) + 2 * GAP, sum(s.height + GAP for s in strips) + GAP


def _stacked(strips: list[Image.Image]) -> Image.Image:
    sheet, top = Image.new("RGB", _size(strips), PAPER), GAP
    for strip in strips:
        sheet.paste(strip, (GAP, top))
        top += strip.height + GAP
    return sheet
