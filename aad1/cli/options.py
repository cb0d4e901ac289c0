"""What several commands share: options, and what they mean."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console
from tyro.conf import arg

from aad1.errors import UserError, nearest
from aad1.progress import Progress
from aad1.recipe import RECIPES, Recipe, load_recipe, recipes_in_words
from aad1.streaming import DTYPES, Student
from aad1.training.loop import Interrupted

Out = Annotated[
    Path | None,
    arg(aliases=["-o"], help="folder for everything it makes (default: runs/RECIPE)"),
]
FINISHED = "what was finished is kept"
RECIPE_HELP = f"one of {recipes_in_words()} (in {RECIPES}), or a YAML file; any of its values: --section.key VALUE"
RecipeName = Annotated[str, arg(help=RECIPE_HELP)]
ResumeFlag = Annotated[bool, arg(help="go on from the last checkpoint")]
ModelName = Annotated[str, arg(help="a Wan folder, the name of a bundled one, or OWNER/NAME on the Hugging Face hub")]
StudentName = Annotated[str, arg(help="a student in that folder, or the folder that a run exported")]
Device = Annotated[str, arg(help="auto, cpu, or a GPU such as cuda:0")]
DType = Annotated[Literal["float32", "bfloat16", "float16"] | None, arg(help="default: bfloat16 on a GPU")]
Compile = Annotated[bool, arg(help="torch.compile: a minute of warming up first, then faster chunks")]
Install = Annotated[bool, arg(help="afterwards put the trained part into the Wan folder (--model)")]


GIVEN: ContextVar[Sequence[str]] = ContextVar("GIVEN", default=())  # the words of the command that runs


class Group:
    """A command that is a choice of others: what was chosen is its field ``command``."""

    command: Any


def recipe_of(name: str, extra: Sequence[str], command: type) -> Recipe:
    """The recipe a command names, with the values given beside it."""
    return load_recipe(name, extra, [field.name for field in fields(command)])


def out_of(out: Path | None, recipe: str) -> Path:
    """Where a command's results go: the folder that is given, or one named for the recipe."""
    return out or Path("runs") / Path(recipe).name.removesuffix(".yaml")


def dtype_of(name: str | None) -> torch.dtype | None:
    """The type of weights that a command names, None for the device's usual one."""
    return DTYPES[name] if name else None


def named_folders(words: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The row and the place of each NAME=FOLDER; a folder alone is a row of its own name."""
    for word in words:
        name, equals, place = word.partition("=")
        given = bool(equals) and not Path(word).exists()
        yield row_name(name if given else Path(word).resolve().name, word), Path(place if given else word)


def row_name(name: str, given: str) -> str:
    """A name for a table's row, which also names a folder; raises UserError when it cannot."""
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"{given}: '{name}' is no name for a row; give NAME=FOLDER")
    return name


def warm_up(student: Student, size: tuple[int, int] | None = None, passes: Sequence[float] | None = None) -> None:
    """Warm a student up, and show how far that is."""
    with Progress("warming up", student.warming, unit="chunk") as bar:
        student.warm_up(size, passes, bar.advance)


def command_line() -> str:
    """What was asked for, as it would be typed: reports say how they were made."""
    return shlex.join(["aad1", *GIVEN.get()])


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Ctrl-C within ends the command with a word on what is kept, for the same command goes on from it."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {what}: the same command goes on") from None


def at_least(least: int, **given: int | None) -> None:
    """Raise UserError for the first option whose value is below ``least``; None was not given."""
    for name, value in given.items():
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: use {least} or more")


def say(text: str) -> None:
    """Print a line on stdout."""
    print(text, flush=True)


def refuse(extra: Sequence[str], command: type) -> None:
    """Raise UserError for the first word that a command without a recipe does not know."""
    if extra:
        names = [f"--{field.name}" for field in fields(command)]
        word = extra[0].partition("=")[0]
        raise UserError(f"'{word}' is not an option of this command{nearest(word, names)}")


def complain(line: str) -> None:
    """Print a line on stderr, in the program's name."""
    Console(stderr=True, soft_wrap=True).print(f"aad1: {line}", markup=False, emoji=False, highlight=False)
