"""Commands that make models: new, train, distill, demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from aad1.assembly import Assembly, new_folder
from aad1.cli.options import Install, Out, RecipeName, ResumeFlag, out_of, recipe_of, say
from aad1.demo import Demo, DemoConfig
from aad1.workspace import Workspace


@dataclass(frozen=True)
class New:
    """Write a Wan folder with random weights, to train from nothing.

    For example:
      aad1 new runs/model --recipe tiny
    """

    folder: Positional[Path]
    recipe: RecipeName = "tiny"

    def run(self, extra: Sequence[str]) -> None:
        """Write the folder."""
        new_folder(recipe_of(self.recipe, extra, type(self)), self.folder)
        say(f"wrote {self.folder}; train its parts with aad1 train text|vae|teacher --model {self.folder} --install")


@dataclass(frozen=True)
class Train:
    """Run one training stage.

    text, vae and teacher make the parts of a Wan folder, state_encoder what distances between distributions of
    videos are measured with; ode_init, dmd_warmup and adversarial are the method's stages I, II and III.

    For example:
      aad1 train ode_init --recipe tiny -o runs/tiny --ode_init.steps 50
    """

    stage: Positional[Literal["text", "vae", "teacher", "state_encoder", "ode_init", "dmd_warmup", "adversarial"]]
    recipe: RecipeName = "tiny"
    out: Out = None
    resume: ResumeFlag = False
    install: Install = False

    def run(self, extra: Sequence[str]) -> None:
        """Train, and say where the result is."""
        assembly = Assembly(recipe_of(self.recipe, extra, type(self)), Workspace(out_of(self.out, self.recipe)))
        if self.install:
            assembly.refuse_install()
        say(f"wrote {assembly.train(self.stage, self.resume)}")
        if self.install:
            assembly.install(self.stage)
            say(f"installed in {assembly.folder.path}")


@dataclass(frozen=True)
class Distill:
    """Distil a bidirectional teacher into a one-step causal student: clips, trajectories, stages I to III.

    For example:
      aad1 distill --recipe tiny -o runs/tiny
    """

    recipe: RecipeName = "tiny"
    out: Out = None
    resume: ResumeFlag = False
    install: Install = False

    def run(self, extra: Sequence[str]) -> None:
        """Run every step that is not finished."""
        assembly = Assembly(recipe_of(self.recipe, extra, type(self)), Workspace(out_of(self.out, self.recipe)))
        if self.install:
            assembly.refuse_install()
        say(f"wrote {assembly.distill(self.resume)}")
        if self.install:
            assembly.install("adversarial")
            say(f"installed in {assembly.folder.path}")


@dataclass(frozen=True)
class DemoCommand:
    """See the whole method work: distil the bundled teacher in minutes, score every stage, and look at it.

    For example:
      aad1 demo -o runs/demo
    """

    recipe: RecipeName = "demo"
    out: Out = None
    resume: ResumeFlag = False
    clips: Annotated[int, arg(help="test clips that every row of the table is measured on")] = 16
    shown: Annotated[int, arg(help="how many of them are on the page")] = 4

    def run(self, extra: Sequence[str]) -> None:
        """Run, and say where to look."""
        config = DemoConfig(self.clips, self.shown)
        page = Demo(recipe_of(self.recipe, extra, type(self)), out_of(self.out, self.recipe), config, self.resume).run()
        say(f"open {page.resolve()} in a browser\nthe table is in {page.parent / 'evaluation' / 'report.md'}")
