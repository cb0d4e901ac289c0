"""A blind preference study: which of two models' videos do people prefer?

    index.html   the page that raters are given: pairs in step, random sides, answers by keyboard
    key.json     which side was whose; keep it from the raters

The page holds no name of a model or a file and no key. A pair is one video with both sides in it, so nothing can bring
them out of step. Each model is on the left in half of the pairs, drawn by the seed, as is the order. The wording of the
questions is ours and can be replaced.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from aad1.data.clips import read_whole
from aad1.data.entries import ClipError
from aad1.data.media import MAX_FPS, VideoWriter, enlarge, fit_image
from aad1.errors import UserError
from aad1.evaluation.contestants import Contestant, Take
from aad1.evaluation.markup import embedded, filled
from aad1.evaluation.report import versions
from aad1.files import write_atomic
from aad1.progress import Progress
from aad1.streaming.record import enlargement

TEMPLATE = "preference.html"
PAGE, KEY = "index.html", "key.json"
FORMAT = 1
QUESTIONS = {
    "overall": "Which video is better overall?",
    "motion": "Which moves better: naturally, without freezing or jitter?",
    "fidelity": "Which keeps its picture better: the same objects and colours, sharp to the end?",
}
GAP = 32  # px between the sides of a video, so that coding carries nothing across
MOST_SIDE = 640  # px of a picture's longer side
CRF = 14
MOST_BYTES = 200_000_000  # of videos in a page
RATE_TOLERANCE = 0.01  # frames a second

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """A clip and whose video was on which side."""

    clip: str
    left: str
    right: str


@dataclass(frozen=True)
class Key:
    """What the page keeps secret. pairs: by the id that the page knows; missing: clips that are not in it, and why."""

    study: str
    models: tuple[str, str]
    questions: Mapping[str, str]
    pairs: Mapping[str, Pair]
    seed: int = 0
    missing: Sequence[str] = ()
    made: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a study asks. pairs: at most so many, drawn by the seed; fit: cut and resize videos that differ."""

    questions: Mapping[str, str] = field(default_factory=lambda: dict(QUESTIONS))
    pairs: int | None = None
    seed: int = 0
    fit: bool = False


@dataclass(frozen=True)
class _Shown:
    """A pair as the page has it."""

    pair: Pair
    caption: str
    video: bytes


def make_study(one: Contestant, other: Contestant, folder: Path, plan: Plan) -> Key:
    """Write the page and its key into ``folder``.

    Clips that only one has, that cannot be read, or that differ in length, size or rate are left out and named in the
    key. Raises UserError for two models of one name, for no pair at all, and for a folder that holds the key of
    another study.
    """
    if one.name == other.name:
        raise UserError(f"both models are named '{one.name}'; tell them apart: NAME=FOLDER")
    if plan.pairs is not None and plan.pairs < 1:
        raise UserError(f"{plan.pairs} pairs cannot be asked for; use 1 or more")
    draw = np.random.default_rng(plan.seed)
    names, lost = _paired(one, other)
    shown = list(_shown(one, other, names, plan, draw, lost))
    if not shown:
        raise UserError("; ".join(["no pair can be shown", *lost[:3], "give videos of the same names, or --fit"]))
    idents = [f"p{draw.integers(16**6):06x}-{number}" for number in range(len(shown))]
    pairs = {ident: each.pair for ident, each in zip(idents, shown, strict=True)}
    key = Key(_study(plan, shown), (one.name, other.name), plan.questions, pairs, plan.seed, lost, versions())
    _write(folder, key, shown)
    return key


def read_key(path: Path) -> Key:
    """A study's key, from its file or the folder that holds it.

    Raises UserError for what is missing, damaged, no key, or of another format.
    """
    file = path / KEY if path.is_dir() else path
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        given = held.pop("format")
    except OSError as error:
        raise UserError(
            f"no key at {file}: {error.strerror}; give what `aad1 evaluate preference make` wrote"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no key of a preference study; give the key.json beside its page") from error
    if given != FORMAT:
        raise UserError(f"{file} is a key of format {given}, this version reads format {FORMAT}; make the study again")
    try:
        return TypeAdapter(Key).validate_python(held)
    except ValidationError as error:
        raise UserError(f"{file} is damaged ({error.errors()[0]['msg']}); its study cannot be scored") from error


# --- pairs ------------------------------------------------------------------------------------


def _paired(one: Contestant, other: Contestant) -> tuple[list[str], list[str]]:
    """Names that both have, sorted, and a line for each that one alone has."""
    lost = [f"{side.name}: {line}" for side in (one, other) for line in side.lost]
    lost += [f"{name}: only {one.name} has it" for name in sorted(one.takes.keys() - other.takes.keys())]
    lost += [f"{name}: only {other.name} has it" for name in sorted(other.takes.keys() - one.takes.keys())]
    return sorted(one.takes.keys() & other.takes.keys()), lost


def _shown(
    one: Contestant, other: Contestant, names: Sequence[str], plan: Plan, draw: np.random.Generator, lost: list[str]
) -> Iterator[_Shown]:
    """Pairs in random order; of every two, each model is on the left in one."""
    count, weight, swapped = 0, 0, False
    with Progress("pairs", len(names) if plan.pairs is None else min(plan.pairs, len(names)), unit="pair") as bar:
        for name in (names[index] for index in draw.permutation(len(names))):
            if count == plan.pairs:
                return
            if weight > MOST_BYTES:
                lost.append(f"{name}: the page is full; ask for {count} --pairs or fewer")
                continue
            swapped = not swapped if count % 2 else bool(draw.integers(2))
            left, right = (other, one) if swapped else (one, other)
            try:
                video = _video(left.takes[name], right.takes[name], plan.fit)
            except (ClipError, OSError) as error:
                lost.append(f"{name}: {error}")
                continue
            count, weight = count + 1, weight + len(video)
            bar.advance()
            caption = one.takes[name].caption or other.takes[name].caption
            yield _Shown(Pair(name, left.name, right.name), caption, video)


def _video(left: Take, right: Take, fit: bool) -> bytes:
    """Both sides in one MP4, a gap between them; raises ClipError for what cannot be read or does not match."""
    (a, rate), (b, other_rate) = _read(left), _read(right)
    if fit:
        a, b, rate = _fitted(a, b, rate, other_rate)
    elif a.shape != b.shape or abs(rate - other_rate) > RATE_TOLERANCE:
        raise ClipError(
            right.path, f"{_facts(b, other_rate)}; {left.path} has {_facts(a, rate)} (--fit cuts and resizes)"
        )
    sides = [_sized(frames) for frames in (a, b)]
    gap = np.full((len(a), sides[0].shape[1], GAP, 3), 128, np.uint8)
    with TemporaryDirectory() as place:
        path = Path(place) / "pair.mp4"
        with VideoWriter(path, fps=rate, crf=CRF) as writer:
            writer.write(np.concatenate([sides[0], gap, sides[1]], axis=2))
        return path.read_bytes()


def _read(take: Take) -> tuple[Frames, float]:
    frames, rate = read_whole(take.path)
    if not 0 < rate <= MAX_FPS:
        raise ClipError(take.path, f"{rate:g} frames a second cannot be shown")
    return frames, rate


def _facts(frames: Frames, rate: float) -> str:
    count, height, width, _ = frames.shape
    return f"{count} frames of {width}x{height} at {rate:g} a second"


def _fitted(a: Frames, b: Frames, rate: float, other_rate: float) -> tuple[Frames, Frames, float]:
    """Both at the higher rate, as long as the shorter and as large as the smaller."""
    fps = max(rate, other_rate)
    a, b = _retimed(a, rate, fps), _retimed(b, other_rate, fps)
    count = min(len(a), len(b))
    height, width = min((v.shape[1:3] for v in (a, b)), key=lambda size: size[0] * size[1])
    a, b = (np.stack([fit_image(frame, (height, width)) for frame in v[:count]]) for v in (a, b))
    return a, b, fps


def _retimed(frames: Frames, rate: float, fps: float) -> Frames:
    """For each time k / fps the frame that is shown then."""
    if abs(rate - fps) <= RATE_TOLERANCE:
        return frames
    times = np.arange(int(len(frames) * fps / rate + 1e-6)) / fps
    return frames[np.minimum((times * rate + 1e-6).astype(int), len(frames) - 1)]


def _sized(frames: Frames) -> Frames:
    """Small pictures enlarged by a whole factor, large ones made smaller, with even sides."""
    height, width = frames.shape[1:3]
    frames = enlarge(frames, enlargement((height, width)))
    height, width = frames.shape[1:3]
    scale = min(1.0, MOST_SIDE / max(height, width))
    size = (max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2))
    return np.stack([fit_image(frame, size) for frame in frames])


# --- the page ---------------------------------------------------------------------------------


def _study(plan: Plan, shown: Sequence[_Shown]) -> str:
    """An identity that answers are told by; it depends on the pairs, their sides and the questions."""
    facts = json.dumps([plan.seed, dict(plan.questions), [asdict(each.pair) for each in shown]])
    return sha256(facts.encode() + b"".join(sha256(each.video).digest() for each in shown)).hexdigest()[:12]


def _write(folder: Path, key: Key, shown: Sequence[_Shown]) -> None:
    """The key first: a page without one could never be scored."""
    if (folder / KEY).exists() and (held := read_key(folder).study) != key.study:
        raise UserError(f"{folder} holds the key of study {held}, whose answers need it; choose another folder")
    text = json.dumps({"format": FORMAT, **asdict(key)}, indent=1, ensure_ascii=False)
    write_atomic(folder / KEY, text.encode())
    write_atomic(folder / PAGE, render(key, shown).encode())


def render(key: Key, shown: Sequence[_Shown]) -> str:
    """The page's text: nothing of the key but the ids of the study and its pairs."""
    data = {
        "study": key.study,
        "gap": GAP,
        "questions": [{"id": name, "text": text} for name, text in key.questions.items()],
        "pairs": [{"id": ident, "caption": each.caption} for ident, each in zip(key.pairs, shown, strict=True)],
    }
    videos = "".join(
        f'<script type="text/plain" id="video-{number}">{b64encode(each.video).decode()}</script>'
        for number, each in enumerate(shown)
    )
    return filled(TEMPLATE, {"data": embedded(data), "videos": videos})
