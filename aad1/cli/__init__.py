"""The command line: making models, generating and serving with them, measuring them.

Exit codes: 0 done (or saved and left, as a scheduler asked), 1 a fault of ours, 2 a mistake the user can mend (one line
on stderr), 3 a run in trouble (doctor), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import dropwhile
from typing import Annotated, Any, TextIO, get_args

import torch
import tyro
from tyro.conf import arg, subcommand

from aad1.cli.converting import Convert
from aad1.cli.data import DataCommand
from aad1.cli.doctor import Doctor
from aad1.cli.evaluating import Compare, EvaluateWorld
from aad1.cli.exporting import Export
from aad1.cli.folder import EvaluateFolder
from aad1.cli.generating import Bench, Generate, WorldImage
from aad1.cli.last_word import end_with
from aad1.cli.leaving import AskedToLeave, leaving
from aad1.cli.options import GIVEN, Group, complain, say
from aad1.cli.planning import PlanCommand
from aad1.cli.preference import Preference
from aad1.cli.preparing import Prepare
from aad1.cli.pushing import Push
from aad1.cli.reproducing import Reproduce
from aad1.cli.serving import Serve
from aad1.cli.training import DemoCommand, Distill, New, Train
from aad1.cli.vbench import VBench
from aad1.errors import UserError, nearest
from aad1.parallel.crew import LostProcess
from aad1.runtime import keep_freed_memory
from aad1.training.loop import Interrupted, Preempted

DESCRIPTION = """One-step streaming image-to-video, distilled: AAD-1.

Begin with `aad1 demo`. Every command explains itself with --help; those with a --recipe take any of its values, for
example --ode_init.steps 50 --data.source my_videos/ --model my_wan_folder. --debug shows where an error came from. Exit
codes: 0 done, 1 a fault of ours, 2 a mistake that you can mend (one line says how), 3 a run in trouble (`aad1 doctor`),
130 interrupted.
"""


@dataclass(frozen=True)
class Evaluate(Group):
    """Answer two questions about any model: is it good, and is its motion dying?"""

    command: Annotated[
        Annotated[EvaluateWorld, subcommand("world", prefix_name=False)]
        | Annotated[EvaluateFolder, subcommand("folder", prefix_name=False)]
        | Annotated[VBench, subcommand("vbench", prefix_name=False)]
        | Annotated[Preference, subcommand("preference", prefix_name=False)],
        arg(name=""),
    ]


Command = (
    Annotated[DemoCommand, subcommand("demo")]
    | Annotated[New, subcommand("new")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[DataCommand, subcommand("data")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Distill, subcommand("distill")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[WorldImage, subcommand("world-image")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Doctor, subcommand("doctor")]
    | Annotated[Push, subcommand("push")]
    | Annotated[Reproduce, subcommand("reproduce")]
    | Annotated[PlanCommand, subcommand("plan")]
)


COMMANDS: list[str] = [get_args(command)[1].name for command in get_args(Command)]

LEAVE = ("prepare", "train", "distill")  # end well when a scheduler asks
GO_ON = ("demo", "prepare", "train", "distill", "evaluate", "reproduce")  # continue what they were stopped in


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a user's mistake into one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not debug:
        warnings.showwarning = _show_warning
    keep_freed_memory()
    if words == ["--version"]:
        say(f"aad1 {version('aad1')}")
        return 0
    GIVEN.set(words)
    try:
        command, extra = parse(words)
        with leaving(words[0] in LEAVE):
            return command.run(extra) or 0
    except (Exception, KeyboardInterrupt, AskedToLeave) as error:
        if debug:
            raise
        code, line = _verdict(error, goes_on=words[0] in GO_ON)
        end_with(error, line, code)
        return code


def parse(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command and the words it does not know: values of a recipe, or mistakes.

    Raises UserError with one line where tyro would print a box; ``--help`` prints and exits as ever.
    """
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise UserError(f"there is no command '{words[0]}'{nearest(words[0], COMMANDS)}")
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            command: Any
            command, extra = tyro.cli(  # type: ignore[call-overload]
                Command, args=words or ["--help"], prog="aad1", description=DESCRIPTION, return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code:
            raise UserError(_unboxed(box.getvalue())) from None
        raise
    while isinstance(command, Group):
        command = command.command
    return command, extra


def _unboxed(box: str) -> str:
    """The message of one of tyro's boxes: its title, and the lines down to the first rule (in ASCII: to the second)."""
    title, *rows = [line.strip("╭╮╰╯│─-+| ") for line in box.strip().splitlines()]
    rows = list(dropwhile(lambda row: not row, rows))
    return f"{title.lower()}: {' '.join(rows[: rows.index('')] if '' in rows else rows)}"


def _verdict(error: BaseException, goes_on: bool) -> tuple[int, str]:
    """Exit code and line for what went wrong; ``goes_on``: whether the command can be continued."""
    if isinstance(error, Preempted | AskedToLeave):
        return 0, str(error)
    if isinstance(error, Interrupted | KeyboardInterrupt):
        kept = "what was finished is kept: the same command goes on, with --resume where it has that option"
        return 130, str(error) or f"interrupted; {kept if goes_on else 'nothing was written'}"
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, LostProcess):
        return 1, str(error)
    if isinstance(error, BrokenPipeError):
        return 1, "whatever read the output has stopped reading"
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in first:
        return 2, f"not enough memory ({first}); use a smaller --size or batch, or a larger machine"
    return 1, f"internal error ({type(error).__name__}: {first}); --debug shows where; please report it"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    complain(f"warning: {message}")
