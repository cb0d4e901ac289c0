"""Commands of a blind preference study: evaluate preference make | score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from aad1.cli.options import Group, at_least, named_folders, refuse, say
from aad1.errors import UserError, nearest
from aad1.evaluation.contestants import contestants
from aad1.evaluation.preference import KEY, PAGE, QUESTIONS, Plan, make_study, read_key
from aad1.evaluation.votes import score, to_markdown, write_score

FEW = 5  # lines of what was left out that are printed; the key has them all


@dataclass(frozen=True)
class PreferenceMake:
    """Write a blind A/B page of two models' videos: OUT/index.html for raters, OUT/key.json for you.

    The videos are those of two folders, paired by their names, or of rows of reports that kept their frames. Raters
    open the page, answer by keyboard, and send you their answers.csv; keep the key from them.

    For example:
      aad1 evaluate preference make ours=runs/ours/videos theirs=runs/theirs/videos
      aad1 evaluate preference make runs/evaluation --models dmd_warmup adversarial --pairs 40
    """

    videos: Positional[Annotated[tuple[str, ...], arg(metavar="[NAME=]FOLDER ...")]]
    models: Annotated[tuple[str, ...], arg(help="rows of the report, or one of each of two reports")] = ()
    questions: Annotated[tuple[str, ...], arg(help=f"of {', '.join(QUESTIONS)}, or your own (NAME=TEXT)")] = tuple(
        QUESTIONS
    )
    pairs: Annotated[int | None, arg(help="so many pairs, drawn at random (default: all)")] = None
    seed: Annotated[int, arg(help="of the sides and the order")] = 0
    fit: Annotated[bool, arg(help="cut and resize videos that differ, instead of leaving them out")] = False
    out: Annotated[Path, arg(aliases=["-o"], help="folder for the page and the key")] = Path("runs/preference")

    def run(self, extra: Sequence[str]) -> None:
        """Pair, write, and say what to hand out."""
        refuse(extra, type(self))
        at_least(0, seed=self.seed)
        one, other = contestants(list(named_folders(self.videos)), self.models)
        key = make_study(one, other, self.out, Plan(asked(self.questions), self.pairs, self.seed, self.fit))
        for line in key.missing[:FEW]:
            say(f"left out: {line}")
        if len(key.missing) > FEW:
            say(f"left out: {len(key.missing) - FEW} more, listed in {self.out / KEY}")
        page = self.out / PAGE
        size = page.stat().st_size / 1e6
        say(f"{len(key.pairs)} pairs of {one.name} and {other.name}, {len(key.questions)} questions each")
        say(f"give raters {page} ({size:.1f} MB) alone; keep {self.out / KEY}")


@dataclass(frozen=True)
class PreferenceScore:
    """Count the answers of a blind study: win rates with 95 % intervals, ties, raters and side bias.

    Writes preference.json beside the key. Answers that do not count (of another study, unknown, given twice) are named.

    For example:
      aad1 evaluate preference score ann/answers.csv bob/answers.csv --key runs/preference
    """

    answers: Positional[Annotated[tuple[Path, ...], arg(metavar="ANSWERS.CSV ...")]]
    key: Annotated[Path, arg(help="the study's folder, or its key.json")] = Path("runs/preference")
    out: Annotated[Path | None, arg(aliases=["-o"], help="folder for preference.json (default: the key's)")] = None

    def run(self, extra: Sequence[str]) -> None:
        """Count, print, write."""
        refuse(extra, type(self))
        if not self.answers:
            raise UserError("no answers are given; give the answers.csv of one or more raters")
        key = read_key(self.key)
        found = score(self.answers, key)
        path = write_score(found, self.out or (self.key if self.key.is_dir() else self.key.parent))
        say(to_markdown(found, key.questions))
        say(f"wrote {path}")


@dataclass(frozen=True)
class Preference(Group):
    """Ask people: a blind A/B page, and what their answers say."""

    command: Annotated[
        Annotated[PreferenceMake, subcommand("make", prefix_name=False)]
        | Annotated[PreferenceScore, subcommand("score", prefix_name=False)],
        arg(name=""),
    ]


def asked(words: Sequence[str]) -> dict[str, str]:
    """Questions by their names; raises UserError for an unknown one, one without words, and for none."""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or (equals and not text.strip()):
            raise UserError(f"'{word}' is no question; give NAME=TEXT, or one of {', '.join(QUESTIONS)}")
        if not equals and name not in QUESTIONS:
            raise UserError(f"there is no question '{name}'{nearest(name, QUESTIONS)}; your own is NAME=TEXT")
        if not name.isidentifier():
            raise UserError(f"'{name}' names a question; use letters, digits and _, and not a digit first")
        found[name] = text.strip() if equals else QUESTIONS[name]
    if not found:
        raise UserError(f"no question is asked; give one of {', '.join(QUESTIONS)} or NAME=TEXT")
    return found
