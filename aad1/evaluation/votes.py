"""Answers of a preference study and its key: how often each model was preferred, and whether raters looked at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path

import numpy as np

from aad1.errors import UserError
from aad1.evaluation.intervals import Interval, draws, interval
from aad1.evaluation.preference import Key
from aad1.evaluation.report import versions
from aad1.files import write_atomic

FILE = "preference.json"
FORMAT = 1
COLUMNS = ("study", "rater", "pair", "question", "answer")
ANSWERS = ("left", "right", "tie")
Z95 = 1.959964
Z_RATER = 3.0  # of many raters one looks odd by chance; this far out one in 370 does
NOTES = (
    "Win rate: share of the answers that were no tie, with a 95 % Wilson interval.",
    "Over pairs: 95 % bootstrap interval over pairs, each with all its answers; several raters of a pair are not "
    "independent, so it is the one to quote where there are several.",
)


@dataclass(frozen=True)
class Vote:
    """One rater's answer: "left", "right" or "tie"."""

    rater: str
    pair: str
    question: str
    answer: str


@dataclass(frozen=True)
class Result:
    """One question's outcome. wins: by model; rate: of each model among answers that were no tie, None without any;
    over_pairs: the same by a bootstrap over pairs, None with one rater; left: share of "left" among them.
    """

    question: str
    wins: Mapping[str, int]
    ties: int
    rate: Mapping[str, Interval | None]
    over_pairs: Mapping[str, Interval | None]
    left: Interval | None
    raters: int
    pairs: int


@dataclass(frozen=True)
class Score:
    """A study's outcome. missing: answers that do not count, and why, one line each."""

    study: str
    models: tuple[str, str]
    results: Sequence[Result]
    raters: Sequence[str]
    notes: Sequence[str]
    missing: Sequence[str]
    made: Mapping[str, str] = field(default_factory=versions)


def score(files: Sequence[Path], key: Key) -> Score:
    """Count what counts in the files of answers.

    A file that is no list of answers is missing, too. Raises UserError when no answer counts.
    """
    missing: list[str] = []
    votes = list(_counted(files, key, missing))
    if not votes:
        raise UserError("; ".join(["no answer counts", *missing[:3]]))
    raters = sorted({vote.rater for vote in votes})
    results = [_result(name, [v for v in votes if v.question == name], key) for name in key.questions]
    return Score(key.study, key.models, results, raters, [*NOTES, *_odd(results, votes)], missing)


def write_score(found: Score, folder: Path) -> Path:
    """Write ``preference.json``; returns its path."""
    path = folder / FILE
    text = json.dumps({"format": FORMAT, **asdict(found)}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text.encode())
    return path


def wilson(wins: int, count: int, z: float = Z95) -> Interval | None:
    """A share with Wilson's score interval; None of nothing.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n): E. B. Wilson, JASA 22 (1927).
    """
    if not count:
        return None
    share, part = wins / count, z * z / count
    middle, reach = share + part / 2, z * sqrt(share * (1 - share) / count + part / (4 * count))
    low, high = (middle - reach) / (1 + part), (middle + reach) / (1 + part)
    return Interval(share, min(max(low, 0.0), share), max(min(high, 1.0), share))


# --- reading ----------------------------------------------------------------------------------


def _counted(files: Sequence[Path], key: Key, missing: list[str]) -> Iterator[Vote]:
    """Every answer once; the others go to ``missing``."""
    seen: dict[tuple[str, str, str], str] = {}
    for file in files:
        try:
            rows = list(_rows(file))
        except UserError as error:
            missing.append(str(error))
            continue
        for line, row in rows:
            where = f"{file}, line {line}"
            if reason := _wrong(row, key):
                missing.append(f"{where}: {reason}")
                continue
            vote = Vote(row["rater"], row["pair"], row["question"], row["answer"])
            asked = (vote.rater, vote.pair, vote.question)
            if asked in seen:
                missing.append(f"{where}: {vote.rater} answered this already ({seen[asked]}); the first answer counts")
                continue
            seen[asked] = where
            yield vote


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a file by number; raises UserError for a file that is no list of answers."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restval="")
            if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(f"{file} has no column {', '.join(lacking)}; give the answers.csv that the page made")
            for row in reader:
                yield reader.line_num, {name: row[name].strip() for name in COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read ({reason}); give the answers.csv that the page made") from error


def _wrong(row: Mapping[str, str], key: Key) -> str:
    """Why an answer does not count, "" if it does."""
    if row["study"] != key.study:
        return f"it belongs to study '{row['study']}', not to {key.study}"
    if row["pair"] not in key.pairs:
        return f"there is no pair '{row['pair']}'"
    if row["question"] not in key.questions:
        return f"there is no question '{row['question']}'"
    if row["answer"] not in ANSWERS:
        return f"'{row['answer']}' is no answer; {', '.join(ANSWERS)} are"
    return "" if row["rater"] else "it names no rater"


# --- counting ---------------------------------------------------------------------------------


def _result(question: str, votes: Sequence[Vote], key: Key) -> Result:
    first, second = key.models
    decided = [vote for vote in votes if vote.answer != "tie"]
    wins = sum(_winner(vote, key) == first for vote in decided)
    raters = len({vote.rater for vote in votes})
    rate = wilson(wins, len(decided))
    over = _over_pairs(decided, key) if raters > 1 else None
    return Result(
        question,
        {first: wins, second: len(decided) - wins},
        len(votes) - len(decided),
        {first: rate, second: _opposite(rate)},
        {first: over, second: _opposite(over)},
        wilson(sum(vote.answer == "left" for vote in decided), len(decided)),
        raters,
        len({vote.pair for vote in votes}),
    )


def _winner(vote: Vote, key: Key) -> str:
    pair = key.pairs[vote.pair]
    return pair.left if vote.answer == "left" else pair.right


def _over_pairs(decided: Sequence[Vote], key: Key) -> Interval | None:
    """The first model's win rate, pairs drawn with all their answers."""
    pairs = sorted({vote.pair for vote in decided})
    if not pairs:
        return None
    wins, counts = np.zeros(len(pairs)), np.zeros(len(pairs))
    for vote in decided:
        place = pairs.index(vote.pair)
        wins[place] += _winner(vote, key) == key.models[0]
        counts[place] += 1
    weights = draws(len(pairs))
    return interval((weights @ wins) / (weights @ counts))


def _opposite(share: Interval | None) -> Interval | None:
    return None if share is None else Interval(1 - share.mean, 1 - share.high, 1 - share.low)


def _odd(results: Sequence[Result], votes: Sequence[Vote]) -> Iterator[str]:
    """Questions and raters with a side that they prefer."""
    for result in results:
        if result.left and not result.left.low <= 0.5 <= result.left.high:
            yield f"Side bias: '{result.question}' was answered left in {_percent(result.left)}."
    for rater in sorted({vote.rater for vote in votes}):
        sides = [vote.answer for vote in votes if vote.rater == rater and vote.answer != "tie"]
        share = wilson(sides.count("left"), len(sides), Z_RATER)
        if share and not share.low <= 0.5 <= share.high:
            yield f"Side bias: {rater} answered left in {sides.count('left')} of {len(sides)} answers."


# --- Markdown ---------------------------------------------------------------------------------


def to_markdown(found: Score, questions: Mapping[str, str]) -> str:
    """A line a question and model, then what was asked, how to read it and what does not count."""
    one, other = found.models
    lines = [f"# Preference: {one} against {other}", ""]
    lines.append("| question | model | wins | win rate [95 %] | over pairs | ties | raters | pairs | left |")
    lines.append("|" + "---|" * 9)
    for result in found.results:
        last = f"{result.ties} | {result.raters} | {result.pairs} | {_percent(result.left)}"
        for model in found.models:
            rates = f"{_percent(result.rate[model])} | {_percent(result.over_pairs[model])}"
            lines.append(f"| {result.question} | {model} | {result.wins[model]} | {rates} | {last} |")
    lines += ["", *(f"- **{name}**: {text}" for name, text in questions.items())]
    lines += ["", *found.notes, *(f"Does not count: {line}" for line in found.missing)]
    return "\n".join(lines) + "\n"


def _percent(share: Interval | None) -> str:
    if share is None:
        return "N/A"
    return f"{100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"
