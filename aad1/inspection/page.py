"""The page of an inspection: one HTML file that opens from disk, with its films and figures inside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from aad1.evaluation.films import described, sheets
from aad1.evaluation.markup import embedded, facts, filled
from aad1.inspection.findings import MEASURES, Clip, Findings, Measure, Reason, Shown, reasons, sizes, spread
from aad1.inspection.histogram import Histogram

TEMPLATE = "inspection.html"
SHOWN_FACTS = (  # of a clip, beneath its caption: a fact's name, and how it is written
    ("seconds", "{:.1f} s"),
    ("start", "from {:.1f} s"),
    ("source_fps", "{:g} fps"),
    ("motion", "motion {:.4f}"),
    ("jump", "jump {:.1f}"),
)


def render(findings: Findings) -> str:
    """The page's text."""
    films = [shown.film for shown in findings.shown if shown.film is not None]
    parts = {
        "title": escape(findings.source),
        "lead": escape(lead(findings)),
        "counts": "".join(f"<div class='card'><b>{n}</b><span>{words}</span></div>" for n, words in counts(findings)),
        "has_clips": "" if findings.shown else "hidden",
        "clips": _cards(findings.shown),
        "charts": "".join(_chart(findings, measure) for measure in MEASURES),
        "sizes": _sizes(findings.clips),
        "left_out": _left_out(reasons(findings.clips), len(findings.clips)),
        "asked": facts(list(findings.asked.items())),
        "data": embedded({"films": [described(film) for film in films]}),
        "films": "".join(sheets(number, film) for number, film in enumerate(films)),
    }
    return filled(TEMPLATE, parts)


def lead(findings: Findings) -> str:
    """How much was looked at."""
    looked = len(findings.clips)
    return f"All {looked} clips." if looked == findings.listed else f"{looked} of {findings.listed} clips, at random."


def counts(findings: Findings) -> list[tuple[int, str]]:
    """Numbers of clips, each with what it counts."""
    kinds = [clip.kind for clip in findings.clips]
    return [
        (findings.listed, "listed"),
        (len(findings.clips), "looked at"),
        (len(findings.used), "can be used"),
        (kinds.count("filtered"), "not wanted"),
        (kinds.count("broken"), "broken"),
    ]


def _cards(shown: Sequence[Shown]) -> str:
    """Each clip with its film; films are numbered in the order of the clips that have one."""
    numbers, cards = iter(range(len(shown))), []
    for each in shown:
        if each.film is None:
            picture = '<p class="none">no frames at hand</p>'
        else:
            height, width = each.film.size
            picture = f'<canvas data-film="{next(numbers)}" width="{width}" height="{height}" role="img"></canvas>'
        clip = each.clip
        cards.append(
            f'<figure>{picture}<p class="caption">{escape(clip.caption)}</p>'
            f"<small>{escape(clip.name)}</small><small>{escape(_facts(clip))}</small></figure>"
        )
    return "".join(cards)


def _facts(clip: Clip) -> str:
    size = clip.facts.get("source_size")
    written = [text.format(clip.facts[name]) for name, text in SHOWN_FACTS if clip.facts.get(name) is not None]
    return ", ".join([*written, *([f"{size[1]}x{size[0]}"] if size else [])])


def _chart(findings: Findings, measure: Measure) -> str:
    values = findings.values(measure.name)
    histogram = Histogram(measure.title, measure.unit, values, findings.walls.get(measure.name, ()))
    words = measure.words
    if values:
        known = spread(values)
        words += f"; median {known['median']:.3g}, 5 to 95 %: {known['p05']:.3g} to {known['p95']:.3g}"
    return (
        f'<figure class="chart"><h3>{escape(measure.title)}</h3>{histogram.svg()}'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _sizes(clips: Sequence[Clip]) -> str:
    found = sizes(clips)
    lines = "".join(f"<tr><th scope='row'>{escape(size)}</th><td>{count}</td></tr>" for size, count in found)
    head = "<thead><tr><th scope='col'>picture size</th><th scope='col'>clips</th></tr></thead>"
    return f'<div class="wide sizes"><table>{head}<tbody>{lines}</tbody></table></div>' if found else ""


def _left_out(found: Sequence[Reason], looked: int) -> str:
    if not found:
        return "<p>Nothing.</p>"
    words = {"filtered": "not wanted", "broken": "broken"}
    lines = "".join(
        f"<tr><th scope='row'>{escape(r.reason)}</th><td>{words[r.kind]}</td><td>{r.count}</td>"
        f"<td>{100 * r.count / looked:.1f} %</td><td>{_examples(r)}</td></tr>"
        for r in found
    )
    titles = "".join(f"<th scope='col'>{title}</th>" for title in ("reason", "kind", "clips", "share", "examples"))
    return f'<div class="wide left"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def _examples(reason: Reason) -> str:
    (name, first), *more = reason.examples
    rest = "".join(f"<li>{escape(n)}: {escape(why)}</li>" for n, why in more)
    shown = f"{escape(name)}: {escape(first)}"
    return f"<details><summary>{shown}</summary><ul>{rest}</ul></details>" if more else shown
