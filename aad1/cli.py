"""The command line: ``aad1 demo | new | prepare | train | distill | generate``.

Exit codes: 0 done, 2 a mistake the user can mend (one line on stderr), 130 interrupted after saving.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, arg, subcommand

from aad1.assembly import Assembly, new_folder
from aad1.errors import UserError
from aad1.recipe import Recipe, load_recipe
from aad1.runtime import keep_freed_memory
from aad1.training.loop import Interrupted
from aad1.workspace import Workspace

Out = Annotated[Path, arg(aliases=["-o"], help="folder for everything the command makes")]
RecipeName = Annotated[str, arg(help="a bundled recipe, or a YAML file; any of its values: --section.key VALUE")]
ResumeFlag = Annotated[bool, arg(help="go on from the last checkpoint")]
Install = Annotated[bool, arg(help="afterwards put the trained part into the Wan folder (--model)")]


@dataclass(frozen=True)
class New:
    """Write a Wan folder with random weights, to train from nothing.

    Example: aad1 new runs/model --recipe tiny
    """

    folder: Positional[Path]
    recipe: RecipeName = "tiny"

    def run(self, recipe: Recipe) -> None:
        """Write the folder."""
        new_folder(recipe, self.folder)
        say(f"wrote {self.folder}; train its parts with aad1 train text|vae|teacher --model {self.folder} --install")


@dataclass(frozen=True)
class Prepare:
    """Make what the stages learn from: latent clips, or the teacher's trajectories. Continues what is there.

    Example: aad1 prepare clips --recipe tiny -o runs/tiny --data.source my_videos/
    """

    what: Positional[Literal["clips", "trajectories"]]
    recipe: RecipeName = "tiny"
    out: Out = Path("runs/tiny")

    def run(self, recipe: Recipe) -> None:
        """Encode clips or denoise trajectories."""
        assembly = Assembly(recipe, Workspace(self.out))
        assembly.prepare_clips() if self.what == "clips" else assembly.prepare_trajectories()


@dataclass(frozen=True)
class Train:
    """Run one training stage.

    text, vae and teacher make the parts of a Wan folder; ode_init, dmd_warmup and adversarial are the
    method's stages I, II and III. Example: aad1 train ode_init --recipe tiny -o runs/tiny --ode_init.steps 50
    """

    stage: Positional[Literal["text", "vae", "teacher", "ode_init", "dmd_warmup", "adversarial"]]
    recipe: RecipeName = "tiny"
    out: Out = Path("runs/tiny")
    resume: ResumeFlag = False
    install: Install = False

    def run(self, recipe: Recipe) -> None:
        """Train, and say where the result is."""
        assembly = Assembly(recipe, Workspace(self.out))
        say(f"wrote {assembly.train(self.stage, self.resume)}")
        if self.install:
            assembly.install(self.stage)
            say(f"installed in {assembly.folder.path}")


@dataclass(frozen=True)
class Distill:
    """Distil a bidirectional teacher into a one-step causal student: clips, trajectories, stages I to III.

    Example: aad1 distill --recipe tiny -o runs/tiny
    """

    recipe: RecipeName = "tiny"
    out: Out = Path("runs/tiny")
    resume: ResumeFlag = False
    install: Install = False

    def run(self, recipe: Recipe) -> None:
        """Run every step that is not finished."""
        assembly = Assembly(recipe, Workspace(self.out))
        say(f"wrote {assembly.distill(self.resume)}")
        if self.install:
            assembly.install("adversarial")


Command = (
    Annotated[New, subcommand("new")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Distill, subcommand("distill")]
)


def say(text: str) -> None:
    """Print a line on stdout."""
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a user's mistake into one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not debug:
        warnings.showwarning = _show_warning
    keep_freed_memory()
    try:
        command, overrides = tyro.cli(Command, args=words, prog="aad1", return_unknown_args=True)  # type: ignore[call-overload]
        command.run(load_recipe(command.recipe, overrides))
    except (UserError, Interrupted, KeyboardInterrupt) as error:
        if debug:
            raise
        stopped = not isinstance(error, UserError)
        Console(stderr=True, soft_wrap=True).print(f"aad1: {error or 'interrupted'}", markup=False, highlight=False)
        return 130 if stopped else 2
    return 0


def _show_warning(message: Warning | str, *_: object) -> None:
    Console(stderr=True, soft_wrap=True).print(f"aad1: warning: {message}", markup=False, highlight=False)
